//! A fleet on a real etcd: the controllers in a process of their own, and the agents of all nodes.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use platctrl_bench::etcd::Server;
use platctrl_bench::{Result, proc_bytes, process_cpu};
use platctrl_controllers::{
    cached_pods, daemon_set, disruption_budget, replication_controller, rolling_update, testing,
};
use platctrl_framework::client::Client;
use platctrl_framework::controller::Runtime;
use platctrl_framework::environment::Environment;
use platctrl_framework::model::{Digest, Metadata, Object, ObjectKey, Resource, Tree, identity};
use platctrl_framework::root::RootedStore;
use platctrl_framework::store::{
    Change, Key, Pipeline, Prefix, Record, Store, Transaction, WatchEvent,
};
use platctrl_kinds::{Node, Pod, ReplicationController};
use platctrl_store_etcd::{EtcdStore, Options};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// Where everything is below etcd.
const ROOT: &str = "scale";
/// Objects that are made at once.
const AT_ONCE: usize = 256;
/// What agents write in one transaction.
const REPORTS: usize = 100;
/// Pods are 2 KiB.
const FILLER: usize = 1_480;
/// What takes longer is not waited for.
const PATIENCE: Duration = Duration::from_secs(300);

pub(crate) fn executor() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.worker_threads(2).enable_all().build()?)
}

async fn connect(endpoint: &str) -> Result<Arc<dyn Store>> {
    let location = format!("etcd://{endpoint}/{ROOT}").parse()?;
    Ok(Arc::new(
        EtcdStore::connect(location, Options::default()).await?,
    ))
}

/// The controllers' process: says `ready` when it has read everything, and what it has used
/// whenever a line is read from its standard input. It ends with that.
pub(crate) fn controllers(endpoint: &str) -> Result<()> {
    let executor = executor()?;
    let store = executor.block_on(connect(endpoint))?;
    let runtime = Runtime::new(store, Environment::system())
        .controller(replication_controller::controller())
        .controller(daemon_set::controller())
        .controller(rolling_update::controller())
        .controller(disruption_budget::controller())
        .cached(cached_pods())
        .kind::<Node>()
        .reap()
        .elect_leader("controllers");
    let handle = runtime.handle();
    let running = executor.spawn(runtime.run());
    while handle.view().is_none() {
        if running.is_finished() {
            executor.block_on(running)??;
            return Err("the controllers ended".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        line?;
        let resident = proc_bytes("/proc/self/status", "VmRSS:")?;
        println!("{} {resident}", process_cpu().as_nanos());
    }
    executor.shutdown_background();
    Ok(())
}

/// What a process has used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    pub(crate) cpu: Duration,
    pub(crate) resident: u64,
}

/// A process of controllers. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Controllers {
    process: Child,
    ask: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Controllers {
    pub(crate) fn start(server: &Server) -> Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["controllers", &server.endpoint])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let ask = process.stdin.take();
        let answers = process.stdout.take().ok_or("the controllers are silent")?;
        let mut controllers = Self {
            process,
            ask,
            answers: BufReader::new(answers),
        };
        match controllers.line()?.as_str() {
            "ready" => Ok(controllers),
            other => Err(format!("the controllers said {other:?}").into()),
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    pub(crate) fn used(&mut self) -> Result<Used> {
        let ask = self.ask.as_mut().ok_or("nothing can be asked any more")?;
        writeln!(ask)?;
        let line = self.line()?;
        let (cpu, resident) = line.split_once(' ').ok_or("an answer without figures")?;
        Ok(Used {
            cpu: Duration::from_nanos(cpu.parse()?),
            resident: resident.parse()?,
        })
    }

    /// As a machine that loses its power.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Controllers {
    fn drop(&mut self) {
        drop(self.ask.take());
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A fleet: its server, and what plays everybody but the controllers.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) server: Server,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) client: Client,
}

impl Fleet {
    /// So many nodes on a new server.
    pub(crate) async fn new(nodes: usize) -> Result<Self> {
        let server = Server::start()?;
        let environment = Environment::system();
        let plain = connect(&server.endpoint).await?;
        identity::initialise(&*plain, &environment).await?;
        let store: Arc<dyn Store> = Arc::new(Pipeline::new(RootedStore::around(plain)));
        let client = Client::new(store.clone(), environment, "bench");
        let made = stream::iter(0..nodes).map(|index| {
            let client = client.clone();
            async move {
                let node = testing::node(&format!("node-{index:05}"));
                client.create::<Node>(&node).await
            }
        });
        let made = made.buffer_unordered(AT_ONCE);
        made.try_for_each(|_| async { Ok(()) }).await?;
        Ok(Self {
            server,
            store,
            client,
        })
    }

