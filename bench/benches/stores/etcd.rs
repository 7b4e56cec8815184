//! The etcd store against a bare loop over HTTP/2 that sends the same transactions to the same
//! server: one member of etcd 3.5 with its data on disk.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use platctrl_bench::etcd::{Bare, Server};
use platctrl_bench::{Goal, Result, full_scale, median, p99, proc_bytes, ratio, raw, runs, same};
use platctrl_framework::store::{
    Key, ListRequest, Pipeline, Prefix, Store, Transaction, WatchEvent,
};
use platctrl_store_etcd::{EtcdStore, Options};
use tokio::task::JoinSet;

use super::{executor, key, value};

/// Where the keys of both sides are.
const ROOT: &str = "bench";
/// Keys that are written again and again.
const KEYS: usize = 4_096;

async fn store_of(server: &Server) -> Result<EtcdStore> {
    let location = format!("etcd://{}/{ROOT}", server.endpoint).parse()?;
    Ok(EtcdStore::connect(location, Options::default()).await?)
}

async fn bare_of(server: &Server) -> Result<Bare> {
    Bare::connect(&server.endpoint, ROOT).await
}

/// Resident memory in KiB.
fn resident(process: &str) -> Result<f64> {
    let bytes = proc_bytes(&format!("/proc/{process}/status"), "VmRSS:")?;
    Ok(bytes as f64 / 1024.0)
}

pub(crate) fn run() -> Result<()> {
    let server = Server::start()?;
    let executor = executor()?;
    executor.block_on(async {
        let store = Arc::new(store_of(&server).await?);
        let bare = bare_of(&server).await?;
        commits(&store, &bare, 64).await?;
        batches(&store, &bare).await?;
        pipeline(&store, &bare, 64, 1.8).await?;
        pipeline(&store, &bare, 256, 2.5).await?;
        put_to_event(&store, &server).await?;
        lists(&store, &bare).await
    })
}

/// The number of transactions per second of clients that each wait for one before the next.
async fn rate<F>(
    clients: usize,
    transactions: usize,
    one: impl Fn(usize) -> F + Clone + Send + 'static,
) -> Result<f64>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let next = Arc::new(AtomicUsize::new(0));
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..clients {
        let (next, one) = (Arc::clone(&next), one.clone());
        running.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= transactions {
                    return Ok(());
                }
                one(n).await?;
            }
        });
    }
    while let Some(ended) = running.join_next().await {
        let outcome: Result<()> = ended?;
        outcome?;
    }
    Ok(transactions as f64 / begun.elapsed().as_secs_f64())
}

fn put(n: usize) -> (String, String) {
    (key(n % KEYS), value(n % KEYS, n / KEYS))
}

async fn by_store(store: Arc<dyn Store>, clients: usize, transactions: usize) -> Result<f64> {
    rate(clients, transactions, move |n| {
        let store = Arc::clone(&store);
        async move {
            let (key, value) = put(n);
            let transaction = Transaction::new().put(Key::new(key)?, value);
            store.commit(transaction).await?;
            Ok(())
        }
    })
    .await
}

async fn by_bare(bare: &Bare, clients: usize, transactions: usize) -> Result<f64> {
    let bare = bare.clone();
    rate(clients, transactions, move |n| {
        let bare = bare.clone();
        async move { bare.put(&[put(n)]).await }
    })
    .await
}

/// Both sides leave the same keys with the same values.
async fn same_content(store: &EtcdStore, before: Option<u64>, side: &str) -> Result<u64> {
    let mut request = ListRequest::new(Prefix::all());
    let mut content = 0;
    loop {
        let page = store.list(&request).await?;
        for record in &page.records {
            content ^= platctrl_bench::hash(&[record.key.as_str().as_bytes(), &record.value]);
        }
        if !page.more {
            break;
        }
        request.at = Some(page.revision);
        request.after = page.records.last().map(|record| record.key.clone());
    }
    if let Some(before) = before {
        same(&format!("what is stored after {side}"), &before, &content)?;
    }
    Ok(content)
}

async fn commits(store: &Arc<EtcdStore>, bare: &Bare, clients: usize) -> Result<()> {
    let count = 4 * KEYS;
    by_bare(bare, clients, KEYS).await?;
    let (mut ours, mut theirs) = (vec![], vec![]);
    let mut content = None;
    for _ in 0..runs() {
        theirs.push(by_bare(bare, clients, count).await?);
        content = Some(same_content(store, content, "the bare loop").await?);
        ours.push(by_store(store.clone(), clients, count).await?);
        content = Some(same_content(store, content, "the store").await?);
    }
    let ours = raw(
        &format!("etcd, {clients} in flight: store"),
        "commits/s",
        &ours,
    );
    let theirs = raw(
        &format!("etcd, {clients} in flight: bare"),
        "commits/s",
        &theirs,
    );
    let name = format!("stores.etcd.single-commits.{clients}");
    ratio(&name, ours / theirs, Goal::AtLeast(0.9));
    Ok(())
}

