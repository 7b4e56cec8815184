//! What the cells stand on: six nodes, the controllers, and an agent without processes.

use std::collections::BTreeMap;
use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use platctrl_framework::client::{Client, DeleteOptions};
use platctrl_framework::controller::{
    Action, Context, Controller, ReconcileError, RunError, Runtime, RuntimeHandle,
};
use platctrl_framework::environment::Environment;
use platctrl_framework::failsafe::Guard;
use platctrl_framework::model::identity::initialise;
use platctrl_framework::model::{
    Condition, ConditionStatus, KindDefinition, Metadata, Object, ObjectKey, Propagation, Resource,
    Status, Tree,
};
use platctrl_framework::store::{Key, ListRequest, Prefix, Record, Store, Transaction};
use platctrl_kinds::{
    Node, NodeSpec, Pod, PodStatus, ReplicationController, ReplicationControllerSpec, condition,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

pub(super) type Check<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;
pub(super) type Checking = Pin<Box<dyn Future<Output = Check>>>;

/// How long a cell waits for what must happen: at least so long by tokio's time, and by the
/// fleet's.
const PATIENCE: Duration = Duration::from_secs(90);
const LONG: Duration = Duration::from_secs(30 * 60);

pub(super) fn ensure(holds: bool, otherwise: &str) -> Check {
    if holds {
        return Ok(());
    }
    Err(otherwise.into())
}

pub(super) fn key_of(name: &str) -> Check<ObjectKey> {
    let kind = ReplicationController::group_plural();
    let (group, plural) = (&kind.group, &kind.plural);
    Ok(ObjectKey::namespaced(group, plural, "default", name)?)
}

pub(super) fn uids(pods: &[Object<Pod>]) -> Vec<String> {
    let uids = pods.iter().map(|pod| pod.metadata.uid.to_string());
    let mut uids: Vec<String> = uids.collect();
    uids.sort_unstable();
    uids
}

/// Makes a record look like a newer order.
pub(super) fn ordered(intent: &mut Value) -> Option<()> {
    let generation = intent["metadata"]["generation"].as_u64()?;
    intent["metadata"]["generation"] = json!(generation + 1);
    Some(())
}

/// Reports a pod as ready.
async fn run_pod(pod: Arc<Object<Pod>>, context: Context) -> Result<Action, ReconcileError> {
    let intent = context.joined().intent;
    let (generation, now) = (pod.metadata.generation, context.environment().now());
    let mut status: Status<PodStatus> = pod.status.clone();
    status.observed_spec = intent.map(|intent| intent.value.spec_digest());
    status.observed_generation = Some(generation);
    let ready = Condition::new(condition::READY, ConditionStatus::True, "Fake", "");
    status.conditions.set(ready, generation, now);
    let mut changes = context.changes();
    changes.report::<Pod>(&status)?;
    changes.commit().await?;
    Ok(Action::await_change())
}

fn spec(replicas: u32) -> Check<ReplicationControllerSpec> {
    Ok(serde_json::from_value(json!({
        "replicas": replicas, "nodeSelector": "role=web",
        "template": { "spec": { "launchables": { "web": { "location": "artifact:one" } } } },
    }))?)
}

fn named(name: &str) -> Metadata {
    Metadata {
        namespace: Some("default".to_owned()),
        ..Metadata::named(name)
    }
}

/// A store with nodes, the controllers that work on it, and who orders and breaks things.
pub(super) struct Fleet {
    store: Arc<dyn Store>,
    environment: Environment,
    pub(super) client: Client,
    handle: RuntimeHandle,
    agents_stopped: Arc<AtomicBool>,
    runtime: JoinHandle<Result<(), RunError>>,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.runtime.abort();
    }
}

