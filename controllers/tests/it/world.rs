//! A fleet in one process: a store, nodes, the controllers, and an agent that does at once what
//! it is asked, without processes.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::client::{Client, DeleteOptions};
use platctrl_framework::controller::{
    Action, Context, Controller, ReconcileError, Runtime, RuntimeHandle,
};
use platctrl_framework::environment::{Clock, Environment};
use platctrl_framework::failsafe::{Failsafes, Safeguard};
use platctrl_framework::model::{
    Condition, ConditionStatus, Metadata, Object, ObjectKey, Propagation, Resource, Status,
    identity::initialise,
};
use platctrl_framework::store::{MemoryStore, Store};
use platctrl_kinds::{
    Launchable, Node, NodeSpec, Pod, PodSpec, PodStatus, PodTemplate, ReplicationController,
    ReplicationControllerSpec, Strategy, TemplateMetadata, condition,
};
use tokio::task::JoinHandle;

pub(crate) struct World {
    pub(crate) store: MemoryStore,
    pub(crate) client: Client,
    pub(crate) handle: RuntimeHandle,
    environment: Environment,
    runtime: JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.runtime.abort();
    }
}

/// Wall time that goes with tokio's, which tests turn.
struct Turned {
    from: jiff::Timestamp,
    since: tokio::time::Instant,
}

impl Clock for Turned {
    fn now(&self) -> jiff::Timestamp {
        self.from + self.monotonic()
    }

    fn monotonic(&self) -> Duration {
        self.since.elapsed()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(tokio::time::sleep(duration))
    }
}

fn environment(seed: u64) -> Environment {
    let clock = Turned {
        from: jiff::Timestamp::now(),
        since: tokio::time::Instant::now(),
    };
    Environment::seeded(Arc::new(clock), seed)
}

thread_local! {
    /// A safeguard that the test on this thread has to do without.
    pub(crate) static WITHOUT: std::cell::Cell<Option<Safeguard>> =
        const { std::cell::Cell::new(None) };
}

/// All failsafes, unless one is to be proven.
fn failsafes() -> Failsafes {
    match WITHOUT.get() {
        Some(safeguard) => Failsafes::new().without(safeguard),
        None => Failsafes::new(),
    }
}

