//! Lists in pages: each is of one revision, on stores that read old ones and on those that do not,
//! and none costs the server more than it may.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt as _;
use platctrl::server::{Server, ServerConfig};
use platctrl_framework::client::register_kind;
use platctrl_framework::controller::EventRecorder;
use platctrl_framework::environment::Environment;
use platctrl_framework::model::{EventType, KindDefinition, Kinds, ObjectReference, Uid, identity};
use platctrl_framework::store::{Key, MemoryOptions, MemoryStore, Prefix, Store as _, Transaction};
use platctrl_kinds::{DisruptionBudget, ReplicationController};
use serde_json::{Value, json};

use super::{Api, CONTROLLERS, PODS, ROOT, controller, pod, text, told};

/// A store that reads old revisions, or none but the newest.
async fn store(pinned: bool) -> MemoryStore {
    let environment = Environment::system();
    let mut options = MemoryOptions::default();
    options.pinned_reads = pinned;
    let store = MemoryStore::with_options(environment.clone(), options);
    identity::initialise(&store, &environment).await.unwrap();
    store
}

async fn newest_only() -> Api {
    Api::on(store(false).await, |_| {}).await
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap();
    items.iter().map(|it| text(it, "/metadata/name")).collect()
}

fn next(list: &Value) -> String {
    text(list, "/metadata/continue").replace('/', "%2F")
}

/// The first pages of a list with two objects each, and where the next one begins.
async fn first_page(api: &Api, path: &str) -> (Value, String) {
    let page = api.get(&format!("{path}?limit=2")).await.done();
    let next = next(&page);
    assert_ne!(next, "", "{page}");
    (page, next)
}

async fn makes(api: &Api, names: &[&str]) {
    for name in names {
        api.post(CONTROLLERS, &controller(name)).await.done();
    }
}

/// Changes, deletes and creates objects that a page has told, and that are still to be told.
async fn shakes(api: &Api) {
    for name in ["a", "e"] {
        let patch = json!({"spec": {"replicas": 77}});
        let path = format!("{CONTROLLERS}/{name}");
        api.merge(&path, &patch).await.done();
    }
    for name in ["b", "d"] {
        api.delete(&format!("{CONTROLLERS}/{name}")).await.done();
    }
    makes(api, &["aa", "dd", "f"]).await;
}

#[tokio::test]
async fn all_pages_of_a_list_are_of_one_revision_whatever_happens_meanwhile() {
    for pinned in [true, false] {
        let api = Api::on(store(pinned).await, |_| {}).await;
        makes(&api, &["a", "b", "c", "d", "e"]).await;
        let whole = api.get(CONTROLLERS).await.done();
        let (first, mut at) = first_page(&api, CONTROLLERS).await;
        let revision = first["metadata"]["resourceVersion"].clone();
        let mut items = first["items"].as_array().unwrap().clone();
        while !at.is_empty() {
            shakes_once(&api, items.len()).await;
            let page = api
                .get(&format!("{CONTROLLERS}?limit=2&continue={at}"))
                .await
                .done();
            assert_eq!(page["metadata"]["resourceVersion"], revision, "{pinned}");
            assert!(page["items"].as_array().unwrap().len() <= 2);
            items.extend(page["items"].as_array().unwrap().clone());
            at = next(&page);
        }
        assert_eq!(json!(items), whole["items"], "{pinned}");
        let now = api.get(CONTROLLERS).await.done();
        assert_eq!(names(&now), ["a", "aa", "c", "dd", "e", "f"], "{pinned}");
        assert_eq!(now["items"][0]["spec"]["replicas"], 77);
        assert_ne!(now["metadata"]["resourceVersion"], revision);
    }
}

/// [`shakes`], between the first page and the second.
async fn shakes_once(api: &Api, told: usize) {
    if told == 2 {
        shakes(api).await;
    }
}

