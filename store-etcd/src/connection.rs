//! A connection to one member: made, logged in and looked over before it is used.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use platctrl_framework::model::identity::anchor_key;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::alert::Candid;
use crate::error::{Refusal, Verdict, judge};
use crate::grpc::{CallError, Head, Method, Outgoing, chain, frame, unary};
use crate::location::Endpoint;
use crate::shared::{Server, Shared, Token, lock};
use crate::tls::server_name;
use crate::version::warnings;
use crate::wire;

/// The methods of the API that are used.
pub(crate) mod methods {
    use crate::grpc::Method;

    pub(crate) const RANGE: Method = "/etcdserverpb.KV/Range";
    pub(crate) const TXN: Method = "/etcdserverpb.KV/Txn";
    pub(crate) const WATCH: Method = "/etcdserverpb.Watch/Watch";
    pub(crate) const GRANT: Method = "/etcdserverpb.Lease/LeaseGrant";
    pub(crate) const REVOKE: Method = "/etcdserverpb.Lease/LeaseRevoke";
    pub(crate) const KEEP_ALIVE: Method = "/etcdserverpb.Lease/LeaseKeepAlive";
    pub(crate) const TIME_TO_LIVE: Method = "/etcdserverpb.Lease/LeaseTimeToLive";
    pub(crate) const STATUS: Method = "/etcdserverpb.Maintenance/Status";
    pub(crate) const AUTHENTICATE: Method = "/etcdserverpb.Auth/Authenticate";
}

/// A connection to one member.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) number: u64,
    pub(crate) member: usize,
    /// The member as people write it.
    pub(crate) name: String,
    authority: String,
    sender: SendRequest<Outgoing>,
    /// Why it ended.
    end: Arc<OnceLock<String>>,
}

impl Connection {
    /// One question, one answer.
    pub(crate) async fn ask<M: prost::Message + Default>(
        &self,
        method: Method,
        message: bytes::Bytes,
        token: Option<&Token>,
    ) -> Result<M, CallError> {
        let answer = unary(&self.sender, self.head(method, token), message).await;
        answer.map_err(|error| self.explain(error))
    }

    /// Opens a stream of questions and answers.
    pub(crate) fn converse<M: prost::Message + Default>(
        &self,
        method: Method,
        questions: tokio::sync::mpsc::UnboundedReceiver<bytes::Bytes>,
        token: Option<&Token>,
    ) -> crate::grpc::Messages<M> {
        let head = self.head(method, token);
        crate::grpc::start(&self.sender, head, Outgoing::Stream(questions))
    }

    fn head<'a>(&'a self, method: Method, token: Option<&'a Token>) -> Head<'a> {
        Head {
            authority: &self.authority,
            method,
            token: token.map(|token| &token.value),
        }
    }

    /// Adds why the connection ended, which the call itself often does not know.
    pub(crate) fn explain(&self, error: CallError) -> CallError {
        let with_end = |why: String| match self.end.get() {
            Some(end) if !why.contains(end.as_str()) => format!("{why}: {end}"),
            _ => why,
        };
        match error {
            CallError::NotSent(why) => CallError::NotSent(with_end(why)),
            CallError::Broken(why) => CallError::Broken(with_end(why)),
            error => error,
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

/// Why no member could be used, one line for each.
#[derive(Clone, Debug)]
pub(crate) struct Unreachable {
    pub(crate) kind: Trouble,
    pub(crate) reason: String,
}

/// What could help against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    Time,
    Configuration,
    Rights,
}

pub(crate) async fn connect(
    shared: &Arc<Shared>,
    member: usize,
) -> Result<Connection, Unreachable> {
    let endpoint = &shared.location.endpoints()[member];
    let scheme = if shared.is_secure() { "https" } else { "http" };
    let name = format!("{scheme}://{endpoint}");
    let trouble = |kind, reason: String| Unreachable {
        kind,
        reason: format!("{name}: {reason}"),
    };
    let patience = shared.options.connect_timeout;
    let late = |what: &str| trouble(Trouble::Time, format!("{what} within {patience:?}"));
    let opening = open(shared, endpoint, member, &name);
    let connection = match timeout(patience, opening).await {
        Err(_) => return Err(late("no connection")),
        Ok(Err((kind, reason))) => return Err(trouble(kind, reason)),
        Ok(Ok(connection)) => connection,
    };
    match timeout(patience, greet(shared, &connection)).await {
        Err(_) => Err(late("no answer")),
        Ok(Err((kind, reason))) => Err(trouble(kind, reason)),
        Ok(Ok(())) => Ok(connection),
    }
}

async fn open(
    shared: &Arc<Shared>,
    endpoint: &Endpoint,
    member: usize,
    name: &str,
) -> Result<Connection, (Trouble, String)> {
    let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await;
    let stream = stream.map_err(|error| (Trouble::Time, error.to_string()))?;
    // Small requests wait for nothing; without it they are only slower.
    let _ = stream.set_nodelay(true);
    let config = lock(&shared.tls)
        .as_ref()
        .map(|(_, config)| Arc::clone(config));
    let (Some(tls), Some(config)) = (&shared.options.tls, config) else {
        return handshake(shared, endpoint, member, name, stream).await;
    };
    let server = server_name(tls, &endpoint.host).map_err(|why| (Trouble::Configuration, why))?;
    let stream = tokio_rustls::TlsConnector::from(config)
        .connect(server, stream)
        .await
        .map_err(|error| explain_tls(&error))?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        let reason = "it speaks TLS, but not HTTP/2: is this the port of an etcd?";
        return Err((Trouble::Configuration, reason.to_owned()));
    }
    handshake(shared, endpoint, member, name, Candid::new(stream)).await
}

fn explain_tls(error: &std::io::Error) -> (Trouble, String) {
    let why = chain(error);
    let source = error.get_ref();
    match source.and_then(|source| source.downcast_ref::<rustls::Error>()) {
        None => (
            Trouble::Time,
            format!("TLS: {why}: does the port speak TLS?"),
        ),
        Some(rustls::Error::InvalidMessage(_)) => (
            Trouble::Configuration,
            format!("{why}: the port seems not to speak TLS"),
        ),
        Some(_) => (Trouble::Configuration, format!("TLS: {why}")),
    }
}

async fn handshake<S>(
    shared: &Arc<Shared>,
    endpoint: &Endpoint,
    member: usize,
    name: &str,
    stream: S,
) -> Result<Connection, (Trouble, String)>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let keep_alive = shared.options.keep_alive;
    let (sender, driver) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .keep_alive_interval(keep_alive)
        .keep_alive_timeout(keep_alive)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| (Trouble::Time, chain(&error)))?;
    let end = Arc::new(OnceLock::new());
    let ended = Arc::clone(&end);
    let closed = shared.closed.clone();
    tokio::spawn(async move {
        tokio::select! {
            outcome = driver => if let Err(error) = outcome {
                let _ = ended.set(chain(&error));
            },
            () = closed.cancelled() => {}
        }
    });
    Ok(Connection {
        number: shared.numbers.fetch_add(1, Ordering::Relaxed),
        member,
        name: name.to_owned(),
        authority: endpoint.to_string(),
        sender,
        end,
    })
}

