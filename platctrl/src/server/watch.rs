//! `?watch=1`: what changes, as JSON lines.
//!
//! A watch from a resource version tells what came after it, or `ERROR` 410 if that is no longer
//! known. Without one it begins with everything there is as `ADDED`. The lines of one transaction
//! are sent together. Nothing waits for a slow client: it is a position in what all share, and is
//! told to list again when it falls out of that.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http::{HeaderValue, header};
use platctrl_framework::environment::Environment;
use platctrl_framework::model::{GroupPlural, RawObject, identity};
use platctrl_framework::store::{Change as StoreChange, Revision, WatchEvent, WatchStream};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::watch::Receiver;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::App;
use super::events::{self as event_list, Events};
use super::hub::{Change, Found, Hub, Position};
use super::request::Query;
use super::scan::Objects;
use super::selection::Selection;
use super::status::{Failure, Result};
use super::table::Form;
use super::target::Target;
use super::version::Shown;

/// How often a bookmark is sent to those who want them.
const BOOKMARKS: Duration = Duration::from_secs(30);
/// Changes that are looked at at once.
const BATCH: usize = 256;
/// Bytes of the first objects that are sent at once.
const CHUNK: usize = 64 * 1024;
/// How long a watch waits for the server's own view of the store.
const SYNC: Duration = Duration::from_secs(10);

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

