//! What a run leaves behind: the revisions that its key has to see before it runs again.
//!
//! A commit that happened is known by its revision. One whose answer was lost, and one that was
//! decided on what was not so any more, are read afresh, because the view does not show yet what
//! is different.

use std::collections::BTreeMap;

use super::context::{Context, Notes, subject};
use super::engine::Engine;
use super::posts::Duty;
use crate::backoff::Backoff;
use crate::store::{Key, ListRequest, Prefix, Revision, StoreError};

impl Engine {
    /// What each source has to show before the key may run again: what the run wrote, and what
    /// it was wrong or unsure about, read afresh.
    pub(super) async fn must_see(
        &self,
        context: &Context,
        notes: &Notes,
        duty: &Duty,
    ) -> Vec<(usize, Revision)> {
        let view = context.view();
        let mut must_see = BTreeMap::<usize, Revision>::new();
        let mut see = |key: &Key, revision: Revision| {
            for source in view.sources_of(key) {
                let at = must_see.entry(source).or_insert(revision);
                *at = revision.max(*at);
            }
        };
        for written in &notes.wrote {
            for key in &written.keys {
                see(key, written.revision);
            }
        }
        if !notes.unsure.is_empty() {
            let (mut keys, mut prefixes) = (Vec::new(), Vec::new());
            for subject in notes.unsure.iter().filter_map(subject) {
                match subject {
                    Ok(key) if !keys.contains(key) => keys.push(key.clone()),
                    Err(prefix) if !prefixes.contains(prefix) => prefixes.push(prefix.clone()),
                    _ => {}
                }
            }
            let mut failures = 0;
            loop {
                match self.read_afresh(&keys, &prefixes, &mut see).await {
                    Ok(()) => break,
                    Err(error) => {
                        failures += 1;
                        tracing::debug!(key = %context.key(), %error, "cannot find out what happened");
                        let delay = Backoff::SOURCE.delay(failures, &self.setting.environment);
                        tokio::select! {
                            biased;
                            () = duty.closed() => break,
                            () = self.setting.environment.sleep(delay) => {}
                        }
                    }
                }
            }
        }
        must_see.into_iter().collect()
    }

    /// Reads what may be different from what the view shows.
    async fn read_afresh(
        &self,
        keys: &[Key],
        prefixes: &[Prefix],
        see: &mut impl FnMut(&Key, Revision),
    ) -> Result<(), StoreError> {
        let store = &self.setting.store;
        let most = store.capabilities().limits.max_operations.max(1);
        let view = self.reader.view();
        for keys in keys.chunks(most) {
            let snapshot = store.get(keys).await?;
            for (key, record) in keys.iter().zip(snapshot.records) {
                match record {
                    Some(record) => see(key, record.modified),
                    // Deleted, and the view does not know it yet.
                    None if view.shows(key) => see(key, snapshot.revision),
                    None => {}
                }
            }
        }
        for prefix in prefixes {
            let mut request = ListRequest::new(prefix.clone());
            loop {
                let page = store.list(&request).await?;
                for record in &page.records {
                    see(&record.key, record.modified);
                }
                request.after = page.records.last().map(|record| record.key.clone());
                if !page.more || request.after.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }
}
