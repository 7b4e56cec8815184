//! The store on a disk that fails: a backend that refuses writes, cuts them short, fails to sync,
//! or loses at a power cut whatever was not synced.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use platctrl_framework::environment::Environment;
use platctrl_framework::store::{Key, ListRequest, Prefix, Store, StoreError, Transaction};
use redb::StorageBackend;

use crate::engine::Medium;
use crate::{EmbeddedStore, Health, Options};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// A write is refused with this errno.
    Write(i32),
    /// Half of a write lands, then the error.
    ShortWrite,
    /// A sync fails, and what it should have written is lost though it stays readable.
    Sync,
    /// Everything fails from now on.
    PowerCut,
}

#[derive(Debug)]
enum Unsynced {
    Write(u64, Vec<u8>),
    Length(u64),
}

#[derive(Debug, Default)]
struct Disk {
    durable: Vec<u8>,
    unsynced: Vec<Unsynced>,
    /// What fails, after how many operations of its kind, and how often.
    fault: Option<(Fault, usize, usize)>,
    happened: usize,
}

type SharedDisk = Arc<Mutex<Disk>>;

#[derive(Debug)]
struct FaultyFile {
    file: File,
    disk: SharedDisk,
}

fn medium(disk: &SharedDisk) -> Medium {
    let disk = Arc::clone(disk);
    Arc::new(move |file| {
        let disk = Arc::clone(&disk);
        Ok(Box::new(FaultyFile { file, disk }))
    })
}

impl Disk {
    /// Whether an operation fails now.
    fn fails(&mut self, is_sync: bool) -> Option<Fault> {
        let (fault, after, times) = self.fault.as_mut()?;
        match fault {
            Fault::Write(_) | Fault::ShortWrite if is_sync => return None,
            Fault::Sync if !is_sync => return None,
            _ => {}
        }
        if *after > 0 {
            *after -= 1;
            return None;
        }
        if *times == 0 {
            return None;
        }
        *times -= 1;
        self.happened += 1;
        Some(*fault)
    }

    fn apply(image: &mut Vec<u8>, change: &Unsynced) {
        match change {
            Unsynced::Length(length) => image.resize(*length as usize, 0),
            Unsynced::Write(offset, data) => {
                let end = *offset as usize + data.len();
                if image.len() < end {
                    image.resize(end, 0);
                }
                image[*offset as usize..end].copy_from_slice(data);
            }
        }
    }

    /// What the disk holds after a power cut: what was synced, and any part of the rest.
    fn after_power_cut(&self, mut random: impl FnMut() -> u64) -> Vec<u8> {
        let mut image = self.durable.clone();
        for change in &self.unsynced {
            match change {
                Unsynced::Length(_) => Self::apply(&mut image, change),
                Unsynced::Write(offset, data) => {
                    // A disk writes sectors whole, in any order.
                    for (i, sector) in data.chunks(512).enumerate() {
                        if random().is_multiple_of(2) {
                            let at = offset + i as u64 * 512;
                            Self::apply(&mut image, &Unsynced::Write(at, sector.to_vec()));
                        }
                    }
                }
            }
        }
        image
    }
}

fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

impl StorageBackend for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap();
        if let Some(fault) = disk.fails(false) {
            return Err(errno(if let Fault::Write(code) = fault {
                code
            } else {
                EIO
            }));
        }
        disk.unsynced.push(Unsynced::Length(len));
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap();
        let disk = &mut *disk;
        if let Some(fault) = disk.fails(true) {
            if fault == Fault::Sync {
                disk.unsynced.clear();
            }
            return Err(errno(EIO));
        }
        for change in disk.unsynced.drain(..) {
            Disk::apply(&mut disk.durable, &change);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap();
        let (data, outcome) = match disk.fails(false) {
            None => (data, Ok(())),
            Some(Fault::Write(code)) => return Err(errno(code)),
            Some(Fault::ShortWrite) => (&data[..data.len() / 2], Err(errno(EIO))),
            Some(Fault::Sync | Fault::PowerCut) => return Err(errno(EIO)),
        };
        disk.unsynced.push(Unsynced::Write(offset, data.to_vec()));
        self.file.write_all_at(data, offset)?;
        outcome
    }
}

