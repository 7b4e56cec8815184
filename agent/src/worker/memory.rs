//! What is remembered of a pod on the node's disk.

use super::lane::Which;
use super::trouble::with_files;
use super::{Pod, prepare};
use crate::plan::{Order, Step};
use crate::report::Trouble;
use crate::state::Position;

impl Pod {
    /// Writes the record; after this its effects may begin. Nobody waits for the disk while
    /// nothing ran yet: a power cut takes nothing then that the order does not say again.
    pub(super) async fn save(&mut self, step: Step) -> Result<(), Trouble> {
        let (record, path) = (self.record.clone(), self.paths.record());
        let durable = record.current.is_some() || record.position != Position::Settled;
        with_files(step, move || record.write(&path, durable)).await
    }

    /// Remembers what was heard, so that ends are told once and health outlives the agent.
    pub(super) async fn keep_news(&mut self) {
        if std::mem::take(&mut self.unsaved)
            && let Err(trouble) = self.save(Step::Start).await
        {
            tracing::warn!(pod = %self.name, message = trouble.message, "cannot remember what was heard");
        }
    }

    /// The version that runs is the one that is wanted: remember the order and show the newest
    /// labels.
    pub(super) async fn note_order(&mut self, order: &Order) {
        let Some(desired) = self.accepted(order).cloned() else {
            return;
        };
        let Some(current) = &self.record.current else {
            return;
        };
        if current.digest != desired.digest || desired.tombstone.is_some() {
            return;
        }
        if self.record.last.as_ref() == Some(&desired) {
            return;
        }
        let labels = self.record.last.as_ref().map(|last| &last.labels) != Some(&desired.labels);
        if labels
            && let Err(error) = prepare::write_labels(&self.paths, &desired.labels, &current.run_as)
        {
            self.failed(Which::Main, Trouble::file(Step::Configure, &error))
                .await;
            return;
        }
        self.record.last = Some(desired);
        // Should what failed be wanted again after this, it is another try.
        self.record.quarantined = None;
        if let Err(trouble) = self.save(Step::Configure).await {
            self.failed(Which::Main, trouble).await;
        }
    }
}
