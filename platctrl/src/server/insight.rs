//! What a process does, for programs and people: `/metrics`, `/statusz`, and `/why/…`, which says
//! of an object what the controllers of this process did about it and wait for.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use platctrl_framework::controller::RuntimeHandle;
use platctrl_framework::model::{Kinds, ObjectKey};
use platctrl_framework::observe::{Metrics, Standing, StatusTree};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::asker::Asker;
use super::auth::Origin;
use super::read::existing;
use super::socket::Peer;
use super::status::{Failure, Result, json_response};
use super::{App, connection};

/// Upper ends of how long requests took, in seconds.
const BUCKETS: [f64; 8] = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0];
/// Methods that are told apart.
const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];

/// Counts the requests of a server.
#[derive(Debug, Default)]
pub(super) struct Meter {
    state: Mutex<Counts>,
}

#[derive(Clone, Debug, Default)]
struct Counts {
    /// By method and code.
    requests: BTreeMap<(&'static str, u16), u64>,
    /// How many took at most so long, each for itself, and those that took longer.
    took: [u64; BUCKETS.len() + 1],
    seconds: f64,
}

impl Meter {
    /// A request was answered: its head, where the answer goes on.
    pub(super) fn answered(&self, method: &Method, code: StatusCode, took: Duration) {
        let known = METHODS.into_iter().find(|known| *known == method.as_str());
        let seconds = took.as_secs_f64();
        let bucket = BUCKETS.iter().position(|end| seconds <= *end);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (known.unwrap_or("other"), code.as_u16());
        *state.requests.entry(key).or_default() += 1;
        state.took[bucket.unwrap_or(BUCKETS.len())] += 1;
        state.seconds += seconds;
    }

