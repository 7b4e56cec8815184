//! What replication controllers do when the records themselves are wrong: nothing is taken away.

use std::time::Duration;

use platctrl_framework::failsafe::{Guard, freeze, thaw};
use platctrl_framework::model::{ConditionStatus, Object, ObjectKey, Propagation, Resource, Tree};
use platctrl_framework::store::{Key, Store, Transaction};
use platctrl_kinds::{DaemonSet, Pod, ReplicationController};
use serde_json::{Value, json};

use crate::world::{World, controller_key, controller_spec, named, until};

const SIX: [(&str, &str); 6] = [
    ("n1", "web"),
    ("n2", "web"),
    ("n3", "web"),
    ("n4", "web"),
    ("n5", "web"),
    ("n6", "web"),
];

fn key_of(name: &str) -> ObjectKey {
    let kind = ReplicationController::group_plural();
    ObjectKey::namespaced(&kind.group, &kind.plural, "default", name).unwrap()
}

/// One controller with six pods, one on each node, settled for some minutes.
async fn six_pods() -> World {
    let world = World::with_nodes(&SIX).await;
    world.create(6, |_| {}).await;
    world.settled(6, 6).await;
    minutes(2).await;
    world
}

/// Six controllers with a pod each.
async fn six_controllers() -> World {
    let world = World::with_nodes(&SIX).await;
    for name in 0..6 {
        let metadata = named(&format!("c{name}"));
        let object = Object::<ReplicationController>::new(metadata, controller_spec(2));
        world.client.create(&object).await.unwrap();
    }
    until("all have their pods", || async {
        world.pods().await.len() == 12 && world.all_reported(12)
    })
    .await;
    minutes(2).await;
    world
}

async fn minutes(count: u64) {
    tokio::time::sleep(Duration::from_secs(60 * count)).await;
}

impl World {
    fn all_reported(&self, pods: usize) -> bool {
        let prefix = Pod::group_plural().prefix(Tree::Reality);
        let records = self.store.dump();
        records.iter().filter(|it| it.key.is_under(&prefix)).count() == pods
    }

    fn keys(&self, prefix: &str) -> Vec<Key> {
        let records = self.store.dump().into_iter().map(|record| record.key);
        let under = records.filter(|key| key.as_str().starts_with(prefix));
        under
            .filter(|key| !key.as_str().ends_with(".anchor"))
            .collect()
    }

    async fn lose(&self, keys: Vec<Key>) {
        assert!(!keys.is_empty());
        let lose = keys
            .into_iter()
            .fold(Transaction::new(), Transaction::delete);
        self.store.commit(lose).await.unwrap();
    }

    /// Rewrites a record as a script might.
    async fn rewrite(&self, keys: &[Key], change: impl Fn(&mut Value)) {
        let mut transaction = Transaction::new();
        for key in keys {
            let record = self.store.peek(key).unwrap();
            let mut value = serde_json::from_slice(&record.value).unwrap();
            change(&mut value);
            transaction = transaction.put(key.clone(), value.to_string());
        }
        self.store.commit(transaction).await.unwrap();
    }

    fn holds(&self, guard: Guard) -> bool {
        let status = self.handle.status();
        status.is_some_and(|status| status.failsafe.holds.iter().any(|it| it.guard == guard))
    }

    async fn is_held(&self, guard: Guard) {
        until("it is held", || async { self.holds(guard) }).await;
    }

    /// The same pods, none of them to end, for long.
    async fn keeps(&self, before: &[String]) {
        minutes(20).await;
        let pods = self.pods().await;
        assert!(pods.iter().all(|pod| !pod.metadata.is_deleted()));
        assert_eq!(uids(&pods), before);
    }
}

fn uids(pods: &[Object<Pod>]) -> Vec<String> {
    let mut uids: Vec<String> = pods
        .iter()
        .map(|pod| pod.metadata.uid.to_string())
        .collect();
    uids.sort();
    uids
}