#[tokio::test]
async fn pages_of_pods_are_selected_and_told_as_rows_at_one_revision_too() {
    for pinned in [true, false] {
        let api = Api::on(store(pinned).await, |_| {}).await;
        for (name, node) in [("a", "web2"), ("b", "web1"), ("c", "web1"), ("d", "web10")] {
            api.post(PODS, &pod(name, node)).await.done();
        }
        // In the order of their keys, in which nodes come first.
        let (first, at) = first_page(&api, PODS).await;
        assert_eq!(names(&first), ["b", "c"]);
        api.delete(&format!("{PODS}/a")).await.done();
        let rest = api.get(&format!("{PODS}?continue={at}")).await.done();
        assert_eq!(names(&rest), ["d", "a"], "{pinned}");
        let query = "fieldSelector=spec.nodeName%3Dweb1&limit=1";
        let one = api.get(&format!("{PODS}?{query}")).await.done();
        let at = next(&one);
        let two = api.get(&format!("{PODS}?{query}&continue={at}")).await;
        assert_eq!(names(&two.done()), ["c"]);
        assert_eq!(next(&two.json()), "", "web10 is another node");
        // It is a place in this list and no other.
        let foreign = format!("{CONTROLLERS}?continue={at}");
        api.get(&foreign).await.fails(400, "BadRequest");
    }
}

#[tokio::test]
async fn a_list_whose_moment_nobody_has_any_more_is_410_and_begins_anew() {
    let api = newest_only().await;
    makes(&api, &["a", "b", "c"]).await;
    let (_, at) = first_page(&api, CONTROLLERS).await;
    let path = format!("{CONTROLLERS}?continue={at}");
    // Another server of the store knows it for as long as nothing changes.
    let other = Api::on(api.store.clone(), |_| {}).await;
    assert_eq!(names(&other.get(&path).await.done()), ["c"]);
    api.delete(&format!("{CONTROLLERS}/a")).await.done();
    let seen = other.get(CONTROLLERS).await.done();
    assert_eq!(names(&seen), ["b", "c"]);
    let said = other.get(&path).await.fails(410, "Expired");
    assert!(said.contains("list again"), "{said}");
    // The one that gave it out still has it.
    assert_eq!(names(&api.get(&path).await.done()), ["c"]);
}

#[tokio::test]
async fn a_list_can_be_had_at_exactly_the_revision_of_another() {
    for pinned in [true, false] {
        let api = Api::on(store(pinned).await, |_| {}).await;
        makes(&api, &["a", "b", "c", "d", "e"]).await;
        let (first, _) = first_page(&api, CONTROLLERS).await;
        let revision = text(&first, "/metadata/resourceVersion").to_owned();
        shakes(&api).await;
        let exact = format!("{CONTROLLERS}?resourceVersionMatch=Exact&resourceVersion=");
        let then = api.get(&format!("{exact}{revision}")).await.done();
        assert_eq!(names(&then), ["a", "b", "c", "d", "e"], "{pinned}");
        assert_eq!(text(&then, "/metadata/resourceVersion"), revision);
        let ahead = api.store.revision().as_u64() + 1000;
        let never = api.get(&format!("{exact}{ahead}")).await;
        never.fails(410, "Expired");
    }
    let api = newest_only().await;
    makes(&api, &["a"]).await;
    let gone = api.store.revision();
    makes(&api, &["b"]).await;
    let path = format!("{CONTROLLERS}?resourceVersionMatch=Exact&resourceVersion={gone}");
    api.get(&path).await.fails(410, "Expired");
}

#[tokio::test]
async fn only_so_many_lists_wait_for_their_next_page() {
    let api = newest_only().await;
    makes(&api, &["a", "b", "c"]).await;
    let mut places = Vec::new();
    for replicas in 0..40 {
        places.push(first_page(&api, CONTROLLERS).await.1);
        let patch = json!({"spec": {"replicas": replicas + 10}});
        api.merge(&format!("{CONTROLLERS}/c"), &patch).await.done();
    }
    let page = |at: &str| format!("{CONTROLLERS}?continue={at}");
    api.get(&page(&places[0])).await.fails(410, "Expired");
    let last = api.get(&page(&places[39])).await.done();
    assert_eq!(last["items"][0]["spec"]["replicas"], 48);
}

