//! The simulator's world as these controllers know it: machines that are nodes, and agents that
//! run pods. For tests of controllers that make pods; see
//! [`platctrl_framework::testing`].
//!
//! ```
//! use platctrl_controllers::{replication_controller, testing};
//! # use platctrl_framework::model::{Metadata, Object};
//! # use platctrl_kinds::ReplicationController;
//! # let spec = serde_json::json!({
//! #     "replicas": 2, "nodeSelector": "role=web",
//! #     "template": { "spec": { "launchables": { "web": { "location": "artifact:one" } } } },
//! # });
//! # let metadata = Metadata { namespace: Some("default".into()), ..Metadata::named("hello") };
//! # let hello = Object::<ReplicationController>::new(metadata, serde_json::from_value(spec).unwrap());
//!
//! testing::fleet(3)
//!     .controllers(|replica| {
//!         let controller = replication_controller::controller();
//!         replica.runtime().controller(controller).reap().elect_leader("controllers")
//!     })
//!     .scenario(move |world| {
//!         let hello = hello.clone();
//!         async move {
//!             world.create(&hello).await?;
//!             Ok(())
//!         }
//!     })
//!     .invariant("never more than two pods", |now| now.processes().count() <= 2)
//!     .run(1)
//!     .unwrap();
//! ```

pub mod failsafe;

use std::collections::BTreeMap;

use platctrl_framework::model::{Metadata, Object};
use platctrl_framework::testing::{Simulation, Worker};
use platctrl_kinds::{Node, NodeSpec, Pod};

/// So many machines, admitted as nodes with the label `role=web`, whose agents run pods.
pub fn fleet(nodes: usize) -> Simulation {
    Simulation::new()
        .nodes(nodes)
        .admitted(node)
        .worker(pods())
        // Pods are as good on one node as on the other, and however often they were restarted.
        .on_any_node()
        .ignoring("status.restarts")
        // At which revision something was counted is another one in each run.
        .ignoring("status.observedRevision")
        // What was decided on the way there is left in it.
        .ignoring("ledger")
}

/// A node as it is admitted, with the label `role=web`.
#[must_use]
pub fn node(name: &str) -> Object<Node> {
    let labels = BTreeMap::from([("role".to_owned(), "web".to_owned())]);
    let metadata = Metadata {
        labels,
        ..Metadata::named(name)
    };
    Object::new(metadata, NodeSpec::default())
}

/// Agents that run pods. A pod with a program whose location contains `broken` runs and never
/// becomes ready.
#[must_use]
pub fn pods() -> Worker<Pod> {
    Worker::<Pod>::new()
        .reports(|_, process, status| {
            process.node().clone_into(&mut status.detail.node_name);
            status.detail.restarts = process.restarts();
        })
        .fails(|pod| {
            let mut programs = pod.spec.launchables.values();
            programs.any(|program| program.location.contains("broken"))
        })
}
