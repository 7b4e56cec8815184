//! The only way from a run to the store: what is compared, what it costs, and what is kept of it.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::{Context, Written, fenced, held, lock};
use crate::cache::InVain;
use crate::client::{Batch, ClientError};
use crate::controller::claim::Fence;
use crate::controller::error::CommitError;
use crate::controller::unrest::{Put, Slowed};
use crate::failsafe::Ask;
use crate::model::{Declared, Intent, Joined, Reality, RealityMetadata, Tree, Versioned};
use crate::store::{Compare, Key, Record, Revision, StoreError, Transaction, Write};

impl Context {
    /// Commits a batch, all or nothing. Whatever is in it, the object's own reality (or the
    /// controller's part) is compared and rewritten with it, so that of two attempts at one
    /// decision only one happens, however late the other lands; and the claim is compared if
    /// there is one. An empty batch writes nothing and returns the view's revision.
    ///
    /// # Errors
    /// `Conflict` when something is not as the run saw it; `Fenced` when the claim is lost;
    /// `Undecided` after a commit of this run that was not confirmed; the store's.
    pub async fn commit(&self, batch: Batch) -> Result<Revision, CommitError> {
        if batch.is_empty() {
            return Ok(self.run.view.revision());
        }
        self.commit_own(batch, false).await
    }

    /// As [`Context::commit`]. With `abreast` the own report says from then on that commits may be
    /// under way that only compare it; else it says so no more.
    pub(super) async fn commit_own(
        &self,
        mut batch: Batch,
        abreast: bool,
    ) -> Result<Revision, CommitError> {
        let _one_at_a_time = self.run.commits.lock().await;
        let own = self.joined();
        if self.is_left_abreast(&own) {
            return Err(self.end_abreast(&own).await);
        }
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
        self.sign(&own, &mut transaction, abreast)?;
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

    /// Writes this controller's name into the own reality, where it is not yet, and whether
    /// commits are abreast.
    pub(super) fn sign(
        &self,
        own: &Joined,
        transaction: &mut Transaction,
        abreast: bool,
    ) -> Result<(), CommitError> {
        let controller = &self.run.setting.controller;
        let said = self.own_report(own).map(|said| &said.value.metadata);
        let is_signed = said.is_some_and(|said| said.claim.as_deref() == Some(controller));
        if is_signed && said.is_some_and(|said| said.abreast == abreast) {
            return Ok(());
        }
        let key = self.report_key(own)?;
        edit_report(transaction, &key, |metadata| {
            // A report about an object whose intent is missing is not begun here.
            if own.intent.is_some() {
                metadata.claim = Some(controller.to_string());
            }
            metadata.abreast = abreast;
        })
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
        edit_report(transaction, &key, |metadata| {
            metadata.declared = Some(Declared { generation, at });
        })
    }

    pub(super) async fn send(&self, mut transaction: Transaction) -> Result<Revision, CommitError> {
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
        let number = {
            let mut notes = lock(&self.run.notes);
            notes.last += 1;
            let number = notes.last;
            notes.in_flight.insert(number, touched);
            number
        };
        self.within_budget(writes.len()).await;
        let outcome = self.run.setting.store.commit(transaction).await;
        let outcome = self.note(outcome, &compares, number, writes);
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
        number: u64,
        writes: Vec<Write>,
    ) -> Result<Revision, StoreError> {
        let mut notes = lock(&self.run.notes);
        let touched = notes.in_flight.remove(&number).unwrap_or_default();
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

    /// Whether somebody else keeps changing what was just written.
    fn contested(&self, written: &Written, compares: &[Compare]) -> Option<Slowed> {
        let setting = &self.run.setting;
        let mut found = None;
        let read = compares.iter().filter_map(|compare| match compare {
            Compare::Revision(key, revision) => Some((key, *revision)),
            _ => None,
        });
        let read: Vec<_> = read.collect();
        for (record, value) in &written.puts {
            let replaced = read.iter().find(|(key, _)| *key == record);
            let replaced = replaced.map(|(_, revision)| *revision);
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
}

/// Changes the metadata of a report that is put.
fn edit_report(
    transaction: &mut Transaction,
    report: &Key,
    edit: impl Fn(&mut RealityMetadata),
) -> Result<(), CommitError> {
    for write in &mut transaction.writes {
        if let Write::Put { key, value, .. } = write
            && key == report
        {
            let mut reality: Reality = serde_json::from_slice(value).map_err(ClientError::from)?;
            edit(&mut reality.metadata);
            let edited = serde_json::to_vec(&reality).map_err(ClientError::from)?;
            *value = edited.into();
        }
    }
    Ok(())
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
