//! What a reconcile has in hand: its view, its causes, and the only way to write.

mod abreast;
mod changes;
mod commit;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

pub use self::abreast::Abreast;
pub use self::changes::Changes;
use super::budget::Budget;
use super::claim::Fence;
use super::error::CommitError;
use super::event::EventRecorder;
use super::posts::Post;
use super::unrest::{Slowed, Writers};
use crate::cache::View;
use crate::client::{Batch, ClientError};
use crate::environment::Environment;
use crate::failsafe::{Held, Safeguard, Safeguards};
use crate::model::{
    EventType, Joined, Kinds, ObjectKey, ObjectReference, Reality, Tree, Uid, Versioned,
};
use crate::queue::Causes;
use crate::store::{Compare, Key, Prefix, Revision, Store};

/// Why a key runs. For logs and people: what to do follows from the view alone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// The object was there when the program began, or the claim was won.
    InitialSync,
    /// A record of the object was put or removed.
    Changed {
        /// The revision of the change.
        revision: Revision,
    },
    /// Something it owns or that the controller watches was put or removed.
    Related {
        /// What.
        key: Arc<ObjectKey>,
        /// The revision of the change.
        revision: Revision,
    },
    /// The last run asked for another.
    Requeued,
    /// The last run failed.
    Failed,
    /// The last run was decided on what was not so any more.
    Conflict,
    /// The last runs did not come to rest, so this one was put off.
    Slowed,
    /// Something outside of the store.
    Triggered(Arc<str>),
}

/// Proves that the store knows who begins to work on an object: see [`Context::claim`]. Functions
/// with effects outside of the store ask for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    uid: Uid,
    epoch: Option<Revision>,
}

impl Claimed {
    /// The object's uid, to mark what is made outside with.
    #[must_use]
    pub fn uid(&self) -> &Uid {
        &self.uid
    }

    /// Grows with each holder of the claim that the key is worked on under: pass it to who can
    /// refuse a lower one. None for a process alone.
    #[must_use]
    pub fn epoch(&self) -> Option<Revision> {
        self.epoch
    }
}

/// What is the same for all runs of a controller.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) controller: Arc<str>,
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) environment: Environment,
    pub(crate) recorder: EventRecorder,
    pub(crate) guards: Arc<Safeguards>,
    /// The kinds that the controller declared.
    pub(crate) kinds: Kinds,
    pub(crate) reports_while_frozen: bool,
    /// Its reports go into a part of this name.
    pub(crate) part: Option<Arc<str>>,
    pub(crate) budget: Option<Budget>,
    pub(crate) writers: Arc<Writers>,
}

/// What a run did to the store, for whoever decides when its key runs again.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// Commits that happened.
    pub(crate) wrote: Vec<Written>,
    /// What is to be read afresh, because it is not as the view says or not known.
    pub(crate) unsure: Vec<Compare>,
    /// Commits that are under way, by their numbers. If the run ends so, it is not known whether
    /// they happened.
    in_flight: BTreeMap<u64, Vec<Compare>>,
    /// The number of the last commit.
    last: u64,
    pub(crate) conflict: bool,
    /// Somebody else keeps changing what the run wrote.
    pub(crate) contested: Option<Slowed>,
}

/// A commit that happened.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) revision: Revision,
    pub(crate) keys: Vec<Key>,
    /// The values that were put.
    pub(crate) puts: Vec<(Key, Bytes)>,
}

#[derive(Debug)]
struct Run {
    setting: Arc<Setting>,
    key: Arc<ObjectKey>,
    view: View,
    causes: Causes<Cause>,
    attempt: u32,
    id: u64,
    post: Arc<Post>,
    /// The object's own records, once something asks for them.
    own: Mutex<Option<Box<Joined>>>,
    notes: Mutex<Notes>,
    undecided: AtomicBool,
    /// It began with commits that are under way together.
    abreast: AtomicBool,
    /// Microseconds that its commits waited for the write budget.
    waited: AtomicU64,
    commits: tokio::sync::Mutex<()>,
}

