//! What a reconcile has in hand: its view, its causes, and the only way to write.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::budget::Budget;
use super::claim::Fence;
use super::error::CommitError;
use super::event::EventRecorder;
use super::posts::Post;
use super::unrest::{Put, Slowed, Writers};
use crate::cache::{InVain, View};
use crate::client::{Batch, ClientError, DeleteOptions, Outcome};
use crate::environment::Environment;
use crate::failsafe::{Ask, Held, Safeguard, Safeguards};
use crate::model::{
    Declared, EventType, FieldError, Intent, Joined, Kinds, Object, ObjectKey, ObjectReference,
    Reality, Resource, Status, Tree, Uid, Versioned,
};
use crate::queue::Causes;
use crate::store::{Compare, Key, Prefix, Record, Revision, Store, StoreError, Transaction, Write};

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
    /// A commit is under way. If the run ends so, it is not known whether it happened.
    in_flight: Vec<Compare>,
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

    /// Commits a batch, all or nothing. Whatever is in it, the object's own reality (or the
    /// controller's part) is compared and rewritten with it, so that of two attempts at one decision only one happens, however
    /// late the other lands; and the claim is compared if there is one. An empty batch writes
    /// nothing and returns the view's revision.
    ///
    /// # Errors
    /// `Conflict` when something is not as the run saw it; `Fenced` when the claim is lost;
    /// `Undecided` after a commit of this run that was not confirmed; the store's.
    pub async fn commit(&self, mut batch: Batch) -> Result<Revision, CommitError> {
        if batch.is_empty() {
            return Ok(self.run.view.revision());
        }
        let _one_at_a_time = self.run.commits.lock().await;
        let own = self.joined();
        let report = match self.part() {
            Some(writer) => own.parts.get(writer),
            None => own.reality.as_ref(),
        };
        if own.intent.is_none() && report.is_none() {
            batch.require(Compare::Absent(self.report_key(&own)?));
        } else if let Some(writer) = self.part() {
            batch.bump_part(&own, writer)?;
        } else {
            batch.bump(&own)?;
        }
        let mut transaction = batch.into_transaction();
        self.sign(&own, &mut transaction)?;
        self.send(transaction).await
    }

    /// Commits a transaction without touching the object's own reality, under the claim.
    pub(crate) async fn commit_bare(
        &self,
        transaction: Transaction,
    ) -> Result<Revision, CommitError> {
        let _one_at_a_time = self.run.commits.lock().await;
        self.run.setting.guards.admit_bare().map_err(held)?;
        self.submit(transaction).await
    }

    /// Writes this controller's name into the own reality, where it is not yet.
    fn sign(&self, own: &Joined, transaction: &mut Transaction) -> Result<(), CommitError> {
        let controller = &self.run.setting.controller;
        let claim = |reality: &Versioned<Reality>| reality.value.metadata.claim.clone();
        if self.own_report(own).and_then(claim).as_deref() == Some(controller) {
            return Ok(());
        }
        let key = self.report_key(own)?;
        for write in &mut transaction.writes {
            if let Write::Put {
                key: put, value, ..
            } = write
                && *put == key
            {
                let mut reality: Reality =
                    serde_json::from_slice(value).map_err(ClientError::from)?;
                // A report about an object whose intent is missing is not begun here.
                if own.intent.is_some() {
                    reality.metadata.claim = Some(controller.to_string());
                    *value = serde_json::to_vec(&reality)
                        .map_err(ClientError::from)?
                        .into();
                }
            }
        }
        Ok(())
    }

    /// Whether what was made for an object that has a tombstone may be taken away now.
    pub(crate) fn admit_end(&self) -> Result<(), CommitError> {
        let guards = &self.run.setting.guards;
        guards.admit_end(&self.joined(), self.view()).map_err(held)
    }

    /// Writes into the own report that a generation of the object orders what is taken away with
    /// it, so that whoever takes over knows it.
    fn stamp(
        &self,
        own: &Joined,
        transaction: &mut Transaction,
        generation: u64,
    ) -> Result<(), CommitError> {
        let key = own.key.store_key(Tree::Reality);
        let at = self.environment().now();
        for write in &mut transaction.writes {
            if let Write::Put {
                key: put, value, ..
            } = write
                && *put == key
            {
                let mut reality: Reality =
                    serde_json::from_slice(value).map_err(ClientError::from)?;
                reality.metadata.declared = Some(Declared { generation, at });
                *value = serde_json::to_vec(&reality)
                    .map_err(ClientError::from)?
                    .into();
            }
        }
        Ok(())
    }

    async fn send(&self, mut transaction: Transaction) -> Result<Revision, CommitError> {
        let setting = &self.run.setting;
        let own = self.joined();
        let ask = Ask {
            declared_kinds: &setting.kinds,
            view: self.view(),
            own: &own,
            transaction: &transaction,
            reports_while_frozen: setting.reports_while_frozen,
        };
        let ticket = setting.guards.admit(&ask).map_err(held)?;
        if let Some(generation) = ticket.declared {
            self.stamp(&own, &mut transaction, generation)?;
        }
        let outcome = self.submit(transaction).await;
        let unsure =
            |error: &CommitError| matches!(error, CommitError::Store(StoreError::Unknown { .. }));
        if outcome.as_ref().is_err_and(|error| !unsure(error)) {
            setting.guards.give_back(ticket);
        }
        outcome
    }

    async fn submit(&self, mut transaction: Transaction) -> Result<Revision, CommitError> {
        if self.run.undecided.load(Ordering::Acquire) {
            return Err(CommitError::Undecided);
        }
        let compares = transaction.compares.clone();
        match self.run.view.asked_in_vain() {
            None => {}
            Some(InVain::NotRead(kind)) => return Err(CommitError::NotRead { kind }),
            Some(InVain::Unreadable(error)) => {
                let key = self.key().clone();
                return Err(CommitError::Unreadable { key, error });
            }
        }
        if let Some(fence) = self.fence() {
            if !fence.is_held() {
                return Err(fenced(fence));
            }
            transaction = transaction.require(fence.compare());
        }
        let writes = transaction.writes.clone();
        let touched: Vec<Compare> = writes
            .iter()
            .map(|write| Compare::Absent(write.key().clone()))
            .chain(compares.iter().cloned())
            .collect();
        lock(&self.run.notes).in_flight.clone_from(&touched);
        self.within_budget(writes.len()).await;
        let outcome = self.run.setting.store.commit(transaction).await;
        let outcome = self.note(outcome, &compares, touched, writes);
        if let (Err(StoreError::Conflict { failed }), Some(fence)) = (&outcome, self.fence()) {
            // The fence is the last compare.
            if failed.contains(&compares.len()) && !self.still_held(fence).await {
                fence.lose();
                return Err(fenced(fence));
            }
        }
        match outcome {
            Err(StoreError::Conflict { failed }) => Err(CommitError::Conflict {
                key: self.key().clone(),
                failed: failed
                    .iter()
                    .filter_map(|&position| compares.get(position).cloned())
                    .collect(),
            }),
            outcome => Ok(outcome?),
        }
    }

    /// Keeps what a commit came to, for the rest of the run and for after it.
    fn note(
        &self,
        outcome: Result<Revision, StoreError>,
        compares: &[Compare],
        touched: Vec<Compare>,
        writes: Vec<Write>,
    ) -> Result<Revision, StoreError> {
        let mut notes = lock(&self.run.notes);
        notes.in_flight.clear();
        match &outcome {
            Ok(revision) => {
                let puts = writes.iter().filter_map(|write| match write {
                    Write::Put { key, value, .. } => Some((key.clone(), value.clone())),
                    Write::Delete { .. } => None,
                });
                let written = Written {
                    revision: *revision,
                    keys: writes.iter().map(|write| write.key().clone()).collect(),
                    puts: puts.collect(),
                };
                if let Some(contested) = self.contested(&written, compares) {
                    notes.contested = Some(contested);
                }
                notes.wrote.push(written);
                drop(notes);
                self.remember(writes, *revision);
            }
            Err(StoreError::Conflict { .. }) => {
                notes.unsure.extend(compares.iter().cloned());
                notes.conflict = true;
            }
            Err(StoreError::Unknown { .. }) => {
                notes.unsure.extend(touched);
                self.run.undecided.store(true, Ordering::Release);
            }
            Err(_) => {}
        }
        outcome
    }

    /// Pays for a commit. A run that has committed before waits until there is something to pay
    /// with; the first commit was provided for when the run began.
    async fn within_budget(&self, writes: usize) {
        let setting = &self.run.setting;
        let Some(budget) = &setting.budget else {
            return;
        };
        let environment = &setting.environment;
        if lock(&self.run.notes).wrote.is_empty() {
            budget.spend(writes.saturating_sub(1), environment.monotonic());
            return;
        }
        while let Some(wait) = budget.wait(environment.monotonic()) {
            environment.sleep(wait).await;
            let wait = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
            self.run.waited.fetch_add(wait, Ordering::Relaxed);
        }
        budget.spend(writes, environment.monotonic());
    }

    /// How long the run's commits have waited for the write budget.
    pub(crate) fn waited(&self) -> Duration {
        Duration::from_micros(self.run.waited.load(Ordering::Relaxed))
    }

    /// Whether somebody else keeps changing what was just written.
    fn contested(&self, written: &Written, compares: &[Compare]) -> Option<Slowed> {
        let setting = &self.run.setting;
        let mut found = None;
        for (record, value) in &written.puts {
            let replaced = compares.iter().find_map(|compare| match compare {
                Compare::Revision(key, revision) if key == record => Some(*revision),
                _ => None,
            });
            let put = Put {
                controller: &setting.controller,
                object: &self.run.key,
                record,
                replaced,
                value,
                revision: written.revision,
            };
            let before = || self.run.view.value(record);
            let slowed = setting.writers.note(&put, before, &setting.environment);
            found = found.or(slowed);
        }
        found
    }

    /// A backend may name compares that did hold: looks whether the claim is really lost.
    async fn still_held(&self, fence: &Fence) -> bool {
        let Compare::ClaimHeld { epoch, lease, .. } = fence.compare() else {
            return false;
        };
        let keys = [fence.key().clone()];
        match self.run.setting.store.get(&keys).await {
            Ok(snapshot) => {
                snapshot
                    .records
                    .into_iter()
                    .flatten()
                    .next()
                    .is_some_and(|record: Record| {
                        record.created == epoch && record.lease == Some(lease)
                    })
            }
            // Not known: the keeper finds out.
            Err(_) => fence.is_held(),
        }
    }

    /// Takes what was written into the own records, so that the run's next commit compares it.
    fn remember(&self, writes: Vec<Write>, revision: Revision) {
        self.with_own(|own| remember(own, self.part(), writes, revision));
    }

    /// What the run did, once it has ended.
    pub(crate) fn take_notes(&self) -> Notes {
        let mut notes = std::mem::take(&mut *lock(&self.run.notes));
        let in_flight = std::mem::take(&mut notes.in_flight);
        notes.unsure.extend(in_flight);
        notes
    }
}

