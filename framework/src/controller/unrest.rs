//! Work that leads to more work: runs that wake themselves, and writers that undo each other.
//!
//! A *hot loop* is a reconcile whose every run writes something that makes it run again. A
//! *contest* is a reconcile that puts the same fields back again and again, because somebody else
//! keeps changing them. Both are found by what runs write, slowed more and more, and named: in
//! the controller's status, in an event on the object, in the log.

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::context::{Cause, Written};
use super::posts::StableHash;
use super::rare::Rare;
use crate::backoff::Backoff;
use crate::environment::Environment;
use crate::model::ObjectKey;
use crate::store::{Key, Revision};

/// Runs in a row that wrote and were woken by nothing but what the run before wrote.
const HOT: u32 = 10;
/// Times that the same fields were put back, within [`WINDOW`] of each other.
const CONTESTED: u32 = 5;
const WINDOW: Duration = Duration::from_secs(60);
/// How long unrest makes a key wait.
const SLOW: Backoff = Backoff {
    first: Duration::from_secs(1),
    most: Duration::from_secs(300),
};
/// Records whose last writer is remembered.
const REMEMBERED: usize = 8192;
/// Fields that are named.
const MAX_FIELDS: usize = 5;

/// A key that does not come to rest.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestlessKey {
    /// Which.
    pub key: ObjectKey,
    /// The record that is written again and again.
    pub record: Key,
    /// The fields that are different each time, as `status.checkedAt`.
    pub fields: Vec<String>,
    /// How often in a row.
    pub times: u32,
    /// Who else writes the record: a controller of this runtime, or `another program`. None for a
    /// reconcile that wakes itself.
    pub contender: Option<String>,
}

impl RestlessKey {
    /// One word for the kind of unrest.
    pub(crate) fn reason(&self) -> &'static str {
        match self.contender {
            Some(_) => "Contested",
            None => "HotLoop",
        }
    }

    /// What is wrong, in words.
    pub(crate) fn message(&self, controller: &str, slowed: Duration) -> String {
        let Self { record, times, .. } = self;
        let fields = if self.fields.is_empty() {
            "nothing that differs".to_owned()
        } else {
            self.fields.join(", ")
        };
        match &self.contender {
            None => format!(
                "`{controller}` wakes itself: each of its last {times} runs wrote {record} ({fields}) and was started by that alone; slowed to one run in {slowed:?}. Write only what is different"
            ),
            Some(contender) => format!(
                "`{controller}` and {contender} undo each other in {record} ({fields}): it was put back {times} times; slowed to one run in {slowed:?}. Let one of them own the field"
            ),
        }
    }
}

/// What one key's runs did, as far as they woke each other.
#[derive(Debug)]
struct Echo {
    /// The revisions that the last run wrote.
    wrote: Vec<Revision>,
    /// Runs in a row that wrote and were woken by that alone.
    streak: u32,
    /// What the last run wrote, once the loop is suspected.
    values: BTreeMap<Key, Value>,
    shown: Option<RestlessKey>,
}

/// A key whose runs are held off because of a contest.
#[derive(Debug)]
struct Held {
    until: Duration,
    shown: RestlessKey,
}

/// Finds unrest among the keys of one controller.
#[derive(Debug, Default)]
pub(crate) struct Unrest {
    echoes: Rare<HashMap<Arc<ObjectKey>, Echo>>,
    held: Rare<BTreeMap<Arc<ObjectKey>, Held>>,
}

