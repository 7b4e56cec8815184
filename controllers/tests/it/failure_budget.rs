//! How many pods of a new version may be seen to be unhealthy before its roll has failed.

use std::time::Duration;

use platctrl_framework::client::Batch;
use platctrl_framework::model::{Condition, ConditionStatus, Object};
use platctrl_kinds::{Amount, Pod, RollingUpdateSpec, Span, condition};

use crate::rolling_update::{get, phase, the_roll};
use crate::rolls::{roll, version};
use crate::world::{World, until};

const EIGHT: [(&str, &str); 8] = [
    ("n1", "web"),
    ("n2", "web"),
    ("n3", "web"),
    ("n4", "web"),
    ("n5", "web"),
    ("n6", "web"),
    ("n7", "web"),
    ("n8", "web"),
];

impl World {
    /// An agent looks at a pod and finds it unhealthy.
    async fn finds_unhealthy(&self, pod: &Object<Pod>) {
        let joined = self.client.joined(&pod.key().unwrap()).await.unwrap();
        let mut status = pod.status.clone();
        let intent = joined.intent.as_ref().unwrap();
        status.observed_spec = Some(intent.value.spec_digest());
        let generation = pod.metadata.generation;
        status.observed_generation = Some(generation);
        let no = ConditionStatus::False;
        let unhealthy = Condition::new(condition::READY, no, "Unhealthy", "it answers 500");
        let conditions = &mut status.conditions;
        conditions.set(unhealthy, generation, jiff::Timestamp::now());
        let mut batch = Batch::new();
        batch.report_typed::<Pod>(&joined, &status).unwrap();
        self.client.commit(batch).await.unwrap();
    }
}

/// A roll of eight pods to a version of which the test itself says how they are: three are moved.
async fn three_are_moved(budget: Amount) -> (World, Vec<Object<Pod>>) {
    let world = World::with_nodes(&EIGHT).await;
    let mut new = version("hello-2", "two", 0);
    let labels = &mut new.spec.template.metadata.labels;
    labels.insert("reported".into(), "by-the-test".into());
    for version in [version("hello-1", "one", 8), new] {
        world.client.create(&version).await.unwrap();
    }
    until("all are ready", || async {
        get(&world, "hello-1").await.status.detail.ready_replicas == 8
    })
    .await;
    let careful = |spec: &mut RollingUpdateSpec| {
        spec.failure_budget = Some(budget);
        spec.minimum_healthy = Some(Amount::Count(5));
        spec.progress_deadline = Span::from_secs(100_000);
    };
    world.client.create(&roll(8, careful)).await.unwrap();
    until("three are moved", || async {
        the_roll(&world).await.status.detail.updated == 3
    })
    .await;
    let pods = world.pods().await.into_iter();
    let moved = pods.filter(|pod| pod.metadata.labels.contains_key("reported"));
    let moved: Vec<_> = moved.collect();
    assert_eq!(moved.len(), 3);
    (world, moved)
}

#[tokio::test(start_paused = true)]
async fn a_roll_fails_by_one_more_than_its_budget_and_not_by_as_many_or_by_what_nobody_has_seen() {
    for (budget, tolerated) in [
        (Amount::Count(0), 0),
        (Amount::Count(1), 1),
        // Of eight, rounded down.
        (Amount::Percent(30), 2),
    ] {
        let (world, moved) = three_are_moved(budget).await;
        for pod in &moved[..tolerated] {
            world.finds_unhealthy(pod).await;
        }
        // Those of which nobody has said anything are no failures.
        tokio::time::sleep(Duration::from_secs(1_200)).await;
        phase(&world, "Rolling").await;
        assert!(!the_roll(&world).await.spec.paused, "{budget:?}");

        world.finds_unhealthy(&moved[tolerated]).await;
        phase(&world, "Paused").await;
        let roll = the_roll(&world).await;
        let stalled = roll.status.conditions.get("Stalled").unwrap();
        let told = format!(
            "{} of 3 moved pods are unhealthy, more than the failure budget of {tolerated}",
            tolerated + 1
        );
        assert!(roll.spec.paused && stalled.status == ConditionStatus::True);
        assert_eq!((&*stalled.reason, &*stalled.message), ("Failed", &*told));
        assert_eq!(roll.status.detail.updated, 3, "nothing more is moved");
    }
}
