//! The server's end of nodes' streams: which nodes can be asked something, and asking them.
//!
//! A node calls; once it is sure who calls, the connection is turned round and the node serves
//! HTTP/2 on it. A node that has one connection to each of a server's addresses has several: the
//! newest that works is used. A stream goes on for as long as its node may have it, which is looked
//! at again whenever the store says something new of the node, and now and then.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use futures::StreamExt as _;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use platctrl_framework::client::Client;
use platctrl_framework::model::{Resource as _, Tree, check_name, identity};
use platctrl_framework::store::{Prefix, StoreError, WatchEvent};
use platctrl_kinds::Node;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::App;
use super::auth::Origin;
use super::node::link::{ALIVE, INSTANCE, PROTOCOL, WINDOW, WINDOWS};
use super::node::{self, MOST};
use super::status::{Failure, Result};
use crate::access::nodes::{self, NodeKeyError, Refusal};
use crate::tls::NodeCertificate;

/// Connections of one node: to each address of this server one, and one that is not known to be
/// broken yet.
const OF_ONE: usize = 4;
/// How long a node may take to begin its answer.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a new connection may take to be turned round.
const TURN: Duration = Duration::from_secs(10);
/// The longest time between two looks at whether a node may have its stream.
const AGAIN: Duration = Duration::from_secs(300);
/// How long to wait after a failure.
const PAUSE: Duration = Duration::from_secs(5);
/// Headers of a node's answer that are passed on.
const PASSED: [header::HeaderName; 3] =
    [header::CONTENT_TYPE, header::WARNING, header::RETRY_AFTER];

/// Who holds a stream.
#[derive(Clone, Debug)]
struct Holder {
    node: String,
    instance: String,
    /// None on this machine.
    certificate: Option<NodeCertificate>,
}

impl Holder {
    async fn may_hold(&self, app: &App) -> Result<Result<(), Refusal>, NodeKeyError> {
        let config = &app.config;
        let client = Client::new(config.store.clone(), config.environment.clone(), "server");
        nodes::may_hold(
            &client,
            &self.node,
            self.certificate.as_ref(),
            &self.instance,
        )
        .await
    }
}

/// One stream.
struct Held {
    number: u64,
    holder: Holder,
    requests: SendRequest<Body>,
    /// Ends it when it goes.
    _end: DropGuard,
}

/// The streams that nodes keep to this server.
#[derive(Default)]
pub(super) struct Streams {
    /// Of each node the newest last.
    held: Mutex<HashMap<String, Vec<Held>>>,
    /// How much is asked of each node.
    rooms: Mutex<HashMap<String, Arc<Semaphore>>>,
    count: AtomicU64,
}

/// What is to be kept for as long as something is asked.
pub(super) type Room = OwnedSemaphorePermit;

impl Streams {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<Held>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, held: Held) {
        let mut all = self.lock();
        let of_node = all.entry(held.holder.node.clone()).or_default();
        of_node.push(held);
        if of_node.len() > OF_ONE {
            of_node.remove(0);
        }
    }

    fn remove(&self, node: &str, number: u64) {
        let mut all = self.lock();
        if let Some(of_node) = all.get_mut(node) {
            of_node.retain(|held| held.number != number);
            if of_node.is_empty() {
                all.remove(node);
                let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
                rooms.remove(node);
            }
        }
    }

    /// The newest stream of a node that works, as far as is known.
    fn newest(&self, node: &str) -> Option<(u64, SendRequest<Body>)> {
        let all = self.lock();
        let mut of_node = all.get(node)?.iter().rev();
        let held = of_node.find(|held| !held.requests.is_closed())?;
        Some((held.number, held.requests.clone()))
    }

    fn holders(&self, of: Option<&str>) -> Vec<(u64, Holder)> {
        let all = self.lock();
        let wanted = all
            .iter()
            .filter(|(node, _)| of.is_none_or(|it| it == node.as_str()));
        let held = wanted.flat_map(|(_, held)| held);
        held.map(|held| (held.number, held.holder.clone()))
            .collect()
    }

    fn room(&self, node: &str) -> Result<Room> {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let room = rooms
            .entry(node.to_owned())
            .or_insert_with(|| Arc::new(Semaphore::new(MOST)));
        Arc::clone(room).try_acquire_owned().map_err(|_| {
            Failure::too_many(format!(
                "{MOST} things are asked of node {node} already: end some of them"
            ))
        })
    }
}

