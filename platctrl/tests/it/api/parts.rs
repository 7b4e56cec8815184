//! Status, scale, discovery and nodes.

use http::Method;
use serde_json::{Value, json};

use super::{Api, CONTROLLERS, PODS, ROOT, controller, text};

#[tokio::test]
async fn a_status_is_written_on_its_own_and_changes_nothing_else() {
    let api = Api::start().await;
    let created = api.post(CONTROLLERS, &controller("hello")).await.done();
    let path = format!("{CONTROLLERS}/hello/status");
    let mut wanted = created.clone();
    wanted["spec"]["replicas"] = 99.into();
    wanted["status"] = json!({"replicas": 2, "readyReplicas": 1, "observedGeneration": 1});
    let reported = api.put(&path, &wanted).await.done();
    assert_eq!(reported["spec"]["replicas"], 2);
    assert_eq!(reported["metadata"]["generation"], 1);
    assert_eq!(reported["status"], wanted["status"]);
    // Of two who read the same status, the second is refused.
    wanted["status"]["readyReplicas"] = 0.into();
    api.put(&path, &wanted).await.fails(409, "Conflict");
    let patched = api
        .merge(&path, &json!({"status": {"readyReplicas": 2}}))
        .await
        .done();
    assert_eq!(patched["status"]["replicas"], 2);
    assert_eq!(patched["status"]["readyReplicas"], 2);
    let answer = api
        .put(&path, &json!({"status": {"replicas": "x", "pods": 1}}))
        .await;
    answer.fails(422, "Invalid");
    assert_eq!(answer.fields(), ["status.replicas", "status.pods"]);
    // The status in an object is nobody's order.
    let mut object = patched.clone();
    object["status"]["readyReplicas"] = 77.into();
    let updated = api
        .put(&format!("{CONTROLLERS}/hello"), &object)
        .await
        .done();
    assert_eq!(updated["status"]["readyReplicas"], 2);
}

#[tokio::test]
async fn a_scale_is_read_and_written() {
    let api = Api::start().await;
    api.post(CONTROLLERS, &controller("hello")).await.done();
    let path = format!("{CONTROLLERS}/hello/scale");
    let mut scale = api.get(&path).await.done();
    assert_eq!(scale["kind"], "Scale");
    assert_eq!(scale["apiVersion"], "autoscaling/v1");
    assert_eq!(scale["spec"], json!({"replicas": 2}));
    assert_eq!(scale["status"], json!({"replicas": 0}));
    scale["spec"]["replicas"] = 3.into();
    let scaled = api.put(&path, &scale).await.done();
    assert_eq!(scaled["spec"]["replicas"], 3);
    let read = api.get(&format!("{CONTROLLERS}/hello")).await.done();
    assert_eq!(
        (&read["spec"]["replicas"], &read["metadata"]["generation"]),
        (&json!(3), &json!(2))
    );
    api.put(&path, &scale).await.fails(409, "Conflict");
    assert_eq!(
        api.merge(&path, &json!({"spec": {"replicas": 0}}))
            .await
            .done()["spec"]["replicas"],
        0
    );
    for wrong in [json!(-1), json!("3"), json!(1.5), Value::Null] {
        api.put(&path, &json!({"spec": {"replicas": wrong}}))
            .await
            .fails(422, "Invalid");
    }
    api.put(&path, &json!({"spec": {"replicas": 100_000_000}}))
        .await
        .fails(422, "Invalid");
    api.get(&format!("{PODS}/a/scale"))
        .await
        .fails(404, "NotFound");
}

#[tokio::test]
async fn the_server_tells_what_it_serves() {
    let api = Api::start().await;
    assert_eq!(api.get("/healthz").await.text(), "ok");
    assert_eq!(api.get("/readyz").await.text(), "ok");
    assert!(text(&api.get("/version").await.done(), "/gitVersion").starts_with('v'));
    assert_eq!(api.get("/api").await.done()["kind"], "APIVersions");
    let groups = api.get("/apis").await.done();
    assert_eq!(groups["groups"][0]["name"], "platctrl.dev");
    let group = api.get("/apis/platctrl.dev").await.done();
    assert_eq!(group["preferredVersion"]["groupVersion"], "platctrl.dev/v1");
    let resources = api.get(ROOT).await.done();
    let resources = resources["resources"].as_array().unwrap();
    let named = |name: &str| {
        resources
            .iter()
            .find(|resource| resource["name"] == name)
            .unwrap()
    };
    assert_eq!(named("pods")["shortNames"], json!(["po"]));
    assert_eq!(named("nodes")["namespaced"], false);
    assert_eq!(named("replicationcontrollers/scale")["kind"], "Scale");
    assert_eq!(named("events")["verbs"], json!(["get", "list", "watch"]));
    let kinds = api.get("/kinds").await.done();
    let kinds: Vec<_> = kinds
        .as_array()
        .unwrap()
        .iter()
        .map(|kind| text(kind, "/kind"))
        .collect();
    let served = ["DaemonSet", "Node", "Pod", "ReplicationController", "Event"];
    assert_eq!(kinds, served);
}

#[tokio::test]
async fn paths_and_methods_that_are_nothing_are_told_as_a_status() {
    let api = Api::start().await;
    for path in [
        "/",
        "/nothing",
        "/apis/example.dev",
        "/apis/example.dev/v1",
        "/apis/platctrl.dev/v2/nodes",
        "/apis/platctrl.dev/v1/podz",
        "/apis/platctrl.dev/v1/pods/a",
        "/apis/platctrl.dev/v1/namespaces/default/nodes",
        "/apis/platctrl.dev/v1/nodes/none",
    ] {
        api.get(path).await.fails(404, "NotFound");
    }
    api.get("/apis/platctrl.dev/v1/nodes/No")
        .await
        .fails(400, "BadRequest");
    let answer = api.delete(CONTROLLERS).await;
    answer.fails(405, "MethodNotAllowed");
    assert_eq!(answer.header("allow"), "GET, POST");
    api.post("/version", &json!({}))
        .await
        .fails(405, "MethodNotAllowed");
    api.json(Method::PUT, &format!("{ROOT}/events"), &json!({}))
        .await
        .fails(405, "MethodNotAllowed");
}

#[tokio::test]
async fn nodes_are_admitted_and_not_created_or_deleted() {
    let api = Api::with(|config| config.admission = false).await;
    let node = json!({"apiVersion": "platctrl.dev/v1", "kind": "Node", "metadata": {"name": "web1"}, "spec": {}});
    let path = format!("{ROOT}/nodes");
    api.post(&path, &node).await.fails(403, "Forbidden");
    api.apply(&format!("{path}/web1"), &node)
        .await
        .fails(403, "Forbidden");
    api.delete(&format!("{path}/web1"))
        .await
        .fails(403, "Forbidden");
    let mut placed = node.clone();
    placed["metadata"]["namespace"] = "default".into();
    let answer = api.post(&path, &placed).await;
    answer.fails(422, "Invalid");
    assert_eq!(answer.fields(), ["metadata.namespace"]);
}
