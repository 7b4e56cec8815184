//! The gate in front of a view: what sources tell is compared with what was known, and a step
//! that would take too much away is not believed.
//!
//! The view then keeps the last good intents of the objects it is about: whoever works on them
//! goes on with what was wanted. Everything else passes, reports of the same objects included.
//! An intent that is ordered anew passes too, and so does one that is again as it was.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::Ordering;

use bytes::Bytes;
use serde::Deserialize;

use super::guards::{Safeguards, State, Withheld, name_of};
use super::record::Guard;
use super::step::{Alarm, Fate, Step, fate, is_newer_order, judge};
use super::switch::Safeguard;
use crate::cache::{Reader, View};
use crate::model::{GroupPlural, ObjectKey, Phase, Tree, Uid};
use crate::store::{Change, Key, Prefix, Record, Revision};

/// What a step does to one kind.
#[derive(Default)]
struct Found {
    step: Step,
    /// The objects whose intents nobody ordered to be so.
    objects: Vec<(ObjectKey, Bytes, Revision, Fate)>,
    /// The objects whose reports are gone while their intents stay.
    reports: Vec<ObjectKey>,
}

/// What becomes of a withheld intent.
enum Next {
    /// What is there now is believed.
    Pass,
    /// It stays as it is in view.
    Stay,
}

#[derive(Deserialize)]
struct Report {
    metadata: ReportMetadata,
    #[serde(default)]
    status: ReportStatus,
}

#[derive(Deserialize)]
struct ReportMetadata {
    #[serde(default)]
    uid: Uid,
}

#[derive(Default, Deserialize)]
struct ReportStatus {
    #[serde(default)]
    phase: Phase,
}

/// Somebody says that something is there for the object.
fn is_live(report: &[u8]) -> bool {
    // A report that cannot be read may be about something.
    serde_json::from_slice::<Report>(report).map_or(true, |report| {
        !report.metadata.uid.is_empty() && report.status.phase != Phase::GONE
    })
}

fn is_ended(intent: &[u8]) -> bool {
    // A tombstone is what makes a vanishing intent an order.
    fate(intent, None) == Fate::Ordered
}

impl Safeguards {
    fn is_mirrored(&self, key: &Key) -> bool {
        self.prefixes.iter().any(|prefix| key.is_under(prefix))
    }

    /// Whether an intent that is gone without a tombstone is missed: something was reported on
    /// the object. One that nobody ever worked on is removed at once by whoever deletes it.
    fn is_missed(&self, view: &View, object: &ObjectKey) -> bool {
        match view.record(object, Tree::Reality) {
            Some((report, _)) => is_live(&report),
            None => !self.is_mirrored(&object.store_key(Tree::Reality)),
        }
    }

    /// Nothing is believed that nobody ordered.
    fn is_strict(&self, state: &State) -> bool {
        state.other_history.is_some() && self.is_on(Safeguard::HistorySteps)
    }

    /// Takes the place of what is there now for an intent that is withheld.
    fn next(&self, state: &State, key: &str, now: Option<&[u8]>) -> Next {
        let Some(withheld) = state.withheld.get(key) else {
            return Next::Pass;
        };
        let strict = self.is_strict(state);
        let good = now.is_some_and(|now| {
            is_newer_order(&withheld.was, now)
                || fate(&withheld.was, Some(now)) == Fate::Ordered && !strict
                || *now == *withheld.was
        });
        if good { Next::Pass } else { Next::Stay }
    }

    /// An intent is believed again.
    fn believe(&self, state: &mut State, key: &str) {
        let Some(withheld) = state.withheld.remove(key) else {
            return;
        };
        let hold = withheld.hold;
        if !state.withheld.values().any(|other| other.hold == hold) {
            self.release(state, &hold, "everything is as it was, or was ordered anew");
        }
    }

