//! Recording events: what happened to an object and why.
//!
//! Each writer has a ring of 256 records. Recording never waits and never fails: it hands the
//! event to a task that adds up what repeats itself and writes in the background. When more
//! comes than can be written, some is lost.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::environment::Environment;
use crate::model::{Event, EventType, InvalidName, ObjectReference, check_name};
use crate::store::{Key, ListRequest, Prefix, Store, StoreError, Transaction};

/// The records of one ring.
const SLOTS: u64 = 256;
/// An event that repeats itself within this time is counted, not written anew.
const WINDOW: Duration = Duration::from_secs(600);
/// Events that may wait to be written.
const BACKLOG: usize = 512;
/// Time in which events are collected into one transaction.
const COLLECT: Duration = Duration::from_millis(50);
/// Attempts on a store that is away before the waiting events are dropped.
const ATTEMPTS: u32 = 5;
const MAX_MESSAGE_CHARS: usize = 1024;
/// Events on one object for one reason that may differ in their message within the window;
/// further ones are added up with the newest of them, so that nobody floods the ring.
const ALIKE: usize = 8;

enum Order {
    Record(Box<Event>),
    Flush(oneshot::Sender<()>),
    Reload,
}

/// Records events of one writer. Cheap to clone.
#[derive(Clone)]
pub struct EventRecorder {
    orders: mpsc::Sender<Order>,
    lost: Arc<AtomicU64>,
    environment: Environment,
    source: Arc<str>,
}

impl EventRecorder {
    /// A recorder into the ring `x/event/<writer>/`, whose events say that they come from
    /// `source`, as `agent/web1`. Must be called on a tokio runtime; the task that writes ends
    /// with the last clone.
    ///
    /// # Errors
    /// `writer` cannot be part of a key.
    pub fn new(
        store: Arc<dyn Store>,
        writer: &str,
        source: &str,
        environment: Environment,
    ) -> Result<Self, InvalidName> {
        check_name("event writer", writer)?;
        let ring =
            Prefix::new(format!("x/event/{writer}/")).expect("a checked name makes a valid prefix");
        let (orders, inbox) = mpsc::channel(BACKLOG);
        let lost = Arc::new(AtomicU64::new(0));
        let ring = Ring {
            lost: lost.clone(),
            store,
            prefix: ring,
            environment: environment.clone(),
            next: None,
            recent: VecDeque::new(),
            pending: BTreeMap::new(),
        };
        tokio::spawn(ring.run(inbox));
        Ok(Self {
            orders,
            lost,
            environment,
            source: source.into(),
        })
    }

    /// The same ring, with events that come from another source.
    #[must_use]
    pub fn with_source(&self, source: &str) -> Self {
        Self {
            source: source.into(),
            ..self.clone()
        }
    }

    /// Records that something happened to an object.
    pub fn record(
        &self,
        object: ObjectReference,
        event_type: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let now = self.environment.now();
        let mut message = message.into();
        if let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE_CHARS) {
            message.truncate(end);
        }
        let event = Event {
            involved_object: object,
            event_type,
            reason: reason.to_owned(),
            message,
            source: self.source.to_string(),
            first_timestamp: now,
            last_timestamp: now,
            count: 1,
            sequence: 0,
        };
        if self
            .orders
            .try_send(Order::Record(Box::new(event)))
            .is_err()
        {
            self.lost.fetch_add(1, Ordering::Relaxed);
            tracing::debug!("an event was lost: more happens than can be written");
        }
    }

    /// How many events could not be written.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Waits until everything recorded so far was written, or given up on.
    pub async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.orders.send(Order::Flush(done)).await.is_ok() {
            let _ = flushed.await;
        }
    }

    /// Says that another process may have written this ring.
    pub(crate) fn reload(&self) {
        let _ = self.orders.try_send(Order::Reload);
    }
}

impl fmt::Debug for EventRecorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventRecorder")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

struct Ring {
    /// Events that could not be written.
    lost: Arc<AtomicU64>,
    store: Arc<dyn Store>,
    prefix: Prefix,
    environment: Environment,
    /// The next event's sequence; None before the ring was read.
    next: Option<u64>,
    /// What was written lately and can be counted up, newest last.
    recent: VecDeque<(Duration, Event)>,
    /// What has to be written, by slot.
    pending: BTreeMap<u64, Event>,
}

