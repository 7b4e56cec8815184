//! The store on Consul against a loop that sends the same transactions.
//!
//! Both sides send single-key commits to one server with its log on disk: the same operations
//! with the same bytes, over as many connections, 64 in flight. The loop reads the answers and
//! does nothing with them. Then one change is made at a time in a small and in a large root of
//! one server, and a watcher of all objects is waited for.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use platctrl_bench::{Goal, Result, full_scale, median, process_cpu, ratio, raw, runs, same};
use platctrl_framework::environment::Environment;
use platctrl_framework::store::{Change, Key, ListRequest, Prefix, Store, Transaction, WatchEvent};
use platctrl_store_consul::{Address, ConsulStore, Options};

const IN_FLIGHT: usize = 64;
const COMMITS: usize = 8_192;
/// Pods of a node.
const PODS: usize = 10;

pub(crate) fn run() -> Result<()> {
    let dir = super::temporary()?;
    let server = Server::start(dir.path())?;
    let executor = super::executor()?;
    executor.block_on(async {
        commits(&server).await?;
        changes(&server, if full_scale() { 100_000 } else { 20_000 }).await
    })
}

/// A Consul that lives as long as this.
pub(crate) struct Server {
    process: Child,
    pub(crate) address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    fn start(dir: &Path) -> Result<Self> {
        Self::start_as(dir, serde_json::Value::Null)
    }

    /// One whose tokens may do nothing unless told, but for this one.
    pub(crate) fn start_with_tokens(dir: &Path, all: &str) -> Result<Self> {
        let tokens = serde_json::json!({"master": all, "agent": all});
        let acl = serde_json::json!({"enabled": true, "default_policy": "deny", "tokens": tokens});
        Self::start_as(dir, acl)
    }

    fn start_as(dir: &Path, acl: serde_json::Value) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/tools");
        let tools = Command::new(script).arg("consul").output()?;
        let bin = String::from_utf8(tools.stdout)?;
        let id = std::process::id();
        let address = format!("127.{}.{}.77", 1 + (id >> 8) % 250, 1 + id % 250);
        let config = dir.join("consul.json");
        let mut text = serde_json::json!({
            "server": true,
            "bootstrap_expect": 1,
            "node_name": "bench",
            "data_dir": dir.join("consul"),
            "bind_addr": address,
            "client_addr": address,
            "disable_update_check": true,
            "disable_host_node_id": true,
            "performance": {"raft_multiplier": 1},
            "limits": {"http_max_conns_per_client": 1000},
            "ports": {"dns": -1, "grpc": -1, "serf_wan": -1},
        });
        if !acl.is_null() {
            text["acl"] = acl;
        }
        std::fs::write(&config, text.to_string())?;
        let process = Command::new(Path::new(bin.trim_end()).join("consul"))
            .arg("agent")
            .arg(format!("-config-file={}", config.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { process, address })
    }

