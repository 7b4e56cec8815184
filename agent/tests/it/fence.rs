//! An agent whose node's record is another's, and that has not heard of it: what it writes is
//! compared with that record, so nothing of it stands and nothing is begun.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use platctrl_agent::AgentError;
use platctrl_framework::failsafe;
use platctrl_framework::model::{ObjectKey, Reality, Tree};
use platctrl_framework::store::{
    Capabilities, Key, Lease, LeaseId, ListRequest, MemoryStore, Page, Prefix, Result, Revision,
    Snapshot, Store, StoreError, Transaction, WatchStream,
};
use platctrl_kinds::PodPhase;
use serde_json::json;
use tokio::sync::watch;

use crate::rig::{SOON, hasty, is_alive, kill};
use crate::store::{NODE, Site, key, node_key};

/// A store that can keep an agent's beats, by which it would notice, and notes what became of
/// each commit.
#[derive(Debug)]
struct Keeping {
    memory: MemoryStore,
    /// Whether beats are kept.
    keeps: watch::Sender<bool>,
    /// Whether one is.
    kept: watch::Sender<bool>,
    commits: Mutex<Vec<(Vec<Key>, bool)>>,
}

impl Keeping {
    fn new(memory: MemoryStore) -> Self {
        Self {
            memory,
            keeps: watch::Sender::new(false),
            kept: watch::Sender::new(false),
            commits: Mutex::default(),
        }
    }

    /// What became of the commits that wrote this record: whether each was refused for what it
    /// compared.
    fn refused(&self, record: &Key) -> Vec<bool> {
        let commits = self.commits.lock().unwrap();
        let of_it = commits.iter().filter(|(keys, _)| keys.contains(record));
        of_it.map(|(_, refused)| *refused).collect()
    }
}

