//! What it costs to give one more node a credential of its own, and what the others notice of it.
//!
//! One server each, with access control and its data on disk. Nodes are enrolled one after the
//! other, as `platctrl store policy --apply` does: two roles or policies, of which all nodes share
//! one, and a user or token. Around the numbers named, ten enrolments are timed while a writer
//! that was enrolled first writes its own range; its commits are also timed while nobody enrols.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use platctrl_bench::etcd::Server;
use platctrl_bench::{Result, full_scale, median, p99, raw};
use platctrl_framework::environment::Environment;
use platctrl_framework::store::{Key, Policy, Prefix, Right, Store, Transaction};
use platctrl_store_consul::{self as consul_store, ConsulStore};
use platctrl_store_etcd::{Credentials, EtcdStore, Options};

use super::{consul, executor, temporary};

/// Enrolments that are timed around each number.
const TIMED: usize = 10;
const ROOT: &str = "bench";
const HUSH: &str = "5f0d0e06-9c3d-4b8e-8a5e-0123456789ab";

fn policies(node: usize) -> Result<Vec<Policy>> {
    let pods = |tree: &str| Prefix::new(format!("o/{tree}/platctrl.dev/pods/node-{node}/"));
    let alone =
        |key: String| Ok::<_, platctrl_framework::store::InvalidKey>(Prefix::only(&Key::new(key)?));
    let object =
        |tree: &str, kind: &str| alone(format!("o/{tree}/platctrl.dev/{kind}/node-{node}"));
    let parts = |kind: &str| Prefix::new(format!("o/part/platctrl.dev/{kind}/node-{node}/"));
    let shared = [
        alone("x/anchor".to_owned())?,
        alone("x/format".to_owned())?,
        Prefix::new("x/chain/")?,
        Prefix::new("x/control/")?,
    ];
    let read = [
        pods("intent")?,
        pods("grant")?,
        object("intent", "nodes")?,
        object("intent", "failsafes")?,
        parts("nodes")?,
        parts("failsafes")?,
    ];
    let write = [
        pods("reality")?,
        object("reality", "nodes")?,
        object("reality", "failsafes")?,
        alone(format!("x/beat/node-{node}"))?,
        Prefix::new(format!("x/event/node-{node}/"))?,
    ];
    let own = read
        .map(Right::read)
        .into_iter()
        .chain(write.map(Right::write));
    Ok(vec![
        Policy::new("agents", shared.map(Right::read)),
        Policy::new(user(node), own),
    ])
}

fn user(node: usize) -> String {
    format!("node-{node}")
}

/// A place where nodes are enrolled.
trait Enrols {
    const NAME: &'static str;

    async fn enrol(&self, node: usize) -> Result<()>;

    /// A store with the credential of a node.
    async fn store_of(&self, node: usize) -> Result<Arc<dyn Store>>;
}

struct OnEtcd {
    server: Server,
    store: EtcdStore,
}

impl Enrols for OnEtcd {
    const NAME: &'static str = "etcd";

    async fn enrol(&self, node: usize) -> Result<()> {
        let (control, user) = (self.store.access_control(), user(node));
        let policies = policies(node)?;
        control.roles_of(&user).await?;
        for policy in &policies {
            control.apply(policy).await?;
        }
        control.add_user(&user, Some(HUSH)).await?;
        for policy in &policies {
            control.grant_role(&user, &policy.name).await?;
        }
        Ok(())
    }

    async fn store_of(&self, node: usize) -> Result<Arc<dyn Store>> {
        let mut options = Options::default();
        options.credentials = Some(Credentials::new(user(node), HUSH));
        let location = format!("etcd://{}/{ROOT}", self.server.endpoint).parse()?;
        Ok(Arc::new(EtcdStore::connect(location, options).await?))
    }
}

struct OnConsul {
    server: consul::Server,
    store: ConsulStore,
    dir: tempfile::TempDir,
}

impl OnConsul {
    async fn open(server: &consul::Server, file: std::path::PathBuf) -> Result<ConsulStore> {
        let mut options = consul_store::Options::default();
        options.token_file = Some(file);
        let address = format!("consul://{}:8500/{ROOT}", server.address).parse()?;
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match ConsulStore::open(&address, options.clone(), Environment::system()).await {
                Ok(store) => return Ok(store),
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }
}

impl Enrols for OnConsul {
    const NAME: &'static str = "consul";