#[tokio::test]
async fn a_list_that_waits_for_its_next_page_holds_only_so_much_of_what_was_replaced() {
    let api = newest_only().await;
    makes(&api, &["a", "b", "c"]).await;
    let (_, at) = first_page(&api, CONTROLLERS).await;
    let path = format!("{CONTROLLERS}?continue={at}");
    let note = "x".repeat(300_000);
    let mut changes = 0;
    loop {
        let patch = json!({"metadata": {"annotations": {"note": format!("{changes}{note}")}}});
        api.merge(&format!("{CONTROLLERS}/a"), &patch).await.done();
        changes += 1;
        // It takes some to be too much.
        if changes == 20 {
            assert_eq!(names(&api.get(&path).await.done()), ["c"]);
        }
        if api.get(&path).await.code == 410 {
            break;
        }
        assert!(changes < 400, "it is held for ever");
    }
    assert!(changes > 20);
}

#[tokio::test]
async fn a_list_shows_every_write_that_was_confirmed_before_it() {
    let api = newest_only().await;
    makes(&api, &["a"]).await;
    api.store.faults().hold_watches(Prefix::new("o/").unwrap());
    makes(&api, &["b"]).await;
    // The mirror cannot know it yet, so the list waits.
    let list = api.get(CONTROLLERS);
    tokio::pin!(list);
    let early = tokio::time::timeout(Duration::from_millis(100), list.as_mut()).await;
    assert!(early.is_err(), "an old list");
    api.store.faults().release_watches();
    let list = tokio::time::timeout(Duration::from_secs(60), list).await;
    assert_eq!(names(&list.unwrap().done()), ["a", "b"]);
}

#[tokio::test]
async fn a_watch_of_a_mirrored_list_goes_on_where_the_list_ends() {
    let api = newest_only().await;
    makes(&api, &["a", "b"]).await;
    let mut watch = api.stream(&format!("{CONTROLLERS}?watch=1")).await;
    assert_eq!(watch.next().await, told("ADDED", "a"));
    assert_eq!(watch.next().await, told("ADDED", "b"));
    let list = api.get(CONTROLLERS).await.done();
    let revision = text(&list, "/metadata/resourceVersion").to_owned();
    let from = format!("{CONTROLLERS}?watch=1&resourceVersion={revision}");
    let mut resumed = api.stream(&from).await;
    makes(&api, &["c"]).await;
    assert_eq!(watch.next().await, told("ADDED", "c"));
    assert_eq!(resumed.next().await, told("ADDED", "c"));
}

#[tokio::test]
async fn objects_of_a_kind_that_was_unknown_are_in_its_first_list() {
    let api = newest_only().await;
    let path = format!("{ROOT}/namespaces/default/disruptionbudgets");
    api.get(&path).await.fails(404, "NotFound");
    let record = json!({
        "apiVersion": "platctrl.dev/v1", "kind": "DisruptionBudget",
        "metadata": {"name": "x", "namespace": "default", "uid": "u", "generation": 1},
        "spec": {"selector": "app=a", "minAvailable": 1},
    });
    let key = Key::new("o/intent/platctrl.dev/disruptionbudgets/default/x").unwrap();
    let put = Transaction::new().put(key, record.to_string());
    api.store.commit(put).await.unwrap();
    register_kind(&api.store, &KindDefinition::of::<DisruptionBudget>())
        .await
        .unwrap();
    let served = async {
        loop {
            let answer = api.get(&path).await;
            if answer.code != 404 {
                return answer.done();
            }
        }
    };
    let first = tokio::time::timeout(Duration::from_secs(60), served).await;
    assert_eq!(names(&first.unwrap()), ["x"]);
}

