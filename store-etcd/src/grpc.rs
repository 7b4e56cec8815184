//! gRPC calls over one HTTP/2 connection: framing, statuses, and whether a request was sent.
//!
//! What a caller must know after a failure is whether the server may have acted. So the errors
//! here are told apart by that, and not by which layer they came from.

use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use prost::Message;
use tokio::sync::mpsc;

/// The most bytes that an answer may have.
pub(crate) const MAX_MESSAGE: usize = 32 << 20;
/// A compression flag and a length.
const PREFACE: usize = 5;

/// A method of the API.
pub(crate) type Method = &'static str;

/// What a call ended with, when not with an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CallError {
    /// The request never left.
    NotSent(String),
    /// The request may have arrived; no status came back.
    Broken(String),
    /// The server's refusal.
    Status(Status),
    /// The answer is too large to read; the server did what was asked.
    TooLong(usize),
}

/// A gRPC status other than success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) code: Code,
    pub(crate) message: String,
}

/// The codes that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    OutOfRange,
    Unimplemented,
    Unavailable,
    Unauthenticated,
    Other(u32),
}

impl Code {
    fn new(number: u32) -> Self {
        match number {
            3 => Self::InvalidArgument,
            5 => Self::NotFound,
            7 => Self::PermissionDenied,
            8 => Self::ResourceExhausted,
            9 => Self::FailedPrecondition,
            11 => Self::OutOfRange,
            12 => Self::Unimplemented,
            14 => Self::Unavailable,
            16 => Self::Unauthenticated,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent(why) | Self::Broken(why) => f.write_str(why),
            Self::Status(status) => f.write_str(&status.message),
            Self::TooLong(size) => write!(f, "an answer of {size} bytes"),
        }
    }
}

/// The body of a request: one message, or messages as they come.
#[derive(Debug)]
pub(crate) enum Outgoing {
    One(Option<Bytes>),
    Stream(mpsc::UnboundedReceiver<Bytes>),
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::One(message) => Poll::Ready(message.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(messages) => messages
                .poll_recv(context)
                .map(|message| message.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::One(None))
    }
}

/// A message with its preface.
pub(crate) fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFACE + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message
        .encode(&mut bytes)
        .expect("the buffer grows as needed");
    bytes.freeze()
}

/// What goes with a call beside its message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head<'a> {
    pub(crate) authority: &'a str,
    pub(crate) method: Method,
    pub(crate) token: Option<&'a HeaderValue>,
}

/// Sends the head and body of a call. What comes of it is told with the first message: a server
/// may wait with the head of its answer until it has one.
pub(crate) fn start<M: Message + Default>(
    sender: &SendRequest<Outgoing>,
    head: Head<'_>,
    body: Outgoing,
) -> Messages<M> {
    let mut request = Request::post(format!("http://{}{}", head.authority, head.method))
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        // A member without a leader says so, instead of waiting for one.
        .header("hasleader", "true");
    if let Some(token) = head.token {
        request = request.header("token", token.clone());
    }
    let mut sender = sender.clone();
    let starting = async move {
        let request = request
            .body(body)
            .map_err(|error| CallError::NotSent(error.to_string()))?;
        let answer = sender.try_send_request(request).await;
        answer.map_err(|mut error| {
            let unsent = error.take_message().is_some();
            let why = chain(&error.into_error());
            if unsent {
                CallError::NotSent(why)
            } else {
                CallError::Broken(why)
            }
        })
    };
    Messages {
        source: Source::Starting(Box::pin(starting)),
        buffer: BytesMut::new(),
        message: PhantomData,
    }
}

/// One question, one answer.
pub(crate) async fn unary<M: Message + Default>(
    sender: &SendRequest<Outgoing>,
    head: Head<'_>,
    message: Bytes,
) -> Result<M, CallError> {
    let mut answers = start::<M>(sender, head, Outgoing::One(Some(message)));
    match answers.next().await? {
        Some(answer) => Ok(answer),
        None => Err(CallError::Broken("an answer without a message".to_owned())),
    }
}

