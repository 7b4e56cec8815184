//! Controllers on a runtime, on the memory store and virtual time.

mod abreast;
mod alone;
mod cached;
mod claims;
mod end;
mod enrol;
mod failsafe;
mod fresh;
mod input;
mod life;
mod narrow;
mod owners;
mod parts;
mod seeing;
mod shards;
mod trouble;
mod unrest;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::client::{Client, DeleteOptions};
use platctrl_framework::controller::{
    Action, Context, Controller, ReconcileError, RunError, Runtime, RuntimeHandle,
};
use platctrl_framework::environment::Environment;
use platctrl_framework::failsafe::{Failsafes, Safeguard};
use platctrl_framework::model::{
    Metadata, Object, ObjectKey, Resource, Status, identity::initialise,
};
use platctrl_framework::store::{MemoryStore, Store};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

/// A site of some pages.
#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "example.dev", version = "v1", kind = "Site", status = SiteStatus)]
pub(crate) struct SiteSpec {
    pub(crate) pages: u32,
}

/// How much of it there is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
pub(crate) struct SiteStatus {
    #[serde(default)]
    pub(crate) pages: u32,
}

/// A page of a site.
#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "example.dev", version = "v1", kind = "Page")]
pub(crate) struct PageSpec {
    pub(crate) text: String,
}

/// A store with its anchor, and the time it lives in.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) store: MemoryStore,
    pub(crate) environment: Environment,
    pub(crate) client: Client,
}

/// A runtime that works until this is dropped.
pub(crate) struct Running {
    pub(crate) handle: RuntimeHandle,
    task: JoinHandle<Result<(), RunError>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    pub(crate) async fn stop(mut self) {
        self.handle.stop();
        (&mut self.task).await.unwrap().unwrap();
    }

    /// Ends it as a crash would.
    pub(crate) async fn crash(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        let environment = Environment::system();
        let store = MemoryStore::new(environment.clone());
        initialise(&store, &environment).await.unwrap();
        let client = Client::new(Arc::new(store.clone()), environment.clone(), "test");
        Self {
            store,
            environment,
            client,
        }
    }

    pub(crate) fn store(&self) -> Arc<dyn Store> {
        Arc::new(self.store.clone())
    }

    pub(crate) fn runtime(&self) -> Runtime {
        Runtime::new(self.store(), self.environment.clone()).failsafes(failsafes())
    }

    pub(crate) fn run(&self, runtime: Runtime) -> Running {
        let handle = runtime.handle();
        Running {
            handle,
            task: tokio::spawn(runtime.run()),
        }
    }

    pub(crate) async fn site(&self, name: &str, pages: u32) -> Object<Site> {
        let site = Object::<Site>::new(named(name), SiteSpec { pages });
        self.client.create(&site).await.unwrap()
    }

    /// Deletes as people do: again, when the object has just changed.
    pub(crate) async fn delete(&self, key: &ObjectKey) {
        while let Err(error) = self.client.delete(key, &DeleteOptions::default()).await {
            assert!(error.is_conflict(), "{error}");
        }
    }

    pub(crate) fn count(&self, prefix: &str) -> usize {
        let records = self.store.dump();
        let under = |key: &str| key.starts_with(prefix) && !key.ends_with(".anchor");
        records
            .iter()
            .filter(|record| under(record.key.as_str()))
            .count()
    }
}

pub(crate) fn named(name: &str) -> Metadata {
    Metadata {
        namespace: Some("default".to_owned()),
        ..Metadata::named(name)
    }
}

pub(crate) fn site_key(name: &str) -> ObjectKey {
    ObjectKey::namespaced("example.dev", "sites", "default", name).unwrap()
}

thread_local! {
    /// A safeguard that the test on this thread has to do without.
    static WITHOUT: std::cell::Cell<Option<Safeguard>> = const { std::cell::Cell::new(None) };
}

/// The failsafes that tests run with: all, unless one is to be proven.
pub(crate) fn failsafes() -> Failsafes {
    match WITHOUT.get() {
        Some(safeguard) => Failsafes::new().without(safeguard),
        None => Failsafes::new(),
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

/// A page of a site, under a new name.
pub(crate) fn page_of(site: &Object<Site>, context: &Context) -> Object<Page> {
    let suffix = context.environment().suffix(10);
    let mut metadata = named(&format!("{}-{suffix}", site.metadata.name));
    metadata.owner_references.push(site.owner_reference());
    let text = "hello".to_owned();
    Object::new(metadata, PageSpec { text })
}

/// Makes the pages that a site is short of, all at once, and reports how many it sees.
pub(crate) async fn make_pages(
    site: Arc<Object<Site>>,
    context: Context,
) -> Result<Action, ReconcileError> {
    let pages = context
        .view()
        .list::<Page>()
        .owned_by(&site.metadata.uid)
        .to_vec();
    let mut changes = context.changes();
    for _ in pages.len()..site.spec.pages as usize {
        changes.create(&page_of(&site, &context))?;
    }
    let detail = SiteStatus {
        pages: pages.len() as u32,
    };
    changes.report::<Site>(&Status {
        detail,
        ..site.status.clone()
    })?;
    changes.commit().await?;
    Ok(Action::await_change())
}

pub(crate) fn sites() -> Controller<Site> {
    Controller::new("sites", make_pages).owns::<Page>()
}