#[tokio::test]
async fn of_another_history_no_page_is_told() {
    let api = newest_only().await;
    makes(&api, &["a", "b", "c"]).await;
    let backup = api.store.snapshot();
    makes(&api, &["d"]).await;
    let (_, at) = first_page(&api, CONTROLLERS).await;
    let mut watch = api.stream(&format!("{CONTROLLERS}?watch=1")).await;
    assert_eq!(watch.next().await, told("ADDED", "a"));
    api.store.faults().come_back_older(&backup);
    while watch.line().await.is_some() {}
    let path = format!("{CONTROLLERS}?continue={at}");
    api.get(&path).await.fails(410, "Expired");
    assert_eq!(names(&api.get(CONTROLLERS).await.done()), ["a", "b", "c"]);
}

fn reference(name: &str) -> ObjectReference {
    ObjectReference {
        api_version: "platctrl.dev/v1".to_owned(),
        kind: "Pod".to_owned(),
        namespace: Some("default".to_owned()),
        name: name.to_owned(),
        uid: Uid::from(format!("uid-of-{name}")),
    }
}

/// Writes an event about each of these.
async fn happens(store: &MemoryStore, writer: &str, about: &[&str]) {
    let store = std::sync::Arc::new(store.clone());
    let environment = Environment::system();
    let recorder = EventRecorder::new(store, writer, "test", environment).unwrap();
    for name in about {
        recorder.record(reference(name), EventType::Normal, "Started", "it runs");
    }
    recorder.flush().await;
}

/// The objects of all events of a list in pages, and how many pages there were.
async fn all_events(api: &Api, query: &str) -> (Vec<String>, usize) {
    let (mut found, mut pages, mut at) = (Vec::new(), 0, String::new());
    let mut revision = Value::Null;
    loop {
        let path = format!("{ROOT}/events?{query}&continue={at}");
        let page = api.get(&path).await.done();
        pages += 1;
        if pages > 1 {
            assert_eq!(page["metadata"]["resourceVersion"], revision);
        }
        revision = page["metadata"]["resourceVersion"].clone();
        let items = page["items"].as_array().unwrap();
        found.extend(
            items
                .iter()
                .map(|it| text(it, "/involvedObject/name").to_owned()),
        );
        at = next(&page);
        if at.is_empty() {
            return (found, pages);
        }
    }
}

#[tokio::test]
async fn events_come_in_pages_of_one_revision_too() {
    for pinned in [true, false] {
        let api = Api::on(store(pinned).await, |_| {}).await;
        happens(&api.store, "one", &["a", "b", "c"]).await;
        happens(&api.store, "two", &["a", "d"]).await;
        let (found, pages) = all_events(&api, "limit=2").await;
        assert_eq!(found, ["a", "b", "c", "a", "d"], "{pinned}");
        assert!(pages >= 3);
        let selected = "limit=1&fieldSelector=involvedObject.name%3Da";
        assert_eq!(all_events(&api, selected).await.0, ["a", "a"]);

        let first = api.get(&format!("{ROOT}/events?limit=2")).await.done();
        let path = format!("{ROOT}/events?continue={}", next(&first));
        happens(&api.store, "three", &["z"]).await;
        let then = api.get(&path).await;
        if pinned {
            assert_eq!(then.done()["items"].as_array().unwrap().len(), 3);
        } else {
            then.fails(410, "Expired");
        }
    }
}

#[tokio::test]
async fn a_list_of_very_many_events_has_them_all() {
    let api = Api::start().await;
    happens(&api.store, "one", &["a"]).await;
    let key = Key::new("x/event/one/000").unwrap();
    let record = api.store.peek(&key).unwrap();
    for writer in 0..24 {
        let mut transaction = Transaction::new();
        for slot in 0..100 {
            let key = Key::new(format!("x/event/w{writer:02}/{slot:03}")).unwrap();
            transaction = transaction.put(key, record.value.clone());
        }
        api.store.commit(transaction).await.unwrap();
    }
    let all = api.get(&format!("{ROOT}/events")).await.done();
    assert_eq!(all["items"].as_array().unwrap().len(), 2_401);
    assert_eq!(all_events(&api, "limit=999").await.0.len(), 2_401);
}

