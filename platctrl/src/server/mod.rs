//! The API server: objects over HTTP in Kubernetes' conventions, on the local unix socket and, where
//! asked for, over TLS.
//!
//! The server keeps nothing of its own: any number of them serve one store. What a kind is comes
//! from its definition, so that kinds of other people's programs are served like ours. A request
//! becomes a target, is checked whole, and ends in one answer or one `Status` that
//! names what is wrong and the way out.

mod apply;
mod artifacts;
mod asker;
mod audit;
mod auth;
mod claims;
mod delete;
mod discovery;
mod events;
mod failsafe;
mod hub;
mod insert;
mod insight;
mod list;
mod maintenance;
mod network;
pub(crate) mod node;
mod objects;
mod openapi;
mod overlay;
mod ownership;
pub(crate) mod reach;
mod read;
mod registry;
mod request;
mod scan;
mod selection;
mod socket;
mod status;
mod streams;
mod table;
mod target;
mod undelete;
mod validator;
mod version;
mod watch;
mod write;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::middleware;
use axum::response::Response;
use axum::routing::{any, get, post};
use axum::{Extension, Router};
use http::{HeaderMap, Method, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use platctrl_framework::client::Client;
use platctrl_framework::controller::RuntimeHandle;
use platctrl_framework::environment::Environment;
use platctrl_framework::model::{Kinds, Scope, identity};
use platctrl_framework::store::Store;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use artifacts::Artifacts;
use asker::Asker;
use auth::Origin;
use hub::Hub;
pub(crate) use insight::serve_insight;
pub use maintenance::Maintained;
pub(crate) use network::Network;
use request::Query;
use selection::Selection;
use socket::Peer;
pub use socket::{BindError, SOCKET, bind, connect};
use status::{Failure, Result, json_response, warn};
use table::Form;
use target::{Part, Served, Target};
pub use validator::{Change, Validator, Verdict};
use write::Writing;

use crate::access::{Audit, Bindings, Rates, Tokens};

/// How long a client may take to send the head of a request, and between two requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long requests may still take when the server stops.
const DRAIN: Duration = Duration::from_secs(5);
/// Bytes that a connection buffers.
const CONNECTION_BUFFER: usize = 64 * 1024;

/// What a [`Server`] needs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerConfig {
    /// Where objects are.
    pub store: Arc<dyn Store>,
    /// Clock and randomness.
    pub environment: Environment,
    /// The kinds that are served.
    pub kinds: Kinds,
    /// Where uploaded artifacts and the homes of this machine's pods are.
    pub data_dir: PathBuf,
    /// The store as something that can be saved and compacted, where this server has it open
    /// alone.
    pub maintained: Option<Arc<dyn Maintained>>,
    /// The node whose pods are on this machine, for their logs.
    pub node: Option<String>,
    /// The version that the server tells.
    pub version: String,
    /// Lets nodes be created over the API: for tests and for admission, no one else.
    pub admission: bool,
    /// Connections at once: 4,096 unless set.
    pub max_connections: usize,
    /// Watches at once: 2,048 unless set.
    pub max_watches: usize,
    /// Lists that are read at once: 64 unless set. Others wait a little for their turn.
    pub max_lists: usize,
    /// Logs that are followed at once: 64 unless set.
    pub max_follows: usize,
    /// Requests a second of one caller over the network: 200 unless set, and twice as many at once
    /// by whoever has asked nothing for a while.
    pub max_rate: u32,
    /// Checks of the embedder's own, beside those of the kinds.
    pub validators: Vec<Arc<dyn Validator>>,
    /// Runtimes of the same process, of which `/metrics`, `/statusz` and `/why` tell.
    pub runtimes: Vec<RuntimeHandle>,
}

impl ServerConfig {
    /// The defaults for this store, these kinds and this data directory.
    pub fn new(store: Arc<dyn Store>, kinds: Kinds, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            store,
            environment: Environment::system(),
            kinds,
            data_dir: data_dir.into(),
            maintained: None,
            node: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            admission: false,
            max_connections: 4096,
            max_watches: 2048,
            max_lists: 64,
            max_follows: 64,
            max_rate: 200,
            validators: Vec::new(),
            runtimes: Vec::new(),
        }
    }
}