    fn counts(&self) -> Counts {
        let state = self.state.lock();
        state.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What a server counts, in the OpenMetrics text format without its end.
fn text(counts: &Counts, gauges: &[(&str, &str, usize)]) -> String {
    let mut text = String::from(
        "# HELP platctrl_http_requests Requests that were answered.\n# TYPE platctrl_http_requests counter\n",
    );
    // A text takes whatever is written to it.
    for ((method, code), count) in &counts.requests {
        let _ = writeln!(
            text,
            "platctrl_http_requests_total{{method=\"{method}\",code=\"{code}\"}} {count}"
        );
    }
    text.push_str("# HELP platctrl_http_seconds How long answers took to begin.\n# TYPE platctrl_http_seconds histogram\n");
    let mut sum = 0;
    for (end, count) in BUCKETS.iter().zip(counts.took) {
        sum += count;
        let _ = writeln!(text, "platctrl_http_seconds_bucket{{le=\"{end:?}\"}} {sum}");
    }
    sum += counts.took[BUCKETS.len()];
    let _ = writeln!(
        text,
        "platctrl_http_seconds_bucket{{le=\"+Inf\"}} {sum}\nplatctrl_http_seconds_count {sum}\nplatctrl_http_seconds_sum {}",
        counts.seconds
    );
    for (name, help, value) in gauges {
        let _ = writeln!(
            text,
            "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}"
        );
    }
    text
}

fn metrics_of(runtimes: &[RuntimeHandle]) -> Metrics {
    let all = runtimes.iter();
    all.fold(Metrics::new(), Metrics::runtime)
}

fn metrics_response(text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    let media = HeaderValue::from_static(Metrics::CONTENT_TYPE);
    response.headers_mut().insert(header::CONTENT_TYPE, media);
    response
}

/// A tree as text, or as JSON for who asks for it.
fn tree_response(tree: &StatusTree, headers: &HeaderMap) -> Result<Response> {
    let accepts = headers.get(header::ACCEPT);
    let json = accepts.is_some_and(|it| it.to_str().is_ok_and(|it| it.contains("json")));
    if json {
        let value =
            serde_json::to_value(tree).map_err(|error| Failure::internal(error.to_string()))?;
        return Ok(json_response(StatusCode::OK, &value));
    }
    Ok(Response::new(Body::from(tree.to_string())))
}

fn with_runtimes(tree: StatusTree, runtimes: &[RuntimeHandle]) -> StatusTree {
    let parts = runtimes.iter().map(|runtime| match runtime.status() {
        Some(status) => status.tree(),
        None => StatusTree::new("runtime").but(Standing::Waiting, "it does not run"),
    });
    parts.fold(tree, StatusTree::part)
}

/// `GET /metrics`.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let config = &app.config;
    let (objects, changes) = app.hub.size();
    let gauges = [
        (
            "platctrl_connections",
            "Connections that are open.",
            config.max_connections - app.room.available_permits(),
        ),
        (
            "platctrl_watches",
            "Watches that go on.",
            config.max_watches - app.watches.available_permits(),
        ),
        (
            "platctrl_follows",
            "Logs that are followed.",
            config.max_follows - app.follows.available_permits(),
        ),
        (
            "platctrl_mirrored_objects",
            "Objects that the server mirrors for watches.",
            objects,
        ),
        (
            "platctrl_kept_changes",
            "Changes that are kept for watches.",
            changes,
        ),
        (
            "platctrl_kinds",
            "Kinds that are served.",
            app.served().iter().count(),
        ),
    ];
    let mut page = text(&app.meter.counts(), &gauges);
    page.push_str(&metrics_of(&config.runtimes).text());
    metrics_response(page)
}

/// `GET /statusz`.
pub(super) async fn statusz(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response> {
    let config = &app.config;
    let (objects, _) = app.hub.size();
    let mut hub = StatusTree::new("mirror for watches").with("objects", objects);
    hub = match app.hub.revision() {
        Some(revision) => hub.with("revision", revision.to_string()),
        None => hub.but(Standing::Waiting, "the store was not read yet"),
    };
    let watches = config.max_watches - app.watches.available_permits();
    let connections = config.max_connections - app.room.available_permits();
    let tree = StatusTree::new("server")
        .with("version", config.version.as_str())
        .with("connections", connections)
        .with("watches", watches)
        .with("kinds", app.served().iter().count())
        .part(hub);
    tree_response(&with_runtimes(tree, &config.runtimes), &headers)
}

/// What the controllers of these runtimes did about an object and wait for.
fn explained(runtimes: &[RuntimeHandle], key: &ObjectKey) -> Result<Response> {
    let told = runtimes.iter().filter_map(|runtime| runtime.explain(key));
    let told: Result<Vec<Value>, _> = told.map(serde_json::to_value).collect();
    let told = told.map_err(|error| Failure::internal(error.to_string()))?;
    Ok(json_response(
        StatusCode::OK,
        &json!({ "explanations": told }),
    ))
}

/// `GET /why/<group>/<version>/…`, with the rest of an object's path.
pub(super) async fn why(
    State(app): State<Arc<App>>,
    axum::Extension(asker): axum::Extension<Arc<Asker>>,
    Path((group, version, rest)): Path<(String, String, String)>,
) -> Result<Response> {
    let served = app.served();
    let target = served.target(&group, &version, &rest)?;
    asker.read(target.kind, target.namespace.as_deref())?;
    let client = platctrl_framework::client::Client::new(
        app.config.store.clone(),
        app.config.environment.clone(),
        asker.name.as_str(),
    );
    let joined = existing(&client, &target).await?;
    explained(&app.config.runtimes, &joined.key)
}

/// What a process of controllers answers on its own socket, to whoever may use the socket.
#[derive(Clone)]
struct Alone {
    runtime: RuntimeHandle,
    kinds: Kinds,
}

/// The router of a process that has controllers and no server.
fn alone(runtime: RuntimeHandle, kinds: Kinds) -> Router {
    let state = Alone { runtime, kinds };
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(alone_ready))
        .route("/metrics", get(alone_metrics))
        .route("/statusz", get(alone_statusz))
        .route("/why/{*key}", get(alone_why))
        .fallback(|| async {
            Failure::not_found(
                "there is nothing at this path; here are /healthz, /readyz, /metrics, /statusz and /why/KIND/…",
            )
        })
        .with_state(state)
}

/// Tells on a socket what the controllers of a process do that has no server, until `shutdown`
/// completes: `/healthz`, `/readyz`, `/metrics`, `/statusz`, `/why/…`.
pub(crate) async fn serve_insight(
    listener: UnixListener,
    runtime: RuntimeHandle,
    kinds: Kinds,
    shutdown: impl Future<Output = ()>,
) -> std::io::Result<()> {
    let router = alone(runtime, kinds);
    let stopping = CancellationToken::new();
    let _guard = stopping.clone().drop_guard();
    let room = Arc::new(Semaphore::new(64));
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => return Ok(()),
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (Ok(peer), Ok(permit)) = (Peer::of(&stream), room.clone().try_acquire_owned()) else {
            continue;
        };
        if !peer.is_allowed() {
            continue;
        }
        let (router, stopping) = (router.clone(), stopping.clone());
        tokio::spawn(async move {
            connection(stream, Origin::Local(peer), router, stopping).await;
            drop(permit);
        });
    }
}

/// Its view is complete.
async fn alone_ready(State(alone): State<Alone>) -> Result<&'static str> {
    match alone.runtime.view() {
        Some(_) => Ok("ok"),
        None => Err(Failure::unavailable("the store was not read yet")),
    }
}

