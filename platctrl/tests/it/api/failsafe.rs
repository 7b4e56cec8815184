//! Freezing, holds and lost intents over the API.

use platctrl_framework::client::Client;
use platctrl_framework::controller::{Action, Controller, ReconcileError, Runtime};
use platctrl_framework::failsafe::{Failsafe, frozen};
use platctrl_framework::model::{ObjectKey, Tree};
use platctrl_framework::store::{Store as _, Transaction};

use super::*;

async fn start() -> Api {
    Api::with(|config| config.kinds = config.kinds.clone().with::<Failsafe>()).await
}

fn client(api: &Api) -> Client {
    let store = Arc::new(api.store.clone());
    Client::new(store, Environment::system(), "test")
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn warnings(answer: &Answer) -> Vec<String> {
    let all = answer.headers.get_all("warning").iter();
    all.map(|it| it.to_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_freeze_is_told_to_everybody_who_reads_and_kept_with_who_and_why() {
    let api = start().await;
    assert_eq!(warnings(&api.get(CONTROLLERS).await), [""; 0]);
    let answer = api
        .post("/failsafe/freeze", &json!({"reason": "an incident"}))
        .await;
    assert_eq!(
        (answer.code, &answer.json()["changed"]),
        (StatusCode::OK, &json!(true))
    );
    let again = api.post("/failsafe/freeze", &json!({})).await;
    assert_eq!(again.json()["changed"], false);
    assert!(frozen(&api.store).await.unwrap().unwrap().frozen);
    let told = warnings(&api.get(CONTROLLERS).await);
    assert!(
        told[0].contains("an incident") && told[0].contains("platctrl thaw"),
        "{told:?}"
    );
    let state = api.get("/failsafe").await.json();
    assert_eq!(
        (&state["frozen"], &state["freeze"]["reason"]),
        (&json!(true), &json!("an incident"))
    );
    let events = api.get(&format!("{ROOT}/events")).await.text();
    assert!(
        events.contains("\"Frozen\"") && events.contains("an incident"),
        "{events}"
    );
    let thawed = api.post("/failsafe/thaw", &json!({})).await.json();
    assert_eq!(thawed["frozen"], false);
    assert_eq!(thawed["freeze"]["history"][0]["reason"], "an incident");
    assert_eq!(warnings(&api.get(CONTROLLERS).await), [""; 0]);
}

#[tokio::test]
async fn orders_that_make_no_sense_are_refused_by_name() {
    let api = start().await;
    for (path, body, code) in [
        ("reset", json!({}), StatusCode::BAD_REQUEST),
        ("reset", json!({"ids": ["nothing"]}), StatusCode::NOT_FOUND),
        ("expect", json!({"changes": 0}), StatusCode::BAD_REQUEST),
        (
            "expect",
            json!({"changes": "many"}),
            StatusCode::BAD_REQUEST,
        ),
        ("adopt", json!({}), StatusCode::BAD_REQUEST),
        (
            "adopt",
            json!({"kind": "pods", "name": "nobody"}),
            StatusCode::NOT_FOUND,
        ),
        ("dance", json!({}), StatusCode::NOT_FOUND),
    ] {
        let answer = api.post(&format!("/failsafe/{path}"), &body).await;
        assert_eq!(answer.code, code, "{path} {body}: {}", answer.text());
    }
    let answer = api.get("/failsafe/freeze").await;
    assert_eq!(answer.code, StatusCode::METHOD_NOT_ALLOWED);
}

/// A runtime that claims every pod, as an agent does.
fn agent(api: &Api) -> tokio::task::JoinHandle<()> {
    let controller = Controller::<Pod>::new("agent", |_, context| async move {
        context.claim().await?;
        Ok::<_, ReconcileError>(Action::await_change())
    });
    let runtime = Runtime::new(Arc::new(api.store.clone()), Environment::system());
    let runtime = runtime.controller(controller);
    tokio::spawn(async move { runtime.run().await.unwrap() })
}

fn pod_key(name: &str) -> ObjectKey {
    ObjectKey::on_node("platctrl.dev", "pods", "web1", "default", name).unwrap()
}

async fn pods_that_lost_their_intents(api: &Api, count: usize) -> tokio::task::JoinHandle<()> {
    for index in 0..count {
        let created = api.post(PODS, &pod(&format!("p{index}"), "web1")).await;
        assert_eq!(created.code, StatusCode::CREATED, "{}", created.text());
    }
    let running = agent(api);
    eventually("all are claimed", async || {
        let reports = Tree::Reality.as_str();
        let claimed = api.store.dump();
        let of_pods = format!("o/{reports}/platctrl.dev/pods/");
        claimed
            .iter()
            .filter(|it| it.key.as_str().starts_with(&of_pods))
            .count()
            == count
    })
    .await;
    let lose = (0..count).fold(Transaction::new(), |all, index| {
        all.delete(pod_key(&format!("p{index}")).store_key(Tree::Intent))
    });
    api.store.commit(lose).await.unwrap();
    eventually("they are listed", async || {
        let state = api.get("/failsafe").await.json();
        state["unexplained"].as_array().unwrap().len() == count
    })
    .await;
    running
}

#[tokio::test]
async fn holds_are_listed_warned_of_and_reset_for_the_program_that_holds() {
    let api = start().await;
    let running = pods_that_lost_their_intents(&api, 6).await;
    eventually("the hold is listed", async || {
        let state = api.get("/failsafe").await.json();
        state["holds"][0]["id"] == "vanished-pods.platctrl.dev"
    })
    .await;
    let state = api.get("/failsafe").await.json();
    assert_eq!(
        (&state["holds"][0]["holder"], &state["holds"][0]["count"]),
        (&json!("controllers"), &json!(6))
    );
    eventually("a warning tells of it", async || {
        warnings(&api.get(PODS).await)
            .iter()
            .any(|it| it.contains("failsafe list"))
    })
    .await;
    let table = api.get(&format!("{ROOT}/failsafes")).await.text();
    assert!(table.contains("vanished-pods.platctrl.dev"), "{table}");
    let reset = api
        .post(
            "/failsafe/reset",
            &json!({"ids": ["vanished-pods.platctrl.dev"]}),
        )
        .await;
    assert_eq!(reset.json()["reset"], json!(["vanished-pods.platctrl.dev"]));
    eventually("nothing is held", async || {
        let state = api.get("/failsafe").await.json();
        state["holds"] == json!([])
    })
    .await;
    let none = api.post("/failsafe/reset", &json!({"all": true})).await;
    assert_eq!(none.json()["reset"], json!([]));
    running.abort();
}

#[tokio::test]
async fn a_lost_intent_is_written_again_by_the_program_that_remembers_it() {
    let api = start().await;
    let before = |name: &str| format!("{PODS}/{name}");
    let uid = |answer: Answer| answer.json()["metadata"]["uid"].clone();
    let running = pods_that_lost_their_intents(&api, 2).await;
    // The program writes its own object with its first word about something lost.
    eventually("the program has an object", async || {
        let adopted = api
            .post(
                "/failsafe/adopt",
                &json!({"kind": "pods", "namespace": "default", "name": "p0"}),
            )
            .await;
        adopted.code == StatusCode::OK
    })
    .await;
    let back = api.get(&before("p0")).await;
    assert_eq!(back.code, StatusCode::OK);
    let report = client(&api)
        .joined(&pod_key("p0"))
        .await
        .unwrap()
        .reality
        .unwrap();
    assert_eq!(uid(back), json!(report.value.metadata.uid));
    let removed = api
        .post(
            "/failsafe/remove",
            &json!({"kind": "pods", "namespace": "default", "name": "p1"}),
        )
        .await;
    assert_eq!(removed.code, StatusCode::OK, "{}", removed.text());
    let ended = api.get(&before("p1")).await.json();
    assert!(
        ended["metadata"]["deletionTimestamp"].is_string(),
        "{ended}"
    );
    running.abort();
}

#[tokio::test]
async fn a_lost_intent_that_nobody_remembers_is_written_from_its_manifest() {
    let api = start().await;
    let running = pods_that_lost_their_intents(&api, 1).await;
    running.abort();
    let _ = running.await;
    let adopt = |object: Value| json!({"kind": "pods", "namespace": "default", "name": "p0", "object": object});
    let elsewhere = api.post("/failsafe/adopt", &adopt(pod("p0", "web2"))).await;
    assert_eq!(
        elsewhere.code,
        StatusCode::BAD_REQUEST,
        "{}",
        elsewhere.text()
    );
    let mut wrong = pod("p0", "web1");
    wrong["spec"]["launchable"] = json!({});
    let wrong = api.post("/failsafe/adopt", &adopt(wrong)).await;
    assert_eq!(
        wrong.code,
        StatusCode::UNPROCESSABLE_ENTITY,
        "{}",
        wrong.text()
    );
    let adopted = api.post("/failsafe/adopt", &adopt(pod("p0", "web1"))).await;
    assert_eq!(adopted.code, StatusCode::OK, "{}", adopted.text());
    let joined = client(&api).joined(&pod_key("p0")).await.unwrap();
    assert!(
        joined.own_reality().is_some(),
        "the report is about this very object"
    );
    let again = api.post("/failsafe/adopt", &adopt(pod("p0", "web1"))).await;
    assert!(again.code.is_client_error(), "{}", again.text());
}

#[tokio::test]
async fn a_pod_whose_name_another_one_was_given_meanwhile_is_not_adopted_but_can_be_removed() {
    let api = start().await;
    let running = pods_that_lost_their_intents(&api, 1).await;
    running.abort();
    let _ = running.await;
    let given = api.post(PODS, &pod("p0", "web2")).await;
    assert_eq!(given.code, StatusCode::CREATED, "{}", given.text());
    let lost =
        json!({"kind": "pods", "namespace": "default", "name": "p0", "object": pod("p0", "web1")});
    let refused = api.post("/failsafe/adopt", &lost).await;
    assert_eq!(refused.code, StatusCode::CONFLICT, "{}", refused.text());
    for part in ["node web2", "platctrl failsafe remove"] {
        assert!(refused.text().contains(part), "{}", refused.text());
    }
    let joined = client(&api).joined(&pod_key("p0")).await.unwrap();
    assert!(joined.intent.is_none());
    let removed = api.post("/failsafe/remove", &lost).await;
    assert_eq!(removed.code, StatusCode::OK, "{}", removed.text());
    let joined = client(&api).joined(&pod_key("p0")).await.unwrap();
    let intent = joined.intent.unwrap().value;
    assert!(intent.metadata.is_deleted());
}