/// What all requests share.
struct App {
    config: ServerConfig,
    /// What is served now: other programs register their kinds.
    served: RwLock<Arc<Served>>,
    artifacts: Artifacts,
    hub: Hub,
    tokens: Tokens,
    bindings: Bindings,
    audit: Arc<Audit>,
    /// How often each caller may ask.
    rates: Rates,
    /// How often whom nobody knows may try from one address.
    refusals: Rates,
    meter: insight::Meter,
    /// Room for connections.
    room: Arc<Semaphore>,
    watches: Arc<Semaphore>,
    lists: Arc<Semaphore>,
    follows: Arc<Semaphore>,
    commands: Arc<Semaphore>,
    /// The node of this process.
    here: Option<node::Node>,
    streams: streams::Streams,
    stopping: CancellationToken,
}

impl App {
    fn served(&self) -> Arc<Served> {
        let served = self.served.read();
        Arc::clone(&served.unwrap_or_else(PoisonError::into_inner))
    }
}

/// The API server.
#[derive(Clone)]
pub struct Server {
    app: Arc<App>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("config", &self.app.config)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// A server that does not listen yet.
    #[must_use]
    pub fn new(config: ServerConfig) -> Self {
        let stopping = CancellationToken::new();
        let app = App {
            served: RwLock::new(Arc::new(Served::new(config.kinds.clone()))),
            artifacts: Artifacts::new(&config.data_dir),
            hub: Hub::new(
                config.store.clone(),
                config.environment.clone(),
                config.kinds.clone(),
            ),
            tokens: Tokens::new(config.store.clone(), config.environment.clone()),
            bindings: Bindings::new(config.store.clone(), config.environment.clone()),
            audit: Arc::new(Audit::new(config.store.clone(), config.environment.clone())),
            rates: Rates::new(config.max_rate, config.max_rate.saturating_mul(2)),
            refusals: Rates::new(1, 20),
            meter: insight::Meter::default(),
            room: Arc::new(Semaphore::new(config.max_connections)),
            watches: Arc::new(Semaphore::new(config.max_watches)),
            lists: Arc::new(Semaphore::new(config.max_lists)),
            follows: Arc::new(Semaphore::new(config.max_follows)),
            commands: Arc::new(Semaphore::new(reach::COMMANDS)),
            here: streams::here(&config, stopping.clone()),
            streams: streams::Streams::default(),
            stopping,
            config,
        };
        Self { app: Arc::new(app) }
    }

    /// Answers one request of the server's own user without a connection, for fuzzing.
    #[doc(hidden)]
    pub async fn answer(&self, request: http::Request<bytes::Bytes>) -> Response {
        let router = router(self.app.clone()).layer(Extension(Origin::Local(Peer::own())));
        let service = TowerToHyperService::new(router);
        let answered = hyper::service::Service::call(&service, request.map(Body::from)).await;
        answered.unwrap_or_else(|never| match never {})
    }

    /// Reads the store for watches, which [`Server::serve`] does by itself.
    #[doc(hidden)]
    pub async fn feed(&self) {
        tokio::join!(
            self.app.hub.feed(),
            registry::follow(&self.app),
            streams::watch(&self.app)
        );
    }

    /// Serves until `shutdown` completes: then no connection is taken any more, watches and
    /// followed logs end, and other requests have five seconds. Serve once.
    ///
    /// # Errors
    /// When the socket cannot be used any more.
    pub async fn serve(
        &self,
        listener: UnixListener,
        shutdown: impl Future<Output = ()>,
    ) -> std::io::Result<()> {
        let router = router(self.app.clone());
        self.app.artifacts.clean();
        maintenance::clean(&self.app.config.data_dir);
        let stopping = self.app.stopping.clone();
        let _guard = stopping.clone().drop_guard();
        let (server, feeding) = (self.clone(), stopping.clone());
        tokio::spawn(async move {
            feeding.run_until_cancelled(server.feed()).await;
        });
        let connections = TaskTracker::new();
        tokio::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                accepted = self.next(listener.accept()) => accepted,
                () = &mut shutdown => break,
            };
            let Some(((stream, _), permit)) = accepted else {
                continue;
            };
            let (router, stopping) = (router.clone(), stopping.clone());
            connections.spawn(async move {
                match Peer::of(&stream) {
                    Ok(peer) => connection(stream, Origin::Local(peer), router, stopping).await,
                    Err(error) => {
                        tracing::warn!(%error, "a connection was refused: its user is not known");
                    }
                }
                drop(permit);
            });
        }
        drop(listener);
        stopping.cancel();
        drain(connections).await;
        Ok(())
    }

    /// The next connection, once there is room for it: who finds none waits in the backlog.
    async fn next<T>(
        &self,
        accept: impl Future<Output = std::io::Result<T>>,
    ) -> Option<(T, OwnedSemaphorePermit)> {
        let permit = self.app.room.clone().acquire_owned().await.ok()?;
        match accept.await {
            Ok(accepted) => Some((accepted, permit)),
            Err(error) => {
                // Out of files or memory: better in a moment.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                None
            }
        }
    }
}

