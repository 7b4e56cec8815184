//! The node's own record: who works under its name, what the machine is, and that it lives.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use platctrl_framework::client::{Batch, Client, ClientError};
use platctrl_framework::model::identity::ChainLink;
use platctrl_framework::model::{
    Condition, ConditionStatus, Joined, ObjectKey, Phase, Reality, Resource as _, Status, Tree,
    identity,
};
use platctrl_framework::store::{
    Compare, Key, Prefix, Revision, Store, StoreError, Transaction, WatchEvent, WatchStream,
};
use platctrl_kinds::{Node, NodeSpec, NodeStatus};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{Mutex as AsyncMutex, watch};

use super::machine::{self, Judgement, Reading};
use super::memory::{Memory, random};
use super::pods::Pods;
use crate::host::Host;
use crate::situation::Granter;

/// Time between beats.
const BEAT: Duration = Duration::from_secs(10);
/// After so many beats everything is read again, as watches have faults too.
const BEATS_A_LOOK: u32 = 6;
/// Time between attempts while the store or the node's record is not there.
const RETRY: Duration = Duration::from_secs(1);
/// Another machine that does not beat for so long has given up the name.
const SILENCE: Duration = Duration::from_secs(25);
/// A store that was not heard of for so long is away: nobody grants anything.
const AWAY: Duration = Duration::from_secs(30);
/// How often it is looked whether all pods of an older incarnation are gone.
const RETIRING: Duration = Duration::from_millis(200);

/// Why the node's name cannot be kept.
#[derive(Debug)]
pub(super) enum NodeError {
    /// Another agent works under it.
    NameInUse {
        /// What is known of it.
        other: String,
    },
}

/// What every report of this agent compares: that the node's record is still this agent's.
#[derive(Clone, Debug, Default)]
pub(super) struct Fence {
    own: Arc<Mutex<Option<(Key, Revision)>>>,
}

impl Fence {
    /// The compare; None while the record is not this agent's.
    pub(super) fn compare(&self) -> Option<Compare> {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        own.clone()
            .map(|(key, revision)| Compare::Revision(key, revision))
    }

    fn set(&self, own: Option<(Key, Revision)>) {
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = own;
    }
}

/// A sign of life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Beat {
    /// Which machine.
    machine: String,
    /// Which run of its agent.
    instance: String,
    /// Counts beats.
    count: u64,
    /// When, by that machine's clock.
    at: jiff::Timestamp,
}

/// Keeps the node's record.
#[derive(Debug)]
pub(super) struct Keeper {
    host: Arc<Host>,
    client: Client,
    pods: Arc<Pods>,
    memory: AsyncMutex<Memory>,
    fence: Fence,
    instance: String,
    beats: std::sync::atomic::AtomicU64,
    waits: watch::Sender<Option<String>>,
    machine: Mutex<Judgement>,
    /// The newest link of the chain at the last look, and when that was.
    seen_link: Mutex<Option<(u64, Duration)>>,
}

/// Why an attempt came to nothing.
#[derive(Debug, thiserror::Error)]
enum Attempt {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
    #[error(transparent)]
    File(#[from] crate::files::FileError),
    #[error(
        "this node belongs to the store {known}, and {found} answers: no order is taken from it; use the right store, or a new data directory"
    )]
    OtherStore { known: String, found: String },
    #[error("the node is not admitted: `platctrl node admit` makes its record")]
    NotAdmitted,
    #[error("the node's record cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("another agent has the name")]
    Lost(Option<Beat>),
}

impl From<StoreError> for Attempt {
    fn from(error: StoreError) -> Self {
        Self::Client(error.into())
    }
}

impl Keeper {
    pub(super) fn new(
        host: Arc<Host>,
        store: Arc<dyn Store>,
        memory: Memory,
        pods: Arc<Pods>,
    ) -> Self {
        let environment = host.environment.clone();
        let instance = random(&environment);
        pods.set_retired(memory.known().retired.clone());
        let client = Client::new(store, environment, format!("agent/{}", host.node));
        Self {
            host,
            client,
            pods,
            memory: AsyncMutex::new(memory),
            fence: Fence::default(),
            instance,
            beats: std::sync::atomic::AtomicU64::new(0),
            waits: watch::Sender::new(None),
            machine: Mutex::default(),
            seen_link: Mutex::default(),
        }
    }

