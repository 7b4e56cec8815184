//! The disruption ledger: whatever takes a healthy pod away is entered here first.
//!
//! Each workload has one record, `o/ledger/<group>/<plural>/<namespace>/<name>`, with the
//! disruptions that were decided and whose effect may not be seen yet. Rolls, drains, moves,
//! scale-downs and restarts all write it in the transaction that does the act, comparing what
//! they read: of two that decide on the same state only one happens, so that together they never
//! take more than the floor leaves. How much that is, [`Account`] says, from plain data.
//!
//! A rolling update has one ledger for both of its replication controllers; while it claims them,
//! their own records point there.

mod account;
mod floor;
mod person;
mod present;
#[cfg(test)]
mod schedules;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use platctrl_framework::cache::{Head, HeadOwner, View};
use platctrl_framework::client::ClientError;
use platctrl_framework::controller::Changes;
use platctrl_framework::model::{ConditionStatus, Digest, Object, ObjectKey, Resource, Tree, Uid};
use platctrl_framework::store::Revision;
use platctrl_kinds::{
    NameTaken, Node, Pod, PodSpec, ReplicationController, RestartRequest, RollPhase, RollingUpdate,
    condition,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use account::{Account, Act, Entry, Member, Refused};
pub use floor::{Floor, floor};
pub use person::{DeleteError, enter_delete};
pub use platctrl_kinds::Grant;

use crate::crew::Crew;
use crate::nodes::Names;
use present::Present;

/// The condition of a node that says whether it is heard of. The health of pods on a node for
/// which it is not true is old, and counts for nothing.
pub const ALIVE: &str = "Alive";

/// Restarts that one commit grants, at most: with the records beside them that is within the
/// limits of every store.
const GRANTS: usize = 16;

/// A ledger as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    #[serde(default)]
    entries: Vec<Entry>,
    /// The rolling update whose ledger is the one that counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    moved_to: Option<String>,
    /// Fields of other versions, kept.
    #[serde(flatten)]
    other: Map<String, Value>,
}

/// Why a ledger cannot be used now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// Two records say different things about which ledger counts.
    #[error("the ledger of {key} is on its way to or from a rolling update")]
    Moving {
        /// The workload.
        key: String,
    },
}

/// A record as it was read.
#[derive(Clone, Debug, Default)]
struct Read {
    record: Record,
    /// Its revision; None if there is none.
    at: Option<Revision>,
    /// There is none, or nothing that can be read.
    lost: bool,
}

/// A workload's ledger, as a view shows it, and what is entered into it.
#[derive(Clone, Debug)]
pub struct Ledger {
    key: ObjectKey,
    read: Read,
    /// What shows the pods is not older than the record.
    current: bool,
    /// Something was decided on this ledger: it has to be the same when that happens.
    used: bool,
    floor: Floor,
    account: Account,
}

fn read(view: &View, key: &ObjectKey) -> Read {
    let Some((value, revision)) = view.record(key, Tree::Ledger) else {
        return Read {
            lost: true,
            ..Read::default()
        };
    };
    let record = serde_json::from_slice(&value);
    if let Err(error) = &record {
        tracing::warn!(%key, %error, "a ledger cannot be read: it is made again");
    }
    Read {
        lost: record.is_err(),
        record: record.unwrap_or_default(),
        at: Some(revision),
    }
}

/// The node is not heard of.
pub(crate) fn is_silent(node: &Object<Node>) -> bool {
    let alive = node.status.conditions.get(ALIVE);
    alive.is_some_and(|alive| alive.status != ConditionStatus::True)
}

/// The nodes that are not heard of.
fn silent_nodes(view: &View) -> HashSet<String> {
    let nodes = view.list::<Node>().into_iter();
    let silent = nodes.filter(|node| is_silent(node));
    silent.map(|node| node.metadata.name.clone()).collect()
}

/// The key of the replication controller that a pod belongs to.
#[must_use]
pub fn controller_of(pod: &Object<Pod>) -> Option<ObjectKey> {
    let owner = pod.metadata.controller()?;
    if owner.kind != ReplicationController::KIND {
        return None;
    }
    let namespace = pod.metadata.namespace.as_deref()?;
    let (group, plural) = (ReplicationController::GROUP, ReplicationController::PLURAL);
    ObjectKey::namespaced(group, plural, namespace, &owner.name).ok()
}

