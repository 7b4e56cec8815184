//! The agent's end of its stream: it calls a server, says who it is, and then answers.
//!
//! An agent never listens. It opens a connection to each server, over TLS with the certificate
//! that its node was given, or to the socket of a server on its own machine; asks to turn it
//! round; and serves HTTP/2 on it. The server asks, and each question is a stream of its own, with
//! a window of its own: one who reads slowly holds up nobody else.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use platctrl_framework::environment::Environment;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::{MOST, Node};
use crate::tls;

/// What a connection is turned into.
pub(crate) const PROTOCOL: &str = "platctrl-node";
/// The header that tells one run of an agent from another.
pub(crate) const INSTANCE: &str = "platctrl-instance";
/// How long a connection may take to come about, and a server to answer.
const CONNECT: Duration = Duration::from_secs(15);
/// The first and the longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// The least pause after a refusal, which does not pass by itself.
const REFUSED: Duration = Duration::from_secs(2);
/// A connection that lasted so long was a good one.
const LASTED: Duration = Duration::from_secs(60);
/// How often it is looked where a server is.
const LOOK: Duration = Duration::from_secs(30);
/// How often a silent peer is asked for a sign of life, and how long it may take.
pub(crate) const ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(10));
/// Bytes of one stream that are on their way at most.
pub(crate) const WINDOW: u32 = 64 * 1024;
/// Those of all streams: whoever does not read keeps one window, and there is room for everybody's.
pub(crate) const WINDOWS: u32 = WINDOW * (MOST as u32 + 1);
/// How long what is under way may still take when the agent stops.
const DRAIN: Duration = Duration::from_secs(2);
/// Bytes of a refusal that are read.
const WORDS: usize = 16 * 1024;

/// Where a server is.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// On this machine.
    Local(PathBuf),
    /// Anywhere: the machines that the name stands for are servers, each gets a stream.
    Remote(Remote),
}

/// A server on the network, and what is shown to it.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The authority that signed the server's certificate.
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// A node whose servers may ask it something.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) node: String,
    /// This run of its agent.
    pub(crate) instance: String,
    pub(crate) answers: Node,
    pub(crate) environment: Environment,
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{0}")]
    Files(#[from] tls::TlsError),
    #[error("cannot connect: {0}")]
    Connect(#[from] io::Error),
    #[error("it broke off: {0}")]
    Http(#[from] hyper::Error),
    #[error("it took longer than {CONNECT:?}")]
    Late,
    #[error("the server refuses it ({0}): {1}")]
    Refused(StatusCode, String),
    #[error("it cannot be asked for: {0}")]
    Request(#[from] http::Error),
    #[error("`{0}` is neither a name nor an address")]
    Name(String),
}

impl Broken {
    /// It is a matter of moments, at the start of an agent.
    fn passes(&self) -> bool {
        matches!(self, Self::Refused(StatusCode::CONFLICT, _))
    }
}

/// One end of a server: of several machines with one name, one of them.
#[derive(Clone, Debug)]
enum Target {
    Local(PathBuf),
    Remote(Remote, SocketAddr),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => path.display().fmt(f),
            Self::Remote(remote, address) => write!(f, "{} ({address})", remote.host),
        }
    }
}

trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Connection for S {}

impl Link {
    /// Keeps a stream to each server, until told to stop.
    pub(crate) async fn keep(
        self,
        places: Vec<Place>,
        stop: CancellationToken,
    ) -> Result<(), Infallible> {
        let mut kept = Vec::new();
        for place in places {
            let (link, stop) = (self.clone(), stop.clone());
            let keeping = async move {
                match place {
                    Place::Local(path) => link.keep_to(Target::Local(path), stop).await,
                    Place::Remote(remote) => link.keep_to_all(remote, stop).await,
                }
            };
            kept.push(AbortOnDropHandle::new(tokio::spawn(keeping)));
        }
        for kept in kept {
            let _ = kept.await;
        }
        stop.cancelled().await;
        Ok(())
    }

    /// Keeps a stream to each machine of a name. Those that it does not stand for any more are
    /// left.
    async fn keep_to_all(self, remote: Remote, stop: CancellationToken) {
        let mut kept: HashMap<SocketAddr, AbortOnDropHandle<()>> = HashMap::new();
        let mut told = String::new();
        loop {
            match addresses(&remote).await {
                Ok(found) => {
                    kept.retain(|address, _| found.contains(address));
                    for address in found {
                        kept.entry(address).or_insert_with(|| {
                            let target = Target::Remote(remote.clone(), address);
                            let keeping = self.clone().keep_to(target, stop.clone());
                            AbortOnDropHandle::new(tokio::spawn(keeping))
                        });
                    }
                    told.clear();
                }
                Err(error) => {
                    let words = error.to_string();
                    if told != words {
                        tracing::warn!(server = remote.host, %error, "it is not known where the server is");
                        told = words;
                    }
                }
            }
            let pause = if kept.is_empty() { PAUSE.1 / 10 } else { LOOK };
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.environment.sleep(self.environment.jitter(pause)) => {}
            }
        }
        for (_, kept) in kept {
            let _ = kept.await;
        }
    }

    async fn keep_to(self, target: Target, stop: CancellationToken) {
        let environment = &self.environment;
        let (mut pause, mut told) = (PAUSE.0, String::new());
        loop {
            let began = environment.monotonic();
            let broken = tokio::select! {
                opened = self.open(&target) => match opened {
                    Ok(stream) => {
                        tracing::info!(server = %target, node = self.node, "the server may ask this node");
                        told.clear();
                        self.serve(stream, &stop).await
                    }
                    Err(error) => Err(error),
                },
                () = stop.cancelled() => return,
            };
            if stop.is_cancelled() {
                return;
            }
            if environment.monotonic().saturating_sub(began) > LASTED {
                pause = PAUSE.0;
            }
            if let Err(error) = &broken {
                let words = error.to_string();
                // The same trouble is told once. An agent that was just started has to take the
                // node's name first, and a server of this machine may not be there at all.
                let passes = matches!(target, Target::Local(_)) || error.passes();
                if words != told && !passes {
                    tracing::warn!(server = %target, %error, "the server cannot ask this node");
                } else {
                    tracing::debug!(server = %target, %error, "the server cannot ask this node");
                }
                told = words;
                if !passes && matches!(error, Broken::Refused(..)) {
                    pause = pause.max(REFUSED);
                }
            }
            let wait = environment.jitter(pause);
            tokio::select! {
                () = environment.sleep(wait) => {}
                () = stop.cancelled() => return,
            }
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Connects, and has the connection turned round.
    async fn open(&self, target: &Target) -> Result<Upgraded, Broken> {
        let opened = async {
            let (stream, host) = connect(target).await?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let connection = AbortOnDropHandle::new(tokio::spawn(connection.with_upgrades()));
            let request = Request::get(format!("/stream/nodes/{}", self.node))
                .header(header::HOST, host)
                .header(header::CONNECTION, "upgrade")
                .header(header::UPGRADE, PROTOCOL)
                .header(INSTANCE, &self.instance)
                .body(Empty::<Bytes>::new())?;
            let response = sender.send_request(request).await?;
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                return Err(refusal(response).await);
            }
            let upgraded = hyper::upgrade::on(response).await?;
            // It has handed over what it had.
            drop(connection);
            Ok(upgraded)
        };
        let opened = tokio::time::timeout(CONNECT, opened).await;
        opened.unwrap_or(Err(Broken::Late))
    }

    /// Answers what the server asks, until the connection or the agent ends.
    async fn serve(&self, stream: Upgraded, stop: &CancellationToken) -> Result<(), Broken> {
        let answers = self.answers.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let answers = answers.clone();
            async move { Ok::<_, Infallible>(answers.answer(request.map(Body::new)).await) }
        });
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(ALIVE.0)
            .keep_alive_timeout(ALIVE.1)
            .max_concurrent_streams(MOST as u32)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOWS);
        let connection = builder.serve_connection(stream, service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                tokio::time::timeout(DRAIN, connection).await.unwrap_or(Ok(()))
            }
        };
        Ok(ended?)
    }
}