/// What a reconcile has in hand. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Context {
    run: Arc<Run>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) struct Begin {
    pub(crate) key: Arc<ObjectKey>,
    pub(crate) view: View,
    pub(crate) causes: Causes<Cause>,
    pub(crate) attempt: u32,
    pub(crate) id: u64,
    pub(crate) post: Arc<Post>,
}

impl Context {
    pub(crate) fn new(setting: Arc<Setting>, begin: Begin) -> Self {
        let Begin {
            key,
            view,
            causes,
            attempt,
            id,
            post,
        } = begin;
        Self {
            run: Arc::new(Run {
                setting,
                key,
                view,
                causes,
                attempt,
                id,
                post,
                own: Mutex::default(),
                notes: Mutex::default(),
                undecided: AtomicBool::new(false),
                abreast: AtomicBool::new(false),
                waited: AtomicU64::new(0),
                commits: tokio::sync::Mutex::default(),
            }),
        }
    }

    /// The object that is reconciled.
    #[must_use]
    pub fn key(&self) -> &ObjectKey {
        &self.run.key
    }

    /// Everything the runtime mirrors, at one moment. It never is older than what earlier runs
    /// of this key wrote.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.run.view
    }

    /// The object's own records, with what this run wrote already.
    #[must_use]
    pub fn joined(&self) -> Joined {
        self.with_own(|own| own.clone())
    }

    /// Decodes the own records when they are first asked for: most runs find that nothing is to
    /// be done, and write nothing.
    fn with_own<T>(&self, look: impl FnOnce(&mut Joined) -> T) -> T {
        let mut own = lock(&self.run.own);
        let own = own.get_or_insert_with(|| {
            let key = &self.run.key;
            let entry = self.run.view.entry(key).map(|entry| entry.joined());
            // An intent that cannot be read is seen by the run itself.
            let joined = entry.and_then(Result::ok);
            Box::new(joined.unwrap_or_else(|| Joined::empty((**key).clone())))
        });
        look(own)
    }

    pub(crate) fn all_causes(&self) -> &Causes<Cause> {
        &self.run.causes
    }

    /// Why the key runs.
    #[must_use]
    pub fn causes(&self) -> &[Cause] {
        self.run.causes.as_slice()
    }

    /// Failures in a row before this run.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.run.attempt
    }

    /// Names this run in logs.
    #[must_use]
    pub fn run_id(&self) -> u64 {
        self.run.id
    }

    /// Clock and randomness.
    #[must_use]
    pub fn environment(&self) -> &Environment {
        &self.run.setting.environment
    }

    /// What the store can do, and how much at once.
    #[must_use]
    pub fn capabilities(&self) -> crate::store::Capabilities {
        self.run.setting.store.capabilities()
    }

    /// The claim that the key is worked on under: of the leader, or of the key's shard. None for
    /// a process alone.
    #[must_use]
    pub fn fence(&self) -> Option<&Fence> {
        self.run.post.fence.as_ref()
    }

    /// Everything is frozen: nothing may be changed, neither in the store nor outside, and only
    /// reports are committed. True in the runs of a controller that
    /// [reports while frozen](super::Controller::reports_while_frozen) alone; others do not run.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.run.setting.guards.is_frozen()
    }

    /// All are, but in tests that prove what one is good for.
    pub(crate) fn is_on(&self, safeguard: Safeguard) -> bool {
        self.run.setting.guards.is_on(safeguard)
    }

    /// Begins a set of changes that happen together.
    pub fn changes(&self) -> Changes<'_> {
        Changes {
            context: self,
            batch: Batch::for_store(&self.capabilities()),
        }
    }

    /// Records something that happened to the object, for people. Never waits, never fails.
    pub fn event(&self, event_type: EventType, reason: &str, message: impl Into<String>) {
        let setting = &self.run.setting;
        let uid = self.with_own(|own| {
            let intent = own.intent.as_ref();
            intent.map(|intent| intent.value.metadata.uid.clone())
        });
        let object = ObjectReference {
            api_version: setting.api_version.clone(),
            kind: setting.kind.clone(),
            namespace: self.key().namespace().map(ToOwned::to_owned),
            name: self.key().name().to_owned(),
            uid: uid.unwrap_or_default(),
        };
        match &self.run.post.recorder {
            Some(recorder) => recorder
                .with_source(&setting.controller)
                .record(object, event_type, reason, message),
            None => setting.recorder.record(object, event_type, reason, message),
        }
    }

    /// Makes the store remember that this controller works on the object, before the first effect
    /// outside of the store. From then on the object's records stay until the controller says
    /// that everything is undone, so that nothing leaks when a crash and a delete meet. Costs a
    /// commit the first time and nothing afterwards.
    ///
    /// # Errors
    /// See [`Context::commit`].
    pub async fn claim(&self) -> Result<Claimed, CommitError> {
        let own = self.joined();
        let claimant = &self.run.setting.controller;
        let claim = |reality: &Versioned<Reality>| reality.value.metadata.claim.clone();
        let mine = self.own_report(&own).and_then(claim).as_deref() == Some(claimant);
        if !mine {
            let mut batch = Batch::new();
            match self.part() {
                Some(writer) => batch.claim_part(&own, writer, claimant)?,
                None => batch.claim(&own, claimant)?,
            };
            self.commit(batch).await?;
        } else if self.run.undecided.load(Ordering::Acquire) {
            return Err(CommitError::Undecided);
        }
        if let Some(fence) = self.fence().filter(|fence| !fence.is_held()) {
            return Err(fenced(fence));
        }
        let uid = own.intent.map(|intent| intent.value.metadata.uid);
        Ok(Claimed {
            uid: uid.ok_or_else(|| ClientError::not_found(self.key()))?,
            epoch: self.fence().map(Fence::epoch),
        })
    }

    /// The part that this controller reports in; None for the object's own worker.
    pub(crate) fn part(&self) -> Option<&str> {
        self.run.setting.part.as_deref()
    }

    /// What this controller has reported on the uid that is wanted now.
    pub(crate) fn own_report<'j>(&self, own: &'j Joined) -> Option<&'j Versioned<Reality>> {
        match self.part() {
            Some(writer) => own.own_part(writer),
            None => own.own_reality(),
        }
    }

    /// Where this controller reports.
    fn report_key(&self, own: &Joined) -> Result<Key, ClientError> {
        Ok(match self.part() {
            Some(writer) => own.key.part(writer)?,
            None => own.key.store_key(Tree::Reality),
        })
    }

    /// Whether what was made for an object that has a tombstone may be taken away now.
    pub(crate) fn admit_end(&self) -> Result<(), CommitError> {
        let guards = &self.run.setting.guards;
        guards.admit_end(&self.joined(), self.view()).map_err(held)
    }

    /// How long the run's commits have waited for the write budget.
    pub(crate) fn waited(&self) -> Duration {
        Duration::from_micros(self.run.waited.load(Ordering::Relaxed))
    }

    /// What the run did, once it has ended.
    pub(crate) fn take_notes(&self) -> Notes {
        let mut notes = std::mem::take(&mut *lock(&self.run.notes));
        let in_flight = std::mem::take(&mut notes.in_flight);
        notes.unsure.extend(in_flight.into_values().flatten());
        notes
    }
}

fn held(held: Held) -> CommitError {
    CommitError::Held {
        why: held.why,
        retry_after: held.retry_after,
    }
}

fn fenced(fence: &Fence) -> CommitError {
    CommitError::Fenced {
        claim: fence.name().to_owned(),
    }
}

/// The keys that a compare is about: one, or all under a prefix.
pub(crate) fn subject(compare: &Compare) -> Option<Result<&Key, &Prefix>> {
    match compare {
        Compare::Absent(key) | Compare::Revision(key, _) => Some(Ok(key)),
        Compare::RangeNotNewer(prefix, _) => Some(Err(prefix)),
        Compare::ClaimHeld { .. } => None,
    }
}
