//! Watching the objects of a kind, whatever happens to the store meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use platctrl_framework::client::{ObjectEvent, ObjectStream};
use platctrl_framework::model::identity;
use platctrl_framework::store::Prefix;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

async fn watched() -> Fixture {
    let fixture = fixture();
    let environment = fixture.client.environment();
    identity::initialise(&fixture.store, environment)
        .await
        .unwrap();
    fixture
}

async fn next(events: &mut ObjectStream<Garden>) -> Result<ObjectEvent<Garden>, ClientError> {
    let next = tokio::time::timeout(Duration::from_secs(600), events.next());
    next.await.expect("an event").expect("a stream without end")
}

/// An event in a word and a number.
fn word(event: &ObjectEvent<Garden>) -> String {
    match event {
        ObjectEvent::Synced(_) => "synced".to_owned(),
        ObjectEvent::Added(it) => format!("+{} {}", it.metadata.name, it.spec.trees),
        ObjectEvent::Modified(it) => format!("~{} {}", it.metadata.name, it.spec.trees),
        ObjectEvent::Removed(it) => format!("-{} {}", it.metadata.name, it.spec.trees),
        ObjectEvent::Unreadable(error) => format!("?{}", error.key),
        other => format!("{other:?}"),
    }
}

async fn words(events: &mut ObjectStream<Garden>, count: usize) -> Vec<String> {
    let mut words = Vec::new();
    for _ in 0..count {
        words.push(word(&next(events).await.unwrap()));
    }
    words
}

async fn set_trees(client: &Client, name: &str, trees: u32) {
    let gardens = client.fresh::<Garden>();
    let entry = gardens.entry(name).and_modify(|it| it.spec.trees = trees);
    entry.save().await.unwrap();
}