/// The messages that the server sends.
pub(crate) struct Messages<M> {
    source: Source,
    buffer: BytesMut,
    message: PhantomData<fn() -> M>,
}

enum Source {
    Starting(BoxFuture<'static, Result<Response<Incoming>, CallError>>),
    Open(Incoming),
    Ended,
}

/// The body of an answer whose head promises messages.
fn opened(answer: Response<Incoming>) -> Result<Incoming, CallError> {
    let (head, body) = answer.into_parts();
    if let Some(status) = status_of(&head.headers) {
        return Err(CallError::Status(status));
    }
    if head.status != StatusCode::OK {
        return Err(CallError::Broken(format!(
            "HTTP status {} instead of a gRPC answer",
            head.status
        )));
    }
    Ok(body)
}

impl<M: Message + Default> Messages<M> {
    /// The next message; None at the stream's orderly end. May be dropped while it waits:
    /// nothing that has arrived is lost.
    pub(crate) async fn next(&mut self) -> Result<Option<M>, CallError> {
        loop {
            if let Some(message) = self.take_message()? {
                return Ok(Some(message));
            }
            let body = match &mut self.source {
                Source::Ended => return Ok(None),
                Source::Open(body) => body,
                Source::Starting(starting) => {
                    let answer = starting.await;
                    self.source = Source::Ended;
                    self.source = Source::Open(opened(answer?)?);
                    continue;
                }
            };
            match body.frame().await {
                None => self.source = Source::Ended,
                Some(Err(error)) => return Err(CallError::Broken(chain(&error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if self.buffer.is_empty() => self.buffer = data.into(),
                    Ok(data) => self.buffer.put(data),
                    Err(frame) => {
                        if let Some(status) = frame.trailers_ref().and_then(status_of) {
                            return Err(CallError::Status(status));
                        }
                    }
                },
            }
        }
    }

    fn take_message(&mut self) -> Result<Option<M>, CallError> {
        let Some(preface) = self.buffer.first_chunk::<PREFACE>() else {
            return Ok(None);
        };
        let [compressed, length @ ..] = *preface;
        let length = u32::from_be_bytes(length) as usize;
        if compressed != 0 {
            return Err(CallError::Broken("a compressed message".to_owned()));
        }
        if length > MAX_MESSAGE {
            return Err(CallError::TooLong(length));
        }
        if self.buffer.len() < PREFACE + length {
            self.buffer.reserve(PREFACE + length - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(PREFACE);
        let bytes = self.buffer.split_to(length).freeze();
        let message = M::decode(bytes);
        let message = message
            .map_err(|error| CallError::Broken(format!("an unreadable message: {error}")))?;
        Ok(Some(message))
    }
}

/// The status that headers or trailers tell; None when it is success or there is none.
fn status_of(headers: &HeaderMap) -> Option<Status> {
    let code = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    if code == 0 {
        return None;
    }
    let message = headers.get("grpc-message").map(HeaderValue::as_bytes);
    Some(Status {
        code: Code::new(code),
        message: percent_decoded(message.unwrap_or_default()),
    })
}

fn percent_decoded(text: &[u8]) -> String {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut bytes = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        match (text[at], digit(text.get(at + 1)), digit(text.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                bytes.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An error with its causes, each once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_from_its_headers_with_its_text_decoded() {
        let mut headers = HeaderMap::new();
        assert_eq!(status_of(&headers), None);
        headers.insert("grpc-status", HeaderValue::from_static("0"));
        assert_eq!(status_of(&headers), None);
        headers.insert("grpc-status", HeaderValue::from_static("14"));
        headers.insert("grpc-message", HeaderValue::from_static("no%20leader%2"));
        let status = status_of(&headers).unwrap();
        assert_eq!(status.code, Code::Unavailable);
        assert_eq!(status.message, "no leader%2");
    }
}