fn room(app: &App) -> Result<OwnedSemaphorePermit> {
    app.watches.clone().try_acquire_owned().map_err(|_| {
        Failure::too_many(
            "this server has as many watches as it takes: end some, or ask another server",
        )
    })
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

/// A watch under way.
struct Watching {
    hub: Hub,
    moved: Receiver<()>,
    kind: GroupPlural,
    api_version: String,
    kind_name: String,
    version: Shown,
    shape: Shape,
    selection: Selection,
    position: Position,
    /// Changes up to here were told by the objects that the watch began with.
    seen: Revision,
    initial: Option<Objects>,
    bookmarks: bool,
    mark_initial: bool,
    next_bookmark: Instant,
    until: Option<Instant>,
    stopping: CancellationToken,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

/// A watch on objects of a kind.
pub(super) async fn objects(
    app: &Arc<App>,
    target: &Target<'_>,
    selection: Selection,
    query: &Query,
    form: Form,
) -> Result<Response> {
    let kind = target.kind;
    let permit = room(app)?;
    let asked = Asked::parse(query)?;
    let store = &app.config.store;
    let (_, now) = identity::open(store.as_ref()).await?;
    if asked.after.is_some_and(|after| after > now) {
        return Err(ahead(now));
    }
    let late = |_| Failure::unavailable("the server has not read the store yet: try again");
    tokio::time::timeout(SYNC, app.hub.synced())
        .await
        .map_err(late)?;
    let moved = app.hub.subscribe();
    let (initial, seen) = match asked.after {
        Some(after) => (None, after),
        None => {
            let objects = Objects::open(&app.hub, kind, &selection, None, None).await?;
            let revision = objects.revision;
            (Some(objects), revision)
        }
    };
    let definition = &target.face.definition;
    let Some(position) = app.hub.position(seen) else {
        // Clients of Kubernetes look for it in the stream.
        let error = Bytes::from(error_line(&lost()));
        return Ok(answer(futures::stream::iter([error])));
    };
    let watching = Watching {
        hub: app.hub.clone(),
        moved,
        kind: definition.group_plural(),
        api_version: definition.api_version(),
        kind_name: definition.kind.clone(),
        version: target.shown(),
        shape: Shape {
            form,
            environment: app.config.environment.clone(),
            told: false,
        },
        selection,
        position,
        seen,
        initial,
        bookmarks: asked.bookmarks,
        mark_initial: asked.mark_initial,
        next_bookmark: Instant::now() + app.config.environment.jitter(BOOKMARKS),
        until: asked.until,
        stopping: app.stopping.clone(),
        ended: false,
        _permit: permit,
    };
    let lines = futures::stream::unfold(watching, |mut watching| async move {
        let lines = watching.next().await?;
        Some((lines, watching))
    });
    Ok(answer(lines))
}

impl Watching {
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        if self.initial.is_some() {
            return Some(self.first_objects().await.into());
        }
        loop {
            // Before looking, so that nothing that comes after the look is missed.
            self.moved.mark_unchanged();
            let (changes, complete) = match self.hub.take(&mut self.position, BATCH) {
                Found::Changes(changes, complete) => (changes, complete),
                Found::Lost => {
                    self.ended = true;
                    return Some(error_line(&lost()).into());
                }
            };
            let mut lines = Vec::new();
            for change in &changes {
                self.tell(change, &mut lines);
            }
            if self.bookmarks
                && Instant::now() >= self.next_bookmark
                && let Some(revision) = complete
            {
                self.next_bookmark = Instant::now() + BOOKMARKS;
                self.bookmark(revision.max(self.seen), false, &mut lines);
            }
            if !lines.is_empty() {
                return Some(lines.into());
            }
            if !changes.is_empty() {
                continue;
            }
            let far = Instant::now() + Duration::from_secs(3600);
            let bookmark = if self.bookmarks {
                self.next_bookmark
            } else {
                far
            };
            tokio::select! {
                moved = self.moved.changed() => if moved.is_err() {
                    return None;
                },
                () = tokio::time::sleep_until(bookmark) => {}
                () = tokio::time::sleep_until(self.until.unwrap_or(far)) => {
                    if self.until.is_some_and(|until| until <= Instant::now()) {
                        return None;
                    }
                }
                () = self.stopping.cancelled() => return None,
            }
        }
    }

    /// Some of the objects that the watch begins with.
    async fn first_objects(&mut self) -> Vec<u8> {
        let mut lines = Vec::new();
        let Some(objects) = &mut self.initial else {
            return lines;
        };
        while lines.len() < CHUNK {
            match objects.next().await {
                Ok(Some((_, joined))) => {
                    if let Some(object) = joined
                        .object()
                        .filter(|object| self.selection.matches(object))
                    {
                        let object = self.version.show(object).to_api().to_string();
                        self.shape.push(&mut lines, "ADDED", object.as_bytes());
                    }
                }
                Ok(None) => {
                    self.initial = None;
                    if self.mark_initial {
                        self.bookmark(self.seen, true, &mut lines);
                    }
                    break;
                }
                Err(error) => {
                    self.ended = true;
                    lines.extend_from_slice(&error_line(&error.into()));
                    break;
                }
            }
        }
        lines
    }

    fn tell(&mut self, change: &Change, lines: &mut Vec<u8>) {
        if change.revision <= self.seen || !change.is_of(&self.kind) {
            return;
        }
        let shown = change.shown();
        let selected = |object: &Option<_>| {
            object
                .as_ref()
                .is_some_and(|object| self.selection.matches(object))
        };
        let (before, after) = (selected(&shown.before), selected(&shown.after));
        let (old, new) = match self.version.converts() {
            false => (shown.before_json.clone(), shown.after_json.clone()),
            true => {
                let json = |object: &Option<RawObject>| {
                    let object = object.clone().map(|it| self.version.show(it).to_api());
                    Bytes::from(object.unwrap_or_default().to_string())
                };
                // What is gone is told at the revision at which it went.
                let mut gone = shown.before.clone();
                if let Some(gone) = &mut gone {
                    gone.metadata.resource_version = Some(change.revision);
                }
                (json(&gone), json(&shown.after))
            }
        };
        match (before, after) {
            (false, true) => self.shape.push(lines, "ADDED", &new),
            (true, true) => {
                let uid = |object: &Option<RawObject>| {
                    object.as_ref().map(|object| object.metadata.uid.clone())
                };
                if uid(&shown.before) == uid(&shown.after) {
                    self.shape.push(lines, "MODIFIED", &new);
                } else {
                    // Gone and made again between two looks.
                    self.shape.push(lines, "DELETED", &old);
                    self.shape.push(lines, "ADDED", &new);
                }
            }
            (true, false) => self.shape.push(lines, "DELETED", &old),
            (false, false) => {}
        }
    }

    fn bookmark(&mut self, revision: Revision, initial: bool, lines: &mut Vec<u8>) {
        let object = bookmark(&self.kind_name, &self.api_version, revision, initial);
        self.shape.push(lines, "BOOKMARK", object.as_bytes());
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

/// A watch on events under way. They are records of their own and need no joining.
struct WatchingEvents {
    changes: WatchStream,
    shape: Shape,
    selection: Selection,
    /// Everything up to here was told.
    seen: Revision,
    initial: Option<Events>,
    bookmarks: bool,
    mark_initial: bool,
    next_bookmark: Instant,
    until: Option<Instant>,
    stopping: CancellationToken,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

/// A watch on events.
pub(super) async fn events(
    app: &Arc<App>,
    selection: Selection,
    query: &Query,
    form: Form,
) -> Result<Response> {
    let permit = room(app)?;
    let asked = Asked::parse(query)?;
    let store = &app.config.store;
    let (_, now) = identity::open(store.as_ref()).await?;
    if asked.after.is_some_and(|after| after > now) {
        return Err(ahead(now));
    }
    let (initial, seen) = match asked.after {
        Some(after) => (None, after),
        None => {
            let events = Events::open(store, &selection, None, None, None).await?;
            let revision = events.revision();
            (Some(events), revision)
        }
    };
    let watching = WatchingEvents {
        changes: store.watch(event_list::prefix(), seen),
        shape: Shape {
            form,
            environment: app.config.environment.clone(),
            told: false,
        },
        selection,
        seen,
        initial,
        bookmarks: asked.bookmarks,
        mark_initial: asked.mark_initial,
        next_bookmark: Instant::now() + app.config.environment.jitter(BOOKMARKS),
        until: asked.until,
        stopping: app.stopping.clone(),
        ended: false,
        _permit: permit,
    };
    let lines = futures::stream::unfold(watching, |mut watching| async move {
        let lines = watching.next().await?;
        Some((lines, watching))
    });
    Ok(answer(lines))
}

impl WatchingEvents {
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        if self.initial.is_some() {
            return Some(self.first_events().await.into());
        }
        loop {
            let mut lines = Vec::new();
            if self.bookmarks && Instant::now() >= self.next_bookmark {
                self.next_bookmark = Instant::now() + BOOKMARKS;
                self.bookmark(false, &mut lines);
                return Some(lines.into());
            }
            let far = Instant::now() + Duration::from_secs(3600);
            let bookmark = Some(self.next_bookmark).filter(|_| self.bookmarks);
            tokio::select! {
                event = self.changes.next() => match event? {
                    Ok(WatchEvent::Changes { revision, changes }) => {
                        self.seen = self.seen.max(revision);
                        lines = changed_events(&self.selection, &mut self.shape, changes);
                    }
                    Ok(WatchEvent::Progress(revision)) => self.seen = self.seen.max(revision),
                    Ok(WatchEvent::Reset { .. }) => {
                        self.ended = true;
                        lines = error_line(&lost());
                    }
                    Err(error) => {
                        self.ended = true;
                        lines = error_line(&error.into());
                    }
                },
                () = tokio::time::sleep_until(bookmark.unwrap_or(far)) => {}
                () = tokio::time::sleep_until(self.until.unwrap_or(far)) => {
                    if self.until.is_some_and(|until| until <= Instant::now()) {
                        return None;
                    }
                }
                () = self.stopping.cancelled() => return None,
            }
            if !lines.is_empty() {
                return Some(lines.into());
            }
        }
    }

    /// Some of the events that the watch begins with.
    async fn first_events(&mut self) -> Vec<u8> {
        let mut lines = Vec::new();
        let Some(events) = &mut self.initial else {
            return lines;
        };
        while lines.len() < CHUNK {
            match events.next(&self.selection).await {
                Ok(Some((_, event))) => {
                    let event = event.to_string();
                    self.shape.push(&mut lines, "ADDED", event.as_bytes());
                }
                Ok(None) => {
                    self.initial = None;
                    if self.mark_initial {
                        self.bookmark(true, &mut lines);
                    }
                    break;
                }
                Err(error) => {
                    self.ended = true;
                    lines.extend_from_slice(&error_line(&error.into()));
                    break;
                }
            }
        }
        lines
    }

    fn bookmark(&mut self, initial: bool, lines: &mut Vec<u8>) {
        let api_version = format!("{}/v1", platctrl_kinds::GROUP);
        let object = bookmark("Event", &api_version, self.seen, initial);
        self.shape.push(lines, "BOOKMARK", object.as_bytes());
    }
}

fn changed_events(selection: &Selection, shape: &mut Shape, changes: Vec<StoreChange>) -> Vec<u8> {
    let records = changes.into_iter().filter_map(|change| match change {
        StoreChange::Put(record) => Some(record),
        // A ring overwrites; nothing is deleted.
        StoreChange::Delete { .. } => None,
    });
    let mut lines = Vec::new();
    for record in records {
        let Some((_, _, event)) = event_list::shown(&record) else {
            continue;
        };
        if !selection.matches_value(&event) {
            continue;
        }
        // Counted up, or in the place of one that was overwritten: the count tells which.
        let kind = if event.get("count").and_then(Value::as_u64) == Some(1) {
            "ADDED"
        } else {
            "MODIFIED"
        };
        shape.push(&mut lines, kind, event.to_string().as_bytes());
    }
    lines
}
