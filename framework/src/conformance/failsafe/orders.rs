//! What is ordered of one object, and what looks like an order and is none.

use serde_json::{Value, json};

use super::super::kit::{Check, Stop, Subject, ensure};
use super::ground::{Ground, PLANTS, Plant, Running, key_of, name_of};
use crate::client::ClientError;
use crate::model::{ConditionStatus, KindDefinition, Tree};

pub(super) async fn failsafe_intent_create(subject: Subject) -> Check {
    let (ground, running) = Ground::grown(subject).await?;
    ground.goes_on("new").await?;
    // Who begins says so before anything is made.
    let key = key_of("new")?;
    let joined = ground.client.joined(&key).await?;
    let claim = joined.own_reality().and_then(|own| {
        let metadata = &own.value.metadata;
        metadata.claim.clone()
    });
    ensure!(claim.as_deref() == Some("plants"), "claimed by {claim:?}");
    ensure!(running.holds_nothing(), "{:?}", running.failsafe());
    ground.must_stand(&running)
}

pub(super) async fn failsafe_intent_change(subject: Subject) -> Check {
    let (ground, running) = Ground::grown(subject).await?;
    let key = key_of(&name_of(0))?;
    let before = ground.client.get::<Plant>(&key).await?;
    ground.resize(&name_of(0), 9).await?;
    ground
        .until("it is worked on", async || {
            Ok(ground.work().has_seen(&name_of(0), 9))
        })
        .await?;
    let now = ground.client.get::<Plant>(&key).await?;
    let uids = (before.metadata.uid, now.metadata.uid);
    ensure!(uids.0 == uids.1, "it is another one: {uids:?}");
    ensure!(running.holds_nothing(), "{:?}", running.failsafe());
    ground.must_stand(&running)
}

pub(super) async fn failsafe_intent_delete(subject: Subject) -> Check {
    let ground = Ground::new(subject).await?;
    let running = ground.run(ground.runtime(ground.failsafes()).reap());
    ground.grow_all(&running).await?;
    ground.delete(&name_of(0)).await?;
    let key = key_of(&name_of(0))?;
    ground
        .until("its records are gone", async || {
            match ground.client.joined(&key).await {
                Ok(joined) => Ok(joined.intent.is_none() && joined.reality.is_none()),
                Err(ClientError::NotFound { .. }) => Ok(true),
                Err(error) => Err(error.into()),
            }
        })
        .await?;
    let left = ground.work().outside.clone();
    let gone = !left.contains(&name_of(0));
    ensure!(gone && left.len() == PLANTS - 1, "{left:?} are left");
    ensure!(running.holds_nothing(), "{:?}", running.failsafe());
    Ok(())
}

/// Whether it is ready, as whoever asks is told.
async fn ready(ground: &Ground) -> Check<Option<ConditionStatus>> {
    let kind = KindDefinition::of::<Plant>();
    let list = ground.client.list(&kind, None).await?;
    let mut shown = list.shown();
    let own = shown.find(|plant| plant.metadata.name == name_of(0));
    let own = own.ok_or_else(|| Stop::failed("it is not listed"))?;
    Ok(own.status.conditions.get("Ready").map(|it| it.status))
}

pub(super) async fn failsafe_reality_of_another_spec(subject: Subject) -> Check {
    let (ground, running) = Ground::grown(subject).await?;
    let joined = ground.client.joined(&key_of(&name_of(0))?).await?;
    let intent = joined.intent.as_ref();
    let digest = intent.map(|intent| intent.value.spec_digest().to_string());
    let says_ready = |of: String| {
        move |mut reality: Value| {
            reality["status"]["observedSpec"] = json!(of);
            reality["status"]["conditions"] = json!([
                {"type": "Ready", "status": "True", "reason": "Grown", "message": ""},
            ]);
            Some(reality)
        }
    };
    let of_this = says_ready(digest.unwrap_or_default());
    ground.rewrite(1, Tree::Reality, of_this).await?;
    let shown = ready(&ground).await?;
    ensure!(shown == Some(ConditionStatus::True), "{shown:?}");
    let of_another = says_ready(format!("sha256:{}", "0".repeat(64)));
    ground.rewrite(1, Tree::Reality, of_another).await?;
    let shown = ready(&ground).await?;
    ensure!(shown == Some(ConditionStatus::Unknown), "{shown:?}");
    ground.must_stand(&running)
}

