//! The embedded store against the engine it is built on (`docs/decisions/0004`).
//!
//! Both sides write the same keys and values of 1 KiB, durably, with the engine's two-phase
//! commit. The bare engine is measured twice: writing the records alone, and writing what the
//! store writes: the records, the history rows with the values they replaced, and the state.
//! Afterwards one reader counts what lies in both files.

mod bare;
mod consul;
mod etcd;
mod rights;
mod shared;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use platctrl_bench::{Goal, Result, full_scale, hash, median, p99, ratio, raw, runs, same, text};
use platctrl_framework::environment::Environment;
use platctrl_framework::store::{Change, Key, Prefix, Store, Transaction, WatchEvent};
use platctrl_store_embedded::EmbeddedStore;

use bare::{Bare, Census, Writes};

const VALUE_BYTES: usize = 1_024;
/// Keys there before anything is measured; a multiple of 64.
const KEYS: usize = 10_240;
/// The file of an embedded store in its directory.
const FILE: &str = "store.redb";

fn main() -> ExitCode {
    match etcd::watch_if_told() {
        Ok(false) => {}
        Ok(true) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    }
    platctrl_bench::target("stores", || {
        if only("consul") {
            consul::run()?;
        }
        if only("etcd") {
            etcd::run()?;
        }
        if only("watchers") {
            etcd::watchers()?;
        }
        if only("rights") {
            rights::run()?;
        }
        if !only("embedded") {
            return Ok(());
        }
        commits("64-writers", 64, 16_384)?;
        commits("1-writer", 1, 512)?;
        put_to_event()?;
        shared::shared_commits()?;
        open_and_compact(if full_scale() { 1_000_000 } else { 100_000 })
    })
}

/// Whether a store is measured, or one part: all, unless `PLATCTRL_BENCH_STORE` names one.
fn only(store: &str) -> bool {
    std::env::var("PLATCTRL_BENCH_STORE").map_or(true, |only| only == store)
}

fn key(n: usize) -> String {
    format!("o/reality/bench.dev/widgets/default/widget-{n:07}")
}

fn value(n: usize, round: usize) -> String {
    text(hash(&[&n.to_le_bytes(), &round.to_le_bytes()]), VALUE_BYTES)
}

/// What writer `writer` of `writers` writes at its `turn`: every writer has keys of its own.
fn write_of(writers: usize, writer: usize, turn: usize) -> (String, String) {
    let each = KEYS / writers;
    let n = writer + writers * (turn % each);
    (key(n), value(n, 1 + turn / each))
}

/// All keys in an order that is not the engine's: objects are not made in the order of names.
fn scattered(keys: usize) -> Vec<usize> {
    (0..keys).map(|n| n * 7_919 % keys).collect()
}

fn temporary() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new()
        .prefix("platctrl-bench-")
        .tempdir()?)
}

fn executor() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.worker_threads(2).enable_all().build()?)
}

async fn load(store: &EmbeddedStore, keys: usize) -> Result<()> {
    let all = scattered(keys);
    for some in all.chunks(512) {
        let mut transaction = Transaction::new();
        for n in some {
            transaction = transaction.put(Key::new(key(*n))?, value(*n, 0));
        }
        store.commit(transaction).await?;
    }
    Ok(())
}

fn load_bare(bare: &mut Bare, keys: usize) -> Result<()> {
    let all = scattered(keys);
    for some in all.chunks(512) {
        let writes: Vec<_> = some.iter().map(|n| (key(*n), value(*n, 0))).collect();
        bare.commit_together(&writes)?;
    }
    Ok(())
}