impl Fleet {
    /// Six nodes, and nothing on them.
    pub(super) async fn new(store: Arc<dyn Store>, environment: Environment) -> Check<Self> {
        initialise(&*store, &environment).await?;
        let client = Client::new(store.clone(), environment.clone(), "a person");
        for node in 1..=6 {
            let half = if node > 3 { "upper" } else { "lower" };
            let labels = [("role", "web"), ("half", half)];
            let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
            let metadata = Metadata {
                labels: BTreeMap::from(labels),
                ..Metadata::named(format!("n{node}"))
            };
            let node = Object::<Node>::new(metadata, NodeSpec::default());
            client.create(&node).await?;
        }
        let agents_stopped = Arc::<AtomicBool>::default();
        let stopped = agents_stopped.clone();
        let agent = Controller::<Pod>::new("agent", move |pod, context| {
            let stopped = stopped.clone();
            async move {
                if stopped.load(Ordering::SeqCst) {
                    return Ok(Action::await_change());
                }
                run_pod(pod, context).await
            }
        });
        // A hurried clock must not end runs on a slow machine.
        let day = Duration::from_secs(24 * 3600);
        let runtime = Runtime::new(store.clone(), environment.clone())
            .controller(crate::replication_controller::controller().timeout(day))
            .controller(agent.timeout(day))
            .reap();
        let handle = runtime.handle();
        Ok(Self {
            store,
            environment,
            client,
            handle,
            agents_stopped,
            runtime: tokio::spawn(runtime.run()),
        })
    }

    /// One controller with six pods, one on each node, settled for some minutes.
    pub(super) async fn six_pods(store: Arc<dyn Store>, environment: Environment) -> Check<Self> {
        let fleet = Self::new(store, environment).await?;
        fleet.create("hello", 6).await?;
        fleet.settled("hello", 6).await?;
        fleet.minutes(2).await;
        Ok(fleet)
    }

    /// Six controllers with a pod each.
    pub(super) async fn six_controllers(
        store: Arc<dyn Store>,
        environment: Environment,
    ) -> Check<Self> {
        let fleet = Self::new(store, environment).await?;
        for name in 0..6 {
            fleet.create(&format!("c{name}"), 1).await?;
        }
        fleet.all_reported(6).await?;
        fleet.minutes(2).await;
        Ok(fleet)
    }

    /// What was reported is not reported anew.
    pub(super) fn stop_agents(&self) {
        self.agents_stopped.store(true, Ordering::SeqCst);
    }

