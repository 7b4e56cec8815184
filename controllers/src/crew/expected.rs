//! New pods that their owner's own run has made, and no view has shown yet. A record that was put
//! under a key at a revision is the one that is found there with this revision: what the run knows
//! of the pod need not be read from it once more.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use platctrl_framework::model::{ObjectKey, Uid};
use platctrl_framework::store::Revision;

use super::{Brief, ByPath, Shape};

/// A new pod.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) key: Arc<ObjectKey>,
    pub(crate) uid: Uid,
    /// When it was created, as a number that grows.
    pub(crate) created: i64,
}

/// What is known of a pod that no view has shown.
#[derive(Debug)]
pub(super) struct Unseen {
    put: Revision,
    uid: Uid,
    created: i64,
    shape: Arc<Shape>,
}

/// New pods by path.
#[derive(Debug, Default)]
pub(super) struct Expected {
    pods: HashMap<ByPath, Unseen>,
    /// How far views were looked at when something was added.
    seen: Revision,
}

impl Unseen {
    pub(super) fn shape(&self) -> &Arc<Shape> {
        &self.shape
    }

    pub(super) fn into_brief(self, key: &Arc<ObjectKey>, shape: Arc<Shape>) -> Brief {
        Brief {
            key: key.clone(),
            uid: self.uid,
            generation: 1,
            created: self.created,
            ready: false,
            leaving: false,
            gone: false,
            failed: false,
            end_reason: None,
            shared: false,
            request: None,
            shape,
            digest: OnceLock::new(),
        }
    }
}

impl Expected {
    pub(super) fn add(
        &mut self,
        made: Vec<Made>,
        shape: &Arc<Shape>,
        put: Revision,
        seen: Revision,
    ) {
        if seen > self.seen {
            // What a view had to show and did not was gone before.
            self.seen = seen;
            self.pods.retain(|_, pod| pod.put > seen);
        }
        self.pods.extend(made.into_iter().map(|made| {
            let unseen = Unseen {
                put,
                uid: made.uid,
                created: made.created,
                shape: shape.clone(),
            };
            (ByPath(made.key), unseen)
        }));
    }

    /// The pod that was put under a key at a revision.
    pub(super) fn take(&mut self, key: &ObjectKey, put: Revision) -> Option<Unseen> {
        if self.pods.is_empty() {
            return None;
        }
        let unseen = self.pods.remove(key.path())?;
        (unseen.put == put).then_some(unseen)
    }

    pub(super) fn forget(&mut self, key: &ObjectKey) {
        if !self.pods.is_empty() {
            self.pods.remove(key.path());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }
}