/// The keys of the replication controllers that a pod was made for.
pub(crate) fn controllers_of(pod: &Head<'_>) -> impl Iterator<Item = ObjectKey> {
    let namespace = pod.key().namespace().unwrap_or_default();
    let is = |owner: &HeadOwner<'_>| {
        owner.kind == ReplicationController::KIND && owner.group == ReplicationController::GROUP
    };
    let owners = pod.owners().filter(is);
    owners.filter_map(move |owner| replication_controller_key(namespace, owner.name))
}

/// The rolling update that claims a replication controller and has not come to its end.
#[must_use]
pub fn claimant(
    view: &View,
    controller: &Object<ReplicationController>,
) -> Option<Arc<Object<RollingUpdate>>> {
    let name = controller.spec.claimed_by.as_deref()?;
    let namespace = controller.metadata.namespace.as_deref()?;
    let key = roll_key(namespace, name)?;
    let roll = view.get::<RollingUpdate>(&key)?;
    (!RollPhase::is_final(&roll.status.phase)).then_some(roll)
}

/// The key of a rolling update.
pub(crate) fn roll_key(namespace: &str, name: &str) -> Option<ObjectKey> {
    let (group, plural) = (RollingUpdate::GROUP, RollingUpdate::PLURAL);
    ObjectKey::namespaced(group, plural, namespace, name).ok()
}

fn key_of_roll(roll: &Object<RollingUpdate>) -> Result<ObjectKey, LedgerError> {
    let namespace = roll.metadata.namespace.as_deref().unwrap_or_default();
    let name = &roll.metadata.name;
    roll_key(namespace, name).ok_or_else(|| LedgerError::Moving { key: name.clone() })
}

pub(crate) fn node_key(name: &str) -> Option<ObjectKey> {
    ObjectKey::cluster(Node::GROUP, Node::PLURAL, name).ok()
}

pub(crate) fn replication_controller_key(namespace: &str, name: &str) -> Option<ObjectKey> {
    let (group, plural) = (ReplicationController::GROUP, ReplicationController::PLURAL);
    ObjectKey::namespaced(group, plural, namespace, name).ok()
}

