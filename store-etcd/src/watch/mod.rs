//! All watches of a process on one stream.
//!
//! The *hub* is a task that owns the stream: it asks the server for the watches, resumes them
//! exactly where they were on another member when the stream breaks, and asks how far the store
//! is on behalf of those whose prefix is quiet. Each *watcher* turns the server's answers into
//! events, one for each transaction, and keeps what its reader has not taken in a *feed* of
//! bounded size; beyond that its watch is paused, and resumed once the reader has caught up.

mod feed;
mod hub;
mod session;
mod watcher;

pub(crate) use hub::{Handle, start};
