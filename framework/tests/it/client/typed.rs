//! Objects by their types: handles, entries, transactions, patches.

use std::time::Duration;

use futures::FutureExt;
use platctrl_framework::client::Patch;
use platctrl_framework::controller::Runtime;
use platctrl_framework::model::identity;
use platctrl_framework::store::Revision;
use tokio::task::JoinSet;

use super::*;

fn of(trees: u32) -> Object<Garden> {
    let spec = GardenSpec {
        trees,
        place: "north".into(),
    };
    Object::new(Metadata::default(), spec)
}

fn named(name: &str, trees: u32) -> Object<Garden> {
    Object::new(Metadata::named(name), of(trees).spec)
}

/// Adds a tree behind everybody's back, while somebody decides.
fn add_a_tree(client: &Client, name: &str) {
    let added = client.fresh::<Garden>().entry(name);
    let added = added.and_modify(|garden| garden.spec.trees += 1).save();
    added.now_or_never().expect("at once in memory").unwrap();
}

#[tokio::test]
async fn a_handle_is_about_one_namespace() {
    let Fixture { client, .. } = fixture();
    let gardens = client.fresh::<Garden>();
    gardens.create(&named("a", 1)).await.unwrap();
    let elsewhere = gardens.clone().namespace("other");
    elsewhere.create(&named("a", 2)).await.unwrap();
    assert_eq!(gardens.get("a").await.unwrap().spec.trees, 1);
    assert_eq!(elsewhere.get("a").await.unwrap().spec.trees, 2);
    let trees = |list: ObjectList<Garden>| -> Vec<u32> {
        list.objects.iter().map(|it| it.spec.trees).collect()
    };
    assert_eq!(trees(elsewhere.list().await.unwrap()), [2]);
    let all = gardens.clone().all_namespaces();
    assert_eq!(trees(all.list().await.unwrap()), [1, 2]);
    assert!(all.get("a").await.is_err(), "which one?");
    assert!(gardens.namespace("../x").get("a").await.is_err());
}

#[tokio::test]
async fn a_list_has_the_objects_that_a_selector_matches_and_what_cannot_be_read() {
    let Fixture { client, store } = fixture();
    let gardens = client.fresh::<Garden>();
    for (name, kind) in [("a", "rose"), ("b", "fern")] {
        let mut object = named(name, 1);
        object.metadata.labels.insert("kind".into(), kind.into());
        gardens.create(&object).await.unwrap();
    }
    let strange = raw("c", json!({"trees": "many"}));
    client.create_raw(&key("c"), strange).await.unwrap();
    let broken = Transaction::new().put(key("d").store_key(Tree::Intent), "{");
    store.commit(broken).await.unwrap();
    let roses = gardens.matching(&"kind=rose".parse().unwrap());
    let list = roses.list().await.unwrap();
    assert_eq!(list.objects.len(), 1);
    assert_eq!(list.set_aside.len(), 2);
}

#[tokio::test]
async fn what_the_kind_refuses_is_not_written_by_any_way() {
    let Fixture { client, store } = fixture();
    let gardens = client.fresh::<Garden>();
    assert!(gardens.create(&named("a", 5000)).await.is_err());
    let garden = gardens.create(&named("a", 1)).await.unwrap();
    let before = store.revision();
    let refused = |error: ClientError| {
        let text = error.to_string();
        assert!(text.contains("spec.trees: must be at most 1000"), "{text}");
    };
    let mut many = garden.clone();
    many.spec.trees = 5000;
    refused(gardens.update(&many).await.unwrap_err());
    refused(gardens.apply(&many).await.unwrap_err());
    let patch = Patch::merge(json!({"spec": {"trees": 5000}}));
    refused(gardens.patch("a", &patch).await.unwrap_err());
    let entry = gardens.entry("a").and_modify(|it| it.spec.trees = 5000);
    refused(entry.save().await.unwrap_err());
    let mut transaction = client.transaction();
    refused(transaction.update(&many).await.unwrap_err());

    let moved = Patch::json(json!([{"op": "replace", "path": "/spec/place", "value": "south"}]));
    let error = gardens.patch("a", &moved.unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("cannot change"), "{error}");
    assert_eq!(store.revision(), before);
}

#[tokio::test]
async fn what_was_wrong_before_is_not_held_against_a_change_of_something_else() {
    let Fixture { client, .. } = fixture();
    let old = raw("a", json!({"trees": 5000, "place": "north"}));
    client.create_raw(&key("a"), old).await.unwrap();
    let gardens = client.fresh::<Garden>();
    let label = Patch::merge(json!({"metadata": {"labels": {"x": "y"}}}));
    let patched = gardens.patch("a", &label).await.unwrap();
    assert_eq!((patched.metadata.generation, patched.spec.trees), (1, 5000));
}

