//! The task `fetch` of a helper process: asks a server for an artifact and passes its bytes on.
//!
//! Standard output gets one line of JSON ([`Begin`]) and then the bytes, from `begin.offset` on.
//! What they are worth is decided by the parent, which counts and hashes them.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::{Response, StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use url::Url;

use super::http::{self, Client, Failure};
use super::network::Network;
use super::{Digest, s3};

/// How much of a refusal's text is passed on.
const SAID: usize = 80;

/// What `fetch` is asked.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) origin: Origin,
    pub(super) resume: Option<Resume>,
    /// Nothing that is larger is wanted.
    pub(super) limit: u64,
    pub(super) wall_time: Duration,
    pub(super) network: Network,
}

/// Whom to ask.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Origin {
    Web {
        url: String,
    },
    S3 {
        bucket: String,
        key: String,
    },
    /// Our server, over the connection that is the standard input.
    Connected {
        digest: Digest,
    },
    /// Our server over TLS.
    Server {
        digest: Digest,
        url: String,
        /// The authority that signed its certificate.
        ca: String,
        token: Option<String>,
    },
}

impl std::fmt::Debug for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Web { .. } => "Web",
            Self::S3 { .. } => "S3",
            Self::Connected { .. } => "Connected",
            Self::Server { .. } => "Server",
        })
    }
}

/// Where an earlier attempt stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Resume {
    pub(super) offset: u64,
    /// What tells whether the rest is of the same bytes: a strong ETag, or a date.
    pub(super) validator: String,
}

/// What is said before the first byte.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Begin {
    /// Bytes that are left out, as asked.
    pub(super) offset: u64,
    /// Bytes of the whole, where the server says it.
    pub(super) total: Option<u64>,
    pub(super) validator: Option<String>,
    pub(super) content_type: String,
}

/// Why an artifact was not fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Trouble {
    NotFound,
    TooLarge,
    Server { reason: String, permanent: bool },
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        let Failure { reason, permanent } = failure;
        Self::Server { reason, permanent }
    }
}

pub(super) type Piece = Result<bytes::Bytes, Failure>;

/// What is opened while everything can be.
#[derive(Debug)]
pub(super) struct Ready {
    order: Order,
    client: Option<Client>,
    connection: Option<OwnedFd>,
    runtime: Runtime,
}

/// Reads what it takes to ask: to be called before the sandbox is entered.
pub(super) fn prepare(order: Order) -> Result<Ready, Trouble> {
    let mut connection = None;
    let client = match &order.origin {
        Origin::Connected { .. } => {
            let stream = io::stdin().as_fd().try_clone_to_owned();
            connection = Some(stream.map_err(|e| Failure::new(&e))?);
            None
        }
        Origin::Server { ca, .. } => Some(Client::of_authority(ca)?),
        Origin::Web { .. } | Origin::S3 { .. } => Some(Client::new(order.network.clone())?),
    };
    // It makes sockets for itself that are not allowed later.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(&e))?;
    Ok(Ready {
        order,
        client,
        connection,
        runtime,
    })
}

/// Fetches; returns how many bytes were passed on.
pub(super) fn fetch(ready: Ready) -> Result<u64, Trouble> {
    let Ready {
        order,
        client,
        connection,
        runtime,
    } = ready;
    let passed = runtime.block_on(pass_on(order, client, connection));
    // What is still open ends with the process.
    runtime.shutdown_background();
    passed
}

async fn pass_on(
    order: Order,
    client: Option<Client>,
    connection: Option<OwnedFd>,
) -> Result<u64, Trouble> {
    let limit = order.limit;
    let (begin, mut pieces) = ask(order, client, connection).await?;
    if begin.total.is_some_and(|total| total > limit) {
        return Err(Trouble::TooLarge);
    }
    let output = io::stdout().as_fd().try_clone_to_owned();
    let mut output = File::from(output.map_err(|e| Failure::new(&e))?);
    let mut line = serde_json::to_vec(&begin).map_err(|e| Failure::new(&e))?;
    line.push(b'\n');
    // A reader that has gone away needs no words.
    let closed = |_| Failure::refused("nobody listens any more");
    output.write_all(&line).map_err(closed)?;
    let mut bytes = 0;
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        bytes += piece.len() as u64;
        output.write_all(&piece).map_err(closed)?;
    }
    Ok(bytes)
}