impl Store for Keeping {
    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }

    fn get<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Snapshot>> {
        self.memory.get(keys)
    }

    fn list<'a>(&'a self, request: &'a ListRequest) -> BoxFuture<'a, Result<Page>> {
        self.memory.list(request)
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision>> {
        Box::pin(async move {
            let keys: Vec<_> = transaction
                .writes
                .iter()
                .map(|it| it.key().clone())
                .collect();
            if keys.iter().any(|key| key.as_str().starts_with("x/beat/")) && *self.keeps.borrow() {
                self.kept.send_replace(true);
                let _ = self.keeps.subscribe().wait_for(|keeps| !keeps).await;
            }
            let outcome = self.memory.commit(transaction).await;
            let refused = matches!(outcome, Err(StoreError::Conflict { .. }));
            self.commits.lock().unwrap().push((keys, refused));
            outcome
        })
    }

    fn watch(&self, prefix: Prefix, after: Revision) -> WatchStream {
        self.memory.watch(prefix, after)
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease>> {
        self.memory.grant_lease(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        self.memory.keep_alive(lease)
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        self.memory.revoke_lease(lease)
    }
}

/// An agent with a pod that runs, which is about to lose its node's record without knowing.
struct Loser {
    site: Site,
    memory: MemoryStore,
    store: Arc<Keeping>,
    pid: u32,
}

impl Loser {
    fn new() -> Self {
        let environment = hasty();
        let memory = MemoryStore::new(environment.clone());
        let store = Arc::new(Keeping::new(memory.clone()));
        let site = Site::on(environment, Arc::clone(&store) as Arc<dyn Store>);
        site.create(&site.rig.script("sleeper", "#!/bin/sh\nexec sleep 1000\n"));
        let pid = site.ready().status.detail.pids["web"];
        // While it waits for its beat it looks at nothing of its node.
        store.keeps.send_replace(true);
        site.wait("a beat", || store.kept.borrow().then_some(()));
        Self {
            site,
            memory,
            store,
            pid,
        }
    }

    fn reality(&self, key: &ObjectKey) -> Option<Reality> {
        let record = self.memory.peek(&key.store_key(Tree::Reality))?;
        Some(serde_json::from_slice(&record.value).unwrap())
    }

    /// Another agent takes the node's record, in one transaction with what it writes of pods.
    fn lose(&self, with: Transaction) {
        let mut node = self.reality(&node_key()).unwrap();
        let own = self.site.handle.as_ref().unwrap().instance().to_owned();
        assert_eq!(node.metadata.claim.as_ref(), Some(&own));
        node.metadata.claim = Some("another".into());
        let value = serde_json::to_vec(&node).unwrap();
        let put = with
            .put(node_key().store_key(Tree::Reality), value)
            .put(beat(), "the new owner's");
        self.site.rig.block_on(self.memory.commit(put)).unwrap();
        let now = self.reality(&node_key()).unwrap().metadata.claim;
        assert_eq!(now.as_deref(), Some("another"), "the fault happened");
        assert!(self.site.handle.as_ref().unwrap().waits_for().is_none());
    }

    /// Lets the agent beat, by which it notices.
    fn notices(&mut self) {
        self.store.keeps.send_replace(false);
        let (_, task) = self.site.running.take().unwrap();
        let ended = self
            .site
            .rig
            .block_on(async { tokio::time::timeout(SOON, task).await });
        let ended = ended.expect("it notices").unwrap();
        assert!(
            matches!(ended, Err(AgentError::NameInUse { .. })),
            "{ended:?}"
        );
        assert!(is_alive(self.pid) || self.restarted().is_some());
        // It did not beat for whom it lost the name to.
        let beat = self.memory.peek(&beat()).unwrap();
        assert_eq!(beat.value, "the new owner's");
    }

    /// The process after the first, once the agent knows of it.
    fn restarted(&self) -> Option<u32> {
        let reports = self.site.handle.as_ref().unwrap().reports();
        let pids = reports.iter().filter_map(|it| it.status.pids.get("web"));
        pids.copied().find(|pid| *pid != self.pid && is_alive(*pid))
    }
}

fn beat() -> Key {
    Key::new(format!("x/beat/{NODE}")).unwrap()
}

fn key_of(name: &str) -> ObjectKey {
    ObjectKey::on_node("platctrl.dev", "pods", NODE, "default", name).unwrap()
}

#[test]
fn an_agent_that_lost_its_nodes_record_writes_no_status_over_the_new_owners() {
    let mut loser = Loser::new();
    let record = key().store_key(Tree::Reality);
    let mut theirs = loser.reality(&key()).unwrap();
    let detail = &mut theirs.status.detail;
    detail.insert("pids".into(), json!({"web": 1}));
    detail.insert("message".into(), "the new owner's".into());
    let theirs = serde_json::to_vec(&theirs).unwrap();
    let before = loser.store.refused(&record).len();
    loser.lose(Transaction::new().put(record.clone(), theirs.clone()));
    // It has more to tell than that the record is not as it wrote it.
    kill(loser.pid);
    let site = &loser.site;
    let again = site.wait("another process", || loser.restarted());
    let since = |loser: &Loser| loser.store.refused(&record).split_off(before);
    site.wait("what it would write of it", || {
        (!since(&loser).is_empty()).then_some(())
    });
    loser.notices();
    let outcomes = since(&loser);
    assert!(outcomes.iter().all(|refused| *refused), "{outcomes:?}");
    assert_eq!(loser.memory.peek(&record).unwrap().value, theirs);
    assert!(is_alive(again), "what runs runs on");
}

#[test]
fn an_agent_that_lost_its_nodes_record_begins_nothing() {
    for claimed in [false, true] {
        let mut loser = Loser::new();
        let intent = loser.site.rig.block_on(loser.site.client.joined(&key()));
        let mut intent = intent.unwrap().intent.unwrap().value;
        intent.metadata.name = "later".into();
        intent.metadata.uid = "another".into();
        let value = serde_json::to_vec(&intent).unwrap();
        let later = key_of("later");
        let mut with = Transaction::new().put(later.store_key(Tree::Intent), value);
        let record = later.store_key(Tree::Reality);
        let mut theirs = None;
        if claimed {
            // The new owner has begun it.
            let mut reality = loser.reality(&key()).unwrap();
            reality.metadata.name = "later".into();
            reality.metadata.uid = intent.metadata.uid.clone();
            let value = serde_json::to_vec(&reality).unwrap();
            with = with.put(record.clone(), value.clone());
            theirs = Some(value);
        }
        loser.lose(with);
        let site = &loser.site;
        site.wait("what it would write of it", || {
            (!loser.store.refused(&record).is_empty()).then_some(())
        });
        loser.notices();
        let outcomes = loser.store.refused(&record);
        assert!(outcomes.iter().all(|refused| *refused), "{outcomes:?}");
        let now = loser.memory.peek(&record).map(|it| it.value.to_vec());
        assert_eq!(now, theirs, "claimed by the other: {claimed}");
        let here = loser.site.rig.layout().pods().unwrap();
        assert!(here.iter().all(|pod| pod.name() != "later"), "{here:?}");
    }
}

#[test]
fn what_was_given_up_stays_gone_while_everything_is_frozen() {
    let mut site = Site::new();
    site.create(&site.rig.script("sleeper", "#!/bin/sh\nexec sleep 1000\n"));
    let pid = site.ready().status.detail.pids["web"];
    let other = site.rig.script("other", "#!/bin/sh\nexec sleep 1000\n");
    site.create_named_as("other", &other);
    let first = site.wait("the other pod", || site.pods_ready("other"));
    let first = first.status.detail.pids["web"];
    site.stop();
    // Its node is given up while it is not heard of, and then everything is frozen.
    let record = key().store_key(Tree::Reality);
    let joined = site.rig.block_on(site.client.joined(&key())).unwrap();
    let mut gone = joined.reality.unwrap().value;
    gone.status.phase = PodPhase::Gone.into();
    gone.status
        .detail
        .insert("reason".into(), "NodeRetired".into());
    let gone = serde_json::to_vec(&gone).unwrap();
    let put = Transaction::new().put(record.clone(), gone.clone());
    site.rig.block_on(site.store.commit(put)).unwrap();
    let environment = site.rig.environment.clone();
    let freeze = failsafe::freeze(&*site.store, &environment, "test", None);
    assert!(
        site.rig.block_on(freeze).unwrap().frozen,
        "the fault happened"
    );
    site.start();
    let restarted = |name: &str, pid: u32| {
        let reports = site.handle.as_ref().unwrap().reports();
        let it = reports.into_iter().find(|it| it.name.name() == name)?;
        let now = it.status.pids.get("web").copied();
        now.filter(|now| *now != pid && it.is_ready())
    };
    // It has something to say of it, and says it of the other one after that.
    kill(pid);
    let again = site.wait("its return", || restarted("hello", pid));
    kill(first);
    site.wait("a report", || {
        let pod = site.pods_ready("other")?;
        (pod.status.detail.pids["web"] != first).then_some(())
    });
    let now = site.rig.block_on(site.store.get(&[record])).unwrap();
    let now = now.records[0].as_ref().unwrap();
    assert_eq!(now.value, gone);
    assert!(is_alive(again), "and nothing is ended");
}