    /// Filters what a source read whole. Nothing is filtered before something was known.
    pub(crate) fn gate_list(
        &self,
        source: usize,
        initial: bool,
        mut records: Vec<Record>,
        revision: Revision,
        view: &View,
    ) -> Vec<Record> {
        let Some(prefix) = self.prefixes.get(source).filter(|_| !initial) else {
            return records;
        };
        let listed: HashMap<&str, usize> = records
            .iter()
            .enumerate()
            .map(|(index, record)| (record.key.as_str(), index))
            .collect();
        let mut state = self.state();
        let mut found = BTreeMap::<GroupPlural, Found>::new();
        let mut kept: Vec<(Key, Bytes, Revision)> = Vec::new();
        for known in self.kinds().iter() {
            let kind = known.definition.group_plural();
            let of_kind = found.entry(kind.clone()).or_default();
            for object in view.keys_of(&kind) {
                let key = object.store_key(Tree::Intent);
                let Some((was, modified)) = view.record(&object, Tree::Intent) else {
                    continue;
                };
                let now = listed.get(key.as_str()).map(|&index| &records[index]);
                if key.is_under(prefix) {
                    of_kind.step.known += 1;
                    let value = now.map(|record| &*record.value);
                    if state.withheld.contains_key(key.as_str()) {
                        match self.next(&state, key.as_str(), value) {
                            Next::Pass => self.believe(&mut state, key.as_str()),
                            Next::Stay => kept.push((key, was, modified)),
                        }
                        continue;
                    }
                    if !state.accepted.remove(key.as_str()) {
                        let fate = fate(&was, value);
                        let missed = fate != Fate::Vanished || self.is_missed(view, &object);
                        if fate != Fate::Ordered && missed {
                            of_kind.step.add(fate);
                            of_kind
                                .objects
                                .push(((*object).clone(), was.clone(), modified, fate));
                        }
                    }
                }
                let report = object.store_key(Tree::Reality);
                let stays = now.is_some() || !key.is_under(prefix);
                if stays
                    && report.is_under(prefix)
                    && !listed.contains_key(report.as_str())
                    && !is_ended(&was)
                    && let Some((report, _)) = view.record(&object, Tree::Reality)
                    && is_live(&report)
                {
                    of_kind.reports.push((*object).clone());
                }
            }
        }
        // What was accepted is there now, or gone.
        state
            .accepted
            .retain(|key| !key.starts_with(prefix.as_str()));
        let back: Vec<ObjectKey> = state
            .reports
            .values()
            .flatten()
            .filter(|object| listed.contains_key(object.store_key(Tree::Reality).as_str()))
            .cloned()
            .collect();
        drop(listed);
        for object in back {
            self.report_is_back(&mut state, &object);
        }
        for (kind, found) in found {
            let held = self.decide(&mut state, &kind, found, revision);
            kept.extend(held);
        }
        self.attend(&state);
        drop(state);
        if kept.is_empty() {
            return records;
        }
        let replaced: HashSet<&str> = kept.iter().map(|(key, _, _)| key.as_str()).collect();
        records.retain(|record| !replaced.contains(record.key.as_str()));
        records.extend(kept.into_iter().map(|(key, value, modified)| Record {
            key,
            value,
            created: modified,
            modified,
            lease: None,
        }));
        records.sort_by(|a, b| a.key.cmp(&b.key));
        records
    }

    /// Filters what a watch told.
    pub(crate) fn gate_changes(
        &self,
        source: usize,
        changes: Vec<Change>,
        revision: Revision,
        reader: &Reader,
    ) -> Vec<Change> {
        let deletes = |change: &Change| matches!(change, Change::Delete { .. });
        if !self.attentive.load(Ordering::Acquire)
            && changes.len() < self.limits().step_least
            && !changes.iter().any(deletes)
        {
            return changes;
        }
        let Some(prefix) = self.prefixes.get(source) else {
            return changes;
        };
        let view = &reader.view();
        if !self.attentive.load(Ordering::Acquire)
            && !changes.iter().any(deletes)
            && self.is_no_mass(&changes, prefix, view)
        {
            return changes;
        }
        let kinds = self.kinds();
        let scope = |group: &str, plural: &str| kinds.scope(group, plural);
        let mut state = self.state();
        let mut found = BTreeMap::<GroupPlural, Found>::new();
        let mut dropped = HashSet::<Key>::new();
        let gone: HashSet<&str> = changes
            .iter()
            .filter(|change| deletes(change))
            .map(|change| change.key().as_str())
            .collect();
        for change in &changes {
            let Some((tree, object, _)) = ObjectKey::parse(change.key(), scope) else {
                continue;
            };
            let key = change.key();
            let now = match change {
                Change::Put(record) => Some(&*record.value),
                Change::Delete { .. } => None,
            };
            match tree {
                Tree::Intent if state.withheld.contains_key(key.as_str()) => {
                    match self.next(&state, key.as_str(), now) {
                        Next::Pass => self.believe(&mut state, key.as_str()),
                        Next::Stay => {
                            dropped.insert(key.clone());
                        }
                    }
                }
                Tree::Intent => {
                    let Some((was, modified)) = view.record(&object, Tree::Intent) else {
                        continue;
                    };
                    if change.revision() <= modified || state.accepted.remove(key.as_str()) {
                        continue;
                    }
                    let fate = fate(&was, now);
                    let missed = fate != Fate::Vanished || self.is_missed(view, &object);
                    if fate != Fate::Ordered && missed {
                        let of_kind = found.entry(object.kind().clone()).or_default();
                        of_kind.step.add(fate);
                        of_kind.objects.push((object, was, modified, fate));
                    }
                }
                Tree::Reality if now.is_none() => {
                    let intent = object.store_key(Tree::Intent);
                    let wanted = view.record(&object, Tree::Intent);
                    let wanted = wanted.filter(|(intent, _)| !is_ended(intent));
                    let was = view.record(&object, Tree::Reality);
                    if wanted.is_some()
                        && !gone.contains(intent.as_str())
                        && was.is_some_and(|(report, _)| is_live(&report))
                    {
                        let of_kind = found.entry(object.kind().clone()).or_default();
                        of_kind.reports.push(object);
                    }
                }
                Tree::Reality if !state.reports.is_empty() => {
                    self.report_is_back(&mut state, &object);
                }
                _ => {}
            }
        }
        for (kind, mut found) in found {
            let many = found.step.affected().max(found.reports.len());
            if many >= self.limits().step_least || self.is_strict(&state) {
                let keys = view.keys_of(&kind);
                let under = |tree: Tree| {
                    let mine = keys
                        .iter()
                        .filter(|object| object.store_key(tree).is_under(prefix));
                    mine.count()
                };
                found.step.known = if found.step.affected() > 0 {
                    under(Tree::Intent)
                } else {
                    under(Tree::Reality)
                };
            } else {
                // Too few to be a mass of anything.
                found.step.known = usize::MAX;
            }
            for (key, _, _) in self.decide(&mut state, &kind, found, revision) {
                dropped.insert(key);
            }
        }
        drop(state);
        if dropped.is_empty() {
            return changes;
        }
        changes
            .into_iter()
            .filter(|change| !dropped.contains(change.key()))
            .collect()
    }

