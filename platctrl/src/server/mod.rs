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
mod config;
mod delete;
mod discovery;
mod dispatch;
mod events;
mod failsafe;
mod hub;
mod insert;
mod insight;
mod linger;
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
mod routes;
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
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use artifacts::Artifacts;
use auth::Origin;
pub use config::ServerConfig;
use hub::Hub;
pub(crate) use insight::serve_insight;
pub use maintenance::Maintained;
pub(crate) use network::Network;
use routes::router;
use socket::Peer;
pub use socket::{BindError, SOCKET, bind, connect};
use target::Served;
pub use validator::{Change, Validator, Verdict};

use crate::access::{Audit, Bindings, Rates, Tokens};

/// How long a client may take to send the head of a request, and between two requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long requests may still take when the server stops.
const DRAIN: Duration = Duration::from_secs(5);
/// Bytes that a connection buffers.
const CONNECTION_BUFFER: usize = 64 * 1024;

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
