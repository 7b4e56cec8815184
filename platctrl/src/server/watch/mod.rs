//! `?watch=1`: what changes, as JSON lines.
//!
//! A watch from a resource version tells what came after it, or `ERROR` 410 if that is no longer
//! known. Without one it begins with everything there is as `ADDED`. The lines of one transaction
//! are sent together. Nothing waits for a slow client: it is a position in what all share, and is
//! told to list again when it falls out of that.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http::{HeaderValue, header};
use platctrl_framework::environment::Environment;
use platctrl_framework::model::identity;
use platctrl_framework::store::Revision;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::App;
use super::request::Query;
use super::status::{Failure, Result};
use super::table::Form;

mod events;
mod objects;
mod pace;

pub(super) use events::events;
pub(super) use objects::objects;
use pace::Pace;

/// Bytes of the first objects that are sent at once.
const CHUNK: usize = 64 * 1024;

/// What a client asks of a watch.
struct Asked {
    /// None: begin with what there is.
    after: Option<Revision>,
    bookmarks: bool,
    /// A bookmark ends the objects that it begins with.
    mark_initial: bool,
    until: Option<Instant>,
}

impl Asked {
    fn parse(query: &Query) -> Result<Self> {
        let text = query.get("resourceVersion").filter(|text| *text != "0");
        let after = text.map(str::parse).transpose();
        let after =
            after.map_err(|error| Failure::bad_request(format!("resourceVersion: {error}")))?;
        let initial = query.flag("sendInitialEvents")?;
        let timeout = query
            .number("timeoutSeconds")?
            .filter(|seconds| *seconds > 0);
        let timeout = timeout.map(|seconds| Duration::from_secs(seconds.min(24 * 3600)));
        Ok(Self {
            after: after.filter(|_| !initial),
            bookmarks: query.flag("allowWatchBookmarks")?,
            mark_initial: initial,
            until: timeout.map(|timeout| Instant::now() + timeout),
        })
    }
}

/// What was asked, and how far and how long the watch goes.
async fn open(app: &App, query: &Query) -> Result<(Asked, Pace)> {
    let permit = app.watches.clone().try_acquire_owned().map_err(|_| {
        Failure::too_many(
            "this server has as many watches as it takes: end some, or ask another server",
        )
    })?;
    let asked = Asked::parse(query)?;
    let (_, now) = identity::open(app.config.store.as_ref()).await?;
    if asked.after.is_some_and(|after| after > now) {
        return Err(ahead(now));
    }
    let pace = Pace::new(app, &asked, permit);
    Ok((asked, pace))
}

fn line(kind: &str, object: &[u8]) -> Vec<u8> {
    let mut line = Vec::with_capacity(object.len() + 40);
    push_line(&mut line, kind, object);
    line
}

fn push_line(text: &mut Vec<u8>, kind: &str, object: &[u8]) {
    text.extend_from_slice(b"{\"type\":\"");
    text.extend_from_slice(kind.as_bytes());
    text.extend_from_slice(b"\",\"object\":");
    text.extend_from_slice(object);
    text.extend_from_slice(b"}\n");
}

fn error_line(failure: &Failure) -> Vec<u8> {
    line("ERROR", failure.to_status().to_string().as_bytes())
}

fn lost() -> Failure {
    Failure::expired(
        "what came after this resource version is no longer known: list again and watch from there",
    )
}

fn ahead(now: Revision) -> Failure {
    Failure::expired(format!(
        "the resource version is ahead of the store, which is at {now}: it is of another history; list again and watch from there"
    ))
}

fn answer(lines: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let lines = lines.map(Ok::<_, std::convert::Infallible>);
    let mut response = Response::new(Body::from_stream(lines));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// How objects are told.
struct Shape {
    form: Form,
    environment: Environment,
    /// The columns of a table were told.
    told: bool,
}

impl Shape {
    fn new(app: &App, form: Form) -> Self {
        Self {
            form,
            environment: app.config.environment.clone(),
            told: false,
        }
    }

    fn push(&mut self, lines: &mut Vec<u8>, kind: &str, object: &[u8]) {
        let Form::Table(table) = &self.form else {
            push_line(lines, kind, object);
            return;
        };
        let Ok(object) = serde_json::from_slice::<Value>(object) else {
            return;
        };
        let revision = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
        let row = (kind != "BOOKMARK").then_some(&object);
        let now = self.environment.now();
        let told = table.of(
            row,
            &revision,
            now,
            !std::mem::replace(&mut self.told, true),
        );
        push_line(lines, kind, told.to_string().as_bytes());
    }
}

/// An object that says nothing but how far a watch has come.
fn bookmark(kind: &str, api_version: &str, revision: Revision, initial: bool) -> String {
    let mut metadata = json!({"resourceVersion": revision});
    if initial {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    json!({"kind": kind, "apiVersion": api_version, "metadata": metadata}).to_string()
}