impl Ledger {
    /// The ledger of a workload that has one of its own. `minimum`: what the workload itself says
    /// has to stay healthy of `wanted` pods.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub fn open(
        view: &View,
        key: ObjectKey,
        pods: &[Arc<Object<Pod>>],
        wanted: u32,
        minimum: Option<u32>,
    ) -> Result<Self, LedgerError> {
        Self::beside(view, key, pods, (wanted, minimum), &silent_nodes(view))
    }

    /// As [`Ledger::open`], for who knows which nodes are silent.
    fn beside(
        view: &View,
        key: ObjectKey,
        pods: &[Arc<Object<Pod>>],
        (wanted, minimum): (u32, Option<u32>),
        silent: &HashSet<String>,
    ) -> Result<Self, LedgerError> {
        let read = read(view, &key);
        if read.record.moved_to.is_some() {
            return Err(LedgerError::Moving {
                key: key.to_string(),
            });
        }
        let current = read.at.is_none_or(|revision| revision <= view.revision());
        let open: HashSet<&Uid> = read
            .record
            .entries
            .iter()
            .map(|entry| &entry.victim)
            .collect();
        let mut entries = read.record.entries.clone();
        let mut members = BTreeMap::new();
        for pod in pods {
            let uid = &pod.metadata.uid;
            let node = pod.spec.node_name.as_deref().unwrap_or_default();
            let pod_key = pod.key().ok();
            let spec = pod_key.as_ref().filter(|_| open.contains(uid));
            let spec = spec.and_then(|key| spec_of(view, key));
            let request = pod.status.detail.restart_request.clone();
            let request = request.map(|request| request.id);
            if read.lost
                && let (Some(key), Some(request)) = (&pod_key, &request)
                && let Some(entry) = granted(view, key, uid, request)
            {
                // The record is lost, and what was granted is not.
                entries.push(entry);
            }
            let member = Member {
                healthy: pod.status.conditions.is_true(condition::READY) && !silent.contains(node),
                leaving: pod.metadata.is_deleted(),
                spec,
                request,
            };
            members.insert(uid.clone(), member);
        }
        let floor = floor::floor(view, pods, wanted, minimum);
        let account = Account::new(members, floor.pods, entries, current);
        Ok(Self {
            key,
            read,
            current,
            used: false,
            floor,
            account,
        })
    }

    /// As [`Ledger::open`], of pods that are kept from view to view.
    fn of_crews(
        view: &View,
        key: ObjectKey,
        crews: &[Arc<Crew>],
        (wanted, minimum): (u32, Option<u32>),
        silent: &Names,
    ) -> Result<Self, LedgerError> {
        let read = read(view, &key);
        if read.record.moved_to.is_some() {
            return Err(LedgerError::Moving {
                key: key.to_string(),
            });
        }
        let current = read.at.is_none_or(|revision| revision <= view.revision());
        let mut entries = read.record.entries.clone();
        if read.lost {
            let asking = crews.iter().flat_map(|crew| crew.asking());
            entries.extend(asking.filter_map(|pod| {
                // The record is lost, and what was granted is not.
                granted(view, &pod.key, &pod.uid, pod.request.as_deref()?)
            }));
        }
        let victims = entries.iter().map(|entry| &entry.victim);
        let present = Present::new(view, crews, silent, victims);
        let floor = floor::floor_of(view, crews, wanted, minimum);
        let account = Account::of(Arc::new(present), floor.pods, entries, current);
        Ok(Self {
            key,
            read,
            current,
            used: false,
            floor,
            account,
        })
    }

    /// As [`Ledger::of_controller`], for who keeps what is known of pods and nodes.
    pub(crate) fn of_controller_with(
        view: &View,
        controller: &Object<ReplicationController>,
        crew: impl Fn(&Uid) -> Arc<Crew>,
        silent: &Names,
    ) -> Result<Self, LedgerError> {
        let namespace = controller.metadata.namespace.as_deref().unwrap_or_default();
        let name = &controller.metadata.name;
        if let Some(roll) = claimant(view, controller)
            && roll.status.detail.to_replicas.is_some()
        {
            let sides = [&roll.spec.from, &roll.spec.to].into_iter();
            let sides = sides.filter_map(|name| {
                let key = replication_controller_key(namespace, name)?;
                view.get::<ReplicationController>(&key)
            });
            let crews: Vec<_> = sides.map(|side| crew(&side.metadata.uid)).collect();
            return Self::of_roll_with(view, &roll, &crews, silent);
        }
        let key = replication_controller_key(namespace, name)
            .ok_or_else(|| LedgerError::Moving { key: name.clone() })?;
        let wanted = (controller.spec.replicas, None);
        let crews = [crew(&controller.metadata.uid)];
        Self::of_crews(view, key, &crews, wanted, silent)
    }

    /// The ledger of a replication controller: its own, or that of the roll that claims it.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub fn of_controller(
        view: &View,
        controller: &Object<ReplicationController>,
    ) -> Result<Self, LedgerError> {
        let namespace = controller.metadata.namespace.as_deref().unwrap_or_default();
        let name = &controller.metadata.name;
        if let Some(roll) = claimant(view, controller)
            && roll.status.detail.to_replicas.is_some()
        {
            let other = |name: &str| {
                let key = replication_controller_key(namespace, name)?;
                view.get::<ReplicationController>(&key)
            };
            let sides = [other(&roll.spec.from), other(&roll.spec.to)];
            let sides: Vec<_> = sides.iter().flatten().map(|side| &**side).collect();
            return Self::of_roll(view, &roll, &sides);
        }
        let key = replication_controller_key(namespace, name)
            .ok_or_else(|| LedgerError::Moving { key: name.clone() })?;
        let pods = view
            .list::<Pod>()
            .owned_by(&controller.metadata.uid)
            .to_vec();
        Self::open(view, key, &pods, controller.spec.replicas, None)
    }

    /// The ledger of a roll, with the pods of its replication controllers.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub fn of_roll(
        view: &View,
        roll: &Object<RollingUpdate>,
        sides: &[&Object<ReplicationController>],
    ) -> Result<Self, LedgerError> {
        let mut pods = Vec::new();
        for side in sides {
            pods.extend(view.list::<Pod>().owned_by(&side.metadata.uid).to_vec());
        }
        let wanted = (roll.spec.replicas, Some(roll.spec.floor()));
        Self::beside(view, key_of_roll(roll)?, &pods, wanted, &silent_nodes(view))
    }

    /// As [`Ledger::of_roll`], for who keeps what is known of pods and nodes.
    pub(crate) fn of_roll_with(
        view: &View,
        roll: &Object<RollingUpdate>,
        crews: &[Arc<Crew>],
        silent: &Names,
    ) -> Result<Self, LedgerError> {
        let key = key_of_roll(roll)?;
        let wanted = (roll.spec.replicas, Some(roll.spec.floor()));
        Self::of_crews(view, key, crews, wanted, silent)
    }

    /// The record was lost, or there never was one. It has to be [written](Self::establish)
    /// before anything is taken away, so that whoever decided on the lost one is heard.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.read.lost
    }

    /// The workload that it is for, or the roll.
    #[must_use]
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// The entries whose effect is not seen.
    #[must_use]
    pub fn open_entries(&self) -> Vec<Entry> {
        self.account.open().cloned().collect()
    }

    /// The pods and what is under way with them.
    #[must_use]
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// How many pods have to stay healthy, and who says so.
    #[must_use]
    pub fn floor(&self) -> &Floor {
        &self.floor
    }

    /// How many healthy pods may be taken away now. None may while the record is missing, or
    /// newer than what shows the pods.
    #[must_use]
    pub fn allowed(&self) -> u32 {
        if self.current && !self.read.lost {
            self.account.allowed()
        } else {
            0
        }
    }

    fn enter(&mut self, pod: &Uid, act: Act, by: &str, at: Timestamp) -> Result<(), Refused> {
        if !self.current || self.read.lost {
            return Err(Refused {
                healthy: self.account.healthy(),
                open: self.account.going(),
                floor: self.account.floor(),
            });
        }
        self.account.enter(pod, act, by, at)?;
        self.used = true;
        Ok(())
    }

    /// Enters a pod that is to be ended in the same transaction.
    ///
    /// # Errors
    /// [`Refused`] when it is healthy and none may go.
    pub fn delete(&mut self, pod: &Object<Pod>, by: &str, at: Timestamp) -> Result<(), Refused> {
        self.enter(&pod.metadata.uid, Act::Delete, by, at)
    }

    /// Enters a pod that gets another spec in the same transaction.
    ///
    /// # Errors
    /// [`Refused`] when it is healthy and none may go.
    pub fn replace(
        &mut self,
        view: &View,
        pod: &Object<Pod>,
        target: &PodSpec,
        by: &str,
        at: Timestamp,
    ) -> Result<(), Refused> {
        let before = pod.key().ok().and_then(|key| spec_of(view, &key));
        let act = Act::Replace {
            before: before.unwrap_or_else(|| digest_of(&pod.spec)),
            target: digest_of(target),
        };
        self.enter(&pod.metadata.uid, act, by, at)
    }

    /// Grants restarts that agents ask for, as many as may be now, and returns the pods' names.
    ///
    /// # Errors
    /// A grant cannot be written.
    pub fn grant_restarts(
        &mut self,
        view: &View,
        pods: &[Arc<Object<Pod>>],
        changes: &mut Changes<'_>,
        by: &str,
        at: Timestamp,
    ) -> Result<Vec<String>, ClientError> {
        let mut granted = Vec::new();
        for (uid, request) in self.account.asking() {
            if granted.len() == GRANTS {
                break;
            }
            let Some(pod) = pods.iter().find(|pod| pod.metadata.uid == uid) else {
                continue;
            };
            let act = Act::Restart {
                request: request.clone(),
            };
            if self.enter(&uid, act, by, at).is_err() {
                break;
            }
            let key = pod.key()?;
            let before = view.record(&key, Tree::Grant);
            let grant = Grant {
                name_taken: name_taken(view, &key, &uid),
                uid,
                request,
                by: by.to_owned(),
                at,
            };
            let read_at = before.map(|(_, revision)| revision);
            changes
                .batch()
                .put_beside(&key, Tree::Grant, read_at, &grant)?;
            granted.push(pod.metadata.name.clone());
        }
        Ok(granted)
    }

    /// Adds the record to the changes that do what was entered. Without entries it adds nothing.
    ///
    /// # Errors
    /// The record is too large.
    pub fn write(&self, changes: &mut Changes<'_>) -> Result<(), ClientError> {
        if !self.used {
            return Ok(());
        }
        self.put(changes, &self.next_record())
    }

    /// Adds the record, as it is now, to changes that take nothing away.
    ///
    /// # Errors
    /// The record is too large.
    pub fn establish(&self, changes: &mut Changes<'_>) -> Result<(), ClientError> {
        self.put(changes, &self.next_record())
    }

    /// A commit with [what was entered](Self::write) happened: more can be entered for the next.
    pub(crate) fn written(&mut self, at: Revision) {
        if self.used {
            self.read.record = self.next_record();
            self.read.at = Some(at);
            self.read.lost = false;
            self.used = false;
        }
    }

    fn next_record(&self) -> Record {
        Record {
            entries: self.account.open().cloned().collect(),
            ..self.read.record.clone()
        }
    }

    fn put(&self, changes: &mut Changes<'_>, record: &Record) -> Result<(), ClientError> {
        changes
            .batch()
            .put_beside(&self.key, Tree::Ledger, self.read.at, record)
    }
}

