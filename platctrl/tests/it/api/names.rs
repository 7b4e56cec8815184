//! Names of pods, which are on a node each.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use platctrl_framework::store::{
    Capabilities, Lease, LeaseId, ListRequest, MemoryStore, Page, Prefix, Revision, Snapshot,
    Store, StoreError, Transaction, WatchStream,
};
use serde_json::{Value, json};
use tokio::sync::Barrier;

use super::{Api, Environment, PODS, identity};

type Answer<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Creations that come at once.
const MANY: usize = 12;

/// A store in which the first commits on pods wait for one another: whoever makes them has looked
/// before any of them is done.
#[derive(Debug)]
struct Gathering {
    store: MemoryStore,
    came: AtomicUsize,
    all: Barrier,
}

impl Store for Gathering {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    fn get<'a>(&'a self, keys: &'a [platctrl_framework::store::Key]) -> Answer<'a, Snapshot> {
        self.store.get(keys)
    }

    fn list<'a>(&'a self, request: &'a ListRequest) -> Answer<'a, Page> {
        self.store.list(request)
    }

    fn commit(&self, transaction: Transaction) -> Answer<'_, Revision> {
        let pods = "o/intent/platctrl.dev/pods/";
        let of_pods =
            |write: &platctrl_framework::store::Write| write.key().as_str().starts_with(pods);
        let waits = transaction.writes.iter().any(of_pods)
            && self.came.fetch_add(1, Ordering::SeqCst) < MANY;
        Box::pin(async move {
            if waits {
                self.all.wait().await;
            }
            self.store.commit(transaction).await
        })
    }

    fn watch(&self, prefix: Prefix, after: Revision) -> WatchStream {
        self.store.watch(prefix, after)
    }

    fn grant_lease(&self, ttl: Duration) -> Answer<'_, Lease> {
        self.store.grant_lease(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> Answer<'_, ()> {
        self.store.keep_alive(lease)
    }

    fn revoke_lease(&self, lease: LeaseId) -> Answer<'_, ()> {
        self.store.revoke_lease(lease)
    }
}

fn pod(name: &str, node: &str) -> Value {
    let digest = format!("sha256:{}", "0".repeat(64));
    json!({
        "apiVersion": "platctrl.dev/v1", "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "nodeName": node,
            "launchables": {"web": {
                "type": "hoist", "location": "https://artifacts.example/a.tar.gz", "digest": digest,
            }},
        },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_pods_that_are_given_one_name_at_once_on_many_nodes_there_is_one() {
    let environment = Environment::system();
    let store = MemoryStore::new(environment.clone());
    identity::initialise(&store, &environment).await.unwrap();
    let api = Api::on(store.clone(), |config| {
        config.store = Arc::new(Gathering {
            store,
            came: AtomicUsize::new(0),
            all: Barrier::new(MANY),
        });
    });
    let api = Arc::new(api.await);
    let requests = (0..MANY).map(|node| {
        let (api, pod) = (api.clone(), pod("hello", &format!("n{node}")));
        tokio::spawn(async move { api.post(PODS, &pod).await })
    });
    let requests: Vec<_> = requests.collect();
    let mut made = 0;
    for request in requests {
        let answer = request.await.unwrap();
        if answer.code.is_success() {
            made += 1;
        } else {
            answer.fails(409, "AlreadyExists");
        }
    }
    assert_eq!(made, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pods_of_many_names_are_created_side_by_side() {
    let api = Arc::new(Api::start().await);
    let requests = (0..200).map(|number| {
        let (api, pod) = (api.clone(), pod(&format!("pod-{number}"), "n1"));
        tokio::spawn(async move { api.post(PODS, &pod).await })
    });
    for request in requests.collect::<Vec<_>>() {
        request.await.unwrap().done();
    }
}
