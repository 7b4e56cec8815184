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

/// What was asked, and when the watch speaks and ends.
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

/// A watch under way: what it is about differs, how it is told does not.
trait Watching: Sized + Send + 'static {
    /// How it is told.
    fn teller(&mut self) -> &mut Teller;

    /// The next of what it begins with; None after the last.
    fn first(&mut self) -> impl Future<Output = Result<Option<String>>> + Send;

    /// The lines of what changes next; None when nothing follows.
    fn changed(&mut self) -> impl Future<Output = Option<Vec<u8>>> + Send;

    /// The answer, which goes on as long as the watch.
    fn answer(self) -> Response {
        answer(futures::stream::unfold(self, |mut watching| async move {
            if watching.teller().pace.ended() {
                return None;
            }
            let lines = match watching.teller().begins {
                true => begin(&mut watching).await,
                false => watching.changed().await?,
            };
            Some((Bytes::from(lines), watching))
        }))
    }
}

/// Some of what a watch begins with.
async fn begin(watching: &mut impl Watching) -> Vec<u8> {
    let mut lines = Vec::new();
    while lines.len() < CHUNK {
        let first = watching.first().await;
        let teller = watching.teller();
        match first {
            Ok(Some(object)) => teller.push(&mut lines, "ADDED", object.as_bytes()),
            Ok(None) => {
                teller.begins = false;
                if teller.mark_initial {
                    teller.bookmark(teller.seen, true, &mut lines);
                }
                break;
            }
            Err(failure) => {
                lines.extend(teller.fail(&failure));
                break;
            }
        }
    }
    lines
}

fn answer(lines: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let lines = lines.map(Ok::<_, std::convert::Infallible>);
    let mut response = Response::new(Body::from_stream(lines));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// How a watch is told: in which form, how far, and when.
struct Teller {
    form: Form,
    environment: Environment,
    /// The columns of a table were told.
    columns_told: bool,
    kind: String,
    api_version: String,
    /// Everything up to here was told, or is by what the watch begins with.
    seen: Revision,
    /// It begins with what there is, and not all of that was told.
    begins: bool,
    mark_initial: bool,
    pace: Pace,
}

impl Teller {
    /// For objects of a kind, from `seen` on.
    fn new(
        app: &App,
        form: Form,
        (kind, api_version): (String, String),
        seen: Revision,
        (asked, pace): (Asked, Pace),
    ) -> Self {
        Self {
            form,
            environment: app.config.environment.clone(),
            columns_told: false,
            kind,
            api_version,
            seen,
            begins: asked.after.is_none(),
            mark_initial: asked.mark_initial,
            pace,
        }
    }

    fn push(&mut self, lines: &mut Vec<u8>, change: &str, object: &[u8]) {
        let Form::Table(table) = &self.form else {
            push_line(lines, change, object);
            return;
        };
        let Ok(object) = serde_json::from_slice::<Value>(object) else {
            return;
        };
        let revision = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
        let row = (change != "BOOKMARK").then_some(&object);
        let now = self.environment.now();
        let columns = !std::mem::replace(&mut self.columns_told, true);
        let told = table.of(row, &revision, now, columns);
        push_line(lines, change, told.to_string().as_bytes());
    }

    fn bookmark(&mut self, revision: Revision, initial: bool, lines: &mut Vec<u8>) {
        let object = bookmark(&self.kind, &self.api_version, revision, initial);
        self.push(lines, "BOOKMARK", object.as_bytes());
    }

    /// The line that says why the watch ends with it.
    fn fail(&mut self, failure: &Failure) -> Vec<u8> {
        self.pace.end();
        error_line(failure)
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
