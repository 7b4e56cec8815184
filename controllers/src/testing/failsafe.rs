//! What replication controllers do when records are created, changed, ended, lost or wrong, as
//! cells that run on any store.
//!
//! A store's records and a clock are all that a cell needs: on a store that is really there take
//! [`Environment::hurried`], whose minutes are short.

mod ground;

use std::sync::Arc;

use platctrl_framework::environment::Environment;
use platctrl_framework::failsafe::Guard;
use platctrl_framework::model::{ConditionStatus, Propagation, Resource, Tree};
use platctrl_framework::store::Store;
use platctrl_kinds::{Node, Pod, ReplicationController, Strategy};
use serde_json::{Value, json};

use ground::{Check, Checking, Fleet, ensure, key_of, uids};

/// One cell of the matrix.
#[derive(Clone, Copy)]
pub struct Cell {
    name: &'static str,
    run: fn(Arc<dyn Store>, Environment) -> Checking,
}

impl std::fmt::Debug for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Cell").field(&self.name).finish()
    }
}

impl Cell {
    /// Its name: `failsafe_<record>_<case>`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Runs it on a fresh, empty store.
    ///
    /// # Errors
    /// What did not hold.
    pub async fn check(
        &self,
        store: Arc<dyn Store>,
        environment: Environment,
    ) -> Result<(), String> {
        let outcome = (self.run)(store, environment).await;
        outcome.map_err(|error| format!("{}: {error}", self.name))
    }
}

macro_rules! cells {
    ($($name:ident)*) => {
        /// All cells.
        #[must_use]
        pub fn cells() -> &'static [Cell] {
            &[$(Cell {
                name: stringify!($name),
                run: |store, environment| Box::pin($name(store, environment)),
            }),*]
        }
    };
}

cells! {
    failsafe_replication_controller_create_and_change_replicas
    failsafe_replication_controller_change_node_selector
    failsafe_replication_controller_replicas_missing_or_unreadable
    failsafe_replication_controller_selector_empty_invalid_or_missing
    failsafe_replication_controller_selector_widened_by_an_unknown_field
    failsafe_replication_controller_delete
    failsafe_replication_controller_lost
    failsafe_replication_controller_all_vanish
    failsafe_replication_controller_all_go_back
    failsafe_node_lost
    failsafe_node_all_vanish
    failsafe_pod_intent_all_vanish
    failsafe_pod_reality_all_vanish
    failsafe_pod_health_of_another_spec
}

async fn failsafe_replication_controller_create_and_change_replicas(
    store: Arc<dyn Store>,
    environment: Environment,
) -> Check {
    let fleet = Fleet::new(store, environment).await?;
    fleet.create("hello", 4).await?;
    for replicas in [4, 6, 2] {
        fleet
            .change("hello", |spec| spec.replicas = replicas)
            .await?;
        fleet.settled("hello", replicas).await?;
    }
    ensure(!fleet.holds_anything(), "a person's orders were held")
}

async fn failsafe_replication_controller_change_node_selector(
    store: Arc<dyn Store>,
    environment: Environment,
) -> Check {
    let fleet = Fleet::six_pods(store, environment).await?;
    let before = fleet.pods().await?;
    fleet
        .change("hello", |spec| spec.node_selector = "half=upper".into())
        .await?;
    fleet
        .until("it is told that some are astray", async || {
            let hello = fleet.controller("hello").await?;
            let eligible = hello.status.conditions.get("Eligible");
            Ok(eligible.is_some_and(|it| it.status == ConditionStatus::False))
        })
        .await?;
    fleet.keeps(&before).await?;
    let change = |spec: &mut platctrl_kinds::ReplicationControllerSpec| {
        spec.strategy = Strategy::Dynamic;
        spec.max_per_node = 2;
    };
    fleet.change("hello", change).await?;
    fleet
        .until("all are where they are wanted", async || {
            let pods = fleet.live().await?;
            let there = |node: &str| ["n4", "n5", "n6"].contains(&node);
            let nodes = pods.iter().map(|pod| pod.spec.node_name.as_deref());
            let moved = nodes.flatten().filter(|node| there(node)).count();
            Ok(pods.len() == 6 && moved == 6)
        })
        .await
}

