//! Manifests that are wrong: each names the thing and the way out, and nothing is written.

use http::Method;
use serde_json::{Value, json};

use super::{Api, CONTROLLERS, ROOT, controller};

async fn refused(api: &Api, change: impl FnOnce(&mut Value)) -> (String, Vec<String>) {
    let before = api.store.revision();
    let mut object = controller("hello");
    change(&mut object);
    let created = api.post(CONTROLLERS, &object).await;
    let message = created.fails(422, "Invalid");
    // An apply is checked the same way.
    let applied = api.apply(&format!("{CONTROLLERS}/hello"), &object).await;
    assert_eq!(applied.fails(422, "Invalid"), message);
    assert_eq!(api.store.revision(), before, "nothing was written");
    (message, created.fields())
}

#[tokio::test]
async fn a_misspelt_field_is_named_with_the_right_one() {
    let api = Api::start().await;
    let (message, fields) = refused(&api, |object| {
        let spec = object["spec"].as_object_mut().unwrap();
        let replicas = spec.remove("replicas").unwrap();
        spec.insert("replcias".to_owned(), replicas);
    })
    .await;
    assert_eq!(fields, ["spec.replicas", "spec.replcias"]);
    assert!(message.contains("did you mean `replicas`"), "{message}");
}

#[tokio::test]
async fn a_wrong_type_is_named_with_what_was_found() {
    let api = Api::start().await;
    let (message, fields) = refused(&api, |object| object["spec"]["replicas"] = "two".into()).await;
    assert_eq!(fields, ["spec.replicas"]);
    assert!(message.contains("expected an integer"), "{message}");
}

#[tokio::test]
async fn a_missing_or_empty_selector_is_refused() {
    let api = Api::start().await;
    let (_, fields) = refused(&api, |object| {
        object["spec"]
            .as_object_mut()
            .unwrap()
            .remove("nodeSelector");
    })
    .await;
    assert_eq!(fields, ["spec.nodeSelector"]);
    let (_, fields) = refused(&api, |object| object["spec"]["nodeSelector"] = "".into()).await;
    assert_eq!(fields, ["spec.nodeSelector"]);
}

#[tokio::test]
async fn all_problems_are_told_at_once() {
    let api = Api::start().await;
    let (message, fields) = refused(&api, |object| {
        object["metadata"]["lables"] = json!({});
        object["spec"]["replicas"] = "two".into();
        object["spec"]["template"]["spec"]["launchables"]["web"]["locatoin"] = "x".into();
    })
    .await;
    assert_eq!(
        fields,
        [
            "metadata.lables",
            "spec.replicas",
            "spec.template.spec.launchables.web.locatoin"
        ]
    );
    for field in fields {
        assert!(message.contains(&field), "{message}");
    }
}

#[tokio::test]
async fn the_kinds_own_rules_are_checked_too() {
    let api = Api::start().await;
    let (_, fields) = refused(&api, |object| {
        object["spec"]["nodeSelector"] = "az in".into();
        object["spec"]["template"]["spec"]["nodeName"] = "web1".into();
    })
    .await;
    assert_eq!(fields, ["spec.nodeSelector", "spec.template.spec.nodeName"]);
}

#[tokio::test]
async fn a_name_that_cannot_be_one_is_refused() {
    let api = Api::start().await;
    for name in ["Hello", "a/b", "..", "-a", &"a".repeat(64), "a b"] {
        let answer = api.post(CONTROLLERS, &controller(name)).await;
        answer.fails(422, "Invalid");
        assert!(
            answer.fields().contains(&"metadata.name".to_owned()),
            "{name}"
        );
    }
    for name in [json!(1), Value::Null, json!("")] {
        let mut object = controller("x");
        object["metadata"]["name"] = name;
        let answer = api.post(CONTROLLERS, &object).await;
        answer.fails(422, "Invalid");
        assert_eq!(answer.fields()[0], "metadata.name");
    }
}

#[tokio::test]
async fn an_unknown_kind_is_refused_by_path_and_by_object() {
    let api = Api::start().await;
    let message = api
        .post(
            &format!("{ROOT}/namespaces/default/deployments"),
            &controller("a"),
        )
        .await;
    let message = message.fails(404, "NotFound");
    assert!(
        message.contains("deployments") && message.contains("/kinds"),
        "{message}"
    );
    let (_, fields) = refused(&api, |object| object["kind"] = "Deployment".into()).await;
    assert_eq!(fields, ["kind"]);
    let (_, fields) = refused(&api, |object| object["apiVersion"] = "apps/v1".into()).await;
    assert_eq!(fields, ["apiVersion"]);
}

#[tokio::test]
async fn a_namespace_that_contradicts_the_path_is_refused() {
    let api = Api::start().await;
    let mut object = controller("hello");
    object["metadata"]["namespace"] = "other".into();
    api.post(CONTROLLERS, &object)
        .await
        .fails(400, "BadRequest");
    api.apply(&format!("{CONTROLLERS}/hello"), &object)
        .await
        .fails(400, "BadRequest");
    // Without one in the path, the object's own is it.
    let created = api
        .post(&format!("{ROOT}/replicationcontrollers"), &object)
        .await
        .done();
    assert_eq!(created["metadata"]["namespace"], "other");
    let created = api
        .post(&format!("{ROOT}/replicationcontrollers"), &controller("x"))
        .await
        .done();
    assert_eq!(created["metadata"]["namespace"], "default");
}

#[tokio::test]
async fn what_is_no_json_object_is_refused() {
    let api = Api::start().await;
    let json = "application/json";
    for body in ["", "kind: Pod", "[]", "\"x\"", "{\"a\":", "\u{0}"] {
        api.ask(Method::POST, CONTROLLERS, json, body.to_owned())
            .await
            .fails(400, "BadRequest");
    }
    let deep = "[".repeat(100_000);
    api.ask(Method::POST, CONTROLLERS, json, deep)
        .await
        .fails(400, "BadRequest");
    let yaml = controller("a").to_string();
    api.ask(Method::POST, CONTROLLERS, "application/yaml", yaml)
        .await
        .fails(415, "UnsupportedMediaType");
    for metadata in [
        json!(null),
        json!([]),
        json!("x"),
        json!({"labels": [1]}),
        json!({"name": {}}),
    ] {
        let mut object = controller("a");
        object["metadata"] = metadata;
        api.post(CONTROLLERS, &object).await.fails(422, "Invalid");
    }
    for spec in [json!(null), json!([]), json!("x")] {
        let mut object = controller("a");
        object["spec"] = spec;
        api.post(CONTROLLERS, &object).await.fails(422, "Invalid");
    }
}

#[tokio::test]
async fn a_manifest_of_ten_megabytes_is_refused_and_so_is_one_above_an_objects_size() {
    let api = Api::start().await;
    let mut object = controller("hello");
    object["metadata"]["annotations"] = json!({"note": "x".repeat(10_000_000)});
    let message = api
        .post(CONTROLLERS, &object)
        .await
        .fails(413, "RequestEntityTooLarge");
    assert!(message.contains("384 KiB"), "{message}");
    object["metadata"]["annotations"] = json!({"note": "x".repeat(500_000)});
    api.post(CONTROLLERS, &object).await.fails(422, "Invalid");
    assert_eq!(api.get(CONTROLLERS).await.done()["items"], json!([]));
}
