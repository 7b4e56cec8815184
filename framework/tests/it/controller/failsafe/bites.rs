//! Each safeguard is what keeps the harm away: with it switched off, its test fails.

use std::panic::catch_unwind;

use super::super::trouble;
use super::*;

/// Runs a test with a safeguard switched off; it has to fail.
fn is_red(safeguard: Safeguard, test: fn()) {
    WITHOUT.set(Some(safeguard));
    let outcome = catch_unwind(test);
    WITHOUT.set(None);
    assert!(outcome.is_err(), "the test passes without {safeguard:?}");
}

macro_rules! bites {
    ($($name:ident: $safeguard:ident by $($test:path),+;)*) => {
        mod failsafe_bites {
            use super::*;

            $(
                #[test]
                fn $name() {
                    $(is_red(Safeguard::$safeguard, $test);)+
                }
            )*
        }

        /// What has a test above.
        const PROVEN: &[Safeguard] = &[$(Safeguard::$safeguard),*];
    };
}

bites! {
    vanished: Vanished by steps::failsafe_intent_all_vanish_in_one_revision,
        steps::failsafe_intent_all_vanish_in_a_gap,
        steps::failsafe_root_all_vanish_with_their_reports;
    changed: Changed by steps::failsafe_intent_all_change_at_once,
        steps::failsafe_intent_all_become_unreadable;
    went_back: WentBack by steps::failsafe_intent_all_go_back;
    reality_lost: RealityLost by
        steps::failsafe_reality_all_vanish_takes_nothing_away_until_it_is_reported_again;
    fewer: Fewer by budgets::failsafe_cold_start_finds_far_fewer_objects_than_there_were;
    budget: Budget by budgets::failsafe_budget_removals_that_nobody_declared_are_held_beyond_twenty;
    domains: Domains by budgets::failsafe_budget_of_each_failure_domain_is_its_own;
    budget_memory: BudgetMemory by budgets::failsafe_cold_start_counts_what_was_taken_away_before_it;
    ends: Ends by
        budgets::failsafe_tombstones_in_bulk_that_nobody_declared_are_held_beyond_the_budget;
    cold_start: ColdStart by budgets::failsafe_cold_start_takes_nothing_away_for_a_while;
    kind_held: KindHeld by
        steps::failsafe_kind_held_holds_what_its_controllers_would_take_away_and_nothing_else;
    anchor: Anchor by trouble::failsafe_root_an_answer_without_its_anchor_is_no_empty_fleet;
    identity: Identity by trouble::failsafe_root_another_store_or_an_older_one_is_not_taken_for_this;
    identity_memory: IdentityMemory by
        restored::failsafe_store_that_is_a_clone_under_another_identity_is_refused_after_a_restart;
    older_revision: OlderRevision by
        restored::failsafe_store_older_without_a_chain_is_held_and_can_be_accepted;
    chain_missing: ChainMissing by
        restored::failsafe_store_restored_with_newer_revisions_is_found_by_its_chain;
    chain_other: ChainOther by
        restored::failsafe_store_restored_and_gone_on_without_this_program_is_found_by_another_link;
    history_orders: HistoryOrders by
        restored::failsafe_store_restored_carries_out_no_tombstone_until_a_person_looked;
    history_steps: HistorySteps by
        restored::failsafe_store_restored_with_newer_revisions_is_found_by_its_chain;
    history_blind: HistoryBlind by
        restored::failsafe_store_restored_while_nobody_looked_stops_everything_until_a_person_did;
    history_links: HistoryLinks by
        restored::failsafe_store_restored_with_older_revisions_takes_nothing_until_a_person_looked;
    reset_once: ResetOnce by steps::failsafe_reset_counts_once_and_for_the_hold_that_was_seen;
    freeze: Freeze by frozen::frozen_nothing_is_changed_until_it_is_thawed;
    unknown_fields: UnknownFields by
        unknown::failsafe_selector_widened_by_an_unknown_field_is_left_until_it_is_known;
    format: Format by format::failsafe_format_that_is_too_new_changes_nothing_until_it_is_understood;
}

#[test]
fn every_safeguard_has_a_test_that_fails_without_it() {
    let mut proven = PROVEN.to_vec();
    proven.sort_unstable();
    assert_eq!(proven, Safeguard::ALL);
}
