//! Two live pods of one namespace and name on different nodes: the one whose intent was made first
//! has the name, and the other one's agent is told so, where it reads what it is granted. It does
//! not begin what it has not begun; nothing that runs is ended for a name.
//!
//! The server lets nobody make such a pod. What is written to the store by other means, or comes
//! back with an older state of it, is found here. Names that controllers make are drawn from
//! 10^15: only pods that nobody keeps are looked at, each once, and those that were told something
//! again until it is over.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use platctrl_framework::cache::View;
use platctrl_framework::client::{Batch, ClientError};
use platctrl_framework::model::{Object, ObjectKey, Resource as _, Tree, Uid};
use platctrl_framework::store::{Record, Revision, Store, Transaction};
use platctrl_kinds::{Grant, NameTaken, Node, Pod};

use super::is_gone;

/// Who says so.
const BY: &str = "nodelifecycle";

/// The pods that were looked at, by node.
#[derive(Debug, Default)]
pub(super) struct Names {
    seen: Mutex<HashMap<String, HashSet<Uid>>>,
}

/// What is to be written, and in words.
pub(super) type Verdict = (Transaction, String);

impl Names {
    /// Judges the pods of a node, up to the first of which there is news.
    pub(super) async fn judge(
        &self,
        store: &dyn Store,
        view: &View,
        node: &str,
        pods: &[Arc<Object<Pod>>],
        at: Timestamp,
    ) -> Result<Option<Verdict>, ClientError> {
        for pod in self.to_judge(view, node, pods)? {
            let verdict = judge(store, view, &pod, at).await?;
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let seen = seen.entry(node.to_owned()).or_default();
            seen.insert(pod.metadata.uid.clone());
            if verdict.is_some() {
                return Ok(verdict);
            }
        }
        Ok(None)
    }

    /// Those that were not looked at yet, and those that were told something.
    fn to_judge(
        &self,
        view: &View,
        node: &str,
        pods: &[Arc<Object<Pod>>],
    ) -> Result<Vec<Arc<Object<Pod>>>, ClientError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let known = seen.entry(node.to_owned()).or_default();
        if !known.is_empty() {
            let here: HashSet<&Uid> = pods.iter().map(|pod| &pod.metadata.uid).collect();
            known.retain(|uid| here.contains(uid));
        }
        let mut found = Vec::new();
        let lives = |pod: &&Arc<Object<Pod>>| !pod.metadata.is_deleted() && !is_gone(pod);
        let bare = |pod: &&Arc<Object<Pod>>| pod.metadata.controller().is_none();
        for pod in pods.iter().filter(bare).filter(lives) {
            let is_new = !known.contains(&pod.metadata.uid);
            if is_new || granted(view, &pod.key()?, pod).0.is_some() {
                found.push(pod.clone());
            }
        }
        if known.is_empty() {
            seen.remove(node);
        }
        Ok(found)
    }
}

/// Who is told to have the pod's name; the rest of what it is granted; and when that was written.
type Granted = (Option<NameTaken>, Option<Grant>, Option<Revision>);

fn granted(view: &View, key: &ObjectKey, pod: &Object<Pod>) -> Granted {
    let Some((value, at)) = view.record(key, Tree::Grant) else {
        return (None, None, None);
    };
    // What cannot be read, or is another's, is written anew when there is something to say.
    let grant: Option<Grant> = serde_json::from_slice(&value).ok();
    let grant = grant.filter(|grant| grant.uid == pod.metadata.uid);
    let taken = grant.as_ref().and_then(|grant| grant.name_taken.clone());
    (taken, grant, Some(at))
}

async fn judge(
    store: &dyn Store,
    view: &View,
    pod: &Object<Pod>,
    at: Timestamp,
) -> Result<Option<Verdict>, ClientError> {
    let key = pod.key()?;
    let (told, grant, written) = granted(view, &key, pod);
    let older = older(store, &key, &rivals(view, &key)?).await?;
    let taken = older.as_ref().map(|older| older.name.clone());
    if taken == told {
        return Ok(None);
    }
    let title = format!("{}/{}", key.namespace().unwrap_or_default(), key.name());
    let here = key.node().unwrap_or_default();
    let message = match &taken {
        Some(taken) => format!(
            "two live pods are called {title}: that on node {} is older and has the name; that on {here} is not begun",
            taken.node
        ),
        None => format!("the pod {title} on node {here} has its name to itself"),
    };
    let next = Grant {
        uid: pod.metadata.uid.clone(),
        request: grant
            .as_ref()
            .map(|it| it.request.clone())
            .unwrap_or_default(),
        by: grant
            .as_ref()
            .map_or_else(|| BY.to_owned(), |it| it.by.clone()),
        at: grant.map_or(at, |it| it.at),
        name_taken: taken,
    };
    let mut batch = Batch::new();
    batch.put_beside(&key, Tree::Grant, written, &next)?;
    let mut transaction = batch.into_transaction();
    // Neither was deleted or made anew since.
    for record in older.into_iter().flat_map(|older| older.read) {
        transaction = transaction.require_unchanged(record.key, Some(record.modified));
    }
    Ok(Some((transaction, message)))
}

/// The pods of this name on other nodes, as far as the view shows.
fn rivals(view: &View, key: &ObjectKey) -> Result<Vec<Arc<Object<Pod>>>, ClientError> {
    let mut rivals = Vec::new();
    for node in view.list::<Node>().keys() {
        let node = node.name();
        if key.node() == Some(node) {
            continue;
        }
        let namespace = key.namespace().unwrap_or_default();
        let other = ObjectKey::on_node(Pod::GROUP, Pod::PLURAL, node, namespace, key.name())?;
        rivals.extend(view.get::<Pod>(&other).filter(|pod| !is_gone(pod)));
    }
    Ok(rivals)
}

/// The one that has the name, and the records that say so.
struct Older {
    name: NameTaken,
    read: Vec<Record>,
}

/// The oldest of the rivals, if one is older than the pod itself. Which was made first, the store
/// alone knows.
async fn older(
    store: &dyn Store,
    key: &ObjectKey,
    rivals: &[Arc<Object<Pod>>],
) -> Result<Option<Older>, ClientError> {
    if rivals.is_empty() {
        return Ok(None);
    }
    let mut keys = vec![key.store_key(Tree::Intent)];
    for rival in rivals {
        keys.push(rival.key()?.store_key(Tree::Intent));
    }
    // As many as fit into one read; who has more of one name has other troubles.
    keys.truncate(store.capabilities().limits.max_operations.max(2));
    let mut records = store.get(&keys).await?.records.into_iter();
    let Some(own) = records.next().flatten() else {
        return Ok(None);
    };
    let age = |record: &Record| (record.created, record.key.clone());
    let found = records.zip(rivals);
    let found = found.filter_map(|(record, rival)| Some((record?, rival)));
    let oldest = found.min_by_key(|(record, _)| age(record));
    let Some((record, rival)) = oldest.filter(|(record, _)| age(record) < age(&own)) else {
        return Ok(None);
    };
    let name = NameTaken {
        node: rival.spec.node_name.clone().unwrap_or_default(),
        uid: rival.metadata.uid.clone(),
    };
    let read = vec![own, record];
    Ok(Some(Older { name, read }))
}
