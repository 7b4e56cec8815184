//! A small client of the API: one request per connection, over a server's unix socket or TLS.
//!
//! Errors of the server (`Status`) become a [`Failure`] with the exit code of their kind.

mod kinds;
mod path;
mod transport;
mod turn;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt as _};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, BodyStream, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::Value;
use tokio_util::io::StreamReader;

pub(crate) use kinds::{Catalog, Target};
pub(crate) use path::{Collection, Query, segment};
pub(crate) use transport::{Remote, Token, Transport};

use crate::error::{Code, Failure, Result};
use crate::output;

/// How long an answer may take to begin while nothing is sent.
const ANSWER: Duration = Duration::from_secs(60);
/// The largest answer that is taken into memory.
const MAX_ANSWER: usize = 256 << 20;

/// Media types of what is sent.
pub(crate) mod media {
    pub(crate) const JSON: &str = "application/json";
    pub(crate) const MERGE_PATCH: &str = "application/merge-patch+json";
    pub(crate) const APPLY: &str = "application/vnd.platctrl.apply+json";
    pub(crate) const BYTES: &str = "application/octet-stream";
}

/// What to look at when a server answers what nobody asked for.
pub(crate) const OTHER_VERSION: &str =
    "is it a platctrl server of this version? `platctrl version` says so";

type Body = BoxBody<Bytes, io::Error>;

fn whole(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes))
        .map_err(|never| match never {})
        .boxed()
}

