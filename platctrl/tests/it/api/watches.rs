use std::time::Duration;

use platctrl_framework::client::{Batch, Client};
use platctrl_framework::environment::Environment;
use platctrl_framework::model::ObjectKey;
use serde_json::json;

use super::{Api, CONTROLLERS, PODS, ROOT, controller, pod, text, told};

#[tokio::test]
async fn a_watch_tells_what_comes_after_a_list_once_and_in_order() {
    let api = Api::start().await;
    api.post(CONTROLLERS, &controller("a")).await.done();
    let list = api.get(CONTROLLERS).await.done();
    let revision = text(&list, "/metadata/resourceVersion").to_owned();
    let mut watch = api
        .stream(&format!("{CONTROLLERS}?watch=1&resourceVersion={revision}"))
        .await;
    api.post(CONTROLLERS, &controller("b")).await.done();
    api.merge(
        &format!("{CONTROLLERS}/a"),
        &json!({"spec": {"replicas": 3}}),
    )
    .await
    .done();
    api.delete(&format!("{CONTROLLERS}/b")).await.done();
    assert_eq!(watch.next().await, told("ADDED", "b"));
    let (kind, name, object) = watch.event().await;
    assert_eq!((kind.as_str(), name.as_str()), ("MODIFIED", "a"));
    assert_eq!(object, api.get(&format!("{CONTROLLERS}/a")).await.done());
    let (kind, name, object) = watch.event().await;
    assert_eq!((kind.as_str(), name.as_str()), ("DELETED", "b"));
    assert_eq!(
        text(&object, "/metadata/resourceVersion"),
        api.store.revision().to_string()
    );
    assert_eq!(
        object["spec"]["replicas"], 2,
        "the last that was known of it"
    );
}

