//! How much may be taken away in a window of time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::model::GroupPlural;

/// What a budget is for: a kind, in a failure domain.
pub(crate) type Account = (GroupPlural, Arc<str>);

/// A budget is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overspent {
    /// What was taken away in the window.
    pub(crate) spent: u32,
    /// What may be.
    pub(crate) limit: u32,
    /// How much this request would take away.
    pub(crate) asked: u32,
}

/// What was taken away lately, by account. Times are monotonic.
#[derive(Clone, Debug, Default)]
pub(crate) struct Budget {
    spent: BTreeMap<Account, VecDeque<(Duration, u32)>>,
    /// What a person allowed beyond, once.
    extra: BTreeMap<Account, u32>,
}

impl Budget {
    /// What was spent in the `window` before `now`.
    pub(crate) fn spent(&self, account: &Account, now: Duration, window: Duration) -> u32 {
        let entries = self.spent.get(account).into_iter().flatten();
        entries
            .filter(|(at, _)| now.saturating_sub(*at) < window)
            .map(|(_, count)| count)
            .sum()
    }

    /// Takes `asked` from the budget, whole or not at all.
    pub(crate) fn spend(
        &mut self,
        account: &Account,
        now: Duration,
        window: Duration,
        asked: u32,
        limit: u32,
    ) -> Result<(), Overspent> {
        let spent = self.spent(account, now, window);
        let room = limit.saturating_sub(spent);
        if asked > room {
            let extra = self.extra.get(account).copied().unwrap_or(0);
            let beyond = asked - room;
            if beyond > extra {
                return Err(Overspent {
                    spent,
                    limit,
                    asked,
                });
            }
            self.extra.insert(account.clone(), extra - beyond);
        }
        let entries = self.spent.entry(account.clone()).or_default();
        while entries
            .front()
            .is_some_and(|(at, _)| now.saturating_sub(*at) >= window)
        {
            entries.pop_front();
        }
        match entries.back_mut() {
            // Many in one moment are one entry.
            Some((at, count)) if *at == now => *count = count.saturating_add(asked),
            _ => entries.push_back((now, asked)),
        }
        Ok(())
    }

    /// Gives back what was not used.
    pub(crate) fn refund(&mut self, account: &Account, mut count: u32) {
        let entries = self.spent.get_mut(account).into_iter().flatten();
        for (_, spent) in entries.rev() {
            let back = count.min(*spent);
            *spent -= back;
            count -= back;
        }
    }

    /// Begins anew after a person looked, with room for `wanted` at once.
    pub(crate) fn reset(&mut self, account: &Account, wanted: u32) {
        self.spent.remove(account);
        self.extra.insert(account.clone(), wanted);
    }

    /// All that was spent in the window before `now`, to be remembered.
    pub(crate) fn all(&self, now: Duration, window: Duration) -> Vec<(Account, u32)> {
        let accounts = self.spent.keys();
        accounts
            .map(|account| (account.clone(), self.spent(account, now, window)))
            .filter(|(_, spent)| *spent > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(300);

    fn account(domain: &str) -> Account {
        (GroupPlural::new("example.dev", "pages"), domain.into())
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_window_has_its_limit_and_another_domain_its_own() {
        let mut budget = Budget::default();
        assert!(budget.spend(&account("a"), at(0), WINDOW, 20, 20).is_ok());
        let over = budget.spend(&account("a"), at(10), WINDOW, 1, 20);
        assert_eq!(
            over,
            Err(Overspent {
                spent: 20,
                limit: 20,
                asked: 1
            })
        );
        assert!(budget.spend(&account("b"), at(10), WINDOW, 20, 20).is_ok());
        assert!(budget.spend(&account("a"), at(300), WINDOW, 20, 20).is_ok());
    }

    #[test]
    fn what_did_not_happen_is_given_back_and_a_reset_gives_room() {
        let mut budget = Budget::default();
        budget.spend(&account("a"), at(0), WINDOW, 5, 20).unwrap();
        budget.spend(&account("a"), at(1), WINDOW, 15, 20).unwrap();
        budget.refund(&account("a"), 16);
        assert_eq!(budget.spent(&account("a"), at(2), WINDOW), 4);
        assert!(budget.spend(&account("a"), at(2), WINDOW, 50, 20).is_err());
        budget.reset(&account("a"), 50);
        assert!(budget.spend(&account("a"), at(2), WINDOW, 50, 20).is_ok());
        assert!(
            budget.spend(&account("a"), at(2), WINDOW, 50, 20).is_err(),
            "once"
        );
    }

    proptest! {
        #[test]
        fn no_window_has_more_than_its_limit(asks in proptest::collection::vec((0u64..100, 0u32..12), 0..60)) {
            let mut budget = Budget::default();
            let mut now = Duration::ZERO;
            let mut granted: Vec<(Duration, u32)> = Vec::new();
            for (pause, asked) in asks {
                now += at(pause);
                if budget.spend(&account("a"), now, WINDOW, asked, 20).is_ok() {
                    granted.push((now, asked));
                }
                for (end, _) in &granted {
                    let within = granted.iter().filter(|(then, _)| then <= end && *end - *then < WINDOW);
                    prop_assert!(within.map(|(_, count)| count).sum::<u32>() <= 20);
                }
            }
        }
    }
}