/// A server's API.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    transport: Transport,
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Api {
    /// The API behind a socket. Nothing is asked of it yet.
    pub(crate) fn unix(socket: impl Into<PathBuf>) -> Self {
        Self {
            transport: Transport::Unix(socket.into()),
        }
    }

    /// The API of a server on the network. Nothing is asked of it yet.
    pub(crate) fn remote(remote: Remote) -> Self {
        Self {
            transport: Transport::Tls(remote),
        }
    }

    /// Where it is.
    pub(crate) fn place(&self) -> &Transport {
        &self.transport
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>> {
        self.send_while(request, || false).await
    }

    /// Sends a request, and waits for its answer for as long as `moves` says that something was
    /// sent since it was last asked.
    async fn send_while(
        &self,
        mut request: Request<Body>,
        moves: impl FnMut() -> bool,
    ) -> Result<Response<Incoming>> {
        if let Transport::Tls(remote) = &self.transport {
            let headers = request.headers_mut();
            let host = remote.url.trim_start_matches("https://");
            if let Ok(host) = HeaderValue::from_str(host) {
                headers.insert(header::HOST, host);
            }
            if let Some(token) = &remote.token {
                let mut shown = HeaderValue::from_str(&format!("Bearer {}", token.reveal()))
                    .map_err(|_| Failure::usage("the token holds what no token can"))?;
                shown.set_sensitive(true);
                headers.insert(header::AUTHORIZATION, shown);
            }
        }
        let stream = self.transport.connect().await?;
        let broken = |error: hyper::Error| {
            Failure::new(
                Code::Unreachable,
                format!("{} broke off: {}", self.transport, chain(&error)),
            )
            .hint("see what platctrl says where it runs; whether a change was made is not known")
        };
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
            .await
            .map_err(broken)?;
        // Ends with the answer's body, or with this process.
        tokio::spawn(connection.with_upgrades());
        match answered(sender.send_request(request), moves).await {
            Some(answer) => answer.map_err(broken),
            None => Err(Failure::new(
                Code::Timeout,
                format!(
                    "{} did not answer within {} s",
                    self.transport,
                    ANSWER.as_secs()
                ),
            )),
        }
    }

    fn request(
        method: Method,
        path: &str,
        media: Option<&str>,
        body: Body,
    ) -> Result<Request<Body>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "platctrl")
            .header(
                header::USER_AGENT,
                concat!("platctrl/", env!("CARGO_PKG_VERSION")),
            );
        if let Some(media) = media {
            request = request.header(header::CONTENT_TYPE, media);
        }
        request
            .body(body)
            .map_err(|error| Failure::usage(format!("cannot ask for {path}: {error}")))
    }

    /// Sends JSON, reads the answer whole; an answer that says no is a failure.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Answer> {
        let bytes = body
            .map(|(_, value)| value.to_string().into_bytes())
            .unwrap_or_default();
        let request = Self::request(method, path, body.map(|(media, _)| media), whole(bytes))?;
        let (parts, body) = self.send(request).await?.into_parts();
        let bytes = read(body).await?;
        for warning in parts.headers.get_all(header::WARNING) {
            if let Ok(text) = warning.to_str() {
                warn_once(warning_text(text));
            }
        }
        if !parts.status.is_success() {
            return Err(refused(parts.status, &bytes));
        }
        let body = match bytes.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&bytes).map_err(|error| {
                Failure::failed(format!(
                    "the server's answer to {path} is not JSON: {error}"
                ))
                .hint(OTHER_VERSION)
            })?,
        };
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body,
        })
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        Ok(self.call(Method::GET, path, None).await?.body)
    }

    /// An answer that is no JSON, whole.
    pub(crate) async fn text(&self, path: &str) -> Result<String> {
        let request = Self::request(Method::GET, path, None, whole(Vec::new()))?;
        let (parts, body) = self.send(request).await?.into_parts();
        let bytes = read(body).await?;
        match parts.status.is_success() {
            true => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            false => Err(refused(parts.status, &bytes)),
        }
    }

    /// Whether there is something at a path.
    pub(crate) async fn exists(&self, path: &str) -> Result<bool> {
        let answer = self
            .send(Self::request(Method::HEAD, path, None, whole(Vec::new()))?)
            .await?;
        match answer.status() {
            status if status.is_success() => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            status => Err(refused(status, &[])),
        }
    }

    /// Sends a file as it is, and tells how much was sent.
    pub(crate) async fn upload(
        &self,
        path: &str,
        file: tokio::fs::File,
        size: u64,
        mut tell: impl FnMut(u64) + Send + Sync + 'static,
    ) -> Result<()> {
        let sent = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&sent);
        let frames = tokio_util::io::ReaderStream::with_capacity(file, 64 << 10);
        let frames = frames.map_ok(move |piece| {
            let length = piece.len() as u64;
            tell(counted.fetch_add(length, Ordering::Relaxed) + length);
            Frame::data(piece)
        });
        let body = BoxBody::new(StreamBody::new(frames));
        let mut request = Self::request(Method::PUT, path, Some(media::BYTES), body)?;
        request
            .headers_mut()
            .insert(header::CONTENT_LENGTH, size.into());
        // A large file over a slow line takes as long as it takes.
        let mut before = 0;
        let moves = move || {
            let now = sent.load(Ordering::Relaxed);
            std::mem::replace(&mut before, now) < now
        };
        let (parts, body) = self.send_while(request, moves).await?.into_parts();
        if parts.status.is_success() {
            return Ok(());
        }
        Err(refused(parts.status, &read(body).await?))
    }

    /// An answer as it comes, in pieces.
    pub(crate) async fn stream(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + Unpin + use<>> {
        let request = Self::request(Method::GET, path, None, whole(Vec::new()))?;
        let (parts, body) = self.send(request).await?.into_parts();
        if !parts.status.is_success() {
            return Err(refused(parts.status, &read(body).await?));
        }
        let pieces = BodyStream::new(body).filter_map(|frame| {
            let piece = match frame {
                Ok(frame) => frame.into_data().ok().map(Ok),
                Err(error) => Some(Err(io::Error::other(chain(&error)))),
            };
            futures::future::ready(piece)
        });
        Ok(StreamExt::boxed(pieces))
    }

    /// A watch: each line of the answer as JSON, `{type, object}`.
    pub(crate) async fn watch(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = Result<(String, Value)>> + Unpin + use<>> {
        use tokio::io::AsyncBufReadExt as _;
        let lines = StreamReader::new(self.stream(path).await?).lines();
        let events = futures::stream::try_unfold(lines, |mut lines| async move {
            let broken = |error: &dyn std::fmt::Display| {
                Failure::new(Code::Unreachable, format!("the watch broke off: {error}"))
            };
            let Some(line) = lines.next_line().await.map_err(|error| broken(&error))? else {
                return Ok(None);
            };
            let mut event: Value = serde_json::from_str(&line).map_err(|error| broken(&error))?;
            let kind = event["type"].as_str().unwrap_or_default().to_owned();
            let object = take(&mut event, "object");
            if kind == "ERROR" {
                return Err(status_failure(StatusCode::GONE, &object));
            }
            Ok(Some(((kind, object), lines)))
        });
        Ok(StreamExt::boxed(events))
    }
}

/// Takes a field out of what somebody else wrote, whatever that is: indexing would panic on what is
/// no object.
pub(crate) fn take(value: &mut Value, field: &str) -> Value {
    value.get_mut(field).map(Value::take).unwrap_or_default()
}

/// What comes within [`ANSWER`], and within as long again whenever something moved meanwhile.
async fn answered<T>(
    answer: impl Future<Output = T>,
    mut moves: impl FnMut() -> bool,
) -> Option<T> {
    let mut answer = pin!(answer);
    loop {
        match tokio::time::timeout(ANSWER, answer.as_mut()).await {
            Ok(answer) => return Some(answer),
            Err(_) if moves() => {}
            Err(_) => return None,
        }
    }
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

async fn read(body: Incoming) -> Result<Bytes> {
    let limited = http_body_util::Limited::new(body, MAX_ANSWER);
    match limited.collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) => Err(Failure::new(
            Code::Unreachable,
            format!("the server's answer broke off: {error}"),
        )),
    }
}

