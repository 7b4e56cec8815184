//! Brings an artifact into the cache: counted, hashed, and there complete or not at all.
//!
//! Whatever it comes from, the bytes pass from a helper process, which asks and parses, through a
//! few fixed-size chunks to one writing thread, which owns the file in the making. So the artifact
//! is never in memory as a whole, and whatever ends a transfer (an error, a full disk, a caller
//! that gave up) leaves nothing, or what it can be gone on with.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::child::Report;
use super::config::Timeouts;
use super::download::{self, Begin, Origin, Trouble};
use super::partial::{Alone, Partial};
use super::process::{Passing, unpack_error};
use super::server::Server;
use super::source::{self, Source};
use super::store::{Inner, blocking};
use super::{Digest, Error};

/// Chunks between the sender and the disk.
const CHUNKS: usize = 8;
/// How often a transfer that broke off is gone on with at once, as long as it gets on.
const RESUMED: u32 = 5;
/// The wait before that, doubled each time.
const PAUSE: Duration = Duration::from_millis(100);

/// Fetches `digest` from `source` into the cache.
pub(super) async fn fetch(
    store: &Inner,
    digest: &Digest,
    source: &Source,
    alone: &Alone,
) -> Result<(), Error> {
    let after = store.config.timeouts.total;
    match tokio::time::timeout(after, fetch_in_time(store, digest, source, alone)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::TimedOut {
            what: format!("fetching {source}"),
            problem: "was not done after",
            after,
        }),
    }
}

async fn fetch_in_time(
    store: &Inner,
    digest: &Digest,
    source: &Source,
    alone: &Alone,
) -> Result<(), Error> {
    let (mut resumed, mut got) = (0, 0);
    let mut whole = false;
    loop {
        let mut spliced = false;
        let attempt = attempt(store, digest, source, alone, &mut spliced).await;
        let Err(error) = attempt else { return Ok(()) };
        match &error {
            // The part may have been of other bytes than the rest: once more from the start.
            Error::DigestMismatch { .. } if spliced && !whole => {
                (whole, got) = (true, 0);
            }
            Error::Server { .. } | Error::TimedOut { .. } if resumed < RESUMED => {
                let left = part(store, digest).await;
                if left <= got {
                    return Err(error);
                }
                got = left;
            }
            _ => return Err(error),
        }
        tracing::debug!(%source, %error, bytes = got, "a transfer broke off: going on with it");
        tokio::time::sleep(PAUSE.saturating_mul(2_u32.saturating_pow(resumed))).await;
        resumed += 1;
    }
}

/// Bytes of a part that can be gone on with.
async fn part(store: &Inner, digest: &Digest) -> u64 {
    let path = store
        .partial_directory()
        .join(format!("{}.part", digest.hex()));
    let length = blocking(move || Ok(fs::metadata(path).map_or(0, |it| it.len())));
    length.await.unwrap_or(0)
}

/// `spliced` tells whether the bytes are the rest of others.
async fn attempt(
    store: &Inner,
    digest: &Digest,
    source: &Source,
    alone: &Alone,
    spliced: &mut bool,
) -> Result<(), Error> {
    let (directory, key, origin) = (store.partial_directory(), *digest, source_key(source));
    let alone = Alone::clone(alone);
    let mut partial = blocking(move || Partial::open(&directory, &key, &origin, alone)).await?;
    let timeouts = &store.config.timeouts;
    let resume = partial.resume();
    let mut body = within(timeouts.stall, source, ask(store, digest, source, resume)).await?;
    let begin = within(timeouts.stall, source, body.passing.begin()).await?;
    let Some(begin) = begin else {
        return Err(body.why_not(&store.config.limits).await);
    };
    let limit = store.config.limits.compressed_bytes;
    if begin.total.is_some_and(|total| total > limit) {
        let what = source.to_string();
        return Err(Error::TooLarge { what, limit });
    }
    let (what, offset) = (named(source, &begin), begin.offset);
    *spliced = offset > 0;
    partial = blocking(move || partial.begin(&begin).map(|()| partial)).await?;

    let (sender, pieces) = mpsc::channel(CHUNKS);
    let writer = {
        let (digest, to) = (*digest, store.cached(digest));
        tokio::task::spawn_blocking(move || write(pieces, partial, &what, &digest, &to))
    };
    let sent = send(store, source, &mut body, offset, sender).await;
    // Waited for in any case: when an error is told, the partial file is as it will be.
    let written = writer
        .await
        .map_err(|e| Error::io("write", "the cache", io::Error::other(e)))?;
    sent.and(written)
}

/// What a part may be gone on with from, and nothing else.
fn source_key(source: &Source) -> String {
    match source {
        // Also what is not shown.
        Source::Http(url) => url.as_str().to_owned(),
        other => other.to_string(),
    }
}

fn named(source: &Source, begin: &Begin) -> String {
    match begin.content_type.as_str() {
        "" | "application/gzip" | "application/x-gzip" | "application/octet-stream" => {
            source.to_string()
        }
        other => format!("{source}, which is {other},"),
    }
}

