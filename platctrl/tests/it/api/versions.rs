//! A kind with two versions: one is stored, both are served.

use http::Method;
use platctrl_framework::model::Resource;
use platctrl_framework::store::{Key, Store as _, Transaction};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Api, told};

/// A web site.
#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(
    group = "example.dev",
    version = "v1",
    kind = "Shop",
    also(version = "v1beta1", spec = OldShopSpec)
)]
struct ShopSpec {
    domains: Vec<String>,
    #[serde(default)]
    open: bool,
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct OldShopSpec {
    domain: String,
}

impl From<OldShopSpec> for ShopSpec {
    fn from(old: OldShopSpec) -> Self {
        Self {
            domains: vec![old.domain],
            open: false,
        }
    }
}

impl From<ShopSpec> for OldShopSpec {
    fn from(shop: ShopSpec) -> Self {
        Self {
            domain: shop.domains.into_iter().next().unwrap_or_default(),
        }
    }
}

const NEW: &str = "/apis/example.dev/v1/namespaces/default/shops";
const OLD: &str = "/apis/example.dev/v1beta1/namespaces/default/shops";

async fn start() -> Api {
    Api::with(|config| config.kinds = config.kinds.clone().with::<Shop>()).await
}

fn shop(version: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": format!("example.dev/{version}"), "kind": "Shop",
        "metadata": {"name": name}, "spec": spec})
}

fn spec(object: &Value) -> (&Value, &Value) {
    (&object["apiVersion"], &object["spec"])
}

#[tokio::test]
async fn an_object_is_written_and_read_in_each_version_of_its_kind() {
    let api = start().await;
    let mut watch = api.stream(&format!("{OLD}?watch=1")).await;
    let made = api
        .post(OLD, &shop("v1beta1", "a", &json!({"domain": "a.example"})))
        .await
        .done();
    assert_eq!(
        spec(&made),
        (
            &json!("example.dev/v1beta1"),
            &json!({"domain": "a.example"})
        )
    );
    let new = api.get(&format!("{NEW}/a")).await.done();
    assert_eq!(
        spec(&new),
        (
            &json!("example.dev/v1"),
            &json!({"domains": ["a.example"], "open": false})
        )
    );
    let (kind, _, object) = watch.event().await;
    assert_eq!((kind.as_str(), spec(&object)), ("ADDED", spec(&made)));

    // What the old version cannot say stays when it is written in it.
    api.merge(&format!("{NEW}/a"), &json!({"spec": {"open": true}}))
        .await
        .done();
    assert_eq!(watch.next().await, told("MODIFIED", "a"));
    let patched = json!({"spec": {"domain": "b.example"}});
    let old = api.merge(&format!("{OLD}/a"), &patched).await.done();
    assert_eq!(old["spec"], json!({"domain": "b.example"}));
    let new = api.get(&format!("{NEW}/a")).await.done();
    assert_eq!(new["spec"]["open"], true);
    assert_eq!(new["spec"]["domains"][0], "b.example");
    let put = api.put(&format!("{OLD}/a"), &old).await.done();
    assert_eq!(
        put["metadata"]["resourceVersion"],
        old["metadata"]["resourceVersion"]
    );

    let list = api.get(OLD).await.done();
    assert_eq!(list["apiVersion"], "example.dev/v1beta1");
    assert_eq!(list["items"][0]["spec"], json!({"domain": "b.example"}));
    api.delete(&format!("{OLD}/a")).await.done();
    api.get(&format!("{NEW}/a")).await.fails(404, "NotFound");
}

#[tokio::test]
async fn a_version_is_checked_as_what_it_is_and_told_in_the_documents() {
    let api = start().await;
    let mixed = shop("v1beta1", "a", &json!({"domains": ["a.example"]}));
    let refused = api.post(OLD, &mixed).await;
    refused.fails(422, "Invalid");
    assert_eq!(refused.fields(), ["spec.domain", "spec.domains"]);
    let other = shop("v1", "a", &json!({"domain": "a.example"}));
    api.post(OLD, &other).await.fails(422, "Invalid");
    api.get("/apis/example.dev/v2/namespaces/default/shops")
        .await
        .fails(404, "NotFound");
    let group = api.get("/apis/example.dev").await.done();
    let versions: Vec<_> = group["versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["version"])
        .collect();
    assert_eq!(versions, ["v1", "v1beta1"]);
    assert_eq!(group["preferredVersion"]["version"], "v1");
    let document = api.get("/openapi/v2").await.done();
    let schema = &document["definitions"]["dev.example.v1beta1.Shop"]["properties"]["spec"];
    assert!(schema["properties"]["domain"].is_object(), "{schema}");
    let apply = "application/apply-patch+yaml";
    let path = format!("{OLD}/a?fieldManager=ci");
    let manifest = shop("v1beta1", "a", &json!({"domain": "a.example"}));
    let refused = api
        .ask(Method::PATCH, &path, apply, manifest.to_string())
        .await;
    assert!(refused.fails(400, "BadRequest").contains("example.dev/v1"));
}

#[tokio::test]
async fn an_object_that_an_older_program_stored_is_shown_in_the_version_that_is_asked_for() {
    let api = start().await;
    let intent = json!({"apiVersion": "example.dev/v1beta1", "kind": "Shop",
        "metadata": {"name": "old", "namespace": "default", "uid": "u", "generation": 1},
        "spec": {"domain": "old.example"}});
    let key = Key::new("o/intent/example.dev/shops/default/old").unwrap();
    let put = Transaction::new().put(key, intent.to_string());
    api.store.commit(put).await.unwrap();
    let object = api.get(&format!("{NEW}/old")).await.done();
    assert_eq!(object["spec"]["domains"], json!(["old.example"]));
    let list = api.get(NEW).await.done();
    assert_eq!(spec(&list["items"][0]), spec(&object));
    let labelled = api
        .merge(
            &format!("{NEW}/old"),
            &json!({"metadata": {"labels": {"a": "b"}}}),
        )
        .await
        .done();
    assert_eq!(spec(&labelled), spec(&object));
}
