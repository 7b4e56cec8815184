//! The controllers that platctrl is made of, each usable alone.
//!
//! A controller here is a pure function from a view to actions (`plan`) and a thin shell that
//! reads the view, commits the actions and reports. They meet only in the store.

mod carry_out;
mod crew;
pub mod daemon_set;
pub mod disruption_budget;
mod end;
mod grants;
pub mod ledger;
pub mod node_lifecycle;
mod nodes;
pub mod placement;
pub mod replication_controller;
pub mod rolling_update;
mod template;
#[cfg(feature = "testing")]
pub mod testing;

pub use end::ended_with_owner;
pub use template::{ORPHAN_KIND, ORPHAN_OF, cached_pods};