/// A transfer, and how to speak of it.
#[derive(Debug)]
struct Body {
    passing: Passing,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// A file of this machine, and who reads it.
    File { shown: String, user: String },
    /// A server: who it is, what was asked for, and where to put it.
    Server {
        server: String,
        digest: Digest,
        location: String,
        hint: &'static str,
    },
}

/// Starts the helper.
async fn ask(
    store: &Inner,
    digest: &Digest,
    source: &Source,
    resume: Option<download::Resume>,
) -> Result<Body, Error> {
    let config = &store.config;
    let order = |origin, resume| download::Order {
        origin,
        resume,
        limit: config.limits.compressed_bytes,
        wall_time: config.timeouts.total,
        network: config.network.clone(),
    };
    let of_server = |server: String, hint: &'static str| Kind::Server {
        server,
        digest: *digest,
        location: source.to_string(),
        hint,
    };
    let elsewhere = "; correct the location, or publish it there";
    let (passing, kind) = match source {
        Source::Artifact(named) if named != digest => {
            return Err(Error::DigestMismatch {
                what: source.to_string(),
                actual: *named,
                expected: *digest,
            });
        }
        Source::Artifact(_) => {
            let Some(server) = &config.server else {
                return Err(Error::UnsupportedLocation {
                    location: source.to_string(),
                    reason: "this agent has no server to fetch artifacts from".into(),
                });
            };
            let name = server.to_string();
            let failed = |error: &dyn std::error::Error| Error::Server {
                server: name.clone(),
                digest: *digest,
                reason: super::escape(error.to_string().as_bytes()),
            };
            let passing = match server {
                // Only we may connect to that one: the connection is all the helper gets.
                Server::Unix(path) => {
                    let stream = UnixStream::connect(path).await;
                    let stream = stream.and_then(UnixStream::into_std);
                    let stream = stream.map_err(|error| {
                        failed(&io::Error::other(format!("{}: {error}", path.display())))
                    })?;
                    let order = order(Origin::Connected { digest: *digest }, None);
                    store.helpers.fetch(&order, Some(stream.into())).await?
                }
                Server::Tls(server) => {
                    let ca = server.ca.clone();
                    let ca = blocking(move || {
                        fs::read_to_string(&ca).map_err(|e| Error::io("read", &ca, e))
                    });
                    let origin = Origin::Server {
                        digest: *digest,
                        url: name.clone(),
                        ca: ca.await.map_err(|error| failed(&error))?,
                        token: server.token.clone(),
                    };
                    store.helpers.fetch(&order(origin, resume), None).await?
                }
            };
            let hint = "; upload it again with `platctrl apply`";
            (passing, of_server(name, hint))
        }
        Source::File(path) => {
            let Some((root, rest)) = source::under(path, &config.allowed_directories) else {
                return Err(outside(path, &config.allowed_directories));
            };
            let limit = config.limits.compressed_bytes;
            let kind = Kind::File {
                shown: shown(path),
                user: store.helpers.user_name(),
            };
            (store.helpers.read(root, rest, limit)?, kind)
        }
        Source::Http(url) => {
            let origin = Origin::Web {
                url: url.as_str().to_owned(),
            };
            let passing = store.helpers.fetch(&order(origin, resume), None).await?;
            (passing, of_server(url.authority().to_owned(), elsewhere))
        }
        Source::S3 { bucket, key } => {
            let origin = Origin::S3 {
                bucket: bucket.clone(),
                key: key.clone(),
            };
            let passing = store.helpers.fetch(&order(origin, resume), None).await?;
            (passing, of_server(format!("s3://{bucket}"), elsewhere))
        }
    };
    Ok(Body { passing, kind })
}

fn shown(path: &Path) -> String {
    super::escape(path.as_os_str().as_encoded_bytes())
}

fn outside(path: &Path, allowed: &[std::path::PathBuf]) -> Error {
    let allowed: Vec<_> = allowed.iter().map(|path| shown(path)).collect();
    let allowed = match allowed.as_slice() {
        [] => "none are configured".to_owned(),
        some => some.join(", "),
    };
    Error::OutsideAllowed {
        path: shown(path),
        allowed,
    }
}

impl Body {
    /// The next bytes; None after the last, when the helper says that they were all.
    async fn next(&mut self, limits: &super::Limits) -> Result<Option<Bytes>, Error> {
        match self.passing.next().await? {
            Some(bytes) => Ok(Some(bytes)),
            None => match self.passing.finish().await? {
                Report::Done { .. } => Ok(None),
                report => Err(self.error(report, limits)),
            },
        }
    }

    /// Why nothing came.
    async fn why_not(mut self, limits: &super::Limits) -> Error {
        match self.passing.finish().await {
            Ok(Report::Done { .. }) => Error::Child {
                task: "fetch",
                status: "nothing was passed on".into(),
                said: String::new(),
            },
            Ok(report) => self.error(report, limits),
            Err(error) => error,
        }
    }