    async fn enrol(&self, node: usize) -> Result<()> {
        let control = self.store.access_control();
        let policies = policies(node)?;
        for policy in &policies {
            control.apply(policy).await?;
        }
        let (token, _) = control.token(&user(node), &policies).await?;
        std::fs::write(self.dir.path().join(user(node)), token.secret)?;
        Ok(())
    }

    async fn store_of(&self, node: usize) -> Result<Arc<dyn Store>> {
        let file = self.dir.path().join(user(node));
        Ok(Arc::new(Self::open(&self.server, file).await?))
    }
}

/// The times of commits, in milliseconds, for as long as `goes_on`.
async fn commits(store: Arc<dyn Store>, goes_on: Arc<AtomicBool>) -> Result<Vec<f64>> {
    let key = Key::new("o/reality/platctrl.dev/pods/node-0/default/a")?;
    let mut took = Vec::new();
    while goes_on.load(Ordering::Relaxed) {
        let begun = Instant::now();
        store
            .commit(Transaction::new().put(key.clone(), "{}"))
            .await?;
        took.push(begun.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(took)
}

async fn measure(place: &impl Enrols, numbers: &[usize]) -> Result<()> {
    let name = place_name(place);
    place.enrol(0).await?;
    let writer = place.store_of(0).await?;
    let mut enrolled = 1;
    for &number in numbers {
        while enrolled < number.saturating_sub(TIMED) {
            place.enrol(enrolled).await?;
            enrolled += 1;
        }
        let beside = |goes_on: &Arc<AtomicBool>| {
            tokio::spawn(commits(Arc::clone(&writer), Arc::clone(goes_on)))
        };
        let goes_on = Arc::new(AtomicBool::new(true));
        let quiet = beside(&goes_on);
        tokio::time::sleep(Duration::from_secs(2)).await;
        goes_on.store(false, Ordering::Relaxed);
        let quiet = quiet.await??;
        goes_on.store(true, Ordering::Relaxed);
        let disturbed = beside(&goes_on);
        let mut took = Vec::new();
        while enrolled < number {
            let begun = Instant::now();
            place.enrol(enrolled).await?;
            took.push(begun.elapsed().as_secs_f64() * 1e3);
            enrolled += 1;
        }
        goes_on.store(false, Ordering::Relaxed);
        let disturbed = disturbed.await??;
        raw(&format!("{name}: enrolling node {number}"), "ms", &took);
        let writes = |when: &str, took: &[f64]| {
            raw(
                &format!("{name}, {number} nodes: a commit, {when}, p50"),
                "ms",
                &[median(took)],
            );
            raw(
                &format!("{name}, {number} nodes: a commit, {when}, p99"),
                "ms",
                &[p99(took)],
            );
        };
        writes("nobody enrolling", &quiet);
        writes("while enrolling", &disturbed);
    }
    Ok(())
}

fn place_name<P: Enrols>(_: &P) -> &'static str {
    P::NAME
}

pub(crate) fn run() -> Result<()> {
    let numbers: &[usize] = if full_scale() { &[100, 1_000] } else { &[100] };
    executor()?.block_on(async {
        // Users are asked who they are from here on.
        let server = Server::start()?;
        let location = format!("etcd://{}/{ROOT}", server.endpoint);
        let open = EtcdStore::connect(location.parse()?, Options::default()).await?;
        open.access_control().add_user("root", Some(HUSH)).await?;
        server.ctl(&["user", "grant-role", "root", "root"])?;
        server.ctl(&["auth", "enable"])?;
        let mut options = Options::default();
        options.credentials = Some(Credentials::new("root", HUSH));
        let store = EtcdStore::connect(location.parse()?, options).await?;
        measure(&OnEtcd { server, store }, numbers).await?;

        let dir = temporary()?;
        let server = consul::Server::start_with_tokens(dir.path(), HUSH)?;
        let file = dir.path().join("hush");
        std::fs::write(&file, HUSH)?;
        let store = OnConsul::open(&server, file).await?;
        // Without an anchor each commit checks that there is none, for which Consul asks the
        // right to write it: nodes do not have that.
        let anchor = Transaction::new().put(Key::new("x/anchor")?, ROOT);
        store.commit(anchor).await?;
        measure(&OnConsul { server, store, dir }, numbers).await
    })
}
