//! One check over HTTP or HTTPS. Whatever answers is hostile until the answer is whole.

use std::convert::Infallible;
use std::error::Error as _;
use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use platctrl_framework::environment::Environment;
use platctrl_kinds::Span;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::tls::Tls;

/// The longest head of an answer.
const LONGEST_HEAD: usize = 16 << 10;
const MOST_HEADERS: usize = 100;
/// The longest body of an answer. It is read to its end, which shows that it was whole, and thrown
/// away piece by piece.
const LONGEST_BODY: u64 = 1 << 20;

/// Asks once. Everything together takes at most `timeout`. A failure says what was asked and what
/// went wrong, in words of ours.
pub(super) async fn get(
    environment: &Environment,
    target: SocketAddr,
    path: &str,
    tls: Option<(&Tls, Option<&str>)>,
    timeout: Span,
) -> Result<(), String> {
    let outcome = tokio::select! {
        outcome = ask(target, path, tls) => outcome,
        () = environment.sleep(timeout.duration()) => Err(format!("timed out after {timeout}")),
    };
    let scheme = if tls.is_some() { "https" } else { "http" };
    outcome.map_err(|problem| format!("GET {scheme}://{target}{path}: {problem}"))
}

async fn ask(
    target: SocketAddr,
    path: &str,
    tls: Option<(&Tls, Option<&str>)>,
) -> Result<(), String> {
    let stream = connect(target).await?;
    let Some((tls, name)) = tls else {
        return exchange(stream, target, path).await;
    };
    let config = tls.client(name)?;
    let name = match name {
        Some(name) => ServerName::try_from(name.to_owned()).map_err(|error| error.to_string())?,
        None => ServerName::from(target.ip()),
    };
    let stream = TlsConnector::from(config).connect(name, stream).await;
    let stream = stream.map_err(|error| format!("no TLS: {}", io_problem(&error)))?;
    exchange(stream, target, path).await
}

/// Connects, and no more.
pub(super) async fn connect(target: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(target)
        .await
        .map_err(|error| io_problem(&error))?;
    // A request is one small packet.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    target: SocketAddr,
    path: &str,
) -> Result<(), String> {
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(LONGEST_HEAD)
        .max_headers(MOST_HEADERS)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(|error| problem(&error))?;
    let request = Request::get(path)
        .header(HOST, target.to_string())
        .header(
            USER_AGENT,
            concat!("platctrl-health/", env!("CARGO_PKG_VERSION")),
        )
        .header(ACCEPT, "*/*")
        .header(CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| format!("the path cannot be asked for: {error}"))?;
    let exchange = async move {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| problem(&error))?;
        judge(response).await
    };
    // The connection works only while it is polled. What it fails of, the exchange learns.
    let connection = async {
        let _ = connection.await;
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        outcome = exchange => outcome,
        never = connection => match never {},
    }
}

/// Only a 2xx that arrives whole is well: a redirect points somewhere else, and is not followed.
async fn judge(response: Response<Incoming>) -> Result<(), String> {
    let status = response.status();
    if !status.is_success() {
        let hint = if status.is_redirection() {
            ", a redirect, which is not followed"
        } else {
            ""
        };
        return Err(format!("{}{hint}", status.as_u16()));
    }
    let mut body = response.into_body();
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| problem(&error))?;
        read += frame.data_ref().map_or(0, |data| data.len() as u64);
        if read > LONGEST_BODY {
            return Err(format!(
                "the answer is longer than {} KiB",
                LONGEST_BODY >> 10
            ));
        }
    }
    Ok(())
}

fn problem(error: &hyper::Error) -> String {
    let source = error.source();
    if let Some(error) = source.and_then(|source| source.downcast_ref::<io::Error>()) {
        return io_problem(error);
    }
    if error.is_parse_too_large() {
        format!(
            "the head of the answer is longer than {} KiB",
            LONGEST_HEAD >> 10
        )
    } else if error.is_parse() {
        format!("the answer is not HTTP/1.1 ({error})")
    } else if error.is_incomplete_message() {
        "closed the connection before its answer was whole".to_owned()
    } else {
        error.to_string()
    }
}

fn io_problem(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "connection reset".to_owned(),
        io::ErrorKind::UnexpectedEof => {
            "closed the connection before its answer was whole".to_owned()
        }
        _ => error.to_string(),
    }
}
