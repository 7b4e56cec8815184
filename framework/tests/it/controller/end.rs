//! How objects end: who has to agree, and what a crash may not leave behind.

use std::collections::BTreeSet;
use std::sync::Mutex;

use platctrl_framework::client::Batch;
use platctrl_framework::model::{Joined, Tree};
use platctrl_framework::store::Transaction;
use serde_json::{Value, json};

use super::*;

fn page_key(name: &str) -> ObjectKey {
    ObjectKey::namespaced("example.dev", "pages", "default", name).unwrap()
}

fn tombstoned(uid: &str) -> Value {
    json!({
        "apiVersion": "example.dev/v1", "kind": "Page", "spec": {"text": "x"},
        "metadata": {
            "name": "p", "namespace": "default", "uid": uid,
            "deletion": {"uid": uid, "at": "2026-01-01T00:00:00Z", "by": "test", "propagation": "Orphan"},
        },
    })
}

fn report(uid: &str, phase: &str) -> Value {
    json!({
        "apiVersion": "example.dev/v1", "kind": "Page", "status": {"phase": phase},
        "metadata": {"name": "p", "namespace": "default", "uid": uid},
    })
}

#[tokio::test(start_paused = true)]
async fn the_reaper_waits_for_everybody_and_then_removes_everything_at_once() {
    let world = World::new().await;
    let key = page_key("p");
    let put = |transaction: Transaction, key, value: Value| transaction.put(key, value.to_string());
    let part = key.part("dns").unwrap();
    let mut all = Transaction::new();
    all = put(all, key.store_key(Tree::Intent), tombstoned("u"));
    all = put(all, key.store_key(Tree::Reality), report("u", "Stopping"));
    all = put(all, part.clone(), report("u", "Running"));
    all = put(all, key.store_key(Tree::Ledger), json!({}));
    all = put(all, key.store_key(Tree::Grant), json!({}));
    world.store.commit(all).await.unwrap();
    let _running = world.run(world.runtime().kind::<Page>().reap());
    let stays = || async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(world.count("o/"), 5);
    };
    stays().await;
    let gone = put(
        Transaction::new(),
        key.store_key(Tree::Reality),
        report("u", "Gone"),
    );
    world.store.commit(gone).await.unwrap();
    stays().await;
    let revision = world.store.revision();
    // A part about another uid has no say.
    let other = put(Transaction::new(), part.clone(), report("other", "Running"));
    world.store.commit(other).await.unwrap();
    until("all is gone", || async { world.count("o/") == 0 }).await;
    assert_eq!(world.store.revision(), revision.next().next());
}

#[tokio::test(start_paused = true)]
async fn a_tombstone_without_any_report_is_reaped() {
    let world = World::new().await;
    let intent = page_key("p").store_key(Tree::Intent);
    let put = Transaction::new().put(intent, tombstoned("u").to_string());
    world.store.commit(put).await.unwrap();
    let _running = world.run(world.runtime().kind::<Page>().reap());
    until("it is gone", || async { world.count("o/") == 0 }).await;
}

#[tokio::test(start_paused = true)]
async fn a_tombstone_for_another_uid_ends_nothing() {
    let world = World::new().await;
    let mut intent = tombstoned("u");
    intent["metadata"]["uid"] = json!("newer");
    let key = page_key("p").store_key(Tree::Intent);
    let put = Transaction::new().put(key, intent.to_string());
    world.store.commit(put).await.unwrap();
    let ran = Arc::new(Mutex::new(0));
    let counted = ran.clone();
    let controller = Controller::<Page>::new("pages", move |_, _| {
        *counted.lock().unwrap() += 1;
        async { Ok::<_, ReconcileError>(Action::await_change()) }
    });
    let _running = world.run(world.runtime().controller(controller).reap());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((world.count("o/"), *ran.lock().unwrap()), (1, 1));
}

/// Things outside of the store, by the uid of the object they were made for.
type Outside = Arc<Mutex<BTreeSet<String>>>;

