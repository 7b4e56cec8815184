//! Brings an artifact into the cache: streamed, counted, hashed, and there complete or not at all.
//!
//! The bytes pass through a few fixed-size chunks between whoever sends them and one writing
//! thread; the artifact is never in memory as a whole. The writer owns the temporary file, so
//! whatever ends the transfer (an error, a full disk, a caller that gave up) removes it.

use platctrl_framework::failpoint;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::digest::Hasher;
use super::process::Reading;
use super::server::Server;
use super::source::{self, Source};
use super::store::Inner;
use super::{Digest, Error};

const CHUNK: usize = 128 * 1024;
/// Chunks between the sender and the disk.
const CHUNKS: usize = 8;

/// Fetches `digest` from `source` into the cache.
pub(super) async fn fetch(store: &Inner, digest: &Digest, source: &Source) -> Result<(), Error> {
    let after = store.config.timeouts.total;
    match tokio::time::timeout(after, fetch_in_time(store, digest, source)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::TimedOut {
            what: format!("fetching {source}"),
            problem: "was not done after",
            after,
        }),
    }
}

async fn fetch_in_time(store: &Inner, digest: &Digest, source: &Source) -> Result<(), Error> {
    let config = &store.config;
    let limit = config.limits.compressed_bytes;
    let stall = config.timeouts.stall;
    match source {
        Source::Artifact(named) if named != digest => Err(Error::DigestMismatch {
            what: source.to_string(),
            actual: *named,
            expected: *digest,
        }),
        Source::Artifact(_) => {
            let Some(server) = &config.server else {
                return Err(Error::UnsupportedLocation {
                    location: source.to_string(),
                    reason: "this agent has no server to fetch artifacts from".into(),
                });
            };
            let mut body = Body::Server(within(stall, source, ask(server, digest)).await?);
            if body.announced() > limit {
                return Err(Error::TooLarge {
                    what: source.to_string(),
                    limit,
                });
            }
            receive(store, digest, source, &mut body).await
        }
        Source::File(path) => {
            let Some((root, rest)) = source::under(path, &config.allowed_directories) else {
                let shown = |path: &Path| super::escape(path.as_os_str().as_encoded_bytes());
                let allowed: Vec<_> = config
                    .allowed_directories
                    .iter()
                    .map(|path| shown(path))
                    .collect();
                let allowed = match allowed.as_slice() {
                    [] => "none are configured".to_owned(),
                    some => some.join(", "),
                };
                return Err(Error::OutsideAllowed {
                    path: shown(path),
                    allowed,
                });
            };
            let mut body = Body::File(store.helpers.read(root, rest, limit)?);
            receive(store, digest, source, &mut body).await
        }
    }
}

async fn within<T>(
    stall: Duration,
    source: &Source,
    future: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(stall, future).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::TimedOut {
            what: source.to_string(),
            problem: "sent nothing for",
            after: stall,
        }),
    }
}

/// Where the bytes come from.
enum Body {
    Server(Answer),
    File(Reading),
}

/// An answer of the server, and the connection that it comes over.
struct Answer {
    body: Incoming,
    announced: u64,
    server: String,
    digest: Digest,
    _connection: AbortOnDropHandle<()>,
}

impl Body {
    fn announced(&self) -> u64 {
        match self {
            Self::Server(answer) => answer.announced,
            Self::File(_) => 0,
        }
    }

    /// The next bytes; `None` after the last, when the sender says that they were all.
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        match self {
            Self::Server(answer) => loop {
                match answer.body.frame().await {
                    None => return Ok(None),
                    Some(Ok(frame)) => {
                        // Trailers are of no interest.
                        if let Ok(bytes) = frame.into_data() {
                            return Ok(Some(bytes));
                        }
                    }
                    Some(Err(e)) => return Err(server_error(&answer.server, &answer.digest, &e)),
                }
            },
            Self::File(reading) => {
                let mut chunk = BytesMut::with_capacity(CHUNK);
                let n = reading.output().read_buf(&mut chunk).await;
                if n.map_err(|e| Error::io("read from", "the reading process", e))? == 0 {
                    reading.finish().await?;
                    return Ok(None);
                }
                Ok(Some(chunk.freeze()))
            }
        }
    }
}

fn server_error(server: &str, digest: &Digest, error: &dyn std::error::Error) -> Error {
    // The transport's own words are behind its general ones.
    let mut reason = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        reason = format!("{reason}: {error}");
        cause = error.source();
    }
    let reason = super::escape(reason.as_bytes());
    Error::Server {
        server: server.to_owned(),
        digest: *digest,
        reason,
    }
}