#[tokio::test(start_paused = true)]
async fn failsafe_replication_controller_lost() {
    let world = six_pods().await;
    let before = uids(&world.pods().await);
    world
        .lose(vec![controller_key().store_key(Tree::Intent)])
        .await;
    world.keeps(&before).await;
    let joined = world.client.joined(&controller_key()).await.unwrap();
    assert!(joined.is_unexplained());
}

#[tokio::test(start_paused = true)]
pub(crate) async fn failsafe_replication_controller_all_vanish() {
    let world = six_controllers().await;
    let before = uids(&world.pods().await);
    world
        .lose(world.keys("o/intent/platctrl.dev/replicationcontrollers/"))
        .await;
    world.is_held(Guard::Vanished).await;
    world.keeps(&before).await;
}

#[tokio::test(start_paused = true)]
pub(crate) async fn failsafe_replication_controller_all_go_back() {
    let world = six_controllers().await;
    let keys = world.keys("o/intent/platctrl.dev/replicationcontrollers/");
    // What was wanted before the last change.
    let old: Vec<_> = keys
        .iter()
        .map(|key| world.store.peek(key).unwrap())
        .collect();
    for name in 0..6 {
        let mut object = world
            .client
            .get::<ReplicationController>(&key_of(&format!("c{name}")))
            .await
            .unwrap();
        object.spec.replicas = 4;
        world.client.update(&object).await.unwrap();
    }
    until("all have their pods", || async {
        world.pods().await.len() == 24 && world.all_reported(24)
    })
    .await;
    minutes(2).await;
    let before = uids(&world.pods().await);
    let back = old.into_iter().fold(Transaction::new(), |all, record| {
        all.put(record.key, record.value)
    });
    world.store.commit(back).await.unwrap();
    world.is_held(Guard::WentBack).await;
    world.keeps(&before).await;
}

