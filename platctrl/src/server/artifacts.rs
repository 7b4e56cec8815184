//! Uploaded artifacts, by their digest: `<data-dir>/artifacts/sha256/<hex>`.
//!
//! An artifact is there complete and checked, or not at all: it is streamed into a temporary
//! file, hashed on the way, flushed, and renamed. It is never in memory as a whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_util::io::ReaderStream;

use super::status::{Failure, Result, json_response};

/// The most bytes of an artifact.
pub(super) const MAX_ARTIFACT_BYTES: u64 = 1024 * 1024 * 1024;
/// How long an upload may stand still.
const STALL: Duration = Duration::from_secs(30);
/// Pieces that wait to be written.
const BACKLOG: usize = 8;
/// Bytes that are read at once.
const READ: usize = 64 * 1024;

/// The artifacts of one data directory.
#[derive(Debug)]
pub(super) struct Artifacts {
    directory: PathBuf,
    uploads: AtomicU64,
}

enum Piece {
    Bytes(Bytes),
    /// That was all. A channel that closes without it was given up.
    End,
}

/// Removes what was not finished.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn failed(doing: &str, path: &Path, error: &io::Error) -> Failure {
    let text = format!("cannot {doing} {}: {error}", path.display());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Failure::no_space(format!("{text}: make room on the server's data directory"))
        }
        _ => Failure::internal(text),
    }
}

/// A digest's 64 digits, of which a path may be made.
fn digits(hex: &str) -> Result<&str> {
    let valid = hex.len() == 64
        && hex
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if valid {
        return Ok(hex);
    }
    Err(Failure::bad_request(format!(
        "`{}` is no SHA-256 digest: 64 lower-case hexadecimal digits",
        super::request::shown(hex)
    )))
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

impl Artifacts {
    pub(super) fn new(data_dir: &Path) -> Self {
        Self {
            directory: data_dir.join("artifacts"),
            uploads: AtomicU64::new(0),
        }
    }

    fn path(&self, hex: &str) -> PathBuf {
        self.directory.join("sha256").join(hex)
    }

    fn partial(&self) -> PathBuf {
        self.directory.join("partial")
    }

    /// Removes what uploads to an earlier process left unfinished.
    pub(super) fn clean(&self) {
        for entry in fs::read_dir(self.partial()).into_iter().flatten().flatten() {
            let _ = fs::remove_file(entry.path());
        }
    }

    /// `GET` and `HEAD`.
    pub(super) async fn read(&self, hex: &str, with_body: bool) -> Result<Response> {
        let path = self.path(digits(hex)?);
        let opened = tokio::fs::OpenOptions::new()
            .read(true)
            .custom_flags(
                (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK)
                    .bits()
                    .cast_signed(),
            )
            .open(&path)
            .await;
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Failure::not_found(format!(
                    "artifact sha256:{hex} is not here: upload it with `platctrl apply` from where its file is"
                )));
            }
            Err(error) => return Err(failed("read", &path, &error)),
        };
        let metadata = file
            .metadata()
            .await
            .map_err(|error| failed("read", &path, &error))?;
        if !metadata.is_file() {
            return Err(Failure::internal(format!("{} is no file", path.display())));
        }
        let body = if with_body {
            Body::from_stream(ReaderStream::with_capacity(file, READ))
        } else {
            Body::empty()
        };
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_LENGTH, metadata.len().into());
        let binary = HeaderValue::from_static("application/octet-stream");
        headers.insert(header::CONTENT_TYPE, binary);
        Ok(response)
    }

    /// `PUT`.
    pub(super) async fn write(
        &self,
        hex: &str,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response> {
        let to = self.path(digits(hex)?);
        let too_large = || {
            Failure::too_large(format!(
                "the artifact is larger than {MAX_ARTIFACT_BYTES} bytes"
            ))
        };
        if announced(headers).is_some_and(|length| length > MAX_ARTIFACT_BYTES) {
            return Err(too_large());
        }
        let there = tokio::fs::symlink_metadata(&to)
            .await
            .is_ok_and(|it| it.is_file());
        let (sender, pieces) = mpsc::channel(BACKLOG);
        let writer = (!there).then(|| {
            let number = self.uploads.fetch_add(1, Ordering::Relaxed);
            let (partial, hex) = (self.partial(), hex.to_owned());
            let name = format!("{hex}.{}.{number}", std::process::id());
            let to = to.clone();
            tokio::task::spawn_blocking(move || keep(pieces, &partial, &name, &hex, &to))
        });
        let sent = send(sender, writer.is_some(), body, too_large).await;
        if let Some(writer) = writer {
            let written = writer
                .await
                .map_err(|error| Failure::internal(error.to_string()))?;
            // What the writer met is the cause; else what the client did.
            match (written, sent) {
                (Err(Some(failure)), _) | (_, Err(failure)) => return Err(failure),
                (Err(None), Ok(())) => return Err(Failure::internal("the upload was given up")),
                (Ok(()), Ok(())) => {}
            }
        } else {
            sent?;
        }
        let code = if there {
            StatusCode::OK
        } else {
            StatusCode::CREATED
        };
        Ok(json_response(
            code,
            &json!({"location": format!("artifact:sha256:{hex}")}),
        ))
    }
}

