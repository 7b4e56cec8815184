//! Many controllers that want the same places: real tasks on a store, each with its own, stale
//! view.

use std::collections::BTreeMap;
use std::sync::Arc;

use platctrl_controllers::placement::{
    Amounts, Fleet, FleetNode, Guard, Placement, PodNeeds, Request, Room, Spread,
};
use platctrl_framework::environment::Environment;
use platctrl_framework::model::{Resource, Tree};
use platctrl_framework::store::{
    Key, ListRequest, MemoryStore, Prefix, Revision, Store, StoreError, Transaction,
};
use platctrl_kinds::Pod;
use tokio::sync::Barrier;

const CONTROLLERS: usize = 50;

fn rounds() -> usize {
    match std::env::var("PLATCTRL_TEST_SCALE").as_deref() {
        Ok("full") => 10_000,
        _ => 200,
    }
}

fn prefix() -> Prefix {
    Pod::group_plural().prefix(Tree::Intent)
}

/// The fleet as the store has it now: each value is the processor time that a pod asks.
async fn read(store: &dyn Store, nodes: &[(String, u64)]) -> (Fleet, Revision) {
    let all = ListRequest {
        limit: 10_000,
        ..ListRequest::new(prefix())
    };
    let list = store.list(&all).await.unwrap();
    let mut pods: BTreeMap<String, Vec<Arc<PodNeeds>>> = BTreeMap::new();
    for record in list.records {
        let rest = record.key.as_str().strip_prefix(prefix().as_str()).unwrap();
        let node = rest.split('/').next().unwrap().to_owned();
        let cpu = std::str::from_utf8(&record.value).unwrap().parse().unwrap();
        let amounts = Amounts {
            cpu,
            memory: 0,
            pods: 1,
        };
        let needs = PodNeeds {
            amounts,
            ..PodNeeds::default()
        };
        pods.entry(node).or_default().push(Arc::new(needs));
    }
    let fleet = Fleet::new(nodes.iter().map(|(name, cpu)| FleetNode {
        room: Room {
            cpu: Some(*cpu),
            ..Room::default()
        },
        pods: pods.remove(name).unwrap_or_default(),
        ..FleetNode::named(name)
    }));
    (fleet, list.revision)
}

/// What came of one controller's wish for a place.
#[derive(Default)]
struct Came {
    placed: usize,
    commits: usize,
    conflicts: usize,
}

/// Wants one pod of 2 of a node's processors, until it has it or there is no place.
async fn place(
    store: Arc<dyn Store>,
    nodes: Arc<Vec<(String, u64)>>,
    controller: usize,
    together: Arc<Barrier>,
) -> Came {
    let mut request = Request::new(format!("default/rc-{controller}"), "*".parse().unwrap());
    request.needs.amounts = Amounts {
        cpu: 2,
        memory: 0,
        pods: 1,
    };
    let mut came = Came::default();
    let mut first = true;
    loop {
        let (fleet, revision) = read(&*store, &nodes).await;
        if std::mem::take(&mut first) {
            // All decide on the same state.
            together.wait().await;
        }
        let Some(node) = Spread.place(&fleet, &request, 1).pop() else {
            return came;
        };
        let guard = Guard::new(revision, &store.capabilities());
        let name = format!("{}{node}/default/p-{controller}", prefix().as_str());
        let key = Key::new(name).unwrap();
        let transaction = Transaction::new()
            .require(guard.compare(&node).expect("the store compares ranges"))
            .put(key, "2");
        came.commits += 1;
        match store.commit(transaction).await {
            Ok(_) => {
                came.placed += 1;
                return came;
            }
            Err(StoreError::Conflict { .. }) => came.conflicts += 1,
            Err(error) => panic!("{error}"),
        }
    }
}

/// One round on a store of its own: returns what came of it, and the most that a node has to
/// little.
async fn round(nodes: Vec<(String, u64)>) -> (Came, u64) {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Environment::system()));
    let nodes = Arc::new(nodes);
    let together = Arc::new(Barrier::new(CONTROLLERS));
    let tasks: Vec<_> = (0..CONTROLLERS)
        .map(|it| tokio::spawn(place(store.clone(), nodes.clone(), it, together.clone())))
        .collect();
    let mut all = Came::default();
    for task in tasks {
        let came = task.await.unwrap();
        all.placed += came.placed;
        all.commits += came.commits;
        all.conflicts += came.conflicts;
    }
    let (fleet, _) = read(&*store, &nodes).await;
    let over = fleet.nodes().iter().map(|node| {
        let used = node.used().cpu;
        used.saturating_sub(node.room.cpu.unwrap())
    });
    (all, over.max().unwrap_or(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_controllers_that_race_for_the_last_places_never_overcommit_a_node() {
    let mut conflicts = 0;
    for _ in 0..rounds() {
        // Room for three pods of fifty: one node has one and a half.
        let nodes = [("n1", 2), ("n2", 3), ("n3", 2)];
        let nodes = nodes.map(|(name, cpu)| (name.to_owned(), cpu)).to_vec();
        let (came, over) = round(nodes).await;
        assert_eq!(over, 0, "a node has more than it holds");
        assert_eq!(came.placed, 3, "every place is taken");
        conflicts += came.conflicts;
    }
    println!("{} rounds, {conflicts} conflicts", rounds());
    assert!(conflicts > 0, "nobody was ever in the other's way");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_controllers_that_decide_on_one_stale_view_rarely_want_the_same_node() {
    let (mut commits, mut conflicts) = (0, 0);
    for _ in 0..10 {
        let nodes = (0..1000).map(|i| (format!("n{i}"), 2 + i % 7)).collect();
        let (came, over) = round(nodes).await;
        assert_eq!((over, came.placed), (0, CONTROLLERS));
        commits += came.commits;
        conflicts += came.conflicts;
    }
    println!("{conflicts} of {commits} commits met a conflict");
    assert!(conflicts * 10 < commits, "{conflicts} of {commits}");
}