#[tokio::test]
async fn a_watch_of_events_marks_the_end_of_what_there_was() {
    let api = Api::start().await;
    happens(&api.store, "one", &["a"]).await;
    let query =
        "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = api.stream(&format!("{ROOT}/events?{query}")).await;
    assert_eq!(watch.next().await, told("ADDED", "a.one.000"));
    let (kind, _, mark) = watch.event().await;
    assert_eq!((kind.as_str(), text(&mark, "/kind")), ("BOOKMARK", "Event"));
    assert_eq!(
        mark["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    happens(&api.store, "two", &["b"]).await;
    assert_eq!(watch.next().await, told("ADDED", "b.two.000"));

    let ahead = api.store.revision().as_u64() + 1000;
    api.get(&format!("{ROOT}/events?watch=1&resourceVersion={ahead}"))
        .await
        .fails(410, "Expired");
    api.store.faults().reset_watches();
    let (kind, _, status) = watch.event().await;
    assert_eq!((kind.as_str(), &status["code"]), ("ERROR", &json!(410)));
    assert_eq!(watch.line().await, None);
}

/// More than a connection takes without anybody reading.
async fn makes_much(store: &MemoryStore) {
    let note = "x".repeat(200_000);
    for name in 0..64 {
        let record = json!({
            "apiVersion": "platctrl.dev/v1", "kind": "ReplicationController",
            "metadata": {"name": format!("rc-{name}"), "namespace": "default",
                "uid": format!("u{name}"), "generation": 1, "annotations": {"note": note}},
            "spec": controller("x")["spec"],
        });
        let path = format!("o/intent/platctrl.dev/replicationcontrollers/default/rc-{name}");
        let put = Transaction::new().put(Key::new(path).unwrap(), record.to_string());
        store.commit(put).await.unwrap();
    }
}

#[tokio::test]
async fn more_lists_than_are_read_at_once_wait_for_one_to_end() {
    let api = Api::with(|config| config.max_lists = 1).await;
    makes_much(&api.store).await;
    let unread = api.stream(CONTROLLERS).await;
    let path = format!("{CONTROLLERS}?limit=1");
    let waiting = api.get(&path);
    tokio::pin!(waiting);
    let early = tokio::time::timeout(Duration::from_millis(100), waiting.as_mut()).await;
    assert!(early.is_err(), "it is not its turn");
    drop(unread);
    let answer = tokio::time::timeout(Duration::from_secs(60), waiting).await;
    answer.expect("now it is").done();
}

#[tokio::test(start_paused = true)]
async fn a_list_that_nobody_reads_is_cut_off_and_never_taken_for_a_whole_one() {
    let store = store(true).await;
    makes_much(&store).await;
    let kinds = Kinds::new().with::<ReplicationController>();
    let dir = tempfile::tempdir().unwrap();
    let mut config = ServerConfig::new(std::sync::Arc::new(store), kinds, dir.path());
    config.max_lists = 1;
    let server = Server::new(config);
    let ask = |path: &str| {
        let request = Request::get(path).header("host", "x");
        server.answer(request.body(Bytes::new()).unwrap())
    };
    let unread = ask(CONTROLLERS).await;
    assert_eq!(unread.status(), 200);
    // There is no room for another one until the first is given up; who comes early is told.
    let refused = ask(CONTROLLERS).await;
    assert_eq!(refused.status(), 429);
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert!(unread.into_body().collect().await.is_err(), "half a list");
    let whole = ask(CONTROLLERS).await.into_body().collect().await.unwrap();
    let list: Value = serde_json::from_slice(&whole.to_bytes()).unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 64);
}
