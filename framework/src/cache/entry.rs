//! One object in the cache: its records as bytes, and the little that is read from them at once.

use std::any::Any;
use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::header::{self, Header, Text};
use super::labels::{LabelSet, LabelSets};
use super::options::{Keep, KindOptions};
use super::scan::Scan;
use super::sorted::Keyed;
use crate::model::{
    Conditions, Digest, Intent, Joined, Metadata, Object, ObjectKey, Phase, Reality,
    RealityMetadata, RecordError, Resource, Status, Tree, Uid, Versioned,
};
use crate::store::{Key, Record, Revision};

/// Which of an object's records.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Slot {
    Intent,
    Reality,
    Grant,
    Ledger,
    /// A further writer's share.
    Part(Box<str>),
}

impl Slot {
    pub(crate) fn of(tree: Tree, writer: Option<&str>) -> Self {
        match tree {
            Tree::Intent => Self::Intent,
            Tree::Reality => Self::Reality,
            Tree::Grant => Self::Grant,
            Tree::Ledger => Self::Ledger,
            Tree::Part => Self::Part(writer.unwrap_or_default().into()),
        }
    }

    pub(crate) fn tree(&self) -> Tree {
        match self {
            Self::Intent => Tree::Intent,
            Self::Reality => Tree::Reality,
            Self::Grant => Tree::Grant,
            Self::Ledger => Tree::Ledger,
            Self::Part(_) => Tree::Part,
        }
    }
}

/// A record without its key, which follows from the entry.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) slot: Slot,
    /// A copy of its own length: the bytes that a store hands out may be a slice of a whole
    /// answer, which one record would keep in memory.
    pub(crate) value: Arc<[u8]>,
    pub(crate) created: Revision,
    pub(crate) modified: Revision,
    /// The value is less than what is stored: this is the digest of the whole spec.
    whole: Option<Box<Digest>>,
}

impl Stored {
    pub(crate) fn new(slot: Slot, record: &Record, options: Option<&KindOptions>) -> Self {
        let project = options.and_then(|options| options.project);
        let project = project.filter(|_| slot == Slot::Intent);
        // What cannot be read stays whole, to be set aside.
        let (value, whole) = match project.and_then(|project| project(&record.value)) {
            Some((value, whole)) => (value.into(), Some(Box::new(whole))),
            None => ((*record.value).into(), None),
        };
        Self {
            slot,
            value,
            created: record.created,
            modified: record.modified,
            whole,
        }
    }
}

/// The records of an object, sorted by slot. Most objects of most kinds have one.
#[derive(Clone, Debug)]
pub(crate) enum Records {
    One([Stored; 1]),
    More(Box<[Stored]>),
}

impl Records {
    pub(crate) fn new(mut records: Vec<Stored>) -> Self {
        records.sort_by(|a, b| a.slot.cmp(&b.slot));
        match <[Stored; 1]>::try_from(records) {
            Ok(one) => Self::One(one),
            Err(more) => Self::More(more.into()),
        }
    }
}

impl std::ops::Deref for Records {
    type Target = [Stored];

    fn deref(&self) -> &[Stored] {
        match self {
            Self::One(one) => one,
            Self::More(more) => more,
        }
    }
}

/// An owner as far as it takes to find it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) group: Box<str>,
    pub(crate) kind: Box<str>,
    pub(crate) name: Box<str>,
    pub(crate) uid: Uid,
}

type Decoded = Result<Arc<dyn Any + Send + Sync>, Arc<RecordError>>;

/// What few objects have.
#[derive(Debug, Default)]
struct Extra {
    owners: Box<[Owner]>,
    /// The records that cannot be read, at most one for each.
    unreadable: Box<[Arc<RecordError>]>,
    /// The uid before the intent became unreadable.
    uid: Uid,
}

/// All records of one object. Immutable: a change makes another entry.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: Arc<ObjectKey>,
    pub(crate) records: Records,
    pub(super) labels: Option<LabelSet>,
    extra: Option<Box<Extra>>,
    /// The intent has a tombstone.
    pub(crate) deleted: bool,
    keep: Keep,
    /// It was decoded once, so that it can be again.
    readable: AtomicBool,
    typed: OnceLock<Decoded>,
}

