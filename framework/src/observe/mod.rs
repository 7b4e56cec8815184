//! Seeing inside: metrics, explanations and the state of a runtime.
//!
//! - [`Metrics`] are what a scrape of `/metrics` gets, of any number of runtimes.
//! - [`Explanation`] says why one object is where it is: its last runs with their causes, and what
//!   the next one waits for. See [`RuntimeHandle::explain`](crate::controller::RuntimeHandle).
//! - [`StatusTree`] shows all of a runtime at once.
//! - A span `reconcile` is around each run, with `controller`, `key`, `id`, `causes` and, at its
//!   end, `outcome`. Without a subscriber that wants it, nothing of it is made.
//!
//! What is counted is counted under locks that a run takes anyway or that hardly anybody shares;
//! everything else is done by who looks.

mod convergence;
mod explain;
mod histogram;
mod journal;
mod metrics;
mod runs;
mod store;
mod tree;

pub(crate) use convergence::{Convergence, Seen};
pub(crate) use explain::shown;
pub use explain::{Explanation, KeyState, KeyStory, ObjectFacts, Run};
pub(crate) use journal::{Finished, Journal};
pub use metrics::Metrics;
pub(crate) use metrics::{ControllerFacts, RuntimeFacts, SourceFacts};
pub use prometheus_client::registry::Registry;
pub use runs::Ending;
pub use store::MeteredStore;
pub use tree::{Standing, StatusTree};