/// Waits for the requests that are still under way, for a time.
async fn drain(connections: TaskTracker) {
    connections.close();
    if tokio::time::timeout(DRAIN, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!("requests were cut off: they took longer than {DRAIN:?} to end");
    }
}

/// Answers what comes over one connection.
async fn connection<S>(stream: S, origin: Origin, router: Router, stopping: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = TowerToHyperService::new(router.layer(Extension(origin)));
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(CONNECTION_BUFFER);
    let connection = builder
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(DRAIN, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/version", get(version))
        .route(
            "/api",
            get(|| async { json_response(StatusCode::OK, &discovery::core()) }),
        )
        .route("/apis", get(groups))
        .route("/apis/", get(groups))
        .route("/apis/{group}", get(group))
        .route("/apis/{group}/{version}", get(resources))
        .route("/apis/{group}/{version}/{*rest}", any(objects_at))
        .route(
            "/apis/{group}/{version}/namespaces/{namespace}/pods/{name}/exec",
            any(reach::exec),
        )
        .route("/top/nodes", get(reach::top_nodes))
        .route("/top/pods", get(reach::top_pods))
        .route("/stream/nodes/{name}", get(streams::accept))
        .route("/failsafe", get(failsafe_state))
        .route("/failsafe/{what}", any(failsafe_order))
        .route("/openapi/v2", get(openapi_second))
        .route("/openapi/v3", get(openapi_index))
        .route("/openapi/v3/apis/{group}/{version}", get(openapi_third))
        .route("/kinds", get(kinds))
        .route("/artifacts/sha256/{hex}", any(artifact))
        .route("/store/backup", get(backup))
        .route("/store/compact", post(compact))
        .method_not_allowed_fallback(
            |method: Method| async move { Failure::method(&method, "GET") },
        )
        .fallback(|| async {
            Failure::not_found("there is nothing at this path; /apis and /kinds list what there is")
        })
        .route("/metrics", get(insight::metrics))
        .route("/statusz", get(insight::statusz))
        .route("/why/{group}/{version}/{*rest}", get(insight::why))
        .route("/audit", get(audit::list))
        .route("/auth/self", get(auth::whoami))
        .route("/auth/tokens", get(auth::list).post(auth::create))
        .route("/auth/tokens/{name}", axum::routing::delete(auth::revoke))
        .layer(middleware::from_fn_with_state(app.clone(), auth::admit))
        .with_state(app)
}

fn ok(value: &Value) -> Response {
    json_response(StatusCode::OK, value)
}

/// The store answers and is one.
async fn ready(State(app): State<Arc<App>>) -> Result<&'static str> {
    identity::open(app.config.store.as_ref()).await?;
    Ok("ok")
}

async fn version(State(app): State<Arc<App>>) -> Response {
    ok(&discovery::version(&app.config.version))
}

async fn groups(State(app): State<Arc<App>>) -> Response {
    ok(&discovery::groups(&app.served()))
}

async fn group(State(app): State<Arc<App>>, Path(group): Path<String>) -> Result<Response> {
    Ok(ok(&discovery::group(&app.served(), &group)?))
}

async fn resources(
    State(app): State<Arc<App>>,
    Path((group, version)): Path<(String, String)>,
) -> Result<Response> {
    Ok(ok(&discovery::resources(&app.served(), &group, &version)?))
}

async fn failsafe_state(State(app): State<Arc<App>>) -> Result<Response> {
    failsafe::show(&app).await
}

