//! The framework from the outside.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod client;
mod conformance;
mod controller;
mod derive;
mod kinds;
mod root;
mod simulator;
