//! HTTP/1.1 to one endpoint, which knows of each request whether it can have been sent.
//!
//! Connections are kept and used again, one request at a time on each, never more than the
//! options allow. Redirects are answers like others: nobody follows them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio::time::Instant;

use crate::tls::Tls;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a broken connection may take to say why.
const FATE: Duration = Duration::from_millis(200);
/// The most that one answer may have: a list of the largest fleet has a fraction of it.
const MAX_ANSWER: usize = 1 << 30;

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// The body as text for people, in one short line.
    pub(crate) fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        let line: String = text.trim().chars().take(300).collect();
        line.escape_debug().to_string()
    }
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(crate) struct NoAnswer {
    /// The request can have reached the server.
    pub(crate) sent: bool,
    /// Trying again may help without anybody changing the configuration.
    pub(crate) passing: bool,
    pub(crate) reason: String,
}

impl NoAnswer {
    fn before(reason: impl Into<String>) -> Self {
        Self {
            sent: false,
            passing: true,
            reason: reason.into(),
        }
    }

    fn after(reason: impl Into<String>) -> Self {
        Self {
            sent: true,
            passing: true,
            reason: reason.into(),
        }
    }
}

/// A connection.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// Why it ended, once it has.
    fate: oneshot::Receiver<NoAnswer>,
}

impl Connection {
    /// What is known about a failure on it: its own end tells more than that of a request.
    async fn explain(&mut self, seen: NoAnswer) -> NoAnswer {
        match tokio::time::timeout(FATE, &mut self.fate).await {
            Ok(Ok(end)) => NoAnswer {
                sent: seen.sent,
                ..end
            },
            _ => seen,
        }
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) body: Bytes,
    pub(crate) token: Option<Arc<str>>,
    pub(crate) timeout: Duration,
}

/// The endpoint with its connections.
pub(crate) struct Endpoint {
    host: String,
    port: u16,
    authority: String,
    tls: Option<Tls>,
    idle: Mutex<Vec<Connection>>,
    places: Semaphore,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("at", &self.name())
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    pub(crate) fn new(
        host: &str,
        port: u16,
        authority: String,
        tls: Option<Tls>,
        max_connections: usize,
    ) -> Self {
        Self {
            host: host.to_owned(),
            port,
            authority,
            tls,
            idle: Mutex::default(),
            places: Semaphore::new(max_connections.max(2)),
        }
    }