fn open(dir: &Path, disk: &SharedDisk) -> EmbeddedStore {
    let environment = Environment::system();
    EmbeddedStore::open_on(dir, environment, Options::default(), medium(disk)).unwrap()
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// Two keys that must always be equal, and some bulk so that several pages are written.
fn step(number: u64) -> Transaction {
    let mut transaction = Transaction::new()
        .put(key("a"), number.to_string())
        .put(key("z"), number.to_string());
    for i in 0..4 {
        let name = format!("m/{}", (number * 7 + i * 13) % 50);
        transaction = transaction.put(key(&name), vec![number as u8; 900]);
    }
    transaction
}

/// The number that both keys hold.
async fn number(store: &EmbeddedStore) -> Result<u64, StoreError> {
    let snapshot = store.get(&[key("a"), key("z")]).await?;
    let text = |i: usize| {
        let record = snapshot.records[i].as_ref();
        record.map_or(0, |r| String::from_utf8_lossy(&r.value).parse().unwrap())
    };
    assert_eq!(text(0), text(1), "nothing is half there");
    Ok(text(0))
}

async fn everything(store: &EmbeddedStore) -> BTreeMap<String, Vec<u8>> {
    let page = store.list(&ListRequest::new(Prefix::all())).await.unwrap();
    assert!(!page.more);
    let pair = |r: &platctrl_framework::store::Record| (r.key.to_string(), r.value.to_vec());
    page.records.iter().map(pair).collect()
}

async fn fail_everywhere(fault: Fault) {
    let mut happened = 0;
    for after in 0..40 {
        let dir = tempfile::tempdir().unwrap();
        let disk = SharedDisk::default();
        let store = open(dir.path(), &disk);
        for i in 1..=3 {
            store.commit(step(i)).await.unwrap();
        }
        disk.lock().unwrap().fault = Some((fault, after, 1));
        let mut acked = 3;
        for i in 4..=8 {
            let seen = match store.commit(step(i)).await {
                Ok(_) => i..=i,
                Err(StoreError::Unavailable { .. }) => acked..=acked,
                Err(StoreError::Unknown { .. }) => acked..=i,
                Err(other) => panic!("{other}"),
            };
            // Reads work again by themselves once the file is open again.
            let now = number(&store).await.unwrap();
            assert!(
                seen.contains(&now),
                "{fault:?} after {after}: {now} not in {seen:?}"
            );
            acked = now;
        }
        happened += disk.lock().unwrap().happened;
        disk.lock().unwrap().fault = None;
        store.commit(step(9)).await.unwrap();
        assert_eq!(store.health(), Health::Writing);
        let live = everything(&store).await;
        drop(store);

        // Whatever is lost by a power cut now, nothing acknowledged is.
        let image = disk.lock().unwrap().after_power_cut(|| 1);
        std::fs::write(dir.path().join(crate::engine::FILE), image).unwrap();
        let store = EmbeddedStore::open(dir.path(), Environment::system()).unwrap();
        assert_eq!(everything(&store).await, live, "{fault:?} after {after}");
        drop(store);
        crate::check(dir.path()).unwrap();
    }
    assert!(happened >= 10, "the fault happened {happened} times");
}

#[tokio::test]
async fn a_write_refused_for_lack_of_space_is_typed_and_nothing_is_lost_or_half_there() {
    fail_everywhere(Fault::Write(ENOSPC)).await;
}

#[tokio::test]
async fn a_write_that_fails_is_typed_and_nothing_is_lost_or_half_there() {
    fail_everywhere(Fault::Write(EIO)).await;
}

#[tokio::test]
async fn a_write_cut_short_is_typed_and_nothing_is_lost_or_half_there() {
    fail_everywhere(Fault::ShortWrite).await;
}

#[tokio::test]
async fn a_sync_that_fails_is_typed_and_nothing_is_lost_or_half_there() {
    fail_everywhere(Fault::Sync).await;
}

#[tokio::test]
async fn a_power_cut_loses_nothing_acknowledged_whatever_part_of_the_rest_was_written() {
    let rounds = match std::env::var("PLATCTRL_TEST_SCALE").as_deref() {
        Ok("full") => 2_000,
        _ => 60,
    };
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed >> 11
    };
    let mut cut = 0;
    for round in 0..rounds {
        let dir = tempfile::tempdir().unwrap();
        let disk = SharedDisk::default();
        let store = open(dir.path(), &disk);
        let (mut acked, mut tried) = (0, 0);
        let after = (random() % 120) as usize;
        disk.lock().unwrap().fault = Some((Fault::PowerCut, after, usize::MAX));
        while tried < 40 {
            tried += 1;
            match store.commit(step(tried)).await {
                Ok(_) => acked = tried,
                Err(_) => break,
            }
        }
        drop(store);
        let image = {
            let disk = disk.lock().unwrap();
            cut += usize::from(disk.happened > 0);
            disk.after_power_cut(&mut random)
        };
        std::fs::write(dir.path().join(crate::engine::FILE), image).unwrap();
        let store = EmbeddedStore::open(dir.path(), Environment::system()).unwrap();
        let found = number(&store).await.unwrap();
        assert!(
            (acked..=tried).contains(&found),
            "round {round}: {acked} {found} {tried}"
        );
        store.commit(step(tried + 1)).await.unwrap();
        drop(store);
        crate::check(dir.path()).unwrap();
    }
    assert!(cut > rounds / 2, "the power was cut {cut} times");
}