#[tokio::test]
async fn an_entry_changes_what_is_there_and_makes_what_is_not() {
    let Fixture { client, store } = fixture();
    let gardens = client.fresh::<Garden>();
    let grow = |garden: &mut Object<Garden>| garden.spec.trees += 1;
    let error = gardens
        .entry("a")
        .and_modify(grow)
        .save()
        .await
        .unwrap_err();
    assert!(error.is_not_found(), "{error}");
    let made = gardens
        .entry("a")
        .and_modify(grow)
        .or_insert(|| of(7))
        .await
        .unwrap();
    assert_eq!((made.spec.trees, made.metadata.name.as_str()), (7, "a"));
    let grown = gardens
        .entry("a")
        .and_modify(grow)
        .or_insert(|| of(7))
        .await
        .unwrap();
    assert_eq!((grown.spec.trees, grown.metadata.generation), (8, 2));
    let before = store.revision();
    gardens.entry("a").or_insert(|| of(7)).await.unwrap();
    assert_eq!(store.revision(), before, "nothing is different");
}

#[tokio::test]
async fn an_entry_is_decided_again_when_somebody_else_was_faster() {
    let Fixture { client, .. } = fixture();
    let gardens = client.fresh::<Garden>();
    gardens.create(&named("a", 1)).await.unwrap();
    let mut calls = 0;
    let doubled = gardens.entry("a").and_modify(|garden| {
        calls += 1;
        if calls == 1 {
            add_a_tree(&client, "a");
        }
        garden.spec.trees *= 2;
    });
    let doubled = doubled.save().await.unwrap();
    assert_eq!(doubled.spec.trees, 4, "twice the newest");
    assert_eq!(calls, 2);
}