/// Single-key commits per second, by tasks that each wait for one before the next.
fn ours(dir: &Path, writers: usize, commits: usize) -> Result<f64> {
    let executor = executor()?;
    let store = Arc::new(EmbeddedStore::open(dir, Environment::system())?);
    let rate = executor.block_on(async {
        load(&store, KEYS).await?;
        let started = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..writers {
            let store = Arc::clone(&store);
            tasks.spawn(async move {
                for turn in 0..commits / writers {
                    let (key, value) = write_of(writers, writer, turn);
                    let transaction = Transaction::new().put(Key::new(key)?, value);
                    store.commit(transaction).await?;
                }
                Ok(())
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended?.map_err(|error: Box<dyn std::error::Error + Send + Sync>| error)?;
        }
        Ok::<f64, Box<dyn std::error::Error + Send + Sync>>(
            commits as f64 / started.elapsed().as_secs_f64(),
        )
    })?;
    drop(store);
    Ok(rate)
}

/// The same writes by one thread on the engine, `writers` keys a transaction.
fn engine(path: &Path, writes: Writes, writers: usize, commits: usize) -> Result<f64> {
    let mut bare = Bare::create(path, writes)?;
    load_bare(&mut bare, KEYS)?;
    let started = Instant::now();
    for turn in 0..commits / writers {
        let batch: Vec<_> = (0..writers)
            .map(|writer| write_of(writers, writer, turn))
            .collect();
        bare.commit(&batch)?;
    }
    Ok(commits as f64 / started.elapsed().as_secs_f64())
}

fn commits(name: &str, writers: usize, commits: usize) -> Result<()> {
    let (mut store, mut alone, mut equal) = (Vec::new(), Vec::new(), Vec::new());
    let mut written: Option<(Census, Census, Census)> = None;
    for _ in 0..runs() {
        let dir = temporary()?;
        let (a, b) = (
            dir.path().join("records.redb"),
            dir.path().join("same.redb"),
        );
        store.push(ours(&dir.path().join("store"), writers, commits)?);
        alone.push(engine(&a, Writes::RecordsOnly, writers, commits)?);
        equal.push(engine(&b, Writes::LikeTheStore, writers, commits)?);
        let found = (
            Census::of(&dir.path().join("store").join(FILE))?,
            Census::of(&a)?,
            Census::of(&b)?,
        );
        same(
            "the content of the records",
            &found.0.content(),
            &found.1.content(),
        )?;
        same(
            "the content of the records",
            &found.0.content(),
            &found.2.content(),
        )?;
        // Rows end with each write to disk, so their number differs a little, their content not.
        let (ours, theirs) = (found.0.history_bytes as f64, found.2.history_bytes as f64);
        let close = (ours / theirs - 1.0).abs() < 0.03;
        same("that the history's bytes are within 3 %", &true, &close)?;
        written = Some(found);
    }
    if let Some((ours, alone, equal)) = written {
        println!("{name}: in the store {ours}");
        println!("{name}: in the engine, records alone {alone}");
        println!("{name}: in the engine, like the store {equal}");
    }
    let store = raw(&format!("{name}: store"), "commits/s", &store);
    let batch = format!("{name}: engine, {writers} a transaction");
    let alone = raw(&format!("{batch}, records alone"), "keys/s", &alone);
    let equal = raw(&format!("{batch}, like the store"), "keys/s", &equal);
    let goal = Goal::AtLeast(0.8);
    ratio(
        &format!("stores.embedded.{name}.same-records"),
        store / equal,
        goal,
    );
    ratio(
        &format!("stores.embedded.{name}.records-only"),
        store / alone,
        goal,
    );
    Ok(())
}

/// From before a put to its event at a watcher, and what the engine's commit alone takes of it.
fn put_to_event() -> Result<()> {
    const PUTS: usize = 300;
    let executor = executor()?;
    let (mut event_p50, mut event_p99, mut ack_p50, mut bare_p50) =
        (vec![], vec![], vec![], vec![]);
    for _ in 0..runs() {
        let dir = temporary()?;
        let store = EmbeddedStore::open(dir.path().join("store"), Environment::system())?;
        let (events, acks) = executor.block_on(async {
            load(&store, KEYS).await?;
            let begin = store.get(&[]).await?.revision;
            let mut watch = store.watch(Prefix::new("o/reality/")?, begin);
            let watcher = tokio::spawn(async move {
                let mut seen = Vec::new();
                while seen.len() < PUTS {
                    match watch.next().await {
                        Some(Ok(WatchEvent::Changes { changes, .. })) => {
                            let puts = changes.iter().filter(|c| matches!(c, Change::Put(_)));
                            seen.extend(puts.map(|_| Instant::now()));
                        }
                        Some(Ok(WatchEvent::Progress(_))) => {}
                        other => return Err(format!("the watch said {other:?}")),
                    }
                }
                Ok(seen)
            });
            let mut spans = Vec::new();
            for turn in 0..PUTS {
                let (key, value) = write_of(1, 0, turn);
                let begun = Instant::now();
                store
                    .commit(Transaction::new().put(Key::new(key)?, value))
                    .await?;
                spans.push((begun, begun.elapsed()));
            }
            let seen = watcher.await??;
            let events: Vec<f64> = spans
                .iter()
                .zip(seen)
                .map(|((begun, _), seen)| seen.saturating_duration_since(*begun).as_secs_f64())
                .collect();
            let acks: Vec<f64> = spans.iter().map(|(_, ack)| ack.as_secs_f64()).collect();
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((events, acks))
        })?;
        drop(store);
        event_p50.push(median(&events) * 1e3);
        event_p99.push(p99(&events) * 1e3);
        ack_p50.push(median(&acks) * 1e3);
        let path = dir.path().join("same.redb");
        let mut bare = Bare::create(&path, Writes::LikeTheStore)?;
        load_bare(&mut bare, KEYS)?;
        let mut spans = Vec::new();
        for turn in 0..PUTS {
            let write = write_of(1, 0, turn);
            let begun = Instant::now();
            bare.commit(&[write])?;
            spans.push(begun.elapsed().as_secs_f64());
        }
        bare_p50.push(median(&spans) * 1e3);
        drop(bare);
        let ours = Census::of(&dir.path().join("store").join(FILE))?.content();
        same(
            "the content of the records",
            &ours,
            &Census::of(&path)?.content(),
        )?;
    }
    let event = raw("put to event: store, p50", "ms", &event_p50);
    raw("put to event: store, p99", "ms", &event_p99);
    raw("put to answer: store, p50", "ms", &ack_p50);
    let bare = raw("one commit: engine, like the store, p50", "ms", &bare_p50);
    ratio(
        "stores.embedded.put-to-event-overhead-ms.p50",
        event - bare,
        Goal::AtMost(0.2),
    );
    Ok(())
}

fn open_and_compact(keys: usize) -> Result<()> {
    let executor = executor()?;
    let dir = temporary()?;
    let (path, file) = (
        dir.path().join("store"),
        dir.path().join("store").join(FILE),
    );
    let store = EmbeddedStore::open(&path, Environment::system())?;
    executor.block_on(load(&store, keys))?;
    drop(store);
    let mut took = Vec::new();
    for _ in 0..runs() {
        let begun = Instant::now();
        let store = EmbeddedStore::open(&path, Environment::system())?;
        took.push(begun.elapsed().as_secs_f64());
        drop(store);
    }
    let open = raw(
        &format!("open after an orderly end, {keys} keys"),
        "s",
        &took,
    );
    // The goal is two seconds for a million keys.
    let goal = Goal::AtMost(2.0 * keys as f64 / 1e6);
    ratio(
        &format!("stores.embedded.open-seconds.{keys}-keys"),
        open,
        goal,
    );

    let store = EmbeddedStore::open(&path, Environment::system())?;
    let before = std::fs::metadata(&file)?.len();
    executor.block_on(async {
        let newest = store.get(&[]).await?.revision;
        store.forget_history_before(newest).await?;
        store.compact().await
    })?;
    drop(store);
    let after = std::fs::metadata(&file)?.len();
    let live: usize = (0..keys).map(|n| key(n).len() + VALUE_BYTES).sum();

    let bare_path = dir.path().join("records.redb");
    let mut bare = Bare::create(&bare_path, Writes::RecordsOnly)?;
    load_bare(&mut bare, keys)?;
    bare.compact()?;
    drop(bare);
    let bare = std::fs::metadata(&bare_path)?.len();
    let (ours, theirs) = (
        Census::of(&file)?.content(),
        Census::of(&bare_path)?.content(),
    );
    same("the content of the records", &ours, &theirs)?;
    let mib = |bytes: u64| [bytes as f64 / f64::from(1 << 20)];
    raw("live data", "MiB", &mib(live as u64));
    raw("file: store, as loaded", "MiB", &mib(before));
    raw(
        "file: store, history forgotten, compacted",
        "MiB",
        &mib(after),
    );
    raw("file: engine, records alone, compacted", "MiB", &mib(bare));
    let goal = Goal::AtMost(2.0);
    ratio(
        "stores.embedded.file-per-live-data",
        after as f64 / live as f64,
        goal,
    );
    Ok(())
}
