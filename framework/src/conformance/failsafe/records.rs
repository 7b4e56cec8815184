//! Records that are lost, change or go back, of one object or of all at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::super::kit::{Check, Stop, Subject, ensure};
use super::ground::{Ground, PLANTS, Plant, key_of, name_of, narrow};
use crate::controller::{Action, Context, Controller, ReconcileError, Runtime};
use crate::failsafe::Guard;
use crate::model::{Joined, Metadata, Object, ObjectKey, Phase, Resource, Tree};
use crate::store::{Key, Record, Store, Transaction};

fn resized(mut intent: Value) -> Option<Value> {
    intent["spec"]["size"] = json!(9);
    Some(intent)
}

pub(super) async fn failsafe_intent_lost(subject: Subject) -> Check {
    let (ground, running) = Ground::grown(subject).await?;
    ground.rewrite(1, Tree::Intent, |_| None).await?;
    ground
        .until("it is told", async || Ok(ground.work().absent.len() == 1))
        .await?;
    ground.minutes(3).await;
    ensure!(ground.work().outside.len() == PLANTS, "it was taken away");
    ensure!(running.holds_nothing(), "one lost intent held everything");
    let key = key_of(&name_of(0))?;
    let joined = ground.client.joined(&key).await?;
    ensure!(joined.is_unexplained(), "its report went with it");
    ground
        .until("a person finds it listed", async || {
            let written = ground.written().await?;
            let listed = written.map(|written| written.status.detail.unexplained);
            Ok(listed
                .is_some_and(|listed| listed.contains(&key.store_key(Tree::Intent).to_string())))
        })
        .await?;
    ground.goes_on("new").await
}

pub(super) async fn failsafe_intent_all_vanish(subject: Subject) -> Check {
    let (ground, running) = Ground::grown(subject).await?;
    ground.rewrite(PLANTS, Tree::Intent, |_| None).await?;
    ground.is_held(&running, Guard::Vanished).await?;
    ground.minutes(5).await;
    ground.must_stand(&running)?;
    ground.reset(&running).await?;
    ground
        .until("they are taken for lost", async || {
            Ok(ground.work().absent.len() == PLANTS)
        })
        .await?;
    let kept = ground.work().outside.len();
    ensure!(kept == PLANTS, "a missing intent is no order: {kept} left");
    Ok(())
}

pub(super) async fn failsafe_intent_all_change(subject: Subject) -> Check {
    let (ground, running) = Ground::grown(subject).await?;
    ground.rewrite(PLANTS, Tree::Intent, resized).await?;
    ground.is_held(&running, Guard::Changed).await?;
    ground.minutes(5).await;
    ground.must_stand(&running)?;
    let taken = ground.work().has_seen(&name_of(0), 9);
    ensure!(!taken, "what nobody ordered was done");
    ground.reset(&running).await?;
    ground
        .until("they are worked on as they are", async || {
            let work = ground.work();
            Ok((0..PLANTS).all(|plant| work.has_seen(&name_of(plant), 9)))
        })
        .await
}

pub(super) async fn failsafe_intent_all_become_unreadable(subject: Subject) -> Check {
    let (ground, running) = Ground::grown(subject).await?;
    let nonsense = |_| Some(json!("nothing"));
    ground.rewrite(PLANTS, Tree::Intent, nonsense).await?;
    ground.is_held(&running, Guard::Changed).await?;
    ground.minutes(5).await;
    ground.must_stand(&running)
}

pub(super) async fn failsafe_intent_all_go_back(subject: Subject) -> Check {
    let (ground, running) = Ground::grown(subject).await?;
    for plant in 0..PLANTS {
        ground.resize(&name_of(plant), 5).await?;
    }
    ground
        .until("all are worked on", async || {
            let work = ground.work();
            Ok((0..PLANTS).all(|plant| work.has_seen(&name_of(plant), 5)))
        })
        .await?;
    ground.work().seen.clear();
    let back = |mut intent: Value| {
        intent["metadata"]["generation"] = json!(1);
        intent["spec"]["size"] = json!(1);
        Some(intent)
    };
    ground.rewrite(PLANTS, Tree::Intent, back).await?;
    ground.is_held(&running, Guard::WentBack).await?;
    ground.minutes(5).await;
    ground.must_stand(&running)?;
    let taken = ground.work().has_seen(&name_of(0), 1);
    ensure!(!taken, "what was wanted once was done");
    Ok(())
}

pub(super) async fn failsafe_reality_lost(subject: Subject) -> Check {
    let (ground, running) = Ground::grown(subject).await?;
    ground.rewrite(1, Tree::Reality, |_| None).await?;
    let key = key_of(&name_of(0))?;
    ground
        .until("it is reported again", async || {
            let joined = ground.client.joined(&key).await?;
            Ok(joined.own_reality().is_some())
        })
        .await?;
    ensure!(running.holds_nothing(), "one lost report held everything");
    ground.must_stand(&running)
}

