//! Failsafe cases that any backend can run: what a runtime on a real store does when the records
//! themselves are wrong.
//!
//! Each case runs a controller that makes something outside of the store for each object, lets
//! something happen to the store, and checks that nothing outside is taken away and that people
//! are told. A backend's crate names a factory, as for [the cases about stores](super):
//!
//! ```
//! # mod tests {
//! use std::sync::Arc;
//!
//! use platctrl_framework::conformance::{Subject, failsafe_tests};
//! use platctrl_framework::environment::Environment;
//! use platctrl_framework::store::{MemoryStore, Store};
//!
//! fn open() -> Arc<dyn Store> {
//!     Arc::new(MemoryStore::new(Environment::system()))
//! }
//!
//! async fn fresh() -> Subject {
//!     Subject::new(open()).with_another(|| Box::pin(async { open() }))
//! }
//!
//! failsafe_tests! {
//!     fresh,
//!     without: [
//!         failsafe_store_restored_older,
//!         failsafe_store_restored_forward,
//!         failsafe_store_restored_while_nobody_looked,
//!     ]
//! }
//! # }
//! ```
//!
//! The runtime's clock goes a hundred times faster than the store's, so that a case takes
//! seconds.

mod address;
mod ground;
mod history;
mod records;

use super::{Case, Subject};

/// The case of a name.
#[must_use]
pub fn case(name: &str) -> Option<&'static Case> {
    CASES.iter().find(|case| case.name == name)
}

/// All cases.
#[must_use]
pub fn cases() -> &'static [Case] {
    CASES
}

/// Runs a case as a test. Use [`failsafe_tests!`](crate::failsafe_tests).
#[doc(hidden)]
pub fn run<F>(name: &str, factory: impl FnOnce() -> F, without: &[&str])
where
    F: Future<Output = Subject>,
{
    super::run_one_of(CASES, name, factory, without);
}

/// Makes one test for each failsafe case; see [the module](crate::conformance::failsafe).
///
/// `failsafe_tests! { factory, without: [case, …] }`, as for
/// [`conformance_tests!`](crate::conformance_tests).
#[macro_export]
macro_rules! failsafe_tests {
    ($factory:path $(, without: [$($without:ident),* $(,)?])? $(,)?) => {
        mod failsafe_cells {
            #[allow(unused_imports)]
            use super::*;

            const WITHOUT: &[&str] = &[$($(stringify!($without)),*)?];

            $crate::__failsafe_cases!([$crate::__failsafe_test], $factory);
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __failsafe_test {
    ($factory:path; $($module:ident :: $name:ident)*) => {
        $(
            #[test]
            fn $name() {
                $crate::conformance::failsafe::run(stringify!($name), $factory, WITHOUT);
            }
        )*
    };
}

/// The list of cases: module and name.
#[doc(hidden)]
#[macro_export]
macro_rules! __failsafe_cases {
    ([$($with:tt)+] $(, $context:path)?) => {
        $($with)+! {
            $($context;)?
            records::failsafe_intent_lost
            records::failsafe_intent_all_vanish
            records::failsafe_intent_all_change
            records::failsafe_intent_all_become_unreadable
            records::failsafe_intent_all_go_back
            records::failsafe_reality_lost
            records::failsafe_reality_all_vanish
            records::failsafe_reality_of_another_uid
            records::failsafe_root_all_vanish
            records::failsafe_tombstones_in_bulk
            records::failsafe_budget
            records::failsafe_cold_start
            records::failsafe_event_and_beat_lost
            records::failsafe_claim_lost
            history::failsafe_anchor_lost
            history::failsafe_format_too_new
            history::failsafe_frozen
            history::failsafe_chain_lost
            history::failsafe_chain_of_another_history
            history::failsafe_store_restored_older
            history::failsafe_store_restored_forward
            history::failsafe_store_restored_while_nobody_looked
            history::failsafe_store_another_under_the_same_address
            history::failsafe_store_comes_back_empty
        }
    };
}

macro_rules! table {
    ($($module:ident :: $name:ident)*) => {
        &[$(Case {
            name: stringify!($name),
            threads: false,
            run: |subject| Box::pin($module::$name(subject)),
        }),*]
    };
}

static CASES: &[Case] = crate::__failsafe_cases!([table]);
