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
mod orders;
mod records;

use super::{Case, Subject};

/// The case of a name.
#[must_use]
pub fn case(name: &str) -> Option<&'static Case> {
    super::named(CASES, name)
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

            $crate::__failsafe_cases!(
                [$crate::__conformance_test],
                $crate::conformance::failsafe::run,
                $factory
            );
        }
    };
}

/// The list of cases, as that of [the cases about stores](crate::conformance).
#[doc(hidden)]
#[macro_export]
macro_rules! __failsafe_cases {
    ([$($with:tt)+] $(, $run:path, $factory:path)?) => {
        $($with)+! {
            $($run, $factory;)?
            false orders::failsafe_intent_create
            false orders::failsafe_intent_change
            false orders::failsafe_intent_delete
            false orders::failsafe_reality_of_another_spec
            false orders::failsafe_selector_empty_invalid_or_missing
            false orders::failsafe_selector_widened_by_an_unknown_field
            false records::failsafe_intent_lost
            false records::failsafe_intent_all_vanish
            false records::failsafe_intent_all_change
            false records::failsafe_intent_all_become_unreadable
            false records::failsafe_intent_all_go_back
            false records::failsafe_reality_lost
            false records::failsafe_reality_all_vanish
            false records::failsafe_reality_of_another_uid
            false records::failsafe_root_all_vanish
            false records::failsafe_tombstones_in_bulk
            false records::failsafe_budget
            false records::failsafe_cold_start
            false records::failsafe_event_and_beat_lost
            false records::failsafe_claim_lost
            false history::failsafe_anchor_lost
            false history::failsafe_format_too_new
            false history::failsafe_frozen
            false history::failsafe_chain_lost
            false history::failsafe_chain_of_another_history
            false history::failsafe_store_restored_older
            false history::failsafe_store_restored_forward
            false history::failsafe_store_restored_while_nobody_looked
            false history::failsafe_store_another_under_the_same_address
            false history::failsafe_store_comes_back_empty
        }
    };
}

static CASES: &[Case] = crate::__failsafe_cases!([table]);
