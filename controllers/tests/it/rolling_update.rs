//! What a rolling update does to a fleet, and what it does not do.

use platctrl_framework::model::{ObjectKey, Propagation, Resource as _, Tree};
use platctrl_framework::store::{Store as _, Transaction};
use platctrl_kinds::{
    Amount, DisruptionBudget, DisruptionBudgetSpec, Pod, ReplicationController, RollingUpdate,
    RollingUpdateSpec, Span, line,
};

use crate::rolls::{roll, roll_key, version};
use crate::world::{World, until};

const NODES: [(&str, &str); 4] = [("n1", "web"), ("n2", "web"), ("n3", "web"), ("n4", "web")];

fn key(name: &str) -> ObjectKey {
    let (group, plural) = (ReplicationController::GROUP, ReplicationController::PLURAL);
    ObjectKey::namespaced(group, plural, "default", name).unwrap()
}

pub(crate) async fn world(artifact: &str) -> World {
    let world = World::with_nodes(&NODES).await;
    world
        .client
        .create(&version("hello-1", "one", 3))
        .await
        .unwrap();
    world
        .client
        .create(&version("hello-2", artifact, 0))
        .await
        .unwrap();
    until("all are ready", || async {
        let first = get(&world, "hello-1").await;
        first.status.detail.ready_replicas == 3
    })
    .await;
    world
}

pub(crate) async fn get(
    world: &World,
    name: &str,
) -> platctrl_framework::model::Object<ReplicationController> {
    world.client.get(&key(name)).await.unwrap()
}

pub(crate) async fn the_roll(world: &World) -> platctrl_framework::model::Object<RollingUpdate> {
    world.client.get(&roll_key()).await.unwrap()
}

pub(crate) async fn begin(world: &World, change: impl FnOnce(&mut RollingUpdateSpec)) {
    world.client.create(&roll(3, change)).await.unwrap();
}

pub(crate) async fn phase(world: &World, wanted: &str) {
    until(wanted, || async {
        the_roll(world).await.status.phase.as_str() == wanted
    })
    .await;
}

pub(crate) async fn change(world: &World, change: impl Fn(&mut RollingUpdateSpec)) {
    loop {
        let mut object = the_roll(world).await;
        change(&mut object.spec);
        match world.client.update(&object).await {
            Err(error) if error.is_conflict() => {}
            done => {
                done.unwrap();
                return;
            }
        }
    }
}

/// How many pods have the new artifact.
async fn moved(world: &World) -> usize {
    let pods = world.pods().await;
    let new = |pod: &&platctrl_framework::model::Object<Pod>| {
        pod.spec.launchables["web"].location != "artifact:one"
    };
    pods.iter().filter(new).count()
}

async fn wait_a_while() {
    tokio::time::sleep(std::time::Duration::from_secs(1200)).await;
}

#[tokio::test(start_paused = true)]
async fn pods_go_over_in_place_and_the_old_controller_stays_claimed() {
    let world = world("two").await;
    let names = |pods: Vec<platctrl_framework::model::Object<Pod>>| {
        let mut names: Vec<_> = pods
            .into_iter()
            .map(|pod| (pod.metadata.name, pod.metadata.uid, pod.spec.node_name))
            .collect();
        names.sort_by(|a, b| a.0.cmp(&b.0));
        names
    };
    let before = names(world.pods().await);
    begin(&world, |_| {}).await;
    phase(&world, "Complete").await;
    let pods = world.pods().await;
    let new = get(&world, "hello-2").await;
    for pod in &pods {
        assert_eq!(pod.metadata.controller().unwrap().uid, new.metadata.uid);
        assert_eq!(pod.metadata.labels["version"], "hello-2");
    }
    assert_eq!(names(pods), before, "the same pods on the same nodes");
    let old = get(&world, "hello-1").await;
    assert_eq!(
        (old.spec.replicas, old.spec.claimed_by.as_deref()),
        (0, Some("hello-2"))
    );
    assert_eq!((new.spec.replicas, new.spec.claimed_by), (3, None));
    let status = the_roll(&world).await.status;
    assert_eq!(status.observed_generation, Some(1));
    assert!(
        status.detail.next.contains("complete"),
        "{}",
        status.detail.next
    );
}

