//! What a store must do, as tests that any backend can run.
//!
//! A backend is correct when it passes. Its crate enables the feature `conformance` of
//! `platctrl-framework` for its tests and names a factory that opens a fresh, empty store:
//!
//! ```
//! # mod tests {
//! use std::sync::Arc;
//!
//! use platctrl_framework::conformance::{Subject, conformance_tests};
//! use platctrl_framework::environment::Environment;
//! use platctrl_framework::store::MemoryStore;
//!
//! async fn fresh() -> Subject {
//!     Subject::new(Arc::new(MemoryStore::new(Environment::system())))
//! }
//!
//! // One test per case, in a module `conformance`. Cases that do not apply are named here;
//! // naming one that does apply, or leaving one out that does not, fails.
//! conformance_tests! {
//!     fresh,
//!     without: [
//!         a_watch_behind_the_history_is_reset,
//!         a_list_behind_the_history_is_compacted,
//!         a_lost_answer_is_unknown_and_never_a_refusal,
//!         lost_answers_leave_the_history_linearizable,
//!         acknowledged_commits_survive_reopening,
//!         revisions_go_on_after_reopening,
//!         a_watch_after_reopening_misses_nothing,
//!     ]
//! }
//! # }
//! ```
//!
//! Each case runs on a tokio runtime of its own: most on the current thread, so that a factory
//! may pause tokio's time, those with many clients on several threads.

/// The cases of a list of them.
macro_rules! table {
    ($($threads:literal $module:ident :: $name:ident)*) => {
        &[$(Case {
            name: stringify!($name),
            threads: $threads,
            run: |subject| Box::pin($module::$name(subject)),
        }),*]
    };
}

mod compares;
mod concurrency;
pub mod failsafe;
mod history;
mod kit;
mod leases;
mod limits;
mod reads;
mod reopening;
mod transactions;
mod watches;

use std::fmt;

use futures::future::LocalBoxFuture;

pub use crate::{conformance_tests, failsafe_tests};
pub use concurrency::{Recorded, record_while};
use kit::{Check, Stop};
pub use kit::{Restored, Subject};

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The store did what it must.
    Passed,
    /// The case is about something that this backend, or its factory, cannot do.
    DoesNotApply(String),
    /// The store did not do what it must; says what and where in the suite.
    Failed(String),
}

/// One thing that a store must do.
#[derive(Clone, Copy)]
pub struct Case {
    name: &'static str,
    threads: bool,
    run: fn(Subject) -> LocalBoxFuture<'static, Check>,
}

impl Case {
    /// Its name, a sentence with underscores.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Opens a store and runs the case on it.
    pub fn check<F>(&self, factory: impl FnOnce() -> F) -> Verdict
    where
        F: Future<Output = Subject>,
    {
        let mut builder = if self.threads {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(4);
            builder
        } else {
            tokio::runtime::Builder::new_current_thread()
        };
        let runtime = match builder.enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return Verdict::Failed(format!("no runtime: {error}")),
        };
        let outcome = runtime.block_on(async { (self.run)(factory().await).await });
        match outcome {
            Ok(()) => Verdict::Passed,
            Err(Stop::DoesNotApply(why)) => Verdict::DoesNotApply(why),
            Err(Stop::Failed { at, what }) => Verdict::Failed(format!("{what} ({at})")),
        }
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Case").field(&self.name).finish()
    }
}

/// The case of a name.
#[must_use]
pub fn case(name: &str) -> Option<&'static Case> {
    named(CASES, name)
}

fn named(cases: &'static [Case], name: &str) -> Option<&'static Case> {
    cases.iter().find(|case| case.name == name)
}

/// All cases.
#[must_use]
pub fn cases() -> &'static [Case] {
    CASES
}

/// Runs a case as a test. Use [`conformance_tests!`].
#[doc(hidden)]
pub fn run<F>(name: &str, factory: impl FnOnce() -> F, without: &[&str])
where
    F: Future<Output = Subject>,
{
    run_one_of(CASES, name, factory, without);
}