pub(super) async fn failsafe_reality_all_vanish(subject: Subject) -> Check {
    let ground = Ground::new(subject).await?;
    // Its controller does not report again by itself: each run but the first only looks.
    let running = ground.run(ground.runtime(ground.failsafes()).controller(still()));
    ground.grow_all(&running).await?;
    for plant in 0..PLANTS {
        ground.still(&format!("s{plant}")).await?;
    }
    ground
        .until("their reports are seen", async || {
            let view = running.handle.view();
            let seen = |plant: usize| {
                let key = still_key(&format!("s{plant}")).ok()?;
                view.as_ref()?.record(&key, Tree::Reality)
            };
            Ok((0..PLANTS).all(|plant| seen(plant).is_some()))
        })
        .await?;
    let kind = Still::group_plural();
    let prefix = kind.prefix(Tree::Reality);
    ground.remove(prefix.as_str(), &[]).await?;
    ground.is_held(&running, Guard::RealityLost).await?;
    ground.minutes(3).await;
    ground.must_stand(&running)?;
    let left = ground.list(kind.prefix(Tree::Intent)).await?.len();
    ensure!(left == PLANTS, "{left} of {PLANTS} intents are left");
    Ok(())
}

pub(super) async fn failsafe_reality_of_another_uid(subject: Subject) -> Check {
    let (ground, _running) = Ground::grown(subject).await?;
    let key = key_of(&name_of(0))?;
    let foreign = |mut reality: Value| {
        reality["metadata"]["uid"] = json!("somebody-else");
        reality["status"]["phase"] = json!("Running");
        Some(reality)
    };
    let before = ground.client.joined(&key).await?;
    ground.rewrite(1, Tree::Reality, foreign).await?;
    ground
        .until("its own is reported again", async || {
            let joined = ground.client.joined(&key).await?;
            let phase = joined.object().map(|object| object.status.phase);
            // Whoever reads it meanwhile is not shown somebody else's.
            if phase.is_some_and(|phase| phase == Phase::new("Running")) {
                return Err(Stop::failed("it is shown as this one's"));
            }
            Ok(joined.own_reality().is_some())
        })
        .await?;
    let now = ground.client.joined(&key).await?;
    let uid = |joined: &Joined| {
        let intent = joined.intent.as_ref();
        intent.map(|intent| intent.value.metadata.uid.clone())
    };
    ensure!(uid(&before) == uid(&now), "the object is another one");
    Ok(())
}

pub(super) async fn failsafe_root_all_vanish(subject: Subject) -> Check {
    let (ground, running) = Ground::grown(subject).await?;
    ground.remove("o/", &["o/.anchor"]).await?;
    ground
        .until("it is held", async || Ok(running.holds(Guard::Vanished)))
        .await?;
    ground.minutes(5).await;
    ground.must_stand(&running)
}

pub(super) async fn failsafe_tombstones_in_bulk(subject: Subject) -> Check {
    let ground = Ground::new(subject).await?;
    let running = ground.run(ground.runtime(ground.failsafes().limits(narrow())));
    ground.grow_all(&running).await?;
    let tombstone = |mut intent: Value| {
        let uid = intent["metadata"]["uid"].clone();
        intent["metadata"]["deletion"] = json!({
            "uid": uid, "at": "2026-01-01T00:00:00Z", "by": "a script", "propagation": "Orphan",
        });
        Some(intent)
    };
    ground.rewrite(PLANTS, Tree::Intent, tombstone).await?;
    ground.is_held(&running, Guard::Budget).await?;
    ground.minutes(8).await;
    let left = ground.work().outside.len();
    ensure!(left == PLANTS - 2, "the budget is 2, and {left} are left");
    Ok(())
}

pub(super) async fn failsafe_budget(subject: Subject) -> Check {
    let ground = Ground::new(subject).await?;
    let running = ground.run(ground.runtime(ground.failsafes().limits(narrow())));
    ground.grow_all(&running).await?;
    ground.trigger.fire(key_of(&name_of(0))?, "end the others");
    ground.is_held(&running, Guard::Budget).await?;
    ground.minutes(8).await;
    ground.must_stand(&running)?;
    ground.reset(&running).await?;
    ground
        .until("what was held is done", async || {
            Ok(ground.work().outside.len() == 1)
        })
        .await
}

