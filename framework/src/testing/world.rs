//! What a scenario and a replica have in hand.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::core::{Core, Order};
use super::process::{Process, outside};
use super::run::settled;
use super::store::SimulatedStore;
use super::trace::Actor;
use crate::client::{Client, ClientError, DeleteOptions};
use crate::controller::Runtime;
use crate::environment::Environment;
use crate::model::{Object, ObjectKey, Resource};
use crate::store::Store;

/// What a scenario ends with when it cannot go on.
pub type ScenarioError = Box<dyn std::error::Error + Send + Sync>;

/// The world as the scenario has it: what people do, to objects, processes and machines. Nothing
/// that is made to go wrong concerns the scenario's own writes. Cheap to clone.
#[derive(Clone)]
pub struct World {
    core: Arc<Core>,
    client: Client,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

impl World {
    pub(super) fn new(core: Arc<Core>) -> Self {
        let actor = Actor::Scenario;
        let store = SimulatedStore {
            core: core.clone(),
            actor: actor.clone(),
        };
        let client = Client::new(Arc::new(store), core.environment.clone(), actor.name());
        Self { core, client }
    }

    /// Reads and writes objects, for what has no method here.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Clock and randomness of the world.
    #[must_use]
    pub fn environment(&self) -> &Environment {
        &self.core.environment
    }

    /// The nodes' names.
    #[must_use]
    pub fn nodes(&self) -> &[String] {
        &self.core.config.nodes
    }

    /// Creates an object.
    ///
    /// # Errors
    /// See [`Client::create`].
    pub async fn create<K: Resource>(&self, object: &Object<K>) -> Result<Object<K>, ClientError> {
        self.client.create(object).await
    }

    /// Changes an object's metadata and spec, again when somebody else changed it meanwhile.
    ///
    /// # Errors
    /// See [`Client::update`]; conflicts are not among them.
    pub async fn change<K: Resource>(
        &self,
        key: &ObjectKey,
        change: impl Fn(&mut Object<K>),
    ) -> Result<Object<K>, ClientError> {
        loop {
            let mut object = self.client.get::<K>(key).await?;
            change(&mut object);
            match self.client.update(&object).await {
                Err(error) if error.is_conflict() => {}
                done => return done,
            }
        }
    }

    /// Asks for an object's end, as its own policy says.
    ///
    /// # Errors
    /// See [`Client::delete`]; conflicts are not among them.
    pub async fn delete(&self, key: &ObjectKey) -> Result<(), ClientError> {
        self.delete_with(key, &DeleteOptions::default()).await
    }

    /// Asks for an object's end.
    ///
    /// # Errors
    /// See [`Client::delete`]; conflicts are not among them.
    pub async fn delete_with(
        &self,
        key: &ObjectKey,
        options: &DeleteOptions,
    ) -> Result<(), ClientError> {
        loop {
            match self.client.delete(key, options).await {
                Err(error) if error.is_conflict() => {}
                done => return done.map(|_| ()),
            }
        }
    }

    /// The object as stored.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub async fn get<K: Resource>(&self, key: &ObjectKey) -> Result<Object<K>, ClientError> {
        self.client.get(key).await
    }

    /// Every object of a kind.
    #[must_use]
    pub fn objects<K: Resource>(&self) -> Vec<Object<K>> {
        super::process::objects_of(&self.core.store)
    }

    /// Every process, in the order of their keys.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        self.core.state().table.values().cloned().collect()
    }

    /// Waits until nothing happens any more.
    ///
    /// # Errors
    /// It never does, or something is wrong already.
    pub async fn settled(&self) -> Result<(), ScenarioError> {
        settled(&self.core)
            .await
            .map_err(|problem| problem.to_string().into())
    }

    /// Waits.
    pub async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    /// What [`Simulation::outside`](super::Simulation::outside) made for this run.
    #[must_use]
    pub fn outside<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        outside(&self.core.outside)
    }

    fn order_about(&self, key: &ObjectKey, order: impl FnOnce(Arc<str>) -> Order) {
        let path = self
            .core
            .state()
            .table
            .iter()
            .find_map(|(path, process)| (process.key == *key).then(|| path.clone()));
        if let Some(path) = path {
            self.order(order(path));
        }
    }

    fn order(&self, order: Order) {
        self.core.order(&mut self.core.state(), order);
    }

    /// The object's process dies, if there is one; its agent starts it again.
    pub fn kill_process(&self, key: &ObjectKey) {
        self.order_about(key, Order::Kill);
    }

    /// The object's process is healthy, or not, from now on.
    pub fn set_healthy(&self, key: &ObjectKey, healthy: bool) {
        self.order_about(key, |path| Order::Health(path, healthy));
    }

    /// A machine goes down with all its processes.
    pub fn stop_node(&self, node: &str) {
        self.order(Order::NodeDown(node.to_owned()));
    }

    /// A machine comes back: its agent starts what is wanted.
    pub fn start_node(&self, node: &str) {
        self.order(Order::NodeUp(node.to_owned()));
    }

    /// A node's agent dies and begins again; processes go on.
    pub fn crash_agent(&self, node: &str) {
        self.order(Order::AgentCrash(node.to_owned()));
    }

    /// A replica of the controllers dies, and begins again a second later.
    pub fn crash_replica(&self, index: usize) {
        if index < self.core.config.replicas {
            self.core.crash(index);
        }
    }
}

/// One replica of the controllers under test, from its beginning to its end: what a
/// [`Runtime`] is built from.
#[derive(Clone)]
pub struct Replica {
    pub(super) core: Arc<Core>,
    pub(super) actor: Actor,
    pub(super) environment: Environment,
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica")
            .field("index", &self.index())
            .finish_non_exhaustive()
    }
}

impl Replica {
    /// Which of the replicas, counted from 0.
    #[must_use]
    pub fn index(&self) -> usize {
        match &self.actor {
            Actor::Replica(index, _) => *index,
            _ => 0,
        }
    }

    /// The store, as this replica reaches it until it dies.
    #[must_use]
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::new(SimulatedStore {
            core: self.core.clone(),
            actor: self.actor.clone(),
        })
    }

    /// The machine's clocks and randomness.
    #[must_use]
    pub fn environment(&self) -> Environment {
        self.environment.clone()
    }

    /// A client that acts as this replica: its writes are refused by nothing but their own
    /// compares.
    #[must_use]
    pub fn client(&self, actor: &str) -> Client {
        Client::new(self.store(), self.environment(), actor)
    }

    /// A runtime on this replica's store and environment, named after the replica.
    #[must_use]
    pub fn runtime(&self) -> Runtime {
        let name = format!("controllers-{}", self.index());
        Runtime::new(self.store(), self.environment())
            .name(&name)
            // Done once and for all, it would only lengthen each of thousands of runs.
            .without_registration()
    }

    /// What [`Simulation::outside`](super::Simulation::outside) made for this run.
    #[must_use]
    pub fn outside<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        outside(&self.core.outside)
    }
}
