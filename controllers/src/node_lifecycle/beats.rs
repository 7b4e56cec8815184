//! Signs of life: read all at once now and then, and judged by the reader's own monotonic clock.
//!
//! A beat is one because it differs from the one before. What time the node says it is, nobody
//! asks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use platctrl_framework::environment::Environment;
use platctrl_framework::model::Digest;
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

impl Heard {
    /// What tells this beat from any other.
    pub(super) fn digest(&self) -> Digest {
        Digest::of(&self.last)
    }
}

/// What was heard of all nodes when their beats were read last.
#[derive(Clone, Debug)]
pub(super) struct Listened {
    /// By node.
    pub(super) heard: Arc<BTreeMap<String, Heard>>,
    /// When this observer began to listen.
    pub(super) began: Duration,
    /// When it read the beats last.
    pub(super) at: Duration,
}

#[derive(Debug, Default)]
struct State {
    read_at: Option<Duration>,
    epoch: Option<Revision>,
    heard: Arc<BTreeMap<String, Heard>>,
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

    /// What was heard of each node, read anew when the last look is older than `age`. Whoever takes
    /// over listens from the beginning.
    pub(super) async fn heard(
        &self,
        environment: &Environment,
        epoch: Option<Revision>,
        age: Duration,
    ) -> Result<Listened, StoreError> {
        let mut state = self.state.lock().await;
        let now = environment.monotonic();
        if state.epoch != epoch || state.read_at.is_none() {
            *state = State {
                epoch,
                began: now,
                ..State::default()
            };
        }
        let known = state.read_at.filter(|at| now.saturating_sub(*at) < age);
        let at = match known {
            Some(at) => at,
            None => {
                let beats = self.read().await?;
                let heard = Arc::make_mut(&mut state.heard);
                for (node, last, at) in beats {
                    hear(heard, node, last, at, now);
                }
                state.read_at = Some(now);
                now
            }
        };
        Ok(Listened {
            heard: state.heard.clone(),
            began: state.began,
            at,
        })
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

/// Takes note of a beat that was read now.
fn hear(
    heard: &mut BTreeMap<String, Heard>,
    node: String,
    last: Bytes,
    at: Revision,
    now: Duration,
) {
    let known = heard.get_mut(&node);
    if let Some(same) = known.filter(|known| known.last == last) {
        same.at = at;
        return;
    }
    let changed = heard.contains_key(&node);
    let beat = Heard {
        last,
        at,
        since: now,
        changed,
    };
    heard.insert(node, beat);
}
