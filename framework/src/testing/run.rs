//! One run: a runtime on paused time on a thread of its own, from an empty store to the end that
//! is compared.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;

use super::core::{Core, Work, WriteInfo, is_failsafe};
use super::failure::Problem;
use super::fault::{FaultKind, Schedule};
use super::process::Process;
use super::simulation::{Config, Scenario};
use super::store::SimulatedStore;
use super::trace::{Actor, Trace, describe};
use super::worker::Fleet;
use super::world::{Replica, World};
use crate::client::Batch;
use crate::controller::RuntimeHandle;
use crate::model::{ObjectKey, RawObject, identity};
use crate::store::{Key, Prefix, Record, Store};

/// While a key's run fails, it is tried again at most this much later.
const LONGEST_BACKOFF: Duration = Duration::from_secs(330);
const STACK: usize = 16 << 20;

/// What everything has come to.
#[derive(Clone, Debug, Default)]
pub(super) struct End {
    pub(super) records: Vec<Record>,
    pub(super) processes: Vec<Process>,
    pub(super) by_scenario: Vec<String>,
}

/// All that is known after a run.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) problem: Option<Problem>,
    pub(super) trace: Trace,
    pub(super) end: End,
    pub(super) writes: Vec<WriteInfo>,
    pub(super) work: Work,
    pub(super) unmet: usize,
    pub(super) settled: Duration,
}

/// Runs a schedule to its end.
pub(super) fn execute(config: &Arc<Config>, schedule: &Schedule) -> Outcome {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        match runtime {
            Ok(runtime) => runtime.block_on(drive(config, schedule)),
            Err(error) => failed(format!("no runtime could be made: {error}")),
        }
    };
    // A thread of its own, so that this also works inside of somebody's runtime.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("simulation".to_owned())
            .stack_size(STACK);
        match thread.spawn_scoped(scope, run) {
            Ok(thread) => thread
                .join()
                .unwrap_or_else(|_| failed("the simulation itself panicked".to_owned())),
            Err(error) => failed(format!("no thread could be started: {error}")),
        }
    })
}

fn failed(error: String) -> Outcome {
    Outcome {
        problem: Some(Problem::Scenario { error }),
        ..Outcome::default()
    }
}

async fn drive(config: &Arc<Config>, schedule: &Schedule) -> Outcome {
    let core = Core::new(config, schedule);
    let found = tokio::select! {
        biased;
        () = core.over.notified() => None,
        problem = story(&core) => problem.err(),
    };
    if let Some(problem) = found {
        core.fail(problem);
    }
    let settled = core.now();
    let mut guard = core.state();
    let state = &mut *guard;
    Outcome {
        problem: state.problem.clone(),
        trace: std::mem::take(&mut state.trace),
        end: end(
            &core,
            state.table.values().cloned().collect(),
            &state.by_scenario,
        ),
        writes: std::mem::take(&mut state.writes),
        work: std::mem::take(&mut state.work),
        unmet: state.unmet(),
        settled,
    }
}

fn end(
    core: &Core,
    processes: Vec<Process>,
    by_scenario: &std::collections::BTreeSet<String>,
) -> End {
    let objects = Prefix::new("o/").expect("a constant that is a valid prefix");
    let records = match core.config.keep_history {
        true => {
            let mut records = core.store.dump_under(&objects);
            records.retain(|record| !is_failsafe(record.key.as_str()));
            records
        }
        false => Vec::new(),
    };
    End {
        records,
        processes,
        by_scenario: by_scenario.iter().cloned().collect(),
    }
}

/// Everything that happens in a run.
async fn story(core: &Arc<Core>) -> Result<(), Problem> {
    begin(core).await?;
    tokio::spawn(Fleet::new(core.clone()).run());
    core.state().counting = true;
    for index in 0..core.config.replicas {
        tokio::spawn(keep_running(core.clone(), index));
    }
    if let Some(scenario) = core.config.scenario.clone() {
        perform(core, &scenario).await?;
    }
    settled(core).await?;
    if core.state().restored {
        // What a person does who has looked.
        while core.sweep() {
            settled(core).await?;
        }
    }
    travel_back(core).await?;
    if core.config.keep_history {
        stays(core).await?;
    }
    nothing_is_left_behind(core)
}

