//! Versions of kinds, and kinds as they are registered.

use std::sync::Arc;

use platctrl_framework::client::{
    Client, ClientError, Outcome, Patch, RegisterError, Registered, incompatibilities,
    register_kind, registered_kinds,
};
use platctrl_framework::controller::Runtime;
use platctrl_framework::environment::Environment;
use platctrl_framework::model::{
    KindDefinition, Kinds, Metadata, Object, ObjectKey, RawObject, Resource, Scope, Status, Tree,
    identity,
};
use platctrl_framework::store::{CommitFault, Key, MemoryStore, Store, Transaction};
use proptest::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A shop.
#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(
    group = "example.dev",
    version = "v2",
    kind = "Shop",
    also(version = "v1", spec = ShopV1),
    also(version = "v1beta1", spec = "ShopV1Beta1")
)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ShopSpec {
    owner: Person,
    #[serde(default)]
    shelves: Vec<Shelf>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    closed: bool,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
pub(crate) struct Person {
    name: String,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
pub(crate) struct Shelf {
    goods: String,
}

/// Without `closed`, and with one name for the owner.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ShopV1 {
    owner_name: String,
    #[serde(default)]
    shelves: Vec<Shelf>,
}

/// With one shelf only.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ShopV1Beta1 {
    owner_name: String,
    #[serde(default)]
    goods: String,
}

impl From<ShopV1> for ShopSpec {
    fn from(old: ShopV1) -> Self {
        Self {
            owner: Person {
                name: old.owner_name,
            },
            shelves: old.shelves,
            closed: false,
        }
    }
}

impl From<ShopSpec> for ShopV1 {
    fn from(new: ShopSpec) -> Self {
        Self {
            owner_name: new.owner.name,
            shelves: new.shelves,
        }
    }
}

impl From<ShopV1Beta1> for ShopSpec {
    fn from(old: ShopV1Beta1) -> Self {
        Self {
            owner: Person {
                name: old.owner_name,
            },
            shelves: vec![Shelf { goods: old.goods }],
            closed: false,
        }
    }
}

impl From<ShopSpec> for ShopV1Beta1 {
    fn from(new: ShopSpec) -> Self {
        let first = new.shelves.into_iter().next();
        Self {
            owner_name: new.owner.name,
            goods: first.map_or_else(String::new, |shelf| shelf.goods),
        }
    }
}

fn key() -> ObjectKey {
    ObjectKey::namespaced("example.dev", "shops", "default", "a").unwrap()
}

fn shop(version: &str, spec: Value) -> RawObject {
    RawObject {
        api_version: format!("example.dev/{version}"),
        kind: "Shop".into(),
        metadata: Metadata {
            namespace: Some("default".into()),
            ..Metadata::named("a")
        },
        spec,
        status: Status::default(),
    }
}

fn client() -> (MemoryStore, Client) {
    let environment = Environment::system();
    let store = MemoryStore::new(environment.clone());
    let client = Client::new(Arc::new(store.clone()), environment, "tester");
    (store, client)
}

async fn stored(client: &Client) -> RawObject {
    client.joined(&key()).await.unwrap().object().unwrap()
}

