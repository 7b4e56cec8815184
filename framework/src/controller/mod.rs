//! Controllers: what runs a reconcile, and what it gets without asking.
//!
//! A [`Controller`] has a function that is called for each object of its kind whenever something
//! about it changes. The function reads its [`Context`]'s view, which shows all kinds at one
//! moment, commits its changes together, reports, and says by an [`Action`] when to look again.
//! A [`Runtime`] mirrors the store and runs controllers:
//!
//! ```
//! use std::sync::Arc;
//!
//! use platctrl_framework::controller::{Action, Context, Controller, ReconcileError, Runtime};
//! use platctrl_framework::model::{Metadata, Object, Resource};
//! # use platctrl_framework::{environment::Environment, model::identity, store::{MemoryStore, Store}};
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//!
//! /// So many pages with one text.
//! #[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
//! #[resource(group = "example.dev", version = "v1", kind = "Site")]
//! pub struct SiteSpec { pages: usize, text: String }
//!
//! /// A page of a site.
//! #[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
//! #[resource(group = "example.dev", version = "v1", kind = "Page")]
//! pub struct PageSpec { text: String }
//!
//! async fn reconcile(site: Arc<Object<Site>>, ctx: Context) -> Result<Action, ReconcileError> {
//!     let pages = ctx.view().list::<Page>().owned_by(&site.metadata.uid).to_vec();
//!     let mut changes = ctx.changes();
//!     for _ in pages.len()..site.spec.pages {
//!         let name = format!("{}-{}", site.metadata.name, ctx.environment().suffix(10));
//!         let mut metadata = Metadata { namespace: site.metadata.namespace.clone(), ..Metadata::named(name) };
//!         metadata.owner_references.push(site.owner_reference());
//!         changes.create(&Object::<Page>::new(metadata, PageSpec { text: site.spec.text.clone() }))?;
//!     }
//!     changes.commit().await?;
//!     Ok(Action::await_change())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let environment = Environment::system();
//! # let store = Arc::new(MemoryStore::new(environment.clone()));
//! # identity::initialise(&*store, &environment).await?;
//! # let client = platctrl_framework::client::Client::new(store.clone(), environment.clone(), "doc");
//! # let metadata = Metadata { namespace: Some("default".into()), ..Metadata::named("a") };
//! # client.create(&Object::<Site>::new(metadata, SiteSpec { pages: 2, text: "hello".into() })).await?;
//! # let seen = store.clone();
//! # let done = async move { while seen.dump().iter().filter(|r| r.key.as_str().contains("/pages/")).count() < 2 { tokio::task::yield_now().await } };
//! Runtime::new(store, environment)
//!     .controller(Controller::new("sites", reconcile).owns::<Page>())
//!     .elect_leader("sites")
//!     .shutdown_on(done) // in a program: a signal
//!     .run()
//!     .await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What holds for every controller
//!
//! - One object is worked on by one run at a time, and no run sees a view older than what the run
//!   before it wrote, or than the moment this process won its claim.
//! - A commit happens whole or not at all, under compares on everything it was decided on. It
//!   compares and rewrites the object's own reality, so that of two attempts at one decision one
//!   happens, however late the other lands, and compares the claim, so that a process that lost
//!   it writes nothing.
//! - An object with a tombstone goes to [`on_delete`](Controller::on_delete), one whose intent is
//!   missing to [`on_absent`](Controller::on_absent): the reconcile only sees what is wanted.
//! - Before the first effect outside of the store comes [`Context::claim`].
//! - Errors are repeated later and later, conflicts at once on a newer view, panics and runs that
//!   take too long are errors of their object alone.

mod action;
mod assign;
mod budget;
mod builder;
mod claim;
mod context;
mod engine;
mod enrol;
mod error;
mod event;
mod lead;
mod look;
mod narrow;
mod outcome;
mod portrait;
mod posts;
mod rare;
mod reaper;
mod running;
mod runtime;
mod settle;
mod sharding;
mod signal;
mod status;
mod unrest;
mod unsupported;

pub use action::Action;
pub use builder::{Absent, Controller, Trigger};
pub use claim::Fence;
pub use context::{Abreast, Cause, Changes, Claimed, Context};
pub use error::{CommitError, ErrorClass, ReconcileError};
pub use event::EventRecorder;
pub use runtime::{RunError, Runtime, RuntimeHandle};
pub use signal::end_signal;
pub use status::{ControllerStatus, FailingKey, ParkedKey, RuntimeStatus, ShardStatus};
pub use unrest::RestlessKey;