    /// Why no orders are taken, while they are not.
    pub(super) fn waits(&self) -> watch::Receiver<Option<String>> {
        self.waits.subscribe()
    }

    /// This run of the agent.
    pub(super) fn instance(&self) -> &str {
        &self.instance
    }

    pub(super) fn fence(&self) -> Fence {
        self.fence.clone()
    }

    fn key(&self) -> Result<ObjectKey, Attempt> {
        let key = ObjectKey::cluster(Node::GROUP, Node::PLURAL, &self.host.node);
        Ok(key.map_err(ClientError::from)?)
    }

    fn beat_key(&self) -> Result<Key, Attempt> {
        let key = Key::new(format!("x/beat/{}", self.host.node));
        key.map_err(|error| {
            StoreError::Invalid {
                reason: error.to_string(),
            }
            .into()
        })
    }

    /// Waits until the store is there, is the one that this node belongs to, and the node's name
    /// is this agent's.
    pub(super) async fn begin(&self) -> Result<(), NodeError> {
        loop {
            match self.try_begin().await {
                Ok(()) => {
                    self.waits.send_replace(None);
                    self.host.circumstances.granter(Granter::Store);
                    return Ok(());
                }
                Err(Attempt::Lost(other)) => return Err(in_use(other)),
                Err(error) => {
                    // The same trouble is told once.
                    let text = Some(error.to_string());
                    if *self.waits.borrow() != text {
                        tracing::warn!(node = self.host.node, %error, "no orders yet; pods keep running");
                        self.waits.send_replace(text);
                    }
                    self.host.environment.sleep(RETRY).await;
                }
            }
        }
    }

    async fn try_begin(&self) -> Result<(), Attempt> {
        let (anchor, _) = identity::open(&**self.client.store()).await?;
        let mut memory = self.memory.lock().await;
        let known = memory.known().store_id.clone();
        if known.is_empty() {
            memory.change(|known| known.store_id.clone_from(&anchor.store_id))?;
        } else if known != anchor.store_id {
            return Err(Attempt::OtherStore {
                known,
                found: anchor.store_id,
            });
        }
        self.take_name(&memory.known().machine).await?;
        drop(memory);
        self.refresh(true).await?;
        Ok(())
    }

    /// The name is this machine's when its last beat was this machine's, or nobody's for a while.
    async fn take_name(&self, machine: &str) -> Result<(), Attempt> {
        let first = self.last_beat().await?;
        let Some(first) = first.filter(|beat| beat.machine != machine) else {
            return Ok(());
        };
        self.host.environment.sleep(SILENCE).await;
        match self.last_beat().await? {
            Some(now) if now != first && now.machine != machine => Err(Attempt::Lost(Some(now))),
            _ => Ok(()),
        }
    }

    async fn last_beat(&self) -> Result<Option<Beat>, Attempt> {
        let snapshot = self.client.store().get(&[self.beat_key()?]).await?;
        let record = snapshot.records.into_iter().flatten().next();
        // One that cannot be read is nobody's.
        Ok(record.and_then(|record| serde_json::from_slice(&record.value).ok()))
    }

    /// Beats, and keeps the node's record right, until the name is lost. Another agent that takes
    /// the record shows in the next beat, which compares it; an order in its intent is heard by a
    /// watch. Everything is read again now and then all the same.
    pub(super) async fn run(&self) -> NodeError {
        let environment = &self.host.environment;
        let mut heard = environment.monotonic();
        loop {
            let wait = match self.round().await {
                Ok(()) => {
                    heard = environment.monotonic();
                    self.host.circumstances.granter(Granter::Store);
                    Duration::ZERO
                }
                Err(Attempt::Lost(other)) => {
                    self.fence.set(None);
                    tracing::error!(
                        node = self.host.node,
                        "another agent works under this node's name"
                    );
                    return in_use(other);
                }
                Err(error) => {
                    tracing::debug!(node = self.host.node, %error, "cannot keep the node's record");
                    if environment.monotonic().saturating_sub(heard) >= AWAY {
                        self.host.circumstances.granter(Granter::Away);
                    }
                    RETRY
                }
            };
            environment.sleep(wait).await;
        }
    }