fn outside_controller(outside: &Outside) -> Controller<Site> {
    let (make, take) = (outside.clone(), outside.clone());
    let slow = Duration::from_millis(7);
    Controller::<Site>::new("sites", move |_, context| {
        let make = make.clone();
        async move {
            let claimed = context.claim().await?;
            tokio::time::sleep(slow).await;
            make.lock().unwrap().insert(claimed.uid().to_string());
            tokio::time::sleep(slow).await;
            let mut changes = context.changes();
            let detail = SiteStatus { pages: 1 };
            changes.report::<Site>(&Status {
                detail,
                ..Status::default()
            })?;
            changes.commit().await?;
            Ok::<_, ReconcileError>(Action::await_change())
        }
    })
    .on_delete(move |site, context| {
        let take = take.clone();
        async move {
            tokio::time::sleep(slow).await;
            take.lock().unwrap().remove(&site.metadata.uid.to_string());
            tokio::time::sleep(slow).await;
            let mut changes = context.changes();
            changes.report_gone()?;
            changes.commit().await?;
            Ok::<_, ReconcileError>(Action::await_change())
        }
    })
}

#[tokio::test(start_paused = true)]
async fn what_was_made_outside_is_taken_away_wherever_a_crash_and_a_delete_meet() {
    let mut leaked_midway = 0;
    for step in 0..60_u64 {
        let world = World::new().await;
        world.store.faults().set_latency(Duration::from_millis(3));
        let outside = Outside::default();
        let run = || {
            let runtime = world.runtime().controller(outside_controller(&outside));
            world.run(runtime.reap().elect_leader("sites"))
        };
        world.site("a", 0).await;
        let running = run();
        let (crash, delete) = (step * 2, (step * 37) % 120);
        let wait = |ms| tokio::time::sleep(Duration::from_millis(ms));
        wait(crash.min(delete)).await;
        if delete < crash {
            world.delete(&site_key("a")).await;
            wait(crash - delete).await;
            running.crash().await;
        } else {
            running.crash().await;
            leaked_midway += usize::from(!outside.lock().unwrap().is_empty());
            world.delete(&site_key("a")).await;
        }
        let _running = run();
        until("its records are gone", || async { world.count("o/") == 0 }).await;
        assert!(outside.lock().unwrap().is_empty(), "step {step}");
        // The name is free for another one.
        world.site("a", 0).await;
        until("the next one is made", || async {
            outside.lock().unwrap().len() == 1
        })
        .await;
    }
    assert!(
        leaked_midway > 3,
        "crashes did happen between effect and report"
    );
}

#[tokio::test(start_paused = true)]
async fn deleted_and_made_again_at_once_is_another_object() {
    let world = World::new().await;
    let outside = Outside::default();
    let first = world.site("a", 0).await;
    let runtime = world.runtime().controller(outside_controller(&outside));
    let _running = world.run(runtime.reap());
    until("it is made", || async {
        outside.lock().unwrap().len() == 1
    })
    .await;
    // As if the end and the next beginning were one moment: no view shows anything between.
    let joined: Joined = world.client.joined(&site_key("a")).await.unwrap();
    let again = Object::<Site>::new(named("a"), SiteSpec { pages: 5 });
    let mut batch = Batch::new();
    let again = batch
        .create(&world.environment, &joined.key, again.to_raw().unwrap())
        .unwrap();
    let create = batch.into_transaction();
    let replace = create
        .writes
        .into_iter()
        .fold(Transaction::new(), |mut all, write| {
            all.writes.push(write);
            all
        });
    world.store.commit(replace).await.unwrap();
    until("the new one is made", || async {
        outside
            .lock()
            .unwrap()
            .contains(again.metadata.uid.as_str())
    })
    .await;
    assert_ne!(first.metadata.uid, again.metadata.uid);
}