    fn error(&self, report: Report, limits: &super::Limits) -> Error {
        match (&self.kind, report) {
            (Kind::File { shown, .. }, Report::NotFound) => Error::NotFound {
                location: format!("file:{shown}"),
                hint: String::new(),
            },
            (Kind::File { shown, .. }, Report::Outside) => Error::OutsideAllowed {
                path: shown.clone(),
                allowed: "a symbolic link leads out of it".into(),
            },
            (Kind::File { shown, user }, Report::Denied { errno }) => Error::Unreadable {
                path: shown.clone(),
                user: user.clone(),
                source: io::Error::from_raw_os_error(errno),
            },
            (Kind::File { shown, .. }, Report::NotAFile) => Error::Io {
                doing: "read",
                path: shown.into(),
                source: io::Error::other("it is not a regular file"),
            },
            (Kind::Server { location, hint, .. }, Report::NotFetched(Trouble::NotFound)) => {
                Error::NotFound {
                    location: location.clone(),
                    hint: (*hint).to_owned(),
                }
            }
            (Kind::Server { location, .. }, Report::NotFetched(Trouble::TooLarge)) => {
                Error::TooLarge {
                    what: location.clone(),
                    limit: limits.compressed_bytes,
                }
            }
            (
                Kind::Server { server, digest, .. },
                Report::NotFetched(Trouble::Server { reason, permanent }),
            ) => {
                let (server, digest) = (server.clone(), *digest);
                match permanent {
                    true => Error::ServerRefused {
                        server,
                        digest,
                        reason,
                    },
                    false => Error::Server {
                        server,
                        digest,
                        reason,
                    },
                }
            }
            (_, report) => unpack_error(report),
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

enum Piece {
    Chunk(Bytes),
    /// That was all.
    End,
    /// It is not wanted any more, not even for another attempt.
    Never,
}

/// Hands the bytes to the writer, which gets to know their end only if it is a good one.
async fn send(
    store: &Inner,
    source: &Source,
    body: &mut Body,
    mut bytes: u64,
    sender: mpsc::Sender<Piece>,
) -> Result<(), Error> {
    let limits = &store.config.limits;
    let limit = limits.compressed_bytes;
    let mut pace = Pace::new(store.config.timeouts);
    loop {
        let chunk = within(store.config.timeouts.stall, source, body.next(limits)).await?;
        let last = chunk.is_none();
        let piece = chunk.map_or(Piece::End, Piece::Chunk);
        if let Piece::Chunk(chunk) = &piece {
            bytes += chunk.len() as u64;
            if bytes > limit {
                let _ = sender.send(Piece::Never).await;
                let what = source.to_string();
                return Err(Error::TooLarge { what, limit });
            }
            if !pace.keeps(chunk.len() as u64, Instant::now()) {
                return Err(Error::TimedOut {
                    what: source.to_string(),
                    problem: "sent next to nothing for",
                    after: store.config.timeouts.stall,
                });
            }
        }
        // A writer that is gone has an error to tell.
        if sender.send(piece).await.is_err() || last {
            return Ok(());
        }
    }
}

/// Whether a sender gets anywhere: one that drips is as good as silent.
struct Pace {
    timeouts: Timeouts,
    since: Instant,
    bytes: u64,
}

impl Pace {
    fn new(timeouts: Timeouts) -> Self {
        Self {
            timeouts,
            since: Instant::now(),
            bytes: 0,
        }
    }

    fn keeps(&mut self, bytes: u64, now: Instant) -> bool {
        self.bytes += bytes;
        let span = now.saturating_duration_since(self.since);
        if span < self.timeouts.stall {
            return true;
        }
        let least = span.as_secs_f64() * self.timeouts.least_rate as f64;
        let kept = self.bytes as f64 >= least;
        (self.since, self.bytes) = (now, 0);
        kept
    }
}

/// The writing thread.
fn write(
    mut pieces: mpsc::Receiver<Piece>,
    mut partial: Partial,
    what: &str,
    expected: &Digest,
    to: &Path,
) -> Result<(), Error> {
    loop {
        match pieces.blocking_recv() {
            Some(Piece::Chunk(chunk)) => partial.write(&chunk)?,
            Some(Piece::End) => return partial.finish(what, expected, to),
            end => {
                if end.is_some() {
                    partial.spoil();
                }
                let given_up = io::Error::other("the transfer was given up");
                return Err(Error::io("write", to, given_up));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_that_drips_does_not_keep_pace_and_a_slow_one_does() {
        let timeouts = Timeouts {
            stall: Duration::from_secs(30),
            least_rate: 1024,
            ..Timeouts::default()
        };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut drip = Pace::new(timeouts);
        drip.since = start;
        assert!(drip.keeps(1, at(10)) && drip.keeps(1, at(20)) && !drip.keeps(1, at(31)));
        let mut slow = Pace::new(timeouts);
        slow.since = start;
        for second in 1..200 {
            assert!(slow.keeps(2048, at(second)), "{second}");
        }
        // What comes at the end of a pause is counted over the pause.
        assert!(!slow.keeps(10, at(400)));
    }
}