/// What to do about unrest.
#[derive(Debug)]
pub(crate) struct Slowed {
    pub(crate) shown: RestlessKey,
    pub(crate) delay: Duration,
    /// Tell people: not each time.
    pub(crate) tell: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Unrest {
    /// The run's causes are nothing but what the run before it wrote.
    pub(crate) fn is_echo(&self, key: &Arc<ObjectKey>, causes: &[Cause]) -> bool {
        if self.echoes.is_empty() {
            return false;
        }
        let echoes = self.echoes.lock();
        let Some(echo) = echoes.get(key) else {
            return false;
        };
        causes.iter().all(|cause| match cause {
            Cause::Changed { revision } | Cause::Related { revision, .. } => {
                echo.wrote.contains(revision)
            }
            Cause::Slowed => true,
            _ => false,
        })
    }

    /// Takes note of a run that ended well, and says what to do if it does not come to rest.
    pub(crate) fn note(
        &self,
        key: &Arc<ObjectKey>,
        was_echo: bool,
        written: &[Written],
        environment: &Environment,
    ) -> Option<Slowed> {
        if written.is_empty() && self.echoes.is_empty() {
            return None;
        }
        let mut echoes = self.echoes.lock();
        if written.is_empty() {
            echoes.remove(key);
            return None;
        }
        let wrote = written.iter().map(|written| written.revision).collect();
        let echo = echoes.entry(key.clone()).or_insert_with(|| Echo {
            wrote: Vec::new(),
            streak: 0,
            values: BTreeMap::new(),
            shown: None,
        });
        echo.wrote = wrote;
        if !was_echo {
            echo.streak = 0;
            echo.values.clear();
            echo.shown = None;
            return None;
        }
        echo.streak = echo.streak.saturating_add(1);
        if echo.streak + 1 < HOT {
            return None;
        }
        // Only now it is worth reading what is written.
        let mut values = BTreeMap::new();
        let mut named: Option<(Key, Vec<String>)> = None;
        for (record, value) in written.iter().flat_map(|written| &written.puts) {
            let value: Value = serde_json::from_slice(value).unwrap_or_default();
            let fields = echo.values.get(record).map(|old| differences(old, &value));
            let fields = fields.unwrap_or_default();
            if named
                .as_ref()
                .is_none_or(|(_, known)| known.len() < fields.len())
            {
                named = Some((record.clone(), fields));
            }
            values.insert(record.clone(), value);
        }
        echo.values = values;
        if echo.streak < HOT {
            return None;
        }
        let (record, fields) = named?;
        let shown = RestlessKey {
            key: (**key).clone(),
            record,
            fields,
            times: echo.streak + 1,
            contender: None,
        };
        echo.shown = Some(shown.clone());
        Some(Slowed {
            delay: SLOW.delay(echo.streak + 1 - HOT, environment),
            tell: echo.streak == HOT || echo.streak.is_multiple_of(100),
            shown,
        })
    }

    /// Holds a key's runs off, whatever asks for them.
    pub(crate) fn hold(&self, key: &Arc<ObjectKey>, slowed: &Slowed, now: Duration) {
        let held = Held {
            until: now + slowed.delay,
            shown: slowed.shown.clone(),
        };
        self.held.lock().insert(key.clone(), held);
    }

    /// Until when the key's runs are held off.
    pub(crate) fn held_until(&self, key: &Arc<ObjectKey>, now: Duration) -> Option<Duration> {
        if self.held.is_empty() {
            return None;
        }
        let mut held = self.held.lock();
        // Shown for as long as it may go on.
        held.retain(|_, held| held.until + WINDOW > now);
        held.get(key)
            .map(|held| held.until)
            .filter(|until| *until > now)
    }

    /// The keys that do not come to rest.
    pub(crate) fn shown(&self, most: usize, now: Duration) -> Vec<RestlessKey> {
        let echoes = self.echoes.lock();
        let hot = echoes.values().filter_map(|echo| echo.shown.clone());
        let mut shown: Vec<_> = hot.collect();
        drop(echoes);
        let mut held = self.held.lock();
        held.retain(|_, held| held.until + WINDOW > now);
        shown.extend(held.values().map(|held| held.shown.clone()));
        drop(held);
        shown.sort_by(|a, b| a.key.cmp(&b.key));
        shown.truncate(most);
        shown
    }
}

/// A record that was put.
#[derive(Debug)]
pub(crate) struct Put<'p> {
    /// By whom, and for which object.
    pub(crate) controller: &'p Arc<str>,
    pub(crate) object: &'p ObjectKey,
    pub(crate) record: &'p Key,
    /// The revision of what was there before.
    pub(crate) replaced: Option<Revision>,
    pub(crate) value: &'p [u8],
    pub(crate) revision: Revision,
}

/// What a controller did to one record.
#[derive(Debug)]
struct Turn {
    controller: Arc<str>,
    revision: Revision,
    /// The fields that it put back last, and to what.
    correction: u64,
    times: u32,
    at: Duration,
}

/// Who wrote which record last, among the controllers of one runtime.
#[derive(Debug, Default)]
pub(crate) struct Writers {
    known: Mutex<Generations>,
}

/// The records written lately; the older half is forgotten as a whole.
#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Key, Vec<Turn>>,
    old: HashMap<Key, Vec<Turn>>,
}

impl Generations {
    fn has(&self, key: &Key) -> bool {
        self.young.contains_key(key) || self.old.contains_key(key)
    }

    fn turns(&mut self, key: &Key) -> &mut Vec<Turn> {
        if self.young.len() >= REMEMBERED && !self.young.contains_key(key) {
            self.old = std::mem::take(&mut self.young);
        }
        let old = self.old.remove(key).unwrap_or_default();
        let young = self.young.entry(key.clone()).or_default();
        young.extend(old);
        young
    }
}

