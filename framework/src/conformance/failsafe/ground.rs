//! What the cases stand on: a controller that makes things outside of the store, a runtime in a
//! hurry, and what a person and a script do to the records.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::task::JoinHandle;

use super::super::kit::{Check, Stop, Subject};
use super::address::Address;
use crate::client::{Client, ClientError, DeleteOptions};
use crate::controller::{
    Action, Cause, Context, Controller, ReconcileError, RunError, Runtime, RuntimeHandle, Trigger,
};
use crate::environment::Environment;
use crate::failsafe::{Failsafe, FailsafeView, Failsafes, Guard, Limits, Reset, ring};
use crate::model::identity::{IdentityError, initialise};
use crate::model::{InvalidName, Metadata, Object, ObjectKey, Resource, Selector, Tree};
use crate::store::{Key, ListRequest, Prefix, Record, Store, Transaction};

/// How much faster the runtime's clock goes.
const PACE: u32 = 100;
/// How long a case waits for what must happen, by the machine's clock.
const PATIENCE: Duration = Duration::from_secs(90);
/// Enough that all of them are a mass.
pub(super) const PLANTS: usize = 6;

impl From<ClientError> for Stop {
    #[track_caller]
    fn from(error: ClientError) -> Self {
        Self::failed(format!("unexpected error: {error}"))
    }
}

impl From<IdentityError> for Stop {
    #[track_caller]
    fn from(error: IdentityError) -> Self {
        Self::failed(format!("unexpected error: {error}"))
    }
}

impl From<InvalidName> for Stop {
    #[track_caller]
    fn from(error: InvalidName) -> Self {
        Self::failed(format!("unexpected error: {error}"))
    }
}

impl From<serde_json::Error> for Stop {
    #[track_caller]
    fn from(error: serde_json::Error) -> Self {
        Self::failed(format!("unexpected error: {error}"))
    }
}

/// Something that is wanted, and for which something is made outside of the store.
#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "conformance.platctrl.dev", version = "v1", kind = "Plant")]
pub(super) struct PlantSpec {
    /// How large it is wanted.
    pub(super) size: u32,
    /// Where.
    pub(super) bed: Selector,
}

/// What the controller was called with, and what it has made.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// Names and sizes of what was reconciled.
    pub(super) seen: Vec<(String, u32)>,
    /// What is there outside of the store, by name.
    pub(super) outside: BTreeSet<String>,
    /// Names whose intents were told to be missing.
    pub(super) absent: BTreeSet<String>,
    /// It was asked to end all others, and has not.
    ends_others: bool,
}

impl Work {
    pub(super) fn has_seen(&self, name: &str, size: u32) -> bool {
        self.seen
            .iter()
            .any(|seen| (seen.0.as_str(), seen.1) == (name, size))
    }
}

type Shared = Arc<Mutex<Work>>;

fn lock(work: &Shared) -> MutexGuard<'_, Work> {
    work.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Claims, then makes the thing. When it is triggered it wants to end all others, though nobody
/// ordered that.
async fn grow(
    plant: Arc<Object<Plant>>,
    context: Context,
    work: Shared,
) -> Result<Action, ReconcileError> {
    context.claim().await?;
    let asked = |cause: &Cause| matches!(cause, Cause::Triggered(_));
    let ends = {
        let mut work = lock(&work);
        let name = plant.metadata.name.clone();
        work.outside.insert(name.clone());
        work.seen.push((name, plant.spec.size));
        work.ends_others |= context.causes().iter().any(asked);
        work.ends_others && plant.metadata.name == name_of(0)
    };
    if ends {
        let mut changes = context.changes();
        for key in context.view().list::<Plant>().keys() {
            if key != *context.key() {
                changes.delete(&key, &DeleteOptions::default())?;
            }
        }
        changes.commit().await?;
        lock(&work).ends_others = false;
    }
    Ok(Action::await_change())
}