async fn ask(
    order: Order,
    client: Option<Client>,
    connection: Option<OwnedFd>,
) -> Result<(Begin, BoxStream<'static, Piece>), Trouble> {
    let missing = || Failure::refused("it was not prepared");
    match order.origin {
        Origin::S3 { bucket, key } => {
            let client = client.ok_or_else(missing)?;
            s3::get(client, &order.network.s3, &bucket, &key, order.resume).await
        }
        Origin::Web { url } => {
            let url = Url::parse(&url).map_err(|e| Failure::new(&e))?;
            let client = client.ok_or_else(missing)?;
            let mut resume = order.resume;
            loop {
                let (url, answer) = client.get(&url, &range(resume.as_ref())).await?;
                match begin(&answer, resume.as_ref(), &url)? {
                    Some(begin) => return Ok((begin, body(answer))),
                    // What is there has changed: the whole of it.
                    None => resume = None,
                }
            }
        }
        Origin::Server {
            digest,
            url,
            ca: _,
            token,
        } => {
            let url = format!("{url}{}", path(&digest));
            let client = client.ok_or_else(missing)?;
            let token = token.map(|token| format!("Bearer {token}"));
            let mut resume = order.resume;
            loop {
                let mut request = hyper::Request::get(&url).header(header::HOST, "platctrl");
                if let Some(token) = &token {
                    request = request.header(header::AUTHORIZATION, token);
                }
                let answer = client.send(with(request, resume.as_ref())?, true).await?;
                match begin_of_ours(&answer, resume.as_ref()) {
                    Ok(Some(begin)) => return Ok((begin, body(answer))),
                    Ok(None) => resume = None,
                    Err(trouble) => return Err(explained(trouble, answer).await),
                }
            }
        }
        Origin::Connected { digest } => {
            let stream = std::os::unix::net::UnixStream::from(connection.ok_or_else(missing)?);
            stream.set_nonblocking(true).map_err(|e| Failure::new(&e))?;
            let stream = UnixStream::from_std(stream).map_err(|e| Failure::new(&e))?;
            let request = hyper::Request::get(path(&digest)).header(header::HOST, "platctrl");
            // One connection, one request: the rest of something is not asked for.
            let answer = http::over(stream, with(request, None)?).await?;
            match begin_of_ours(&answer, None) {
                Ok(Some(begin)) => Ok((begin, body(answer))),
                Ok(None) => Err(Failure::refused("it answered what was not asked").into()),
                Err(trouble) => Err(explained(trouble, answer).await),
            }
        }
    }
}

fn path(digest: &Digest) -> String {
    format!("/artifacts/sha256/{}", digest.hex())
}

fn range(resume: Option<&Resume>) -> Vec<(header::HeaderName, String)> {
    resume.map_or_else(Vec::new, |resume| {
        vec![
            (header::RANGE, format!("bytes={}-", resume.offset)),
            (header::IF_RANGE, resume.validator.clone()),
        ]
    })
}

fn with(
    mut request: hyper::http::request::Builder,
    resume: Option<&Resume>,
) -> Result<hyper::Request<http_body_util::Empty<bytes::Bytes>>, Failure> {
    for (name, value) in range(resume) {
        request = request.header(name, value);
    }
    request
        .body(http_body_util::Empty::new())
        .map_err(|e| Failure::new(&e))
}

fn body(answer: Response<Incoming>) -> BoxStream<'static, Piece> {
    let body = answer.into_body().into_data_stream();
    body.map_err(|error| Failure::new(&error)).boxed()
}

/// Judges an answer from the web. None: the rest is not to be had, the whole may be.
fn begin(
    answer: &Response<Incoming>,
    resume: Option<&Resume>,
    url: &Url,
) -> Result<Option<Begin>, Trouble> {
    let who = super::source::shown(url);
    begin_of(answer.status(), answer.headers(), resume).map_err(|trouble| match trouble {
        Trouble::Server { reason, permanent } => Trouble::Server {
            reason: format!("{who}: {reason}"),
            permanent,
        },
        other => other,
    })
}

fn begin_of_ours(
    answer: &Response<Incoming>,
    resume: Option<&Resume>,
) -> Result<Option<Begin>, Trouble> {
    begin_of(answer.status(), answer.headers(), resume)
}

