//! What decides where pods run, as the API takes it and as it refuses it.

use serde_json::{Value, json};

use super::{Api, CONTROLLERS, ROOT, controller, pod_spec};

fn daemon_set(spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "platctrl.dev/v1",
        "kind": "DaemonSet",
        "metadata": { "name": "logs" },
        "spec": { "nodeSelector": "*", "template": { "spec": pod_spec(None) } },
    });
    for (name, value) in spec.as_object().unwrap() {
        object["spec"][name] = value.clone();
    }
    object
}

#[tokio::test]
async fn a_daemon_set_is_served_and_what_could_never_work_is_refused_by_field() {
    let api = Api::start().await;
    let sets = format!("{ROOT}/namespaces/default/daemonsets");
    for (wrong, field) in [
        (json!({ "nodeSelector": "" }), "spec.nodeSelector"),
        (json!({ "minimumHealthy": "100%" }), "spec.minimumHealthy"),
        (json!({ "minimumHealthy": "many" }), "spec.minimumHealthy"),
        (json!({ "minimumHealthy": -1 }), "spec.minimumHealthy"),
        (
            json!({ "rateLimit": { "pods": 0, "per": "1m" } }),
            "spec.rateLimit.pods",
        ),
        (
            json!({ "rateLimit": { "pods": 1, "per": "0s" } }),
            "spec.rateLimit.per",
        ),
        (json!({ "timeout": "1ms" }), "spec.timeout"),
        (
            json!({ "canary": { "nodeSelector": "a in (" } }),
            "spec.canary.nodeSelector",
        ),
    ] {
        let answer = api.post(&sets, &daemon_set(&wrong)).await;
        assert_eq!(answer.code, 422, "{wrong}");
        let fields = answer.fields();
        assert!(
            fields.iter().any(|it| it.contains(field)),
            "{wrong}: {fields:?}"
        );
    }
    let wanted =
        daemon_set(&json!({ "minimumHealthy": 3, "rateLimit": { "pods": 5, "per": "1m" } }));
    let created = api.post(&sets, &wanted).await;
    assert_eq!(created.code, 201, "{}", created.text());
    let served = api.get(&format!("{sets}/logs")).await.done();
    assert_eq!(served["spec"]["minimumHealthy"], 3);
}

#[tokio::test]
async fn placement_that_can_never_be_met_is_refused_by_field() {
    let api = Api::start().await;
    for (place, value, field) in [
        (
            "/spec/template/spec/placement",
            json!({ "with": ["db"], "conflicts": ["d*"] }),
            "placement.with",
        ),
        (
            "/spec/template/spec/placement",
            json!({ "conflicts": ["web-["] }),
            "placement.conflicts",
        ),
        ("/spec/spreadOver", json!("not a label"), "spec.spreadOver"),
        ("/spec/maxPerNode", json!(0), "spec.maxPerNode"),
        ("/spec/replicas", json!(-1), "spec.replicas"),
        ("/spec/replicas", json!(4_000_000_000_u32), "spec.replicas"),
        (
            "/spec/progressDeadline",
            json!("10ms"),
            "spec.progressDeadline",
        ),
    ] {
        let mut wrong = controller("hello");
        let (parent, name) = place.rsplit_once('/').unwrap();
        wrong.pointer_mut(parent).unwrap()[name] = value;
        let answer = api.post(CONTROLLERS, &wrong).await;
        assert_eq!(answer.code, 422, "{place}");
        let fields = answer.fields();
        assert!(
            fields.iter().any(|it| it.contains(field)),
            "{place}: {fields:?}"
        );
    }
}