fn controller(work: &Shared, trigger: &Trigger) -> Controller<Plant> {
    let (grows, ends, misses) = (work.clone(), work.clone(), work.clone());
    Controller::new("plants", move |plant, context| {
        grow(plant, context, grows.clone())
    })
    .on_delete(move |plant, context: Context| {
        lock(&ends).outside.remove(&plant.metadata.name);
        async move {
            let mut changes = context.changes();
            changes.report_gone()?;
            changes.commit().await?;
            Ok::<_, ReconcileError>(Action::await_change())
        }
    })
    .on_absent(move |absent, _| {
        lock(&misses).absent.insert(absent.key.name().to_owned());
        async { Ok::<_, ReconcileError>(Action::await_change()) }
    })
    .triggered_by(trigger)
    .refuses_unknown_fields()
    // A hurried clock must not end runs on a slow machine.
    .timeout(Duration::from_secs(24 * 3600))
}

pub(super) fn name_of(plant: usize) -> String {
    format!("p{plant}")
}

pub(super) fn key_of(name: &str) -> Result<ObjectKey, Stop> {
    let kind = Plant::group_plural();
    Ok(ObjectKey::namespaced(
        &kind.group,
        &kind.plural,
        "default",
        name,
    )?)
}

/// A store with its anchor, and what happens on it.
pub(super) struct Ground {
    pub(super) subject: Subject,
    pub(super) address: Arc<Address>,
    pub(super) environment: Environment,
    pub(super) client: Client,
    work: Shared,
    pub(super) trigger: Trigger,
    memory: PathBuf,
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.memory);
    }
}

/// A runtime that works until this is dropped.
pub(super) struct Running {
    pub(super) handle: RuntimeHandle,
    task: JoinHandle<Result<(), RunError>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    /// Ends it as a crash would.
    pub(super) async fn crash(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    pub(super) fn failsafe(&self) -> FailsafeView {
        self.handle
            .status()
            .map(|status| status.failsafe)
            .unwrap_or_default()
    }

    pub(super) fn holds(&self, guard: Guard) -> bool {
        self.failsafe().holds.iter().any(|hold| hold.guard == guard)
    }

    pub(super) fn holds_nothing(&self) -> bool {
        self.handle.status().is_some() && self.failsafe().holds.is_empty()
    }

    pub(super) fn shown(&self) -> usize {
        let view = self.handle.view();
        view.map_or(0, |view| view.list::<Plant>().keys().len())
    }
}

impl Ground {
    pub(super) async fn new(subject: Subject) -> Check<Self> {
        Self::at_pace(subject, PACE).await
    }

    pub(super) async fn at_pace(subject: Subject, pace: u32) -> Check<Self> {
        let environment = Environment::hurried(pace);
        let address = Arc::new(Address::of(subject.store.clone()));
        initialise(&*address, &environment).await?;
        let client = Client::new(address.clone(), environment.clone(), "a person");
        let file = format!("platctrl-conformance-{:016x}", environment.random_u64());
        Ok(Self {
            subject,
            address,
            client,
            environment,
            work: Shared::default(),
            trigger: Trigger::new(),
            memory: std::env::temp_dir().join(file),
        })
    }

    pub(super) fn work(&self) -> MutexGuard<'_, Work> {
        lock(&self.work)
    }

    pub(super) fn failsafes(&self) -> Failsafes {
        let failsafes = Failsafes::new().keep_chain();
        match self.subject.without {
            Some(safeguard) => failsafes.without(safeguard),
            None => failsafes,
        }
    }

    /// Remembers over a restart.
    pub(super) fn with_memory(&self) -> Failsafes {
        self.failsafes().remember_in(&self.memory)
    }

    /// Whether something is remembered.
    pub(super) fn has_memory(&self) -> bool {
        self.memory.exists()
    }

    pub(super) fn runtime(&self, failsafes: Failsafes) -> Runtime {
        Runtime::new(self.address.clone(), self.environment.clone())
            .controller(controller(&self.work, &self.trigger))
            .failsafes(failsafes)
    }

    pub(super) fn run(&self, runtime: Runtime) -> Running {
        let handle = runtime.handle();
        Running {
            handle,
            task: tokio::spawn(runtime.run()),
        }
    }

    /// A runtime that has worked on all plants, and for which the time after a start is over.
    pub(super) async fn grown(subject: Subject) -> Check<(Self, Running)> {
        let ground = Self::new(subject).await?;
        let running = ground.run(ground.runtime(ground.failsafes()));
        ground.grow_all(&running).await?;
        Ok((ground, running))
    }

