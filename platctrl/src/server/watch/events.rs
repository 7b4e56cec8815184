//! A watch on events. They are records of their own, which need no joining: it reads the store's
//! own watch.

use std::sync::Arc;

use axum::response::Response;
use futures::StreamExt as _;
use platctrl_framework::store::{Change, WatchEvent, WatchStream};
use serde_json::Value;

use super::{Teller, Watching, lost, open};
use crate::server::App;
use crate::server::events::{self as event_list, Events};
use crate::server::request::Query;
use crate::server::selection::Selection;
use crate::server::status::Result;
use crate::server::table::Form;

struct EventWatch {
    changes: WatchStream,
    selection: Selection,
    initial: Option<Events>,
    teller: Teller,
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
    let kind = ("Event".to_owned(), format!("{}/v1", platctrl_kinds::GROUP));
    let watch = EventWatch {
        changes: store.watch(event_list::prefix(), seen),
        selection,
        initial,
        teller: Teller::new(app, form, kind, seen, (asked, pace)),
    };
    Ok(watch.answer())
}

impl Watching for EventWatch {
    fn teller(&mut self) -> &mut Teller {
        &mut self.teller
    }

    async fn first(&mut self) -> Result<Option<String>> {
        let Some(events) = &mut self.initial else {
            return Ok(None);
        };
        let next = events.next(&self.selection).await?;
        if next.is_none() {
            self.initial = None;
        }
        Ok(next.map(|(_, event)| event.to_string()))
    }

    async fn changed(&mut self) -> Option<Vec<u8>> {
        let teller = &mut self.teller;
        loop {
            let mut lines = Vec::new();
            if teller.pace.bookmark() {
                teller.bookmark(teller.seen, false, &mut lines);
                return Some(lines);
            }
            tokio::select! {
                event = self.changes.next() => match event? {
                    Ok(WatchEvent::Changes { revision, changes }) => {
                        teller.seen = teller.seen.max(revision);
                        lines = changed_events(&self.selection, teller, changes);
                    }
                    Ok(WatchEvent::Progress(revision)) => teller.seen = teller.seen.max(revision),
                    Ok(WatchEvent::Reset { .. }) => lines = teller.fail(&lost()),
                    Err(error) => lines = teller.fail(&error.into()),
                },
                () = teller.pace.bookmark_due() => {}
                () = teller.pace.over() => return None,
            }
            if !lines.is_empty() {
                return Some(lines);
            }
        }
    }
}

fn changed_events(selection: &Selection, teller: &mut Teller, changes: Vec<Change>) -> Vec<u8> {
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
        teller.push(&mut lines, kind, event.to_string().as_bytes());
    }
    lines
}
