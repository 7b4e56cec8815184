use http::Method;
use platctrl_framework::model::{ObjectKey, Tree};
use platctrl_framework::store::{CommitFault, Prefix};
use serde_json::{Value, json};

use super::{Api, CONTROLLERS, PODS, ROOT, controller, pod, text};

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap();
    items
        .iter()
        .map(|item| text(item, "/metadata/name"))
        .collect()
}

#[tokio::test]
async fn an_object_is_created_read_listed_changed_and_deleted() {
    let api = Api::start().await;
    let created = api.post(CONTROLLERS, &controller("hello")).await;
    assert_eq!(created.code, 201);
    let created = created.json();
    assert_eq!(text(&created, "/metadata/namespace"), "default");
    assert_eq!(created["metadata"]["generation"], 1);
    assert!(!text(&created, "/metadata/uid").is_empty());
    let path = format!("{CONTROLLERS}/hello");
    let read = api.get(&path).await.done();
    assert_eq!(read, created);

    let list = api.get(CONTROLLERS).await.done();
    assert_eq!(list["kind"], "ReplicationControllerList");
    assert_eq!(list["items"], json!([created]));
    assert_eq!(
        list["metadata"]["resourceVersion"],
        created["metadata"]["resourceVersion"]
    );
    let everywhere = api
        .get(&format!("{ROOT}/replicationcontrollers"))
        .await
        .done();
    assert_eq!(names(&everywhere), ["hello"]);

    let mut wanted = read.clone();
    wanted["spec"]["replicas"] = 5.into();
    let updated = api.put(&path, &wanted).await.done();
    assert_eq!(updated["metadata"]["generation"], 2);
    assert_eq!(updated["spec"]["replicas"], 5);
    assert_eq!(updated["metadata"]["uid"], created["metadata"]["uid"]);
    assert_eq!(
        api.get(&path).await.done(),
        updated,
        "the answer is what is stored"
    );

    let deleted = api.delete(&path).await.done();
    assert_eq!(deleted["status"], "Success");
    assert_eq!(deleted["details"]["uid"], created["metadata"]["uid"]);
    api.get(&path).await.fails(404, "NotFound");
    api.delete(&path).await.fails(404, "NotFound");
}

