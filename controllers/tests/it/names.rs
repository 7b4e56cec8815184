//! Two pods of one name on two nodes: who is told that the other has it.

use platctrl_framework::client::DeleteOptions;
use platctrl_framework::model::{Object, ObjectKey, Resource as _, Tree};
use platctrl_kinds::{Grant, NameTaken, Pod, PodPhase, PodSpec};

use crate::node_lifecycle::Fleet;
use crate::world::{named, until};

fn key(node: &str, name: &str) -> ObjectKey {
    ObjectKey::on_node(Pod::GROUP, Pod::PLURAL, node, "default", name).unwrap()
}

impl Fleet {
    /// A pod that nobody keeps, written by who asks nobody whether the name is free.
    async fn pod_on(&self, node: &str, name: &str) -> Object<Pod> {
        let spec = PodSpec {
            node_name: Some(node.to_owned()),
            ..PodSpec::default()
        };
        let pod = Object::<Pod>::new(named(name), spec);
        self.client.create(&pod).await.unwrap()
    }

    async fn told(&self, node: &str, name: &str) -> Option<Grant> {
        let key = key(node, name).store_key(Tree::Grant);
        let records = self.client.store().get(&[key]).await.unwrap().records;
        let record = records.into_iter().flatten().next()?;
        Some(serde_json::from_slice(&record.value).unwrap())
    }

    async fn taken(&self, node: &str, name: &str) -> Option<NameTaken> {
        self.told(node, name).await?.name_taken
    }
}

fn by(pod: &Object<Pod>) -> Option<NameTaken> {
    Some(NameTaken {
        node: pod.spec.node_name.clone().unwrap(),
        uid: pod.metadata.uid.clone(),
    })
}

#[tokio::test(start_paused = true)]
async fn the_younger_of_two_pods_of_one_name_is_told_and_is_told_when_the_name_is_its_own() {
    let fleet = Fleet::of(3).await;
    let oldest = fleet.pod_on("n3", "hello").await;
    let older = fleet.pod_on("n1", "hello").await;
    let young = fleet.pod_on("n2", "hello").await;
    fleet.pod_on("n2", "other").await;
    for (node, pod) in [("n1", &older), ("n2", &young)] {
        until("it is told", || async {
            fleet.taken(node, "hello").await == by(&oldest)
        })
        .await;
        let told = fleet.told(node, "hello").await.unwrap();
        assert_eq!((told.uid, &*told.request), (pod.metadata.uid.clone(), ""));
    }
    assert_eq!(fleet.told("n3", "hello").await, None);
    assert_eq!(fleet.told("n2", "other").await, None);

    // One that is on its way out has the name until it is gone.
    let gone = key("n3", "hello");
    fleet
        .report(&gone, |status| status.phase = PodPhase::Running.into())
        .await;
    let options = DeleteOptions::default();
    fleet.client.delete(&gone, &options).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert_eq!(fleet.taken("n1", "hello").await, by(&oldest));
    fleet
        .report(&gone, |status| status.phase = PodPhase::Gone.into())
        .await;
    until("the next one has the name", || async {
        fleet.taken("n1", "hello").await.is_none() && fleet.taken("n2", "hello").await == by(&older)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_that_is_granted_leaves_what_is_said_of_the_name() {
    let fleet = Fleet::of(2).await;
    let older = fleet.pod_on("n1", "hello").await;
    fleet.pod_on("n2", "hello").await;
    until("it is told", || async {
        fleet.taken("n2", "hello").await == by(&older)
    })
    .await;
    // It ran before that was known.
    let young = key("n2", "hello");
    fleet
        .report(&young, |status| status.phase = PodPhase::Running.into())
        .await;
    fleet.ask(&young, Some("r1")).await;
    until("the grant", || async {
        fleet
            .told("n2", "hello")
            .await
            .is_some_and(|it| it.request == "r1")
    })
    .await;
    assert_eq!(fleet.taken("n2", "hello").await, by(&older));
    fleet.ask(&young, None).await;
    fleet
        .client
        .delete(&key("n1", "hello"), &DeleteOptions::default())
        .await
        .unwrap();
    until("the name is free", || async {
        fleet.taken("n2", "hello").await.is_none()
    })
    .await;
    let told = fleet.told("n2", "hello").await.unwrap();
    assert_eq!(told.request, "r1", "what was granted stays so");
}
