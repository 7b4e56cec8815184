//! Looking into controllers at work, for metrics, explanations and the status tree.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::engine::Engine;
use super::running::Running;
use crate::cache::{Entry, EntryChange, Slot};
use crate::failsafe::{FailsafeView, Hold};
use crate::model::ObjectKey;
use crate::observe::{
    ControllerFacts, Explanation, KeyState, KeyStory, ObjectFacts, Run, RuntimeFacts, Seen,
    SourceFacts,
};
use crate::queue::Place;
use crate::store::{Prefix, Revision};

fn seen(entry: Option<&Arc<Entry>>) -> Seen<'_> {
    let record = |slot| {
        let stored = entry?.stored(&slot)?;
        Some((&*stored.value, stored.modified))
    };
    Seen {
        intent: record(Slot::Intent),
        reality: record(Slot::Reality),
        ending: entry.is_some_and(|entry| entry.deleted),
    }
}

/// What failsafes hold back of an object.
fn held(key: &ObjectKey, failsafe: &FailsafeView) -> Vec<String> {
    let mut held = Vec::new();
    if let Some(freeze) = &failsafe.frozen {
        let reason = freeze.reason.as_deref().unwrap_or("no reason given");
        held.push(format!("{} froze every change: {reason}", freeze.by));
    }
    let kind = format!("{}.{}", key.kind().plural, key.kind().group);
    let about = |hold: &&Hold| hold.kind.is_empty() || hold.kind == kind;
    for hold in failsafe.holds.iter().filter(about) {
        let (id, guard) = (&hold.id, hold.guard.as_str());
        held.push(format!("failsafe {guard} ({id}): {}", hold.message));
    }
    held
}

fn key_state(place: &Place, prefixes: &[Prefix]) -> KeyState {
    match *place {
        Place::Idle => KeyState::Idle,
        Place::Ready { since } => KeyState::Ready { since },
        Place::Waiting { left, backoff } => KeyState::Waiting {
            left,
            after_failure: backoff,
        },
        Place::Parked { since, behind } => {
            let (source, revision) = behind.unwrap_or((usize::MAX, Revision::ZERO));
            KeyState::Parked {
                source: prefixes
                    .get(source)
                    .map(ToString::to_string)
                    .unwrap_or_default(),
                revision,
                since,
            }
        }
        Place::Running { since } => KeyState::Running { since },
    }
}

impl Engine {
    /// Times how long it takes until changes of this controller's own kind are lived up to.
    pub(super) fn time_wishes(&self, changes: &[EntryChange]) {
        let kind = &self.controller.group_plural;
        let mut now = None;
        for change in changes {
            let Some(entry) = change.after.as_ref().or(change.before.as_ref()) else {
                continue;
            };
            if entry.key.kind() != kind {
                continue;
            }
            let now = *now.get_or_insert_with(|| self.setting.environment.monotonic());
            let (before, after) = (seen(change.before.as_ref()), seen(change.after.as_ref()));
            self.convergence.changed(&entry.key, before, after, now);
        }
    }

    fn facts(&self, prefixes: &[Prefix], held: bool) -> ControllerFacts {
        let now = self.setting.environment.monotonic();
        let sizes = self.queue.sizes();
        let tally = self.journal.tally();
        let last_success = tally.last_success.unwrap_or(self.begun);
        let parked = self.longest_parked(prefixes);
        ControllerFacts {
            name: self.name().to_owned(),
            convergence: self.convergence.timed(now),
            ready: sizes.ready,
            waiting: sizes.waiting,
            parked: sizes.parked,
            running: sizes.running,
            adds: sizes.adds,
            oldest_ready: sizes.oldest_ready,
            longest_parked: parked.map_or(Duration::ZERO, |(_, parked)| parked.waited),
            longest_running: sizes.longest_running,
            unfinished: sizes.unfinished,
            failing: self.failing().len(),
            concurrency: self.concurrency(),
            since_success: now.saturating_sub(last_success),
            idle: !held || !self.obstacles(prefixes).is_empty(),
            tally,
        }
    }

    /// Why nothing runs.
    pub(super) fn obstacles(&self, prefixes: &[Prefix]) -> Vec<String> {
        let known = self.reader.sources();
        let unread = self.needs.iter().filter(|&&source| known[source].is_none());
        let mut obstacles: Vec<_> = unread
            .map(|&source| format!("{} was not read yet", prefixes[source]))
            .collect();
        let unreadable = self.unreadable.lock();
        let unreadable = unreadable.unwrap_or_else(PoisonError::into_inner);
        obstacles.extend(unreadable.clone());
        obstacles
    }

    fn story(
        &self,
        key: &Arc<ObjectKey>,
        prefixes: &[Prefix],
        failsafe: &FailsafeView,
    ) -> KeyStory {
        let now = self.setting.environment.monotonic();
        let state = self.queue.look(key);
        let mut obstacles = self.obstacles(prefixes);
        if !self.holds(key) {
            obstacles.push("its claim or shard is not this process's".to_owned());
        }
        obstacles.extend(held(key, failsafe));
        let runs = self.journal.runs_of(key);
        KeyStory {
            controller: self.name().to_owned(),
            state: state
                .as_ref()
                .map_or(KeyState::Idle, |look| key_state(&look.place, prefixes)),
            obstacles,
            failures: state.map_or(0, |look| look.failures),
            runs: runs.iter().map(|run| Run::of(run, now)).collect(),
        }
    }
}

impl Running {
    pub(super) fn facts(&self) -> RuntimeFacts {
        let status = self.status();
        let sources = status.sources.iter().map(|source| SourceFacts {
            prefix: source.prefix.to_string(),
            revision: source.revision.unwrap_or(Revision::ZERO),
            heard: source.heard.unwrap_or_default(),
            lists: source.lists,
            watches: source.watches,
            failing: source.failing.is_some(),
        });
        let held = self.posts.held().iter().any(Option::is_some);
        let engines = self.engines();
        RuntimeFacts {
            name: self.name.clone(),
            leads: status.leads,
            sources: sources.collect(),
            controllers: engines
                .iter()
                .map(|engine| engine.facts(&self.prefixes, held))
                .collect(),
            objects: self.reader.view().len(),
            set_aside: status.set_aside,
            newest: self.metered.newest(),
            calls: self.metered.calls(),
            events_lost: self.recorder.lost(),
            failsafe: status.failsafe,
        }
    }

    pub(super) fn explain(&self, key: &ObjectKey) -> Explanation {
        let key = &Arc::new(key.clone());
        let view = self.reader.view();
        let object = match view.joined(key) {
            Ok(joined) => ObjectFacts::of(&joined, view.revision()),
            Err(error) => ObjectFacts::unreadable(&error, view.revision()),
        };
        let (engines, failsafe) = (self.engines(), self.guards.view());
        let stories = engines
            .iter()
            .filter(|engine| {
                engine.controller.group_plural == *key.kind()
                    || engine.queue.look(key).is_some()
                    || !engine.journal.runs_of(key).is_empty()
            })
            .map(|engine| engine.story(key, &self.prefixes, &failsafe));
        Explanation {
            key: key.to_string(),
            object,
            controllers: stories.collect(),
        }
    }
}