#[tokio::test]
async fn a_change_of_an_older_version_is_a_conflict_and_one_without_version_is_not() {
    let api = Api::start().await;
    let old = api.post(CONTROLLERS, &controller("hello")).await.done();
    let path = format!("{CONTROLLERS}/hello");
    let mut first = old.clone();
    first["spec"]["replicas"] = 3.into();
    api.put(&path, &first).await.done();
    let mut second = old.clone();
    second["spec"]["replicas"] = 4.into();
    let message = api.put(&path, &second).await.fails(409, "Conflict");
    assert!(message.contains("read it again"), "{message}");
    second["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("resourceVersion");
    assert_eq!(api.put(&path, &second).await.done()["spec"]["replicas"], 4);
    second["metadata"]["uid"] = "another".into();
    api.put(&path, &second).await.fails(409, "Conflict");
}

#[tokio::test]
async fn a_report_does_not_stand_in_the_way_of_an_edit() {
    let api = Api::start().await;
    let mut read = api.post(CONTROLLERS, &controller("hello")).await.done();
    let path = format!("{CONTROLLERS}/hello");
    let status = json!({"metadata": {}, "status": {"replicas": 1, "readyReplicas": 0}});
    api.put(&format!("{path}/status"), &status).await.done();
    read["spec"]["replicas"] = 3.into();
    let updated = api.put(&path, &read).await.done();
    assert_eq!(updated["spec"]["replicas"], 3);
    assert_eq!(updated["status"]["replicas"], 1);
}

#[tokio::test]
async fn a_name_is_taken_once_and_also_while_its_object_is_being_deleted() {
    let api = Api::start().await;
    api.post(CONTROLLERS, &controller("hello")).await.done();
    api.post(CONTROLLERS, &controller("hello"))
        .await
        .fails(409, "AlreadyExists");
    let path = format!("{CONTROLLERS}/hello");
    // Somebody works on it: it cannot go at once.
    let status = json!({"status": {"replicas": 1}});
    api.put(&format!("{path}/status"), &status).await.done();
    let deleted = api.delete(&path).await.done();
    assert_ne!(text(&deleted, "/metadata/deletionTimestamp"), "");
    assert_eq!(text(&deleted, "/metadata/deletion/by"), "root");
    assert_eq!(text(&deleted, "/metadata/deletion/propagation"), "Orphan");
    let message = api
        .post(CONTROLLERS, &controller("hello"))
        .await
        .fails(409, "AlreadyExists");
    assert!(message.contains("being deleted"), "{message}");
    let message = api
        .apply(&path, &controller("hello"))
        .await
        .fails(409, "AlreadyExists");
    assert!(message.contains("being deleted"), "{message}");
    // Deleting it again changes nothing.
    assert_eq!(api.delete(&path).await.done(), deleted);
}

#[tokio::test]
async fn the_end_of_owned_objects_is_the_policy_or_what_the_request_says() {
    let api = Api::start().await;
    for (name, policy, body, expected) in [
        ("a", "Cascade", json!({}), "Cascade"),
        (
            "b",
            "Cascade",
            json!({"propagationPolicy": "Background"}),
            "Cascade",
        ),
        (
            "c",
            "Cascade",
            json!({"propagationPolicy": "Orphan"}),
            "Orphan",
        ),
        (
            "d",
            "Orphan",
            json!({"propagationPolicy": "Foreground"}),
            "Cascade",
        ),
    ] {
        let mut object = controller(name);
        object["spec"]["deletionPolicy"] = policy.into();
        api.post(CONTROLLERS, &object).await.done();
        let path = format!("{CONTROLLERS}/{name}");
        api.put(
            &format!("{path}/status"),
            &json!({"status": {"replicas": 1}}),
        )
        .await
        .done();
        let deleted = api.json(Method::DELETE, &path, &body).await.done();
        assert_eq!(
            text(&deleted, "/metadata/deletion/propagation"),
            expected,
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_delete_keeps_to_its_preconditions() {
    let api = Api::start().await;
    let created = api.post(CONTROLLERS, &controller("hello")).await.done();
    let path = format!("{CONTROLLERS}/hello");
    let other = json!({"preconditions": {"uid": "another"}});
    api.json(Method::DELETE, &path, &other)
        .await
        .fails(409, "Conflict");
    let older = json!({"preconditions": {"resourceVersion": "1"}});
    api.json(Method::DELETE, &path, &older)
        .await
        .fails(409, "Conflict");
    let wrong = json!({"propagationPolicy": "Sideways"});
    api.json(Method::DELETE, &path, &wrong)
        .await
        .fails(400, "BadRequest");
    let right = json!({"preconditions": {"uid": created["metadata"]["uid"]}});
    api.json(Method::DELETE, &path, &right).await.done();
}

#[tokio::test]
async fn objects_that_lose_their_owner_are_counted_in_a_warning() {
    let api = Api::start().await;
    let owner = api.post(CONTROLLERS, &controller("hello")).await.done();
    let mut owned = pod("hello-1", "web1");
    owned["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "platctrl.dev/v1", "kind": "ReplicationController", "name": "hello",
        "uid": owner["metadata"]["uid"], "controller": true, "blockOwnerDeletion": null,
    }]);
    let created = api.post(PODS, &owned).await.done();
    // The count is from the server's own view of the store.
    let mut watch = api.stream(&format!("{PODS}?watch=1")).await;
    assert_eq!(watch.next().await.1, "hello-1");
    let revision = text(&created, "/metadata/resourceVersion").to_owned();
    let mut watch = api
        .stream(&format!(
            "{PODS}?watch=1&resourceVersion={}",
            revision.parse::<u64>().unwrap() - 1
        ))
        .await;
    assert_eq!(watch.next().await.1, "hello-1");
    let answer = api.delete(&format!("{CONTROLLERS}/hello")).await;
    answer.done();
    assert!(
        answer.header("warning").contains("1 objects"),
        "{:?}",
        answer.headers
    );
}

#[tokio::test]
async fn a_dry_run_answers_the_same_and_writes_nothing() {
    let api = Api::start().await;
    let before = api.store.revision();
    let created = api
        .post(&format!("{CONTROLLERS}?dryRun=All"), &controller("hello"))
        .await;
    assert_eq!(created.code, 201);
    assert_eq!(api.store.revision(), before);
    api.post(CONTROLLERS, &controller("hello")).await.done();
    let stored = api.store.revision();
    let path = format!("{CONTROLLERS}/hello");
    api.post(&format!("{CONTROLLERS}?dryRun=All"), &controller("hello"))
        .await
        .fails(409, "AlreadyExists");
    let mut wanted = controller("hello");
    wanted["spec"]["replicas"] = 7.into();
    let dry = format!("{path}?dryRun=All");
    assert_eq!(api.put(&dry, &wanted).await.done()["spec"]["replicas"], 7);
    let applied = api.apply(&dry, &wanted).await;
    assert_eq!(applied.done()["spec"]["replicas"], 7);
    assert_eq!(applied.header("platctrl-outcome"), "configured");
    let patch = json!({"spec": {"replicas": 8}});
    assert_eq!(api.merge(&dry, &patch).await.done()["spec"]["replicas"], 8);
    api.delete(&dry).await.done();
    let body = json!({"kind": "DeleteOptions", "dryRun": ["All"]});
    api.json(Method::DELETE, &path, &body).await.done();
    let body = json!({"dryRun": "All"});
    api.json(Method::DELETE, &path, &body)
        .await
        .fails(400, "BadRequest");
    assert_eq!(api.store.revision(), stored);
    assert_eq!(api.get(&path).await.done()["spec"]["replicas"], 2);
    api.delete(&format!("{path}?dryRun=Some"))
        .await
        .fails(400, "BadRequest");
}

#[tokio::test]
async fn an_apply_tells_what_it_came_to_and_removes_what_its_manifest_no_longer_says() {
    let api = Api::start().await;
    let path = format!("{CONTROLLERS}/hello");
    let mut manifest = controller("hello");
    manifest["spec"]["template"]["spec"]["launchables"]["web"]["env"] = json!({"A": "1", "B": "2"});
    let first = api.apply(&path, &manifest).await;
    assert_eq!(
        (first.code.as_u16(), first.header("platctrl-outcome")),
        (201, "created")
    );
    let again = api.apply(&path, &manifest).await;
    assert_eq!(
        (again.code.as_u16(), again.header("platctrl-outcome")),
        (200, "unchanged")
    );
    assert_eq!(again.done(), first.done());
    // Somebody else sets a field that the manifest does not speak of.
    let patch = json!({"spec": {"maxPerNode": 3}, "metadata": {"labels": {"by": "hand"}}});
    api.merge(&path, &patch).await.done();
    let env = &mut manifest["spec"]["template"]["spec"]["launchables"]["web"]["env"];
    *env = json!({"A": "9"});
    let applied = api.apply(&path, &manifest).await;
    assert_eq!(applied.header("platctrl-outcome"), "configured");
    let applied = applied.done();
    assert_eq!(
        applied["spec"]["template"]["spec"]["launchables"]["web"]["env"],
        json!({"A": "9"})
    );
    assert_eq!(applied["spec"]["maxPerNode"], 3);
    assert_eq!(
        applied["metadata"]["labels"],
        json!({"app": "hello", "by": "hand"})
    );
}

#[tokio::test]
async fn a_merge_patch_changes_what_it_says_and_is_checked_as_a_whole() {
    let api = Api::start().await;
    let created = api.post(CONTROLLERS, &controller("hello")).await.done();
    let path = format!("{CONTROLLERS}/hello");
    let patch = json!({"metadata": {"labels": {"app": null, "az": "west"}}});
    let patched = api.merge(&path, &patch).await.done();
    assert_eq!(patched["metadata"]["labels"], json!({"az": "west"}));
    assert_eq!(patched["metadata"]["generation"], 1, "the spec is the same");
    let answer = api
        .merge(&path, &json!({"spec": {"replicas": "many"}}))
        .await;
    answer.fails(422, "Invalid");
    assert_eq!(answer.fields(), ["spec.replicas"]);
    api.merge(&path, &json!({"metadata": {"name": "other"}}))
        .await
        .fails(400, "BadRequest");
    let old = json!({"metadata": {"resourceVersion": created["metadata"]["resourceVersion"]}, "spec": {"replicas": 9}});
    api.merge(&path, &old).await.fails(409, "Conflict");
    let kind = "application/strategic-merge-patch+json";
    let message = api
        .ask(Method::PATCH, &path, kind, "{}")
        .await
        .fails(415, "UnsupportedMediaType");
    assert!(message.contains("merge-patch+json"), "{message}");
}

#[tokio::test]
async fn a_json_patch_happens_whole_or_not_at_all_and_is_checked_as_a_whole() {
    let api = Api::start().await;
    let created = api.post(CONTROLLERS, &controller("hello")).await.done();
    let path = format!("{CONTROLLERS}/hello");
    let kind = "application/json-patch+json";
    let patch = async |path: &str, operations: Value| {
        api.ask(Method::PATCH, path, kind, operations.to_string())
            .await
    };
    let scaled = json!([
        {"op": "test", "path": "/spec/replicas", "value": created["spec"]["replicas"]},
        {"op": "replace", "path": "/spec/replicas", "value": 5},
        {"op": "add", "path": "/metadata/labels/az", "value": "west"},
    ]);
    let patched = patch(&path, scaled.clone()).await.done();
    assert_eq!(patched["spec"]["replicas"], 5);
    assert_eq!(patched["metadata"]["labels"]["az"], "west");
    // Again the test fails, and with it all.
    let message = patch(&path, scaled).await.fails(422, "Invalid");
    assert!(message.contains("operation 0"), "{message}");
    let wrong = json!([{"op": "replace", "path": "/spec/replicas", "value": "many"}]);
    patch(&path, wrong).await.fails(422, "Invalid");
    let old = json!([{"op": "replace", "path": "/metadata/resourceVersion",
        "value": created["metadata"]["resourceVersion"]}]);
    patch(&path, old).await.fails(409, "Conflict");
    patch(&path, json!({"spec": {}}))
        .await
        .fails(400, "BadRequest");
    let named = json!([{"op": "replace", "path": "/metadata/name", "value": "other"}]);
    patch(&path, named).await.fails(400, "BadRequest");

    let status = json!([{"op": "add", "path": "/status", "value": {"readyReplicas": 1}}]);
    let patched = patch(&format!("{path}/status"), status).await.done();
    assert_eq!(patched["status"]["readyReplicas"], 1);
    assert_eq!(patched["spec"]["replicas"], 5);
    let scale = json!([{"op": "replace", "path": "/spec/replicas", "value": 6}]);
    let scale = patch(&format!("{path}/scale"), scale).await.done();
    assert_eq!(scale["spec"]["replicas"], 6);
}

#[tokio::test]
async fn what_a_newer_version_wrote_does_not_stop_an_older_server_from_changing_the_rest() {
    let api = Api::start().await;
    api.post(CONTROLLERS, &controller("hello")).await.done();
    let key = ObjectKey::namespaced("platctrl.dev", "replicationcontrollers", "default", "hello");
    let key = key.unwrap().store_key(Tree::Intent);
    let mut stored: Value = serde_json::from_slice(&api.store.peek(&key).unwrap().value).unwrap();
    stored["spec"]["future"] = json!({"x": 1});
    let write = platctrl_framework::store::Transaction::new().put(key, stored.to_string());
    platctrl_framework::store::Store::commit(&api.store, write)
        .await
        .unwrap();
    let path = format!("{CONTROLLERS}/hello");
    let patched = api
        .merge(&path, &json!({"spec": {"replicas": 4}}))
        .await
        .done();
    assert_eq!(
        (
            &patched["spec"]["replicas"],
            &patched["spec"]["future"]["x"]
        ),
        (&json!(4), &json!(1))
    );
    let answer = api.merge(&path, &json!({"spec": {"more": 1}})).await;
    answer.fails(422, "Invalid");
    assert_eq!(answer.fields(), ["spec.more"]);
}

#[tokio::test]
async fn a_name_is_completed_where_only_its_beginning_is_given() {
    let api = Api::start().await;
    let mut object = controller("x");
    object["metadata"] = json!({"generateName": "hello-", "managedFields": [{}], "selfLink": "x"});
    let one = api.post(CONTROLLERS, &object).await.done();
    let two = api.post(CONTROLLERS, &object).await.done();
    let name = text(&one, "/metadata/name");
    assert!(name.starts_with("hello-") && name.len() == 11, "{name}");
    assert_ne!(name, text(&two, "/metadata/name"));
    assert_eq!(one["metadata"].get("managedFields"), None);
    assert_eq!(one["metadata"].get("selfLink"), None);
    object["metadata"]["generateName"] = "Hello-".into();
    api.post(CONTROLLERS, &object).await.fails(422, "Invalid");
}

#[tokio::test]
async fn pods_are_found_by_namespace_and_name_whatever_their_node() {
    let api = Api::start().await;
    let node = json!({"apiVersion": "platctrl.dev/v1", "kind": "Node", "metadata": {"name": "web1"}, "spec": {}});
    api.post(&format!("{ROOT}/nodes"), &node).await.done();
    api.post(PODS, &pod("a", "web1")).await.done();
    // Of this node nobody has a record.
    api.post(PODS, &pod("b", "web2")).await.done();
    for name in ["a", "b"] {
        let read = api.get(&format!("{PODS}/{name}")).await.done();
        assert_eq!(text(&read, "/metadata/name"), name);
    }
    api.post(PODS, &pod("b", "web1"))
        .await
        .fails(409, "AlreadyExists");
    let selected = api
        .get(&format!("{ROOT}/pods?fieldSelector=spec.nodeName%3Dweb2"))
        .await
        .done();
    assert_eq!(names(&selected), ["b"]);
    let answer = api
        .merge(&format!("{PODS}/a"), &json!({"spec": {"nodeName": "web2"}}))
        .await;
    answer.fails(422, "Invalid");
    assert_eq!(answer.fields(), ["spec.nodeName"]);
    let mut homeless = pod("c", "web1");
    homeless["spec"].as_object_mut().unwrap().remove("nodeName");
    let answer = api.post(PODS, &homeless).await;
    answer.fails(422, "Invalid");
    assert_eq!(answer.fields(), ["spec.nodeName"]);
}

#[tokio::test]
async fn lists_are_selected_by_labels_namespace_and_fields() {
    let api = Api::start().await;
    for (namespace, name) in [("default", "a"), ("default", "b"), ("other", "a")] {
        let path = format!("{ROOT}/namespaces/{namespace}/replicationcontrollers");
        api.post(&path, &controller(name)).await.done();
    }
    let all = format!("{ROOT}/replicationcontrollers");
    for (path, count) in [
        (all.clone(), 3),
        (CONTROLLERS.to_owned(), 2),
        (format!("{all}?labelSelector="), 3),
        (format!("{all}?labelSelector=app%3Da"), 2),
        (format!("{all}?labelSelector=app%20notin%20(a)"), 1),
        (
            format!("{all}?fieldSelector=metadata.name%3Da,metadata.namespace%3Dother"),
            1,
        ),
        (
            format!("{ROOT}/namespaces/nobody/replicationcontrollers"),
            0,
        ),
    ] {
        assert_eq!(names(&api.get(&path).await.done()).len(), count, "{path}");
    }
    api.get(&format!("{all}?labelSelector=app%3D%3D%3D"))
        .await
        .fails(400, "BadRequest");
    api.get(&format!("{all}?fieldSelector=spec.replica%3D1"))
        .await
        .fails(400, "BadRequest");
}

#[tokio::test]
async fn a_list_in_pages_is_one_state_and_ends_in_410_when_that_is_forgotten() {
    let api = Api::start().await;
    for number in 0..5 {
        api.post(CONTROLLERS, &controller(&format!("c{number}")))
            .await
            .done();
    }
    let first = api.get(&format!("{CONTROLLERS}?limit=2")).await.done();
    assert_eq!(names(&first), ["c0", "c1"]);
    let place = text(&first, "/metadata/continue").to_owned();
    // What happens meanwhile is not part of that state.
    api.delete(&format!("{CONTROLLERS}/c2")).await.done();
    api.post(CONTROLLERS, &controller("c9")).await.done();
    let second = api
        .get(&format!("{CONTROLLERS}?limit=2&continue={place}"))
        .await
        .done();
    assert_eq!(names(&second), ["c2", "c3"]);
    assert_eq!(
        second["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    let place = text(&second, "/metadata/continue").to_owned();
    let last = api
        .get(&format!("{CONTROLLERS}?limit=2&continue={place}"))
        .await
        .done();
    assert_eq!(names(&last), ["c4"]);
    assert_eq!(last["metadata"].get("continue"), None);
    api.store.faults().compact(api.store.revision());
    api.get(&format!("{CONTROLLERS}?limit=2&continue={place}"))
        .await
        .fails(410, "Expired");
    for wrong in ["x", "1~", "1~../x", "~a"] {
        let path = format!("{CONTROLLERS}?limit=2&continue={wrong}");
        api.get(&path).await.fails(400, "BadRequest");
    }
}

#[tokio::test]
async fn a_long_list_is_whole() {
    let api = Api::start().await;
    let kinds =
        platctrl_framework::model::Kinds::new().with::<platctrl_kinds::ReplicationController>();
    let known = kinds.iter().next().unwrap().clone();
    let environment = platctrl_framework::environment::Environment::system();
    let client = platctrl_framework::client::Client::new(
        std::sync::Arc::new(api.store.clone()),
        environment,
        "test",
    );
    let group_plural = known.definition.group_plural();
    for number in 0..4500 {
        let mut object = controller(&format!("c{number:05}"));
        object["metadata"]["namespace"] = "default".into();
        let raw: platctrl_framework::model::RawObject = serde_json::from_value(object).unwrap();
        let key = ObjectKey::of_scope(
            &group_plural,
            known.definition.scope,
            None,
            Some("default"),
            &raw.metadata.name,
        )
        .unwrap();
        client.create_raw(&key, raw).await.unwrap();
    }
    let list = api.get(CONTROLLERS).await.done();
    let names = names(&list);
    assert_eq!(names.len(), 4500);
    assert!(names.is_sorted());
}

#[tokio::test]
async fn a_store_that_is_away_is_503_with_a_time_to_wait() {
    let api = Api::start().await;
    api.post(CONTROLLERS, &controller("hello")).await.done();
    api.store.faults().set_away(true);
    let path = format!("{CONTROLLERS}/hello");
    for answer in [
        api.get(CONTROLLERS).await,
        api.get(&path).await,
        api.get(&format!("{CONTROLLERS}?watch=1")).await,
        api.post(CONTROLLERS, &controller("other")).await,
        api.merge(&path, &json!({"spec": {"replicas": 3}})).await,
        api.delete(&path).await,
        api.get("/readyz").await,
    ] {
        answer.fails(503, "ServiceUnavailable");
        assert_eq!(answer.header("retry-after"), "1");
    }
    assert!(api.store.faults().counts().unavailable >= 7);
    assert_eq!(
        api.get("/healthz").await.code,
        200,
        "the process itself is well"
    );
    api.store.faults().set_away(false);
    api.get(&path).await.done();
}

#[tokio::test]
async fn an_outcome_that_nobody_knows_is_told_as_such() {
    let api = Api::start().await;
    api.post(CONTROLLERS, &controller("hello")).await.done();
    let path = format!("{CONTROLLERS}/hello");
    api.store
        .faults()
        .next_commits(1, CommitFault::UnknownApplied);
    let message = api
        .merge(&path, &json!({"spec": {"replicas": 3}}))
        .await
        .fails(504, "Timeout");
    assert!(
        message.contains("may or may not have happened"),
        "{message}"
    );
    assert_eq!(api.store.faults().counts().unknown, 1);
    // A created object is recognised by its uid.
    api.store
        .faults()
        .next_commits(1, CommitFault::UnknownApplied);
    api.post(CONTROLLERS, &controller("other")).await.done();
    assert_eq!(api.store.faults().counts().unknown, 2);
}

#[tokio::test]
async fn an_answer_without_its_anchor_is_no_empty_fleet() {
    let api = Api::start().await;
    assert_eq!(names(&api.get(PODS).await.done()).len(), 0);
    api.store.faults().hide(Prefix::new("x/").unwrap());
    let message = api.get(PODS).await.fails(503, "ServiceUnavailable");
    assert!(message.contains("no anchor"), "{message}");
}

#[tokio::test]
async fn a_damaged_record_harms_itself_alone() {
    let api = Api::start().await;
    for name in ["a", "b", "c"] {
        api.post(CONTROLLERS, &controller(name)).await.done();
    }
    let key =
        ObjectKey::namespaced("platctrl.dev", "replicationcontrollers", "default", "b").unwrap();
    let write = platctrl_framework::store::Transaction::new().put(key.store_key(Tree::Intent), "{");
    platctrl_framework::store::Store::commit(&api.store, write)
        .await
        .unwrap();
    let list = api.get(CONTROLLERS).await.done();
    assert_eq!(names(&list), ["a", "c"]);
    assert!(
        text(&list, "/metadata/unreadable/0").contains("default/b"),
        "{list}"
    );
    let message = api
        .get(&format!("{CONTROLLERS}/b"))
        .await
        .fails(500, "InternalError");
    assert!(message.contains("cannot be read"), "{message}");
}

#[tokio::test]
async fn a_default_is_told_and_never_written_into_a_spec() {
    let api = Api::start().await;
    let given = controller("a");
    assert!(given["spec"].get("maxPerNode").is_none());
    let made = api.post(CONTROLLERS, &given).await.done();
    assert_eq!(made["spec"], given["spec"]);
    // A change of something else does not write it either: the template is what it was.
    let scaled = api
        .merge(
            &format!("{CONTROLLERS}/a"),
            &json!({"spec": {"replicas": 5}}),
        )
        .await
        .done();
    assert_eq!(scaled["spec"]["template"], given["spec"]["template"]);
    assert!(scaled["spec"].get("maxPerNode").is_none(), "{scaled}");
    let documents = api.get("/openapi/v2").await.done();
    let kind = &documents["definitions"]["dev.platctrl.v1.ReplicationController"];
    let field = &kind["properties"]["spec"]["properties"]["maxPerNode"];
    assert_eq!(field["default"], 1, "{field}");
}
