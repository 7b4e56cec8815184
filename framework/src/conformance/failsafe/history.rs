//! Stores that show another history than before, none at all, or what a program must heed.

use serde_json::{Value, json};

use super::super::kit::{Check, Restored, Stop, Subject, ensure};
use super::ground::{Ground, PLANTS, Running, name_of};
use crate::cache::SourceError;
use crate::failsafe::{Guard, freeze, thaw};
use crate::model::Tree;
use crate::model::identity::{FORMAT_VERSION, chain_key, format_key, initialise};
use crate::store::{Key, Prefix, Store, Transaction};

/// The number of the newest link of the chain; the first one stands alone.
async fn newest_link(ground: &Ground) -> Check<u64> {
    let Some(head) = ground.record(&Key::new("x/chain/head")?).await? else {
        return Ok(0);
    };
    let head: Value = serde_json::from_slice(&head.value)?;
    Ok(head["number"].as_u64().unwrap_or(0))
}

/// Waits until the chain has grown by some links, so that every program remembers a later one.
async fn chain_grows(ground: &Ground) -> Check {
    let before = newest_link(ground).await?;
    ground
        .until("the chain grows", async || {
            Ok(newest_link(ground).await? >= before + 3)
        })
        .await
}

pub(super) async fn failsafe_anchor_lost(subject: Subject) -> Check {
    let (ground, running) = Ground::grown(subject).await?;
    // What a refused read looks like: nothing at all, and no anchor.
    let anchor = Key::new("o/.anchor")?;
    let kept = ground.record(&anchor).await?;
    let kept = kept.ok_or_else(|| Stop::failed("there is no anchor"))?;
    running.crash().await;
    ground.work().seen.clear();
    ground.remove("o/", &[]).await?;
    let running = ground.run(ground.runtime(ground.failsafes()));
    ground
        .until("the answer is refused", async || {
            let status = running.handle.status();
            let failing = status.and_then(|status| status.sources.first()?.failing.clone());
            Ok(matches!(failing, Some(SourceError::NoAnchor { .. })))
        })
        .await?;
    ground.minutes(5).await;
    ensure!(running.handle.view().is_none(), "it is taken for a store");
    let put = Transaction::new().put(anchor, kept.value);
    ground.address.commit(put).await?;
    ground.goes_on("new").await
}

pub(super) async fn failsafe_format_too_new(subject: Subject) -> Check {
    let (ground, running) = Ground::grown(subject).await?;
    let needs = |version: u32| json!({"writeVersion": version, "minReader": version});
    ground
        .put(&format_key(), &needs(FORMAT_VERSION + 1))
        .await?;
    ground
        .until("it is heeded", async || {
            Ok(running.failsafe().too_new.is_some())
        })
        .await?;
    ground.delete(&name_of(0)).await?;
    ground.plant("new", 1).await?;
    ground.minutes(5).await;
    ensure!(!ground.work().has_seen("new", 1), "it was worked on");
    ground.must_stand(&running)?;
    ground.put(&format_key(), &needs(FORMAT_VERSION)).await?;
    ground
        .until("it goes on", async || {
            let work = ground.work();
            Ok(work.has_seen("new", 1) && !work.outside.contains(&name_of(0)))
        })
        .await
}

pub(super) async fn failsafe_frozen(subject: Subject) -> Check {
    let (ground, running) = Ground::grown(subject).await?;
    let (store, environment) = (&*ground.address, &ground.environment);
    freeze(store, environment, "ann", None).await?;
    ground
        .until("it is heard", async || {
            Ok(running.failsafe().frozen.is_some())
        })
        .await?;
    ground.delete(&name_of(0)).await?;
    ground.plant("new", 1).await?;
    ground.minutes(5).await;
    ensure!(!ground.work().has_seen("new", 1), "it was worked on");
    ground.must_stand(&running)?;
    thaw(store, environment, "ann", None).await?;
    ground
        .until("it goes on", async || {
            let work = ground.work();
            Ok(work.has_seen("new", 1) && !work.outside.contains(&name_of(0)))
        })
        .await
}

/// Another history is told: no order is carried out before a person has looked, and then it is.
async fn is_looked_at(ground: &Ground, running: &Running) -> Check {
    ground.is_held(running, Guard::History).await?;
    ground.delete(&name_of(0)).await?;
    ground.minutes(5).await;
    ground.must_stand(running)?;
    ground.reset(running).await?;
    ground
        .until("the order is carried out", async || {
            Ok(!ground.work().outside.contains(&name_of(0)))
        })
        .await?;
    ground.goes_on("new").await
}

pub(super) async fn failsafe_chain_lost(subject: Subject) -> Check {
    let (ground, running) = Ground::grown(subject).await?;
    chain_grows(&ground).await?;
    ground.remove("x/chain/", &[]).await?;
    is_looked_at(&ground, &running).await
}

pub(super) async fn failsafe_chain_of_another_history(subject: Subject) -> Check {
    let (ground, running) = Ground::grown(subject).await?;
    chain_grows(&ground).await?;
    // Every link that could be remembered is there, and is another one.
    let newest = newest_link(&ground).await? + 1;
    let other = |number| format!("other{number}");
    let head = json!({"number": newest, "nonce": other(newest)}).to_string();
    let mut links = Transaction::new().put(Key::new("x/chain/head")?, head);
    for number in newest.saturating_sub(8)..=newest {
        let link = json!({"nonce": other(number), "at": "2026-01-01T00:00:00Z"});
        links = links.put(chain_key(number), link.to_string());
    }
    ground.address.commit(links).await?;
    is_looked_at(&ground, &running).await
}

