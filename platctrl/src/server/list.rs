//! Lists: all objects of a kind, or a page of them, as of one revision.
//!
//! A list is sent while it is read, so its size costs no memory. Whoever stops reading is cut off,
//! and only so many lists are read at once: what lists cost the server is bounded.
//! A page tells in `continue` where the next one begins and at which revision; a revision that is no
//! longer kept is 410.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::Stream;
use http::{HeaderValue, header};
use platctrl_framework::model::{RecordError, identity};
use platctrl_framework::store::{Revision, Store, StoreError};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::App;
use super::events::{self, Events};
use super::hub::Hub;
use super::request::{Query, shown};
use super::scan::Objects;
use super::selection::Selection;
use super::status::{Failure, Result};
use super::table::Form;
use super::target::Target;
use super::version::Shown;

/// Bytes that are sent at once.
const CHUNK: usize = 64 * 1024;
/// How long a list waits for others to end.
const TURN: Duration = Duration::from_secs(10);
/// How long a client may leave what was sent unread.
const STALL: Duration = Duration::from_secs(60);

/// A place in a list: the revision it is read at, and the last record that was looked at.
#[derive(Debug)]
struct Continue {
    revision: Revision,
    after: String,
}

impl Continue {
    fn parse(text: &str) -> Result<Self> {
        let refuse = || Failure::bad_request("`continue` is not what this server gave out");
        let (revision, after) = text.split_once('~').ok_or_else(refuse)?;
        Ok(Self {
            revision: revision.parse().map_err(|_| refuse())?,
            after: after.to_owned(),
        })
    }
}

/// The revision that a list is asked to be at or behind.
async fn asked_revision(store: &dyn Store, query: &Query) -> Result<Option<Revision>> {
    let Some(text) = query.get("resourceVersion").filter(|text| *text != "0") else {
        return Ok(None);
    };
    let revision: Revision = text
        .parse()
        .map_err(|error| Failure::bad_request(format!("resourceVersion: {error}")))?;
    let exact = match query.get("resourceVersionMatch") {
        Some("Exact") => true,
        Some("NotOlderThan") | None => false,
        Some(other) => {
            return Err(Failure::bad_request(format!(
                "resourceVersionMatch is Exact or NotOlderThan, not `{}`",
                shown(other)
            )));
        }
    };
    // The newest state is never older than one that was seen, on the same history.
    let now = store.get(&[identity::anchor_key()]).await?.revision;
    if revision > now {
        return Err(Failure::expired(format!(
            "resource version {revision} is ahead of the store, which is at {now}: it is of another history; list again without it"
        )));
    }
    Ok(Some(revision).filter(|_| exact))
}

/// What a list is of.
enum Rows {
    Objects(Box<Objects>, Shown),
    Events(Box<Events>),
}

impl Rows {
    fn revision(&self) -> Revision {
        match self {
            Self::Objects(objects, _) => objects.revision,
            Self::Events(events) => events.revision(),
        }
    }

    fn unreadable(&self) -> &[RecordError] {
        match self {
            Self::Objects(objects, _) => &objects.unreadable,
            Self::Events(_) => &[],
        }
    }

    /// The next one that is selected, and its place.
    async fn next(&mut self, selection: &Selection) -> Result<Option<(String, Value)>, StoreError> {
        match self {
            Self::Events(events) => events.next(selection).await,
            Self::Objects(objects, shown) => {
                while let Some((path, joined)) = objects.next().await? {
                    let object = joined.object();
                    if let Some(object) = object.filter(|object| selection.matches(object)) {
                        return Ok(Some((path, shown.show(object).to_api())));
                    }
                }
                Ok(None)
            }
        }
    }