/// The empty world.
async fn begin(core: &Arc<Core>) -> Result<(), Problem> {
    let wrong = |error: &dyn std::fmt::Display| Problem::Scenario {
        error: format!("the world could not be made: {error}"),
    };
    let store = SimulatedStore {
        core: core.clone(),
        actor: Actor::World,
    };
    let initialised = identity::initialise(&store, &core.environment).await;
    initialised.map_err(|error| wrong(&error))?;
    let Some(node_object) = &core.config.node_object else {
        return Ok(());
    };
    for node in &core.config.nodes {
        let Some((key, object)) = node_object(node) else {
            return Err(wrong(&format!(
                "the object of node {node} has no valid name"
            )));
        };
        create(core, &store, &key, object)
            .await
            .map_err(|error| wrong(&error))?;
    }
    Ok(())
}

pub(super) async fn create(
    core: &Core,
    store: &dyn Store,
    key: &ObjectKey,
    object: RawObject,
) -> Result<(), String> {
    let mut batch = Batch::new();
    let created = batch.create(&core.environment, key, object);
    created.map_err(|error| error.to_string())?;
    let committed = store.commit(batch.into_transaction()).await;
    committed.map(|_| ()).map_err(|error| error.to_string())
}

async fn perform(core: &Arc<Core>, scenario: &Scenario) -> Result<(), Problem> {
    let world = World::new(core.clone());
    let performed = AssertUnwindSafe(scenario(world)).catch_unwind();
    let wrong = |error: String| Err(Problem::Scenario { error });
    match tokio::time::timeout(core.config.deadline, performed).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(error))) => wrong(error.to_string()),
        Ok(Err(_)) => wrong("it panicked".to_owned()),
        Err(_) => wrong(format!(
            "it is not at its end after {:?}",
            core.config.deadline
        )),
    }
}

/// A replica: it runs, dies, and runs again.
async fn keep_running(core: Arc<Core>, index: usize) {
    let Some(factory) = core.config.factory.clone() else {
        return;
    };
    loop {
        let (actor, environment, crash) = core.begin(index);
        let replica = Replica {
            core: core.clone(),
            actor,
            environment,
        };
        let built = std::panic::catch_unwind(AssertUnwindSafe(|| factory(replica)));
        let Ok(runtime) = built else {
            core.fail(Problem::Ended {
                how: "the function that builds it panicked".to_owned(),
            });
            return;
        };
        let handle = runtime.handle();
        core.state().replicas[index].handle = Some(handle.clone());
        let mut task = tokio::spawn(runtime.run());
        tokio::select! {
            biased;
            () = crash.cancelled() => {
                check_panics(&core, &handle);
                task.abort();
                let _ = (&mut task).await;
            }
            ended = &mut task => {
                let how = match ended {
                    Ok(Ok(())) => "it returned".to_owned(),
                    Ok(Err(error)) => error.to_string(),
                    Err(error) => error.to_string(),
                };
                core.fail(Problem::Ended { how });
                return;
            }
        }
        tokio::time::sleep(core.delay_of(index)).await;
    }
}

fn check_panics(core: &Core, handle: &RuntimeHandle) {
    let Some(status) = handle.status() else {
        return;
    };
    let times: u64 = status
        .controllers
        .iter()
        .map(|controller| controller.panics)
        .sum();
    if times > 0 {
        core.fail(Problem::Panicked { times });
    }
}

/// What still keeps the controllers busy, as far as they know themselves; checks for panics.
fn failing(core: &Core) -> Option<String> {
    let handles: Vec<RuntimeHandle> = {
        let state = core.state();
        state
            .replicas
            .iter()
            .filter_map(|replica| replica.handle.clone())
            .collect()
    };
    let mut failing = None;
    for handle in handles {
        check_panics(core, &handle);
        let Some(status) = handle.status() else {
            continue;
        };
        for controller in status.controllers {
            let mut restless = controller.restless.iter();
            if let Some(hot) = restless.find(|restless| restless.contender.is_none()) {
                // The runtime slows it, so that it may look settled for a while.
                core.fail(Problem::restless(format!(
                    "{} wakes itself, {} times in a row, by {}",
                    hot.key, hot.times, hot.record
                )));
            }
            if let Some(key) = controller.failing.iter().min_by(|a, b| a.key.cmp(&b.key)) {
                failing = Some(format!(
                    "{} fails {} times: {}",
                    key.key, key.failures, key.error
                ));
            }
        }
    }
    failing
}

