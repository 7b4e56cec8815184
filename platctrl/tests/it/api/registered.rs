//! Kinds that other programs register are served like our own, and checks that an embedder
//! registers are asked.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use platctrl::server::{Change, Validator, Verdict};
use platctrl_framework::client::register_kind;
use platctrl_framework::model::{KindDefinition, Resource};
use platctrl_framework::store::{Key, Store as _, Transaction};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Api, CONTROLLERS, controller, told};

/// A web site.
#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(
    group = "example.dev",
    version = "v1",
    kind = "Site",
    short("si"),
    column(name = "Domain", path = ".spec.domain")
)]
#[serde(rename_all = "camelCase")]
struct SiteSpec {
    /// Where it is found.
    domain: String,
    #[serde(default)]
    replicas: u32,
}

const SITES: &str = "/apis/example.dev/v1/namespaces/default/sites";

fn site(name: &str) -> Value {
    json!({"apiVersion": "example.dev/v1", "kind": "Site", "metadata": {"name": name},
        "spec": {"domain": "example.org"}})
}

/// Waits until a path is served.
async fn served(api: &Api, path: &str) {
    let wait = async {
        while !api.get(path).await.code.is_success() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait)
        .await
        .expect("it is served");
}

#[tokio::test]
async fn a_kind_that_is_registered_while_the_server_runs_is_served_whole() {
    let api = Api::start().await;
    api.get(SITES).await.fails(404, "NotFound");
    register_kind(&api.store, &KindDefinition::of::<Site>())
        .await
        .unwrap();
    served(&api, SITES).await;

    // Discovery, documents, tables.
    let groups = api.get("/apis").await.done();
    assert!(groups.to_string().contains("example.dev"), "{groups}");
    let resources = api.get("/apis/example.dev/v1").await.done();
    let names: Vec<_> = resources["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["name"])
        .collect();
    assert_eq!(names, ["sites", "sites/status", "sites/scale"]);
    for path in ["/openapi/v2", "/openapi/v3/apis/example.dev/v1", "/kinds"] {
        let text = api.get(path).await.text();
        assert!(text.contains("Where it is found."), "{path}");
    }

    // Checks, versions, watches.
    let mut wrong = site("a");
    wrong["spec"]["domian"] = "x".into();
    let refused = api.post(SITES, &wrong).await;
    refused.fails(422, "Invalid");
    assert_eq!(refused.fields(), ["spec.domian"]);
    let mut watch = api.stream(&format!("{SITES}?watch=1")).await;
    let created = api.post(SITES, &site("a")).await.done();
    assert_eq!(watch.next().await, told("ADDED", "a"));
    let scaled = api
        .put(
            &format!("{SITES}/a/scale"),
            &json!({"spec": {"replicas": 3}}),
        )
        .await;
    assert_eq!(scaled.done()["spec"]["replicas"], 3);
    assert_eq!(watch.next().await, told("MODIFIED", "a"));
    let mut late = created;
    late["spec"]["domain"] = "b.example".into();
    api.put(&format!("{SITES}/a"), &late)
        .await
        .fails(409, "Conflict");
    api.delete(&format!("{SITES}/a")).await.done();
    assert_eq!(watch.next().await, told("DELETED", "a"));
}

#[tokio::test]
async fn objects_that_were_there_before_their_kind_was_registered_are_told_to_watchers() {
    let api = Api::start().await;
    let intent = json!({"apiVersion": "example.dev/v1", "kind": "Site",
        "metadata": {"name": "old", "namespace": "default", "uid": "u", "generation": 1},
        "spec": {"domain": "example.org"}});
    let key = Key::new("o/intent/example.dev/sites/default/old").unwrap();
    let put = Transaction::new().put(key, intent.to_string());
    api.store.commit(put).await.unwrap();
    register_kind(&api.store, &KindDefinition::of::<Site>())
        .await
        .unwrap();
    served(&api, SITES).await;
    let mut watch = api.stream(&format!("{SITES}?watch=1")).await;
    assert_eq!(watch.next().await, told("ADDED", "old"));
    api.post(SITES, &site("new")).await.done();
    assert_eq!(watch.next().await, told("ADDED", "new"));
}

#[tokio::test]
async fn a_registration_that_is_broken_harms_no_other_kind() {
    let api = Api::start().await;
    let mut bad = serde_json::to_value(KindDefinition::of::<Site>()).unwrap();
    bad["plural"] = "..".into();
    // Somebody else's idea of our own kind is not taken.
    let mut pods = serde_json::to_value(KindDefinition::of::<Site>()).unwrap();
    pods["group"] = "platctrl.dev".into();
    pods["plural"] = "pods".into();
    for (key, value) in [
        ("x/kinds/example.dev/broken", "{".to_owned()),
        ("x/kinds/example.dev/other", bad.to_string()),
        ("x/kinds/platctrl.dev/pods", pods.to_string()),
    ] {
        let put = Transaction::new().put(Key::new(key).unwrap(), value);
        api.store.commit(put).await.unwrap();
    }
    register_kind(&api.store, &KindDefinition::of::<Site>())
        .await
        .unwrap();
    served(&api, SITES).await;
    let resources = api.get("/apis/platctrl.dev/v1").await.text();
    assert!(resources.contains("\"kind\":\"Pod\""), "{resources}");
    let groups = api.get("/apis/example.dev/v1").await.text();
    assert!(!groups.contains(".."), "{groups}");
}

/// Nobody has more than three.
#[derive(Debug)]
struct AtMostThree;

impl Validator for AtMostThree {
    fn check(&self, change: &Change<'_>) -> Verdict {
        let replicas = change
            .after
            .and_then(|after| after.spec["replicas"].as_u64());
        match replicas {
            Some(many) if many > 3 => Verdict::fine().refuse("spec.replicas", "three are the most"),
            Some(3) => Verdict::fine().warn(format!("{} has as many as there may be", change.by)),
            _ => Verdict::fine(),
        }
    }
}

#[tokio::test]
async fn a_registered_validator_is_asked_whichever_way_a_change_comes() {
    let api = Api::with(|config| config.validators = vec![Arc::new(AtMostThree)]).await;
    let path = format!("{CONTROLLERS}/hello");
    let mut many = controller("hello");
    many["spec"]["replicas"] = 4.into();
    let refused = api.post(CONTROLLERS, &many).await;
    refused.fails(422, "Invalid");
    assert_eq!(refused.fields(), ["spec.replicas"]);
    api.post(&format!("{CONTROLLERS}?dryRun=All"), &many)
        .await
        .fails(422, "Invalid");
    api.get(&path).await.fails(404, "NotFound");
    api.post(CONTROLLERS, &controller("hello")).await.done();

    let patch = json!({"spec": {"replicas": 4}});
    api.put(&path, &many).await.fails(422, "Invalid");
    api.merge(&path, &patch).await.fails(422, "Invalid");
    api.apply(&path, &many).await.fails(422, "Invalid");
    api.put(&format!("{path}/scale"), &patch)
        .await
        .fails(422, "Invalid");
    let operations = json!([{"op": "replace", "path": "/spec/replicas", "value": 4}]).to_string();
    let json_patch = "application/json-patch+json";
    api.ask(Method::PATCH, &path, json_patch, operations)
        .await
        .fails(422, "Invalid");
    let server_side = "application/apply-patch+yaml";
    let forced = format!("{path}?fieldManager=ci&force=1");
    api.ask(Method::PATCH, &forced, server_side, many.to_string())
        .await
        .fails(422, "Invalid");
    assert_eq!(api.get(&path).await.done()["spec"]["replicas"], 2);

    let three = api.merge(&path, &json!({"spec": {"replicas": 3}})).await;
    three.done();
    assert!(
        three.header("warning").contains("as many as there may be"),
        "{three:?}"
    );
}