#[tokio::test]
async fn a_watch_without_version_begins_with_what_there_is() {
    let api = Api::start().await;
    api.post(CONTROLLERS, &controller("a")).await.done();
    api.post(CONTROLLERS, &controller("b")).await.done();
    let query =
        "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = api.stream(&format!("{CONTROLLERS}?{query}")).await;
    assert_eq!(watch.next().await, told("ADDED", "a"));
    assert_eq!(watch.next().await, told("ADDED", "b"));
    let (kind, _, bookmark) = watch.event().await;
    assert_eq!(kind, "BOOKMARK");
    assert_eq!(
        bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    api.post(CONTROLLERS, &controller("c")).await.done();
    assert_eq!(watch.next().await, told("ADDED", "c"));
}

#[tokio::test]
async fn what_one_transaction_does_to_intent_and_reality_is_one_event() {
    let api = Api::start().await;
    api.post(CONTROLLERS, &controller("a")).await.done();
    let mut watch = api.stream(&format!("{CONTROLLERS}?watch=1")).await;
    assert_eq!(watch.next().await, told("ADDED", "a"));
    let environment = Environment::system();
    let client = Client::new(std::sync::Arc::new(api.store.clone()), environment, "test");
    let key =
        ObjectKey::namespaced("platctrl.dev", "replicationcontrollers", "default", "a").unwrap();
    let joined = client.joined(&key).await.unwrap();
    let mut object = joined.object().unwrap();
    object.spec["replicas"] = 7.into();
    let mut status = object.status.clone();
    status.detail.insert("replicas".to_owned(), json!(7));
    let mut batch = Batch::new();
    batch.update(&joined, object, None).unwrap();
    batch.report(&joined, status).unwrap();
    client.commit(batch).await.unwrap();
    api.post(CONTROLLERS, &controller("b")).await.done();
    let (kind, name, object) = watch.event().await;
    assert_eq!((kind.as_str(), name.as_str()), ("MODIFIED", "a"));
    assert_eq!(
        (&object["spec"]["replicas"], &object["status"]["replicas"]),
        (&json!(7), &json!(7))
    );
    assert_eq!(watch.next().await, told("ADDED", "b"));
}

#[tokio::test]
async fn an_object_that_enters_or_leaves_a_selection_is_added_or_deleted() {
    let api = Api::start().await;
    api.post(CONTROLLERS, &controller("a")).await.done();
    let mut watch = api
        .stream(&format!("{CONTROLLERS}?watch=1&labelSelector=role%3Dweb"))
        .await;
    let path = format!("{CONTROLLERS}/a");
    for (role, expected) in [("web", "ADDED"), ("db", "DELETED"), ("web", "ADDED")] {
        let patch = json!({"metadata": {"labels": {"role": role}}});
        let patched = api.merge(&path, &patch).await.done();
        let (kind, name, object) = watch.event().await;
        assert_eq!((kind.as_str(), name.as_str()), (expected, "a"));
        assert_eq!(
            object["metadata"]["resourceVersion"],
            patched["metadata"]["resourceVersion"]
        );
        assert_eq!(object["metadata"]["labels"]["role"], "web");
    }
    let mut one = api.stream(&format!("{CONTROLLERS}/b?watch=1")).await;
    api.post(CONTROLLERS, &controller("c")).await.done();
    api.post(CONTROLLERS, &controller("b")).await.done();
    assert_eq!(one.next().await, told("ADDED", "b"));
}

#[tokio::test]
async fn a_status_is_an_event_and_other_kinds_and_namespaces_are_not() {
    let api = Api::start().await;
    let mut watch = api.stream(&format!("{PODS}?watch=1")).await;
    api.post(CONTROLLERS, &controller("a")).await.done();
    api.post(&format!("{ROOT}/namespaces/other/pods"), &pod("x", "web1"))
        .await
        .done();
    api.post(PODS, &pod("a", "web1")).await.done();
    api.put(
        &format!("{PODS}/a/status"),
        &json!({"status": {"phase": "Running"}}),
    )
    .await
    .done();
    assert_eq!(watch.next().await, told("ADDED", "a"));
    let (kind, _, object) = watch.event().await;
    assert_eq!(
        (kind.as_str(), text(&object, "/status/phase")),
        ("MODIFIED", "Running")
    );
}

#[tokio::test]
async fn a_version_that_is_no_longer_known_is_410_in_the_stream() {
    let api = Api::start().await;
    api.post(CONTROLLERS, &controller("a")).await.done();
    api.post(CONTROLLERS, &controller("b")).await.done();
    // Another server of the same store begins with what there is now.
    let other = Api::on(api.store.clone(), |_| {}).await;
    let mut old = other
        .stream(&format!("{CONTROLLERS}?watch=1&resourceVersion=1"))
        .await;
    let (kind, _, status) = old.event().await;
    assert_eq!(
        (kind.as_str(), &status["code"], text(&status, "/reason")),
        ("ERROR", &json!(410), "Expired")
    );
    assert_eq!(old.line().await, None);
    let ahead = api.store.revision().as_u64() + 1000;
    api.get(&format!("{CONTROLLERS}?watch=1&resourceVersion={ahead}"))
        .await
        .fails(410, "Expired");
    api.get(&format!("{CONTROLLERS}?watch=1&resourceVersion=x"))
        .await
        .fails(400, "BadRequest");
}

#[tokio::test]
async fn a_watch_outlives_a_gap_in_the_stores_own() {
    let api = Api::start().await;
    api.post(CONTROLLERS, &controller("a")).await.done();
    api.post(CONTROLLERS, &controller("b")).await.done();
    let mut watch = api.stream(&format!("{CONTROLLERS}?watch=1")).await;
    assert_eq!(watch.next().await, told("ADDED", "a"));
    assert_eq!(watch.next().await, told("ADDED", "b"));
    api.store
        .faults()
        .hold_watches(platctrl_framework::store::Prefix::new("o/").unwrap());
    api.delete(&format!("{CONTROLLERS}/a")).await.done();
    api.merge(
        &format!("{CONTROLLERS}/b"),
        &json!({"spec": {"replicas": 9}}),
    )
    .await
    .done();
    api.post(CONTROLLERS, &controller("c")).await.done();
    api.store.faults().reset_watches();
    api.store.faults().release_watches();
    let mut events = Vec::new();
    for _ in 0..3 {
        events.push(watch.next().await);
    }
    events.sort();
    assert_eq!(
        events,
        [
            told("ADDED", "c"),
            told("DELETED", "a"),
            told("MODIFIED", "b")
        ]
    );
}

#[tokio::test]
async fn what_a_watch_began_with_is_not_told_again_when_the_server_learns_of_it() {
    let api = Api::start().await;
    let mut early = api.stream(&format!("{CONTROLLERS}?watch=1")).await;
    let objects = platctrl_framework::store::Prefix::new("o/").unwrap();
    api.store.faults().hold_watches(objects);
    api.post(CONTROLLERS, &controller("a")).await.done();
    let mut watch = api.stream(&format!("{CONTROLLERS}?watch=1")).await;
    assert_eq!(
        watch.next().await,
        told("ADDED", "a"),
        "read from the store"
    );
    api.store.faults().release_watches();
    assert_eq!(
        early.next().await,
        told("ADDED", "a"),
        "told by the store's watch"
    );
    api.post(CONTROLLERS, &controller("b")).await.done();
    assert_eq!(watch.next().await, told("ADDED", "b"));
}

#[tokio::test]
async fn another_history_ends_every_watch() {
    let api = Api::start().await;
    api.post(CONTROLLERS, &controller("a")).await.done();
    let backup = api.store.snapshot();
    api.post(CONTROLLERS, &controller("b")).await.done();
    let mut watch = api.stream(&format!("{CONTROLLERS}?watch=1")).await;
    assert_eq!(watch.next().await, told("ADDED", "a"));
    assert_eq!(watch.next().await, told("ADDED", "b"));
    api.store.faults().come_back_older(&backup);
    let (kind, _, status) = watch.event().await;
    assert_eq!((kind.as_str(), &status["code"]), ("ERROR", &json!(410)));
}

#[tokio::test]
async fn a_watch_ends_when_it_was_asked_to() {
    let api = Api::start().await;
    let mut watch = api
        .stream(&format!("{CONTROLLERS}?watch=1&timeoutSeconds=1"))
        .await;
    assert_eq!(watch.line().await, None);
    let mut events = api
        .stream(&format!("{ROOT}/events?watch=1&timeoutSeconds=1"))
        .await;
    assert_eq!(events.line().await, None);
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_told_to_list_again_and_holds_nobody_up() {
    let api = Api::start().await;
    let mut slow = api.stream(&format!("{CONTROLLERS}?watch=1")).await;
    api.post(CONTROLLERS, &controller("a")).await.done();
    assert_eq!(slow.next().await, told("ADDED", "a"));
    let path = format!("{CONTROLLERS}/a");
    let note = "x".repeat(100_000);
    let mut changes = 0;
    // More than sockets, buffers and the ring hold together.
    while changes < 400 {
        let patch = json!({"metadata": {"annotations": {"note": format!("{changes}{note}")}}});
        api.merge(&path, &patch).await.done();
        changes += 1;
    }
    let mut read = 0;
    let last = loop {
        let (kind, _, object) = slow.event().await;
        if kind == "ERROR" {
            break object;
        }
        read += 1;
        assert!(
            read < changes,
            "it was told everything, so this test shows nothing"
        );
    };
    assert_eq!(last["code"], 410);
    assert_eq!(slow.line().await, None);
    let mut fast = api.stream(&format!("{CONTROLLERS}?watch=1")).await;
    assert_eq!(fast.next().await, told("ADDED", "a"));
}

#[tokio::test]
async fn no_more_watches_are_taken_than_allowed() {
    let api = Api::with(|config| config.max_watches = 1).await;
    let watch = api.stream(&format!("{CONTROLLERS}?watch=1")).await;
    let answer = api.get(&format!("{CONTROLLERS}?watch=1")).await;
    answer.fails(429, "TooManyRequests");
    assert_eq!(answer.header("retry-after"), "1");
    drop(watch);
    let freed = async {
        loop {
            let again = api
                .get(&format!("{CONTROLLERS}?watch=1&timeoutSeconds=1"))
                .await;
            if again.code == 200 {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), freed)
        .await
        .expect("its place is free again");
}