    /// Reads and reports everything, then beats until there is a reason to do so again.
    async fn round(&self) -> Result<(), Attempt> {
        let read_at = self.refresh(false).await?;
        let intent = self.key()?.store_key(Tree::Intent);
        let mut changes = Some(self.client.store().watch(Prefix::only(&intent), read_at));
        for _ in 0..BEATS_A_LOOK {
            tokio::select! {
                () = self.host.environment.sleep(BEAT) => {
                    if self.fares_otherwise().await {
                        return Ok(());
                    }
                    match self.beat().await {
                        // Somebody wrote the node's own record: whoever it was is seen next.
                        Err(Attempt::Client(ClientError::Store(StoreError::Conflict { .. }))) => {
                            return Ok(());
                        }
                        beat => beat?,
                    }
                    self.host.circumstances.granter(Granter::Store);
                }
                changed = changed(&mut changes) => if changed { return Ok(()) },
            }
        }
        Ok(())
    }

    /// Looks how the machine fares. Whether that is to be reported.
    async fn fares_otherwise(&self) -> bool {
        let (path, environment) = (
            self.host.layout.data_dir().to_owned(),
            &self.host.environment,
        );
        let (wall, counter) = (environment.now(), environment.monotonic());
        let taken = tokio::task::spawn_blocking(move || Reading::take(&path, wall, counter)).await;
        let (news, full) = {
            let mut machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
            let before = machine.conditions();
            if let Ok(reading) = taken {
                machine.judge(&reading);
            }
            (machine.conditions() != before, machine.full())
        };
        if self.host.circumstances.full(full) {
            // Those that had to wait, perhaps.
            self.pods.wake_all();
        }
        news
    }

    /// The number of the newest link of the chain, and when it was made.
    async fn newest_link(&self) -> Result<Option<(u64, Timestamp)>, Attempt> {
        let store = self.client.store();
        let read = async |key: Key| {
            let snapshot = store.get(&[key]).await?;
            let record = snapshot.records.into_iter().flatten().next();
            Ok::<_, StoreError>(record.map(|record| record.value))
        };
        let head = Key::new("x/chain/head").expect("a constant that is a valid key");
        let head = read(head).await?;
        let head = head.and_then(|head| serde_json::from_slice::<Value>(&head).ok());
        let Some(number) = head.as_ref().and_then(|head| head["number"].as_u64()) else {
            return Ok(None);
        };
        let link = read(identity::chain_key(number)).await?;
        let link = link.and_then(|link| serde_json::from_slice::<ChainLink>(&link).ok());
        Ok(link.map(|link| (number, link.at)))
    }

    /// Compares the clock with that of whoever made the newest link of the chain, when that was
    /// made since the last look.
    async fn compare_clock(&self) -> Result<(), Attempt> {
        let environment = &self.host.environment;
        let asked = environment.monotonic();
        let Some((number, at)) = self.newest_link().await? else {
            return Ok(());
        };
        let mut seen = self
            .seen_link
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = seen.replace((number, asked));
        if let Some((known, then)) = before
            && known != number
        {
            let ago = environment.monotonic().saturating_sub(then);
            let mut machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
            machine.compare_clock(at, ago, environment.now());
        }
        Ok(())
    }

    /// One round. The first takes the node's record over; later ones find it this agent's, or the
    /// name is lost.
    async fn refresh(&self, first: bool) -> Result<Revision, Attempt> {
        self.compare_clock().await?;
        self.fares_otherwise().await;
        let key = self.key()?;
        // Not that of the record, which may be older than all that the store remembers: a watch
        // from there would end at once.
        let record = [key.store_key(Tree::Intent)];
        let read_at = self.client.store().get(&record).await?.revision;
        let joined = self.client.joined(&key).await?;
        let intent = joined.intent.as_ref().ok_or(Attempt::NotAdmitted)?;
        let spec: NodeSpec = serde_json::from_value(intent.value.spec.clone())?;
        let claim = joined
            .reality
            .as_ref()
            .and_then(|it| it.value.metadata.claim.clone());
        let foreign = claim.is_some_and(|claim| claim != self.instance);
        if foreign && !first {
            return Err(Attempt::Lost(self.last_beat().await?));
        }
        self.host.advance.want(&spec.prefetch);
        self.follow_incarnation(spec.incarnation).await?;
        self.report(&joined, spec.incarnation).await?;
        self.beat().await?;
        Ok(read_at)
    }

