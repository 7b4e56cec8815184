//! Whether a commit or an end may happen now: what forbids it, whether an order explains it, and
//! what of the budget it takes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::budget::{Account, Overspent};
use super::super::effect::{ends, taken_away};
use super::super::episode;
use super::{AGAIN, Held, MEMORIES, Safeguards, State, name_of};
use crate::cache::View;
use crate::failsafe::{Guard, Hold, Safeguard};
use crate::model::{Joined, Kinds, ObjectKey, Uid};
use crate::store::{Transaction, Write};

/// What an owner may do because its own spec changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Episode {
    generation: u64,
    /// When it was seen, or something was last taken away for it.
    acted: Duration,
}

/// What was taken from budgets for a commit, to be given back if it does not happen.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Ticket {
    spent: Vec<(Account, u32)>,
    /// Objects whose ends are paid for with it.
    ended: Vec<Uid>,
    /// The generation of the own object that orders what is taken away, to be written beside it.
    pub(crate) declared: Option<u64>,
}

/// A commit that a controller wants to make.
#[derive(Debug)]
pub(crate) struct Ask<'a> {
    /// The kinds that the controller declared.
    pub(crate) declared_kinds: &'a Kinds,
    pub(crate) view: &'a View,
    pub(crate) own: &'a Joined,
    pub(crate) transaction: &'a Transaction,
    /// Reports pass a freeze.
    pub(crate) reports_while_frozen: bool,
}

impl Safeguards {
    fn refuse(state: &mut State, why: String, retry_after: Duration) -> Held {
        state.refusals += 1;
        Held { why, retry_after }
    }

    /// What forbids whatever takes something away, declared or not.
    fn nothing_goes(&self, state: &mut State) -> Option<Held> {
        let why = self.stopped(state).or_else(|| {
            let orders = self.is_on(Safeguard::HistoryOrders);
            let other = state.other_history.as_ref().filter(|_| orders)?;
            Some(format!("the store shows another history: {other}"))
        })?;
        Some(Self::refuse(state, why, AGAIN))
    }

    /// What forbids taking something away that nobody declared.
    fn nothing_undeclared_goes(&self, state: &mut State, kinds: &Kinds) -> Option<Held> {
        let mut holds = state.holds.values();
        let about = |hold: &&Hold| {
            !matches!(hold.guard, Guard::Budget | Guard::History)
                && self.is_on(Safeguard::KindHeld)
                && kinds
                    .iter()
                    .any(|known| name_of(&known.definition.group_plural()) == hold.kind)
        };
        if let Some(hold) = holds.find(about) {
            let why = format!("held by {}: {}", hold.id, hold.message);
            return Some(Self::refuse(state, why, AGAIN));
        }
        let left = match state.began {
            Some(began) => {
                (began + self.limits().grace).saturating_sub(self.environment.monotonic())
            }
            None => self.limits().grace,
        };
        if left.is_zero() || !self.is_on(Safeguard::ColdStart) {
            return None;
        }
        let why = format!("this program began a moment ago: it takes nothing away for {left:?}");
        Some(Self::refuse(state, why, left))
    }

    fn domain(&self, key: &ObjectKey, view: &View) -> Arc<str> {
        let domain = self.setup.domain.as_ref();
        domain
            .filter(|_| self.is_on(Safeguard::Domains))
            .and_then(|domain| domain(key, view))
            .unwrap_or_default()
            .into()
    }

