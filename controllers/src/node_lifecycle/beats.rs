//! Signs of life: read all at once now and then, and judged by the reader's own monotonic clock.
//!
//! A beat is one because it differs from the one before. What time the node says it is, nobody
//! asks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use platctrl_framework::environment::Environment;
use platctrl_framework::store::{ListRequest, Prefix, Revision, Store, StoreError};
use tokio::sync::Mutex;

/// What was heard of a node.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    last: Bytes,
    /// The revision of the beat.
    pub(super) at: Revision,
    /// When it last changed, or was first looked for.
    pub(super) since: Duration,
    /// It changed while somebody listened here.
    pub(super) changed: bool,
}

#[derive(Debug, Default)]
struct State {
    read_at: Option<Duration>,
    epoch: Option<Revision>,
    heard: BTreeMap<String, Heard>,
    began: Duration,
}

/// The beats of all nodes.
#[derive(Clone, Debug)]
pub(super) struct Beats {
    store: Arc<dyn Store>,
    state: Arc<Mutex<State>>,
}

impl Beats {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            state: Arc::default(),
        }
    }

    /// What was heard of each node, read anew when the last look is older than `age`, and when
    /// this process began to listen. Whoever takes over listens from the beginning.
    pub(super) async fn heard(
        &self,
        environment: &Environment,
        epoch: Option<Revision>,
        age: Duration,
    ) -> Result<(BTreeMap<String, Heard>, Duration), StoreError> {
        let mut state = self.state.lock().await;
        let now = environment.monotonic();
        if state.epoch != epoch || state.read_at.is_none() {
            *state = State {
                epoch,
                began: now,
                ..State::default()
            };
        }
        if state.read_at.is_none_or(|at| now.saturating_sub(at) >= age) {
            let beats = self.read().await?;
            for (node, last, at) in beats {
                let known = state.heard.get_mut(&node);
                match known.filter(|known| known.last == last) {
                    Some(same) => same.at = at,
                    None => {
                        let changed = state.heard.contains_key(&node);
                        let heard = Heard {
                            last,
                            at,
                            since: now,
                            changed,
                        };
                        state.heard.insert(node, heard);
                    }
                }
            }
            state.read_at = Some(now);
        }
        Ok((state.heard.clone(), state.began))
    }

    async fn read(&self) -> Result<Vec<(String, Bytes, Revision)>, StoreError> {
        const PREFIX: &str = "x/beat/";
        let prefix = Prefix::new(PREFIX).map_err(|error| StoreError::Invalid {
            reason: error.to_string(),
        })?;
        let mut request = ListRequest::new(prefix);
        let mut beats = Vec::new();
        loop {
            let page = self.store.list(&request).await?;
            let last = page.records.last().map(|record| record.key.clone());
            for record in page.records {
                let node = record.key.as_str().trim_start_matches(PREFIX).to_owned();
                beats.push((node, record.value, record.modified));
            }
            if !page.more || last.is_none() {
                return Ok(beats);
            }
            request.after = last;
        }
    }
}
