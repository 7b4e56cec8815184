//! What a worker is told besides its order: each word once, and none is lost.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

/// A word to a pod's worker.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Control {
    /// The restart of this request is granted.
    Grant {
        /// The request's id.
        request: String,
    },
    /// Somebody on the node wants the programs restarted.
    Restart {
        /// Who.
        by: String,
        /// Without asking whoever keeps the workload healthy.
        now: bool,
    },
    /// Somebody on the node wants the programs stopped until they are started again.
    Stop {
        /// Who.
        by: String,
        /// Without asking whoever keeps the workload healthy.
        now: bool,
    },
    /// Somebody on the node wants the programs started that were stopped.
    Start {
        /// Who.
        by: String,
    },
}

/// Words on their way to a worker. They outlive one that panicked.
#[derive(Debug, Default)]
pub(super) struct Controls {
    waiting: Mutex<VecDeque<Control>>,
    news: Notify,
}

impl Controls {
    pub(super) fn say(&self, word: Control) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // A grant is told whenever the pod is looked at.
        if !waiting.contains(&word) {
            waiting.push_back(word);
            self.news.notify_one();
        }
    }

    pub(super) fn take(&self) -> Option<Control> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.pop_front()
    }

    /// Waits until something may have been said.
    pub(super) async fn heard(&self) {
        self.news.notified().await;
    }
}