    async fn store(&self, root: &str) -> Result<ConsulStore> {
        let address: Address = format!("consul://{}:8500/{root}", self.address).parse()?;
        let mut options = Options::default();
        options.max_connections = IN_FLIGHT + 2;
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match ConsulStore::open(&address, options.clone(), Environment::system()).await {
                Ok(store) => return Ok(store),
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Processor time of server and client together.
    fn cpu(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        let fields = stat.rsplit(") ").next().unwrap_or_default();
        let ticks: u64 = fields
            .split(' ')
            .skip(11)
            .take(2)
            .flat_map(str::parse::<u64>)
            .sum();
        Ok(Duration::from_millis(ticks * 10) + process_cpu())
    }
}

fn key(node: usize, pod: usize) -> String {
    format!("o/intent/platctrl.dev/pods/node-{node:05}/default/pod-{pod}")
}

fn write_of(task: usize, turn: usize) -> (String, String) {
    let n = task + IN_FLIGHT * turn;
    (key(n % 997, n % PODS), super::value(n, turn))
}

async fn commits(server: &Server) -> Result<()> {
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for round in 0..runs() {
        let (a, b) = (format!("ours-{round}"), format!("bare-{round}"));
        ours.push(by_the_store(server, &a).await?);
        bare.push(by_the_loop(server, &b).await?);
        let mut found = Vec::new();
        for root in [a, b] {
            let store = server.store(&root).await?;
            let mut request = ListRequest::new(Prefix::new("o/")?);
            request.limit = usize::MAX;
            let records = store.list(&request).await?.records;
            let values: u64 = records
                .iter()
                .map(|record| {
                    platctrl_bench::hash(&[record.key.as_str().as_bytes(), &record.value])
                })
                .fold(0, u64::wrapping_add);
            found.push((records.len(), values));
        }
        // Who comes last to a key differs, so only the keys are compared.
        same("how many keys there are", &found[0].0, &found[1].0)?;
    }
    let ours = raw("consul: store, 64 in flight", "commits/s", &ours);
    let bare = raw("consul: bare /txn loop, 64 in flight", "commits/s", &bare);
    ratio("stores.consul.commits", ours / bare, Goal::AtLeast(0.85));
    Ok(())
}

async fn by_the_store(server: &Server, root: &str) -> Result<f64> {
    let store = Arc::new(server.store(root).await?);
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..IN_FLIGHT {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            for turn in 0..COMMITS / IN_FLIGHT {
                let (key, value) = write_of(task, turn);
                store
                    .commit(Transaction::new().put(Key::new(key)?, value))
                    .await?;
            }
            Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(COMMITS as f64 / started.elapsed().as_secs_f64())
}

/// The body that the store sends for one put.
fn body_of(root: &str, task: usize, turn: usize) -> Bytes {
    let (key, value) = write_of(task, turn);
    let value = base64::engine::general_purpose::STANDARD.encode(value);
    let nonce = platctrl_bench::hash(&[key.as_bytes(), &turn.to_le_bytes()]) | 1 << 62;
    let scope = key.rsplitn(3, '/').nth(2).unwrap_or_default();
    let bucket = nonce & 0xff;
    let hint = base64::engine::general_purpose::STANDARD.encode(format!(r#"["{scope}/-"]"#));
    let text = format!(
        concat!(
            r#"[{{"KV":{{"Verb":"check-not-exists","Key":"{root}/x/anchor"}}}},"#,
            r#"{{"KV":{{"Verb":"set","Key":"{root}/{key}","Value":"{value}","Flags":{nonce}}}}},"#,
            r#"{{"KV":{{"Verb":"set","Key":"{root}/x/gen/{bucket:02x}/{scope}/-","Value":"","Flags":{nonce}}}}},"#,
            r#"{{"KV":{{"Verb":"set","Key":"{root}/x/gen1/{bucket:02x}","Value":"","Flags":{nonce}}}}},"#,
            r#"{{"KV":{{"Verb":"set","Key":"{root}/x/gen1/top-{top:x}","Value":"","Flags":{nonce}}}}},"#,
            r#"{{"KV":{{"Verb":"set","Key":"{root}/x/gen1/now","Value":"{hint}","Flags":{nonce}}}}}]"#,
        ),
        root = root,
        key = key,
        value = value,
        scope = scope,
        bucket = bucket,
        top = bucket >> 4,
        hint = hint,
        nonce = nonce,
    );
    text.into()
}

async fn by_the_loop(server: &Server, root: &str) -> Result<f64> {
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..IN_FLIGHT {
        let (address, root) = (server.address.clone(), root.to_owned());
        tasks.spawn(async move {
            let stream = tokio::net::TcpStream::connect((address.as_str(), 8500)).await?;
            stream.set_nodelay(true)?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            for turn in 0..COMMITS / IN_FLIGHT {
                sender.ready().await?;
                let request = http::Request::put("/v1/txn?")
                    .header("host", &address)
                    .header("user-agent", "platctrl")
                    .body(Full::new(body_of(&root, task, turn)))?;
                let answer = sender.send_request(request).await?;
                if answer.status() != 200 {
                    return Err(format!("the loop got {}", answer.status()).into());
                }
                answer.into_body().collect().await?;
            }
            Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(COMMITS as f64 / started.elapsed().as_secs_f64())
}

/// What one change costs until a watcher of everything has seen it.
async fn changes(server: &Server, large: usize) -> Result<()> {
    const SMALL: usize = 1_000;
    let mut sides = Vec::new();
    for (root, keys) in [("small", SMALL), ("large", large)] {
        let store = Arc::new(server.store(root).await?);
        load(&store, keys / PODS).await?;
        sides.push((store, keys / PODS, Vec::new(), Vec::new()));
    }
    for round in 0..runs() {
        for (store, nodes, latency, cpu) in &mut sides {
            let (seconds, used) = watch(server, store, *nodes, round).await?;
            latency.push(seconds * 1e3);
            cpu.push(used * 1e3);
        }
    }
    let mut figures = Vec::new();
    for (_, nodes, latency, cpu) in &sides {
        let keys = nodes * PODS;
        figures.push((
            raw(
                &format!("consul: put to event, {keys} keys, p50"),
                "ms",
                latency,
            ),
            raw(
                &format!("consul: CPU of one change, {keys} keys"),
                "ms",
                cpu,
            ),
        ));
    }
    if let [small, large] = figures.as_slice() {
        let goal = Goal::AtMost(1.2);
        ratio("stores.consul.change-cost.time", large.0 / small.0, goal);
        ratio("stores.consul.change-cost.cpu", large.1 / small.1, goal);
    }
    Ok(())
}

async fn load(store: &Arc<ConsulStore>, nodes: usize) -> Result<()> {
    let load = futures::stream::iter(0..nodes).map(|node| {
        let store = Arc::clone(store);
        async move {
            let mut transaction = Transaction::new();
            for pod in 0..PODS {
                transaction = transaction.put(Key::new(key(node, pod))?, super::value(node, pod));
            }
            store.commit(transaction).await?;
            Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
        }
    });
    let mut load = load.buffer_unordered(16);
    while let Some(done) = load.next().await {
        done?;
    }
    Ok(())
}

/// Median time from before a put to its event, and processor time for each.
async fn watch(
    server: &Server,
    store: &ConsulStore,
    nodes: usize,
    round: usize,
) -> Result<(f64, f64)> {
    const CHANGES: usize = 200;
    let begin = store.get(&[]).await?.revision;
    let mut watch = store.watch(Prefix::new("o/")?, begin);
    let mut spans = Vec::new();
    let mut before = server.cpu()?;
    for n in 0..=CHANGES {
        let node = (n * 7_919 + round) % nodes;
        let changed = Key::new(key(node, n % PODS))?;
        let begun = Instant::now();
        let put = Transaction::new().put(changed.clone(), super::value(n, round));
        store.commit(put).await?;
        'seen: loop {
            match watch.next().await {
                Some(Ok(WatchEvent::Changes { changes, .. })) => {
                    for change in changes {
                        if matches!(change, Change::Put(record) if record.key == changed) {
                            break 'seen;
                        }
                    }
                }
                Some(Ok(WatchEvent::Progress(_))) => {}
                other => return Err(format!("the watch said {other:?}").into()),
            }
        }
        if n == 0 {
            // The first one sets the watch up.
            before = server.cpu()?;
        } else {
            spans.push(begun.elapsed().as_secs_f64());
        }
        tokio::time::sleep(Duration::from_millis(12)).await;
    }
    let used = server.cpu()?.saturating_sub(before).as_secs_f64();
    Ok((median(&spans), used / CHANGES as f64))
}