    /// Whether there may be more. What is looked at for it is not told any more.
    async fn is_more(&mut self, selection: &Selection) -> Result<bool, StoreError> {
        match self {
            Self::Events(events) => Ok(events.is_more()),
            Self::Objects(objects, _) => {
                while let Some((_, joined)) = objects.next().await? {
                    if joined.object().is_some_and(|it| selection.matches(&it)) {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    /// The next page will be asked for.
    fn keep(&self, hub: &Hub) {
        if let Self::Objects(objects, _) = self {
            objects.keep(hub);
        }
    }
}

/// A list being sent.
struct Sending {
    hub: Hub,
    rows: Rows,
    selection: Selection,
    limit: Option<u64>,
    sent: u64,
    last: String,
    head: Option<String>,
    form: Form,
    now: jiff::Timestamp,
    finished: bool,
    _permit: OwnedSemaphorePermit,
}

/// Answers a list.
pub(super) async fn answer(
    app: &Arc<App>,
    target: &Target<'_>,
    selection: Selection,
    query: &Query,
    form: Form,
) -> Result<Response> {
    let limit = query.number("limit")?.filter(|limit| *limit > 0);
    let place = query.get("continue").map(Continue::parse).transpose()?;
    let busy = |_| {
        Failure::too_many(
            "this server reads as many lists as it takes at once: try again in a moment",
        )
    };
    let turn = tokio::time::timeout(TURN, app.lists.clone().acquire_owned());
    let permit = turn.await.map_err(busy)?;
    let permit = permit.map_err(|_| Failure::unavailable("the server stops"))?;
    let store = &app.config.store;
    let (at, after) = match place {
        Some(place) => (Some(place.revision), Some(place.after)),
        None => (asked_revision(store.as_ref(), query).await?, None),
    };
    let after = after.as_deref();
    let rows = if events::is(target.kind) {
        let events = Events::open(store, &selection, limit, after, at).await?;
        Rows::Events(Box::new(events))
    } else {
        let objects = Objects::open(&app.hub, target.kind, &selection, after, at).await?;
        Rows::Objects(Box::new(objects), target.shown())
    };
    let definition = &target.face.definition;
    let head = match &form {
        Form::Table(table) => table.head(),
        Form::Objects => format!(
            "{{\"kind\":{},\"apiVersion\":{},\"items\":[",
            json!(format!("{}List", definition.kind)),
            json!(definition.api_version()),
        ),
    };
    let mut sending = Sending {
        hub: app.hub.clone(),
        rows,
        selection,
        limit,
        sent: 0,
        last: String::new(),
        head: Some(head),
        form,
        now: app.config.environment.now(),
        finished: false,
        _permit: permit,
    };
    // What goes wrong here is still told in order.
    let first = sending.chunk().await?;
    let body = if sending.finished {
        Body::from(first)
    } else {
        Body::from_stream(sending.begin(first))
    };
    let mut response = Response::new(body);
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}

impl Sending {
    /// Sends the rest from a task of its own, which ends when nobody takes it: what the list holds
    /// is not held for a client that does not read.
    fn begin(mut self, first: Bytes) -> impl Stream<Item = Result<Bytes, StoreError>> {
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut chunk = Ok(first);
            loop {
                let is_last = chunk.is_err() || self.finished;
                let sent = sender.send_timeout((chunk, is_last), STALL).await;
                if sent.is_err() || is_last {
                    return;
                }
                chunk = self.chunk().await;
            }
        });
        futures::stream::unfold(Some(receiver), |receiver| async {
            let mut receiver: mpsc::Receiver<_> = receiver?;
            let cut = || StoreError::unavailable("nobody read the list");
            // An end that was not told is none: half a list must not be taken for one.
            let (chunk, is_last) = receiver.recv().await.unwrap_or_else(|| (Err(cut()), true));
            Some((chunk, Some(receiver).filter(|_| !is_last)))
        })
    }

    async fn chunk(&mut self) -> Result<Bytes, StoreError> {
        let mut chunk = self.head.take().unwrap_or_default().into_bytes();
        while chunk.len() < CHUNK {
            if self.limit.is_some_and(|limit| self.sent >= limit) {
                let more = self.rows.is_more(&self.selection).await?;
                self.end(&mut chunk, more);
                break;
            }
            let Some((path, object)) = self.rows.next(&self.selection).await? else {
                self.end(&mut chunk, false);
                break;
            };
            if self.sent > 0 {
                chunk.push(b',');
            }
            let sent = match &self.form {
                Form::Objects => object,
                Form::Table(table) => table.row(&object, self.now),
            };
            // Into a vector nothing fails.
            let _ = serde_json::to_writer(&mut chunk, &sent);
            self.sent += 1;
            self.last = path;
        }
        Ok(chunk.into())
    }

    /// The metadata comes last: only now is it known.
    fn end(&mut self, chunk: &mut Vec<u8>, more: bool) {
        let revision = self.rows.revision();
        let mut metadata = json!({"resourceVersion": revision});
        if more {
            self.rows.keep(&self.hub);
            metadata["continue"] = format!("{revision}~{}", self.last).into();
        }
        let unreadable = self.rows.unreadable();
        if !unreadable.is_empty() {
            let errors = unreadable.iter().map(ToString::to_string);
            metadata["unreadable"] = errors.take(100).collect::<Value>();
        }
        chunk.extend_from_slice(format!("],\"metadata\":{metadata}}}\n").as_bytes());
        self.finished = true;
    }
}