impl Keyed for Arc<Entry> {
    fn key(&self) -> &Arc<str> {
        self.key.shared_path()
    }
}

#[derive(Deserialize)]
#[serde(bound = "S: DeserializeOwned", rename_all = "camelCase")]
struct TypedIntent<'r, S> {
    #[serde(borrow)]
    api_version: Text<'r>,
    metadata: Metadata,
    spec: S,
}

impl<'r, S: DeserializeOwned> TypedIntent<'r, S> {
    /// As most are written.
    fn scan(record: &'r [u8]) -> Option<Self> {
        let (mut api_version, mut metadata, mut spec) = (None, None, None);
        let mut scan = Scan::new(record)?;
        scan.open()?;
        while let Some(name) = scan.field()? {
            let is_new = match name {
                "apiVersion" => api_version.replace(scan.string()?).is_none(),
                "metadata" => metadata.replace(scan.metadata()?).is_none(),
                "spec" => spec.replace(scan.value::<S>()?).is_none(),
                _ => scan.skip().is_some(),
            };
            if !is_new {
                return None;
            }
        }
        scan.end()?;
        Some(Self {
            api_version: Text(Cow::Borrowed(api_version?)),
            metadata: metadata?.into_metadata()?,
            spec: spec?,
        })
    }
}

#[derive(Deserialize)]
struct UntypedSpec {
    #[serde(default)]
    spec: serde_json::Value,
}

#[derive(Deserialize)]
#[serde(bound = "S: DeserializeOwned + Default")]
struct TypedReality<S> {
    metadata: RealityMetadata,
    #[serde(default)]
    status: Status<S>,
}

impl Entry {
    /// The entry of these records. `before` is the object's entry until now: what an unreadable
    /// intent hides is taken from it.
    pub(super) fn new(
        key: Arc<ObjectKey>,
        records: Records,
        before: Option<&Self>,
        labels: &mut LabelSets,
        options: Option<&KindOptions>,
    ) -> Self {
        let mut entry = Self {
            key,
            records,
            labels: None,
            extra: None,
            deleted: false,
            keep: options.map_or(Keep::default(), |options| options.keep),
            readable: AtomicBool::new(false),
            typed: OnceLock::new(),
        };
        let (mut unreadable, mut extra) = (Vec::new(), Extra::default());
        for stored in &*entry.records {
            let intent = stored.slot == Slot::Intent;
            let header = match stored.slot {
                Slot::Intent | Slot::Reality | Slot::Part(_) => entry.header(stored),
                // Read by those who know their form.
                Slot::Grant | Slot::Ledger => continue,
            };
            match header {
                Ok(mut header) if intent => {
                    entry.deleted = header.is_deleted();
                    let before = before.and_then(|before| before.labels.as_ref());
                    entry.labels = labels.get(&header.labels, before);
                    extra.owners = header.take_owners().collect();
                }
                Ok(_) => {}
                Err(error) => {
                    if intent && let Some(before) = before {
                        entry.deleted = before.deleted;
                        entry.labels = before.labels.clone();
                        extra.owners = before.owners().into();
                        extra.uid = before.uid();
                    }
                    unreadable.push(Arc::new(error));
                }
            }
        }
        if !unreadable.is_empty() || !extra.owners.is_empty() {
            extra.unreadable = unreadable.into();
            entry.extra = Some(Box::new(extra));
        }
        entry
    }

    /// The objects it was made for.
    pub(crate) fn owners(&self) -> &[Owner] {
        self.extra.as_ref().map_or(&[], |extra| &extra.owners)
    }

    /// The records that cannot be read, as far as their headers tell.
    pub(crate) fn unreadable(&self) -> &[Arc<RecordError>] {
        self.extra.as_ref().map_or(&[], |extra| &extra.unreadable)
    }