/// Writes what a claim does to ledgers: those of the controllers point to the roll's, which gets
/// their entries.
///
/// # Errors
/// A record cannot be written.
pub fn move_to_roll(
    view: &View,
    changes: &mut Changes<'_>,
    roll: &ObjectKey,
    controllers: &[ObjectKey],
) -> Result<(), ClientError> {
    let mut rolls = read(view, roll);
    for controller in controllers {
        let mut theirs = read(view, controller);
        rolls.record.entries.append(&mut theirs.record.entries);
        theirs.record.moved_to = Some(roll.name().to_owned());
        let batch = changes.batch();
        batch.put_beside(controller, Tree::Ledger, theirs.at, &theirs.record)?;
    }
    let batch = changes.batch();
    batch.put_beside(roll, Tree::Ledger, rolls.at, &rolls.record)
}

/// Writes what the end of a claim does to ledgers: each controller gets back those entries that
/// are `open` of its pods, and its own ledger counts again.
///
/// # Errors
/// A record cannot be written.
pub fn move_back(
    view: &View,
    changes: &mut Changes<'_>,
    roll: &ObjectKey,
    open: &[Entry],
    controllers: &[(ObjectKey, Vec<Uid>)],
) -> Result<(), ClientError> {
    let rolls = read(view, roll);
    for (controller, pods) in controllers {
        let mut theirs = read(view, controller);
        if theirs.record.moved_to.as_deref() != Some(roll.name()) {
            continue;
        }
        theirs.record.moved_to = None;
        let entries = open.iter().filter(|entry| pods.contains(&entry.victim));
        theirs.record.entries = entries.cloned().collect();
        let batch = changes.batch();
        batch.put_beside(controller, Tree::Ledger, theirs.at, &theirs.record)?;
    }
    // Whoever decided on the roll's ledger meanwhile is too late.
    let batch = changes.batch();
    batch.put_beside(roll, Tree::Ledger, rolls.at, &Record::default())
}