async fn take_backup(ground: &Ground) -> Check {
    let backup = ground.subject.backup.as_ref();
    let backup = backup.ok_or_else(|| Stop::does_not_apply("no hook takes a backup"))?;
    backup(()).await;
    Ok(())
}

async fn put_back(ground: &Ground, restored: Restored) -> Check {
    let restore = ground.subject.restore.as_ref();
    let restore = restore.ok_or_else(|| Stop::does_not_apply("no hook puts a backup back"))?;
    let store = restore(restored).await;
    ground.address.turn_to(store);
    Ok(())
}

/// A backup is put back: what it says is not done before a person has looked, and then it is.
async fn restored(subject: Subject, restored: Restored) -> Check {
    let (ground, running) = Ground::grown(subject).await?;
    chain_grows(&ground).await?;
    take_backup(&ground).await?;
    ground.resize(&name_of(1), 5).await?;
    ground.plant("young", 1).await?;
    ground
        .until("both are worked on", async || {
            let work = ground.work();
            Ok(work.has_seen(&name_of(1), 5) && work.has_seen("young", 1))
        })
        .await?;
    chain_grows(&ground).await?;
    ground.work().seen.clear();
    put_back(&ground, restored).await?;
    ground
        .until("it is held", async || Ok(running.holds(Guard::History)))
        .await?;
    ground.minutes(5).await;
    ground.must_stand(&running)?;
    let shown = running.shown();
    ensure!(shown == PLANTS + 1, "{shown} are shown");
    let went_back = ground.work().has_seen(&name_of(1), 1);
    ensure!(!went_back, "what was wanted once was done");
    is_looked_at(&ground, &running).await?;
    let work = ground.work();
    ensure!(work.outside.contains("young"), "an order came from nowhere");
    ensure!(work.absent.contains("young"), "it is not told");
    Ok(())
}

pub(super) async fn failsafe_store_restored_older(subject: Subject) -> Check {
    restored(subject, Restored::Older).await
}

pub(super) async fn failsafe_store_restored_forward(subject: Subject) -> Check {
    restored(subject, Restored::Forward).await
}

pub(super) async fn failsafe_store_restored_while_nobody_looked(subject: Subject) -> Check {
    let ground = Ground::new(subject).await?;
    let running = ground.run(ground.runtime(ground.with_memory()));
    ground.grow_all(&running).await?;
    take_backup(&ground).await?;
    chain_grows(&ground).await?;
    ground
        .until("it is remembered", async || Ok(ground.has_memory()))
        .await?;
    chain_grows(&ground).await?;
    running.crash().await;
    put_back(&ground, Restored::Forward).await?;
    ground.work().seen.clear();
    let running = ground.run(ground.runtime(ground.with_memory()));
    ground
        .until("it is held", async || Ok(running.holds(Guard::History)))
        .await?;
    ground.minutes(5).await;
    ensure!(ground.work().seen.is_empty(), "something ran");
    ground.is_held(&running, Guard::History).await?;
    ground.reset(&running).await?;
    ground.goes_on("new").await
}

pub(super) async fn failsafe_store_another_under_the_same_address(subject: Subject) -> Check {
    let (ground, running) = Ground::grown(subject).await?;
    chain_grows(&ground).await?;
    let other = other_store(&ground).await?;
    initialise(&*other, &ground.environment).await?;
    let right = ground.address.store();
    ground.address.turn_to(other);
    ground.plant("foreign", 1).await?;
    ground.minutes(8).await;
    ground.must_stand(&running)?;
    let worked_on = ground.work().has_seen("foreign", 1);
    ensure!(!worked_on, "another fleet's object was worked on");
    for prefix in ["o/reality/", "x/chain/", "x/event/"] {
        let found = ground.list(Prefix::new(prefix)?).await?;
        let foreign = found.iter().filter(|it| it.key != chain_key(0)).count();
        ensure!(foreign == 0, "{foreign} records written under {prefix}");
    }
    ground.address.turn_to(right);
    ground.goes_on("new").await?;
    ground.must_stand(&running)
}

async fn other_store(ground: &Ground) -> Check<std::sync::Arc<dyn Store>> {
    let another = ground.subject.another.as_ref();
    let another = another.ok_or_else(|| Stop::does_not_apply("no hook opens another store"))?;
    Ok(another(()).await)
}

pub(super) async fn failsafe_store_comes_back_empty(subject: Subject) -> Check {
    let (ground, running) = Ground::grown(subject).await?;
    chain_grows(&ground).await?;
    let right = ground.address.store();
    let empty = other_store(&ground).await?;
    ground.address.turn_to(empty);
    ground.minutes(8).await;
    ground.must_stand(&running)?;
    let found = ground.list(Prefix::new("o/")?).await?;
    ensure!(found.is_empty(), "{} records were written", found.len());
    ground.address.turn_to(right);
    ground.goes_on("new").await?;
    ground.rewrite(0, Tree::Intent, Some).await?;
    ground.must_stand(&running)
}
