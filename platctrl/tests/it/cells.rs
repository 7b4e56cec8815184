//! What replication controllers do when records are lost or wrong, on stores that are really
//! there: the cells that their crate runs on the memory store.

use std::fs;
use std::sync::Arc;

use futures::StreamExt as _;
use platctrl_controllers::testing::failsafe::cells;
use platctrl_framework::environment::Environment;
use platctrl_framework::store::Store;
use platctrl_store_consul::{ConsulStore, Options as ConsulOptions};
use platctrl_store_embedded::EmbeddedStore;
use platctrl_store_etcd::{Credentials, EtcdStore, Options as EtcdOptions};

use crate::servers::Server;

/// How much faster than the store's the controllers' clock goes.
const PACE: u32 = 100;
/// Cells at once. Most of them wait.
const AT_ONCE: usize = 4;

/// Runs every cell on a root of its own.
async fn hold_on(open: impl AsyncFn(&str) -> Arc<dyn Store>) {
    let open = &open;
    let checks = cells().iter().enumerate().map(|(at, cell)| async move {
        let store = open(&format!("cell{at}")).await;
        cell.check(store, Environment::hurried(PACE)).await
    });
    let outcomes: Vec<_> = futures::stream::iter(checks)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    assert!(outcomes.len() > 10, "{} cells were run", outcomes.len());
    let failed: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failsafe_cells_of_replication_controllers_on_an_embedded_store() {
    let dir = tempfile::tempdir().unwrap();
    hold_on(async |root: &str| {
        let opened = EmbeddedStore::open(dir.path().join(root), Environment::system());
        Arc::new(opened.unwrap()) as Arc<dyn Store>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failsafe_cells_of_replication_controllers_on_etcd() {
    let server = Server::etcd("etcd-3.5");
    let password = fs::read_to_string(server.hush()).unwrap();
    hold_on(async |root: &str| {
        let mut options = EtcdOptions::default();
        options.credentials = Some(Credentials::new("root", password.trim_end()));
        let location = format!("etcd://{}/{root}", server.at).parse().unwrap();
        Arc::new(EtcdStore::connect(location, options).await.unwrap()) as Arc<dyn Store>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failsafe_cells_of_replication_controllers_on_consul() {
    let server = Server::consul();
    let token = server.hush();
    hold_on(async |root: &str| {
        let mut options = ConsulOptions::default();
        options.token_file = Some(token.clone());
        let address = format!("consul://{}/{root}", server.at).parse().unwrap();
        let opened = ConsulStore::open(&address, options, Environment::system()).await;
        Arc::new(opened.unwrap()) as Arc<dyn Store>
    })
    .await;
}
