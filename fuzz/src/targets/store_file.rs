//! The file of the embedded store, damaged.
//!
//! An input is a list of damages to the file of a small store: bytes that are changed, stretches
//! that are zeroed, moved or cut off. What opens then must be the store as it was after one of
//! its commits: refused or right, never something else, and never a panic.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use platctrl_framework::environment::{Clock, Environment};
use platctrl_framework::store::{
    Key, ListRequest, Prefix, Revision, Store, StoreError, Transaction,
};
use platctrl_store_embedded::{EmbeddedStore, check};

use super::Target;

pub(super) const STORE_FILE: Target = Target {
    name: "store_file",
    run: store_file,
    longest: 64,
    words: &[],
};

/// The name of the file in a store's directory.
const FILE: &str = "store.redb";
/// Damages of one input.
const DAMAGES: usize = 8;

type Content = BTreeMap<String, Vec<u8>>;

/// A store whose every state is known.
struct Sample {
    file: Vec<u8>,
    /// Where bytes are that are not zero: damage elsewhere is rarely seen.
    written: Vec<usize>,
    states: BTreeMap<Revision, Content>,
}

/// A clock that stands still, so that the sample is the same in every process.
struct Still;

impl Clock for Still {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::UNIX_EPOCH
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

fn environment() -> Environment {
    Environment::seeded(Arc::new(Still), 1)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

fn sample() -> &'static Sample {
    static SAMPLE: OnceLock<Sample> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let mut states = BTreeMap::new();
        runtime().block_on(async {
            let store = EmbeddedStore::open(dir.path(), environment()).expect("a new store");
            let mut content = Content::new();
            states.insert(Revision::ZERO, content.clone());
            for step in 0..40_u32 {
                let name = format!("o/intent/platctrl.dev/nodes/n{}", step % 17);
                let key = Key::new(&name).expect("a constant that is a valid key");
                let transaction = if step % 5 == 4 {
                    content.remove(&name);
                    Transaction::new().delete(key)
                } else {
                    let value = format!("{step}:")
                        .repeat(1 + step as usize % 60)
                        .into_bytes();
                    content.insert(name, value.clone());
                    Transaction::new().put(key, value)
                };
                let revision = store.commit(transaction).await.expect("a small commit");
                states.insert(revision, content.clone());
            }
        });
        let file = std::fs::read(dir.path().join(FILE)).expect("the store's file");
        let written = (0..file.len()).filter(|&at| file[at] != 0).collect();
        Sample {
            file,
            written,
            states,
        }
    })
}

fn damage(file: &mut Vec<u8>, written: &[usize], input: &[u8]) {
    for order in input.chunks(8).take(DAMAGES) {
        let mut bytes = [0; 8];
        bytes[..order.len()].copy_from_slice(order);
        let place = u32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize;
        let at = if bytes[0] & 0x80 == 0 {
            written[place % written.len()]
        } else {
            place % file.len().max(1)
        };
        if at >= file.len() {
            continue;
        }
        let length = 1 + usize::from(bytes[6]) * 16;
        let end = (at + length).min(file.len());
        match bytes[0] % 6 {
            0 => file[at] ^= 1 << (bytes[5] % 8),
            1 => file[at] = bytes[5],
            2 => file[at..end].fill(bytes[5]),
            3 => file.truncate(at),
            4 => {
                let from = usize::from(u16::from_le_bytes([bytes[5], bytes[7]])) * 64;
                let from = from % file.len();
                let to = (from + (end - at)).min(file.len());
                let at = at.min(file.len() - (to - from));
                file.copy_within(from..to, at);
            }
            // A page that was never written.
            _ => {
                let start = at / 4096 * 4096;
                let end = (start + 4096).min(file.len());
                file[start..end].fill(0);
            }
        }
    }
}

fn store_file(input: &[u8]) {
    let sample = sample();
    let mut file = sample.file.clone();
    damage(&mut file, &sample.written, input);
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join(FILE), &file).expect("a file");
    judge(dir.path(), sample);
}

fn judge(dir: &Path, sample: &Sample) {
    // It changes nothing, and says the same as opening does or more.
    let checked = check(dir);
    let opened = EmbeddedStore::open(dir, environment());
    let store = match opened {
        Ok(store) => store,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let read = runtime().block_on(async {
        let mut request = ListRequest::new(Prefix::all());
        let mut content = Content::new();
        loop {
            let page = store.list(&request).await?;
            request.at = Some(page.revision);
            request.after = page.records.last().map(|record| record.key.clone());
            for record in &page.records {
                content.insert(record.key.to_string(), record.value.to_vec());
            }
            if !page.more {
                return Ok::<_, StoreError>((page.revision, content));
            }
        }
    });
    let (revision, content) = match read {
        Ok(read) => read,
        // Told, and nothing made up.
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let known = sample.states.get(&revision);
    assert!(
        known == Some(&content),
        "at {revision} (checked: {checked:?}) the store says {:?} and not {:?}",
        content.keys(),
        known.map(BTreeMap::keys)
    );
}
