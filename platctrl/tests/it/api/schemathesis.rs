//! A foreign maker of requests: `schemathesis` makes them up from the server's own OpenAPI document,
//! follows what answers lead to, and looks whether answers are what the document says.

use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

use super::{Api, CONTROLLERS, PODS, controller, kube_client, pod};

/// Seconds that it may take.
const SECONDS: u32 = 120;

/// Answers that have no end are another test's.
fn without_watches(document: &mut Value) {
    let paths = document["paths"].as_object_mut().unwrap();
    for path in paths.values_mut() {
        for operation in path.as_object_mut().unwrap().values_mut() {
            if let Some(parameters) = operation["parameters"].as_array_mut() {
                let endless = |it: &Value| it["name"] == "watch" || it["name"] == "follow";
                parameters.retain(|it| !endless(it));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it takes two minutes: `make soak` runs it"]
async fn schemathesis_finds_no_request_that_is_answered_otherwise_than_promised() {
    let programs =
        tokio::task::spawn_blocking(|| platctrl_test_support::processes::tool("schemathesis"));
    let program = programs.await.unwrap().join("schemathesis");
    let api = Api::start().await;
    let node = serde_json::json!({"apiVersion": "platctrl.dev/v1", "kind": "Node",
        "metadata": {"name": "web1"}, "spec": {}});
    api.post("/apis/platctrl.dev/v1/nodes", &node).await.done();
    api.post(CONTROLLERS, &controller("hello")).await.done();
    api.post(PODS, &pod("a", "web1")).await.done();
    let mut document = api.get("/openapi/v2").await.done();
    without_watches(&mut document);
    let file = api.dir.path().join("openapi.json");
    std::fs::write(&file, document.to_string()).unwrap();
    let url = kube_client::port(&api).await;
    let output = Command::new(program)
        .arg("run")
        .arg(&file)
        .args(["--url", &url])
        .args(["--max-time", &SECONDS.to_string()])
        .args([
            "--checks",
            "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,unsupported_method",
        ])
        .args(["--suppress-health-check", "all"])
        // A server that answers early may close before it was told everything.
        .args(["--request-timeout", "60", "--request-retries", "3"])
        .arg("--no-color")
        .current_dir(api.dir.path())
        .env("HOME", api.dir.path())
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert_eq!(api.get("/readyz").await.text(), "ok");
}
