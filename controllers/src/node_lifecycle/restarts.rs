//! Answers agents that ask for the restart of a pod that no controller keeps: there is no
//! workload whose floor could break, so one at a time of a node is granted.

use std::sync::Arc;

use jiff::Timestamp;
use platctrl_framework::cache::View;
use platctrl_framework::client::{Batch, ClientError};
use platctrl_framework::model::{Object, Tree};
use platctrl_kinds::Pod;

use crate::ledger::{Grant, is_granted, name_taken};

/// Who grants it.
const BY: &str = "nodelifecycle";

/// The grant to be written, and the pod that it is for.
pub(super) fn grant(
    view: &View,
    pods: &[Arc<Object<Pod>>],
    at: Timestamp,
) -> Result<Option<(Batch, String)>, ClientError> {
    let bare = pods
        .iter()
        .filter(|pod| pod.metadata.controller().is_none() && !pod.metadata.is_deleted());
    let mut waiting = Vec::new();
    for pod in bare {
        let Some(request) = &pod.status.detail.restart_request else {
            continue;
        };
        if is_granted(view, pod, request) {
            // The agent is at it.
            return Ok(None);
        }
        waiting.push((pod, request));
    }
    waiting.sort_by_key(|(pod, _)| &pod.metadata.name);
    let Some((pod, request)) = waiting.first() else {
        return Ok(None);
    };
    let key = pod.key()?;
    let grant = Grant {
        uid: pod.metadata.uid.clone(),
        request: request.id.clone(),
        by: BY.to_owned(),
        at,
        name_taken: name_taken(view, &key, &pod.metadata.uid),
    };
    let before = view.record(&key, Tree::Grant).map(|(_, revision)| revision);
    let mut batch = Batch::new();
    batch.put_beside(&key, Tree::Grant, before, &grant)?;
    Ok(Some((batch, pod.metadata.name.clone())))
}
