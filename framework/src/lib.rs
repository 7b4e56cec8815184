//! Reconcile loops over a store you already run.
//!
//! An object is up to two records: its *intent* (metadata and spec, written by people and by the
//! controllers that own it) and its *reality* (status, written only by whoever does the work).
//! A controller closes the difference between the two. This crate holds the [`model`] (objects,
//! keys, kinds), the [`store`] trait with its memory backend, and what runs a controller.
//!
//! It builds without network, protoc or root, and knows nothing of pods: the kinds that
//! platctrl ships are one layer up, like yours.

// The derive macro names this crate by its public path, also from inside it.
#[allow(
    unused_extern_crates,
    reason = "used only where a kind is derived inside this crate"
)]
extern crate self as platctrl_framework;

mod backoff;
pub mod cache;
pub mod client;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod controller;
pub mod environment;
#[macro_use]
pub mod failpoint;
pub mod failsafe;
pub mod model;
pub mod observe;
mod queue;
pub mod root;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