/// Where the machines of a name are.
async fn addresses(remote: &Remote) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = remote.host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, remote.port)]);
    }
    let found = lookup_host((remote.host.as_str(), remote.port)).await?;
    let mut found: Vec<_> = found.collect();
    found.sort();
    found.dedup();
    Ok(found)
}

async fn connect(target: &Target) -> Result<(Box<dyn Connection>, String), Broken> {
    match target {
        Target::Local(path) => {
            let stream = crate::server::connect(path)?;
            stream.set_nonblocking(true)?;
            Ok((
                Box::new(UnixStream::from_std(stream)?),
                "platctrl".to_owned(),
            ))
        }
        Target::Remote(remote, address) => {
            // As they are now: another certificate may have been given.
            let files = remote.clone();
            let config = tokio::task::spawn_blocking(move || {
                tls::agent_config(&files.ca, &files.certificate, &files.key)
            });
            let config = config.await.map_err(io::Error::other)??;
            let name = ServerName::try_from(remote.host.clone())
                .map_err(|_| Broken::Name(remote.host.clone()))?;
            let stream = TcpStream::connect(address).await?;
            // Small answers are not held back for more.
            stream.set_nodelay(true)?;
            let stream = TlsConnector::from(Arc::clone(&config))
                .connect(name, stream)
                .await?;
            Ok((Box::new(stream), format!("{}:{}", remote.host, remote.port)))
        }
    }
}

async fn refusal(response: http::Response<Incoming>) -> Broken {
    let (head, body) = response.into_parts();
    let words = Limited::new(body, WORDS).collect().await;
    let words = words
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    let status: Value = serde_json::from_slice(&words).unwrap_or_default();
    let words = match status["message"].as_str() {
        Some(message) => message.to_owned(),
        None => String::from_utf8_lossy(&words).into_owned(),
    };
    Broken::Refused(head.status, crate::access::short(&words, 300))
}