/// Asks the server for an artifact.
async fn ask(server: &Server, digest: &Digest) -> Result<Answer, Error> {
    let name = server.to_string();
    let failed = |error: &dyn std::error::Error| server_error(&name, digest, error);
    let stream = server.connect().await.map_err(|e| failed(e.as_ref()))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failed(&e))?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        // What goes wrong here is also what the request or the body fails with.
        let _ = connection.await;
    }));
    let mut request = Request::get(format!("/artifacts/sha256/{}", digest.hex()))
        .header(header::HOST, "platctrl");
    if let Some(authorization) = server.authorization() {
        request = request.header(header::AUTHORIZATION, authorization);
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|e| failed(&e))?;
    let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => {
            return Err(Error::NotFound {
                location: format!("artifact:{digest}"),
                hint: format!(" on {name}; upload it again with `platctrl apply`"),
            });
        }
        status => {
            let text = match response.into_body().frame().await {
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                _ => Bytes::new(),
            };
            let text = super::escape(&text[..text.len().min(80)]);
            let reason = format!("it answered {status}: {text}");
            return Err(Error::Server {
                server: name,
                digest: *digest,
                reason,
            });
        }
    }
    let announced = response
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok())
        .unwrap_or(0);
    let body = response.into_body();
    Ok(Answer {
        body,
        announced,
        server: name,
        digest: *digest,
        _connection: connection,
    })
}

enum Piece {
    Chunk(Bytes),
    /// That was all. A channel that closes without it was given up.
    End,
}

async fn receive(
    store: &Inner,
    digest: &Digest,
    source: &Source,
    body: &mut Body,
) -> Result<(), Error> {
    let (sender, pieces) = mpsc::channel(CHUNKS);
    let writer = {
        let (what, digest) = (source.to_string(), *digest);
        let (partial, to) = (store.partial_directory(), store.cached(&digest));
        tokio::task::spawn_blocking(move || write(pieces, &what, &digest, &partial, &to))
    };
    let sent = send(store, source, body, sender).await;
    // Waited for in any case: when an error is told, the partial file is gone.
    let written = writer
        .await
        .map_err(|e| Error::io("write", "the cache", io::Error::other(e)))?;
    sent.and(written)
}

/// Hands the bytes to the writer, which gets to know their end only if it is a good one.
async fn send(
    store: &Inner,
    source: &Source,
    body: &mut Body,
    sender: mpsc::Sender<Piece>,
) -> Result<(), Error> {
    let limit = store.config.limits.compressed_bytes;
    let mut bytes = 0;
    loop {
        let chunk = within(store.config.timeouts.stall, source, body.next()).await?;
        let last = chunk.is_none();
        let piece = chunk.map_or(Piece::End, Piece::Chunk);
        if let Piece::Chunk(chunk) = &piece {
            bytes += chunk.len() as u64;
            if bytes > limit {
                let what = source.to_string();
                return Err(Error::TooLarge { what, limit });
            }
        }
        // A writer that is gone has an error to tell.
        if sender.send(piece).await.is_err() || last {
            return Ok(());
        }
    }
}

/// The writing thread.
fn write(
    mut pieces: mpsc::Receiver<Piece>,
    what: &str,
    expected: &Digest,
    partial: &Path,
    to: &Path,
) -> Result<(), Error> {
    let io = |e: io::Error| Error::io("write", to, e);
    // Mode 0600, a random name, removed when dropped.
    let mut file = tempfile::Builder::new()
        .suffix(".part")
        .tempfile_in(partial)
        .map_err(io)?;
    let mut hasher = Hasher::default();
    loop {
        match pieces.blocking_recv() {
            Some(Piece::Chunk(chunk)) => {
                hasher.update(&chunk);
                file.as_file_mut().write_all(&chunk).map_err(io)?;
            }
            Some(Piece::End) => break,
            None => return Err(io(io::Error::other("the transfer was given up"))),
        }
    }
    let actual = hasher.digest();
    failpoint!("agent.verify");
    if actual != *expected {
        let expected = *expected;
        return Err(Error::DigestMismatch {
            what: what.to_owned(),
            actual,
            expected,
        });
    }
    file.as_file().sync_all().map_err(io)?;
    failpoint!("agent.verify.done");
    file.persist(to).map_err(|e| io(e.error))?;
    let parent = to.parent().unwrap_or(Path::new("/"));
    std::fs::File::open(parent)
        .and_then(|parent| parent.sync_all())
        .map_err(io)
}
