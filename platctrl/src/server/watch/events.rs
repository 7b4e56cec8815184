//! A watch on events. They are records of their own, which need no joining: it reads the store's
//! own watch.

use std::sync::Arc;

use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt as _;
use platctrl_framework::store::{Change, Revision, WatchEvent, WatchStream};
use serde_json::Value;

use super::{CHUNK, Pace, Shape, answer, bookmark, error_line, lost, open};
use crate::server::App;
use crate::server::events::{self as event_list, Events};
use crate::server::request::Query;
use crate::server::selection::Selection;
use crate::server::status::Result;
use crate::server::table::Form;

/// A watch under way.
struct Watching {
    changes: WatchStream,
    shape: Shape,
    selection: Selection,
    /// Everything up to here was told.
    seen: Revision,
    initial: Option<Events>,
    mark_initial: bool,
    pace: Pace,
}

/// A watch on events.
pub(in crate::server) async fn events(
    app: &Arc<App>,
    selection: Selection,
    query: &Query,
    form: Form,
) -> Result<Response> {
    let (asked, pace) = open(app, query).await?;
    let store = &app.config.store;
    let (initial, seen) = match asked.after {
        Some(after) => (None, after),
        None => {
            let events = Events::open(store, &selection, None, None, None).await?;
            let revision = events.revision();
            (Some(events), revision)
        }
    };
    let watching = Watching {
        changes: store.watch(event_list::prefix(), seen),
        shape: Shape::new(app, form),
        selection,
        seen,
        initial,
        mark_initial: asked.mark_initial,
        pace,
    };
    let lines = futures::stream::unfold(watching, |mut watching| async move {
        let lines = watching.next().await?;
        Some((lines, watching))
    });
    Ok(answer(lines))
}

impl Watching {
    async fn next(&mut self) -> Option<Bytes> {
        if self.pace.ended() {
            return None;
        }
        if self.initial.is_some() {
            return Some(self.first_events().await.into());
        }
        loop {
            let mut lines = Vec::new();
            if self.pace.bookmark() {
                self.bookmark(false, &mut lines);
                return Some(lines.into());
            }
            tokio::select! {
                event = self.changes.next() => match event? {
                    Ok(WatchEvent::Changes { revision, changes }) => {
                        self.seen = self.seen.max(revision);
                        lines = changed_events(&self.selection, &mut self.shape, changes);
                    }
                    Ok(WatchEvent::Progress(revision)) => self.seen = self.seen.max(revision),
                    Ok(WatchEvent::Reset { .. }) => {
                        self.pace.end();
                        lines = error_line(&lost());
                    }
                    Err(error) => {
                        self.pace.end();
                        lines = error_line(&error.into());
                    }
                },
                () = self.pace.bookmark_due() => {}
                () = self.pace.over() => return None,
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
                    self.pace.end();
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

fn changed_events(selection: &Selection, shape: &mut Shape, changes: Vec<Change>) -> Vec<u8> {
    let records = changes.into_iter().filter_map(|change| match change {
        Change::Put(record) => Some(record),
        // A ring overwrites; nothing is deleted.
        Change::Delete { .. } => None,
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