/// The spec of an intent, as a person or a script wrote it in the place of the one before.
type Spec = serde_json::Map<String, Value>;

/// Writes another spec of hello over the one that is there, as an order.
async fn reorder(fleet: &Fleet, change: impl Fn(&mut Spec)) -> Check {
    let key = key_of("hello")?.store_key(Tree::Intent);
    fleet
        .rewrite(std::slice::from_ref(&key), |intent| {
            change(intent["spec"].as_object_mut()?);
            ground::ordered(intent)
        })
        .await
}

async fn failsafe_replication_controller_replicas_missing_or_unreadable(
    store: Arc<dyn Store>,
    environment: Environment,
) -> Check {
    let fleet = Fleet::six_pods(store, environment).await?;
    let before = fleet.pods().await?;
    for replicas in [None, Some(json!("six")), Some(json!(-1)), Some(Value::Null)] {
        reorder(&fleet, |spec| match &replicas {
            Some(replicas) => drop(spec.insert("replicas".into(), replicas.clone())),
            None => drop(spec.remove("replicas")),
        })
        .await?;
        fleet.is_set_aside().await?;
        fleet.keeps(&before).await?;
    }
    Ok(())
}

async fn failsafe_replication_controller_selector_empty_invalid_or_missing(
    store: Arc<dyn Store>,
    environment: Environment,
) -> Check {
    let fleet = Fleet::six_pods(store, environment).await?;
    let before = fleet.pods().await?;
    for selector in [json!(""), json!("role in (web"), Value::Null] {
        reorder(&fleet, |spec| {
            spec.insert("nodeSelector".into(), selector.clone());
            spec.insert("replicas".into(), json!(2));
        })
        .await?;
        fleet.keeps(&before).await?;
    }
    Ok(())
}

async fn failsafe_replication_controller_selector_widened_by_an_unknown_field(
    store: Arc<dyn Store>,
    environment: Environment,
) -> Check {
    let fleet = Fleet::six_pods(store, environment).await?;
    let before = fleet.pods().await?;
    reorder(&fleet, |spec| {
        spec.insert("nodeSelector".into(), json!("*"));
        spec.insert("nodeSelectorOnlyIn".into(), json!("east"));
        spec.insert("replicas".into(), json!(2));
    })
    .await?;
    fleet
        .until("it is told", async || {
            let hello = fleet.controller("hello").await?;
            let held = hello.status.conditions.get("Held");
            Ok(held.is_some_and(|it| it.reason == "Unsupported"))
        })
        .await?;
    fleet.keeps(&before).await?;
    reorder(&fleet, |spec| drop(spec.remove("nodeSelectorOnlyIn"))).await?;
    fleet.settled("hello", 2).await
}

async fn failsafe_replication_controller_delete(
    store: Arc<dyn Store>,
    environment: Environment,
) -> Check {
    let fleet = Fleet::six_pods(store, environment).await?;
    let before = fleet.pods().await?;
    fleet.delete("hello", Propagation::Orphan).await?;
    fleet.keeps(&before).await?;
    // Another one of the name takes them over, and takes them away when it is told to.
    fleet.create("hello", 6).await?;
    fleet.settled("hello", 6).await?;
    ensure(
        uids(&fleet.pods().await?) == uids(&before),
        "others were made",
    )?;
    fleet.delete("hello", Propagation::Cascade).await?;
    fleet
        .until("its pods are gone", async || {
            Ok(fleet.pods().await?.is_empty())
        })
        .await
}

