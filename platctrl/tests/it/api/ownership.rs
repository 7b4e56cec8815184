//! Server-side apply: who answers for which field.

use http::Method;
use serde_json::{Value, json};

use super::{Answer, Api, CONTROLLERS, PODS, controller, pod};

const APPLY: &str = "application/apply-patch+yaml";

impl Api {
    async fn apply_as(&self, manager: &str, more: &str, path: &str, body: &Value) -> Answer {
        let path = format!("{path}?fieldManager={manager}{more}");
        self.ask(Method::PATCH, &path, APPLY, body.to_string())
            .await
    }
}

fn hello(spec: &Value) -> Value {
    json!({"apiVersion": "platctrl.dev/v1", "kind": "ReplicationController",
        "metadata": {"name": "hello"}, "spec": spec})
}

fn hello_path() -> String {
    format!("{CONTROLLERS}/hello")
}

/// Owners by name and operation.
fn owners(object: &Value) -> Vec<(String, String)> {
    let owners = object["metadata"]["managedFields"].as_array();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    owners
        .into_iter()
        .flatten()
        .map(|owner| (text(&owner["manager"]), text(&owner["operation"])))
        .collect()
}

#[tokio::test]
async fn a_manifest_is_created_by_applying_it_and_applied_again_it_changes_nothing() {
    let api = Api::start().await;
    let mut manifest = controller("hello");
    let first = api.apply_as("ci", "", &hello_path(), &manifest).await;
    assert_eq!(first.code, 201, "{}", first.text());
    let object = first.done();
    assert_eq!(owners(&object), [("ci".to_owned(), "Apply".to_owned())]);
    let fields = &object["metadata"]["managedFields"][0]["fieldsV1"];
    assert_eq!(fields["f:spec"]["f:replicas"], json!({}));
    assert_eq!(fields["f:metadata"], json!({"f:labels": {"f:app": {}}}));

    let again = api.apply_as("ci", "", &hello_path(), &manifest).await;
    assert_eq!(
        (again.code.as_u16(), again.header("platctrl-outcome")),
        (200, "unchanged")
    );
    assert_eq!(again.done(), object);

    // What it says no more goes, and what others set stays.
    let label = json!({"metadata": {"labels": {"team": "a"}}});
    api.merge(&hello_path(), &label).await.done();
    manifest["metadata"]["labels"] = json!({});
    let after = api
        .apply_as("ci", "", &hello_path(), &manifest)
        .await
        .done();
    assert_eq!(after["metadata"]["labels"], json!({"team": "a"}));
    assert_eq!(after["metadata"]["generation"], 1);
}

#[tokio::test]
async fn a_field_that_somebody_else_manages_is_a_conflict_that_names_them() {
    let api = Api::start().await;
    let path = hello_path();
    api.apply_as("ci", "", &path, &controller("hello"))
        .await
        .done();
    let scaled = format!("{path}?fieldManager=scaler");
    api.merge(&scaled, &json!({"spec": {"replicas": 7}}))
        .await
        .done();

    let refused = api.apply_as("ci", "", &path, &controller("hello")).await;
    let message = refused.fails(409, "Conflict");
    assert!(
        message.contains("\"scaler\"") && message.contains(".spec.replicas"),
        "{message}"
    );
    let status = refused.json();
    assert_eq!(
        status["details"]["causes"][0]["reason"],
        "FieldManagerConflict"
    );
    assert_eq!(refused.fields(), [".spec.replicas"]);
    // A dry run meets it, too, and neither writes.
    let dry = api
        .apply_as("ci", "&dryRun=All", &path, &controller("hello"))
        .await;
    dry.fails(409, "Conflict");
    assert_eq!(api.get(&path).await.done()["spec"]["replicas"], 7);

    let dry = api
        .apply_as("ci", "&dryRun=All&force=true", &path, &controller("hello"))
        .await;
    assert_eq!(dry.done()["spec"]["replicas"], 2);
    assert_eq!(api.get(&path).await.done()["spec"]["replicas"], 7);
    let forced = api
        .apply_as("ci", "&force=true", &path, &controller("hello"))
        .await
        .done();
    assert_eq!(forced["spec"]["replicas"], 2);
    assert_eq!(owners(&forced), [("ci".to_owned(), "Apply".to_owned())]);

    // Left out, it is the other's, and no conflict.
    api.put(
        &format!("{path}/scale?fieldManager=scaler"),
        &json!({"spec": {"replicas": 9}}),
    )
    .await
    .done();
    let mut manifest = controller("hello");
    manifest["spec"].as_object_mut().unwrap().remove("replicas");
    let object = api.apply_as("ci", "", &path, &manifest).await.done();
    assert_eq!(object["spec"]["replicas"], 9);
}