#[tokio::test(start_paused = true)]
async fn failsafe_replication_controller_replicas_missing_or_unreadable() {
    for replicas in [None, Some(json!("six")), Some(json!(-1)), Some(Value::Null)] {
        let world = six_pods().await;
        let before = uids(&world.pods().await);
        let key = controller_key().store_key(Tree::Intent);
        world
            .rewrite(&[key], |intent| {
                let spec = intent["spec"].as_object_mut().unwrap();
                match &replicas {
                    Some(replicas) => spec.insert("replicas".to_owned(), replicas.clone()),
                    None => spec.remove("replicas"),
                };
                intent["metadata"]["generation"] = json!(2);
            })
            .await;
        world.keeps(&before).await;
        let view = world.handle.view().unwrap();
        assert_eq!(view.set_aside().len(), 1, "{replicas:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn failsafe_replication_controller_selector_empty_invalid_or_missing() {
    for selector in [json!(""), json!("role in (web"), Value::Null] {
        let world = six_pods().await;
        let before = uids(&world.pods().await);
        let key = controller_key().store_key(Tree::Intent);
        world
            .rewrite(&[key], |intent| {
                intent["spec"]["nodeSelector"] = selector.clone();
                intent["spec"]["replicas"] = json!(2);
                intent["metadata"]["generation"] = json!(2);
            })
            .await;
        world.keeps(&before).await;
    }
}

#[tokio::test(start_paused = true)]
async fn failsafe_node_intent_lost_or_all_vanish() {
    for count in [1, 6] {
        let world = six_pods().await;
        let before = uids(&world.pods().await);
        let mut nodes = world.keys("o/intent/platctrl.dev/nodes/");
        nodes.truncate(count);
        world.lose(nodes).await;
        world.keeps(&before).await;
    }
}

#[tokio::test(start_paused = true)]
pub(crate) async fn failsafe_pod_intent_all_vanish() {
    let world = six_pods().await;
    world.lose(world.keys("o/intent/platctrl.dev/pods/")).await;
    world.is_held(Guard::Vanished).await;
    minutes(20).await;
    assert_eq!(world.pods().await.len(), 0, "no other ones are made");
    assert!(world.all_reported(6));
}

#[tokio::test(start_paused = true)]
async fn failsafe_pod_reality_all_vanish() {
    let world = six_pods().await;
    let before = uids(&world.pods().await);
    world.lose(world.keys("o/reality/platctrl.dev/pods/")).await;
    world.keeps(&before).await;
    until("they are reported again", || async {
        world.all_reported(6)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn failsafe_health_of_another_spec_is_unknown() {
    let world = six_pods().await;
    let keys = world.keys("o/reality/platctrl.dev/pods/");
    world
        .rewrite(&keys[..1], |reality| {
            reality["status"]["observedSpec"] = json!(format!("sha256:{}", "0".repeat(64)));
        })
        .await;
    // The worker reports again; who looked meanwhile was not shown health of another version.
    let kind = platctrl_framework::model::KindDefinition::of::<Pod>();
    let list = world.client.list(&kind, None).await.unwrap();
    let unknown = list.shown().filter(|pod| {
        let ready = pod.status.conditions.get("Ready");
        ready.is_some_and(|ready| ready.status == ConditionStatus::Unknown)
    });
    assert_eq!(unknown.count(), 1);
    world.settled(6, 6).await;
}

#[tokio::test(start_paused = true)]
async fn failsafe_replication_controller_deleted_keeps_its_pods_unless_told() {
    let world = six_pods().await;
    let before = uids(&world.pods().await);
    world.delete(Propagation::Orphan).await;
    world.keeps(&before).await;
}

/// Frozen, nothing is scaled, moved or rolled, whoever asks for it.
#[tokio::test(start_paused = true)]
pub(crate) async fn failsafe_freeze_stops_every_controller_until_it_is_thawed() {
    let world = six_pods().await;
    let before = uids(&world.pods().await);
    let environment = world.client.environment().clone();
    freeze(&world.store, &environment, "ann", Some("a look"))
        .await
        .unwrap();
    world.change(|spec| spec.replicas = 3).await;
    let mut set = Object::<DaemonSet>::new(
        named("logs"),
        serde_json::from_value(json!({
            "nodeSelector": "role=web", "template": controller_spec(1).template,
        }))
        .unwrap(),
    );
    set.spec.template.spec.app = Some("logs".into());
    world.client.create(&set).await.unwrap();
    world.keeps(&before).await;
    thaw(&world.store, &environment, "ann", None).await.unwrap();
    until("what was asked for is done", || async {
        world.pods().await.len() == 3 + 6
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn failsafe_daemon_set_lost_or_all_vanish() {
    for sets in [1, 6] {
        let world = World::with_nodes(&SIX).await;
        for number in 0..sets {
            let metadata = named(&format!("logs{number}"));
            let spec = json!({
                "nodeSelector": "role=web", "template": controller_spec(1).template,
            });
            let set = Object::<DaemonSet>::new(metadata, serde_json::from_value(spec).unwrap());
            world.client.create(&set).await.unwrap();
        }
        until("all have their pods", || async {
            world.all_reported(6 * sets)
        })
        .await;
        minutes(2).await;
        let before = uids(&world.pods().await);
        world
            .lose(world.keys("o/intent/platctrl.dev/daemonsets/"))
            .await;
        world.keeps(&before).await;
    }
}

#[tokio::test(start_paused = true)]
async fn failsafe_health_lost_takes_nothing_healthy_away() {
    let world = six_pods().await;
    let before = uids(&world.pods().await);
    // Nobody says any more how two of them are; the others are as many as have to stay.
    let keys = world.keys("o/reality/platctrl.dev/pods/");
    let agents = world.keys("o/intent/platctrl.dev/nodes/");
    assert_eq!((keys.len(), agents.len()), (6, 6));
    world
        .rewrite(&keys[..2], |reality| {
            reality["status"]["conditions"] = json!([]);
        })
        .await;
    world.keeps(&before).await;
}