fn held(held: Held) -> CommitError {
    CommitError::Held {
        why: held.why,
        retry_after: held.retry_after,
    }
}

/// Takes what was written into the own records.
fn remember(own: &mut Joined, writer: Option<&str>, writes: Vec<Write>, revision: Revision) {
    let intent_key = own.key.store_key(Tree::Intent);
    let reality_key = own.key.store_key(Tree::Reality);
    let part = writer.and_then(|writer| Some((writer, own.key.part(writer).ok()?)));
    let record = |key: &Key, value: Bytes, created: Option<Revision>| Record {
        key: key.clone(),
        value,
        created: created.unwrap_or(revision),
        modified: revision,
        lease: None,
    };
    for write in writes {
        match write {
            Write::Put { key, value, .. } if key == intent_key => {
                let created = own.intent.as_ref().map(|old| old.created);
                let record = record(&key, value, created);
                own.intent = Versioned::<Intent>::from_record(&own.key, &record).ok();
            }
            Write::Put { key, value, .. } if key == reality_key => {
                let created = own.reality.as_ref().map(|old| old.created);
                let record = record(&key, value, created);
                own.reality = Versioned::<Reality>::from_record(&own.key, &record).ok();
            }
            Write::Delete { key } if key == intent_key => own.intent = None,
            Write::Delete { key } if key == reality_key => own.reality = None,
            Write::Put { key, value, .. } => {
                if let Some((writer, _)) = part.as_ref().filter(|(_, part)| *part == key) {
                    let created = own.parts.get(*writer).map(|old| old.created);
                    let record = record(&key, value, created);
                    if let Ok(part) = Versioned::<Reality>::from_record(&own.key, &record) {
                        own.parts.insert((*writer).to_owned(), part);
                    }
                }
            }
            Write::Delete { .. } => {}
        }
    }
}