/// Logs in, asks for the version, and reads a key, which shows that the member can answer for the
/// cluster.
async fn greet(shared: &Shared, connection: &Connection) -> Result<(), (Trouble, String)> {
    let mut again = true;
    loop {
        let outcome = introduce(shared, connection).await;
        match outcome {
            Ok(()) => return Ok(()),
            Err((token, CallError::Status(status)))
                if again && matches!(judge(&status), Verdict::Login | Verdict::Stale) =>
            {
                shared.forget(token.as_ref());
                again = false;
            }
            Err((_, error)) => return Err(trouble_of(shared, connection, &error).await),
        }
    }
}

async fn trouble_of(
    shared: &Shared,
    connection: &Connection,
    error: &CallError,
) -> (Trouble, String) {
    let kind = match error {
        CallError::Status(status) => match judge(status) {
            Verdict::Login | Verdict::Refused(Refusal::Denied) => Trouble::Rights,
            Verdict::Refused(_) => Trouble::Configuration,
            Verdict::Again | Verdict::Stale | Verdict::Unclear => Trouble::Time,
        },
        CallError::TooLong(_) => Trouble::Configuration,
        CallError::NotSent(_) | CallError::Broken(_) => {
            // The driver tells why a moment later than the call.
            for _ in 0..50 {
                if connection.end.get().is_some() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            return broken(shared, connection, error);
        }
    };
    let hint = match error {
        CallError::Status(status) if status.message.contains("user name is empty") => {
            ": it asks for a user, and neither a password nor a certificate was shown"
        }
        _ => "",
    };
    (kind, format!("{error}{hint}"))
}

/// A connection that broke at the first question.
fn broken(shared: &Shared, connection: &Connection, error: &CallError) -> (Trouble, String) {
    let why = connection.explain(error.clone()).to_string();
    let alert = why.contains("alert") || why.contains("ertificate");
    if shared.is_secure() && alert {
        return (
            Trouble::Configuration,
            format!("the server refuses this process's certificate, or asks for one: {why}"),
        );
    }
    let foreign = ["frame", "HTTP status", "protocol", "unreadable"];
    if foreign.iter().any(|word| why.contains(word)) {
        return (
            Trouble::Configuration,
            format!("is it an etcd, or does it expect TLS? ({why})"),
        );
    }
    if !shared.is_secure() {
        return (
            Trouble::Time,
            format!("closed at the first request: is it an etcd, or does it expect TLS? ({why})"),
        );
    }
    // A server that refuses a certificate may be gone before its reason arrives.
    (
        Trouble::Time,
        format!(
            "closed at the first request: does it refuse this process's certificate, or ask for \
             one? ({why})"
        ),
    )
}

async fn introduce(
    shared: &Shared,
    connection: &Connection,
) -> Result<(), (Option<Token>, CallError)> {
    let token = shared.token(connection).await.map_err(|why| (None, why))?;
    let failed = |error| (token.clone(), error);
    let status = connection
        .ask::<wire::StatusResponse>(
            methods::STATUS,
            frame(&wire::StatusRequest {}),
            token.as_ref(),
        )
        .await;
    let version = match status {
        Ok(status) => Some(status.version),
        Err(CallError::Status(status))
            if judge(&status) == Verdict::Refused(Refusal::Denied)
                && !status.message.contains("user name is empty") =>
        {
            None
        }
        Err(error) => return Err(failed(error)),
    };
    note_server(shared, connection, version);
    let request = wire::RangeRequest {
        key: shared.keys.key(&anchor_key()),
        keys_only: true,
        ..wire::RangeRequest::default()
    };
    let anchor = connection
        .ask::<wire::RangeResponse>(methods::RANGE, frame(&request), token.as_ref())
        .await;
    match anchor {
        Ok(_) => Ok(()),
        // Whoever needs it is told so when it is read.
        Err(CallError::Status(status)) if status.message.contains("permission denied") => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

fn note_server(shared: &Shared, connection: &Connection, version: Option<String>) {
    let warnings = version.as_deref().map(warnings).unwrap_or_default();
    let server = Server { version, warnings };
    let mut known = lock(&shared.server);
    if known.as_ref() == Some(&server) {
        return;
    }
    for warning in &server.warnings {
        tracing::warn!(server = %connection.name, "{warning}");
    }
    *known = Some(server);
}
