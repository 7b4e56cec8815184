//! The kind that is reconciled, and the function that reconciles it on both sides.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use platctrl_bench::{Result, hash, text};
use platctrl_framework::model::{ObjectKey, Resource, Tree};
use platctrl_framework::store::Key;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// Ten fields, with the metadata about 1 KiB of JSON.
#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "bench.dev", version = "v1", kind = "Widget")]
#[serde(rename_all = "camelCase")]
pub(crate) struct WidgetSpec {
    pub(crate) index: usize,
    pub(crate) round: u64,
    /// When it was written, in nanoseconds of the tally's clock; 0 when that is not looked at.
    pub(crate) stamp: u64,
    image: String,
    replicas: u32,
    ports: Vec<u16>,
    paused: bool,
    weight: f64,
    owner: String,
    text: String,
}

fn name(index: usize) -> String {
    format!("widget-{index:06}")
}

pub(crate) fn key(index: usize) -> Result<Key> {
    let key = ObjectKey::namespaced("bench.dev", "widgets", "default", &name(index))?;
    Ok(key.store_key(Tree::Intent))
}

/// The intent record of a widget, as the client would write it.
pub(crate) fn body(index: usize, round: u64, stamp: u64) -> String {
    let name = name(index);
    let filler = text(index as u64 + (round << 32), 400);
    let replicas = index % 7;
    format!(
        r#"{{"apiVersion":"bench.dev/v1","kind":"Widget","metadata":{{"name":"{name}","namespace":"default","uid":"00000000-0000-4000-8000-{index:012x}","generation":{generation},"creationTimestamp":"2026-01-01T00:00:00Z","labels":{{"app":"widget","tier":"backend","team":"team-{replicas}"}}}},"spec":{{"index":{index},"round":{round},"stamp":{stamp},"image":"registry.example.com/team/widget:1.{round}.0","replicas":{replicas},"ports":[8080,8443,9090],"paused":false,"weight":0.25,"owner":"someone@example.com","text":"{filler}"}}}}"#,
        generation = round + 1,
    )
}

/// What all reconciles of a run have seen.
pub(crate) struct Tally {
    clock: Instant,
    /// For each object one more than the newest round seen.
    rounds: Vec<AtomicU64>,
    wanted: AtomicU64,
    left: AtomicUsize,
    pub(crate) complete: Notify,
    reconciles: AtomicU64,
    /// Rounds seen or merged into later ones.
    accounted: AtomicU64,
    checksum: AtomicU64,
    latencies: Mutex<Vec<f64>>,
}

impl Tally {
    pub(crate) fn new(objects: usize) -> Self {
        Self {
            clock: Instant::now(),
            rounds: (0..objects).map(|_| AtomicU64::new(0)).collect(),
            wanted: AtomicU64::new(1),
            left: AtomicUsize::new(objects),
            complete: Notify::new(),
            reconciles: AtomicU64::new(0),
            accounted: AtomicU64::new(0),
            checksum: AtomicU64::new(0),
            latencies: Mutex::default(),
        }
    }

    /// Begins to wait until `objects` of them were seen at `round`.
    pub(crate) fn expect(&self, round: u64, objects: usize) {
        self.left.store(objects, Ordering::SeqCst);
        self.wanted.store(round + 1, Ordering::SeqCst);
    }

    pub(crate) fn now(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }

    pub(crate) fn reconciles(&self) -> u64 {
        self.reconciles.load(Ordering::Relaxed)
    }

    pub(crate) fn accounted(&self) -> u64 {
        self.accounted.load(Ordering::Relaxed)
    }

    /// Of the contents and their rounds; few enough bits for a float to hold.
    pub(crate) fn checksum(&self) -> u64 {
        self.checksum.load(Ordering::Relaxed) & 0xffff_ffff_ffff
    }

    /// In milliseconds.
    pub(crate) fn latencies(&self) -> Vec<f64> {
        let latencies = self
            .latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        latencies.clone()
    }

    /// The reconcile.
    pub(crate) fn saw(&self, spec: &WidgetSpec) {
        self.reconciles.fetch_add(1, Ordering::Relaxed);
        let Some(newest) = self.rounds.get(spec.index) else {
            return;
        };
        let round = spec.round + 1;
        let before = newest.fetch_max(round, Ordering::Relaxed);
        if round <= before {
            return;
        }
        self.accounted.fetch_add(round - before, Ordering::Relaxed);
        if spec.stamp > 0 {
            let latency = Duration::from_nanos(self.now().saturating_sub(spec.stamp));
            let mut latencies = self
                .latencies
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            latencies.push(latency.as_secs_f64() * 1e3);
        }
        let (index, end) = (spec.index.to_le_bytes(), spec.text.len().saturating_sub(16));
        let tail = spec.text.as_bytes().get(end..).unwrap_or_default();
        let seen = hash(&[&index, &round.to_le_bytes(), tail]);
        self.checksum.fetch_add(seen, Ordering::Relaxed);
        if round == self.wanted.load(Ordering::SeqCst)
            && self.left.fetch_sub(1, Ordering::SeqCst) == 1
        {
            self.complete.notify_one();
        }
    }
}