/// The same with some of what the server says about it.
async fn explained(trouble: Trouble, answer: Response<Incoming>) -> Trouble {
    let Trouble::Server { reason, permanent } = trouble else {
        return trouble;
    };
    let said = match answer.into_body().frame().await {
        Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
        _ => bytes::Bytes::new(),
    };
    let said = super::escape(&said[..said.len().min(SAID)]);
    Trouble::Server {
        reason: format!("{reason}: {said}"),
        permanent,
    }
}

fn begin_of(
    status: StatusCode,
    headers: &header::HeaderMap,
    resume: Option<&Resume>,
) -> Result<Option<Begin>, Trouble> {
    let text = |name| {
        let value: Option<&header::HeaderValue> = headers.get(name);
        value.and_then(|value| value.to_str().ok())
    };
    let length = || text(header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    let refused = |reason: String, permanent| Err(Trouble::Server { reason, permanent });
    let (offset, total) = match (status, resume) {
        (StatusCode::OK, _) => (0, length()),
        (StatusCode::PARTIAL_CONTENT, Some(resume)) => {
            match text(header::CONTENT_RANGE).and_then(content_range) {
                Some((start, total)) if start == resume.offset => (start, total),
                _ => return Ok(None),
            }
        }
        (StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PRECONDITION_FAILED, Some(_)) => {
            return Ok(None);
        }
        (StatusCode::NOT_FOUND | StatusCode::GONE, _) => return Err(Trouble::NotFound),
        (status, _) => return refused(format!("it answered {status}"), false),
    };
    // A weak tag says that something is as good as before, not that the bytes are the same.
    let tag = text(header::ETAG).filter(|tag| !tag.starts_with("W/"));
    let validator = tag.or_else(|| text(header::LAST_MODIFIED));
    Ok(Some(Begin {
        offset,
        total,
        validator: validator.map(str::to_owned),
        content_type: super::escape(text(header::CONTENT_TYPE).unwrap_or_default().as_bytes()),
    }))
}

/// `bytes 5-9/10` begins at 5 and is of 10; `*` is a whole of unknown size.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end): (u64, u64) = (start.parse().ok()?, end.parse().ok()?);
    let total = match total {
        "*" => None,
        total => Some(total.parse::<u64>().ok()?),
    };
    let sound = start <= end && total.is_none_or(|total| end < total);
    sound.then_some((start, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> header::HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn the_rest_is_taken_only_when_it_is_the_rest() {
        let resume = Resume {
            offset: 5,
            validator: "\"x\"".into(),
        };
        let answer = |status: u16, pairs: &[(&'static str, &'static str)]| {
            begin_of(status.try_into().unwrap(), &headers(pairs), Some(&resume))
        };
        let rest = answer(206, &[("content-range", "bytes 5-9/10"), ("etag", "\"x\"")]);
        let rest = rest.unwrap().unwrap();
        assert_eq!((rest.offset, rest.total), (5, Some(10)));
        for wrong in [
            "bytes 4-9/10",
            "bytes 6-9/10",
            "bytes 5-9/9",
            "bytes 5-4/10",
            "5-9/10",
            "bytes */10",
            "",
        ] {
            let wrong: &'static str = wrong;
            assert_eq!(
                answer(206, &[("content-range", wrong)]),
                Ok(None),
                "{wrong}"
            );
        }
        assert_eq!(answer(416, &[]), Ok(None));
        let whole = answer(200, &[("content-length", "10")]).unwrap().unwrap();
        assert_eq!(
            (whole.offset, whole.total, whole.validator),
            (0, Some(10), None)
        );
        // Nobody asked for a part.
        let part = begin_of(
            StatusCode::PARTIAL_CONTENT,
            &headers(&[("content-range", "bytes 0-9/10")]),
            None,
        );
        assert!(matches!(part, Err(Trouble::Server { .. })));
    }

    #[test]
    fn what_could_be_other_bytes_is_no_validator() {
        let validator = |pairs| {
            begin_of(StatusCode::OK, &headers(pairs), None)
                .unwrap()
                .unwrap()
                .validator
        };
        assert_eq!(
            validator(&[("etag", "\"a\""), ("last-modified", "then")]).as_deref(),
            Some("\"a\"")
        );
        assert_eq!(
            validator(&[("etag", "W/\"a\""), ("last-modified", "then")]).as_deref(),
            Some("then")
        );
        assert_eq!(validator(&[("etag", "W/\"a\"")]), None);
    }
}
