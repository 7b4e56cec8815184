//! What daemon sets do to nodes that others may not use, and beside each other.

use std::collections::BTreeSet;

use platctrl_framework::model::ObjectKey;
use platctrl_kinds::Node;

use crate::daemon_set::set;
use crate::world::{World, until};

const THREE: [(&str, &str); 3] = [("n1", "web"), ("n2", "web"), ("n3", "web")];

impl World {
    /// On how many nodes a set has a pod.
    async fn nodes_with(&self, set: &str) -> usize {
        let pods = self.pods().await.into_iter();
        let own = pods.filter(|pod| pod.metadata.name.starts_with(&format!("{set}-")));
        let nodes: BTreeSet<_> = own.filter_map(|pod| pod.spec.node_name).collect();
        nodes.len()
    }
}

#[tokio::test(start_paused = true)]
async fn a_cordoned_node_gets_its_pod_of_a_daemon_set() {
    let world = World::with_nodes(&THREE).await;
    let key = ObjectKey::cluster("platctrl.dev", "nodes", "n2").unwrap();
    let mut node = world.client.get::<Node>(&key).await.unwrap();
    node.spec.unschedulable = true;
    world.client.update(&node).await.unwrap();
    world.client.create(&set("logs")).await.unwrap();
    until("each node has its pod", || async {
        world.nodes_with("logs").await == 3
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn sets_of_different_apps_share_their_nodes() {
    let world = World::with_nodes(&THREE).await;
    for name in ["logs", "metrics"] {
        world.client.create(&set(name)).await.unwrap();
        until("each node has its pod", || async {
            world.nodes_with(name).await == 3
        })
        .await;
    }
}
