//! Further writers of an object's status, each with a part of its own.

use std::collections::BTreeSet;
use std::sync::Mutex;

use platctrl_framework::client::ClientError;
use platctrl_framework::controller::CommitError;
use platctrl_framework::model::{Condition, ConditionStatus, Joined, Phase};
use serde_json::{Value, json};

use super::*;

/// Things outside of the store, by the uid of the object they were made for.
type Outside = Arc<Mutex<BTreeSet<String>>>;

const SLOW: Duration = Duration::from_millis(7);

/// The objects' own worker.
fn worker(outside: &Outside) -> Controller<Site> {
    let (make, take) = (outside.clone(), outside.clone());
    Controller::<Site>::new("sites", move |_, context| {
        let make = make.clone();
        async move {
            let claimed = context.claim().await?;
            tokio::time::sleep(SLOW).await;
            make.lock().unwrap().insert(claimed.uid().to_string());
            let mut changes = context.changes();
            changes.report::<Site>(&Status {
                detail: SiteStatus { pages: 4 },
                ..Status::default()
            })?;
            changes.commit().await?;
            Ok::<_, ReconcileError>(Action::await_change())
        }
    })
    .on_delete(move |site, context| end(take.clone(), site, context))
}

/// Another one beside it, which keeps names.
fn syncer(outside: &Outside) -> Controller<Site> {
    let (make, take) = (outside.clone(), outside.clone());
    Controller::<Site>::new("dns", move |site, context| {
        let make = make.clone();
        async move {
            let claimed = context.claim().await?;
            tokio::time::sleep(SLOW).await;
            make.lock().unwrap().insert(claimed.uid().to_string());
            let mut status = Status {
                detail: json!({"records": 2, "pages": 99}),
                ..Status::default()
            };
            status.conditions.set(
                Condition::new("Named", ConditionStatus::True, "Synced", ""),
                site.metadata.generation,
                context.environment().now(),
            );
            let mut changes = context.changes();
            changes.report_part(&status)?;
            changes.commit().await?;
            Ok::<_, ReconcileError>(Action::await_change())
        }
    })
    .on_delete(move |site, context| end(take.clone(), site, context))
    .writes_part("dns")
}

async fn end(
    outside: Outside,
    site: Arc<Object<Site>>,
    context: Context,
) -> Result<Action, ReconcileError> {
    tokio::time::sleep(SLOW).await;
    outside.lock().unwrap().remove(site.metadata.uid.as_str());
    tokio::time::sleep(SLOW).await;
    let mut changes = context.changes();
    changes.report_gone()?;
    changes.commit().await?;
    Ok(Action::await_change())
}

#[tokio::test(start_paused = true)]
async fn two_writers_report_on_one_object_and_readers_are_shown_one_status() {
    let world = World::new().await;
    let (first, second) = (Outside::default(), Outside::default());
    world.site("a", 0).await;
    let runtime = world.runtime().controller(worker(&first));
    let _running = world.run(runtime.controller(syncer(&second)).reap());
    let kind = platctrl_framework::model::KindDefinition::of::<Site>();
    until("both have reported", || async {
        let list = world.client.list(&kind, None).await.unwrap();
        let object = list.shown().next().map(|it| it.status.clone()).unwrap();
        object.detail.get("records") == Some(&json!(2))
            && object.detail.get("pages") == Some(&json!(4))
            && object.conditions.is_true("Named")
    })
    .await;
    let joined: Joined = world.client.joined(&site_key("a")).await.unwrap();
    let claim = |claim: Option<&String>| claim.cloned();
    let own = joined.own_reality().unwrap();
    let part = joined.own_part("dns").unwrap();
    assert_eq!(
        claim(own.value.metadata.claim.as_ref()).as_deref(),
        Some("sites")
    );
    assert_eq!(
        claim(part.value.metadata.claim.as_ref()).as_deref(),
        Some("dns")
    );
    // At rest nobody writes.
    let before = joined.resource_version();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let joined: Joined = world.client.joined(&site_key("a")).await.unwrap();
    assert_eq!(joined.resource_version(), before);
}

