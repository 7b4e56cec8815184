//! The agent's own socket, for people and programs on its machine: how it fares, its metrics, and
//! what somebody there wants of a pod. Agents never listen on the network.

use std::io;
use std::path::{Path, PathBuf};

use axum::Router;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{Path as Segments, Query, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use http::{StatusCode, header};
use platctrl_agent::{AgentHandle, Control, PodName};
use serde::Deserialize;
use serde_json::json;
use tokio::net::UnixListener;

use crate::server::{self, BindError};

/// The socket's name in the data directory.
const SOCKET: &str = "agent.sock";

/// Where the agent of a data directory answers.
pub(crate) fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join(SOCKET)
}

/// Opens it, for the owner alone.
pub(crate) fn bind(data_dir: &Path) -> Result<UnixListener, BindError> {
    server::bind(&socket(data_dir))
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
struct Asker(Option<u32>);

impl Connected<IncomingStream<'_, UnixListener>> for Asker {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(stream.io().peer_cred().ok().map(|peer| peer.uid()))
    }
}

impl Asker {
    /// Root, and whoever the agent runs as.
    fn is_allowed(self) -> bool {
        let own = rustix::process::geteuid().as_raw();
        self.0.is_some_and(|uid| uid == 0 || uid == own)
    }
}

/// Answers until `shutdown`.
pub(crate) async fn serve(
    listener: UnixListener,
    agent: AgentHandle,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/pods/{namespace}/{name}/{verb}", post(control))
        .layer(middleware::from_fn(admit))
        .with_state(agent)
        .into_make_service_with_connect_info::<Asker>();
    axum::serve(listener, router)
        .with_graceful_shutdown(shutdown)
        .await
}

async fn admit(ConnectInfo(asker): ConnectInfo<Asker>, request: Request, next: Next) -> Response {
    if asker.is_allowed() {
        return next.run(request).await;
    }
    let why = "this socket is for root and the user that the agent runs as\n";
    (StatusCode::FORBIDDEN, why).into_response()
}

async fn ready(State(agent): State<AgentHandle>) -> Response {
    match agent.waits_for() {
        None => "ok\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn metrics(State(agent): State<AgentHandle>) -> Response {
    let media = [(header::CONTENT_TYPE, AgentHandle::METRICS_TYPE)];
    (media, agent.metrics()).into_response()
}

#[derive(Debug, Default, Deserialize)]
struct Options {
    /// Without a grant.
    #[serde(default)]
    now: bool,
}

async fn control(
    State(agent): State<AgentHandle>,
    ConnectInfo(Asker(uid)): ConnectInfo<Asker>,
    Segments((namespace, name, verb)): Segments<(String, String, String)>,
    Query(Options { now }): Query<Options>,
) -> Response {
    let by = uid.map_or_else(|| "somebody".to_owned(), |uid| format!("user {uid}"));
    let word = match verb.as_str() {
        "restart" => Control::Restart { by, now },
        "stop" => Control::Stop { by, now },
        "start" => Control::Start { by },
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    let pod = match PodName::new(namespace, name) {
        Ok(pod) => pod,
        Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    };
    if agent.control(&pod, word) {
        return axum::Json(json!({ "pod": pod.to_string() })).into_response();
    }
    let why = format!("pod {pod} is not on this node");
    (StatusCode::NOT_FOUND, why).into_response()
}