async fn remove(client: &Client, name: &str) {
    let options = DeleteOptions::default();
    client.delete(&key(name), &options).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_watch_tells_what_is_there_and_what_happens_then() {
    let Fixture { client, .. } = watched().await;
    client.create(&garden("a", 1)).await.unwrap();
    client.create(&garden("b", 1)).await.unwrap();
    let mut events = client.fresh::<Garden>().watch();
    assert_eq!(words(&mut events, 3).await, ["+a 1", "+b 1", "synced"]);
    set_trees(&client, "a", 2).await;
    assert_eq!(words(&mut events, 1).await, ["~a 2"]);
    client.create(&garden("c", 3)).await.unwrap();
    assert_eq!(words(&mut events, 1).await, ["+c 3"]);
    remove(&client, "b").await;
    assert_eq!(words(&mut events, 1).await, ["-b 1"]);
    report(&client, "a", "Growing").await;
    match next(&mut events).await.unwrap() {
        ObjectEvent::Modified(it) => assert_eq!(it.status.phase.as_str(), "Growing"),
        other => panic!("{other:?}"),
    }
    assert!(events.next().now_or_never().is_none(), "and nothing else");
}

#[tokio::test(start_paused = true)]
async fn a_broken_watch_goes_on_where_it_was_and_a_reset_tells_the_difference() {
    let Fixture { client, store } = watched().await;
    client.create(&garden("a", 1)).await.unwrap();
    client.create(&garden("b", 1)).await.unwrap();
    let mut events = client.fresh::<Garden>().watch();
    words(&mut events, 3).await;

    store.faults().set_away(true);
    let error = next(&mut events).await.unwrap_err();
    assert!(matches!(error, ClientError::Store(_)), "{error}");
    assert!(next(&mut events).await.is_err(), "it says so again, later");
    store.faults().set_away(false);
    set_trees(&client, "a", 2).await;
    // The three watches of a kind broke together; what else they said of it comes first.
    let told = loop {
        match next(&mut events).await {
            Ok(event) => break word(&event),
            Err(error) => assert!(matches!(error, ClientError::Store(_)), "{error}"),
        }
    };
    assert_eq!(told, "~a 2", "nothing is told twice");

    store.faults().hold_watches(Prefix::new("o/").unwrap());
    set_trees(&client, "b", 5).await;
    remove(&client, "a").await;
    client.create(&garden("c", 1)).await.unwrap();
    store.faults().reset_watches();
    store.faults().release_watches();
    assert_eq!(
        words(&mut events, 4).await,
        ["-a 2", "~b 5", "+c 1", "synced"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_falls_silent_is_found_out() {
    let Fixture { client, store } = watched().await;
    let mut events = client.fresh::<Garden>().watch();
    assert_eq!(words(&mut events, 1).await, ["synced"]);
    store.faults().hold_watches(Prefix::new("o/").unwrap());
    client.create(&garden("a", 1)).await.unwrap();
    assert_eq!(words(&mut events, 2).await, ["+a 1", "synced"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_taken_from_another_store_or_from_one_that_went_back() {
    let Fixture { client, store } = watched().await;
    let old = store.snapshot();
    client.create(&garden("a", 1)).await.unwrap();
    let now = store.snapshot();
    let mut events = client.fresh::<Garden>().watch();
    words(&mut events, 2).await;

    store.faults().come_back_older(&old);
    let held = loop {
        match next(&mut events).await {
            Err(error @ ClientError::OtherHistory { .. }) => break error,
            Err(ClientError::Store(_)) => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(held.to_string().contains("went back"), "{held}");

    store.faults().come_back_empty();
    let error = next(&mut events).await.unwrap_err();
    assert!(matches!(error, ClientError::Identity(_)), "{error}");
    identity::initialise(&store, client.environment())
        .await
        .unwrap();
    let error = next(&mut events).await.unwrap_err();
    assert!(error.to_string().contains("another store"), "{error}");

    // The right one is back: the watch goes on without having told anything wrong.
    store.faults().come_back_newer(&now, 10);
    set_trees(&client, "a", 3).await;
    let told = loop {
        if let Ok(event) = next(&mut events).await {
            break word(&event);
        }
    };
    assert_eq!(told, "~a 3");
}

#[tokio::test(start_paused = true)]
async fn a_root_that_nobody_initialised_is_no_empty_fleet() {
    let Fixture { client, .. } = fixture();
    let error = next(&mut client.fresh::<Garden>().watch())
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Identity(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_told_and_is_not_gone() {
    let Fixture { client, store } = watched().await;
    client.create(&garden("a", 1)).await.unwrap();
    let mut events = client.fresh::<Garden>().watch();
    words(&mut events, 2).await;
    let intent = key("a").store_key(Tree::Intent);
    let good = store.peek(&intent).unwrap().value;
    store
        .commit(Transaction::new().put(intent.clone(), "{"))
        .await
        .unwrap();
    assert_eq!(words(&mut events, 1).await, [format!("?{intent}")]);
    store
        .commit(Transaction::new().put(intent, good))
        .await
        .unwrap();
    assert_eq!(words(&mut events, 1).await, ["~a 1"]);
}

#[tokio::test(start_paused = true)]
async fn a_selection_is_left_and_entered_by_labels() {
    let Fixture { client, .. } = watched().await;
    client.create(&garden("a", 1)).await.unwrap();
    let roses = client
        .fresh::<Garden>()
        .matching(&"kind=rose".parse().unwrap());
    let mut events = roses.watch();
    assert_eq!(words(&mut events, 1).await, ["synced"]);
    let label = async |kind: &str| {
        let set =
            |it: &mut Object<Garden>| drop(it.metadata.labels.insert("kind".into(), kind.into()));
        client
            .fresh::<Garden>()
            .entry("a")
            .and_modify(set)
            .save()
            .await
            .unwrap();
    };
    label("rose").await;
    assert_eq!(words(&mut events, 1).await, ["+a 1"]);
    label("fern").await;
    assert_eq!(words(&mut events, 1).await, ["-a 1"]);
    label("moss").await;
    label("rose").await;
    assert_eq!(words(&mut events, 1).await, ["+a 1"]);
}

#[tokio::test(start_paused = true)]
async fn another_object_of_the_same_name_is_another_object() {
    let Fixture { client, store } = watched().await;
    client.create(&garden("a", 1)).await.unwrap();
    let mut events = client.fresh::<Garden>().watch();
    words(&mut events, 2).await;
    store.faults().coalesce_watches(true);
    store.faults().hold_watches(Prefix::new("o/").unwrap());
    remove(&client, "a").await;
    client.create(&garden("a", 2)).await.unwrap();
    store.faults().release_watches();
    assert_eq!(words(&mut events, 2).await, ["-a 1", "+a 2"]);
}

/// Writes at random while the store misbehaves at random. In the end the events, one after the
/// other, have come to what is there.
#[tokio::test(start_paused = true)]
async fn events_come_to_what_is_there_whatever_happened() {
    for seed in 0..60 {
        let mut random = StdRng::seed_from_u64(seed);
        let Fixture { client, store } = watched().await;
        let gardens = client.fresh::<Garden>();
        let mut events = gardens.watch();
        let mut seen: BTreeMap<String, Object<Garden>> = BTreeMap::new();
        let mut take = |event: ObjectEvent<Garden>| match event {
            ObjectEvent::Added(it) => {
                let name = it.metadata.name.clone();
                assert!(seen.insert(name.clone(), it).is_none(), "{name} was there");
                seen.len()
            }
            ObjectEvent::Modified(it) => {
                let before = seen.insert(it.metadata.name.clone(), it.clone());
                let before = before.expect("it was there").metadata;
                assert!(before.resource_version <= it.metadata.resource_version);
                assert_eq!(before.uid, it.metadata.uid);
                seen.len()
            }
            ObjectEvent::Removed(it) => {
                assert!(seen.remove(&it.metadata.name).is_some());
                seen.len()
            }
            ObjectEvent::Synced(_) => seen.len(),
            other => panic!("{other:?}"),
        };
        for step in 0..120 {
            let name = ["a", "b", "c", "d"][random.random_range(0..4)];
            match random.random_range(0..14) {
                0..3 => drop(client.create(&garden(name, step)).await),
                3..6 => {
                    let entry = gardens.entry(name).and_modify(|it| it.spec.trees = step);
                    let _ = entry.save().await;
                }
                6..8 => drop(client.delete(&key(name), &DeleteOptions::default()).await),
                8 if client.joined(&key(name)).await.unwrap().intent.is_some() => {
                    report(
                        &client,
                        name,
                        if step % 3 == 0 { "Gone" } else { "Growing" },
                    )
                    .await;
                }
                9 => {
                    let joined = client.joined(&key(name)).await.unwrap();
                    let mut batch = Batch::new();
                    if batch.remove(&joined).is_ok() {
                        client.commit(batch).await.unwrap();
                    }
                }
                10 => store.faults().break_watches(),
                11 => store.faults().reset_watches(),
                12 => store.faults().hold_watches(Prefix::new("o/").unwrap()),
                _ => store.faults().release_watches(),
            }
            for _ in 0..random.random_range(0..3) {
                if let Some(Ok(event)) = events.next().now_or_never().flatten() {
                    take(event);
                }
            }
        }
        store.faults().release_watches();
        // Longer than any backoff, and than any silence.
        let calm = Duration::from_secs(200);
        while let Ok(event) = tokio::time::timeout(calm, events.next()).await {
            if let Ok(event) = event.expect("no end") {
                take(event);
            }
        }
        let there = gardens.list().await.unwrap().objects;
        let there: Vec<_> = there.iter().map(|it| format!("{it:?}")).collect();
        let seen: Vec<_> = seen.values().map(|it| format!("{it:?}")).collect();
        assert_eq!(seen, there, "seed {seed}");
    }
}