#[tokio::test(start_paused = true)]
async fn two_writers_both_clean_up_before_the_records_go() {
    let world = World::new().await;
    let (first, second) = (Outside::default(), Outside::default());
    world.site("a", 0).await;
    let runtime = world.runtime().controller(worker(&first));
    let with_both = world.run(runtime.controller(syncer(&second)).reap());
    until("both have made something", || async {
        first.lock().unwrap().len() + second.lock().unwrap().len() == 2
    })
    .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    with_both.stop().await;
    world.delete(&site_key("a")).await;
    // Without the syncer the object stays, however long.
    let alone = world.run(world.runtime().controller(worker(&first)).reap());
    until("the worker is done", || async {
        first.lock().unwrap().is_empty()
    })
    .await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let joined: Joined = world.client.joined(&site_key("a")).await.unwrap();
    assert_eq!(
        joined.own_reality().unwrap().value.status.phase,
        Phase::GONE
    );
    assert!(!joined.is_finished() && joined.own_part("dns").is_some());
    alone.stop().await;
    let runtime = world.runtime().controller(syncer(&second)).reap();
    let _running = world.run(runtime);
    until("its records are gone", || async { world.count("o/") == 0 }).await;
    assert!(second.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_writer_of_a_part_leaks_nothing_wherever_a_crash_and_a_delete_meet() {
    let mut left_midway = 0;
    for step in 0..50_u64 {
        let world = World::new().await;
        world.store.faults().set_latency(Duration::from_millis(2));
        let (first, second) = (Outside::default(), Outside::default());
        let run = || {
            let own = world.runtime().controller(worker(&first)).reap();
            let beside = world.runtime().name("names").controller(syncer(&second));
            let own = world.run(own.elect_leader("sites"));
            (own, world.run(beside.elect_leader("names")))
        };
        world.site("a", 0).await;
        let (own, beside) = run();
        tokio::time::sleep(Duration::from_millis((step * 23) % 60)).await;
        world.delete(&site_key("a")).await;
        tokio::time::sleep(Duration::from_millis(step)).await;
        beside.crash().await;
        left_midway += usize::from(!second.lock().unwrap().is_empty());
        own.crash().await;
        let _running = run();
        until("its records are gone", || async { world.count("o/") == 0 }).await;
        assert!(first.lock().unwrap().is_empty(), "step {step}");
        assert!(second.lock().unwrap().is_empty(), "step {step}");
    }
    assert!(
        left_midway > 3,
        "crashes did happen while something was there"
    );
}

#[tokio::test(start_paused = true)]
async fn who_writes_a_part_cannot_report_for_the_worker_nor_the_other_way_round() {
    let world = World::new().await;
    world.site("a", 0).await;
    let said = Arc::<Mutex<Vec<String>>>::default();
    let told = |said: &Arc<Mutex<Vec<String>>>, error: ClientError| {
        said.lock().unwrap().push(error.to_string());
    };
    let (as_worker, as_part) = (said.clone(), said.clone());
    let part = Controller::<Site>::new("dns", move |_, context: Context| {
        let error = context.changes().report::<Site>(&Status::default());
        told(&as_part, error.unwrap_err());
        async { Ok::<_, CommitError>(Action::await_change()) }
    })
    .writes_part("dns");
    let worker = Controller::<Site>::new("sites", move |_, context: Context| {
        let status = Status {
            detail: Value::Null,
            ..Status::default()
        };
        told(
            &as_worker,
            context.changes().report_part(&status).unwrap_err(),
        );
        async { Ok::<_, CommitError>(Action::await_change()) }
    });
    let _running = world.run(world.runtime().controller(part).controller(worker));
    until("both were told", || async {
        let said = said.lock().unwrap().join("\n");
        said.contains("use `report_part`, into `dns`")
            && said.contains("declare it by `writes_part`")
    })
    .await;
    assert_eq!(world.count("o/reality/") + world.count("o/part/"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_part_without_a_name_that_can_be_is_refused() {
    let world = World::new().await;
    let syncer = syncer(&Outside::default()).writes_part("No Name");
    let outcome = world.runtime().controller(syncer).run().await;
    assert!(matches!(outcome, Err(RunError::Name(_))), "{outcome:?}");
}