#[tokio::test]
async fn what_cannot_be_applied_is_refused_and_changes_nothing() {
    let api = Api::start().await;
    let path = hello_path();
    let manifest = controller("hello");
    let nobody = api
        .ask(Method::PATCH, &path, APPLY, manifest.to_string())
        .await;
    nobody.fails(422, "Invalid");
    assert_eq!(nobody.fields(), ["fieldManager"]);
    let long = "x".repeat(129);
    for wrong in ["%00", "a%0ab", long.as_str()] {
        api.apply_as(wrong, "", &path, &manifest)
            .await
            .fails(422, "Invalid");
    }
    let mut managed = manifest.clone();
    managed["metadata"]["managedFields"] = json!([{"manager": "ci"}]);
    api.apply_as("ci", "", &path, &managed)
        .await
        .fails(400, "BadRequest");
    let mut unknown = manifest.clone();
    unknown["spec"]["replicaz"] = 1.into();
    api.apply_as("ci", "", &path, &unknown)
        .await
        .fails(422, "Invalid");
    // What is missing is told as for any object.
    api.apply_as("ci", "", &path, &hello(&json!({"replicas": 1})))
        .await
        .fails(422, "Invalid");
    let mut other = manifest.clone();
    other["metadata"]["name"] = "other".into();
    api.apply_as("ci", "", &path, &other)
        .await
        .fails(400, "BadRequest");
    let mut lost = manifest.clone();
    lost["metadata"]["uid"] = "gone".into();
    api.apply_as("ci", "", &path, &lost)
        .await
        .fails(409, "Conflict");
    for body in ["", "[]", "a: [", "a: 1\n---\nb: 2\n"] {
        let path = format!("{path}?fieldManager=ci");
        api.ask(Method::PATCH, &path, APPLY, body)
            .await
            .fails(400, "BadRequest");
    }
    api.get(&path).await.fails(404, "NotFound");
    let scale = format!("{path}/scale");
    api.apply_as("ci", "", &path, &manifest).await.done();
    api.apply_as("ci", "", &scale, &json!({"spec": {"replicas": 1}}))
        .await
        .fails(415, "UnsupportedMediaType");
}

#[tokio::test]
async fn a_manifest_may_be_yaml_and_an_object_that_was_there_is_taken_over_field_by_field() {
    let api = Api::start().await;
    api.post(CONTROLLERS, &controller("hello")).await.done();
    let text = "apiVersion: platctrl.dev/v1\nkind: ReplicationController\nmetadata: {name: hello}\nspec:\n  maxPerNode: 3\n";
    let path = format!("{}?fieldManager=ci", hello_path());
    let object = api.ask(Method::PATCH, &path, APPLY, text).await.done();
    assert_eq!(object["spec"]["maxPerNode"], 3);
    assert_eq!(object["spec"]["replicas"], 2);
    let expected = [("ci", "Apply"), ("before-first-apply", "Update")];
    let found = owners(&object);
    let found: Vec<_> = found
        .iter()
        .map(|(name, how)| (name.as_str(), how.as_str()))
        .collect();
    assert_eq!(found, expected);
    // What was there before is nobody's who applies.
    let other = hello(&json!({"replicas": 5}));
    let refused = api.apply_as("ci", "", &hello_path(), &other).await;
    assert_eq!(refused.fields(), [".spec.replicas"]);
}

#[tokio::test]
async fn a_status_has_owners_of_its_own() {
    let api = Api::start().await;
    api.post(PODS, &pod("a", "web1")).await.done();
    let path = format!("{PODS}/a/status");
    let status = |status: &Value| json!({"apiVersion": "platctrl.dev/v1", "kind": "Pod", "metadata": {"name": "a"}, "status": status});
    let one = status(&json!({"phase": "Running", "restarts": 1, "nodeName": "web1"}));
    let object = api.apply_as("agent", "", &path, &one).await.done();
    assert_eq!(object["status"]["restarts"], 1);
    let two = status(&json!({"restarts": 2}));
    let refused = api.apply_as("other", "", &path, &two).await;
    assert_eq!(refused.fields(), [".status.restarts"]);
    api.apply_as("other", "&force=true", &path, &two)
        .await
        .done();
    // The agent says less: what it said alone goes, what the other has stays.
    let less = status(&json!({"phase": "Running"}));
    let object = api.apply_as("agent", "", &path, &less).await.done();
    assert_eq!(object["status"]["restarts"], 2);
    assert_eq!(object["status"].get("nodeName"), None);
    assert_eq!(object["metadata"].get("managedFields"), None);
}

#[tokio::test]
async fn owners_are_forgotten_and_moved_on_request_and_not_by_accident() {
    let api = Api::start().await;
    let path = hello_path();
    let object = api
        .apply_as("ci", "", &path, &controller("hello"))
        .await
        .done();
    // Clients that know nothing of owners send them back, or none.
    let mut put = object.clone();
    put["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("managedFields");
    let after = api.put(&path, &put).await.done();
    assert_eq!(owners(&after), owners(&object));
    let rename = json!([
        {"op": "replace", "path": "/metadata/managedFields/0/manager", "value": "cd"},
    ]);
    let kind = "application/json-patch+json";
    let moved = api
        .ask(Method::PATCH, &path, kind, rename.to_string())
        .await
        .done();
    assert_eq!(owners(&moved), [("cd".to_owned(), "Apply".to_owned())]);
    let wrong = json!({"metadata": {"managedFields": [{"manager": 1}]}});
    let refused = api.merge(&path, &wrong).await;
    assert_eq!(refused.fields(), ["metadata.managedFields"]);
    let forgotten = api
        .merge(&path, &json!({"metadata": {"managedFields": []}}))
        .await
        .done();
    assert_eq!(forgotten["metadata"].get("managedFields"), None);
}

#[tokio::test]
async fn appliers_at_the_same_time_all_get_their_fields() {
    let api = Api::start().await;
    let path = hello_path();
    api.apply_as("ci", "", &path, &controller("hello"))
        .await
        .done();
    let apply = |number: usize| {
        let body = json!({"apiVersion": "platctrl.dev/v1", "kind": "ReplicationController",
            "metadata": {"name": "hello", "labels": {format!("l{number}"): "x"}}});
        let (api, path) = (&api, &path);
        async move {
            loop {
                let manager = format!("m{number}");
                let answer = api.apply_as(&manager, "", path, &body).await;
                // Others were faster too often: said as what it is, and repeated.
                if answer.code != 409 {
                    return answer.done();
                }
            }
        }
    };
    futures::future::join_all((0..8).map(apply)).await;
    let object = api.get(&path).await.done();
    assert_eq!(object["metadata"]["labels"].as_object().unwrap().len(), 9);
    assert_eq!(owners(&object).len(), 9);
}
