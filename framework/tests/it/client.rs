//! Reading and writing objects through the client.

mod typed;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::client::{
    Batch, Client, ClientError, DeleteOptions, LAST_APPLIED, ObjectList, Outcome,
};
use platctrl_framework::environment::Environment;
use platctrl_framework::model::{
    Condition, ConditionStatus, FieldError, KindChecks, KindDefinition, Metadata, Object,
    ObjectKey, Propagation, RawObject, Resource, Status, Tree,
};
use platctrl_framework::store::{CommitFault, MemoryStore, Store, StoreError, Transaction};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A garden.
#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "example.dev", version = "v1", kind = "Garden", status = GardenStatus, validate_update = fixed_place)]
pub(crate) struct GardenSpec {
    #[schemars(range(max = 1000))]
    trees: u32,
    place: String,
}

/// What grows.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
pub(crate) struct GardenStatus {
    #[serde(default)]
    grown: u32,
}

fn fixed_place(old: &GardenSpec, new: &GardenSpec, errors: &mut Vec<FieldError>) {
    if old.place != new.place {
        errors.push(FieldError::new("spec.place", "cannot change"));
    }
}

struct Fixture {
    store: MemoryStore,
    client: Client,
}

fn fixture() -> Fixture {
    let environment = Environment::system();
    let store = MemoryStore::new(environment.clone());
    let client = Client::new(Arc::new(store.clone()), environment, "tester");
    Fixture { store, client }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::namespaced("example.dev", "gardens", "default", name).unwrap()
}

fn garden(name: &str, trees: u32) -> Object<Garden> {
    let metadata = Metadata {
        namespace: Some("default".into()),
        ..Metadata::named(name)
    };
    Object::new(
        metadata,
        GardenSpec {
            trees,
            place: "north".into(),
        },
    )
}

fn raw(name: &str, spec: Value) -> RawObject {
    let metadata = Metadata {
        namespace: Some("default".into()),
        ..Metadata::named(name)
    };
    RawObject {
        api_version: "example.dev/v1".into(),
        kind: "Garden".into(),
        metadata,
        spec,
        status: Status::default(),
    }
}

async fn report(client: &Client, name: &str, phase: &'static str) {
    let joined = client.joined(&key(name)).await.unwrap();
    let mut batch = Batch::new();
    let status: Status<Map<String, Value>> = Status {
        phase: platctrl_framework::model::Phase::new(phase),
        ..Status::default()
    };
    batch.report(&joined, status).unwrap();
    client.commit(batch).await.unwrap();
}