async fn failsafe_replication_controller_lost(
    store: Arc<dyn Store>,
    environment: Environment,
) -> Check {
    let fleet = Fleet::six_pods(store, environment).await?;
    let before = fleet.pods().await?;
    let key = key_of("hello")?;
    fleet.lose(vec![key.store_key(Tree::Intent)]).await?;
    fleet.keeps(&before).await?;
    let joined = fleet.client.joined(&key).await?;
    ensure(joined.is_unexplained(), "its report went with it")
}

async fn failsafe_replication_controller_all_vanish(
    store: Arc<dyn Store>,
    environment: Environment,
) -> Check {
    let fleet = Fleet::six_controllers(store, environment).await?;
    let before = fleet.pods().await?;
    let prefix = ReplicationController::group_plural().prefix(Tree::Intent);
    fleet.lose(fleet.keys(&prefix).await?).await?;
    fleet.is_held(Guard::Vanished).await?;
    fleet.keeps(&before).await
}

async fn failsafe_replication_controller_all_go_back(
    store: Arc<dyn Store>,
    environment: Environment,
) -> Check {
    let fleet = Fleet::six_controllers(store, environment).await?;
    let prefix = ReplicationController::group_plural().prefix(Tree::Intent);
    // What was wanted before the last change.
    let old = fleet.records(&prefix).await?;
    for name in 0..6 {
        fleet
            .change(&format!("c{name}"), |spec| spec.replicas = 2)
            .await?;
    }
    fleet.all_reported(12).await?;
    let before = fleet.pods().await?;
    fleet.put_back(old).await?;
    fleet.is_held(Guard::WentBack).await?;
    fleet.keeps(&before).await
}

async fn nodes_are_lost(store: Arc<dyn Store>, environment: Environment, count: usize) -> Check {
    let fleet = Fleet::six_pods(store, environment).await?;
    let before = fleet.pods().await?;
    let prefix = Node::group_plural().prefix(Tree::Intent);
    let mut nodes = fleet.keys(&prefix).await?;
    nodes.truncate(count);
    fleet.lose(nodes).await?;
    fleet.keeps(&before).await
}

async fn failsafe_node_lost(store: Arc<dyn Store>, environment: Environment) -> Check {
    nodes_are_lost(store, environment, 1).await
}

async fn failsafe_node_all_vanish(store: Arc<dyn Store>, environment: Environment) -> Check {
    nodes_are_lost(store, environment, 6).await
}

async fn failsafe_pod_intent_all_vanish(store: Arc<dyn Store>, environment: Environment) -> Check {
    let fleet = Fleet::six_pods(store, environment).await?;
    let intents = Pod::group_plural().prefix(Tree::Intent);
    fleet.lose(fleet.keys(&intents).await?).await?;
    fleet.is_held(Guard::Vanished).await?;
    fleet.minutes(20).await;
    ensure(fleet.pods().await?.is_empty(), "other ones were made")?;
    fleet.all_reported(6).await
}

async fn failsafe_pod_reality_all_vanish(store: Arc<dyn Store>, environment: Environment) -> Check {
    let fleet = Fleet::six_pods(store, environment).await?;
    let before = fleet.pods().await?;
    let realities = Pod::group_plural().prefix(Tree::Reality);
    fleet.lose(fleet.keys(&realities).await?).await?;
    fleet.keeps(&before).await?;
    fleet.all_reported(6).await
}

async fn failsafe_pod_health_of_another_spec(
    store: Arc<dyn Store>,
    environment: Environment,
) -> Check {
    let fleet = Fleet::six_pods(store, environment).await?;
    let realities = Pod::group_plural().prefix(Tree::Reality);
    let keys = fleet.keys(&realities).await?;
    fleet.stop_agents();
    fleet
        .rewrite(&keys[..1], |reality| {
            let other = format!("sha256:{}", "0".repeat(64));
            reality["status"]["observedSpec"] = json!(other);
            Some(())
        })
        .await?;
    // The report is about what is not wanted any more: nobody counts it.
    fleet
        .until("it is not counted", async || {
            let hello = fleet.controller("hello").await?;
            Ok(hello.status.detail.ready_replicas == 5)
        })
        .await
}