    /// A newer incarnation is the order to end what was started under the older one.
    async fn follow_incarnation(&self, wanted: u64) -> Result<(), Attempt> {
        let mut memory = self.memory.lock().await;
        if wanted <= memory.known().incarnation {
            return Ok(());
        }
        // What is ended now is remembered first: a crash may come before it is told.
        memory.note_retired(wanted, self.pods.stop_taking_orders())?;
        self.pods.set_retired(memory.known().retired.clone());
        self.pods.retire();
        while !self.pods.has_retired() {
            self.host.environment.sleep(RETIRING).await;
        }
        Ok(memory.change(|known| known.incarnation = wanted)?)
    }

    async fn report(&self, joined: &Joined, incarnation: u64) -> Result<(), Attempt> {
        let stored = joined.own_reality().map(|reality| reality.value.clone());
        let mut conditions = stored
            .as_ref()
            .map(|it| it.status.conditions.clone())
            .unwrap_or_default();
        let generation = joined
            .intent
            .as_ref()
            .map_or(0, |it| it.value.metadata.generation);
        let ready = Condition::new(
            "Ready",
            ConditionStatus::True,
            "AgentRuns",
            "the node's agent runs",
        );
        let now = self.host.environment.now();
        conditions.set(ready, generation, now);
        let machine = self
            .machine
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for condition in machine.conditions() {
            conditions.set(condition, generation, now);
        }
        let status = Status::<NodeStatus> {
            phase: Phase::default(),
            observed_generation: Some(generation),
            observed_spec: joined.intent.as_ref().map(|it| it.value.spec_digest()),
            conditions,
            detail: NodeStatus {
                attributes: machine::facts(),
                agent_version: env!("CARGO_PKG_VERSION").to_owned(),
                incarnation,
                pods: self.pods.count(),
                prefetched: self.host.advance.state(),
                lost_after_beat: None,
            },
        };
        let mut batch = Batch::new();
        batch.report_typed::<Node>(joined, &status)?;
        let mut transaction = batch.into_transaction();
        let key = joined.key.store_key(Tree::Reality);
        let mine = stored
            .as_ref()
            .is_some_and(|it| it.metadata.claim.as_deref() == Some(&self.instance));
        if transaction.writes.is_empty() && mine {
            if let Some(reality) = &joined.reality {
                self.fence.set(Some((key, reality.modified)));
            }
            return Ok(());
        }
        if transaction.writes.is_empty() {
            // Nothing but the claim changes.
            if let (Some(reality), Some(stored)) = (&joined.reality, &stored) {
                let value = serde_json::to_vec(stored)?;
                transaction = Transaction::new()
                    .require_unchanged(key.clone(), Some(reality.modified))
                    .put(key.clone(), value);
            }
        }
        for write in &mut transaction.writes {
            if let platctrl_framework::store::Write::Put { value, .. } = write {
                let mut reality: Reality = serde_json::from_slice(value)?;
                reality.metadata.claim = Some(self.instance.clone());
                *value = serde_json::to_vec(&reality)?.into();
            }
        }
        let revision = self.client.store().commit(transaction).await?;
        self.fence.set(Some((key, revision)));
        Ok(())
    }

    async fn beat(&self) -> Result<(), Attempt> {
        let count = self
            .beats
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let beat = Beat {
            machine: self.memory.lock().await.known().machine.clone(),
            instance: self.instance.clone(),
            count,
            at: self.host.environment.now(),
        };
        let mut transaction = Transaction::new().put(self.beat_key()?, serde_json::to_vec(&beat)?);
        // Who lost the node's record has no business to beat for it.
        transaction.compares.extend(self.fence.compare());
        self.client.store().commit(transaction).await?;
        Ok(())
    }
}

/// Whether the watched record changed. One that can be watched no more is looked at by and by.
async fn changed(changes: &mut Option<WatchStream>) -> bool {
    let Some(stream) = changes else {
        return std::future::pending().await;
    };
    match stream.next().await {
        Some(Ok(WatchEvent::Changes { .. })) => true,
        Some(Ok(WatchEvent::Progress(_))) => false,
        Some(Ok(_) | Err(_)) | None => {
            *changes = None;
            false
        }
    }
}

fn in_use(other: Option<Beat>) -> NodeError {
    let other = match other {
        Some(beat) => format!(
            "machine {}, instance {}, last heard of at {}",
            beat.machine, beat.instance, beat.at
        ),
        None => "it has not beaten yet".to_owned(),
    };
    NodeError::NameInUse { other }
}