/// Tells what a server warns of, each thing once for each command.
fn warn_once(text: String) {
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if !told.contains(&text) {
        output::note(format_args!("warning: {text}"));
        told.insert(text);
    }
}

/// The words of a `Warning` header: `299 - "…"`.
fn warning_text(header: &str) -> String {
    let quoted = header
        .split_once('"')
        .and_then(|(_, rest)| rest.rsplit_once('"'));
    output::plain(
        &quoted
            .map_or(header, |(text, _)| text)
            .replace("\\\"", "\""),
    )
}

fn refused(status: StatusCode, body: &[u8]) -> Failure {
    match serde_json::from_slice(body) {
        Ok(value) => status_failure(status, &value),
        Err(_) => {
            let text = output::plain(String::from_utf8_lossy(body).trim());
            let text = if text.is_empty() {
                status.to_string()
            } else {
                text
            };
            Failure::new(code(status, ""), text).hint(OTHER_VERSION)
        }
    }
}

/// What helps, by what the server says is wrong. None where the kind of failure says it all.
fn way_out(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "Unauthorized" => {
            "give a token that is good in PLATCTRL_TOKEN or --token-file; an admin makes one with `platctrl token create`"
        }
        "Forbidden" => {
            "an admin gives the right: `platctrl token create NAME --role ROLE`, or a RoleBinding (`platctrl explain rolebindings`)"
        }
        "Invalid" => "`platctrl explain KIND.FIELD` shows what a field takes",
        "AlreadyExists" => "choose another name, or change what is there",
        "Gone" | "Expired" => "ask again: what was asked for is too long ago",
        "TooManyRequests" => "wait a moment, and try again",
        _ => return None,
    })
}

/// Field problems that a `Status` lists.
fn causes(status: &Value) -> Vec<(String, String)> {
    let causes = status["details"]["causes"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    causes
        .map(|cause| (text(&cause["field"]), text(&cause["message"])))
        .collect()
}

fn status_failure(http: StatusCode, status: &Value) -> Failure {
    let mut message = output::plain(status["message"].as_str().unwrap_or_default());
    if message.is_empty() {
        message = http.to_string();
    }
    let fields = causes(status);
    for (field, problem) in &fields {
        let line = output::plain(&format!("{field}: {problem}"));
        if !message.contains(&line) {
            message.push_str(&format!("\n  {line}"));
        }
    }
    let reason = status["reason"].as_str().unwrap_or_default();
    let hint = match status["kind"] == "Status" {
        true => way_out(reason).map(str::to_owned),
        false => Some(OTHER_VERSION.to_owned()),
    };
    Failure {
        fields,
        hint,
        ..Failure::new(code(http, reason), message)
    }
}

fn code(status: StatusCode, reason: &str) -> Code {
    match (status, reason) {
        (_, "Held" | "Frozen") => Code::Held,
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => Code::Denied,
        (StatusCode::NOT_FOUND, _) => Code::NotFound,
        (
            StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED | StatusCode::TOO_MANY_REQUESTS,
            _,
        ) => Code::Conflict,
        (StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT, _) => Code::Timeout,
        (StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY, _) => Code::Unreachable,
        _ => Code::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_lists_every_field_and_has_its_exit_code() {
        let body = br#"{"kind":"Status","status":"Failure","reason":"Invalid","message":"pods x is not valid",
            "details":{"causes":[{"field":"spec.a","message":"is required"},{"field":"spec.b","message":"is too big"}]}}"#;
        let failure = refused(StatusCode::UNPROCESSABLE_ENTITY, body);
        assert_eq!(failure.code, Code::Failed);
        assert_eq!(
            failure.message,
            "pods x is not valid\n  spec.a: is required\n  spec.b: is too big"
        );
        assert_eq!(
            refused(StatusCode::CONFLICT, b"no\x1b[31m").code,
            Code::Conflict
        );
        assert!(
            !refused(StatusCode::CONFLICT, b"no\x1b[31m")
                .message
                .contains('\x1b')
        );
        assert_eq!(refused(StatusCode::NOT_FOUND, b"").code, Code::NotFound);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_waited_for_while_something_is_sent_and_no_longer() {
        let late = || tokio::time::sleep(ANSWER * 5);
        assert!(answered(late(), || true).await.is_some());
        let began = tokio::time::Instant::now();
        let mut pieces = 2;
        let moves = || {
            pieces -= 1;
            pieces >= 0
        };
        assert!(answered(late(), moves).await.is_none());
        assert_eq!(began.elapsed(), ANSWER * 3);
    }

    #[test]
    fn the_words_of_a_warning_are_shown_alone() {
        assert_eq!(
            warning_text(r#"299 - "pods are \"kept\"""#),
            "pods are \"kept\""
        );
        assert_eq!(warning_text("odd"), "odd");
    }
}
