//! Requests to the API server: paths, queries, media types, bodies.
//!
//! An input is lines: the method and the target, the media type, and then the body. Whatever is
//! asked, what lies in the store afterwards is what the server promises to let in.

use std::cell::RefCell;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::BodyExt as _;
use platctrl::server::{Server, ServerConfig};
use platctrl_framework::client::Client;
use platctrl_framework::environment::Environment;
use platctrl_framework::model::{
    Intent, ObjectKey, RawObject, Reality, Tree, Versioned, identity, schema,
};
use platctrl_framework::store::MemoryStore;
use serde_json::json;

use super::Target;
use super::object::kinds;

pub(super) const HTTP: Target = Target {
    name: "http",
    run: http,
    longest: 4096,
    words: &[
        "GET ",
        "PUT ",
        "POST ",
        "PATCH ",
        "DELETE ",
        "/apis/platctrl.dev/v1/",
        "namespaces/default/",
        "replicationcontrollers",
        "pods",
        "nodes/web1",
        "events",
        "/status",
        "/scale",
        "/log",
        "?watch=1",
        "&limit=1",
        "&continue=",
        "&resourceVersion=",
        "&labelSelector=",
        "&fieldSelector=metadata.name%3D",
        "&dryRun=All",
        "&propagationPolicy=",
        "%2f",
        "%00",
        "%ff",
        "..",
        "application/json",
        "application/merge-patch+json",
        "application/json-patch+json",
        "application/apply-patch+yaml",
        "?fieldManager=a",
        "&force=1",
        "\"managedFields\":[",
        "\"fieldsV1\":{\"f:spec\":{",
        "/why/platctrl.dev/v1/",
        "/audit?by=",
        "/metrics",
        "\"metadata\":{",
        "\"spec\":null",
        "\"replicas\":",
        "/artifacts/sha256/",
    ],
};

/// Frames of an answer that are read: a watch has no end.
const FRAMES: usize = 64;

fn http(input: &[u8]) {
    thread_local! {
        static RUNTIME: RefCell<Option<tokio::runtime::Runtime>> = const { RefCell::new(None) };
    }
    let mut parts = input.splitn(3, |byte| *byte == b'\n');
    let head = parts.next().unwrap_or_default();
    let media = parts.next().unwrap_or_default();
    let body = parts.next().unwrap_or_default();
    let Some(space) = head.iter().position(|byte| *byte == b' ') else {
        return;
    };
    let Ok(method) = Method::from_bytes(&head[..space]) else {
        return;
    };
    let mut request = Request::builder()
        .method(method)
        .uri(&head[space + 1..])
        .header(header::CONTENT_LENGTH, body.len());
    if !media.is_empty() {
        request = request.header(header::CONTENT_TYPE, media);
    }
    let Ok(request) = request.body(Bytes::copy_from_slice(body)) else {
        return;
    };
    RUNTIME.with_borrow_mut(|runtime| {
        let runtime = runtime.get_or_insert_with(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime")
        });
        runtime.block_on(serve(request));
    });
}

async fn serve(request: Request<Bytes>) {
    let environment = Environment::system();
    let store = MemoryStore::new(environment.clone());
    identity::initialise(&store, &environment)
        .await
        .expect("an empty store takes it");
    let client = Client::new(Arc::new(store.clone()), environment, "fuzz");
    for object in [
        json!({"apiVersion": "platctrl.dev/v1", "kind": "Node", "metadata": {"name": "web1", "labels": {"az": "east"}}, "spec": {}}),
        json!({"apiVersion": "platctrl.dev/v1", "kind": "ReplicationController", "metadata": {"name": "hello", "namespace": "default"},
            "spec": {"replicas": 2, "nodeSelector": "*", "template": {"spec": {"launchables": {"web": {"type": "hoist", "location": "file:/a.tar.gz"}}}}}}),
    ] {
        let raw: RawObject = serde_json::from_value(object).expect("a constant that is an object");
        let known = kinds()
            .of_manifest(&raw.api_version, &raw.kind)
            .expect("a kind of ours");
        let definition = &known.definition;
        let key = ObjectKey::of_scope(
            &definition.group_plural(),
            definition.scope,
            None,
            raw.metadata.namespace.as_deref(),
            &raw.metadata.name,
        );
        let key = key.expect("a constant that is a valid name");
        let mut batch = platctrl_framework::client::Batch::new();
        batch
            .create(client.environment(), &key, raw)
            .expect("a small object");
        let transaction = batch.into_transaction();
        client
            .store()
            .commit(transaction)
            .await
            .expect("an empty store takes it");
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = ServerConfig::new(Arc::new(store.clone()), kinds().clone(), dir.path());
    config.node = Some("web1".to_owned());
    let server = Server::new(config);
    let feeding = tokio::spawn({
        let server = server.clone();
        async move { server.feed().await }
    });
    let asked = format!("{request:?}");
    idle().await;
    let response = server.answer(request).await;
    let code = response.status();
    assert!(
        !code.is_server_error() || code == http::StatusCode::NOT_IMPLEMENTED,
        "{code} to {asked}"
    );
    let json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|media| media == "application/json");
    let mut body = response.into_body();
    let mut answer = Vec::new();
    let mut whole = false;
    for _ in 0..FRAMES {
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            () = idle() => break,
        };
        match frame {
            None => {
                whole = true;
                break;
            }
            Some(frame) => {
                let data = frame.expect("the answer does not break off").into_data();
                answer.extend_from_slice(&data.unwrap_or_default());
            }
        }
    }
    if json && whole && !answer.is_empty() {
        let value: Result<serde_json::Value, _> = serde_json::from_slice(&answer);
        assert!(
            value.is_ok(),
            "{code}, no JSON: {}",
            String::from_utf8_lossy(&answer)
        );
    }
    drop(body);
    feeding.abort();
    sound(&store);
}

/// Completes when nothing has happened for a while.
async fn idle() {
    for _ in 0..32 {
        tokio::task::yield_now().await;
    }
}

/// Every record of an object is one that can be read and is allowed.
fn sound(store: &MemoryStore) {
    let kinds = kinds();
    for record in store.dump() {
        if !record.key.as_str().starts_with("o/") || record.key.as_str().ends_with("/.anchor") {
            continue;
        }
        let parsed = ObjectKey::parse(&record.key, |group, plural| kinds.scope(group, plural));
        let Some((tree, key, _)) = parsed else {
            continue;
        };
        match tree {
            Tree::Intent => {
                let intent = Versioned::<Intent>::from_record(&key, &record)
                    .unwrap_or_else(|error| panic!("{error}"));
                let mut joined = platctrl_framework::model::Joined::empty(key.clone());
                joined.intent = Some(intent);
                let shown = joined.object().expect("it has an intent").to_api();
                let known = kinds.get(key.kind()).expect("its scope is known");
                let errors = schema::check_object(&known.definition, &shown);
                assert!(errors.is_empty(), "{key}: {errors:?}\n{shown}");
            }
            Tree::Reality | Tree::Part => {
                Versioned::<Reality>::from_record(&key, &record)
                    .unwrap_or_else(|error| panic!("{error}"));
            }
            _ => {}
        }
    }
}
