//! What is done to the store that the server has open: a backup, and giving space back.

use std::fmt;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::response::Response;
use futures::future::BoxFuture;
use http::{HeaderValue, StatusCode, header};
use platctrl_store_embedded::EmbeddedStore;
use serde_json::json;
use tokio_util::io::ReaderStream;

use super::status::{Failure, Result, json_response};

/// Bytes that are read at once.
const READ: usize = 128 * 1024;

/// A store that can be saved and compacted while it runs.
pub trait Maintained: fmt::Debug + Send + Sync {
    /// Writes a consistent copy to `path`, which must not exist.
    fn backup<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<(), String>>;
    /// Gives unused space back; returns the bytes on disk before and after.
    fn compact(&self) -> BoxFuture<'_, Result<(u64, u64), String>>;
}

impl Maintained for EmbeddedStore {
    fn backup<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let copied = EmbeddedStore::backup(self, path).await;
            copied.map(|_| ()).map_err(|error| error.to_string())
        })
    }

    fn compact(&self) -> BoxFuture<'_, Result<(u64, u64), String>> {
        Box::pin(async move {
            let before = self.file_bytes().map_err(|error| error.to_string())?;
            let compacted = EmbeddedStore::compact(self).await;
            compacted.map_err(|error| error.to_string())?;
            let after = self.file_bytes().map_err(|error| error.to_string())?;
            Ok((before, after))
        })
    }
}

/// Removes a file whose content is open by then, or not wanted.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Where copies are until they were sent: only the server's user may look.
fn scratch(data_dir: &Path) -> PathBuf {
    data_dir.join("backup.partial")
}

/// Removes what an earlier process left unfinished.
pub(super) fn clean(data_dir: &Path) {
    let _ = std::fs::remove_dir_all(scratch(data_dir));
}

/// Streams a copy of the store.
pub(super) async fn backup(store: &dyn Maintained, data_dir: &Path) -> Result<Response> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = scratch(data_dir);
    let mut private = std::fs::DirBuilder::new();
    private
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(|error| Failure::internal(format!("cannot make {}: {error}", dir.display())))?;
    let path = Removed(dir.join(format!("{number}.redb")));
    store.backup(&path.0).await.map_err(Failure::internal)?;
    let failed =
        |error: io::Error| Failure::internal(format!("the backup cannot be read: {error}"));
    let file = tokio::fs::File::open(&path.0).await.map_err(failed)?;
    let length = file.metadata().await.map_err(failed)?.len();
    let mut response = Response::new(Body::from_stream(ReaderStream::with_capacity(file, READ)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    Ok(response)
}

pub(super) async fn compact(store: &dyn Maintained) -> Result<Response> {
    tracing::warn!("the store is compacted: commits wait meanwhile");
    let (before, after) = store.compact().await.map_err(Failure::internal)?;
    tracing::warn!(before, after, "the store was compacted");
    let report = json!({ "before": before, "after": after });
    Ok(json_response(StatusCode::OK, &report))
}
