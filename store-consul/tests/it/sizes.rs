//! The largest records: Consul's own limit leaves room for them only when they are packed.

use std::io::Write;
use std::process::{Command, Stdio};

use platctrl_framework::store::{Change, Store, StoreError, Transaction, WatchEvent};

use crate::helpers::{key, list, next_news, prefix, put, run, value};
use crate::server::{Cluster, Plan, random, root};

/// As contract and framework have it.
const LARGEST: usize = 384 * 1024;

/// JSON of a size, of text that says as much as text can.
fn dense(size: usize) -> String {
    let mut text = String::from("{\"data\":\"");
    let mut state = random() | 1;
    while text.len() < size - 6 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let number = u32::try_from((state >> 20) & 0xffff).unwrap();
        let next = if state & 1 == 0 {
            char::from_u32(0x80 + number % 0x780)
        } else {
            char::from_u32(0x5d + number % 0x22)
        };
        text.push(next.unwrap());
    }
    while text.len() < size - 2 {
        text.push('x');
    }
    text.push_str("\"}");
    text
}

fn gunzip(packed: &[u8]) -> Vec<u8> {
    let mut child = Command::new("gunzip")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let packed = packed.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&packed));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn a_record_of_the_largest_size_is_kept_beside_others_and_read_with_common_tools() {
    let cluster = Cluster::start(Plan::one());
    run(async {
        let root = root();
        let store = cluster.store(&root).await;
        assert_eq!(store.capabilities().limits.max_value_bytes, LARGEST);
        let ledger = "o/ledger/example.dev/widgets/default/large";
        let name = "o/intent/example.dev/widgets/default/large";
        let start = put(&store, ledger, "0").await;
        let mut watch = store.watch(prefix("o/"), start);
        let text = dense(LARGEST);
        assert_eq!(text.len(), LARGEST);
        // As a controller writes it: under compare, with the record of its owner.
        let transaction = Transaction::new()
            .require_absent(key(name))
            .require_unchanged(key(ledger), Some(start))
            .put(key(name), text.clone())
            .put(key(ledger), "1".repeat(8_000));
        let revision = store.commit(transaction).await.unwrap();
        assert!(value(&store, name).await.as_deref() == Some(text.as_str()));
        let (records, _) = list(&store, "o/").await.unwrap();
        assert_eq!(records.len(), 2);
        assert!(records[0].value == text.as_bytes());
        let Some(Ok(WatchEvent::Changes { changes, .. })) = next_news(&mut watch).await else {
            panic!("no change");
        };
        let told = changes.iter().find_map(|change| match change {
            Change::Put(record) if record.key == key(name) => Some(record.value.clone()),
            _ => None,
        });
        assert!(told.is_some_and(|told| told == text.as_bytes()));

        // What a person sees.
        let (_, raw) = cluster
            .any()
            .ask_bytes("", "GET", &format!("/v1/kv/{root}/{name}?raw"), "")
            .unwrap();
        assert!(gunzip(&raw) == text.as_bytes());
        // Smaller ones are plain.
        let plain = dense(380_000);
        let replace = Transaction::new()
            .require_unchanged(key(name), Some(revision))
            .put(key(name), plain.clone());
        store.commit(replace).await.unwrap();
        let (_, raw) = cluster
            .any()
            .ask_bytes("", "GET", &format!("/v1/kv/{root}/{name}?raw"), "")
            .unwrap();
        assert!(raw == plain.as_bytes());
        assert!(value(&store, name).await.as_deref() == Some(plain.as_str()));
    });
}

#[test]
fn what_no_packing_makes_small_enough_is_refused_by_name_and_leaves_nothing() {
    let cluster = Cluster::start(Plan::one());
    run(async {
        let store = cluster.store(&root()).await;
        let mut state = random() | 1;
        let noise: Vec<u8> = (0..LARGEST)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 24) as u8
            })
            .collect();
        let refused = store
            .commit(Transaction::new().put(key("o/noise"), noise))
            .await;
        match refused {
            Err(StoreError::TooLarge { what, size, limit }) => {
                assert!(what.contains(&cluster.servers[0].address), "{what}");
                assert!(size > limit && limit == 512 * 1024, "{size} {limit}");
            }
            other => panic!("{other:?}"),
        }
        let outcome = store
            .commit(Transaction::new().put(key("o/over"), "x".repeat(LARGEST + 1)))
            .await;
        assert!(
            matches!(outcome, Err(StoreError::TooLarge { limit: LARGEST, .. })),
            "{outcome:?}"
        );
        assert_eq!(list(&store, "o/").await.unwrap().0.len(), 0);
    });
}