    /// Takes from budgets, from all or from none.
    fn spend(
        &self,
        state: &mut State,
        view: &View,
        victims: &BTreeMap<Account, Vec<ObjectKey>>,
    ) -> Result<Ticket, Held> {
        let now = self.environment.monotonic();
        let window = self.limits().window;
        let mut ticket = Ticket::default();
        if !self.is_on(Safeguard::Budget) {
            return Ok(ticket);
        }
        for (account, objects) in victims {
            let asked = u32::try_from(objects.len()).unwrap_or(u32::MAX);
            let held = state.holds.values().find(|hold| {
                hold.guard == Guard::Budget
                    && hold.kind == name_of(&account.0)
                    && *hold.domain == *account.1
            });
            let held = held.map(|hold| format!("held by {}: {}", hold.id, hold.message));
            let spent = state.budget.spent(account, now, window);
            let mut limit = self.limits().budget_least;
            if spent.saturating_add(asked) > limit {
                let in_domain = |key: &Arc<ObjectKey>| {
                    self.setup.domain.is_none() || self.domain(key, view) == account.1
                };
                let known = view.keys_of(&account.0);
                limit = self
                    .limits()
                    .budget(known.iter().filter(|key| in_domain(key)).count());
            }
            let outcome = match &held {
                Some(_) => Err(Overspent {
                    spent,
                    limit,
                    asked,
                }),
                None => state.budget.spend(account, now, window, asked, limit),
            };
            let Err(over) = outcome else {
                ticket.spent.push((account.clone(), asked));
                continue;
            };
            if self.is_expected(state, objects.len()) {
                continue;
            }
            let wanted = state.refused.entry(account.clone()).or_default();
            *wanted = asked.max(*wanted);
            let message = format!(
                "{} more of {} were to be taken away, after {} in the last {:?}; the budget is {}",
                over.asked,
                name_of(&account.0),
                over.spent,
                window,
                over.limit
            );
            self.raise(
                state,
                Guard::Budget,
                Some(&account.0),
                &account.1,
                objects,
                message.clone(),
            );
            for (account, count) in ticket.spent {
                state.budget.refund(&account, count);
            }
            let why = held.unwrap_or(message);
            return Err(Self::refuse(state, why, AGAIN));
        }
        Ok(ticket)
    }

    /// Decides whether a commit may be made now.
    pub(crate) fn admit(&self, ask: &Ask<'_>) -> Result<Ticket, Held> {
        // Parsed without the lock.
        let effects = taken_away(ask.transaction, ask.view, &self.kinds(), &ask.own.key);
        let mut state = self.state();
        let is_report = |write: &Write| {
            let key = write.key().as_str();
            key.starts_with("o/reality/") || key.starts_with("o/part/")
        };
        let passes = ask.reports_while_frozen
            && state.is_frozen()
            && ask.transaction.writes.iter().all(is_report);
        let stopped = match passes {
            true => self.unsure(&state),
            false => self.stopped(&state),
        };
        if let Some(why) = stopped {
            return Err(Self::refuse(&mut state, why, AGAIN));
        }
        let declared = self.declares(&mut state, ask.own, !effects.is_empty());
        if effects.is_empty() {
            return Ok(Ticket::default());
        }
        if let Some(held) = self.nothing_goes(&mut state) {
            return Err(held);
        }
        if declared {
            let metadata = ask.own.intent.as_ref().map(|own| &own.value.metadata);
            let declared = metadata.filter(|own| !own.is_deleted());
            return Ok(Ticket {
                declared: declared.map(|own| own.generation),
                ..Ticket::default()
            });
        }
        if let Some(held) = self.nothing_undeclared_goes(&mut state, ask.declared_kinds) {
            return Err(held);
        }
        let mut victims = BTreeMap::<Account, Vec<ObjectKey>>::new();
        for key in effects {
            let account = (key.kind().clone(), self.domain(&key, ask.view));
            victims.entry(account).or_default().push(key);
        }
        let mut ticket = self.spend(&mut state, ask.view, &victims)?;
        // Who carries the end out here does not pay for it again.
        for uid in ends(ask.transaction) {
            if Self::remember_end(&mut state, &uid) {
                ticket.ended.push(uid);
            }
        }
        Ok(ticket)
    }

    /// False when it was remembered already.
    fn remember_end(state: &mut State, uid: &Uid) -> bool {
        if state.ended.len() > MEMORIES {
            state.ended.clear();
        }
        state.ended.insert(uid.clone())
    }