#[tokio::test(start_paused = true)]
async fn deleted_and_made_again_within_a_millisecond_leaks_nothing() {
    let mut met = 0;
    for offset in 0..45_u64 {
        let world = World::new().await;
        world.store.faults().set_latency(Duration::from_micros(300));
        let outside = Outside::default();
        let runtime = world.runtime().controller(outside_controller(&outside));
        let _running = world.run(runtime.reap());
        let first = world.site("a", 0).await;
        tokio::time::sleep(Duration::from_millis(offset)).await;
        world.delete(&site_key("a")).await;
        let site = Object::<Site>::new(named("a"), SiteSpec { pages: 1 });
        let again = loop {
            match world.client.create(&site).await {
                Ok(again) => break again,
                // It has not come to its end yet.
                Err(error) => met += usize::from(error.to_string().contains("deleted")),
            }
        };
        assert_ne!(first.metadata.uid, again.metadata.uid);
        until("only the new one is there", || async {
            let uid = again.metadata.uid.to_string();
            *outside.lock().unwrap() == BTreeSet::from([uid])
        })
        .await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(outside.lock().unwrap().len(), 1, "after {offset} ms");
    }
    assert!(met > 0, "it was asked for while the first was ending");
}

/// A second writer on the sites, which keeps its share of the status in a part: claims before it
/// makes something, and says `Gone` once that is taken away. Each step may be its last.
async fn second_writer(world: World, outside: Outside) {
    let key = site_key("a");
    let part = key.part("dns").unwrap();
    let slow = Duration::from_millis(7);
    let report = |uid: &str, phase: &str| {
        json!({
            "apiVersion": "example.dev/v1", "kind": "Site", "status": {"phase": phase},
            "metadata": {"name": "a", "namespace": "default", "uid": uid, "claim": "dns"},
        })
        .to_string()
    };
    loop {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let joined: Joined = world.client.joined(&key).await.unwrap();
        let held = joined.parts.get("dns");
        let Some(intent) = &joined.intent else {
            continue;
        };
        let uid = intent.value.metadata.uid.to_string();
        let mine = held.filter(|part| part.value.metadata.uid.as_str() == uid);
        let write = |phase| {
            Transaction::new()
                .require_unchanged(key.store_key(Tree::Intent), Some(intent.modified))
                .require_unchanged(part.clone(), held.map(|part| part.modified))
                .put(part.clone(), report(&uid, phase))
        };
        if intent.value.metadata.is_deleted() {
            if mine.is_some_and(|part| {
                part.value.status.phase != platctrl_framework::model::Phase::GONE
            }) {
                tokio::time::sleep(slow).await;
                outside.lock().unwrap().remove(&uid);
                tokio::time::sleep(slow).await;
                let _ = world.store.commit(write("Gone")).await;
            }
        } else if mine.is_none() {
            if world.store.commit(write("Running")).await.is_ok() {
                tokio::time::sleep(slow).await;
                outside.lock().unwrap().insert(uid);
            }
        } else if !outside.lock().unwrap().contains(&uid) {
            // A crash came between claim and effect.
            tokio::time::sleep(slow).await;
            outside.lock().unwrap().insert(uid);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn two_writers_both_clean_up_wherever_one_of_them_crashes() {
    let (mut first_left, mut second_left) = (0, 0);
    for step in 0..40_u64 {
        let world = World::new().await;
        world.store.faults().set_latency(Duration::from_millis(1));
        let (first, second) = (Outside::default(), Outside::default());
        let controller = || {
            let runtime = world.runtime().controller(outside_controller(&first));
            world.run(runtime.reap().elect_leader("sites"))
        };
        let writer = || tokio::spawn(second_writer(world.clone(), second.clone()));
        world.site("a", 0).await;
        let (mut running, mut other) = (controller(), writer());
        tokio::time::sleep(Duration::from_millis((step * 23) % 60)).await;
        world.delete(&site_key("a")).await;
        tokio::time::sleep(Duration::from_millis(step)).await;
        // One of them is killed on its way, and comes back.
        if step % 2 == 0 {
            running.crash().await;
            first_left += usize::from(!first.lock().unwrap().is_empty());
            running = controller();
        } else {
            other.abort();
            let _ = (&mut other).await;
            second_left += usize::from(!second.lock().unwrap().is_empty());
            other = writer();
        }
        until("its records are gone", || async { world.count("o/") == 0 }).await;
        assert!(first.lock().unwrap().is_empty(), "step {step}");
        assert!(second.lock().unwrap().is_empty(), "step {step}");
        other.abort();
        drop(running);
    }
    assert!(
        first_left > 0 && second_left > 0,
        "crashes did happen while something was there: {first_left}, {second_left}"
    );
}