async fn batches(store: &Arc<EtcdStore>, bare: &Bare) -> Result<()> {
    const EACH: usize = 64;
    const CLIENTS: usize = 8;
    let count = 8 * KEYS / EACH;
    let batch = |n: usize| (0..EACH).map(move |i| put(n * EACH + i));
    let (mut ours, mut theirs) = (vec![], vec![]);
    for _ in 0..runs() {
        let bare = bare.clone();
        let by_bare = rate(CLIENTS, count, move |n| {
            let bare = bare.clone();
            async move { bare.put(&batch(n).collect::<Vec<_>>()).await }
        });
        theirs.push(by_bare.await? * EACH as f64);
        let content = same_content(store, None, "").await?;
        let committing = store.clone();
        let by_store = rate(CLIENTS, count, move |n| {
            let store = committing.clone();
            async move {
                let mut transaction = Transaction::new();
                for (key, value) in batch(n) {
                    transaction = transaction.put(Key::new(key)?, value);
                }
                store.commit(transaction).await?;
                Ok(())
            }
        });
        ours.push(by_store.await? * EACH as f64);
        same_content(store, Some(content), "batches").await?;
    }
    let ours = raw("etcd, 64 keys a transaction: store", "keys/s", &ours);
    let theirs = raw("etcd, 64 keys a transaction: bare", "keys/s", &theirs);
    ratio(
        "stores.etcd.batched-commits",
        ours / theirs,
        Goal::AtLeast(0.9),
    );
    Ok(())
}

async fn pipeline(store: &Arc<EtcdStore>, bare: &Bare, clients: usize, goal: f64) -> Result<()> {
    let count = 4 * KEYS;
    let (mut ours, mut theirs) = (vec![], vec![]);
    for _ in 0..runs() {
        theirs.push(by_bare(bare, clients, count).await?);
        let content = same_content(store, None, "").await?;
        let pipeline = Pipeline::new(store.clone());
        ours.push(by_store(Arc::new(pipeline), clients, count).await?);
        same_content(store, Some(content), "the pipeline").await?;
    }
    let name = format!("etcd, {clients} in flight");
    let ours = raw(&format!("{name}: pipeline"), "commits/s", &ours);
    let theirs = raw(&format!("{name}: bare, one each"), "commits/s", &theirs);
    let name = format!("stores.etcd.pipeline.{clients}");
    ratio(&name, ours / theirs, Goal::AtLeast(goal));
    Ok(())
}