#[tokio::test]
async fn what_is_stored_in_an_old_version_is_read_as_the_new_one() {
    let (_, client) = client();
    let old = shop(
        "v1",
        json!({"ownerName": "ann", "shelves": [{"goods": "tea"}]}),
    );
    client.create_raw(&key(), old.clone()).await.unwrap();
    let shops = client.fresh::<Shop>();
    let read = shops.get("a").await.unwrap();
    assert_eq!(
        (read.spec.owner.name.as_str(), read.spec.shelves.len()),
        ("ann", 1)
    );
    assert_eq!(shops.list().await.unwrap().objects.len(), 1);

    // A label is no reason to write the spec anew.
    let label = |it: &mut Object<Shop>| drop(it.metadata.labels.insert("x".into(), "y".into()));
    shops.entry("a").and_modify(label).save().await.unwrap();
    let patch = Patch::merge(json!({"metadata": {"labels": {"z": "1"}}}));
    shops.patch("a", &patch).await.unwrap();
    let now = stored(&client).await;
    assert_eq!(
        (&now.spec, now.api_version.as_str()),
        (&old.spec, "example.dev/v1")
    );
    assert_eq!((now.metadata.generation, now.metadata.labels.len()), (1, 2));

    let close = |it: &mut Object<Shop>| it.spec.closed = true;
    shops.entry("a").and_modify(close).save().await.unwrap();
    let now = stored(&client).await;
    assert_eq!(now.api_version, "example.dev/v2");
    let spec = json!({"owner": {"name": "ann"}, "shelves": [{"goods": "tea"}], "closed": true});
    assert_eq!((now.spec, now.metadata.generation), (spec, 2));
}

#[tokio::test]
async fn manifests_and_patches_of_the_new_version_fit_what_is_stored_in_the_old_one() {
    let (_, client) = client();
    let old = shop("v1", json!({"ownerName": "ann", "shelves": []}));
    client.create_raw(&key(), old).await.unwrap();
    let shops = client.fresh::<Shop>();
    let patch = Patch::merge(json!({"spec": {"owner": {"name": "bob"}}}));
    let patched = shops.patch("a", &patch).await.unwrap();
    assert_eq!(patched.spec.owner.name, "bob");
    assert_eq!(
        stored(&client).await.spec,
        json!({"owner": {"name": "bob"}, "shelves": []})
    );
    let (applied, outcome) = shops.apply(&patched).await.unwrap();
    assert_eq!(
        (outcome, applied.metadata.generation),
        (Outcome::Configured, 2)
    );

    let patch = Patch::merge(json!({"spec": {"ownerName": "eve"}}));
    let error = shops.patch("a", &patch).await.unwrap_err();
    assert!(
        error.to_string().contains("spec.ownerName: unknown field"),
        "{error}"
    );
}

#[tokio::test]
async fn a_version_that_nobody_knows_is_left_alone() {
    let (_, client) = client();
    client
        .create_raw(&key(), shop("v9", json!({"owner": {"name": "ann"}})))
        .await
        .unwrap();
    let shops = client.fresh::<Shop>();
    let error = shops.get("a").await.unwrap_err();
    assert!(matches!(error, ClientError::Unreadable(_)), "{error}");
    assert!(
        error
            .to_string()
            .contains("known versions of example.dev here: v2, v1, v1beta1"),
        "{error}"
    );
    let list = shops.list().await.unwrap();
    assert_eq!((list.objects.len(), list.set_aside.len()), (0, 1));
    assert!(shops.apply(&read_shop()).await.is_err());
}

fn read_shop() -> Object<Shop> {
    let raw = shop("v2", json!({"owner": {"name": "ann"}}));
    raw.typed().unwrap()
}

#[tokio::test]
async fn a_mirror_shows_objects_of_all_versions() {
    let (store, client) = client();
    identity::initialise(&store, client.environment())
        .await
        .unwrap();
    let old = shop("v1beta1", json!({"ownerName": "ann", "goods": "tea"}));
    client.create_raw(&key(), old).await.unwrap();
    let runtime = Runtime::new(Arc::new(store), client.environment().clone()).kind::<Shop>();
    let handle = runtime.handle();
    let running = tokio::spawn(runtime.run());
    let view = loop {
        match handle.view() {
            Some(view) => break view,
            None => tokio::task::yield_now().await,
        }
    };
    assert_eq!(
        view.get::<Shop>(&key()).unwrap().spec.shelves[0].goods,
        "tea"
    );
    handle.stop();
    running.await.unwrap().unwrap();
}