    /// Even if nobody had ordered any of these puts, they would be too few of what there is: said
    /// without reading one of them, because under load most deliveries are of this sort.
    fn is_no_mass(&self, changes: &[Change], prefix: &Prefix, view: &View) -> bool {
        let mut puts = BTreeMap::<(&str, &str), usize>::new();
        for change in changes {
            let mut segments = change.key().as_str().split('/');
            if segments.next() == Some("o")
                && segments.next() == Some(Tree::Intent.as_str())
                && let (Some(group), Some(plural)) = (segments.next(), segments.next())
            {
                *puts.entry((group, plural)).or_default() += 1;
            }
        }
        puts.into_iter().all(|((group, plural), puts)| {
            // The count of a kind says nothing about a part of it.
            let whole = format!("o/{}/{group}/{plural}/", Tree::Intent.as_str());
            whole.starts_with(prefix.as_str())
                && !self.limits().is_mass(puts, view.count_of(group, plural))
        })
    }

    /// Judges what a step does to one kind. Returns the intents that are kept as they were.
    fn decide(
        &self,
        state: &mut State,
        kind: &GroupPlural,
        found: Found,
        revision: Revision,
    ) -> Vec<(Key, Bytes, Revision)> {
        let Found {
            step,
            objects,
            reports,
        } = found;
        self.decide_reports(state, kind, reports, step.known, revision);
        let strict = self.is_strict(state);
        let alarm = judge(&step, self.limits(), strict)
            .filter(|alarm| strict || self.is_on(alarm.safeguard()))
            .filter(|_| strict || !self.is_expected(state, step.affected()));
        let Some(alarm) = alarm else {
            for (object, was, _, fate) in objects {
                if fate == Fate::Vanished {
                    let key = object.store_key(Tree::Intent).to_string();
                    Self::remember_lost(state, key, was);
                    // Written down, so that a person finds it.
                    self.announce();
                }
            }
            return Vec::new();
        };
        let (guard, what) = match alarm {
            Alarm::Vanished => (Guard::Vanished, "vanished"),
            Alarm::Changed => (Guard::Changed, "changed"),
            Alarm::WentBack => (Guard::WentBack, "went back"),
        };
        let message = format!(
            "{} of {} {} {what} in one step up to revision {revision}, and nobody ordered it; they are kept as they were",
            step.affected(),
            step.known,
            name_of(kind)
        );
        let keys: Vec<ObjectKey> = objects.iter().map(|(key, ..)| key.clone()).collect();
        let hold = self.raise(state, guard, Some(kind), "", &keys, message);
        let mut kept = Vec::new();
        for (object, was, modified, _) in objects {
            let key = object.store_key(Tree::Intent);
            let withheld = Withheld {
                was: was.clone(),
                hold: hold.clone(),
            };
            state.withheld.insert(key.to_string(), withheld);
            kept.push((key, was, modified));
        }
        kept
    }

    fn decide_reports(
        &self,
        state: &mut State,
        kind: &GroupPlural,
        reports: Vec<ObjectKey>,
        known: usize,
        revision: Revision,
    ) {
        if !self.limits().is_mass(reports.len(), known)
            || !self.is_on(Safeguard::RealityLost)
            || self.is_expected(state, reports.len())
        {
            return;
        }
        let message = format!(
            "the reports of {} of {known} {} vanished in one step up to revision {revision}: until they are reported again nothing is taken away because of it",
            reports.len(),
            name_of(kind)
        );
        let hold = self.raise(state, Guard::RealityLost, Some(kind), "", &reports, message);
        state.reports.entry(hold).or_default().extend(reports);
    }

    /// A report that was lost is there again. With few missing, the hold ends.
    fn report_is_back(&self, state: &mut State, object: &ObjectKey) {
        let mut over = Vec::new();
        for (hold, missing) in &mut state.reports {
            if missing.remove(object) && missing.len() < self.limits().step_least {
                over.push(hold.clone());
            }
        }
        for hold in over {
            self.release(state, &hold, "most are reported again");
        }
    }
}