fn spec_of(view: &View, key: &ObjectKey) -> Option<Digest> {
    let joined = view.joined(key).ok()?;
    Some(joined.intent?.value.spec_digest())
}

fn digest_of(spec: &PodSpec) -> Digest {
    let json = serde_json::to_value(spec).unwrap_or(Value::Null);
    Digest::of_json(&json)
}

/// The revision of a workload's ledger, if it has entries: counts that are not as new may not
/// show what they are about.
pub(crate) fn entered_at(view: &View, key: &ObjectKey) -> Option<Revision> {
    let read = read(view, key);
    read.at.filter(|_| !read.record.entries.is_empty())
}

/// What the pod's agent was told of another pod of the name, which a grant leaves as it is.
pub(crate) fn name_taken(view: &View, key: &ObjectKey, uid: &Uid) -> Option<NameTaken> {
    let (value, _) = view.record(key, Tree::Grant)?;
    let grant: Grant = serde_json::from_slice(&value).ok()?;
    grant.name_taken.filter(|_| grant.uid == *uid)
}

/// A restart that a pod's agent asks for is granted already.
pub(crate) fn is_granted(view: &View, pod: &Object<Pod>, request: &RestartRequest) -> bool {
    let key = pod.key().ok();
    let grant = key.and_then(|key| granted(view, &key, &pod.metadata.uid, &request.id));
    grant.is_some()
}

/// The entry of a restart that was granted and is still asked for.
fn granted(view: &View, key: &ObjectKey, uid: &Uid, request: &str) -> Option<Entry> {
    let (value, _) = view.record(key, Tree::Grant)?;
    let grant: Grant = serde_json::from_slice(&value).ok()?;
    let same = grant.uid == *uid && grant.request == request;
    same.then_some(Entry {
        victim: grant.uid,
        act: Act::Restart {
            request: grant.request,
        },
        by: grant.by,
        at: grant.at,
    })
}
