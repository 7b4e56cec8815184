//! The framework's failsafe cases on a real server: most of them share one, some replace what a
//! whole server holds and have one of their own.

use std::sync::{Arc, Mutex, MutexGuard};

use platctrl_framework::conformance::failsafe::cases;
use platctrl_framework::conformance::{Case, Subject, Verdict};

/// These replace what the whole server holds.
const ALONE: &[&str] = &[
    "failsafe_store_restored_older",
    "failsafe_store_restored_forward",
    "failsafe_store_restored_while_nobody_looked",
];

/// A server that several cases use.
#[derive(Debug)]
pub struct Shared<C>(Arc<Mutex<C>>);

impl<C> Clone for Shared<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C> Shared<C> {
    /// Whoever has it, has it alone.
    ///
    /// # Panics
    /// A case failed while it had it.
    pub fn lock(&self) -> MutexGuard<'_, C> {
        self.0.lock().unwrap()
    }
}

/// Runs all cases but those named, so many of those that share a server at once: most of them
/// wait. `PLATCTRL_CASE` names one alone.
///
/// # Panics
/// Some case fails; all are run before.
pub fn run<C: Send, F: Future<Output = Subject>>(
    without: &[&str],
    at_once: usize,
    start: impl Fn() -> C,
    fresh: impl Fn(Shared<C>) -> F + Sync,
) {
    let only = std::env::var("PLATCTRL_CASE").ok();
    let wanted = |case: &&Case| only.as_deref().is_none_or(|only| case.name() == only);
    let (alone, together): (Vec<&Case>, Vec<&Case>) = cases()
        .iter()
        .filter(wanted)
        .filter(|case| !without.contains(&case.name()))
        .partition(|case| ALONE.contains(&case.name()));
    let failures = Mutex::new(Vec::new());
    let check = |cluster: &Shared<C>, case: &Case| {
        let verdict = case.check(|| fresh(cluster.clone()));
        if verdict != Verdict::Passed {
            let failed = format!("{}: {verdict:?}", case.name());
            failures.lock().unwrap().push(failed);
        }
    };
    let waiting = Mutex::new(together.into_iter());
    std::thread::scope(|scope| {
        let (check, waiting) = (&check, &waiting);
        let cluster = Shared(Arc::new(Mutex::new(start())));
        for _ in 0..at_once {
            let cluster = cluster.clone();
            scope.spawn(move || {
                loop {
                    let next = waiting.lock().unwrap().next();
                    let Some(case) = next else { return };
                    check(&cluster, case);
                }
            });
        }
        for case in alone {
            check(&Shared(Arc::new(Mutex::new(start()))), case);
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