impl Ring {
    async fn run(mut self, mut inbox: mpsc::Receiver<Order>) {
        while let Some(order) = inbox.recv().await {
            let mut flushes = Vec::new();
            let mut orders = vec![order];
            if !matches!(orders[0], Order::Flush(_)) {
                self.environment.sleep(COLLECT).await;
            }
            while let Ok(order) = inbox.try_recv() {
                orders.push(order);
            }
            for order in orders {
                match order {
                    Order::Reload => self.next = None,
                    Order::Flush(done) => flushes.push(done),
                    Order::Record(event) => {
                        if self.next.is_none() {
                            self.read().await;
                        }
                        self.add(*event);
                    }
                }
            }
            self.write().await;
            for done in flushes {
                let _ = done.send(());
            }
        }
        self.write().await;
    }

    /// Finds where the ring ends.
    async fn read(&mut self) {
        let request = ListRequest::new(self.prefix.clone());
        let mut last = None;
        match self.store.list(&request).await {
            Ok(page) => {
                for record in page.records {
                    let event: Option<Event> = serde_json::from_slice(&record.value).ok();
                    last = last.max(event.map(|event| event.sequence));
                }
            }
            Err(error) => {
                // Losing the order of a ring loses nothing that anybody decides by.
                tracing::debug!(prefix = %self.prefix, %error, "cannot read the ring of events");
            }
        }
        self.next = Some(last.map_or(0, |last| last + 1));
        self.recent.clear();
    }

    fn add(&mut self, event: Event) {
        let now = self.environment.monotonic();
        while self
            .recent
            .front()
            .is_some_and(|(at, _)| now.saturating_sub(*at) > WINDOW)
            || self.recent.len() >= SLOTS as usize
        {
            self.recent.pop_front();
        }
        let alike = |old: &Event| {
            old.involved_object == event.involved_object
                && old.event_type == event.event_type
                && old.reason == event.reason
                && old.source == event.source
        };
        let like: Vec<usize> = (0..self.recent.len())
            .filter(|&place| alike(&self.recent[place].1))
            .collect();
        let same = |place: &&usize| self.recent[**place].1.message == event.message;
        let flooded = like.last().filter(|_| like.len() >= ALIKE);
        if let Some(&place) = like.iter().find(same).or(flooded) {
            let (_, old) = &mut self.recent[place];
            old.count = old.count.saturating_add(1);
            old.last_timestamp = event.last_timestamp;
            old.message = event.message;
            self.pending.insert(old.sequence % SLOTS, old.clone());
            return;
        }
        let sequence = self.next.unwrap_or(0);
        self.next = Some(sequence + 1);
        let event = Event { sequence, ..event };
        self.pending.insert(sequence % SLOTS, event.clone());
        self.recent.push_back((now, event));
    }

    async fn write(&mut self) {
        let most = self.store.capabilities().limits.max_writes.clamp(1, 32);
        let mut attempt = 0;
        while !self.pending.is_empty() {
            let batch: Vec<u64> = self.pending.keys().copied().take(most).collect();
            let mut transaction = Transaction::new();
            for slot in &batch {
                let event = &self.pending[slot];
                if let (Some(key), Ok(value)) = (self.slot(*slot), serde_json::to_vec(event)) {
                    transaction = transaction.put(key, value);
                }
            }
            let Err(error) = self.store.commit(transaction).await else {
                self.pending.retain(|slot, _| !batch.contains(slot));
                continue;
            };
            attempt += 1;
            let useless = !matches!(
                error,
                StoreError::Unavailable { .. } | StoreError::Unknown { .. }
            );
            if useless || attempt >= ATTEMPTS {
                let lost = self.pending.len();
                self.lost.fetch_add(lost as u64, Ordering::Relaxed);
                tracing::debug!(lost, %error, "events were lost: they cannot be written");
                self.pending.clear();
                return;
            }
            self.environment
                .sleep(Duration::from_millis(200) * attempt)
                .await;
        }
    }

    fn slot(&self, slot: u64) -> Option<Key> {
        self.prefix.key(format!("{slot:03}")).ok()
    }
}
