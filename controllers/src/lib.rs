//! The controllers that platctrl is made of, each usable alone.
//!
//! A controller here is a pure function from a view to actions (`plan`) and a thin shell that
//! reads the view, commits the actions and reports. They meet only in the store.

pub mod ledger;
pub mod placement;
pub mod replication_controller;
pub mod rolling_update;
#[cfg(feature = "testing")]
pub mod testing;