#[test]
fn an_object_is_shown_and_stored_in_the_version_that_is_asked_for() {
    let kinds = Kinds::new().with::<Shop>();
    let known = kinds.named("shops")[0];
    let versions: Vec<_> = (known.definition.other_versions.iter())
        .map(|it| it.version.as_str())
        .collect();
    assert_eq!(versions, ["v1", "v1beta1"]);

    let stored = shop(
        "v2",
        json!({
            "owner": {"name": "ann", "age": 30}, "shelves": [{"goods": "tea", "height": 2}],
            "closed": true, "future": {"x": 1},
        }),
    );
    let shown = known.show(&stored, "v1beta1").unwrap();
    assert_eq!(shown.api_version, "example.dev/v1beta1");
    assert_eq!(
        (&shown.spec["ownerName"], &shown.spec["goods"]),
        (&json!("ann"), &json!("tea"))
    );
    assert_eq!(known.store(&shown, Some(&stored)).unwrap(), stored);

    let mut edited = shown;
    edited.spec["ownerName"] = json!("bob");
    let next = known.store(&edited, Some(&stored)).unwrap();
    let mut expected = stored.clone();
    expected.spec["owner"]["name"] = json!("bob");
    assert_eq!(next, expected, "nothing but what was edited");

    let between = known
        .show(
            &shop("v1beta1", json!({"ownerName": "ann", "goods": "tea"})),
            "v1",
        )
        .unwrap();
    assert_eq!(
        between.spec,
        json!({"ownerName": "ann", "shelves": [{"goods": "tea"}]})
    );
    for version in ["v3", ""] {
        let error = known.show(&stored, version).unwrap_err();
        assert!(
            error.to_string().contains("no version of this kind"),
            "{error}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    /// Whatever a newer program put where, an old version that sends back what it was shown
    /// changes nothing.
    #[test]
    fn unknown_fields_survive_every_version_and_back(
        name in "[a-z]{1,4}",
        goods in prop::collection::vec(("[a-z]{0,4}", prop::option::of(0..9_u8)), 0..4),
        closed in any::<bool>(),
        age in prop::option::of(0..99_u8),
        more in prop::collection::btree_map("x[a-z]{1,3}", 0..9_u8, 0..3),
    ) {
        let shelf = |(goods, height): (String, Option<u8>)| match height {
            Some(height) => json!({"goods": goods, "height": height}),
            None => json!({"goods": goods}),
        };
        let shelves: Vec<Value> = goods.into_iter().map(shelf).collect();
        let mut spec = json!({"owner": {"name": name}, "shelves": shelves});
        if closed {
            spec["closed"] = json!(true);
        }
        if let Some(age) = age {
            spec["owner"]["age"] = json!(age);
        }
        for (name, value) in more {
            spec[name] = json!(value);
        }
        let kinds = Kinds::new().with::<Shop>();
        let known = kinds.named("shops")[0];
        let stored = shop("v2", spec);
        for version in ["v1", "v1beta1"] {
            let shown = known.show(&stored, version).unwrap();
            prop_assert_eq!(&known.store(&shown, Some(&stored)).unwrap(), &stored);
        }
        // Without the stored one, all that v1 can say comes back, and what neither knows.
        let shown = known.show(&stored, "v1").unwrap();
        let mut back = known.store(&shown, None).unwrap();
        if stored.spec.get("closed").is_some() {
            back.spec["closed"] = json!(true);
        }
        prop_assert_eq!(back, stored);
    }
}

fn definition(schema: &Value) -> KindDefinition {
    let mut kind = KindDefinition::of::<Shop>();
    kind.other_versions.clear();
    kind.schema["properties"]["spec"] = schema.clone();
    kind
}

#[tokio::test]
async fn a_kind_is_registered_once_and_a_compatible_change_replaces_it() {
    let store = MemoryStore::new(Environment::system());
    let first = definition(&json!({"type": "object", "properties": {"a": {"type": "integer"}}}));
    assert_eq!(
        register_kind(&store, &first).await.unwrap(),
        Registered::New
    );
    assert_eq!(
        register_kind(&store, &first).await.unwrap(),
        Registered::Same
    );
    let next = definition(
        &json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}),
    );
    assert_eq!(
        register_kind(&store, &next).await.unwrap(),
        Registered::Updated
    );
    // The binary before is started again: it takes nothing back.
    assert_eq!(
        register_kind(&store, &first).await.unwrap(),
        Registered::Newer
    );
    let (kinds, set_aside) = registered_kinds(&store).await.unwrap();
    assert_eq!((kinds, set_aside.len()), (vec![next], 0));
}