fn fenced(fence: &Fence) -> CommitError {
    CommitError::Fenced {
        claim: fence.name().to_owned(),
    }
}

/// Changes that happen together or not at all. Each one compares what the run saw.
#[derive(Debug)]
#[must_use = "nothing is written before `commit`"]
pub struct Changes<'c> {
    context: &'c Context,
    batch: Batch,
}

impl Changes<'_> {
    fn joined(&self, key: &ObjectKey) -> Result<Joined, ClientError> {
        if key == self.context.key() {
            return Ok(self.context.joined());
        }
        Ok(self.context.view().joined(key)?)
    }

    /// Creates an object, and returns it with its uid.
    ///
    /// # Errors
    /// See [`Batch::create_typed`].
    pub fn create<K: Resource>(&mut self, object: &Object<K>) -> Result<Object<K>, ClientError> {
        self.batch.create_typed(self.context.environment(), object)
    }

    /// Replaces labels, annotations, owners and spec of an object.
    ///
    /// # Errors
    /// See [`Batch::update_typed`].
    pub fn update<K: Resource>(&mut self, object: &Object<K>) -> Result<Outcome, ClientError> {
        let joined = self.joined(&object.key()?)?;
        self.batch.update_typed(&joined, object)
    }

    /// Asks for an object's end.
    ///
    /// # Errors
    /// See [`Batch::delete`].
    pub fn delete(
        &mut self,
        key: &ObjectKey,
        options: &DeleteOptions,
    ) -> Result<Outcome, ClientError> {
        let joined = self.joined(key)?;
        let at = self.context.environment().now();
        let setting = &self.context.run.setting;
        let mut options = options.clone();
        options.undeclared |= !setting.guards.is_declared(&self.context.joined());
        self.batch
            .delete(&joined, &options, &setting.controller, at)
    }

    /// Reports the status of the object that is reconciled. Without a difference nothing is
    /// written.
    ///
    /// # Errors
    /// See [`Batch::report_typed`]. `Invalid` for a controller that
    /// [writes a part](super::Controller::writes_part): only the object's own worker reports so.
    pub fn report<K: Resource>(
        &mut self,
        status: &Status<K::Status>,
    ) -> Result<Outcome, ClientError> {
        let joined = self.context.joined();
        if let Some(writer) = self.context.part() {
            let problem = format!("is another's to report: use `report_part`, into `{writer}`");
            return Err(ClientError::Invalid {
                key: joined.key.to_string(),
                errors: vec![FieldError::new("status", problem)],
            });
        }
        self.batch.report_typed::<K>(&joined, status)
    }

    /// Reports this controller's share of the status of the object that is reconciled, into the
    /// part that it [writes](super::Controller::writes_part). Without a difference nothing is
    /// written.
    ///
    /// # Errors
    /// See [`Batch::report_part`]. `Invalid` for a controller that writes no part.
    pub fn report_part<S: serde::Serialize>(
        &mut self,
        status: &Status<S>,
    ) -> Result<Outcome, ClientError> {
        let joined = self.context.joined();
        let Some(writer) = self.context.part() else {
            let problem = "has no part by this controller: declare it by `writes_part`";
            return Err(ClientError::Invalid {
                key: joined.key.to_string(),
                errors: vec![FieldError::new("status", problem)],
            });
        };
        self.batch.report_part(&joined, writer, status)
    }

    /// Says that everything that this controller did for the object that is reconciled is undone:
    /// its records may be removed once everybody says so.
    ///
    /// # Errors
    /// See [`Batch::report`].
    pub fn report_gone(&mut self) -> Result<Outcome, ClientError> {
        let joined = self.context.joined();
        match self.context.part() {
            Some(writer) => self.batch.report_part_gone(&joined, writer),
            None => self.batch.report_gone(&joined),
        }
    }

    /// Only if this holds.
    pub fn require(&mut self, compare: Compare) {
        self.batch.require(compare);
    }

    /// The batch underneath, for what has no method here.
    pub fn batch(&mut self) -> &mut Batch {
        &mut self.batch
    }

    /// Commits the changes: see [`Context::commit`].
    ///
    /// # Errors
    /// See [`Context::commit`].
    pub async fn commit(self) -> Result<Revision, CommitError> {
        self.context.commit(self.batch).await
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
