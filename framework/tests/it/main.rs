//! The framework from the outside.

mod conformance;
mod derive;
