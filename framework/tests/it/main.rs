//! The framework from the outside.

mod client;
mod conformance;
mod controller;
mod derive;