/// Whether the object says that its spec is not carried out because of a field.
async fn is_told(ground: &Ground) -> Check<bool> {
    let plant = ground.client.get::<Plant>(&key_of(&name_of(0))?).await?;
    let held = plant.status.conditions.get("Held");
    Ok(held.is_some_and(|held| {
        let field = held.message.contains("Unsupported(spec.bedOnlyIn)");
        held.status == ConditionStatus::True && held.reason == "Unsupported" && field
    }))
}

fn widened(mut intent: Value) -> Option<Value> {
    let spec = &mut intent["spec"];
    // Of these, only some: but that is what a program of today does not know.
    spec["bed"] = json!("*");
    spec["bedOnlyIn"] = json!("east");
    spec["size"] = json!(9);
    intent["metadata"]["generation"] = json!(2);
    Some(intent)
}

pub(super) async fn failsafe_selector_widened_by_an_unknown_field(subject: Subject) -> Check {
    let (ground, running) = Ground::grown(subject).await?;
    ground.rewrite(1, Tree::Intent, widened).await?;
    ground
        .until("it is told on the object", async || {
            if ground.work().has_seen(&name_of(0), 9) {
                return Err(Stop::failed("it was carried out in part"));
            }
            is_told(&ground).await
        })
        .await?;
    ground.minutes(3).await;
    let taken = ground.work().has_seen(&name_of(0), 9);
    ensure!(!taken, "it was carried out in part");
    ground.must_stand(&running)?;
    ground.goes_on("new").await?;
    let known = |mut intent: Value| {
        let spec = intent["spec"].as_object_mut()?;
        spec.remove("bedOnlyIn");
        intent["metadata"]["generation"] = json!(3);
        Some(intent)
    };
    ground.rewrite(1, Tree::Intent, known).await?;
    ground
        .until("it is carried out, and not told any more", async || {
            Ok(ground.work().has_seen(&name_of(0), 9) && !is_told(&ground).await?)
        })
        .await
}

/// An intent that cannot be read as a whole is set aside and stops nothing else.
async fn is_set_aside(ground: &Ground, running: &Running, bed: Option<&str>) -> Check {
    let change = |mut intent: Value| {
        let spec = intent["spec"].as_object_mut()?;
        match bed {
            Some(bed) => spec.insert("bed".to_owned(), json!(bed)),
            None => spec.remove("bed"),
        };
        spec.insert("size".to_owned(), json!(9));
        let generation = intent["metadata"]["generation"].as_u64().unwrap_or(1);
        intent["metadata"]["generation"] = json!(generation + 1);
        Some(intent)
    };
    ground.rewrite(1, Tree::Intent, change).await?;
    ground
        .until("it is set aside", async || {
            let view = running.handle.view();
            Ok(view.is_some_and(|view| !view.set_aside().is_empty()))
        })
        .await?;
    ground.minutes(3).await;
    let taken = ground.work().has_seen(&name_of(0), 9);
    ensure!(!taken, "a selector {bed:?} was carried out");
    ground.must_stand(running)
}

pub(super) async fn failsafe_selector_empty_invalid_or_missing(subject: Subject) -> Check {
    let (ground, running) = Ground::grown(subject).await?;
    for bed in [Some(""), Some("az in (east"), None] {
        is_set_aside(&ground, &running, bed).await?;
    }
    ground.goes_on("new").await
}