impl Writers {
    /// Takes note of a put, and says so if its writer puts the same fields back again and again.
    /// `before` gives the value that was replaced, and is asked only when somebody else wrote it.
    pub(crate) fn note(
        &self,
        put: &Put<'_>,
        before: impl FnOnce() -> Option<Arc<[u8]>>,
        environment: &Environment,
    ) -> Option<Slowed> {
        let &Put {
            controller,
            object,
            record,
            replaced,
            value,
            revision,
        } = put;
        let now = environment.monotonic();
        let mut known = lock(&self.known);
        if replaced.is_none() && !known.has(record) {
            // It is new: there is nothing that could be put back.
            return None;
        }
        let turns = known.turns(record);
        let place = turns.iter().position(|turn| turn.controller == *controller);
        let Some(place) = place else {
            turns.push(Turn {
                controller: controller.clone(),
                revision,
                correction: 0,
                times: 0,
                at: now,
            });
            return None;
        };
        let others = turns.iter().filter(|turn| turn.controller != *controller);
        let contender = others
            .filter(|turn| Some(turn.revision) == replaced)
            .map(|turn| format!("`{}`", turn.controller))
            .next();
        let turn = &mut turns[place];
        let last = std::mem::replace(&mut turn.revision, revision);
        let recent = now.saturating_sub(std::mem::replace(&mut turn.at, now)) <= WINDOW;
        if replaced.is_none_or(|replaced| replaced <= last) {
            // Nobody came between.
            return None;
        }
        let before: Value = serde_json::from_slice(&before()?).ok()?;
        let value: Value = serde_json::from_slice(value).ok()?;
        let fields = differences(&before, &value);
        let correction = correction(&value, &fields);
        let again = recent && turn.correction == correction && !fields.is_empty();
        turn.correction = correction;
        turn.times = if again {
            turn.times.saturating_add(1)
        } else {
            1
        };
        if turn.times < CONTESTED {
            return None;
        }
        Some(Slowed {
            delay: SLOW
                .delay(turn.times + 1 - CONTESTED, environment)
                .min(WINDOW / 2),
            tell: turn.times == CONTESTED || turn.times.is_multiple_of(100),
            shown: RestlessKey {
                key: object.clone(),
                record: record.clone(),
                fields,
                times: turn.times,
                contender: Some(contender.unwrap_or_else(|| "another program".to_owned())),
            },
        })
    }
}

/// A number for some fields and what they are.
fn correction(value: &Value, fields: &[String]) -> u64 {
    let mut hash = StableHash::default();
    for field in fields {
        field.hash(&mut hash);
        let part = field.split('.').try_fold(value, |value, name| match value {
            Value::Array(items) => items.get(name.parse::<usize>().ok()?),
            value => value.get(name),
        });
        part.map(ToString::to_string).hash(&mut hash);
    }
    hash.finish()
}

/// The paths of fields that are different, without those that change with every write.
fn differences(before: &Value, after: &Value) -> Vec<String> {
    let mut fields = Vec::new();
    compare("", before, after, &mut fields);
    fields.retain(|field| field != "metadata.generation" && field != "metadata.resourceVersion");
    fields.truncate(MAX_FIELDS);
    fields
}

fn compare(path: &str, before: &Value, after: &Value, fields: &mut Vec<String>) {
    let below = |name: &str| match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    };
    match (before, after) {
        (a, b) if a == b => {}
        (Value::Object(a), Value::Object(b)) => {
            let names: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for name in names {
                let part = |object: &serde_json::Map<String, Value>| {
                    object.get(name).cloned().unwrap_or_default()
                };
                compare(&below(name), &part(a), &part(b), fields);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (place, (a, b)) in a.iter().zip(b).enumerate() {
                compare(&below(&place.to_string()), a, b, fields);
            }
        }
        _ => fields.push(path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_are_named_by_their_paths() {
        let before = json!({"spec": {"a": 1, "b": [1, 2]}, "metadata": {"generation": 1}});
        let after = json!({"spec": {"a": 1, "b": [1, 3], "c": 0}, "metadata": {"generation": 2}});
        assert_eq!(differences(&before, &after), ["spec.b.1", "spec.c"]);
        assert_eq!(differences(&after, &after), [""; 0]);
    }

    #[test]
    fn putting_back_the_same_is_a_contest_and_something_new_is_none() {
        let environment = Environment::system();
        let writers = Writers::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let object = ObjectKey::cluster("example.dev", "sites", "x").expect("valid");
        let record = Key::new("o/intent/example.dev/sites/x").expect("valid");
        let (five, three) = (r#"{"spec":{"n":5}}"#, r#"{"spec":{"n":3}}"#);
        let mut revision = 0;
        let mut write = |who: &Arc<str>, value: &str, before: &str| {
            let replaced = Revision::new(0, revision);
            revision += 1;
            let put = Put {
                controller: who,
                object: &object,
                record: &record,
                replaced: Some(replaced),
                value: value.as_bytes(),
                revision: Revision::new(0, revision),
            };
            writers.note(&put, || Some(before.as_bytes().into()), &environment)
        };
        let mut found = None;
        for _ in 0..7 {
            assert!(write(&a, five, three).is_none_or(|slowed| slowed.shown.times >= CONTESTED));
            found = write(&b, three, five);
        }
        let found = found.expect("a contest").shown;
        assert_eq!(found.contender.as_deref(), Some("`a`"));
        assert_eq!(found.fields, ["spec.n"]);
        for number in 0..20 {
            let value = format!(r#"{{"spec":{{"n":{number}}}}}"#);
            write(&b, three, five);
            assert!(
                write(&a, &value, three).is_none(),
                "each time something else"
            );
        }
    }
}
