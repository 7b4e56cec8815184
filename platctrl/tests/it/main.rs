//! The programs as they are, end to end.

#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod rig;

mod across;
mod api;
mod bad_input;
mod bundle;
mod by_hand;
mod cells;
mod contexts;
mod copies;
mod deploy_rules;
mod doctor;
mod editing;
mod failsafe;
mod first_light;
mod fleet;
mod full_disk;
mod here;
mod insight;
mod kubectl;
mod machine;
mod machines;
mod names;
mod network;
mod next_step;
mod nodes;
mod on_consul;
mod operators;
mod policy;
mod roles;
mod rollout;
mod servers;
mod signing;
mod singletons;
mod store;
mod terminal;
mod undelete;
mod verbs;
mod wrong_roots;
