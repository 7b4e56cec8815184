//! A watch on objects of a kind: a position in the changes that all watches share.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use bytes::Bytes;
use platctrl_framework::model::{GroupPlural, RawObject};
use tokio::sync::watch::Receiver;

use super::{Teller, Watching, answer, error_line, lost, open};
use crate::server::App;
use crate::server::hub::{Change, Found, Hub, Position};
use crate::server::request::Query;
use crate::server::scan::Objects;
use crate::server::selection::Selection;
use crate::server::status::{Failure, Result};
use crate::server::table::Form;
use crate::server::target::Target;
use crate::server::version::Shown;

/// Changes that are looked at at once.
const BATCH: usize = 256;
/// How long a watch waits for the server's own view of the store.
const SYNC: Duration = Duration::from_secs(10);

struct ObjectWatch {
    hub: Hub,
    moved: Receiver<()>,
    kind: GroupPlural,
    version: Shown,
    selection: Selection,
    position: Position,
    initial: Option<Objects>,
    teller: Teller,
}

/// A watch on objects of a kind.
pub(in crate::server) async fn objects(
    app: &Arc<App>,
    target: &Target<'_>,
    selection: Selection,
    query: &Query,
    form: Form,
) -> Result<Response> {
    let kind = target.kind;
    let (asked, pace) = open(app, query).await?;
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
    let kind = (definition.kind.clone(), definition.api_version());
    let watch = ObjectWatch {
        hub: app.hub.clone(),
        moved,
        kind: definition.group_plural(),
        version: target.shown(),
        selection,
        position,
        initial,
        teller: Teller::new(app, form, kind, seen, (asked, pace)),
    };
    Ok(watch.answer())
}

impl Watching for ObjectWatch {
    fn teller(&mut self) -> &mut Teller {
        &mut self.teller
    }

    async fn first(&mut self) -> Result<Option<String>> {
        let Some(objects) = &mut self.initial else {
            return Ok(None);
        };
        while let Some((_, joined)) = objects.next().await? {
            let object = joined.object();
            if let Some(object) = object.filter(|object| self.selection.matches(object)) {
                return Ok(Some(self.version.show(object).to_api().to_string()));
            }
        }
        self.initial = None;
        Ok(None)
    }

    async fn changed(&mut self) -> Option<Vec<u8>> {
        loop {
            // Before looking, so that nothing that comes after the look is missed.
            self.moved.mark_unchanged();
            let (changes, complete) = match self.hub.take(&mut self.position, BATCH) {
                Found::Changes(changes, complete) => (changes, complete),
                Found::Lost => return Some(self.teller.fail(&lost())),
            };
            let mut lines = Vec::new();
            for change in &changes {
                self.tell(change, &mut lines);
            }
            if let Some(revision) = complete
                && self.teller.pace.bookmark()
            {
                let reached = revision.max(self.teller.seen);
                self.teller.bookmark(reached, false, &mut lines);
            }
            if !lines.is_empty() {
                return Some(lines);
            }
            if !changes.is_empty() {
                continue;
            }
            tokio::select! {
                moved = self.moved.changed() => if moved.is_err() {
                    return None;
                },
                () = self.teller.pace.bookmark_due() => {}
                () = self.teller.pace.over() => return None,
            }
        }
    }
}

impl ObjectWatch {
    /// The lines of one change, as far as the watch is about it.
    fn tell(&mut self, change: &Change, lines: &mut Vec<u8>) {
        if change.revision <= self.teller.seen || !change.is_of(&self.kind) {
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
            (false, true) => self.teller.push(lines, "ADDED", &new),
            (true, true) => {
                let uid = |object: &Option<RawObject>| {
                    object.as_ref().map(|object| object.metadata.uid.clone())
                };
                if uid(&shown.before) == uid(&shown.after) {
                    self.teller.push(lines, "MODIFIED", &new);
                } else {
                    // Gone and made again between two looks.
                    self.teller.push(lines, "DELETED", &old);
                    self.teller.push(lines, "ADDED", &new);
                }
            }
            (true, false) => self.teller.push(lines, "DELETED", &old),
            (false, false) => {}
        }
    }
}
