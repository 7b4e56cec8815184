//! The framework from the outside.

mod conformance;
mod controller;
mod derive;
