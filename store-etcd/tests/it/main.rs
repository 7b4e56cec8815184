//! The store on real servers.

mod certificates;
mod conformance;
mod proxy;
mod server;
