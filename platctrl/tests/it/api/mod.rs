//! The API over a real unix socket, on a store in memory.

mod artifacts;
mod events;
mod failsafe;
mod generated;
mod invalid;
mod kube_client;
mod limits;
mod logs;
mod names;
mod objects;
mod ownership;
mod pages;
mod parts;
mod placing;
mod registered;
mod schemathesis;
mod versions;
mod watches;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use platctrl::server::{SOCKET, Server, ServerConfig, bind, connect};
use platctrl_framework::environment::Environment;
use platctrl_framework::model::{Kinds, identity};
use platctrl_framework::store::MemoryStore;
use platctrl_kinds::{DaemonSet, Node, Pod, ReplicationController};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The path of the test's kinds.
const ROOT: &str = "/apis/platctrl.dev/v1";
/// That of replication controllers in the default namespace.
const CONTROLLERS: &str = "/apis/platctrl.dev/v1/namespaces/default/replicationcontrollers";
/// That of pods in the default namespace.
const PODS: &str = "/apis/platctrl.dev/v1/namespaces/default/pods";

/// A server on a socket of its own.
struct Api {
    store: MemoryStore,
    dir: tempfile::TempDir,
    _stop: DropGuard,
}

/// An answer that was read to its end.
#[derive(Debug)]
struct Answer {
    code: StatusCode,
    headers: HeaderMap,
    bytes: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// Asserts success and returns the object.
    #[track_caller]
    fn done(&self) -> Value {
        assert!(self.code.is_success(), "{}: {}", self.code, self.text());
        self.json()
    }

    /// Asserts a failure of this kind, told as a `Status`, and returns its message.
    #[track_caller]
    fn fails(&self, code: u16, reason: &str) -> String {
        let status = self.json();
        assert_eq!(self.code.as_u16(), code, "{status}");
        assert_eq!(
            (
                &status["kind"],
                &status["status"],
                &status["code"],
                &status["reason"]
            ),
            (
                &json!("Status"),
                &json!("Failure"),
                &json!(code),
                &json!(reason)
            ),
            "{status}"
        );
        status["message"].as_str().unwrap().to_owned()
    }

    /// The fields that a failure names.
    fn fields(&self) -> Vec<String> {
        let status = self.json();
        let causes = status["details"]["causes"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let field = |cause: &Value| cause["field"].as_str().unwrap().to_owned();
        causes.iter().map(field).collect()
    }
}

impl Api {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut ServerConfig)) -> Self {
        let environment = Environment::system();
        let store = MemoryStore::new(environment.clone());
        identity::initialise(&store, &environment).await.unwrap();
        Self::on(store, change).await
    }

    async fn on(store: MemoryStore, change: impl FnOnce(&mut ServerConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kinds = Kinds::new()
            .with::<Node>()
            .with::<Pod>()
            .with::<ReplicationController>()
            .with::<DaemonSet>();
        let mut config = ServerConfig::new(Arc::new(store.clone()), kinds, dir.path());
        config.node = Some("web1".to_owned());
        config.admission = true;
        change(&mut config);
        let listener = bind(&dir.path().join(SOCKET)).unwrap();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let server = Server::new(config);
        tokio::spawn(async move { server.serve(listener, stopped.cancelled()).await });
        Self {
            store,
            dir,
            _stop: stop.drop_guard(),
        }
    }

    async fn connection(&self) -> SendRequest<Full<Bytes>> {
        let stream = connect(&self.dir.path().join(SOCKET)).unwrap();
        stream.set_nonblocking(true).unwrap();
        let stream = UnixStream::from_std(stream).unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let mut connection = self.connection().await;
        let answer = connection.send_request(request).await.unwrap();
        // The answer's body holds what it needs of the connection.
        answer
    }

    async fn ask(&self, method: Method, path: &str, kind: &str, body: impl Into<Bytes>) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "platctrl")
            .header("content-type", kind)
            .body(Full::new(body.into()))
            .unwrap();
        let answer = self.send(request).await;
        let (head, body) = answer.into_parts();
        Answer {
            code: head.status,
            headers: head.headers,
            bytes: body.collect().await.unwrap().to_bytes(),
        }
    }

    async fn json(&self, method: Method, path: &str, body: &Value) -> Answer {
        self.ask(method, path, "application/json", body.to_string())
            .await
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, "", "").await
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.json(Method::POST, path, body).await
    }

    async fn put(&self, path: &str, body: &Value) -> Answer {
        self.json(Method::PUT, path, body).await
    }

    async fn merge(&self, path: &str, body: &Value) -> Answer {
        self.ask(
            Method::PATCH,
            path,
            "application/merge-patch+json",
            body.to_string(),
        )
        .await
    }

    async fn apply(&self, path: &str, body: &Value) -> Answer {
        self.ask(
            Method::PATCH,
            path,
            "application/vnd.platctrl.apply+json",
            body.to_string(),
        )
        .await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.ask(Method::DELETE, path, "", "").await
    }

    /// Begins to read an answer line by line.
    async fn stream(&self, path: &str) -> Lines {
        let request = Request::get(path)
            .header("host", "platctrl")
            .body(Full::default())
            .unwrap();
        let mut connection = self.connection().await;
        let answer = connection.send_request(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        Lines {
            body: answer.into_body(),
            buffer: Vec::new(),
            _connection: connection,
        }
    }
}

/// An answer that goes on.
struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
    _connection: SendRequest<Full<Bytes>>,
}

impl Lines {
    /// The next line; None at the end.
    async fn line(&mut self) -> Option<String> {
        let read = async {
            loop {
                if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = self.buffer.drain(..=end).collect();
                    return Some(String::from_utf8(line).unwrap().trim_end().to_owned());
                }
                match self.body.frame().await {
                    Some(Ok(frame)) => self.buffer.extend_from_slice(frame.data_ref().unwrap()),
                    Some(Err(_)) | None => return None,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), read)
            .await
            .expect("the next line comes")
    }

    /// The next event of a watch: its type, and the name, resource version and object.
    async fn event(&mut self) -> (String, String, Value) {
        let line = self.line().await.expect("the watch goes on");
        let mut event: Value = serde_json::from_str(&line).unwrap();
        let object = event["object"].take();
        let kind = event["type"].as_str().unwrap().to_owned();
        let name = object["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        (kind, name, object)
    }

    /// The type and name of the next event.
    async fn next(&mut self) -> (String, String) {
        let (kind, name, _) = self.event().await;
        (kind, name)
    }
}

fn told(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

/// A valid replication controller.
fn controller(name: &str) -> Value {
    json!({
        "apiVersion": "platctrl.dev/v1",
        "kind": "ReplicationController",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "replicas": 2,
            "nodeSelector": "*",
            "template": {"spec": pod_spec(None)},
        },
    })
}

fn pod_spec(node: Option<&str>) -> Value {
    let location = format!("artifact:sha256:{}", "ab".repeat(32));
    let mut spec = json!({"launchables": {"web": {"location": location}}});
    if let Some(node) = node {
        spec["nodeName"] = node.into();
    }
    spec
}

/// A valid pod.
fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "platctrl.dev/v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": pod_spec(Some(node)),
    })
}

fn text<'v>(object: &'v Value, pointer: &str) -> &'v str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}