#[tokio::test(start_paused = true)]
async fn a_roll_of_a_version_that_does_not_work_stalls_and_says_so() {
    let world = world("broken").await;
    begin(&world, |spec| spec.progress_deadline = Span::from_secs(60)).await;
    phase(&world, "Paused").await;
    let roll = the_roll(&world).await;
    assert!(roll.spec.paused && roll.status.conditions.is_true("Stalled"));
    let why = &roll.status.conditions.get("Stalled").unwrap().message;
    assert!(
        why.contains("1m") && why.contains("2 of 3 healthy, 2 needed"),
        "{why}"
    );
    assert_eq!(moved(&world).await, 1, "it cost one pod");
    // Back again: what is broken goes first.
    change(&world, |spec| (spec.paused, spec.rollback) = (false, true)).await;
    phase(&world, "RolledBack").await;
    assert_eq!(moved(&world).await, 0);
    let (old, new) = (get(&world, "hello-1").await, get(&world, "hello-2").await);
    assert_eq!((old.spec.replicas, new.spec.replicas), (3, 0));
    assert_eq!(old.spec.claimed_by, None);
}

#[tokio::test(start_paused = true)]
async fn a_paused_roll_moves_nothing_and_goes_on_when_resumed() {
    let world = world("two").await;
    begin(&world, |spec| spec.paused = true).await;
    phase(&world, "Paused").await;
    wait_a_while().await;
    assert_eq!(moved(&world).await, 0);
    change(&world, |spec| spec.paused = false).await;
    phase(&world, "Complete").await;
}

#[tokio::test(start_paused = true)]
async fn a_canary_stays_until_somebody_decides() {
    let world = world("two").await;
    begin(&world, |spec| spec.keep_old = Amount::Count(2)).await;
    phase(&world, "Complete").await;
    assert_eq!(moved(&world).await, 1);
    let (old, new) = (get(&world, "hello-1").await, get(&world, "hello-2").await);
    assert_eq!((old.spec.replicas, new.spec.replicas), (2, 1));
    assert_eq!((old.spec.claimed_by, new.spec.claimed_by), (None, None));
}

#[tokio::test(start_paused = true)]
async fn a_disruption_budget_holds_a_roll_and_is_named() {
    let world = world("two").await;
    let budget = DisruptionBudgetSpec {
        pod_selector: "version".into(),
        minimum_healthy: Amount::Percent(100),
    };
    let metadata = roll(3, |_| {}).metadata;
    let budget = platctrl_framework::model::Object::<DisruptionBudget>::new(metadata, budget);
    world.client.create(&budget).await.unwrap();
    begin(&world, |spec| {
        spec.progress_deadline = Span::from_secs(6000);
    })
    .await;
    until("it says what it waits for", || async {
        let next = the_roll(&world).await.status.detail.next;
        next.contains("3 of 3 healthy, 3 needed") && next.contains("budget hello-2")
    })
    .await;
    until("the budget says so, too", || async {
        let key = budget.key().unwrap();
        let status = world
            .client
            .get::<DisruptionBudget>(&key)
            .await
            .unwrap()
            .status;
        let none = status.conditions.get("Disruptable").cloned();
        let told = "hello-1: 3 healthy, 3 needed: none may go until more are healthy";
        let none = none.is_some_and(|it| it.message == told);
        none && (
            status.detail.workloads,
            status.detail.healthy,
            status.detail.allowed,
        ) == (1, 3, 0)
    })
    .await;
    wait_a_while().await;
    assert_eq!(moved(&world).await, 0);
}

#[tokio::test(start_paused = true)]
async fn two_rolls_of_one_controller_do_not_overlap() {
    let world = world("two").await;
    begin(&world, |spec| spec.paused = true).await;
    phase(&world, "Paused").await;
    world
        .client
        .create(&version("hello-3", "three", 0))
        .await
        .unwrap();
    let mut second = roll(3, |spec| spec.to = "hello-3".into());
    second.metadata.name = "second".into();
    world.client.create(&second).await.unwrap();
    let key = second.key().unwrap();
    until("the second is refused", || async {
        let second = world.client.get::<RollingUpdate>(&key).await.unwrap();
        second
            .status
            .detail
            .next
            .contains("is claimed by rollingupdate/hello-2")
    })
    .await;
    change(&world, |spec| spec.paused = false).await;
    phase(&world, "Complete").await;
    assert_eq!(moved(&world).await, 3);
}

#[tokio::test(start_paused = true)]
async fn replicas_that_somebody_else_sets_are_contested() {
    let world = world("two").await;
    begin(&world, |spec| spec.paused = true).await;
    phase(&world, "Paused").await;
    let mut old = get(&world, "hello-1").await;
    old.spec.replicas = 4;
    world.client.update(&old).await.unwrap();
    until("it is contested", || async {
        let roll = the_roll(&world).await;
        let held = roll.status.conditions.get("Held").cloned();
        held.is_some_and(|held| {
            held.reason == "Contested" && held.message.contains("hello-1 was set to 4")
        })
    })
    .await;
    change(&world, |spec| spec.paused = false).await;
    wait_a_while().await;
    assert_eq!(moved(&world).await, 0);
}

/// More than the failsafes let go of what nobody ordered.
const MANY: u32 = 120;

