//! Every broken promise is caught, by the case that is about it.

use std::sync::Arc;

use platctrl_framework::conformance::{self, Verdict};

use super::broken::{Broken, Bug};
use super::{memory, modest};

fn verdict(case: &str, bug: Bug, exact: bool) -> Verdict {
    let case = conformance::case(case).expect("a case of this name");
    case.check(async || {
        let good = if exact {
            memory().await
        } else {
            modest().await
        };
        good.wrap(|store| Broken::wrap(Arc::clone(&store), bug))
    })
}

fn is_caught(bug: Bug, case: &str) {
    let verdict = verdict(case, bug, true);
    assert!(
        matches!(verdict, Verdict::Failed(_)),
        "{case} does not catch {bug:?}: {verdict:?}"
    );
    println!("{bug:?} by {case}: {verdict:.300?}");
    // It is the bug that fails, not what stands in front of the store.
    let good = conformance::case(case).expect("found above").check(memory);
    assert_eq!(good, Verdict::Passed, "{case} on the good store");
}

/// Caught as well where watches may merge, so not only because of what exact ones promise.
fn is_caught_when_merging(bug: Bug, case: &str) {
    let verdict = verdict(case, bug, false);
    assert!(
        matches!(verdict, Verdict::Failed(_)),
        "{case} does not catch {bug:?} in merging watches: {verdict:?}"
    );
}

macro_rules! bites {
    ($($name:ident: $bug:ident by $($case:ident),+;)*) => {
        mod conformance_bites {
            use super::*;

            $(
                #[test]
                fn $name() {
                    $(is_caught(Bug::$bug, stringify!($case));)+
                }
            )*
        }
    };
}

bites! {
    a_lost_event: LostEvent by a_watch_tells_every_change_to_come,
        listing_and_watching_from_there_misses_nothing;
    reordered_events: ReorderedEvents by an_exact_watch_tells_every_transaction_in_order;
    an_old_event_told_again: OldEventAgain by a_watch_tells_every_change_to_come;
    a_torn_transaction: TornTransaction by all_writes_of_a_transaction_share_one_revision,
        a_get_of_many_keys_is_never_torn;
    a_transaction_in_several_events: TornEvent by a_transaction_is_one_event;
    pages_of_several_revisions: UnpinnedPage by all_pages_show_one_revision_while_writes_go_on,
        a_pinned_list_shows_the_past;
    a_claim_compared_by_lease_alone: LeaseAba by a_claim_won_again_is_another_claim,
        no_two_holders_pass_the_claim_compare;
    unknown_told_as_unavailable: UnknownAsUnavailable by
        a_lost_answer_is_unknown_and_never_a_refusal,
        lost_answers_leave_the_history_linearizable;
    a_stale_get: StaleGet by a_read_shows_every_acknowledged_commit,
        commits_to_single_keys_are_linearizable;
    an_ignored_conflict: ConflictIgnored by a_transaction_happens_whole_or_not_at_all,
        concurrent_increments_lose_nothing, write_skew_is_impossible,
        transactions_over_several_keys_are_linearizable;
    a_conflict_that_names_another_compare: ConflictWithoutNames by
        a_conflict_names_the_compares_that_failed;
    a_revision_given_twice: RevisionTwice by revisions_only_grow,
        concurrent_commits_have_revisions_of_their_own;
    a_delete_nobody_hears_of: DeleteNotReported by a_delete_is_told;
    a_prefix_without_its_slash: PrefixWithoutSlash by a_list_shows_its_own_prefix_in_key_order,
        a_watch_hears_its_own_prefix_only, a_list_of_one_key_shows_that_key_only,
        a_watch_of_one_key_hears_that_key_only;
    a_put_that_keeps_the_old_lease: PutKeepsOldLease by a_put_without_lease_detaches_the_key;
    a_lease_that_ends_key_by_key: LeaseEndsKeyByKey by
        a_revoked_lease_deletes_its_keys_at_once_in_one_revision;
    a_lease_that_ends_early: LeaseEndsEarly by a_lease_lasts_its_time_and_no_less;
    a_lease_nothing_hangs_on: LeaseForgotten by an_ended_lease_deletes_its_keys_in_one_revision;
    a_dead_lease_taken: DeadLeaseTaken by a_put_under_an_ended_lease_is_refused_whole;
    quiet_watchers_forgotten: QuietWatchersForgotten by
        progress_reaches_watchers_of_quiet_prefixes;
    a_watch_from_the_future_that_stays_silent: FutureWatchSilent by
        a_watch_from_the_future_is_reset;
    a_compaction_nobody_hears_of: CompactionIgnored by a_watch_behind_the_history_is_reset,
        a_list_behind_the_history_is_compacted;
    an_identical_put_skipped: IdenticalPutSkipped by an_identical_put_is_a_change;
    a_creation_kept_through_a_delete: CreationKept by a_recreated_key_is_created_anew;
    a_key_written_twice_and_taken: LastWriteWins by a_key_written_twice_is_refused;
    compares_judged_before_the_lock: CompareBeforeLock by write_skew_is_impossible,
        concurrent_increments_lose_nothing,
        transactions_over_several_keys_are_linearizable;
    a_page_that_starts_at_the_last_key: PageStartsAtAfter by
        a_list_goes_on_behind_the_key_it_is_given;
    a_page_that_never_says_more: NeverMore by a_list_keeps_its_limit_and_says_if_there_is_more;
    a_limit_one_byte_lower_than_told: ByteTooFew by values_up_to_the_limit_are_taken;
    a_range_compare_that_always_holds: RangeCompareForgotten by
        the_range_compare_sees_newer_puts_in_its_range;
    a_dropped_commit_that_happens_in_part: DroppedCommitTorn by
        a_dropped_commit_is_whole_or_nothing;
    a_get_in_two_reads: TornGet by a_get_of_many_keys_is_never_torn;
    a_watch_that_is_always_reset: AlwaysReset by a_watch_tells_every_change_to_come;
    a_resumed_watch_that_skips_one: ResumeSkipsOne by
        a_watch_resumes_behind_the_revision_it_is_given;
}

#[test]
fn conformance_bites_without_exact_watches_too() {
    for (bug, case) in [
        (Bug::LostEvent, "a_watch_tells_every_change_to_come"),
        (Bug::ReorderedEvents, "a_watch_tells_every_change_to_come"),
        (Bug::OldEventAgain, "a_watch_tells_every_change_to_come"),
        (Bug::TornEvent, "a_transaction_is_one_event"),
        (Bug::DeleteNotReported, "a_delete_is_told"),
        (
            Bug::QuietWatchersForgotten,
            "progress_reaches_watchers_of_quiet_prefixes",
        ),
    ] {
        is_caught_when_merging(bug, case);
    }
}
