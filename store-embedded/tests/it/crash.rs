//! A process that commits is killed at random moments: what it was told happened is there after
//! reopening, and nothing is half there.
//!
//! The process is this test binary, run again with an environment variable set.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use platctrl_framework::store::{Store, Transaction};

use crate::helpers::{dump, key, open, text};

const CHILD_DIR: &str = "PLATCTRL_TEST_CRASH_DIR";
const WRITERS: u64 = 8;

/// Kills its process if the test ends early.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn child(dir: &Path, failpoints: &str) -> Killed {
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "crash::child_commits_until_it_is_killed",
            "--exact",
            "--nocapture",
        ])
        .env(CHILD_DIR, dir)
        .env("PLATCTRL_FAILPOINTS", failpoints)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Killed(child)
}

/// Not a test by itself: the process that is killed. Each writer raises its own two keys, always
/// together, and reports each acknowledged number.
#[test]
fn child_commits_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = std::sync::Arc::new(open(Path::new(&dir)));
        let writers: Vec<tokio::task::JoinHandle<()>> = (0..WRITERS)
            .map(|writer| {
                let store = store.clone();
                tokio::spawn(async move {
                    let names = [format!("a/{writer}"), format!("z/{writer}")];
                    let found = store.get(&[key(&names[0])]).await.unwrap();
                    let found = found.records[0].as_ref().map(text);
                    let mut number: u64 = found.map_or(0, |text| number_in(&text));
                    loop {
                        number += 1;
                        // Some are long, so that files grow and pages split.
                        let long = "x".repeat((number * 37 % 3_000) as usize);
                        let value = format!("{number} {long}");
                        let both = Transaction::new()
                            .put(key(&names[0]), value.clone())
                            .put(key(&names[1]), value);
                        let revision = store.commit(both).await.unwrap();
                        println!("acked {writer} {number} {revision}");
                    }
                })
            })
            .collect();
        println!("ready");
        // None of them ends by itself.
        futures::future::select_all(writers).await.0.unwrap();
    });
}

fn number_in(text: &str) -> u64 {
    text.split(' ').next().unwrap().parse().unwrap()
}

/// What the killed process had been told: per writer, the number and its revision.
fn acked(child: &mut Killed, kill_after: Option<Duration>) -> BTreeMap<u64, (u64, u64)> {
    let output = child.0.stdout.take().unwrap();
    let mut lines = BufReader::new(output).lines();
    let ready = lines
        .by_ref()
        .map_while(Result::ok)
        .any(|line| line.ends_with("ready"));
    assert!(ready, "the child opens the store");
    let pid = child.0.id();
    let killer = kill_after.map(|wait| {
        std::thread::spawn(move || {
            // The moment is the random part of this test; nothing is waited for.
            std::thread::sleep(wait);
            let killed = Command::new("kill").args(["-9", &pid.to_string()]).status();
            assert!(killed.unwrap().success());
        })
    });
    let mut acked = BTreeMap::new();
    for line in lines.map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        if let ["acked", writer, number, revision] = words[..]
            && let (Ok(writer), Ok(number), Ok(revision)) =
                (writer.parse(), number.parse(), revision.parse())
        {
            acked.insert(writer, (number, revision));
        }
    }
    let status = child.0.wait().unwrap();
    assert!(!status.success(), "the child died: {status}");
    if let Some(killer) = killer {
        killer.join().unwrap();
    }
    acked
}

fn verify(dir: &Path, acked: &BTreeMap<u64, (u64, u64)>) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = open(dir);
        let (records, newest) = dump(&store, None, 1000).await;
        let records: BTreeMap<String, _> = records
            .into_iter()
            .map(|record| (record.key.to_string(), record))
            .collect();
        for writer in 0..WRITERS {
            let a = records.get(&format!("a/{writer}"));
            let z = records.get(&format!("z/{writer}"));
            assert_eq!(
                a.map(|r| (&r.value, r.modified)),
                z.map(|r| (&r.value, r.modified)),
                "both keys or none"
            );
            if let Some((number, revision)) = acked.get(&writer) {
                let a = a.expect("an acknowledged key is there");
                assert!(
                    number_in(&text(a)) >= *number,
                    "acknowledged {number} is there"
                );
                assert!(newest.as_u64() >= *revision);
                if number_in(&text(a)) == *number {
                    assert_eq!(a.modified.as_u64(), *revision);
                }
            }
        }
    });
    acked.len()
}

#[test]
fn killed_at_random_moments_nothing_acknowledged_is_lost_and_nothing_is_half_there() {
    let rounds = match std::env::var("PLATCTRL_TEST_SCALE").as_deref() {
        Ok("full") => 500,
        _ => 12,
    };
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    let mut seed = u64::from(std::process::id());
    for round in 0..rounds {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let wait = Duration::from_millis((seed >> 33) % 120);
        let mut child = child(dir.path(), "");
        let acked = acked(&mut child, Some(wait));
        acknowledged += verify(dir.path(), &acked);
        if round % 4 == 3 {
            platctrl_store_embedded::check(dir.path()).unwrap();
        }
    }
    assert!(acknowledged > 0, "the fault happened under load");
}

#[test]
fn dying_just_before_and_just_after_the_durable_write_loses_nothing() {
    for (place, passages) in [("before", 3), ("after", 3), ("before", 40), ("after", 40)] {
        let dir = tempfile::tempdir().unwrap();
        let fault = format!("store.embedded.{place}-commit=after:{passages}:abort");
        let mut child = child(dir.path(), &fault);
        let acked = acked(&mut child, None);
        verify(dir.path(), &acked);
        assert!(passages < 40 || !acked.is_empty());
    }
}

#[test]
fn a_second_process_is_refused_and_names_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = child(dir.path(), "");
    let output = child.0.stdout.take().unwrap();
    let mut lines = BufReader::new(output).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.ends_with("ready")));
    let environment = platctrl_framework::environment::Environment::system();
    let error = platctrl_store_embedded::EmbeddedStore::open(dir.path(), environment).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&format!("pid {}", child.0.id())), "{text}");
    assert!(text.contains(&dir.path().display().to_string()), "{text}");
    drop(child);
    // However the first died, the directory is free.
    open(dir.path());
}
