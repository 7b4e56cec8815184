//! A watch on objects of a kind: a position in the changes that all watches share.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use bytes::Bytes;
use platctrl_framework::model::{GroupPlural, RawObject};
use platctrl_framework::store::Revision;
use tokio::sync::watch::Receiver;

use super::{CHUNK, Pace, Shape, answer, bookmark, error_line, lost, open};
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
    mark_initial: bool,
    pace: Pace,
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
    let watching = Watching {
        hub: app.hub.clone(),
        moved,
        kind: definition.group_plural(),
        api_version: definition.api_version(),
        kind_name: definition.kind.clone(),
        version: target.shown(),
        shape: Shape::new(app, form),
        selection,
        position,
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
            return Some(self.first_objects().await.into());
        }
        loop {
            // Before looking, so that nothing that comes after the look is missed.
            self.moved.mark_unchanged();
            let (changes, complete) = match self.hub.take(&mut self.position, BATCH) {
                Found::Changes(changes, complete) => (changes, complete),
                Found::Lost => {
                    self.pace.end();
                    return Some(error_line(&lost()).into());
                }
            };
            let mut lines = Vec::new();
            for change in &changes {
                self.tell(change, &mut lines);
            }
            if let Some(revision) = complete
                && self.pace.bookmark()
            {
                self.bookmark(revision.max(self.seen), false, &mut lines);
            }
            if !lines.is_empty() {
                return Some(lines.into());
            }
            if !changes.is_empty() {
                continue;
            }
            tokio::select! {
                moved = self.moved.changed() => if moved.is_err() {
                    return None;
                },
                () = self.pace.bookmark_due() => {}
                () = self.pace.over() => return None,
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
                    self.pace.end();
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