    pub(super) async fn grow_all(&self, running: &Running) -> Check {
        for plant in 0..PLANTS {
            self.plant(&name_of(plant), 1).await?;
        }
        self.until("all plants are worked on", async || {
            Ok(self.work().outside.len() == PLANTS)
        })
        .await?;
        self.until("the time after the start is over", async || {
            Ok(running.failsafe().grace_left == Some(Duration::ZERO))
        })
        .await?;
        self.until("the view shows the reports", async || {
            let view = running.handle.view();
            let reported = |key: &ObjectKey| {
                let view = view.as_ref()?;
                view.record(key, Tree::Reality)
            };
            let keys = (0..PLANTS).map(|plant| key_of(&name_of(plant)));
            let keys = keys.collect::<Result<Vec<_>, _>>()?;
            Ok(keys.iter().all(|key| reported(key).is_some()))
        })
        .await
    }

    #[track_caller]
    pub(super) fn until<'a, F>(
        &'a self,
        what: &'a str,
        mut holds: F,
    ) -> impl Future<Output = Check> + use<'a, F>
    where
        F: AsyncFnMut() -> Check<bool> + 'a,
    {
        let at = std::panic::Location::caller();
        async move {
            let begun = tokio::time::Instant::now();
            while !holds().await? {
                if begun.elapsed() > PATIENCE {
                    let what = format!("never: {what}; the controller knows {:?}", self.work());
                    return Err(Stop::Failed { at, what });
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(())
        }
    }

    /// Lets some minutes of the runtime's time pass.
    pub(super) async fn minutes(&self, count: u32) {
        self.environment
            .sleep(Duration::from_secs(60) * count)
            .await;
    }

    pub(super) async fn plant(&self, name: &str, size: u32) -> Check {
        let metadata = Metadata {
            namespace: Some("default".to_owned()),
            ..Metadata::named(name)
        };
        let bed = "*".parse::<Selector>();
        let bed = bed.map_err(|error| Stop::failed(error.to_string()))?;
        let plant = Object::<Plant>::new(metadata, PlantSpec { size, bed });
        self.client.create(&plant).await?;
        Ok(())
    }

    pub(super) async fn resize(&self, name: &str, size: u32) -> Check {
        let key = key_of(name)?;
        loop {
            let mut plant = self.client.get::<Plant>(&key).await?;
            plant.spec.size = size;
            match self.client.update(&plant).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(super) async fn delete(&self, name: &str) -> Check {
        let key = key_of(name)?;
        loop {
            match self.client.delete(&key, &DeleteOptions::default()).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(super) async fn record(&self, key: &Key) -> Check<Option<Record>> {
        let records = self.address.get(std::slice::from_ref(key)).await?.records;
        Ok(records.into_iter().flatten().next())
    }

    pub(super) async fn list(&self, prefix: Prefix) -> Check<Vec<Record>> {
        let mut request = ListRequest::new(prefix);
        let mut records = Vec::new();
        loop {
            let page = self.address.list(&request).await?;
            request.after = page.records.last().map(|record| record.key.clone());
            records.extend(page.records);
            if !page.more || request.after.is_none() {
                return Ok(records);
            }
        }
    }

    pub(super) async fn put(&self, key: &Key, value: &Value) -> Check {
        let put = Transaction::new().put(key.clone(), value.to_string());
        self.address.commit(put).await?;
        Ok(())
    }

    /// Rewrites a record of each plant in one transaction, as a script might.
    pub(super) async fn rewrite(
        &self,
        count: usize,
        tree: Tree,
        change: impl Fn(Value) -> Option<Value>,
    ) -> Check {
        let mut transaction = Transaction::new();
        for plant in 0..count {
            let key = key_of(&name_of(plant))?.store_key(tree);
            let Some(record) = self.record(&key).await? else {
                continue;
            };
            transaction = match change(serde_json::from_slice(&record.value)?) {
                Some(value) => transaction.put(key, value.to_string()),
                None => transaction.delete(key),
            };
        }
        self.address.commit(transaction).await?;
        Ok(())
    }

    /// Removes all that is under a prefix, some at a time.
    pub(super) async fn remove(&self, prefix: &str, except: &[&str]) -> Check {
        let room = self.address.capabilities().limits.max_writes.min(16);
        let records = self.list(Prefix::new(prefix)?).await?;
        let keys = records.into_iter().map(|record| record.key);
        let keys: Vec<Key> = keys.filter(|key| !except.contains(&key.as_str())).collect();
        for some in keys.chunks(room) {
            let all = some.iter().cloned();
            let lose = all.fold(Transaction::new(), Transaction::delete);
            self.address.commit(lose).await?;
        }
        Ok(())
    }

    /// What is written down about holds.
    pub(super) async fn written(&self) -> Check<Option<Object<Failsafe>>> {
        let holder = ObjectKey::cluster(Failsafe::GROUP, Failsafe::PLURAL, "controllers")?;
        match self.client.get::<Failsafe>(&holder).await {
            Ok(object) => Ok(Some(object)),
            Err(ClientError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What a scrape shows, and an event tells.
    async fn is_told(&self, running: &Running, guard: Guard) -> Check<bool> {
        let label = format!("platctrl_failsafe_holds{{guard=\"{}\",", guard.as_str());
        let text = running.handle.metrics().text();
        let mut counts = text.lines().filter(|line| line.starts_with(&label));
        if !counts.any(|line| !line.ends_with(" 0.0")) {
            return Ok(false);
        }
        let events = self.list(Prefix::new("x/event/")?).await?;
        Ok(events.iter().any(|event| {
            let event = serde_json::from_slice::<Value>(&event.value).unwrap_or_default();
            let message = event["message"].as_str().unwrap_or_default();
            event["reason"] == "Held" && message.starts_with(guard.as_str())
        }))
    }

    /// Waits until the runtime holds, has written that down and tells it by metrics and events.
    #[track_caller]
    pub(super) fn is_held<'a>(
        &'a self,
        running: &'a Running,
        guard: Guard,
    ) -> impl Future<Output = Check> + use<'a> {
        self.until("it is held, written down and told", async move || {
            if !running.holds(guard) {
                return Ok(false);
            }
            let written = self.written().await?;
            let holds = written.map(|written| written.status.detail.holds);
            let mut holds = holds.into_iter().flatten();
            let written = holds.any(|hold| hold.guard == guard);
            Ok(written && self.is_told(running, guard).await?)
        })
    }

    /// Resets what is written down, as a person does, until nothing is held.
    pub(super) async fn reset(&self, running: &Running) -> Check {
        self.until("it is let go", async || {
            let Some(mut object) = self.written().await? else {
                return Ok(running.holds_nothing());
            };
            let holds = object.status.detail.holds.iter();
            let reset = holds.map(|hold| Reset {
                id: hold.id.clone(),
                since: hold.since,
            });
            object.spec.reset = reset.collect();
            match self.client.update(&object).await {
                Ok(_) => ring(&*self.address, &self.environment).await?,
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error.into()),
            }
            Ok(running.holds_nothing())
        })
        .await
    }

    /// Nothing was taken away, neither outside nor from the view.
    #[track_caller]
    pub(super) fn must_stand(&self, running: &Running) -> Check {
        let work = self.work();
        if work.outside.len() < PLANTS {
            return Err(Stop::failed(format!("something was taken away: {work:?}")));
        }
        if !work.absent.is_empty() {
            return Err(Stop::failed(format!(
                "something is taken for lost: {work:?}"
            )));
        }
        if running.handle.view().is_some() && running.shown() < PLANTS {
            return Err(Stop::failed("the view lost the last good intents"));
        }
        Ok(())
    }

    /// A plant that is new is worked on.
    pub(super) async fn goes_on(&self, name: &str) -> Check {
        self.plant(name, 1).await?;
        self.until("a new plant is worked on", async || {
            Ok(self.work().has_seen(name, 1))
        })
        .await
    }
}

/// Numbers that suit so few objects.
pub(super) fn narrow() -> Limits {
    Limits {
        budget_least: 2,
        budget_share: 0.0,
        ..Limits::default()
    }
}