/// Ends a task when it is dropped.
pub(crate) struct Ended(JoinHandle<()>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The fewest pods that were ready at once.
pub(crate) struct Fewest(
    Arc<std::sync::atomic::AtomicUsize>,
    #[expect(dead_code, reason = "ends with this")] Ended,
);

impl Fewest {
    pub(crate) fn seen(&self) -> usize {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}

/// Reports every pod as ready, except those whose first program is said to be `broken`, and those
/// that the test itself reports on.
async fn run_pod(pod: Arc<Object<Pod>>, context: Context) -> Result<Action, ReconcileError> {
    if pod.metadata.labels.contains_key("reported") {
        return Ok(Action::await_change());
    }
    let intent = context.joined().intent;
    let broken = pod
        .spec
        .launchables
        .values()
        .any(|launchable| launchable.location.contains("broken"));
    let ready = if broken {
        ConditionStatus::False
    } else {
        ConditionStatus::True
    };
    let mut status: Status<PodStatus> = pod.status.clone();
    status.observed_spec = intent.map(|intent| intent.value.spec_digest());
    status.observed_generation = Some(pod.metadata.generation);
    let (generation, now) = (pod.metadata.generation, context.environment().now());
    status.conditions.set(
        Condition::new(condition::READY, ready, "Fake", ""),
        generation,
        now,
    );
    let mut changes = context.changes();
    changes.report::<Pod>(&status)?;
    changes.commit().await?;
    Ok(Action::await_change())
}

/// The controllers and the agent, in one process.
fn run(store: &MemoryStore, environment: &Environment) -> (RuntimeHandle, JoinHandle<()>) {
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let runtime = Runtime::new(shared, environment.clone())
        .controller(platctrl_controllers::replication_controller::controller())
        .controller(platctrl_controllers::rolling_update::controller())
        .controller(platctrl_controllers::disruption_budget::controller())
        .controller(platctrl_controllers::daemon_set::controller())
        .controller(Controller::<Pod>::new("agent", run_pod))
        .failsafes(failsafes())
        .reap();
    let handle = runtime.handle();
    (
        handle,
        tokio::spawn(async move { runtime.run().await.unwrap() }),
    )
}

impl World {
    pub(crate) async fn with_nodes(nodes: &[(&str, &str)]) -> Self {
        let environment = environment(1);
        let store = MemoryStore::new(environment.clone());
        initialise(&store, &environment).await.unwrap();
        let client = Client::new(Arc::new(store.clone()), environment.clone(), "test");
        for (name, role) in nodes {
            let labels = BTreeMap::from([("role".to_owned(), (*role).to_owned())]);
            let metadata = Metadata {
                labels,
                ..Metadata::named(*name)
            };
            client
                .create(&Object::<Node>::new(metadata, NodeSpec::default()))
                .await
                .unwrap();
        }
        let (handle, runtime) = run(&store, &environment);
        Self {
            store,
            client,
            handle,
            environment,
            runtime,
        }
    }

    /// The process with the controllers dies, and another one begins.
    pub(crate) async fn dies_and_begins_again(&mut self) {
        self.runtime.abort();
        let _ = (&mut self.runtime).await;
        (self.handle, self.runtime) = run(&self.store, &self.environment);
    }

    pub(crate) async fn create(
        &self,
        replicas: u32,
        change: impl FnOnce(&mut ReplicationControllerSpec),
    ) {
        let mut spec = controller_spec(replicas);
        change(&mut spec);
        self.client
            .create(&Object::<ReplicationController>::new(named("hello"), spec))
            .await
            .unwrap();
    }

    pub(crate) async fn controller(&self) -> Object<ReplicationController> {
        self.client.get(&controller_key()).await.unwrap()
    }

    pub(crate) async fn change(&self, change: impl Fn(&mut ReplicationControllerSpec)) {
        let mut object = self.controller().await;
        change(&mut object.spec);
        self.client.update(&object).await.unwrap();
    }

    pub(crate) async fn delete(&self, propagation: Propagation) {
        let mut options = DeleteOptions::default();
        options.propagation = Some(propagation);
        self.client
            .delete(&controller_key(), &options)
            .await
            .unwrap();
    }

    /// The pods that have an intent, as the store has them now.
    pub(crate) async fn pods(&self) -> Vec<Object<Pod>> {
        let kind = platctrl_framework::model::KindDefinition::of::<Pod>();
        let list = self.client.list(&kind, None).await.unwrap();
        list.shown().map(|pod| pod.typed().unwrap()).collect()
    }

    /// Another process with a controller, which does not know of this one.
    pub(crate) fn another<K: Resource>(&self, controller: Controller<K>) -> Ended {
        let shared: Arc<dyn Store> = Arc::new(self.store.clone());
        let runtime = Runtime::new(shared, environment(2)).controller(controller);
        Ended(tokio::spawn(async move { runtime.run().await.unwrap() }))
    }

    /// From now on, counts how many pods are ready at once.
    pub(crate) fn fewest_ready(&self) -> Fewest {
        let handle = self.handle.clone();
        let fewest = Arc::new(std::sync::atomic::AtomicUsize::new(usize::MAX));
        let seen = fewest.clone();
        let task = tokio::spawn(async move {
            loop {
                let pods = handle.view().unwrap().list::<Pod>().to_vec();
                let is_ready = |pod: &Arc<Object<Pod>>| {
                    pod.status.conditions.is_true(condition::READY) && !pod.metadata.is_deleted()
                };
                let ready = pods.iter().filter(|pod| is_ready(pod)).count();
                seen.fetch_min(ready, std::sync::atomic::Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Fewest(fewest, Ended(task))
    }

    /// Waits until so many pods are there and were reported on.
    pub(crate) async fn reported(&self, count: usize) {
        until("all are there", || async {
            let pods = self.pods().await;
            let seen = pods.iter().filter(|pod| pod.status.observed_spec.is_some());
            seen.count() == count
        })
        .await;
    }

    pub(crate) async fn settled(&self, replicas: u32, ready: u32) {
        until("the controller is settled", || async {
            let object = self.controller().await;
            let status = object.status;
            let progressing = status.conditions.get("Progressing");
            status.observed_generation == Some(object.metadata.generation)
                && progressing.is_some_and(|condition| condition.status == ConditionStatus::False)
                && (status.detail.replicas, status.detail.ready_replicas) == (replicas, ready)
        })
        .await;
    }
}

/// The metadata of an object in the tests' namespace.
pub(crate) fn named(name: &str) -> Metadata {
    Metadata {
        namespace: Some("default".into()),
        ..Metadata::named(name)
    }
}

pub(crate) fn controller_key() -> ObjectKey {
    let kind = ReplicationController::PLURAL;
    ObjectKey::namespaced(ReplicationController::GROUP, kind, "default", "hello").unwrap()
}

pub(crate) fn controller_spec(replicas: u32) -> ReplicationControllerSpec {
    let launchable: Launchable = serde_json::from_str(r#"{"location": "artifact:one"}"#).unwrap();
    let spec = PodSpec {
        launchables: [("web".to_owned(), Box::new(launchable))].into(),
        ..PodSpec::default()
    };
    ReplicationControllerSpec {
        replicas,
        node_selector: "role=web".into(),
        strategy: Strategy::Static,
        max_per_node: 1,
        spread_over: None,
        disabled: false,
        progress_deadline: None,
        deletion_policy: Propagation::Orphan,
        deletion_grace: None,
        revision_history_limit: None,
        claimed_by: None,
        template: PodTemplate {
            metadata: TemplateMetadata::default(),
            spec,
        },
    }
}

/// Waits for a condition on virtual time.
pub(crate) async fn until<F, Fut>(what: &str, mut holds: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    for _ in 0..20_000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}
