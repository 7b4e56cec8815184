//! Failsafes: the second line, for when the records themselves are wrong.
//!
//! That absence is never an order is the first line. Failsafes watch for what no order explains:
//! many objects that vanish, change or go back in one step, a store that shows another history,
//! more removals in a while than the budget has. They hold, say so, and wait for a person; the
//! rest goes on. They live in the runtime, so that every controller has them.
//!
//! - A *gate* in front of the view compares each step with what was known. A step that would take
//!   a mass away is not believed: the last good intents stay in view ([`Guard::Vanished`],
//!   [`Guard::Changed`], [`Guard::WentBack`]).
//! - The *chain* tells another history ([`Guard::History`]): nothing at all is taken away then.
//! - A *budget* for each kind and failure domain counts what controllers end, replace and
//!   restart. What follows from an order is not counted: from a newer generation of the owner's
//!   own spec, or from a tombstone.
//! - A process that has just begun takes nothing away that nobody declared before it has seen
//!   everything and waited a while, and compares with what it remembers ([`Baseline`]).
//! - [`freeze`] stops everybody.
//!
//! Holds are listed in the status of the program's [`Failsafe`] object, whose spec takes resets.
//! Decisions are pure functions in the modules `step`, `budget`, `chain` and `effect`.

mod baseline;
mod budget;
mod chain;
mod control;
mod effect;
mod episode;
mod gate;
mod guards;
mod history;
mod limits;
mod record;
mod setup;
mod share;
mod step;
mod switch;
mod warden;

pub use baseline::Baseline;
pub use chain::Link;
pub use control::{Freeze, FreezeEntry, expect_changes, freeze, frozen, ring, thaw};
pub use guards::FailsafeView;
pub(crate) use guards::{Ask, Held, Safeguards};
pub use limits::Limits;
pub use record::{Failsafe, FailsafeSpec, FailsafeStatus, Guard, Hold, Recall, Reset};
pub use setup::Failsafes;
pub use share::{Losses, LostShare};
#[cfg(feature = "conformance")]
pub use switch::Safeguard;
#[cfg(not(feature = "conformance"))]
pub(crate) use switch::Safeguard;
pub(crate) use warden::Warden;