async fn failsafe_order(
    State(app): State<Arc<App>>,
    Path(what): Path<String>,
    Extension(asker): Extension<Arc<Asker>>,
    method: Method,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    failsafe::order(&app, &what, &asker, &method, &headers, body).await
}

async fn kinds(State(app): State<Arc<App>>) -> Result<Response> {
    Ok(ok(&discovery::kinds(&app.served())?))
}

async fn openapi_second(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let accepts = |value: &http::HeaderValue| {
        value.to_str().is_ok_and(|value| {
            value.contains(openapi::MESSAGE) || value.contains(openapi::OLD_MESSAGE)
        })
    };
    if !headers.get_all(http::header::ACCEPT).iter().any(accepts) {
        return ok(app.served().second());
    }
    let message = app.served().message().to_vec();
    let mut response = Response::new(Body::from(message));
    let media = http::HeaderValue::from_static(openapi::MESSAGE);
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, media);
    response
}

async fn openapi_index(State(app): State<Arc<App>>) -> Response {
    ok(&openapi::index(&app.served()))
}

async fn openapi_third(
    State(app): State<Arc<App>>,
    Path((group, version)): Path<(String, String)>,
) -> Result<Response> {
    Ok(ok(&openapi::third(&app.served(), &group, &version)?))
}

fn maintained(app: &App) -> Result<&dyn Maintained> {
    app.config.maintained.as_deref().ok_or_else(|| {
        Failure::not_found(
            "this server's store is saved and compacted by its own tools, as etcdctl",
        )
    })
}

async fn backup(State(app): State<Arc<App>>) -> Result<Response> {
    maintenance::backup(maintained(&app)?, &app.config.data_dir).await
}

async fn compact(
    State(app): State<Arc<App>>,
    Extension(asker): Extension<Arc<Asker>>,
) -> Result<Response> {
    let store = maintained(&app)?;
    let deed = asker.deed(app.audit.now(), "compact", "store");
    app.audit.write(&deed).await?;
    maintenance::compact(store).await
}

async fn artifact(
    State(app): State<Arc<App>>,
    Path(hex): Path<String>,
    Extension(asker): Extension<Arc<Asker>>,
    method: Method,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    match method {
        Method::GET => app.artifacts.read(&hex, true).await,
        Method::HEAD => app.artifacts.read(&hex, false).await,
        Method::PUT => {
            let response = app.artifacts.write(&hex, &headers, body).await?;
            let to = format!("artifacts/sha256/{hex}");
            let deed = asker.deed(app.audit.now(), "upload", to);
            app.audit.write(&deed).await?;
            Ok(response)
        }
        other => Err(Failure::method(&other, "GET, HEAD, PUT")),
    }
}

