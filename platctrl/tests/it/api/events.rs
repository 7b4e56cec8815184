use std::sync::Arc;

use platctrl_framework::controller::EventRecorder;
use platctrl_framework::environment::Environment;
use platctrl_framework::model::{EventType, ObjectReference, Uid};
use serde_json::Value;

use super::{Api, ROOT, text};

fn reference(namespace: Option<&str>, name: &str) -> ObjectReference {
    ObjectReference {
        api_version: "platctrl.dev/v1".to_owned(),
        kind: if namespace.is_some() { "Pod" } else { "Node" }.to_owned(),
        namespace: namespace.map(ToOwned::to_owned),
        name: name.to_owned(),
        uid: Uid::from(format!("uid-of-{name}")),
    }
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap();
    items
        .iter()
        .map(|item| text(item, "/involvedObject/name"))
        .collect()
}

#[tokio::test]
async fn events_of_all_writers_are_one_list_by_time() {
    let api = Api::start().await;
    let store = Arc::new(api.store.clone());
    let recorder = |writer: &str| {
        EventRecorder::new(
            store.clone(),
            writer,
            &format!("agent/{writer}"),
            Environment::system(),
        )
        .unwrap()
    };
    let (one, two) = (recorder("web1"), recorder("web.2"));
    one.record(
        reference(Some("default"), "a"),
        EventType::Normal,
        "Started",
        "it runs",
    );
    one.flush().await;
    two.record(
        reference(Some("other"), "b"),
        EventType::Warning,
        "Failed",
        "it does not",
    );
    two.flush().await;
    one.record(
        reference(None, "web1"),
        EventType::Normal,
        "Joined",
        "a node",
    );
    one.flush().await;

    let all = api.get(&format!("{ROOT}/events")).await.done();
    assert_eq!(all["kind"], "EventList");
    assert_eq!(names(&all), ["a", "b", "web1"]);
    let event = &all["items"][1];
    assert_eq!(event["kind"], "Event");
    assert_eq!(text(event, "/metadata/namespace"), "other");
    assert_eq!(text(event, "/metadata/name"), "b.web.2.000");
    assert_eq!(
        (text(event, "/type"), text(event, "/reason")),
        ("Warning", "Failed")
    );
    assert_eq!(text(event, "/source/component"), "agent/web.2");
    assert_eq!(event["count"], 1);

    for (path, expected) in [
        ("namespaces/default/events", vec!["a", "web1"]),
        ("events?fieldSelector=involvedObject.name%3Db", vec!["b"]),
        (
            "events?fieldSelector=involvedObject.kind%3DNode",
            vec!["web1"],
        ),
        (
            "events?fieldSelector=involvedObject.uid%3Duid-of-a",
            vec!["a"],
        ),
        (
            "events?fieldSelector=involvedObject.namespace%3Dother",
            vec!["b"],
        ),
        ("events?fieldSelector=type!%3DNormal", vec!["b"]),
    ] {
        let list = api.get(&format!("{ROOT}/{path}")).await.done();
        assert_eq!(names(&list), expected, "{path}");
    }
    let read = api
        .get(&format!("{ROOT}/namespaces/other/events/b.web.2.000"))
        .await
        .done();
    assert_eq!(read, *event);
    api.get(&format!("{ROOT}/namespaces/default/events/b.web.2.000"))
        .await
        .fails(404, "NotFound");
    api.get(&format!("{ROOT}/events?fieldSelector=involved%3Db"))
        .await
        .fails(400, "BadRequest");

    let revision = text(&all, "/metadata/resourceVersion");
    let path = format!("{ROOT}/namespaces/default/events?watch=1&resourceVersion={revision}");
    let mut watch = api.stream(&path).await;
    two.record(
        reference(Some("default"), "c"),
        EventType::Normal,
        "Started",
        "it runs",
    );
    two.flush().await;
    let (kind, name, _) = watch.event().await;
    assert_eq!((kind.as_str(), name.as_str()), ("ADDED", "c.web.2.001"));
}