    /// Which incarnation of its name the object is: that of the intent, or of the one that the
    /// reality reports on. Empty when no record says.
    pub(crate) fn uid(&self) -> Uid {
        let known = self.extra.as_ref().map(|extra| &extra.uid);
        if let Some(uid) = known.filter(|uid| !uid.is_empty()) {
            return uid.clone();
        }
        let records = [Slot::Intent, Slot::Reality];
        let records = records.iter().filter_map(|slot| self.stored(slot));
        let uids = records.filter_map(|stored| Some(self.header(stored).ok()?.uid.0.into_owned()));
        uids.map(Uid::from)
            .find(|uid| !uid.is_empty())
            .unwrap_or_default()
    }

    fn header<'s>(&self, stored: &'s Stored) -> Result<Header<'s>, RecordError> {
        let fail = |reason: String| RecordError {
            key: self.store_key(&stored.slot).to_string(),
            revision: stored.modified,
            reason,
        };
        let header = header::read(&stored.value).map_err(|error| fail(error.to_string()))?;
        let namespace = header.namespace.as_ref().map(|namespace| &*namespace.0);
        if header.name.0 != self.key.name() || namespace != self.key.namespace() {
            let says = namespace.unwrap_or("-");
            let reason = format!(
                "it says it is {says}/{}, which is not its key",
                header.name.0
            );
            return Err(fail(reason.chars().take(200).collect()));
        }
        if stored.slot == Slot::Intent && header.uid.0.is_empty() {
            return Err(fail("its metadata has no uid".to_owned()));
        }
        Ok(header)
    }

    fn store_key(&self, slot: &Slot) -> Key {
        match slot {
            Slot::Part(writer) => self
                .key
                .part(writer)
                .expect("a part's writer was parsed from a key"),
            other => self.key.store_key(other.tree()),
        }
    }

    pub(crate) fn stored(&self, slot: &Slot) -> Option<&Stored> {
        self.records.iter().find(|stored| stored.slot == *slot)
    }

    /// The intent's record is there, readable or not.
    pub(crate) fn has_intent(&self) -> bool {
        self.stored(&Slot::Intent).is_some()
    }

    /// The revision of the intent, if there is no other record, and it is no worse than its
    /// metadata tells.
    pub(super) fn only_intent(&self) -> Option<Revision> {
        match &*self.records {
            [stored] if stored.slot == Slot::Intent && self.unreadable().is_empty() => {
                Some(stored.modified)
            }
            _ => None,
        }
    }

    /// The records, decoded. Those that cannot be read are left out, except an intent, which
    /// makes the whole unreadable: without it nothing can be said about the object.
    pub(crate) fn joined(&self) -> Result<Joined, RecordError> {
        let mut joined = Joined::empty((*self.key).clone());
        for stored in &*self.records {
            if stored.whole.is_some() {
                // Whoever has all records may write them.
                return Err(RecordError {
                    key: self.store_key(&stored.slot).to_string(),
                    revision: stored.modified,
                    reason: "only some of its fields are kept here: read it from the store"
                        .to_owned(),
                });
            }
            let record = || Record {
                key: self.store_key(&stored.slot),
                value: Bytes::from_owner(stored.value.clone()),
                created: stored.created,
                modified: stored.modified,
                lease: None,
            };
            match &stored.slot {
                Slot::Intent => {
                    let intent = Versioned::<Intent>::from_record(&self.key, &record())?;
                    joined.intent = Some(intent);
                }
                Slot::Reality => {
                    let reality = Versioned::<Reality>::from_record(&self.key, &record());
                    joined.reality = Some(reality.unwrap_or_else(|_| self.blank(stored)));
                }
                Slot::Part(writer) => {
                    let part = Versioned::<Reality>::from_record(&self.key, &record());
                    let part = part.unwrap_or_else(|_| self.blank(stored));
                    joined.parts.insert(writer.to_string(), part);
                }
                Slot::Grant | Slot::Ledger => {}
            }
        }
        Ok(joined)
    }

    /// Stands for a report that cannot be read: it is about no uid, and keeps its revision so
    /// that its writer can replace it.
    fn blank(&self, stored: &Stored) -> Versioned<Reality> {
        let value = Reality {
            api_version: String::new(),
            kind: String::new(),
            metadata: RealityMetadata {
                name: self.key.name().to_owned(),
                namespace: self.key.namespace().map(ToOwned::to_owned),
                ..Default::default()
            },
            status: Status::default(),
            other: serde_json::Map::new(),
        };
        Versioned {
            value,
            created: stored.created,
            modified: stored.modified,
        }
    }

    fn decode<K: Resource>(&self) -> Result<Arc<Object<K>>, Arc<RecordError>> {
        if let Some(object) = self.decode_directly::<K>() {
            return Ok(Arc::new(object));
        }
        self.decode_joined::<K>().map(Arc::new)
    }

    /// From bytes to types without untyped values between, for the common case: everything is
    /// readable, and the one report, if any, is about the spec as it is. Elsewhere None.
    fn decode_directly<K: Resource>(&self) -> Option<Object<K>> {
        let simple = |stored: &Stored| matches!(stored.slot, Slot::Intent | Slot::Reality);
        if !self.unreadable().is_empty() || !self.records.iter().all(simple) {
            return None;
        }
        let intent = self.stored(&Slot::Intent)?;
        let TypedIntent {
            api_version,
            mut metadata,
            spec,
        } = match TypedIntent::<K::Spec>::scan(&intent.value) {
            Some(read) => read,
            None => serde_json::from_slice(&intent.value).ok()?,
        };
        // One that is written in another version has to be converted.
        let (group, version) = api_version.0.split_once('/')?;
        if group != K::GROUP || version != K::VERSION {
            return None;
        }
        metadata.resource_version = Some(self.revision());
        let mut status = Status::default();
        if let Some(reality) = self.stored(&Slot::Reality) {
            let reality: TypedReality<K::Status> = serde_json::from_slice(&reality.value).ok()?;
            if reality.metadata.uid == metadata.uid {
                status = reality.status;
            }
        }
        if status.conditions.get("Ready").is_some() {
            let digest = match &intent.whole {
                Some(whole) => **whole,
                None => {
                    let spec: UntypedSpec = serde_json::from_slice(&intent.value).ok()?;
                    Digest::of_json(&spec.spec)
                }
            };
            if status.observed_spec != Some(digest) {
                return None;
            }
        }
        Some(Object {
            metadata,
            spec,
            status,
        })
    }

    fn decode_joined<K: Resource>(&self) -> Result<Object<K>, Arc<RecordError>> {
        let joined = self.joined().map_err(Arc::new)?;
        let fail = |reason: String| {
            Arc::new(RecordError {
                key: self.key.store_key(Tree::Intent).to_string(),
                revision: joined.resource_version(),
                reason,
            })
        };
        let Some(mut raw) = joined.object() else {
            return Err(fail("there is no intent".to_owned()));
        };
        match raw.typed::<K>() {
            Ok(object) => Ok(object),
            Err(error) => {
                // A status that these types cannot read says nothing; the spec still counts.
                raw.status.detail.clear();
                raw.status.phase = Phase::default();
                raw.status.conditions = Conditions::default();
                raw.status.observed_spec = None;
                raw.typed::<K>().map_err(|_| fail(error.to_string()))
            }
        }
    }

    /// The object with its types. None without an intent. It is kept decoded if it is so already,
    /// or if this is a read that its kind keeps.
    pub(crate) fn object<K: Resource>(
        &self,
        read: bool,
    ) -> Option<Result<Arc<Object<K>>, Arc<RecordError>>> {
        if !self.has_intent() {
            return None;
        }
        let keep = match self.keep {
            Keep::Bytes => false,
            Keep::Read => read,
            Keep::Decoded => true,
        };
        let decode = || {
            let object = self.decode::<K>()?;
            self.readable.store(true, Ordering::Relaxed);
            Ok(object)
        };
        let decoded = if keep {
            self.typed
                .get_or_init(|| decode().map(|object: Arc<Object<K>>| object as _))
        } else {
            match self.typed.get() {
                Some(decoded) => decoded,
                None => return Some(decode()),
            }
        };
        Some(match decoded {
            Err(error) => Err(error.clone()),
            Ok(object) => match object.clone().downcast::<Object<K>>() {
                Ok(object) => Ok(object),
                // Two types for one kind in one program: the second decodes each time.
                Err(_) => decode(),
            },
        })
    }

    /// It was decoded before.
    pub(crate) fn is_readable(&self) -> bool {
        self.readable.load(Ordering::Relaxed)
    }

    /// The highest revision of its records.
    pub(crate) fn revision(&self) -> Revision {
        let revisions = self.records.iter().map(|stored| stored.modified);
        revisions.max().unwrap_or(Revision::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::Scope;

    struct Site;

    #[derive(
        Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
    )]
    struct SiteSpec {
        pages: u32,
    }

    #[derive(
        Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
    )]
    struct SiteStatus {
        #[serde(default)]
        seen: u32,
    }

    impl Resource for Site {
        type Spec = SiteSpec;
        type Status = SiteStatus;
        const GROUP: &'static str = "example.dev";
        const VERSION: &'static str = "v1";
        const KIND: &'static str = "Site";
        const PLURAL: &'static str = "sites";
        const SINGULAR: &'static str = "site";
        const SHORT_NAMES: &'static [&'static str] = &[];
        const SCOPE: Scope = Scope::Namespaced;
        const COLUMNS: &'static [crate::model::Column] = &[];
    }

    fn entry(records: &[(Slot, Value, u64)]) -> Entry {
        let key = ObjectKey::namespaced("example.dev", "sites", "default", "a").unwrap();
        let stored = records.iter().map(|(slot, value, revision)| {
            let record = Record {
                key: key.store_key(Tree::Intent),
                value: serde_json::to_vec(value).unwrap().into(),
                created: Revision::new(0, 1),
                modified: Revision::new(0, *revision),
                lease: None,
            };
            Stored::new(slot.clone(), &record, None)
        });
        let records = Records::new(stored.collect());
        Entry::new(
            Arc::new(key),
            records,
            None,
            &mut LabelSets::default(),
            None,
        )
    }

    fn intent(spec: &Value) -> Value {
        json!({"apiVersion": "example.dev/v1", "kind": "Site", "spec": spec,
               "metadata": {"name": "a", "namespace": "default", "uid": "u", "generation": 2, "labels": {"x": "y"}, "future": 1}})
    }

    fn reality(uid: &str, status: &Value) -> Value {
        json!({"apiVersion": "example.dev/v1", "kind": "Site", "status": status,
               "metadata": {"name": "a", "namespace": "default", "uid": uid}})
    }

    #[test]
    fn both_ways_of_decoding_show_the_same() {
        let spec = json!({"pages": 3, "unknown": true});
        let ready = |digest: Digest| json!({"seen": 2, "observedSpec": digest, "conditions": [{"type": "Ready", "status": "True", "reason": "", "message": "", "observedGeneration": 2}]});
        let current = ready(Digest::of_json(&spec));
        let outdated = ready(Digest::of_json(&json!({"pages": 2})));
        let cases = [
            (true, vec![(Slot::Intent, intent(&spec), 5)]),
            (
                true,
                vec![
                    (Slot::Intent, intent(&spec), 5),
                    (Slot::Reality, reality("u", &json!({"seen": 1})), 7),
                ],
            ),
            (
                true,
                vec![
                    (Slot::Intent, intent(&spec), 9),
                    (Slot::Reality, reality("u", &current), 7),
                ],
            ),
            (
                true,
                vec![
                    (Slot::Intent, intent(&spec), 9),
                    (Slot::Reality, reality("other", &current), 7),
                ],
            ),
            (
                false,
                vec![
                    (Slot::Intent, intent(&spec), 9),
                    (Slot::Reality, reality("u", &outdated), 7),
                ],
            ),
            (
                false,
                vec![
                    (Slot::Intent, intent(&spec), 9),
                    (Slot::Reality, reality("u", &json!({"seen": "x"})), 7),
                ],
            ),
        ];
        for (direct, records) in cases {
            let entry = entry(&records);
            let slow = entry.decode_joined::<Site>().unwrap();
            let fast = entry.decode_directly::<Site>();
            assert_eq!(fast.is_some(), direct, "{records:?}");
            if let Some(fast) = fast {
                assert_eq!(fast.to_raw().unwrap(), slow.to_raw().unwrap());
            }
        }
    }
}
