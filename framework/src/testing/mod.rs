//! The simulator: anybody's controllers, on virtual time, in a world that goes wrong.
//!
//! A [`Simulation`] is a world (a store with its whole history, machines, agents that run
//! processes as a table), any number of replicas of the controllers under test, and a scenario:
//! what people do. [`Simulation::exhaustive`] runs it once undisturbed, and then once for each
//! write and each thing that can go wrong at it; [`Simulation::random`] draws several at once.
//! Each run takes milliseconds and no virtual time that matters, and is the same each time.
//!
//! ```
//! use std::sync::Arc;
//!
//! use platctrl_framework::controller::{Action, Context, Controller, ReconcileError};
//! use platctrl_framework::model::{Metadata, Object, ObjectKey, Resource};
//! use platctrl_framework::testing::{Simulation, Worker};
//! # use schemars::JsonSchema;
//! # use serde::{Deserialize, Serialize};
//! #
//! # /// So many pages with one text.
//! # #[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
//! # #[resource(group = "example.dev", version = "v1", kind = "Site")]
//! # pub struct SiteSpec { pages: usize }
//! #
//! # /// A page of a site.
//! # #[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
//! # #[resource(group = "example.dev", version = "v1", kind = "Page")]
//! # pub struct PageSpec {}
//! #
//! # fn named(name: &str) -> Metadata {
//! #     Metadata { namespace: Some("default".into()), ..Metadata::named(name) }
//! # }
//!
//! async fn reconcile(site: Arc<Object<Site>>, ctx: Context) -> Result<Action, ReconcileError> {
//!     let pages = ctx.view().list::<Page>().owned_by(&site.metadata.uid).to_vec();
//!     let mut changes = ctx.changes();
//!     for _ in pages.len()..site.spec.pages {
//!         let mut page = named(&format!("page-{}", ctx.environment().suffix(10)));
//!         page.owner_references.push(site.owner_reference());
//!         changes.create(&Object::<Page>::new(page, PageSpec {}))?;
//!     }
//!     changes.commit().await?;
//!     Ok(Action::await_change())
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let key = ObjectKey::namespaced("example.dev", "sites", "default", "a")?;
//! Simulation::new()
//!     .worker(Worker::<Page>::new()) // each page is a process
//!     .replicas(2)
//!     .controllers(|replica| {
//!         let sites = Controller::new("sites", reconcile).owns::<Page>();
//!         replica.runtime().controller(sites).elect_leader("sites")
//!     })
//!     .scenario(move |world| {
//!         let key = key.clone();
//!         async move {
//!             world.create(&Object::<Site>::new(named("a"), SiteSpec { pages: 1 })).await?;
//!             world.settled().await?;
//!             world.change::<Site>(&key, |site| site.spec.pages = 2).await?;
//!             Ok(())
//!         }
//!     })
//!     .invariant("never more than two pages", |now| now.processes().count() <= 2)
//!     .exhaustive()?;
//! # Ok(())
//! # }
//! ```
//!
//! # What is checked without asking
//!
//! - Every run comes to rest, and to the end of the undisturbed run. Names and uids that are drawn
//!   are compared by what they name; times, generations and revisions not at all.
//! - It stays there: the controllers begin again, and have nothing to write.
//! - No work is done twice: no more objects are created or ended than undisturbed.
//! - What is reached step by step is what the last step alone gives.
//! - Nothing is left behind: no process without an object, no object of an owner that is gone.
//! - No reconcile panics, no runtime ends, and one seed gives one run.
//!
//! [`Simulation::invariant`] adds what must hold at every moment.
//!
//! # What it needs
//!
//! Whatever the controllers do has to follow from what they are given: the time and random numbers
//! of their [`Environment`](crate::environment::Environment), tokio's timers, and the store. Two
//! things are easily overlooked: `tokio::select!` takes its branches in random order unless it is
//! `biased`, and a `HashMap` has another order in each process. [`Problem::Chance`] finds both.
//! There is no network in a simulation; what a controller talks to is a fake made by
//! [`Simulation::outside`].

mod core;
mod dice;
mod explore;
mod failure;
mod fault;
mod normal;
mod process;
mod run;
mod simulation;
mod store;
mod time;
mod trace;
mod worker;
mod world;

pub use failure::{Failure, Problem};
pub use fault::{Fault, FaultKind, ParseScheduleError, Schedule};
pub use process::{Moment, Process, ProcessPhase, Verdict};
pub use simulation::{Explored, ReplayError, Run, Simulation};
pub use worker::Worker;
pub use world::{Replica, ScenarioError, World};