/// Asks a node: the one of this process, or one that has a stream. What is asked must have a body
/// that is nothing, or is there once. The room is to be kept for as long as the answer goes on.
pub(super) async fn ask(
    app: &App,
    node: &str,
    request: http::Request<Body>,
) -> Result<(http::Response<Body>, Option<Room>)> {
    if let Some(here) = &app.here
        && app.config.node.as_deref() == Some(node)
    {
        return Ok((here.answer(request).await, None));
    }
    let none = || {
        Failure::unavailable(format!(
            "node {node} has no stream to this server: see that its agent runs there, with --server and the certificate that `platctrl node admit {node} --output DIR` gives"
        ))
    };
    let mut requests = loop {
        let (number, mut requests) = app.streams.newest(node).ok_or_else(none)?;
        match tokio::time::timeout(TURN, requests.ready()).await {
            Ok(Ok(())) => break requests,
            // Another one may work.
            _ => app.streams.remove(node, number),
        }
    };
    let room = app.streams.room(node)?;
    let broken =
        |why: String| Failure::unavailable(format!("the stream of node {node} broke off: {why}"));
    let asked = tokio::time::timeout(ANSWER, requests.send_request(request)).await;
    let answer = asked
        .map_err(|_| broken(format!("no answer within {ANSWER:?}")))?
        .map_err(|error| broken(error.to_string()))?;
    let (head, body) = answer.into_parts();
    let mut response = http::Response::new(Body::new(body));
    *response.status_mut() = head.status;
    for name in PASSED {
        if let Some(value) = head.headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    Ok((response, Some(room)))
}

/// `GET /stream/nodes/<name>`, by the node's agent: from here on the server asks.
pub(super) async fn accept(
    State(app): State<Arc<App>>,
    Extension(origin): Extension<Origin>,
    Path(name): Path<String>,
    headers: HeaderMap,
    upgrade: Option<Extension<OnUpgrade>>,
) -> Result<Response> {
    let accepted = admit(&app, &origin, &name, &headers).await;
    let holder = accepted.inspect_err(|failure| {
        let from = match &origin {
            Origin::Network { address, .. } => address.to_string(),
            Origin::Local(_) => "local".to_owned(),
        };
        let node = super::request::shown(&name);
        tracing::warn!(node, from, why = %failure.to_status()["message"], "a node got no stream");
    })?;
    let wanted = headers.get(header::UPGRADE);
    let (true, Some(Extension(upgrade))) = (wanted.is_some_and(|it| it == PROTOCOL), upgrade)
    else {
        return Err(Failure::bad_request(format!(
            "this is for agents: they ask with `Upgrade: {PROTOCOL}`"
        )));
    };
    tokio::spawn(hold(Arc::clone(&app), holder, upgrade));
    Ok(turned(PROTOCOL))
}

/// The answer after which a connection speaks another protocol.
pub(super) fn turned(protocol: &'static str) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(protocol));
    response
}

/// Makes sure who calls.
async fn admit(app: &App, origin: &Origin, name: &str, headers: &HeaderMap) -> Result<Holder> {
    check_name("node name", name).map_err(|error| Failure::bad_request(error.to_string()))?;
    let certificate = match origin {
        // Root of this machine, and whoever the server runs as: the store is theirs, too.
        Origin::Local(peer) if peer.is_allowed() => None,
        Origin::Local(peer) => {
            return Err(Failure::forbidden(format!(
                "this socket serves root and the user that the server runs as, not {}",
                peer.name
            )));
        }
        Origin::Network { node, address, .. } => {
            let shown = node.clone().ok_or_else(|| {
                Failure::unauthorized(
                    "show the certificate that `platctrl node admit --output DIR` gave this node",
                )
            });
            if shown.is_err() {
                let now = app.config.environment.monotonic();
                let slower = |wait| {
                    Failure::too_many(format!("{} tries too often", address.ip())).after(wait)
                };
                let taken = app.refusals.take(&address.ip().to_string(), now);
                taken.map_err(slower)?;
            }
            Some(shown?)
        }
    };
    let instance = headers.get(INSTANCE).and_then(|it| it.to_str().ok());
    let instance = instance.filter(|it| !it.is_empty() && it.len() <= 256);
    let instance = instance.ok_or_else(|| {
        Failure::bad_request(format!("`{INSTANCE}` has to say which agent it is"))
    })?;
    let holder = Holder {
        node: name.to_owned(),
        instance: instance.to_owned(),
        certificate,
    };
    match holder.may_hold(app).await {
        Ok(Ok(())) => Ok(holder),
        Ok(Err(why @ Refusal::Foreign(_))) => Err(Failure::forbidden(why.to_string())),
        Ok(Err(why @ Refusal::NotNow(_))) => Err(Failure::conflict(why.to_string())),
        Err(NodeKeyError::Store(error)) => Err(error.into()),
        Err(NodeKeyError::Client(error)) => Err(error.into()),
        Err(error) => Err(Failure::unavailable(error.to_string())),
    }
}

/// Turns a connection round and keeps it, until it or the server ends, or its node may have it no
/// more.
async fn hold(app: Arc<App>, holder: Holder, upgrade: OnUpgrade) {
    let turned = async {
        let upgraded = tokio::time::timeout(TURN, upgrade).await.ok()?.ok()?;
        let shaken = tokio::time::timeout(TURN, handshake(upgraded)).await.ok()?;
        shaken
            .inspect_err(
                |error| tracing::debug!(node = holder.node, %error, "no stream came about"),
            )
            .ok()
    };
    let Some((requests, connection)) = turned.await else {
        return;
    };
    let end = CancellationToken::new();
    let number = app.streams.count.fetch_add(1, Ordering::Relaxed);
    let node = holder.node.clone();
    tracing::info!(node, "a node has a stream");
    app.streams.add(Held {
        number,
        holder,
        requests,
        _end: end.clone().drop_guard(),
    });
    // What changed while the stream came about was not looked at yet.
    let looked = async {
        look(&app, Some(&node)).await;
        std::future::pending::<()>().await;
    };
    let why = tokio::select! {
        () = looked => return,
        ended = connection => match ended {
            Ok(()) => "its agent ended it".to_owned(),
            Err(error) => error.to_string(),
        },
        () = end.cancelled() => "it may have it no more, or has newer ones".to_owned(),
        () = app.stopping.cancelled() => "this server stops".to_owned(),
    };
    app.streams.remove(&node, number);
    tracing::info!(node, why, "a node's stream ended");
}

type Turned = http2::Connection<Upgraded, Body, TokioExecutor>;

async fn handshake(stream: Upgraded) -> hyper::Result<(SendRequest<Body>, Turned)> {
    http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(ALIVE.0)
        .keep_alive_timeout(ALIVE.1)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOWS)
        .handshake(stream)
        .await
}

