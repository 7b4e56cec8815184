//! The simulator: it is deterministic, finds what is planted, and finds nothing where nothing is.

mod bites;
mod book;
mod pasted;
mod report;
mod toys;
mod world;

use platctrl_framework::testing::Simulation;

/// The simulation that printed tests refer to.
pub(crate) fn simulation() -> Simulation {
    toys::sound()
}