pub(super) async fn failsafe_cold_start(subject: Subject) -> Check {
    let (ground, running) = Ground::grown(subject).await?;
    running.crash().await;
    let begun = ground.environment.monotonic();
    let running = ground.run(ground.runtime(ground.failsafes()));
    ground
        .until("it is tried", async || {
            // Heard by the runtime once it has begun.
            ground.trigger.fire(key_of(&name_of(0))?, "end the others");
            let tried = running.failsafe().refusals > 0;
            Ok(tried || ground.work().outside.len() < PLANTS)
        })
        .await?;
    ground
        .until("they are ended", async || {
            Ok(ground.work().outside.len() == 1)
        })
        .await?;
    let took = ground.environment.monotonic().saturating_sub(begun);
    ensure!(took >= Duration::from_secs(30), "after {took:?} already");
    Ok(())
}

pub(super) async fn failsafe_event_and_beat_lost(subject: Subject) -> Check {
    let (ground, running) = Ground::grown(subject).await?;
    for name in ["x/event/other/000", "x/beat/node"] {
        ground.put(&Key::new(name)?, &json!({})).await?;
    }
    ground.remove("x/event/", &[]).await?;
    ground.remove("x/beat/", &[]).await?;
    ground.goes_on("new").await?;
    ground.minutes(3).await;
    ground.must_stand(&running)?;
    ensure!(running.holds_nothing(), "{:?}", running.failsafe());
    Ok(())
}

pub(super) async fn failsafe_claim_lost(subject: Subject) -> Check {
    // Leases are of the store's time.
    let ground = Ground::at_pace(subject, 1).await?;
    let gate = Arc::new(Semaphore::new(0));
    let begun = Arc::new(AtomicUsize::new(0));
    // The epochs that commits were made under.
    let epochs = Arc::new(Mutex::new(Vec::new()));
    let late = |holder: &str, waits: bool| {
        let (gate, begun, epochs) = (gate.clone(), begun.clone(), epochs.clone());
        let run = move |_: Arc<Object<Plant>>, context: Context| {
            let (gate, begun, epochs) = (gate.clone(), begun.clone(), epochs.clone());
            async move {
                if waits {
                    begun.fetch_add(1, Ordering::SeqCst);
                    let _ = gate.acquire().await;
                }
                let claimed = context.claim().await?;
                let mut epochs = epochs.lock().unwrap_or_else(PoisonError::into_inner);
                epochs.extend(claimed.epoch());
                Ok::<_, ReconcileError>(Action::await_change())
            }
        };
        Runtime::new(ground.address.clone(), ground.environment.clone())
            .controller(Controller::new("plants", run))
            .elect_leader("plants")
            .failsafes(ground.failsafes().holder(holder))
    };
    let first = ground.run(late("first", true));
    ground.plant("p", 1).await?;
    ground
        .until("the first has begun", async || {
            Ok(begun.load(Ordering::SeqCst) > 0)
        })
        .await?;
    let lease = Key::new("x/lease/plants")?;
    let won = |record: Option<Record>| record.map(|record| record.created);
    let before = won(ground.record(&lease).await?);
    let second = ground.run(late("second", false));
    let lose = Transaction::new().delete(lease.clone());
    ground.address.commit(lose).await?;
    ground
        .until("it is held anew", async || {
            let now = won(ground.record(&lease).await?);
            Ok(now.is_some() && now != before)
        })
        .await?;
    let now = won(ground.record(&lease).await?);
    // Whoever holds it now, that run was begun under the one that is lost.
    gate.close();
    ground
        .until("it is worked on under the new claim", async || {
            let epochs = epochs.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(epochs.iter().copied().max() >= now)
        })
        .await?;
    drop((first, second));
    let epochs = epochs.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(
        epochs.iter().copied().min() >= now,
        "a commit was made under the lost claim: {epochs:?}, now {now:?}"
    );
    Ok(())
}

/// Something whose worker is not here: nobody reports on it again.
#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "conformance.platctrl.dev", version = "v1", kind = "Still")]
pub(super) struct StillSpec {
    size: u32,
}

fn still_key(name: &str) -> Check<ObjectKey> {
    let kind = Still::group_plural();
    Ok(ObjectKey::namespaced(
        &kind.group,
        &kind.plural,
        "default",
        name,
    )?)
}

fn still() -> Controller<Still> {
    Controller::new("still", |_: Arc<Object<Still>>, _: Context| async {
        Ok::<_, ReconcileError>(Action::await_change())
    })
}

impl Ground {
    async fn still(&self, name: &str) -> Check {
        let metadata = Metadata {
            namespace: Some("default".to_owned()),
            ..Metadata::named(name)
        };
        let object = Object::<Still>::new(metadata, StillSpec { size: 1 });
        let made = self.client.create(&object).await?;
        let report = json!({
            "apiVersion": "conformance.platctrl.dev/v1", "kind": "Still",
            "metadata": {"name": name, "namespace": "default", "uid": made.metadata.uid},
            "status": {"phase": "Running"},
        });
        let key = still_key(name)?.store_key(Tree::Reality);
        self.put(&key, &report).await
    }
}