#[tokio::test]
async fn an_entry_of_what_is_being_deleted_says_so() {
    let Fixture { client, .. } = fixture();
    let gardens = client.fresh::<Garden>();
    gardens.create(&named("a", 1)).await.unwrap();
    report(&client, "a", "Growing").await;
    gardens
        .delete("a", &DeleteOptions::default())
        .await
        .unwrap();
    let entry = gardens.entry("a").and_modify(|it| it.spec.trees = 2);
    let error = entry.or_insert(|| of(1)).await.unwrap_err();
    assert!(error.to_string().contains("being deleted"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_entries_at_once_lose_nothing() {
    let Fixture { client, .. } = fixture();
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let gardens = client.fresh::<Garden>();
        tasks.spawn(async move {
            let mut done = 0;
            while done < 10 {
                let entry = gardens.entry("a").and_modify(|it| it.spec.trees += 1);
                match entry.or_insert(|| of(1)).await {
                    Ok(_) => done += 1,
                    Err(error) => assert!(error.is_conflict(), "{error}"),
                }
            }
        });
    }
    tasks.join_all().await;
    let garden = client.fresh::<Garden>().get("a").await.unwrap();
    assert_eq!(garden.spec.trees, 80);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_over_two_objects_neither_lose_nor_make_anything() {
    let Fixture { client, .. } = fixture();
    let gardens = client.fresh::<Garden>();
    for name in ["a", "b", "c"] {
        gardens.create(&named(name, 100)).await.unwrap();
    }
    let mut tasks = JoinSet::new();
    for (from, to) in [("a", "b"), ("b", "c"), ("c", "a"), ("b", "a")] {
        let client = client.clone();
        tasks.spawn(async move {
            let mut conflicts = 0;
            let mut moved = 0;
            while moved < 20 {
                let mut transaction = client.transaction();
                let mut one = transaction.get::<Garden>(&key(from)).await.unwrap();
                let mut other = transaction.get::<Garden>(&key(to)).await.unwrap();
                one.spec.trees -= 1;
                other.spec.trees += 1;
                transaction.update(&one).await.unwrap();
                transaction.update(&other).await.unwrap();
                match transaction.commit().await {
                    Ok(_) => moved += 1,
                    Err(error) if error.is_conflict() => conflicts += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            conflicts
        });
    }
    tasks.join_all().await;
    let list = gardens.list().await.unwrap();
    let trees: Vec<u32> = list.objects.iter().map(|it| it.spec.trees).collect();
    assert_eq!(trees, [120, 80, 100]);
}

#[tokio::test]
async fn a_transaction_relies_on_what_it_only_read() {
    let Fixture { client, store } = fixture();
    let gardens = client.fresh::<Garden>();
    for name in ["a", "b"] {
        gardens.create(&named(name, 1)).await.unwrap();
    }
    let mut transaction = client.transaction();
    transaction.get::<Garden>(&key("a")).await.unwrap();
    assert!(
        transaction
            .get::<Garden>(&key("none"))
            .await
            .unwrap_err()
            .is_not_found()
    );
    let mut other = transaction.get::<Garden>(&key("b")).await.unwrap();
    other.spec.trees = 9;
    transaction.update(&other).await.unwrap();
    add_a_tree(&client, "a");
    let before = store.revision();
    let error = transaction.commit().await.unwrap_err();
    assert!(error.to_string().contains("gardens/default/a"), "{error}");
    assert_eq!(store.revision(), before);

    // What was missing must still be missing.
    let mut transaction = client.transaction();
    assert!(transaction.get::<Garden>(&key("none")).await.is_err());
    transaction
        .delete(&key("a"), &DeleteOptions::default())
        .await
        .unwrap();
    transaction.create(&garden("new", 1)).unwrap();
    gardens.create(&named("none", 1)).await.unwrap();
    assert!(transaction.commit().await.unwrap_err().is_conflict());
    assert!(gardens.get("a").await.is_ok() && gardens.get("new").await.is_err());
}

#[tokio::test]
async fn patches_change_what_they_say() {
    let Fixture { client, .. } = fixture();
    let gardens = client.fresh::<Garden>();
    gardens.create(&named("a", 1)).await.unwrap();
    let merge = Patch::merge(json!({"metadata": {"labels": {"x": "y"}}, "spec": {"trees": 2}}));
    let patched = gardens.patch("a", &merge).await.unwrap();
    assert_eq!(
        (patched.spec.trees, patched.metadata.labels["x"].as_str()),
        (2, "y")
    );
    let operations = json!([
        {"op": "test", "path": "/metadata/uid", "value": patched.metadata.uid},
        {"op": "remove", "path": "/metadata/labels/x"},
        {"op": "replace", "path": "/spec/trees", "value": 3},
    ]);
    let patched = gardens
        .patch("a", &Patch::json(operations).unwrap())
        .await
        .unwrap();
    assert_eq!((patched.spec.trees, patched.metadata.labels.len()), (3, 0));
    let wrong = Patch::json(json!([{"op": "remove", "path": "/metadata/labels/x"}])).unwrap();
    let error = gardens.patch("a", &wrong).await.unwrap_err();
    assert!(error.to_string().contains("operation 0"), "{error}");
    let error = gardens.patch("none", &merge).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
}

#[tokio::test]
async fn a_patch_does_not_change_who_an_object_is() {
    let Fixture { client, .. } = fixture();
    let gardens = client.fresh::<Garden>();
    let created = gardens.create(&named("a", 1)).await.unwrap();
    for patch in [
        json!({"kind": "Forest"}),
        json!({"apiVersion": "example.dev/v2"}),
        json!({"metadata": {"name": "b"}}),
        json!({"metadata": {"namespace": null}}),
        json!({"metadata": null}),
        json!({"spec": null}),
        json!([]),
    ] {
        let error = gardens
            .patch("a", &Patch::merge(patch.clone()))
            .await
            .unwrap_err();
        let invalid = matches!(
            error,
            ClientError::Invalid { .. } | ClientError::Unreadable(_)
        );
        assert!(invalid, "{patch}: {error}");
    }
    let other = json!({"metadata": {"uid": "somebody-else", "labels": {"x": "y"}}});
    let error = gardens.patch("a", &Patch::merge(other)).await.unwrap_err();
    assert!(error.is_conflict(), "{error}");
    let patch =
        json!({"metadata": {"generation": 77, "creationTimestamp": "2000-01-01T00:00:00Z"}});
    let patched = gardens.patch("a", &Patch::merge(patch)).await.unwrap();
    assert_eq!(patched.metadata, created.metadata);
}

#[tokio::test]
async fn a_patch_meets_a_conflict_only_when_it_names_a_resource_version() {
    let Fixture { client, .. } = fixture();
    let gardens = client.fresh::<Garden>();
    let created = gardens.create(&named("a", 1)).await.unwrap();
    add_a_tree(&client, "a");
    let seen = created.metadata.resource_version;
    let strict = json!({"metadata": {"resourceVersion": seen}, "spec": {"trees": 9}});
    let error = gardens.patch("a", &Patch::merge(strict)).await.unwrap_err();
    assert!(error.is_conflict(), "{error}");
    let patch = Patch::merge(json!({"metadata": {"labels": {"x": "y"}}}));
    let patched = gardens.patch("a", &patch).await.unwrap();
    assert_eq!(patched.spec.trees, 2);
}

#[tokio::test]
async fn a_status_is_patched_without_the_spec_and_the_spec_without_the_status() {
    let Fixture { client, .. } = fixture();
    let gardens = client.fresh::<Garden>();
    gardens.create(&named("a", 1)).await.unwrap();
    let both =
        Patch::merge(json!({"status": {"grown": 1, "phase": "Growing"}, "spec": {"trees": 5}}));
    let patched = gardens.patch_status("a", &both).await.unwrap();
    assert_eq!((patched.spec.trees, patched.status.detail.grown), (1, 1));
    assert_eq!(patched.status.phase.as_str(), "Growing");
    let both = Patch::merge(json!({"status": {"grown": 9}, "spec": {"trees": 5}}));
    let patched = gardens.patch("a", &both).await.unwrap();
    assert_eq!((patched.spec.trees, patched.status.detail.grown), (5, 1));
}

#[tokio::test]
async fn a_status_decided_on_another_incarnation_or_an_older_report_is_refused() {
    let Fixture { client, .. } = fixture();
    let gardens = client.fresh::<Garden>();
    let mut first = gardens.create(&named("a", 1)).await.unwrap();
    first.status.detail.grown = 1;
    // A change of the spec is none of the status.
    add_a_tree(&client, "a");
    let second = gardens.update_status(&first).await.unwrap();
    assert_eq!(second.status.detail.grown, 1);
    let error = gardens.update_status(&first).await.unwrap_err();
    assert!(error.is_conflict(), "{error}");

    report(&client, "a", "Gone").await;
    gardens
        .delete("a", &DeleteOptions::default())
        .await
        .unwrap();
    let mut batch = Batch::new();
    batch
        .remove(&client.joined(&key("a")).await.unwrap())
        .unwrap();
    client.commit(batch).await.unwrap();
    gardens.create(&named("a", 1)).await.unwrap();
    let error = gardens.update_status(&second).await.unwrap_err();
    assert!(error.to_string().contains("created again"), "{error}");
}

#[tokio::test]
async fn applying_an_object_keeps_what_others_set() {
    let Fixture { client, .. } = fixture();
    let gardens = client.fresh::<Garden>();
    let mut wanted = named("a", 1);
    wanted.metadata.labels.insert("mine".into(), "1".into());
    assert_eq!(gardens.apply(&wanted).await.unwrap().1, Outcome::Created);
    let label =
        |it: &mut Object<Garden>| drop(it.metadata.labels.insert("hand".into(), "2".into()));
    gardens.entry("a").and_modify(label).save().await.unwrap();
    assert_eq!(gardens.apply(&wanted).await.unwrap().1, Outcome::Unchanged);
    wanted.metadata.labels.clear();
    wanted.spec.trees = 4;
    let (applied, outcome) = gardens.apply(&wanted).await.unwrap();
    assert_eq!((outcome, applied.spec.trees), (Outcome::Configured, 4));
    assert!(applied.metadata.labels.contains_key("hand"));
    assert!(!applied.metadata.labels.contains_key("mine"));
}

#[tokio::test]
async fn a_mirror_is_read_at_once_and_waited_for_where_it_must_be_new() {
    let Fixture { client, store } = fixture();
    identity::initialise(&store, client.environment())
        .await
        .unwrap();
    let runtime = Runtime::new(Arc::new(store.clone()), client.environment().clone());
    let runtime = runtime.kind::<Garden>();
    let handle = runtime.handle();
    let running = tokio::spawn(runtime.run());
    let reader = loop {
        match handle.reader() {
            Some(reader) => break reader,
            None => tokio::task::yield_now().await,
        }
    };
    let cached = client.cached::<Garden>(&reader);
    let patience = Duration::from_secs(20);
    let gardens = client.fresh::<Garden>();
    let created = gardens.create(&named("a", 1)).await.unwrap();
    let written = created.metadata.resource_version.unwrap();
    assert!(written > Revision::ZERO);
    tokio::time::timeout(patience, cached.at_least(written))
        .await
        .unwrap();
    assert_eq!(cached.get("a").unwrap().unwrap().metadata, created.metadata);
    assert_eq!(cached.list().len(), 1);
    assert!(cached.clone().namespace("other").list().is_empty());
    assert!(cached.get("b").unwrap().is_none() && cached.get("../b").is_err());
    handle.stop();
    running.await.unwrap().unwrap();
}