    /// Only a freeze, or another history, stops this.
    pub(crate) fn admit_bare(&self) -> Result<(), Held> {
        self.nothing_goes(&mut self.state()).map_or(Ok(()), Err)
    }

    /// Gives back what a commit that did not happen had taken.
    pub(crate) fn give_back(&self, ticket: Ticket) {
        let mut state = self.state();
        for (account, count) in ticket.spent {
            state.budget.refund(&account, count);
        }
        for uid in ticket.ended {
            state.ended.remove(&uid);
        }
    }

    /// Decides whether what was made for an object that has a tombstone may be taken away now.
    pub(crate) fn admit_end(&self, own: &Joined, view: &View) -> Result<(), Held> {
        let mut state = self.state();
        if let Some(held) = self.nothing_goes(&mut state) {
            return Err(held);
        }
        let Some(intent) = &own.intent else {
            return Ok(());
        };
        let metadata = &intent.value.metadata;
        let declared = metadata.deletion.as_ref().is_some_and(|it| it.declared);
        if declared || state.ended.contains(&metadata.uid) || !self.is_on(Safeguard::Ends) {
            return Ok(());
        }
        let kind = own.key.kind();
        let mut kinds = Kinds::new();
        if let Some(known) = self.kinds().get(kind) {
            kinds.define(known.definition.clone());
        }
        if let Some(held) = self.nothing_undeclared_goes(&mut state, &kinds) {
            return Err(held);
        }
        let account = (kind.clone(), self.domain(&own.key, view));
        let victims = BTreeMap::from([(account, vec![own.key.clone()])]);
        // What was begun is finished, and not counted twice.
        let Ticket { .. } = self.spend(&mut state, view, &victims)?;
        Self::remember_end(&mut state, &metadata.uid);
        Ok(())
    }

    /// Whether what is done for an object follows from an order: its own tombstone, or a newer
    /// generation of its own spec, for as long as the work on that goes on.
    pub(crate) fn is_declared(&self, own: &Joined) -> bool {
        self.declares(&mut self.state(), own, false)
    }

    /// As [`Safeguards::is_declared`]. `acts`: something is taken away now.
    fn declares(&self, state: &mut State, own: &Joined, acts: bool) -> bool {
        let Some(intent) = &own.intent else {
            return false;
        };
        let metadata = &intent.value.metadata;
        if let Some(deletion) = &metadata.deletion
            && deletion.uid == metadata.uid
        {
            return deletion.declared;
        }
        let (now, generation) = (self.environment.monotonic(), metadata.generation);
        let lasts = self.limits().window * 2;
        let mut acted = now;
        match state.episodes.get_mut(&metadata.uid) {
            Some(episode) if episode.generation == generation => {
                let goes_on = now.saturating_sub(episode.acted) < lasts;
                if !goes_on {
                    state.episodes.remove(&metadata.uid);
                } else if acts {
                    episode.acted = now;
                }
                return goes_on;
            }
            Some(episode) if episode.generation > generation => return false,
            Some(_) => {}
            None => match own.own_reality() {
                // Never worked on: all that is done for it follows from its creation.
                None if !acts => return true,
                None => {}
                Some(reality) => {
                    let seen = reality.value.status.observed_generation;
                    if seen.is_none_or(|seen| seen >= generation) {
                        // Another process was at it.
                        let wall = self.environment.now();
                        let Some(ago) = episode::recalled(reality, generation, wall, lasts) else {
                            return false;
                        };
                        acted = if acts { now } else { now.saturating_sub(ago) };
                    }
                }
            },
        }
        if state.episodes.len() > MEMORIES {
            let goes_on = |episode: &Episode| now.saturating_sub(episode.acted) < lasts;
            state.episodes.retain(|_, episode| goes_on(episode));
        }
        let episode = Episode { generation, acted };
        state.episodes.insert(metadata.uid.clone(), episode);
        true
    }
}
