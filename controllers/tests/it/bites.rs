//! Each safeguard is what keeps harm away from controllers: with it switched off, its test fails.

use std::panic::catch_unwind;

use platctrl_framework::failsafe::Safeguard;

use crate::failsafe;
use crate::world::WITHOUT;

/// Runs a test with a safeguard switched off; it has to fail.
fn is_red(safeguard: Safeguard, test: fn()) {
    WITHOUT.set(Some(safeguard));
    let outcome = catch_unwind(test);
    WITHOUT.set(None);
    assert!(outcome.is_err(), "the test passes without {safeguard:?}");
}

#[test]
fn without_the_guard_against_lost_intents_pods_are_made_twice() {
    is_red(
        Safeguard::Vanished,
        failsafe::failsafe_pod_intent_all_vanish,
    );
}

#[test]
fn without_the_guard_against_lost_intents_nobody_is_told_of_controllers() {
    let test = failsafe::failsafe_replication_controller_all_vanish;
    is_red(Safeguard::Vanished, test);
}

#[test]
fn without_the_guard_against_older_intents_controllers_obey_them() {
    let test = failsafe::failsafe_replication_controller_all_go_back;
    is_red(Safeguard::WentBack, test);
}

#[test]
fn without_the_guard_a_freeze_freezes_nothing() {
    let test = failsafe::failsafe_freeze_stops_every_controller_until_it_is_thawed;
    is_red(Safeguard::Freeze, test);
}