/// Ends the streams of nodes that may have them no more, for as long as this is polled.
pub(super) async fn watch(app: &Arc<App>) {
    tokio::join!(
        follow(app, Node::group_plural().prefix(Tree::Intent)),
        follow(
            app,
            Prefix::new(nodes::PREFIX).expect("a literal prefix is valid")
        ),
    );
}

/// Looks at a node's streams whenever something below a prefix says something of it.
async fn follow(app: &Arc<App>, prefix: Prefix) {
    let environment = &app.config.environment;
    loop {
        if let Err(error) = changes(app, &prefix).await {
            tracing::debug!(%error, "what is said of nodes is not heard");
        }
        environment.sleep(environment.jitter(PAUSE)).await;
    }
}

async fn changes(app: &App, prefix: &Prefix) -> Result<(), StoreError> {
    let store = &app.config.store;
    let environment = &app.config.environment;
    // Before the look, so that nothing in between is missed.
    let revision = store.get(&[identity::anchor_key()]).await?.revision;
    look(app, None).await;
    let mut events = store.watch(prefix.clone(), revision);
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            // A watch may have bugs.
            () = environment.sleep(environment.jitter(AGAIN)) => return Ok(()),
        };
        let Some(event) = event else {
            return Err(StoreError::unavailable("the watch ended"));
        };
        match event? {
            WatchEvent::Progress(_) => {}
            WatchEvent::Changes { changes, .. } => {
                for change in changes {
                    let name = change.key().as_str().rsplit('/').next();
                    look(app, name).await;
                }
            }
            _ => return Ok(()),
        }
    }
}

/// Ends those streams, of one node or of all, that may not be. What the store does not say ends
/// nothing.
async fn look(app: &App, of: Option<&str>) {
    for (number, holder) in app.streams.holders(of) {
        match holder.may_hold(app).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => {
                tracing::warn!(node = holder.node, %why, "a node's stream is ended");
                app.streams.remove(&holder.node, number);
            }
            Err(error) => {
                tracing::debug!(node = holder.node, %error, "whether it may have its stream is not known");
            }
        }
    }
}

/// Keeps something until an answer has been read, or is given up.
pub(super) fn keeping(response: http::Response<Body>, kept: impl Send + 'static) -> Response {
    use http_body_util::BodyExt as _;
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _ = &kept;
            frame
        }))
    })
}

/// The node of this process.
pub(super) fn here(app: &super::ServerConfig, stopping: CancellationToken) -> Option<node::Node> {
    app.node.as_ref()?;
    Some(node::Node::new(
        &app.data_dir,
        app.store.clone(),
        app.environment.clone(),
        node::Commands::OfThoseWhoMay,
        stopping,
    ))
}