#[tokio::test]
async fn a_created_object_has_a_uid_a_generation_and_a_resource_version() {
    let Fixture { client, .. } = fixture();
    let created = client.create(&garden("a", 1)).await.unwrap();
    assert!(!created.metadata.uid.is_empty());
    assert_eq!(created.metadata.generation, 1);
    assert!(
        created.metadata.resource_version.is_some()
            && created.metadata.creation_timestamp.is_some()
    );
    let error = client.create(&garden("a", 2)).await.unwrap_err();
    assert!(
        matches!(error, ClientError::AlreadyExists { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn the_generation_counts_changes_of_the_spec_only() {
    let Fixture { client, store } = fixture();
    let mut object = client.create(&garden("a", 1)).await.unwrap();
    object.metadata.labels.insert("x".into(), "y".into());
    let mut object = client.update(&object).await.unwrap();
    assert_eq!(object.metadata.generation, 1);
    object.spec.trees = 2;
    let object = client.update(&object).await.unwrap();
    assert_eq!(object.metadata.generation, 2);
    let before = store.revision();
    client.update(&object).await.unwrap();
    assert_eq!(
        store.revision(),
        before,
        "nothing changed, nothing is written"
    );
}

#[tokio::test]
async fn an_update_of_what_was_changed_meanwhile_is_a_conflict() {
    let Fixture { client, .. } = fixture();
    let first = client.create(&garden("a", 1)).await.unwrap();
    let mut other = first.clone();
    other.spec.trees = 5;
    client.update(&other).await.unwrap();
    let mut late = first;
    late.spec.trees = 9;
    let error = client.update(&late).await.unwrap_err();
    assert!(error.is_conflict(), "{error}");
    assert_eq!(client.get::<Garden>(&key("a")).await.unwrap().spec.trees, 5);
}

#[tokio::test]
async fn a_report_does_not_make_an_edit_conflict() {
    let Fixture { client, .. } = fixture();
    let mut read = client.create(&garden("a", 1)).await.unwrap();
    report(&client, "a", "Growing").await;
    read.spec.trees = 2;
    let updated = client.update(&read).await.unwrap();
    assert_eq!(
        (updated.spec.trees, updated.status.phase.as_str()),
        (2, "Growing")
    );
}

#[tokio::test]
async fn what_the_types_do_not_know_stays() {
    let Fixture { client, .. } = fixture();
    client
        .create_raw(
            &key("a"),
            raw(
                "a",
                json!({"trees": 1, "place": "north", "future": {"x": 1}}),
            ),
        )
        .await
        .unwrap();
    let mut object = client.get::<Garden>(&key("a")).await.unwrap();
    object.spec.trees = 2;
    client.update(&object).await.unwrap();
    let spec = client
        .joined(&key("a"))
        .await
        .unwrap()
        .object()
        .unwrap()
        .spec;
    assert_eq!(
        spec,
        json!({"trees": 2, "place": "north", "future": {"x": 1}})
    );
}

#[tokio::test]
async fn the_kinds_own_rules_for_changes_are_kept() {
    let Fixture { client, .. } = fixture();
    client.create(&garden("a", 1)).await.unwrap();
    let moved = raw("a", json!({"trees": 1, "place": "south"}));
    let error = client
        .update_raw(&key("a"), moved, Some(&KindChecks::of::<Garden>()))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("spec.place: cannot change"),
        "{error}"
    );
}

#[tokio::test]
async fn a_delete_before_anybody_reported_removes_the_intent_at_once() {
    let Fixture { client, store } = fixture();
    client.create(&garden("a", 1)).await.unwrap();
    client
        .delete(&key("a"), &DeleteOptions::default())
        .await
        .unwrap();
    assert!(store.peek(&key("a").store_key(Tree::Intent)).is_none());
    client.create(&garden("a", 1)).await.unwrap();
}

#[tokio::test]
async fn a_delete_is_a_record_and_the_name_stays_taken_until_the_end_is_confirmed() {
    let Fixture { client, store } = fixture();
    client.create(&garden("a", 1)).await.unwrap();
    report(&client, "a", "Growing").await;
    let mut options = DeleteOptions::default();
    options.propagation = Some(Propagation::Cascade);
    options.reason = Some("winter".into());
    let deleted = client.delete(&key("a"), &options).await.unwrap();
    let deletion = deleted.metadata.deletion.clone().unwrap();
    assert_eq!(
        (deletion.by.as_str(), deletion.propagation),
        ("tester", Propagation::Cascade)
    );
    assert_eq!(deletion.uid, deleted.metadata.uid);
    assert!(deleted.to_api()["metadata"]["deletionTimestamp"].is_string());

    let error = client.create(&garden("a", 1)).await.unwrap_err();
    assert!(error.to_string().contains("being deleted"), "{error}");
    let error = client
        .apply(&key("a"), raw("a", json!({"trees": 1, "place": "x"})), None)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("being deleted"), "{error}");

    let joined = client.joined(&key("a")).await.unwrap();
    assert!(
        Batch::new().remove(&joined).is_err(),
        "nobody has confirmed the end"
    );
    report(&client, "a", "Gone").await;
    let joined = client.joined(&key("a")).await.unwrap();
    let mut batch = Batch::new();
    batch.remove(&joined).unwrap();
    client.commit(batch).await.unwrap();
    assert!(store.dump().is_empty());
    client.create(&garden("a", 1)).await.unwrap();
}

#[tokio::test]
async fn a_delete_of_another_incarnation_is_refused() {
    let Fixture { client, .. } = fixture();
    client.create(&garden("a", 1)).await.unwrap();
    let mut options = DeleteOptions::default();
    options.uid = Some("somebody-else".into());
    assert!(
        client
            .delete(&key("a"), &options)
            .await
            .unwrap_err()
            .is_conflict()
    );
}

#[tokio::test]
async fn a_late_first_report_does_not_bring_back_what_was_removed() {
    let Fixture { client, store } = fixture();
    client.create(&garden("a", 1)).await.unwrap();
    let read_before = client.joined(&key("a")).await.unwrap();
    client
        .delete(&key("a"), &DeleteOptions::default())
        .await
        .unwrap();
    let mut late = Batch::new();
    late.report(&read_before, Status::default()).unwrap();
    assert!(client.commit(late).await.unwrap_err().is_conflict());
    assert!(store.dump().is_empty());
}

#[tokio::test]
async fn of_two_commits_decided_on_one_state_only_one_happens() {
    let Fixture { client, .. } = fixture();
    client.create(&garden("a", 1)).await.unwrap();
    report(&client, "a", "Growing").await;
    let joined = client.joined(&key("a")).await.unwrap();
    let attempt = || {
        let mut batch = Batch::new();
        batch.bump(&joined).unwrap();
        batch
    };
    client.commit(attempt()).await.unwrap();
    assert!(client.commit(attempt()).await.unwrap_err().is_conflict());
}

#[tokio::test]
async fn a_create_whose_answer_was_lost_is_recognised_by_its_uid() {
    let Fixture { client, store } = fixture();
    store.faults().next_commits(1, CommitFault::UnknownApplied);
    client.create(&garden("a", 1)).await.unwrap();
    assert_eq!(store.faults().counts().unknown, 1, "the fault happened");
    store.faults().next_commits(1, CommitFault::UnknownLost);
    let error = client.create(&garden("b", 1)).await.unwrap_err();
    assert!(
        matches!(error, ClientError::Store(StoreError::Unknown { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn a_name_that_is_still_reported_on_is_not_given_away() {
    let Fixture { client, store } = fixture();
    client.create(&garden("a", 1)).await.unwrap();
    report(&client, "a", "Growing").await;
    store
        .commit(Transaction::new().delete(key("a").store_key(Tree::Intent)))
        .await
        .unwrap();
    let error = client.create(&garden("a", 1)).await.unwrap_err();
    assert!(error.to_string().contains("still reported"), "{error}");
}

#[tokio::test]
async fn apply_creates_changes_and_leaves_alone() {
    let Fixture { client, .. } = fixture();
    let manifest = |trees: u32| raw("a", json!({"trees": trees, "place": "north"}));
    let apply = |object| {
        let client = client.clone();
        async move { client.apply(&key("a"), object, None).await.unwrap() }
    };
    let (created, outcome) = apply(manifest(1)).await;
    assert_eq!(outcome, Outcome::Created);
    assert!(created.metadata.annotations.contains_key(LAST_APPLIED));
    assert_eq!(apply(manifest(1)).await.1, Outcome::Unchanged);

    // Somebody scales by hand and adds a label: a manifest that says nothing of them keeps both.
    let mut object = client.get::<Garden>(&key("a")).await.unwrap();
    object.metadata.labels.insert("by".into(), "hand".into());
    client.update(&object).await.unwrap();
    let (applied, outcome) = apply(manifest(3)).await;
    assert_eq!(
        (outcome, applied.metadata.generation),
        (Outcome::Configured, 2)
    );
    assert_eq!(applied.metadata.labels["by"], "hand");
    assert_eq!(applied.spec["trees"], 3);
}

#[tokio::test]
async fn a_list_joins_records_and_sets_bad_ones_aside() {
    let Fixture { client, store } = fixture();
    client.create(&garden("a", 1)).await.unwrap();
    client.create(&garden("b", 2)).await.unwrap();
    report(&client, "a", "Growing").await;
    store
        .commit(Transaction::new().put(key("c").store_key(Tree::Intent), "{ not json"))
        .await
        .unwrap();
    let list = client
        .list(&KindDefinition::of::<Garden>(), Some("default"))
        .await
        .unwrap();
    let shown: Vec<_> = list
        .shown()
        .map(|object| (object.metadata.name, object.status.phase))
        .collect();
    assert_eq!(shown.len(), 2);
    assert_eq!(shown[0].1.as_str(), "Growing");
    assert_eq!(list.set_aside.len(), 1);
    assert!(
        client
            .list(&KindDefinition::of::<Garden>(), Some("other"))
            .await
            .unwrap()
            .objects
            .is_empty()
    );
    assert!(
        client
            .list(&KindDefinition::of::<Garden>(), Some("../x"))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_status_through_types_keeps_what_others_wrote_in_it() {
    let Fixture { client, .. } = fixture();
    client.create(&garden("a", 1)).await.unwrap();
    let joined = client.joined(&key("a")).await.unwrap();
    let mut batch = Batch::new();
    let mut status: Status<Map<String, Value>> = Status::default();
    status.detail.insert("soil".into(), json!("good"));
    batch.report(&joined, status).unwrap();
    client.commit(batch).await.unwrap();
    let object = client.get::<Garden>(&key("a")).await.unwrap();
    client.update_status(&object).await.unwrap();
    let shown = client
        .joined(&key("a"))
        .await
        .unwrap()
        .reality
        .unwrap()
        .value
        .status;
    assert_eq!(
        (&shown.detail["soil"], &shown.detail["grown"]),
        (&json!("good"), &json!(0))
    );
    let mut object = client.get::<Garden>(&key("a")).await.unwrap();
    object.status.detail.grown = 1;
    let ready = Condition::new("Ready", ConditionStatus::True, "Grown", "");
    object
        .status
        .conditions
        .set(ready, 1, client.environment().now());
    client.update_status(&object).await.unwrap();
    let shown = client
        .joined(&key("a"))
        .await
        .unwrap()
        .reality
        .unwrap()
        .value
        .status;
    assert_eq!(
        (&shown.detail["soil"], &shown.detail["grown"]),
        (&json!("good"), &json!(1))
    );
}

#[tokio::test]
async fn an_object_above_the_size_limit_is_refused_by_name_and_number() {
    let Fixture { client, .. } = fixture();
    let large = "x".repeat(400 * 1024);
    let error = client
        .create_raw(&key("a"), raw("a", json!({"place": large})))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("393216"), "{error}");
}

#[tokio::test]
async fn a_store_that_is_away_is_said_to_be_away() {
    let Fixture { client, store } = fixture();
    store.faults().set_away(true);
    let waited =
        tokio::time::timeout(Duration::from_secs(10), client.get::<Garden>(&key("a"))).await;
    let error = waited.expect("an answer").unwrap_err();
    assert!(
        matches!(error, ClientError::Store(StoreError::Unavailable { .. })),
        "{error}"
    );
}
