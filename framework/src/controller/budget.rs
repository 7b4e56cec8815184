//! A controller's write budget: so many writes a second, on average.
//!
//! Over the budget nothing fails and nothing is decided on a view that grows old: runs do not
//! begin, so that keys wait in their queue. A run that commits several times waits between them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::environment::Environment;

#[derive(Debug)]
struct Account {
    /// Writes that may be made now; below zero after a commit of more than there were.
    balance: f64,
    /// When the balance was that.
    at: Duration,
}

/// What may be written, and what was.
#[derive(Debug)]
pub(crate) struct Budget {
    per_second: f64,
    account: Mutex<Account>,
}

impl Budget {
    /// A budget of which one second's worth can be saved up.
    pub(crate) fn new(per_second: u32, environment: &Environment) -> Self {
        let per_second = f64::from(per_second.max(1));
        Self {
            per_second,
            account: Mutex::new(Account {
                balance: per_second,
                at: environment.monotonic(),
            }),
        }
    }

    fn account(&self, now: Duration) -> MutexGuard<'_, Account> {
        let mut account = self.account.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_sub(account.at).as_secs_f64();
        account.balance = (account.balance + passed * self.per_second).min(self.per_second);
        account.at = now;
        account
    }

    /// How long until there is something to spend; None when there is.
    pub(crate) fn wait(&self, now: Duration) -> Option<Duration> {
        let balance = self.account(now).balance;
        let short = 1.0 - balance;
        (short > 1e-9).then(|| Duration::from_secs_f64(short / self.per_second))
    }

    /// Sets one write aside if there is one.
    pub(crate) fn take(&self, now: Duration) -> Result<(), Duration> {
        match self.wait(now) {
            Some(wait) => Err(wait.max(Duration::from_millis(1))),
            None => {
                self.spend(1, now);
                Ok(())
            }
        }
    }

    pub(crate) fn spend(&self, writes: usize, now: Duration) {
        self.account(now).balance -= writes as f64;
    }

    /// Gives back what was set aside and not used.
    pub(crate) fn give_back(&self, now: Duration) {
        let mut account = self.account(now);
        account.balance = (account.balance + 1.0).min(self.per_second);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn as_much_is_spent_as_there_is_and_debts_are_paid_first() {
        let environment = Environment::system();
        let budget = Budget::new(10, &environment);
        let start = environment.monotonic();
        let after = |ms| start + Duration::from_millis(ms);
        for _ in 0..10 {
            assert_eq!(budget.take(start), Ok(()));
        }
        let wait = budget.take(start).expect_err("all is spent");
        assert_eq!(wait.as_millis(), 100);
        assert_eq!(budget.take(after(100)), Ok(()));
        budget.spend(20, after(100));
        assert_eq!(
            budget.wait(after(100)).map(|wait| wait.as_millis()),
            Some(2100)
        );
        // No more than a second's worth is saved up.
        assert_eq!(budget.wait(after(60_000)), None);
        budget.spend(10, after(60_000));
        assert!(budget.wait(after(60_000)).is_some());
        budget.give_back(after(60_000));
        assert_eq!(budget.wait(after(60_000)), None);
    }
}
