//! Pods are spread evenly also by processes that die in the middle of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use platctrl_framework::model::Object;
use platctrl_kinds::Node;

use crate::world::{World, until};

const NODES: [&str; 12] = [
    "n01", "n02", "n03", "n04", "n05", "n06", "n07", "n08", "n09", "n10", "n11", "n12",
];
/// More than fit into two commits.
const PODS: u32 = 360;

impl World {
    /// How many pods each node and each zone has.
    async fn counts(&self) -> (BTreeMap<String, usize>, BTreeMap<usize, usize>) {
        let (mut nodes, mut zones) = (BTreeMap::new(), BTreeMap::new());
        for node in self.nodes_of_pods().await {
            let place = NODES.iter().position(|name| *name == node).unwrap();
            *zones.entry(place / 4).or_insert(0) += 1;
            *nodes.entry(node).or_insert(0) += 1;
        }
        (nodes, zones)
    }
}

#[tokio::test(start_paused = true)]
async fn a_scale_up_that_is_cut_off_is_spread_over_zones_and_evened_out_by_who_takes_over() {
    let mut world = World::with_nodes(&NODES.map(|name| (name, "web"))).await;
    for (place, name) in NODES.iter().enumerate() {
        let zone = format!("z{}", place / 4);
        let set = |node: &mut Object<Node>| {
            node.metadata.labels.insert("zone".into(), zone);
        };
        world.change_node(name, set).await;
    }
    // So that somebody can see how far it is.
    world.store.faults().set_latency(Duration::from_secs(1));
    world
        .create(PODS, |spec| {
            spec.max_per_node = 60;
            spec.spread_over = Some("zone".into());
        })
        .await;
    let there = |world: &World| {
        let records = world.store.dump().into_iter();
        let pods = records.filter(|it| it.key.as_str().starts_with("o/intent/platctrl.dev/pods/"));
        let nodes = pods.filter_map(|it| {
            // Each node's anchor is no pod.
            let [node, _, _] = it.key.as_str().split('/').skip(4).collect::<Vec<_>>()[..] else {
                return None;
            };
            Some(node.to_owned())
        });
        nodes.collect::<Vec<String>>()
    };
    until("some are there", || async { !there(&world).is_empty() }).await;
    world.dies_and_begins_again().await;
    let nodes = there(&world);
    assert!(nodes.len() < PODS as usize, "it was cut off");
    let zone = |node: &String| NODES.iter().position(|name| name == node).unwrap() / 4;
    let zones: BTreeSet<usize> = nodes.iter().map(zone).collect();
    assert_eq!(zones.len(), 3, "{nodes:?}");
    world.store.faults().set_latency(Duration::ZERO);
    world.settled(PODS, PODS).await;
    let (nodes, zones) = world.counts().await;
    assert!(nodes.values().all(|pods| *pods == 30), "{nodes:?}");
    assert!(zones.values().all(|pods| *pods == 120), "{zones:?}");
}