async fn objects_at(
    State(app): State<Arc<App>>,
    Path((group, version, rest)): Path<(String, String, String)>,
    Extension(asker): Extension<Arc<Asker>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let query = Query::parse(uri.query())?;
    let served = app.served();
    let target = served.target(&group, &version, &rest)?;
    let namespace = target.namespace.as_deref();
    if method == Method::GET {
        asker.read(target.kind, namespace)?;
    } else if target.part == Part::Status {
        asker.report(target.kind, namespace)?;
    } else if target.name.is_some()
        || namespace.is_some()
        || target.kind.definition.scope == Scope::Cluster
    {
        // What is created without a namespace in the path has one in its metadata.
        asker.write(target.kind, namespace)?;
    }
    let form = Form::asked(&headers, &query, &target.face.definition)?;
    if served.is_events(target.kind) {
        return events_at(&app, &target, &method, &query, form).await;
    }
    let client = Client::new(
        app.config.store.clone(),
        app.config.environment.clone(),
        asker.name.as_str(),
    );
    let verb = match (&method, target.part) {
        (_, Part::Status) => "status",
        (_, Part::Scale) => "scale",
        (_, Part::Undelete) => "undelete",
        (&Method::DELETE, _) => "delete",
        (&Method::POST, _) => "create",
        (&Method::PATCH, _) => "patch",
        _ => "update",
    };
    let manager = match query.get("fieldManager") {
        Some(manager) => Some(manager.to_owned()),
        None if request::media_type(&headers) == write::SERVER_SIDE_APPLY => None,
        None => Some(asker.with.split('/').next().unwrap_or_default().to_owned()),
    };
    let api_version = target.kind.definition.api_version();
    let writing = |client, target| -> Result<Writing<'_>> {
        Ok(Writing {
            client,
            target,
            asker: &asker,
            audit: &app.audit,
            validators: &app.config.validators,
            verb,
            dry_run: query.dry_run()?,
            admission: app.config.admission,
            manager: manager.clone(),
            api_version: api_version.clone(),
            force: query.flag("force")?,
            told: Mutex::default(),
        })
    };
    let whole = target.part == Part::Whole;
    match (target.name.is_some(), target.part, method) {
        (false, _, Method::GET) => list_at(&app, &target, &query, form).await,
        (false, _, Method::POST) => writing(client, target)?.create(&headers, body).await,
        (false, _, method) => Err(Failure::method(&method, "GET, POST")),
        (true, Part::Whole | Part::Status, Method::GET) => {
            if whole && query.flag("watch")? {
                return list_at(&app, &target, &query, form).await;
            }
            let object = read::get(&client, &target).await?;
            let object = target.shown().show(object).to_api();
            let mut response = ok(&shaped(&app, &form, object));
            failsafe::banner(&app, &mut response).await;
            Ok(response)
        }
        (true, Part::Scale, Method::GET) => writing(client, target)?.scale().await,
        (true, Part::Log, Method::GET) => {
            let pod = read::existing(&client, &target).await?;
            reach::log(&app, &asker, &pod, &query).await
        }
        (true, Part::Log, method) => Err(Failure::method(&method, "GET")),
        (true, Part::Undelete, Method::POST) => {
            undelete::undelete(writing(client, target)?, &headers, body).await
        }
        (true, Part::Undelete, method) => Err(Failure::method(&method, "POST")),
        (true, _, Method::PUT) => writing(client, target)?.replace(&headers, body).await,
        (true, _, Method::PATCH) => writing(client, target)?.patch(&headers, body).await,
        (true, Part::Whole, Method::DELETE) => {
            let writing = writing(client, target)?;
            let deleted = delete::delete(writing, &headers, &query, body).await?;
            let mut response = deleted.response;
            let kept = deleted.orphans_of.map_or(0, |uid| app.hub.owned_by(&uid));
            if kept > 0 {
                let text = format!(
                    "{kept} objects that it owns are kept and have no owner now; delete with --cascade to end them too"
                );
                warn(&mut response, &text);
            }
            Ok(response)
        }
        (true, Part::Whole, method) => Err(Failure::method(&method, "GET, PUT, PATCH, DELETE")),
        (true, _, method) => Err(Failure::method(&method, "GET, PUT, PATCH")),
    }
}

/// One object in the form that was asked for.
fn shaped(app: &App, form: &Form, object: Value) -> Value {
    match form {
        Form::Objects => object,
        Form::Table(table) => {
            let revision = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
            table.of(Some(&object), &revision, app.config.environment.now(), true)
        }
    }
}

async fn list_at(
    app: &Arc<App>,
    target: &Target<'_>,
    query: &Query,
    form: Form,
) -> Result<Response> {
    let mut selection = Selection::parse(target.kind, target.namespace.clone(), query)?;
    if let Some(name) = &target.name {
        selection = selection.named(name);
    }
    if query.flag("watch")? {
        return watch::objects(app, target, selection, query, form).await;
    }
    let mut response = list::answer(app, target, selection, query, form).await?;
    failsafe::banner(app, &mut response).await;
    Ok(response)
}

async fn events_at(
    app: &Arc<App>,
    target: &Target<'_>,
    method: &Method,
    query: &Query,
    form: Form,
) -> Result<Response> {
    if method != Method::GET {
        return Err(Failure::method(method, "GET"));
    }
    let store = app.config.store.as_ref();
    let namespace = target.namespace.clone();
    if let Some(name) = &target.name {
        let event = events::get(store, namespace.as_deref(), name).await?;
        return Ok(ok(&shaped(app, &form, event)));
    }
    let selection = Selection::parse(target.kind, namespace, query)?;
    if query.flag("watch")? {
        return watch::events(app, selection, query, form).await;
    }
    list::answer(app, target, selection, query, form).await
}