    /// The endpoint as a URL, for messages.
    pub(crate) fn name(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.authority)
    }

    /// Sends a request and waits for its whole answer.
    pub(crate) async fn send(&self, ask: Ask) -> Result<Answer, NoAnswer> {
        let deadline = Instant::now() + ask.timeout;
        let late = || NoAnswer::before("no connection became free in time");
        let place = tokio::time::timeout_at(deadline, self.places.acquire());
        let _place: SemaphorePermit<'_> = place
            .await
            .map_err(|_| late())?
            .map_err(|_| NoAnswer::before("the store was closed"))?;
        let mut request = self.request(&ask)?;
        loop {
            let (mut connection, kept) = match self.take_idle() {
                Some(connection) => (connection, true),
                None => (self.connect(deadline).await?, false),
            };
            let sender = &mut connection.sender;
            match tokio::time::timeout_at(deadline, sender.ready()).await {
                Ok(Ok(())) => {}
                // It was closed while it lay idle.
                Ok(Err(_)) if kept => continue,
                Ok(Err(error)) => {
                    let seen = NoAnswer::before(error.to_string());
                    return Err(connection.explain(seen).await);
                }
                Err(_) => return Err(late()),
            }
            let answer = tokio::time::timeout_at(deadline, sender.try_send_request(request)).await;
            let mut response = match answer {
                Ok(Ok(response)) => response,
                Ok(Err(mut error)) => {
                    let unsent = error.take_message();
                    let seen = broken(error.error(), unsent.is_none());
                    match unsent {
                        Some(unsent) if kept => {
                            request = unsent;
                            continue;
                        }
                        _ => return Err(connection.explain(seen).await),
                    }
                }
                Err(_) => {
                    let reason = format!("no answer within {:?}", ask.timeout);
                    return Err(NoAnswer::after(reason));
                }
            };
            let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect();
            let body = tokio::time::timeout_at(deadline, body)
                .await
                .map_err(|_| NoAnswer::after(format!("the answer took over {:?}", ask.timeout)))?
                .map_err(|error| NoAnswer::after(format!("the answer broke off: {error}")))?
                .to_bytes();
            if !connection.sender.is_closed() {
                self.idle().push(connection);
            }
            return Ok(Answer {
                status,
                headers,
                body,
            });
        }
    }

    fn request(&self, ask: &Ask) -> Result<Request<Full<Bytes>>, NoAnswer> {
        let mut builder = Request::builder()
            .method(ask.method.clone())
            .uri(&ask.path)
            .header(http::header::HOST, &self.authority)
            .header(http::header::USER_AGENT, "platctrl");
        if let Some(token) = &ask.token {
            let mut value = http::HeaderValue::from_str(token).map_err(|_| NoAnswer {
                sent: false,
                passing: false,
                reason: "the token has characters that no token has".to_owned(),
            })?;
            value.set_sensitive(true);
            builder = builder.header("x-consul-token", value);
        }
        builder
            .body(Full::new(ask.body.clone()))
            .map_err(|error| NoAnswer {
                sent: false,
                passing: false,
                reason: format!("the request cannot be built: {error}"),
            })
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle();
        loop {
            let connection = idle.pop()?;
            if !connection.sender.is_closed() {
                return Some(connection);
            }
        }
    }

    async fn connect(&self, deadline: Instant) -> Result<Connection, NoAnswer> {
        let deadline = deadline.min(Instant::now() + CONNECT);
        tokio::time::timeout_at(deadline, self.connect_now())
            .await
            .map_err(|_| NoAnswer::before("no connection came about in time"))?
    }

    async fn connect_now(&self) -> Result<Connection, NoAnswer> {
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|error| NoAnswer::before(error.to_string()))?;
        // A failure here costs speed only.
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else {
            return handshake(stream).await;
        };
        let connector = tls.connector().map_err(|error| NoAnswer {
            sent: false,
            passing: false,
            reason: error.to_string(),
        })?;
        let stream = connector
            .connect(tls.name(), stream)
            .await
            .map_err(|error| tls_failed(&error))?;
        handshake(stream).await
    }
}

async fn handshake<S>(stream: S) -> Result<Connection, NoAnswer>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| NoAnswer::before(error.to_string()))?;
    let (tell, fate) = oneshot::channel();
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::trace!(%error, "a connection to Consul ended");
            let _ = tell.send(broken(&error, true));
        }
    });
    Ok(Connection { sender, fate })
}

/// Why no secure connection came about, and whether that can pass.
fn tls_failed(error: &std::io::Error) -> NoAnswer {
    use rustls::{CertificateError, Error};
    let cause = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>());
    let (passing, reason) = match cause {
        Some(Error::InvalidMessage(_)) => (
            false,
            "this port does not speak TLS (connect without, or name the TLS port)".to_owned(),
        ),
        Some(Error::InvalidCertificate(why)) => {
            let why = match why {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "it has expired".to_owned()
                }
                CertificateError::UnknownIssuer => {
                    "none of the authorities in the CA file has signed it".to_owned()
                }
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => {
                    "it is for another name (see the option for the server's name)".to_owned()
                }
                other => format!("{other}"),
            };
            (false, format!("the server's certificate is refused: {why}"))
        }
        Some(Error::AlertReceived(alert)) => (
            false,
            format!("the server refuses this client with the TLS alert {alert:?}"),
        ),
        Some(other) => (false, format!("TLS: {other}")),
        None => (true, format!("TLS: {error}")),
    };
    NoAnswer {
        sent: false,
        passing,
        reason,
    }
}

/// What a broken connection means. With TLS 1.3 a server refuses a client's certificate only
/// after the handshake.
fn broken(error: &hyper::Error, sent: bool) -> NoAnswer {
    let mut reason = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        let tls = cause.downcast_ref::<std::io::Error>().filter(|cause| {
            cause
                .get_ref()
                .is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>)
        });
        if let Some(tls) = tls {
            return NoAnswer {
                sent,
                ..tls_failed(tls)
            };
        }
        reason = format!("{reason}: {cause}");
        next = cause.source();
    }
    NoAnswer {
        sent,
        passing: true,
        reason,
    }
}