/// Waits until nothing has happened for a while, and nothing is about to.
pub(super) async fn settled(core: &Arc<Core>) -> Result<(), Problem> {
    let begun = core.now();
    loop {
        let now = core.now();
        let (idle, calm) = {
            let state = core.state();
            let alive = state.replicas.iter().all(|replica| replica.alive);
            let alive = alive || core.config.factory.is_none();
            let busy = state.fleet_busy || !state.dirty.is_empty() || !state.orders.is_empty();
            (
                now.saturating_sub(state.last_activity),
                alive && !busy && state.active == 0,
            )
        };
        let failing = failing(core);
        if core.state().problem.is_some() {
            // Whoever waits for this is being dropped.
            std::future::pending::<()>().await;
        }
        let needed = match failing {
            Some(_) => core.config.quiet.max(LONGEST_BACKOFF),
            None => core.config.quiet,
        };
        if calm && idle >= needed {
            return Ok(());
        }
        if now.saturating_sub(begun) > core.config.deadline {
            let detail = failing.unwrap_or_else(|| still_writing(core));
            return Err(Problem::restless(detail));
        }
        let wait = needed.saturating_sub(idle);
        tokio::time::sleep(wait.clamp(Duration::from_millis(100), Duration::from_secs(30))).await;
    }
}

fn still_writing(core: &Core) -> String {
    let state = core.state();
    match state.writes.last() {
        Some(last) => {
            let what = describe(&last.touched).unwrap_or_default();
            format!(
                "{} writes, the last by {}: {what}",
                state.writes.len(),
                last.actor.name()
            )
        }
        None => "something is always about to happen".to_owned(),
    }
}

/// The controllers begin again on an old view.
async fn travel_back(core: &Arc<Core>) -> Result<(), Problem> {
    let faults = core.schedule.faults.iter();
    let travels: Vec<u32> = faults
        .filter(|fault| fault.kind == FaultKind::TravelBack)
        .map(|fault| fault.write)
        .collect();
    for write in travels {
        let revision = {
            let state = core.state();
            let index = (write as usize).checked_sub(1);
            index
                .and_then(|index| state.writes.get(index))
                .map(|write| write.revision)
        };
        if let Some(revision) = revision.filter(|revision| *revision <= core.store.revision()) {
            core.note(
                Actor::World,
                format!("everything is settled; the controllers begin again on the view as it was after write {write}"),
            );
            core.crash_all(Some(revision));
            settled(core).await?;
        }
    }
    Ok(())
}

/// When everything is settled and the controllers begin again, they have nothing to do.
async fn stays(core: &Arc<Core>) -> Result<(), Problem> {
    let before = core.state().writes.len();
    core.note(
        Actor::World,
        "everything is settled; the controllers begin again",
    );
    core.crash_all(None);
    settled(core).await?;
    let state = core.state();
    let moved = state
        .writes
        .iter()
        .skip(before)
        .filter(|write| matches!(write.actor, Actor::Replica(..)));
    let writes: Vec<String> = moved
        .take(5)
        .map(|write| describe(&write.touched).unwrap_or_default())
        .collect();
    drop(state);
    if writes.is_empty() {
        Ok(())
    } else {
        Err(Problem::Moving { writes })
    }
}

/// No process without an object, and no object of an owner that is gone.
fn nothing_is_left_behind(core: &Core) -> Result<(), Problem> {
    if core.config.orphans_may_stay {
        return Ok(());
    }
    let orphan = |what: String| Err(Problem::Orphan { what });
    let state = core.state();
    for (path, process) in &state.table {
        let wanted = Key::new(format!("o/intent/{path}")).ok();
        let wanted = wanted.and_then(|key| core.store.peek(&key));
        if wanted.is_none() {
            return orphan(format!(
                "a process of {}, which does not exist",
                process.key
            ));
        }
    }
    drop(state);
    let intents = Prefix::new("o/intent/").expect("a constant that is a valid prefix");
    let records = core.store.dump_under(&intents);
    let parsed: Vec<(&Record, serde_json::Value)> = records
        .iter()
        .filter_map(|record| Some((record, serde_json::from_slice(&record.value).ok()?)))
        .collect();
    let uids: std::collections::BTreeSet<&str> = parsed
        .iter()
        .filter_map(|(_, value)| value["metadata"]["uid"].as_str())
        .collect();
    for (record, value) in &parsed {
        let owners = value["metadata"]["ownerReferences"].as_array();
        for owner in owners.into_iter().flatten() {
            let uid = owner["uid"].as_str().unwrap_or_default();
            if !uids.contains(uid) {
                let name = owner["name"].as_str().unwrap_or_default();
                let kind = owner["kind"].as_str().unwrap_or_default();
                let key = record.key.as_str().trim_start_matches("o/intent/");
                return orphan(format!("{key}, of the {kind} {name}, which is gone"));
            }
        }
    }
    Ok(())
}