#[tokio::test]
async fn an_incompatible_change_is_named_and_not_registered() {
    let store = MemoryStore::new(Environment::system());
    let old = definition(
        &json!({"type": "object", "properties": {"a": {"type": "integer"}, "gone": {"type": "string"}}}),
    );
    register_kind(&store, &old).await.unwrap();
    let before = store.revision();
    let new = definition(
        &json!({"type": "object", "properties": {"a": {"type": "string"}, "b": {}}, "required": ["b"]}),
    );
    let error = register_kind(&store, &new).await.unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, RegisterError::Incompatible { .. }),
        "{text}"
    );
    for problem in [
        "shops.example.dev",
        "v2.spec.a: could be an integer, must be a string now",
        "v2.spec.gone: is not known any more",
        "v2.spec.b: is required now",
    ] {
        assert!(text.contains(problem), "{problem} is not in: {text}");
    }
    assert_eq!(store.revision(), before);
}

#[test]
fn a_version_in_which_objects_may_be_stored_must_stay_known() {
    let old = KindDefinition::of::<Shop>();
    let mut new = old.clone();
    assert!(incompatibilities(&old, &new).is_empty());
    new.other_versions.remove(0);
    let problems = incompatibilities(&old, &new);
    assert_eq!(
        problems[0].to_string(),
        "v1: is not known any more, and objects may be stored in it"
    );
    let mut new = old.clone();
    new.scope = Scope::Cluster;
    assert!(
        incompatibilities(&old, &new)[0]
            .to_string()
            .contains("scope")
    );
    // The stored version may change, as long as the one before stays known.
    let mut new = old.clone();
    let spec = new.schema["properties"]["spec"].clone();
    let next = json!({"version": "v2", "schema": spec});
    new.other_versions
        .push(serde_json::from_value(next).unwrap());
    new.version = "v3".into();
    new.schema["properties"]["spec"] = json!({"type": "object"});
    assert!(incompatibilities(&old, &new).is_empty());
}

#[tokio::test]
async fn what_cannot_be_read_among_the_registered_kinds_is_set_aside_and_replaced() {
    let store = MemoryStore::new(Environment::system());
    let kind = KindDefinition::of::<Shop>();
    for (key, value) in [
        ("x/kinds/example.dev/shops", "{".to_owned()),
        (
            "x/kinds/example.dev/other",
            serde_json::to_string(&kind).unwrap(),
        ),
    ] {
        let put = Transaction::new().put(Key::new(key).unwrap(), value);
        store.commit(put).await.unwrap();
    }
    let (kinds, set_aside) = registered_kinds(&store).await.unwrap();
    assert_eq!((kinds.len(), set_aside.len()), (0, 2));
    assert_eq!(
        register_kind(&store, &kind).await.unwrap(),
        Registered::Updated
    );
    store.faults().next_commits(1, CommitFault::UnknownLost);
    let other = definition(&json!({}));
    let error = register_kind(&store, &other).await.unwrap_err();
    assert!(
        matches!(
            error,
            RegisterError::Incompatible { .. } | RegisterError::Store(_)
        ),
        "{error}"
    );
    assert_eq!(store.peek(&key().store_key(Tree::Intent)), None);
}
