//! Names of pods, which are on a node each.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Api, PODS};

fn pod(name: &str, node: &str) -> Value {
    let digest = format!("sha256:{}", "0".repeat(64));
    json!({
        "apiVersion": "platctrl.dev/v1", "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "nodeName": node,
            "launchables": {"web": {
                "type": "hoist", "location": "https://artifacts.example/a.tar.gz", "digest": digest,
            }},
        },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_pods_that_are_given_one_name_at_once_on_many_nodes_there_is_one() {
    let api = Arc::new(Api::start().await);
    for round in 0..8 {
        let name = format!("hello-{round}");
        let requests = (0..12).map(|node| {
            let (api, pod) = (api.clone(), pod(&name, &format!("n{node}")));
            tokio::spawn(async move { api.post(PODS, &pod).await })
        });
        let requests: Vec<_> = requests.collect();
        let mut made = 0;
        for request in requests {
            let answer = request.await.unwrap();
            if answer.code.is_success() {
                made += 1;
            } else {
                answer.fails(409, "AlreadyExists");
            }
        }
        assert_eq!(made, 1, "of {name}");
    }
    // Names have nothing to do with each other.
    let listed = api.get(PODS).await.done();
    assert_eq!(listed["items"].as_array().unwrap().len(), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pods_of_many_names_are_created_side_by_side() {
    let api = Arc::new(Api::start().await);
    let requests = (0..200).map(|number| {
        let (api, pod) = (api.clone(), pod(&format!("pod-{number}"), "n1"));
        tokio::spawn(async move { api.post(PODS, &pod).await })
    });
    for request in requests.collect::<Vec<_>>() {
        request.await.unwrap().done();
    }
}
