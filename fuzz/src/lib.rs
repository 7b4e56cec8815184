//! Everything that reads what others wrote, as functions of bytes.
//!
//! A [`Target`] is one parser, or one path into the program, with what has to hold for every
//! input: that it comes back, that it does not panic, and what it promises besides (what it
//! reads it can write; what it refused it did not do). The same functions are run three ways:
//!
//! - by the tests, over the kept inputs in `fuzz/seeds/<target>/` and a few mutations of each;
//! - by the program of this package, on mutations without end (`make soak`), with any compiler;
//! - by libFuzzer, led by coverage: `scripts/fuzz TARGET`, which needs a nightly compiler.
//!
//! An input that broke something once is kept among the seeds.

mod mutate;
mod seeds;
mod targets;

pub use mutate::Mutator;
pub use seeds::{directory, seeds};
pub use targets::{TARGETS, Target, find, run};
