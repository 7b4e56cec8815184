//! What a node says of its next step, and what that waits for.

use platctrl_framework::model::{Condition, Metadata};
use platctrl_kinds::{ReplicationController, Strategy};

use super::*;
use crate::world::controller_spec;

impl Fleet {
    async fn message(&self, node: &str, kind: &str) -> (ConditionStatus, String) {
        let node = self.node(node).await;
        let said = node.status.conditions.get(kind);
        said.map_or((ConditionStatus::Unknown, String::new()), |it| {
            (it.status, it.message.clone())
        })
    }

    async fn is_told(&self, node: &str, kind: &str, is: ConditionStatus, part: &str) {
        until(&format!("{kind}: {part}"), || async {
            let (status, message) = self.message(node, kind).await;
            status == is && message.contains(part)
        })
        .await;
    }

    /// A controller of pods, which says that it waits.
    async fn controller_that_waits(&self, says: &str) -> Object<ReplicationController> {
        let mut spec = controller_spec(1);
        spec.strategy = Strategy::Dynamic;
        let owner = Object::<ReplicationController>::new(named("hello"), spec);
        self.client.create(&owner).await.unwrap();
        let key = owner.key().unwrap();
        let joined = self.client.joined(&key).await.unwrap();
        let owner: Object<ReplicationController> = joined.object().unwrap().typed().unwrap();
        let mut status = owner.status.clone();
        let waits = Condition::new("Progressing", ConditionStatus::True, "Waiting", says);
        status.conditions.set(waits, 1, jiff::Timestamp::now());
        let mut batch = platctrl_framework::client::Batch::new();
        batch
            .report_typed::<ReplicationController>(&joined, &status)
            .unwrap();
        self.client.commit(batch).await.unwrap();
        owner
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_says_what_the_controllers_of_its_pods_wait_for() {
    let fleet = Fleet::of(1).await;
    let waits = "waiting: 1 of 1 ready; web-1 goes when more than 1 pods are healthy; 1 are";
    let owner = fleet.controller_that_waits(waits).await;
    let pod = Object::<Pod>::new(
        Metadata {
            owner_references: vec![owner.owner_reference()],
            ..named("web-1")
        },
        PodSpec {
            node_name: Some("n1".into()),
            ..controller_spec(1).template.spec
        },
    );
    fleet.client.create(&pod).await.unwrap();
    let mut node = fleet.node("n1").await;
    (node.spec.drain, node.spec.unschedulable) = (true, true);
    fleet.client.update(&node).await.unwrap();
    let is = ConditionStatus::True;
    fleet
        .is_told(
            "n1",
            "Progressing",
            is,
            "1 go, each when its workload's ledger allows it: web-1",
        )
        .await;
    fleet
        .is_told("n1", "Progressing", is, &format!("rc/hello: {waits}"))
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_cordoned_silent_or_retired_says_what_comes_next() {
    let fleet = Fleet::of(5).await;
    let (yes, no, unknown) = (
        ConditionStatus::True,
        ConditionStatus::False,
        ConditionStatus::Unknown,
    );
    fleet.is_told("n1", "Available", yes, "it takes pods").await;
    let mut node = fleet.node("n1").await;
    node.spec.unschedulable = true;
    fleet.client.update(&node).await.unwrap();
    fleet
        .is_told("n1", "Available", no, "`platctrl node uncordon` ends that")
        .await;
    fleet.bare_pod("web-1").await;
    fleet.retire("n1").await;
    fleet
        .is_told(
            "n1",
            "Progressing",
            yes,
            "its agent is heard of and ends 1 pod itself",
        )
        .await;
    fleet.agents[1].abort();
    fleet
        .is_told("n2", "Alive", unknown, "after 300 s it is lost")
        .await;
    fleet
        .is_told(
            "n2",
            "Available",
            unknown,
            "no new pods until it is heard of",
        )
        .await;
    fleet.agents[0].abort();
    fleet
        .is_told(
            "n1",
            "Progressing",
            no,
            "no pod of it is left: delete its record",
        )
        .await;
}
