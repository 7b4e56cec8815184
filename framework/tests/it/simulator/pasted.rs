//! A test as a failure printed it, where the bug is gone.

use platctrl_framework::testing::Simulation;

pub(super) fn simulation() -> Simulation {
    super::bites::in_two_steps(false)
}

// ANCHOR: pasted
#[test]
fn simulation_seed_1_lose_ack_2() {
    simulation().replay("seed=1 lose-ack@2").unwrap();
}
// ANCHOR_END: pasted