fn run_one_of<F>(cases: &'static [Case], name: &str, factory: impl FnOnce() -> F, without: &[&str])
where
    F: Future<Output = Subject>,
{
    let case = |name: &str| named(cases, name);
    let unknown: Vec<_> = without.iter().filter(|name| case(name).is_none()).collect();
    assert!(unknown.is_empty(), "`without` names no cases: {unknown:?}");
    let case = case(name).expect("the macro lists the cases there are");
    let left_out = without.contains(&name);
    match case.check(factory) {
        Verdict::Passed => assert!(
            !left_out,
            "{name} applies to this store and passes: remove it from `without`"
        ),
        Verdict::DoesNotApply(why) => {
            println!("conformance: {name} does not apply: {why}");
            assert!(
                left_out,
                "{name} does not apply ({why}): name it in `without`, or give the factory what \
                 it needs"
            );
        }
        Verdict::Failed(what) => panic!("{name}: {what}"),
    }
}

/// Makes one test for each conformance case; see [the module](crate::conformance).
///
/// `conformance_tests! { factory, without: [case, …] }`: the factory is a path to an
/// `async fn() -> Subject`; `without` names the cases that do not apply, and may be left out.
#[macro_export]
macro_rules! conformance_tests {
    ($factory:path $(, without: [$($without:ident),* $(,)?])? $(,)?) => {
        mod conformance {
            #[allow(unused_imports)]
            use super::*;

            const WITHOUT: &[&str] = &[$($(stringify!($without)),*)?];

            $crate::__conformance_cases!(
                [$crate::__conformance_test],
                $crate::conformance::run,
                $factory
            );
        }
    };
}

/// A test of each case in a list of them: what runs one, on what.
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_test {
    ($run:path, $factory:path; $($threads:literal $module:ident :: $name:ident)*) => {
        $(
            #[test]
            fn $name() {
                $run(stringify!($name), $factory, WITHOUT);
            }
        )*
    };
}

/// The list of cases: whether each needs several threads, its module, its name.
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_cases {
    ([$($with:tt)+] $(, $run:path, $factory:path)?) => {
        $($with)+! {
            $($run, $factory;)?
            false reads::a_get_answers_each_key_in_the_order_asked
            false reads::a_read_shows_every_acknowledged_commit
            false reads::a_get_of_too_many_keys_is_refused
            false reads::records_tell_when_they_came_and_last_changed
            false reads::a_list_shows_its_own_prefix_in_key_order
            false reads::a_list_of_one_key_shows_that_key_only
            false reads::a_list_goes_on_behind_the_key_it_is_given
            false reads::a_list_keeps_its_limit_and_says_if_there_is_more
            false reads::a_list_of_nothing_is_empty_and_not_an_error
            false reads::all_pages_show_one_revision_while_writes_go_on
            false reads::a_pinned_list_shows_the_past
            false reads::a_list_at_no_revision_of_this_history_is_not_the_newest
            false transactions::revisions_only_grow
            false transactions::a_transaction_happens_whole_or_not_at_all
            false transactions::a_conflict_names_the_compares_that_failed
            false transactions::all_writes_of_a_transaction_share_one_revision
            false transactions::an_identical_put_is_a_change
            false transactions::a_recreated_key_is_created_anew
            false transactions::deleting_an_absent_key_is_no_error
            false transactions::an_empty_transaction_tells_the_revision_it_was_judged_at
            false transactions::a_key_written_twice_is_refused
            false transactions::compares_are_judged_before_the_writes
            false transactions::a_dropped_commit_is_whole_or_nothing
            false transactions::a_lost_answer_is_unknown_and_never_a_refusal
            false compares::absent_holds_only_without_the_key
            false compares::a_revision_compare_holds_for_the_last_put_only
            false compares::the_range_compare_sees_newer_puts_in_its_range
            false compares::a_group_of_keys_is_compared_as_a_whole
            false compares::a_claim_holds_for_its_epoch_and_lease_only
            false compares::a_claim_is_lost_with_its_lease
            false compares::a_claim_won_again_is_another_claim
            false watches::a_watch_tells_every_change_to_come
            false watches::an_exact_watch_tells_every_transaction_in_order
            false watches::a_watch_resumes_behind_the_revision_it_is_given
            false watches::a_watch_from_before_everything_tells_all_or_is_reset
            false watches::a_watch_from_now_tells_nothing_old
            false watches::a_watch_from_the_future_is_reset
            false watches::a_transaction_is_one_event
            false watches::a_transaction_over_two_prefixes_reaches_both_watchers
            false watches::a_watch_hears_its_own_prefix_only
            false watches::a_watch_of_one_key_hears_that_key_only
            false watches::a_delete_is_told
            false watches::a_key_that_comes_back_is_told_with_its_new_creation
            false watches::progress_reaches_watchers_of_quiet_prefixes
            false watches::a_watch_behind_the_history_is_reset
            false watches::a_list_behind_the_history_is_compacted
            false watches::listing_and_watching_from_there_misses_nothing
            false watches::many_watchers_all_reach_the_last_state
            false watches::a_slow_watcher_holds_nobody_up
            false watches::dropped_watches_leave_the_others_alone
            false leases::a_lease_lasts_its_time_and_no_less
            false leases::an_ended_lease_deletes_its_keys_in_one_revision
            false leases::a_revoked_lease_deletes_its_keys_at_once_in_one_revision
            false leases::a_lease_kept_alive_goes_on
            false leases::an_ended_lease_stays_ended
            false leases::a_put_under_an_ended_lease_is_refused_whole
            false leases::a_put_moves_the_key_to_the_lease_it_names
            false leases::a_put_without_lease_detaches_the_key
            false leases::a_recreated_key_does_not_end_with_its_old_lease
            false leases::leases_end_independently
            false leases::a_lease_without_keys_ends_as_well
            false limits::writes_up_to_the_limit_are_taken
            false limits::compares_up_to_the_limit_are_taken
            false limits::operations_up_to_the_limit_are_taken
            false limits::values_up_to_the_limit_are_taken
            false limits::transactions_up_to_their_bytes_are_taken
            false limits::empty_and_binary_values_come_back_as_they_were
            false limits::every_valid_key_is_taken_as_it_is
            false limits::a_key_and_the_keys_below_it_are_apart
            true concurrency::a_get_of_many_keys_is_never_torn
            true concurrency::concurrent_commits_have_revisions_of_their_own
            true concurrency::concurrent_increments_lose_nothing
            true concurrency::write_skew_is_impossible
            true concurrency::no_two_holders_pass_the_claim_compare
            true concurrency::commits_to_single_keys_are_linearizable
            true concurrency::transactions_over_several_keys_are_linearizable
            true concurrency::lost_answers_leave_the_history_linearizable
            false reopening::acknowledged_commits_survive_reopening
            false reopening::revisions_go_on_after_reopening
            false reopening::a_watch_after_reopening_misses_nothing
        }
    };
}

static CASES: &[Case] = crate::__conformance_cases!([table]);