#[tokio::test(start_paused = true)]
async fn a_process_that_takes_over_goes_on_with_a_roll_and_is_held_back_by_no_failsafe() {
    let mut world = World::with_nodes(&NODES).await;
    for (name, artifact, replicas) in [("hello-1", "one", MANY), ("hello-2", "two", 0)] {
        let mut version = version(name, artifact, replicas);
        version.spec.max_per_node = MANY;
        world.client.create(&version).await.unwrap();
    }
    until("all are ready", || async {
        let first = get(&world, "hello-1").await;
        first.status.detail.ready_replicas == MANY
    })
    .await;
    // What it was made for is long done.
    wait_a_while().await;
    world.client.create(&roll(MANY, |_| {})).await.unwrap();
    until("it has begun", || async { moved(&world).await > 0 }).await;
    let left = MANY as usize - moved(&world).await;
    assert!(
        left > 60,
        "{left} are left: more than are let go undeclared"
    );
    world.dies_and_begins_again().await;
    phase(&world, "Complete").await;
    assert_eq!(moved(&world).await, MANY as usize);
    let status = world.handle.status().unwrap();
    assert!(status.failsafe.holds.is_empty(), "{:?}", status.failsafe);
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_vanishes_half_way_stops_the_roll() {
    let world = world("two").await;
    begin(&world, |spec| spec.paused = true).await;
    phase(&world, "Paused").await;
    let record = key("hello-2").store_key(Tree::Intent);
    world
        .store
        .commit(Transaction::new().delete(record))
        .await
        .unwrap();
    change(&world, |spec| spec.paused = false).await;
    until("it says so", || async {
        let next = the_roll(&world).await.status.detail.next;
        next.contains("no replication controller hello-2")
    })
    .await;
    wait_a_while().await;
    assert_eq!((moved(&world).await, world.pods().await.len()), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn failsafe_rolling_update_lost() {
    let world = world("two").await;
    begin(&world, |spec| spec.paused = true).await;
    phase(&world, "Paused").await;
    let record = roll_key().store_key(Tree::Intent);
    world
        .store
        .commit(Transaction::new().delete(record))
        .await
        .unwrap();
    wait_a_while().await;
    assert_eq!((moved(&world).await, world.pods().await.len()), (0, 3));
    // The controllers stay as they are, and say who claims them.
    let old = get(&world, "hello-1").await;
    assert_eq!(
        (old.spec.replicas, old.spec.claimed_by.as_deref()),
        (3, Some("hello-2"))
    );
    // Another roll does not take them over.
    let mut second = roll(3, |_| {});
    second.metadata.name = "second".into();
    world.client.create(&second).await.unwrap();
    let key = second.key().unwrap();
    until("the second is refused", || async {
        let second = world.client.get::<RollingUpdate>(&key).await.unwrap();
        second.status.detail.next.contains("record was lost")
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn failsafe_rolling_update_delete() {
    let world = world("two").await;
    begin(&world, |spec| {
        spec.steps = serde_json::from_str(r#"[{"upTo": 1}]"#).unwrap();
    })
    .await;
    phase(&world, "AtGate").await;
    let mut options = platctrl_framework::client::DeleteOptions::default();
    options.propagation = Some(Propagation::Cascade);
    world.client.delete(&roll_key(), &options).await.unwrap();
    until("the roll is gone", || async {
        world
            .client
            .joined(&roll_key())
            .await
            .unwrap()
            .intent
            .is_none()
    })
    .await;
    wait_a_while().await;
    assert_eq!((moved(&world).await, world.pods().await.len()), (1, 3));
    let (old, new) = (get(&world, "hello-1").await, get(&world, "hello-2").await);
    assert_eq!((old.spec.replicas, new.spec.replicas), (2, 1));
    assert_eq!((old.spec.claimed_by, new.spec.claimed_by), (None, None));
}

#[tokio::test(start_paused = true)]
async fn failsafe_rolling_update_change() {
    let world = world("two").await;
    begin(&world, |spec| spec.delay = Span::from_secs(20)).await;
    until("one is moved", || async { moved(&world).await == 1 }).await;
    // Pause, delay and budget take effect at the next step.
    change(&world, |spec| spec.paused = true).await;
    wait_a_while().await;
    assert_eq!(moved(&world).await, 1);
    change(&world, |spec| {
        (spec.paused, spec.delay) = (false, Span::default());
    })
    .await;
    phase(&world, "Complete").await;
    assert_eq!(moved(&world).await, 3);
}

#[tokio::test(start_paused = true)]
async fn failsafe_ledger_lost() {
    let world = world("two").await;
    begin(&world, |spec| {
        spec.steps = serde_json::from_str(r#"[{"upTo": 1}]"#).unwrap();
    })
    .await;
    phase(&world, "AtGate").await;
    let ledger = roll_key().store_key(Tree::Ledger);
    for wrong in [None, Some("not a ledger")] {
        let before = world.store.peek(&ledger).unwrap().modified;
        let change = match wrong {
            None => Transaction::new().delete(ledger.clone()),
            Some(text) => Transaction::new().put(ledger.clone(), text),
        };
        world.store.commit(change).await.unwrap();
        until("it is made again", || async {
            let record = world.store.peek(&ledger);
            record.is_some_and(|it| it.modified > before && it.value.starts_with(b"{"))
        })
        .await;
        assert_eq!(moved(&world).await, 1, "before anything is taken away");
    }
    change(&world, |spec| spec.promoted = 1).await;
    phase(&world, "Complete").await;
}

#[tokio::test(start_paused = true)]
async fn more_replicas_on_the_way_reach_the_new_version() {
    let world = world("two").await;
    begin(&world, |spec| {
        spec.steps = serde_json::from_str(r#"[{"upTo": 1}]"#).unwrap();
    })
    .await;
    phase(&world, "AtGate").await;
    change(&world, |spec| spec.replicas = 4).await;
    until("there are four", || async { world.pods().await.len() == 4 }).await;
    change(&world, |spec| spec.promoted = 1).await;
    phase(&world, "Complete").await;
    assert_eq!(moved(&world).await, 4);
    change(&world, |_| {}).await;
}

/// Rolls hello from one version to the next, as `rollout start` makes them.
async fn roll_to(world: &World, roll_name: &str, from: &str, to: &str) {
    let mut next = roll(2, |spec| {
        (spec.from, spec.to) = (from.into(), to.into());
        spec.min_healthy_time = Span::from_millis(10);
    });
    next.metadata.name = roll_name.into();
    let labels = &mut next.metadata.labels;
    labels.insert(line::LINE.into(), "hello-1".into());
    world.client.create(&next).await.unwrap();
    let key = next.key().unwrap();
    until("it is complete", || async {
        let roll = world.client.get::<RollingUpdate>(&key).await.unwrap();
        roll.status.phase.as_str() == "Complete"
    })
    .await;
}

async fn names<K: platctrl_framework::model::Resource>(world: &World) -> Vec<String> {
    let kind = platctrl_framework::model::KindDefinition::of::<K>();
    let list = world.client.list(&kind, Some("default")).await.unwrap();
    let live = list.shown().filter(|it| !it.metadata.is_deleted());
    live.map(|it| it.metadata.name).collect()
}

#[tokio::test(start_paused = true)]
async fn as_many_versions_are_kept_as_the_newest_says_and_each_can_be_gone_back_to() {
    let world = World::with_nodes(&NODES).await;
    let of_line = |number: u32, replicas: u32| {
        let name = format!("hello-{number}");
        let mut version = version(&name, &name, replicas);
        let labels = &mut version.metadata.labels;
        labels.insert(line::LINE.into(), "hello-1".into());
        let notes = &mut version.metadata.annotations;
        notes.insert(line::REVISION.into(), number.to_string());
        version.spec.revision_history_limit = Some(2);
        version
    };
    world.client.create(&of_line(1, 2)).await.unwrap();
    for number in 2..=6 {
        world.client.create(&of_line(number, 0)).await.unwrap();
        let (from, to) = (format!("hello-{}", number - 1), format!("hello-{number}"));
        roll_to(&world, &to, &from, &to).await;
    }
    until("two earlier ones are left, and the first", || async {
        names::<ReplicationController>(&world).await == ["hello-1", "hello-4", "hello-5", "hello-6"]
    })
    .await;
    until("rolls that nobody needs are gone", || async {
        names::<RollingUpdate>(&world).await == ["hello-2", "hello-4", "hello-5", "hello-6"]
    })
    .await;
    wait_a_while().await;
    // The first says who claims it: an old manifest gives it no pods.
    let first = get(&world, "hello-1").await;
    assert_eq!(
        (first.spec.replicas, first.spec.claimed_by.as_deref()),
        (0, Some("hello-2"))
    );
    let artifacts = || async {
        let pods = world.pods().await;
        let all = pods
            .into_iter()
            .map(|pod| pod.spec.launchables["web"].location.clone());
        all.collect::<Vec<_>>()
    };
    for back in ["hello-4", "hello-1"] {
        let from = match back {
            "hello-4" => "hello-6",
            _ => "hello-4",
        };
        roll_to(&world, &format!("back-to-{back}"), from, back).await;
        assert_eq!(artifacts().await, vec![format!("artifact:{back}"); 2]);
    }
    // After that there is one too many again.
    wait_a_while().await;
    assert_eq!(names::<ReplicationController>(&world).await.len(), 3);
}