    /// Begins to play the agents.
    pub(crate) async fn agents(&self) -> Result<Agents> {
        let store = self.store.clone();
        let after = store.get(&[]).await?.revision;
        let mut watch = store.watch(pods(), after);
        Ok(Agents(tokio::spawn(async move {
            while let Some(event) = watch.next().await {
                let changes = match event? {
                    WatchEvent::Changes { changes, .. } => changes,
                    WatchEvent::Progress(_) => continue,
                    WatchEvent::Reset { reason } => return Err(reason.into()),
                };
                let put = changes.iter().filter_map(|change| match change {
                    Change::Put(record) => Some(report(record)),
                    Change::Delete { .. } => None,
                });
                let reports: Vec<(Key, Bytes)> = put.collect::<Result<_>>()?;
                for some in reports.chunks(REPORTS) {
                    let mut transaction = Transaction::new();
                    for (key, value) in some {
                        transaction = transaction.put(key.clone(), value.clone());
                    }
                    store.commit(transaction).await?;
                }
            }
            Err("the watch ended".into())
        })))
    }

    pub(crate) async fn create<K: Resource>(&self, object: &Object<K>) -> Result<()> {
        self.client.create(object).await?;
        Ok(())
    }

    /// Waits until an object is as it should be.
    pub(crate) async fn until<K: Resource>(
        &self,
        name: &str,
        agents: &mut Agents,
        holds: impl Fn(&Object<K>) -> bool,
    ) -> Result<()> {
        let key = ObjectKey::namespaced(K::GROUP, K::PLURAL, "default", name)?;
        let begun = Instant::now();
        loop {
            let object = self.client.get::<K>(&key).await?;
            if holds(&object) {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                let status = serde_json::to_string(&object.status)?;
                return Err(format!("{name} is not as it should be: {status}").into());
            }
            tokio::select! {
                ended = &mut agents.0 => ended??,
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
    }

    /// Waits until so many pods of a controller are ready.
    pub(crate) async fn until_ready(
        &self,
        name: &str,
        pods: usize,
        agents: &mut Agents,
    ) -> Result<()> {
        self.until::<ReplicationController>(name, agents, |controller| {
            controller.status.detail.ready_replicas as usize == pods
        })
        .await
    }
}

/// Those who play the agents, until this is dropped.
#[derive(Debug)]
pub(crate) struct Agents(JoinHandle<Result<()>>);

impl Drop for Agents {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The intents of all pods.
pub(crate) fn pods() -> Prefix {
    Pod::group_plural().prefix(Tree::Intent)
}

/// What an agent says of a pod: that it is ready, or gone if it is to be.
fn report(record: &Record) -> Result<(Key, Bytes)> {
    let intent: Value = serde_json::from_slice(&record.value)?;
    let (metadata, path) = (
        &intent["metadata"],
        record.key.as_str().strip_prefix("o/intent/"),
    );
    let key = Key::new(format!("o/reality/{}", path.ok_or("no intent")?))?;
    let generation = &metadata["generation"];
    let status = match metadata["deletion"].is_object() {
        true => json!({ "phase": "Gone" }),
        false => json!({
            "phase": "Running",
            "observedGeneration": generation,
            "observedSpec": Digest::of_json(&intent["spec"]),
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "Healthy", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": generation,
            }],
            "nodeName": intent["spec"]["nodeName"],
            "pids": { "web": 4711 },
        }),
    };
    let reality = json!({
        "apiVersion": intent["apiVersion"],
        "kind": intent["kind"],
        "metadata": {
            "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
        },
        "status": status,
    });
    Ok((key, serde_json::to_vec(&reality)?.into()))
}

pub(crate) fn named(name: &str) -> Metadata {
    Metadata {
        namespace: Some("default".into()),
        ..Metadata::named(name)
    }
}

/// A controller of so many pods of 2 KiB.
pub(crate) fn wanted(
    name: &str,
    replicas: usize,
    per_node: usize,
    artifact: &str,
) -> Result<Object<ReplicationController>> {
    let filler = platctrl_bench::text(1, FILLER);
    let spec = json!({
        "replicas": replicas,
        "nodeSelector": "role=web",
        "maxPerNode": per_node,
        "template": {
            "metadata": { "labels": { "app": "hello", "controller": name } },
            "spec": {
                "app": "hello",
                "launchables": { "web": { "location": artifact, "env": { "FILLER": filler } } },
            },
        },
    });
    Ok(Object::new(named(name), serde_json::from_value(spec)?))
}