/// From before a put to its event, by the store's watch and by a bare one on the same puts.
async fn put_to_event(store: &Arc<EtcdStore>, server: &Server) -> Result<()> {
    const PUTS: usize = 400;
    let (mut ours, mut ours_p99, mut theirs) = (vec![], vec![], vec![]);
    for _ in 0..runs() {
        let begin = store.get(&[]).await?.revision;
        let mut watch = store.watch(Prefix::new("o/")?, begin);
        let watching = tokio::spawn(async move {
            let mut seen = Vec::new();
            while seen.len() < PUTS {
                match watch.next().await {
                    Some(Ok(WatchEvent::Changes { .. })) => seen.push(Instant::now()),
                    Some(Ok(WatchEvent::Progress(_))) => {}
                    other => return Err(format!("the watch said {other:?}")),
                }
            }
            Ok(seen)
        });
        // On a connection of its own, as the store's stream is.
        let beside = bare_of(server).await?;
        let start = begin.counter() as i64 + 1;
        let bare_watching = tokio::spawn(async move { beside.watch_events(start, PUTS).await });
        // Both have begun.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let bare = bare_of(server).await?;
        let mut begun = Vec::new();
        for n in 0..PUTS {
            begun.push(Instant::now());
            bare.put(&[put(n)]).await?;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let span = |seen: Vec<Instant>| -> Vec<f64> {
            let pairs = begun.iter().zip(seen);
            pairs
                .map(|(begun, seen)| seen.saturating_duration_since(*begun).as_secs_f64() * 1e3)
                .collect()
        };
        let seen = span(watching.await??);
        ours.push(median(&seen));
        ours_p99.push(p99(&seen));
        theirs.push(median(&span(bare_watching.await??)));
    }
    let event = raw("etcd, put to event: store, p50", "ms", &ours);
    raw("etcd, put to event: store, p99", "ms", &ours_p99);
    let bare = raw("etcd, put to event: bare, p50", "ms", &theirs);
    ratio(
        "stores.etcd.put-to-event-overhead-ms.p50",
        event - bare,
        Goal::AtMost(0.2),
    );
    Ok(())
}

async fn lists(store: &Arc<EtcdStore>, bare: &Bare) -> Result<()> {
    let keys = if full_scale() { 100_000 } else { 20_000 };
    for start in (0..keys).step_by(128) {
        let some: Vec<_> = (start..keys.min(start + 128))
            .map(|n| (key(n), value(n, 0)))
            .collect();
        bare.put(&some).await?;
    }
    let (mut ours, mut theirs) = (vec![], vec![]);
    for _ in 0..runs() {
        let begun = Instant::now();
        let (found, bytes) = bare.list("o/", ListRequest::DEFAULT_LIMIT).await?;
        theirs.push(found as f64 / begun.elapsed().as_secs_f64());
        let begun = Instant::now();
        let mut request = ListRequest::new(Prefix::new("o/")?);
        let (mut listed, mut listed_bytes) = (0, 0);
        loop {
            let page = store.list(&request).await?;
            listed += page.records.len();
            let sizes = page.records.iter().map(|record| record.value.len());
            listed_bytes += sizes.sum::<usize>();
            if !page.more {
                break;
            }
            request.at = Some(page.revision);
            request.after = page.records.last().map(|record| record.key.clone());
        }
        ours.push(listed as f64 / begun.elapsed().as_secs_f64());
        same("what was listed", &(found, bytes), &(listed, listed_bytes))?;
    }
    let ours = raw(&format!("etcd, list of {keys}: store"), "keys/s", &ours);
    let theirs = raw(&format!("etcd, list of {keys}: bare"), "keys/s", &theirs);
    ratio("stores.etcd.list", ours / theirs, Goal::AtLeast(0.8));
    Ok(())
}

/// The environment variable by which this program is told to be a client with watchers, and where.
const WATCHES: &str = "PLATCTRL_BENCH_WATCHES";
/// How many watchers are opened to know what one takes: memory comes in pages.
const FOR_MEMORY: usize = 10_000;

/// Many watchers of one store: on one stream, so that they cost next to nothing. Server and client
/// are fresh processes, in which nothing that was freed before can hide what is taken.
pub(crate) fn watchers() -> Result<()> {
    let mut live = Vec::new();
    let (mut by_server, mut by_client) = (Vec::new(), Vec::new());
    for _ in 0..runs() {
        let server = Server::start()?;
        let told = clients(&server, 1_000)?;
        live.push(told.0);
        let server = Server::start()?;
        // Until it answers for the first time it still loads what it needs.
        clients(&server, 1)?;
        let before = resident(&server.process().to_string())?;
        let (_, client, after) = clients(&server, FOR_MEMORY)?;
        by_server.push((after - before) / FOR_MEMORY as f64);
        by_client.push(client / FOR_MEMORY as f64);
    }
    raw("etcd, 1000 watchers: until all are live", "ms", &live);
    raw(
        "etcd, a watcher of 10,000, in the server",
        "KiB",
        &by_server,
    );
    raw(
        "etcd, a watcher of 10,000, in the client",
        "KiB",
        &by_client,
    );
    Ok(())
}

/// A process with so many watchers: until all were live (ms), what they took there, and the
/// server's memory while they were open (KiB).
fn clients(server: &Server, count: usize) -> Result<(f64, f64, f64)> {
    use std::io::{BufRead as _, BufReader};
    let mut process = Command::new(std::env::current_exe()?)
        .env(WATCHES, format!("{} {count}", server.endpoint))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let output = process.stdout.take().ok_or("no output")?;
    BufReader::new(output).read_line(&mut line)?;
    let memory = resident(&server.process().to_string())?;
    // The end of its input is its end.
    drop(process.stdin.take());
    process.wait()?;
    let mut told = line.split_whitespace().map(str::parse::<f64>);
    let mut next = || -> Result<f64> { Ok(told.next().ok_or("the watchers were not live")??) };
    Ok((next()?, next()?, memory))
}

/// What such a process does; false when this is none.
pub(crate) fn watch_if_told() -> Result<bool> {
    let Ok(order) = std::env::var(WATCHES) else {
        return Ok(false);
    };
    let (endpoint, count) = order.split_once(' ').ok_or("where, and how many")?;
    let count: usize = count.parse()?;
    executor()?.block_on(async {
        let location = format!("etcd://{endpoint}/{ROOT}").parse()?;
        let store = EtcdStore::connect(location, Options::default()).await?;
        let begin = store.get(&[]).await?.revision;
        let before = resident("self")?;
        let begun = Instant::now();
        let mut watches = Vec::with_capacity(count);
        for n in 0..count {
            watches.push(store.watch(Prefix::new(format!("w/{n}/"))?, begin));
        }
        let last = store
            .commit(Transaction::new().put(Key::new("x/elsewhere")?, "x"))
            .await?;
        // Each is live once it has been told how far the store is.
        for watch in &mut watches {
            loop {
                match watch.next().await {
                    Some(Ok(WatchEvent::Progress(at))) if at >= last => break,
                    Some(Ok(WatchEvent::Progress(_))) => {}
                    other => return Err(format!("a watch said {other:?}").into()),
                }
            }
        }
        let took = begun.elapsed().as_secs_f64() * 1e3;
        println!("{took} {}", resident("self")? - before);
        std::io::stdin().read_line(&mut String::new())?;
        Ok(true)
    })
}
