//! A model of how objects begin and end, under every interleaving that chance finds.
//!
//! One name is created, edited, deleted and created again, while a worker and a second writer
//! start and stop things outside of the store for it, and the reaper removes what has ended.
//! Everybody reads at one time and acts at another, whatever happened between; anybody's commit
//! may be lost or unconfirmed, and anybody may crash and forget what it read. Whatever the order:
//! a thing that runs is always known to the store, and when all is done nothing is left over.

use std::collections::BTreeSet;
use std::sync::Arc;

use platctrl_framework::client::{Batch, Client, DeleteOptions};
use platctrl_framework::environment::Environment;
use platctrl_framework::model::{
    Joined, Metadata, Object, ObjectKey, Phase, Reality, RealityMetadata, Resource, Status, Tree,
    Uid,
};
use platctrl_framework::store::{
    Compare, MemoryStore, Revision, Store, StoreError, Transaction, Write,
};
use proptest::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Map;

/// What begins and ends.
#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "example.dev", version = "v1", kind = "Thing")]
struct ThingSpec {
    size: u32,
}

/// Who acts on what it read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Actor {
    User,
    Worker,
    Writer,
    Reaper,
}

const ACTORS: [Actor; 4] = [Actor::User, Actor::Worker, Actor::Writer, Actor::Reaper];

/// What becomes of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is made, or refused, and the actor learns it.
    Answered,
    /// It is made, or refused, and nobody learns it.
    Unconfirmed,
    /// The actor dies before it.
    Lost,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Create,
    Edit,
    Read(Actor),
    Act(Actor, Fate),
}

fn step() -> impl Strategy<Value = Step> {
    let actor = || prop::sample::select(ACTORS.as_slice());
    let fate = prop_oneof![
        4 => Just(Fate::Answered),
        1 => Just(Fate::Unconfirmed),
        1 => Just(Fate::Lost),
    ];
    prop_oneof![
        1 => Just(Step::Create),
        1 => Just(Step::Edit),
        4 => actor().prop_map(Step::Read),
        5 => (actor(), fate).prop_map(|(actor, fate)| Step::Act(actor, fate)),
    ]
}

