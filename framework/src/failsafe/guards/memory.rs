//! What is remembered over a restart, and compared with what is found then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{LOST, Safeguards, State, name_of};
use crate::cache::View;
use crate::failsafe::baseline::Baseline;
use crate::failsafe::switch::Switches;
use crate::failsafe::{Guard, Hold, Safeguard};
use crate::model::GroupPlural;

impl Safeguards {
    /// What there is to remember over a restart; None while something is held that it would
    /// contradict.
    pub(in crate::failsafe) fn to_remember(&self, view: &View) -> Option<Baseline> {
        let counts = self.counts(view);
        let now = self.environment.monotonic();
        let mut state = self.state();
        let unsound = |hold: &Hold| !matches!(hold.guard, Guard::Budget | Guard::RealityLost);
        if state.began.is_none() || state.holds.values().any(unsound) {
            return None;
        }
        let spent = state.budget.all(now, self.limits().window);
        let spent = spent.into_iter().map(|((kind, domain), count)| {
            let mut name = name_of(&kind);
            if !domain.is_empty() {
                name = format!("{name}@{domain}");
            }
            (name, count)
        });
        let baseline = Baseline {
            store_id: state.store_id.clone(),
            link: state.link.clone(),
            revision: view.revision(),
            kinds: counts,
            spent: spent.collect(),
        };
        state.baseline = Some(baseline.clone());
        Some(baseline)
    }

    /// Takes over what the program's own record remembers, where nothing better is known.
    pub(in crate::failsafe) fn recall_stored(&self, baseline: Baseline) {
        let mut state = self.state();
        if state.baseline.is_none() && state.began.is_none() {
            recall(
                &mut state,
                baseline,
                self.environment.monotonic(),
                &self.setup.switches,
            );
        }
    }

    /// Remembers an intent that was lost, so that it can be written again.
    pub(in crate::failsafe) fn remember_lost(state: &mut State, key: String, was: Bytes) {
        if state.lost.len() >= LOST {
            state.lost.pop_first();
        }
        state.lost.insert(key, was);
    }

    /// Everything was read once: from here the grace time counts, and what is remembered of
    /// before is compared.
    pub(crate) fn synced(&self, view: &View) {
        let mut state = self.state();
        if state.began.is_some() {
            return;
        }
        state.began = Some(self.environment.monotonic());
        let Some(baseline) = state.baseline.clone() else {
            return;
        };
        let found = self.counts(view);
        for (kind, remembered, found) in baseline.fewer(&found, self.limits()) {
            let kind = self.kind_named(&kind);
            let Some(kind) = kind.filter(|_| self.is_on(Safeguard::Fewer)) else {
                continue;
            };
            let lost = usize::try_from(remembered - found).unwrap_or(usize::MAX);
            if self.is_expected(&mut state, lost) {
                continue;
            }
            let message = format!(
                "{found} {} are there; there were {remembered} when this program last looked",
                name_of(&kind)
            );
            self.raise(&mut state, Guard::Fewer, Some(&kind), "", &[], message);
        }
    }

    /// How many objects of each kind a view has.
    pub(in crate::failsafe) fn counts(&self, view: &View) -> BTreeMap<String, u64> {
        let kinds = self.kinds();
        let kinds = kinds.iter().map(|known| known.definition.group_plural());
        kinds
            .map(|kind| (name_of(&kind), view.keys_of(&kind).len() as u64))
            .collect()
    }
}

/// Takes over what was remembered.
pub(super) fn recall(state: &mut State, baseline: Baseline, now: Duration, switches: &Switches) {
    state.link.clone_from(&baseline.link);
    state.store_id.clone_from(&baseline.store_id);
    let spent = switches.is_on(Safeguard::BudgetMemory);
    for (name, &count) in baseline.spent.iter().filter(|_| spent) {
        let (kind, domain) = name.split_once('@').unwrap_or((name, ""));
        if let Some((plural, group)) = kind.split_once('.') {
            let account = (GroupPlural::new(group, plural), Arc::from(domain));
            // As if it had been just now: later than it was, and so on the safe side.
            let _ = state
                .budget
                .spend(&account, now, Duration::MAX, count, u32::MAX);
        }
    }
    state.baseline = Some(baseline);
}
