//! The framework from the outside.

mod derive;