struct World {
    store: MemoryStore,
    client: Client,
    key: ObjectKey,
    part: platctrl_framework::store::Key,
    /// What each actor read and has not acted on.
    read: [Option<(Joined, Revision)>; 4],
    /// What runs outside of the store: the worker's things and the writer's.
    running: BTreeSet<Uid>,
    entries: BTreeSet<Uid>,
    history: Vec<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let environment = Environment::seeded(Arc::new(Still), seed);
        let store = MemoryStore::new(environment.clone());
        let key = ObjectKey::namespaced("example.dev", "things", "default", "a").unwrap();
        Self {
            client: Client::new(Arc::new(store.clone()), environment, "user"),
            store,
            part: key.part("writer").unwrap(),
            key,
            read: [None, None, None, None],
            running: BTreeSet::new(),
            entries: BTreeSet::new(),
            history: Vec::new(),
        }
    }

    /// What is stored, read at one moment.
    async fn joined(&self) -> (Joined, Revision) {
        (
            self.client.joined(&self.key).await.unwrap(),
            self.store.revision(),
        )
    }

    async fn commit(&mut self, actor: Actor, batch: Batch, fate: Fate) -> bool {
        self.send(actor, batch.into_transaction(), fate).await
    }

    /// True when the actor learns that it was made.
    async fn send(&mut self, actor: Actor, transaction: Transaction, fate: Fate) -> bool {
        if fate == Fate::Lost || transaction.writes.is_empty() {
            return false;
        }
        let outcome = self.store.commit(transaction).await;
        self.history.push(format!("{actor:?}: {outcome:?}, {fate:?}"));
        match outcome {
            Ok(_) => fate == Fate::Answered,
            Err(StoreError::Conflict { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    }

    async fn create(&mut self) {
        let mut metadata = Metadata::named("a");
        metadata.namespace = Some("default".to_owned());
        let object = Object::<Thing>::new(metadata, ThingSpec { size: 1 });
        let mut batch = Batch::new();
        batch
            .create_typed(self.client.environment(), &object)
            .unwrap();
        self.commit(Actor::User, batch, Fate::Answered).await;
    }

    async fn edit(&mut self) {
        let (joined, _) = self.joined().await;
        let mut batch = Batch::new();
        if let Some(mut object) = joined.object().filter(|_| !tombstoned(&joined)) {
            object.spec = serde_json::json!({"size": self.history.len()});
            let _ = batch.update(&joined, object, None).unwrap();
        }
        self.commit(Actor::User, batch, Fate::Answered).await;
    }

    async fn act(&mut self, actor: Actor, fate: Fate) {
        let Some((joined, seen)) = self.read[actor as usize].take() else {
            return;
        };
        let mut batch = Batch::for_store(&self.store.capabilities());
        match actor {
            Actor::User => {
                if joined.intent.is_some() {
                    let options = DeleteOptions::default();
                    let at = self.client.environment().now();
                    let _ = batch.delete(&joined, &options, "user", at).unwrap();
                }
                self.commit(actor, batch, fate).await;
            }
            Actor::Worker => self.work(joined, fate).await,
            Actor::Writer => self.write(joined, fate).await,
            Actor::Reaper => {
                if !joined.is_finished() {
                    return;
                }
                // As the runtime's reaper does.
                batch.remove(&joined).unwrap();
                batch.require(Compare::RangeNotNewer(self.key.parts(), seen));
                let mut transaction = batch.into_transaction();
                let key = self.key.store_key(Tree::Ledger);
                transaction.writes.push(Write::Delete { key });
                self.send(actor, transaction, fate).await;
            }
        }
    }

    /// The one who does the work: claims before it starts anything, and says when all is undone.
    async fn work(&mut self, joined: Joined, fate: Fate) {
        let Some(intent) = &joined.intent else {
            return;
        };
        let uid = intent.value.metadata.uid.clone();
        let reality = joined.own_reality().map(|reality| &reality.value);
        let mut batch = Batch::new();
        if tombstoned(&joined) {
            self.running.remove(&uid);
            if reality.is_some_and(|reality| reality.status.phase != Phase::GONE) {
                let _ = batch.report_gone(&joined).unwrap();
            }
        } else if reality.is_some_and(|reality| reality.metadata.claim.is_some()) {
            self.running.insert(uid);
            return;
        } else {
            let _ = batch.claim(&joined, "worker").unwrap();
        }
        self.commit(Actor::Worker, batch, fate).await;
    }

    /// Another writer, with a part of its own: it begins one only for an intent that is as it
    /// read it.
    async fn write(&mut self, joined: Joined, fate: Fate) {
        let Some(intent) = &joined.intent else {
            return;
        };
        let uid = intent.value.metadata.uid.clone();
        let mine = joined.parts.get("writer");
        let own = mine.filter(|part| part.value.metadata.uid == uid);
        let phase = if tombstoned(&joined) {
            self.entries.remove(&uid);
            if own.is_none_or(|own| own.value.status.phase == Phase::GONE) {
                return;
            }
            Phase::GONE
        } else if own.is_some() {
            self.entries.insert(uid);
            return;
        } else {
            Phase::new("Running")
        };
        let part = Reality {
            api_version: "example.dev/v1".to_owned(),
            kind: "Thing".to_owned(),
            metadata: RealityMetadata {
                name: "a".to_owned(),
                namespace: Some("default".to_owned()),
                uid,
                claim: None,
                declared: None,
                abreast: false,
                other: Map::new(),
            },
            status: Status {
                phase,
                ..Status::default()
            },
            other: Map::new(),
        };
        let transaction = Transaction::new()
            .require_unchanged(self.key.store_key(Tree::Intent), Some(intent.modified))
            .require_unchanged(self.part.clone(), mine.map(|mine| mine.modified))
            .put(self.part.clone(), serde_json::to_vec(&part).unwrap());
        self.send(Actor::Writer, transaction, fate).await;
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Create => self.create().await,
            Step::Edit => self.edit().await,
            Step::Read(actor) => {
                let read = self.joined().await;
                self.history.push(format!(
                    "{actor:?} reads {}",
                    if read.0.intent.is_none() {
                        "nothing"
                    } else if tombstoned(&read.0) {
                        "a tombstone"
                    } else {
                        "an intent"
                    }
                ));
                self.read[actor as usize] = Some(read);
            }
            Step::Act(actor, fate) => self.act(actor, fate).await,
        }
        self.check().await;
    }

    /// What holds at every moment.
    async fn check(&self) {
        let (joined, _) = self.joined().await;
        let story = || self.history.join("\n");
        for uid in &self.running {
            let known = joined.reality.as_ref().is_some_and(|reality| {
                reality.value.metadata.uid == *uid && reality.value.status.phase != Phase::GONE
            });
            assert!(known, "{uid} runs and the store forgot it\n{}", story());
        }
        for uid in &self.entries {
            let part = joined.parts.get("writer");
            let known = part.is_some_and(|part| {
                part.value.metadata.uid == *uid && part.value.status.phase != Phase::GONE
            });
            assert!(known, "{uid} is listed and the store forgot it\n{}", story());
        }
        if joined.intent.is_none() {
            let left = self.store.dump().len();
            assert_eq!(left, 0, "records of nothing are left\n{}", story());
        }
    }

    /// Everybody acts on what is, until nothing happens any more.
    async fn settle(&mut self) {
        for _ in 0..8 {
            for actor in [Actor::Worker, Actor::Writer, Actor::Reaper] {
                self.step(Step::Read(actor)).await;
                self.step(Step::Act(actor, Fate::Answered)).await;
            }
        }
    }
}

fn tombstoned(joined: &Joined) -> bool {
    let metadata = joined.intent.as_ref().map(|intent| &intent.value.metadata);
    metadata.is_some_and(Metadata::is_deleted)
}

/// A clock that stands still: nothing here waits.
struct Still;

impl platctrl_framework::environment::Clock for Still {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::UNIX_EPOCH
    }
    fn monotonic(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }
    fn sleep(&self, _: std::time::Duration) -> futures::future::BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_steps_loses_what_runs_or_leaves_records_of_nothing(
        seed in any::<u64>(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(seed);
            world.step(Step::Create).await;
            for step in steps {
                world.step(step).await;
            }
            world.settle().await;
            let (joined, _) = world.joined().await;
            if let Some(intent) = joined.intent.as_ref().filter(|_| !tombstoned(&joined)) {
                // Wanted: it runs, once.
                let wanted = BTreeSet::from([intent.value.metadata.uid.clone()]);
                assert_eq!(world.running, wanted);
                assert_eq!(world.entries, wanted);
                world.step(Step::Read(Actor::User)).await;
                world.step(Step::Act(Actor::User, Fate::Answered)).await;
                world.settle().await;
            }
            // Not wanted any more: nothing runs, and nothing is left.
            assert!(world.running.is_empty() && world.entries.is_empty());
            assert!(world.store.dump().is_empty(), "{}", world.history.join("\n"));
        });
    }
}