/// Hands the body to the writer; of what is there already it is only taken from the line.
async fn send(
    sender: mpsc::Sender<Piece>,
    wanted: bool,
    mut body: Body,
    too_large: impl Fn() -> Failure,
) -> Result<()> {
    let mut bytes = 0;
    loop {
        let frame = tokio::time::timeout(STALL, body.frame())
            .await
            .map_err(|_| {
                Failure::timeout(format!(
                    "the upload stood still for {} seconds",
                    STALL.as_secs()
                ))
            })?;
        let piece = match frame {
            None => Piece::End,
            Some(Err(error)) => {
                return Err(Failure::bad_request(format!(
                    "the upload broke off: {error}"
                )));
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => Piece::Bytes(data),
                Err(_) => continue,
            },
        };
        if let Piece::Bytes(data) = &piece {
            bytes += data.len() as u64;
            if bytes > MAX_ARTIFACT_BYTES {
                return Err(too_large());
            }
        }
        let last = matches!(piece, Piece::End);
        if wanted && sender.send(piece).await.is_err() {
            // The writer has an error to tell.
            return Ok(());
        }
        if last {
            return Ok(());
        }
    }
}

/// The writing thread. `None`: the client gave up.
fn keep(
    mut pieces: mpsc::Receiver<Piece>,
    partial: &Path,
    name: &str,
    hex: &str,
    to: &Path,
) -> Result<(), Option<Failure>> {
    let fail = |doing: &'static str, path: &Path| {
        let path = path.to_owned();
        move |error: io::Error| Some(failed(doing, &path, &error))
    };
    let parent = to.parent().unwrap_or(partial);
    for directory in [partial, parent] {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(directory).map_err(fail("make", directory))?;
    }
    let path = partial.join(name);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(fail("make", &path))?;
    let _unfinished = Unfinished(path.clone());
    let mut hasher = Sha256::new();
    loop {
        match pieces.blocking_recv() {
            Some(Piece::Bytes(bytes)) => {
                hasher.update(&bytes);
                file.write_all(&bytes).map_err(fail("write", &path))?;
            }
            Some(Piece::End) => break,
            None => return Err(None),
        }
    }
    let found: [u8; 32] = hasher.finalize().into();
    let found: String = found.iter().map(|byte| format!("{byte:02x}")).collect();
    if found != hex {
        return Err(Some(Failure::bad_request(format!(
            "what was sent has the digest sha256:{found}, not sha256:{hex}: it was cut short or changed on the way, or the digest is wrong"
        ))));
    }
    file.sync_all().map_err(fail("flush", &path))?;
    fs::rename(&path, to).map_err(fail("rename", &path))?;
    let directory = File::open(parent).map_err(fail("open", parent))?;
    directory.sync_all().map_err(fail("flush", parent))
}