    pub(super) async fn create(&self, name: &str, replicas: u32) -> Check {
        let object = Object::<ReplicationController>::new(named(name), spec(replicas)?);
        // One of the name may be about to end.
        self.until("it is created", async || {
            match self.client.create(&object).await {
                Ok(_) => Ok(true),
                Err(error) if error.is_conflict() => Ok(false),
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    pub(super) async fn controller(&self, name: &str) -> Check<Object<ReplicationController>> {
        Ok(self.client.get(&key_of(name)?).await?)
    }

    pub(super) async fn change(
        &self,
        name: &str,
        change: impl Fn(&mut ReplicationControllerSpec),
    ) -> Check {
        self.until("it is changed", async || {
            let mut object = self.controller(name).await?;
            change(&mut object.spec);
            match self.client.update(&object).await {
                Ok(_) => Ok(true),
                Err(error) if error.is_conflict() => Ok(false),
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    pub(super) async fn delete(&self, name: &str, propagation: Propagation) -> Check {
        let mut options = DeleteOptions::default();
        options.propagation = Some(propagation);
        let key = key_of(name)?;
        self.until("it is deleted", async || {
            match self.client.delete(&key, &options).await {
                Ok(_) => Ok(true),
                Err(error) if error.is_conflict() => Ok(false),
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// The pods that have an intent, as the store has them now.
    pub(super) async fn pods(&self) -> Check<Vec<Object<Pod>>> {
        let kind = KindDefinition::of::<Pod>();
        let list = self.client.list(&kind, None).await?;
        let pods = list.shown().map(|pod| pod.typed());
        Ok(pods.collect::<Result<_, _>>()?)
    }

    /// Those that are not about to end.
    pub(super) async fn live(&self) -> Check<Vec<Object<Pod>>> {
        let mut pods = self.pods().await?;
        pods.retain(|pod| !pod.metadata.is_deleted());
        Ok(pods)
    }

    pub(super) async fn records(&self, prefix: &Prefix) -> Check<Vec<Record>> {
        let page = self.store.list(&ListRequest::new(prefix.clone())).await?;
        ensure(!page.more, "there is more than a page of them")?;
        let mut records = page.records;
        records.retain(|record| !record.key.as_str().ends_with("/.anchor"));
        Ok(records)
    }

    pub(super) async fn keys(&self, prefix: &Prefix) -> Check<Vec<Key>> {
        let records = self.records(prefix).await?;
        Ok(records.into_iter().map(|record| record.key).collect())
    }

    /// Loses records, all at once.
    pub(super) async fn lose(&self, keys: Vec<Key>) -> Check {
        ensure(!keys.is_empty(), "there is nothing to lose")?;
        let lose = keys.into_iter();
        let lose = lose.fold(Transaction::new(), Transaction::delete);
        self.store.commit(lose).await?;
        Ok(())
    }

    pub(super) async fn put_back(&self, records: Vec<Record>) -> Check {
        let put = |all: Transaction, record: Record| all.put(record.key, record.value);
        let back = records.into_iter().fold(Transaction::new(), put);
        self.store.commit(back).await?;
        Ok(())
    }

    /// Rewrites records as a script might.
    pub(super) async fn rewrite(
        &self,
        keys: &[Key],
        change: impl Fn(&mut Value) -> Option<()>,
    ) -> Check {
        let mut transaction = Transaction::new();
        let records = self.store.get(keys).await?.records;
        for record in records.into_iter().flatten() {
            let mut value = serde_json::from_slice(&record.value)?;
            change(&mut value).ok_or("the record is not as it should be")?;
            transaction = transaction.put(record.key, value.to_string());
        }
        let all = transaction.writes.len() == keys.len();
        ensure(all, "a record is missing")?;
        self.store.commit(transaction).await?;
        Ok(())
    }

    pub(super) fn holds_anything(&self) -> bool {
        let status = self.handle.status();
        status.is_none_or(|status| !status.failsafe.holds.is_empty())
    }

    pub(super) async fn is_held(&self, guard: Guard) -> Check {
        self.until("it is held", async || {
            let status = self.handle.status();
            let holds = status.map(|status| status.failsafe.holds);
            Ok(holds.into_iter().flatten().any(|it| it.guard == guard))
        })
        .await
    }

    pub(super) async fn is_set_aside(&self) -> Check {
        self.until("the record is set aside", async || {
            let view = self.handle.view();
            Ok(view.is_some_and(|view| !view.set_aside().is_empty()))
        })
        .await
    }

    /// Lets some minutes of the fleet's time pass.
    pub(super) async fn minutes(&self, count: u32) {
        let minute = Duration::from_secs(60);
        self.environment.sleep(minute * count).await;
    }

    pub(super) async fn until(
        &self,
        what: &str,
        mut holds: impl AsyncFnMut() -> Check<bool>,
    ) -> Check {
        let begun = tokio::time::Instant::now();
        let long = self.environment.monotonic() + LONG;
        while !holds().await? {
            if begun.elapsed() > PATIENCE && self.environment.monotonic() > long {
                let status = self.handle.status().map(|status| status.to_string());
                let status = status.unwrap_or_default();
                return Err(format!("never: {what}\n{status}").into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// The controller has so many pods, all ready, and nothing more to do.
    pub(super) async fn settled(&self, name: &str, replicas: u32) -> Check {
        self.until("the controller is settled", async || {
            let object = self.controller(name).await?;
            let status = object.status;
            let progressing = status.conditions.get("Progressing");
            let rests = progressing.is_some_and(|it| it.status == ConditionStatus::False);
            let counts = (status.detail.replicas, status.detail.ready_replicas);
            let seen = status.observed_generation == Some(object.metadata.generation);
            Ok(seen && rests && counts == (replicas, replicas))
        })
        .await
    }

    pub(super) async fn all_reported(&self, pods: usize) -> Check {
        let realities = Pod::group_plural().prefix(Tree::Reality);
        self.until("all pods are reported", async || {
            Ok(self.keys(&realities).await?.len() == pods)
        })
        .await
    }

    /// The same pods, none of them to end, for long.
    pub(super) async fn keeps(&self, before: &[Object<Pod>]) -> Check {
        self.minutes(10).await;
        let pods = self.pods().await?;
        let ends = pods.iter().any(|pod| pod.metadata.is_deleted());
        ensure(!ends, "a pod is to end")?;
        ensure(uids(&pods) == uids(before), "the pods are others")
    }
}