async fn alone_metrics(State(alone): State<Alone>) -> Response {
    metrics_response(metrics_of(std::slice::from_ref(&alone.runtime)).text())
}

async fn alone_statusz(State(alone): State<Alone>, headers: HeaderMap) -> Result<Response> {
    let tree = StatusTree::new("controllers").with("version", env!("CARGO_PKG_VERSION"));
    tree_response(
        &with_runtimes(tree, std::slice::from_ref(&alone.runtime)),
        &headers,
    )
}

/// By the object's key: `/why/platctrl.dev/pods/web1/default/hello`.
async fn alone_why(State(alone): State<Alone>, Path(key): Path<String>) -> Result<Response> {
    let refuse = || Failure::bad_request("the path is /why/ and an object's key below o/intent/");
    let key =
        platctrl_framework::store::Key::new(format!("o/intent/{key}")).map_err(|_| refuse())?;
    let parsed = ObjectKey::parse(&key, |group, plural| alone.kinds.scope(group, plural));
    let (_, key, _) = parsed.ok_or_else(refuse)?;
    explained(std::slice::from_ref(&alone.runtime), &key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_method_and_code_and_foreign_methods_are_one() {
        let meter = Meter::default();
        let odd = Method::from_bytes(b"X\x21Y").unwrap();
        for (method, code, took) in [
            (Method::GET, 200, 3),
            (Method::GET, 200, 100_000),
            (Method::PUT, 409, 1),
            (odd, 405, 1),
        ] {
            let code = StatusCode::from_u16(code).unwrap();
            meter.answered(&method, code, Duration::from_millis(took));
        }
        let page = text(&meter.counts(), &[("g", "A gauge.", 7)]);
        for line in [
            "platctrl_http_requests_total{method=\"GET\",code=\"200\"} 2",
            "platctrl_http_requests_total{method=\"other\",code=\"405\"} 1",
            "platctrl_http_seconds_bucket{le=\"0.005\"} 3",
            "platctrl_http_seconds_bucket{le=\"60.0\"} 3",
            "platctrl_http_seconds_bucket{le=\"+Inf\"} 4",
            "platctrl_http_seconds_count 4",
            "g 7",
        ] {
            assert!(page.lines().any(|it| it == line), "{line} is not in {page}");
        }
    }
}
