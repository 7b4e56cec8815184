//! Copies of a store: made while it runs, checked, and made a store again.

use std::path::Path;

use platctrl_framework::store::Revision;
use redb::{Builder, Database};

use crate::codec::{Segment, Stored, to_key};
use crate::engine::{Engine, FILE, HISTORY, LEASED, RECORDS, Site, View, plain_medium, publish};
use crate::error::{EngineError, OpenError, ReadError};
use crate::lock::DirectoryLock;
use crate::shared::Shared;

/// A copy is written in steps of about this size.
const STEP_BYTES: usize = 4 * 1024 * 1024;

/// What a store, or a copy of one, holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The newest revision.
    pub revision: Revision,
    /// The oldest revision that can be read and watched from.
    pub oldest: Revision,
    /// How many keys there are.
    pub keys: u64,
    /// The bytes of their values.
    pub value_bytes: u64,
}

/// Reads every byte of the store in `dir`, which no process may have open, and compares it with
/// its checksums.
///
/// # Errors
/// [`OpenError::Damaged`] says what was found. Apart from the repair that opening after a crash
/// makes too, the file is not changed.
pub fn check(dir: impl AsRef<Path>) -> Result<Report, OpenError> {
    let dir = dir.as_ref();
    let _lock = DirectoryLock::take(dir)?;
    check_file(&dir.join(FILE))
}

/// Reads every byte of a [backup](crate::EmbeddedStore::backup) and compares it with its checksums.
///
/// # Errors
/// [`OpenError::Damaged`] says what was found.
pub fn check_backup(backup: impl AsRef<Path>) -> Result<Report, OpenError> {
    check_file(backup.as_ref())
}

/// Makes a store in `dir`, which must hold none, of the copy `backup`, which is checked first.
///
/// # Errors
/// [`OpenError`]: the copy is damaged, `dir` has a store already or is in use, or the file system
/// refuses; no store is left in `dir` then.
pub fn restore(backup: impl AsRef<Path>, dir: impl AsRef<Path>) -> Result<Report, OpenError> {
    let (backup, dir) = (backup.as_ref(), dir.as_ref());
    crate::make_directory(dir)?;
    let _lock = DirectoryLock::take(dir)?;
    let path = dir.join(FILE);
    refuse_existing(&path)?;
    let unfinished = path.with_extension("new");
    let restored = std::fs::copy(backup, &unfinished)
        .map_err(OpenError::io("copy", backup))
        .and_then(|_| check_file(&unfinished))
        .and_then(|report| publish(&unfinished, &path).map(|()| report));
    if restored.is_err() {
        // The error that counts is the one above.
        let _ = std::fs::remove_file(&unfinished);
    }
    // The damage is in the copy the caller named, not in ours of it.
    restored.map_err(|error| match error {
        OpenError::Damaged { detail, .. } => OpenError::Damaged {
            path: backup.to_owned(),
            detail,
        },
        other => other,
    })
}

pub(crate) fn backup(shared: &Shared, path: &Path) -> Result<Report, OpenError> {
    refuse_existing(path)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".unfinished");
    let unfinished = path.with_file_name(name);
    // Left by a backup that was interrupted; nothing else has that name.
    let _ = std::fs::remove_file(&unfinished);
    let copied = shared
        .read_blocking(|view| copy(view, &unfinished).map_err(ReadError::Engine))
        .map_err(|error| {
            OpenError::io("write", &unfinished)(std::io::Error::other(error.to_string()))
        })
        .and_then(|report| publish(&unfinished, path).map(|()| report));
    if copied.is_err() {
        // The error that counts is the one above.
        let _ = std::fs::remove_file(&unfinished);
    }
    copied
}

fn refuse_existing(path: &Path) -> Result<(), OpenError> {
    match path.try_exists() {
        Ok(false) => Ok(()),
        Ok(true) => Err(OpenError::Exists {
            path: path.to_owned(),
        }),
        Err(error) => Err(OpenError::io("look at", path)(error)),
    }
}

fn copy(view: &View, path: &Path) -> Result<Report, EngineError> {
    let target = Builder::new()
        .set_cache_size(8 * 1024 * 1024)
        .create(path)?;
    let mut report = Report {
        revision: view.state.revision,
        oldest: view.state.oldest,
        keys: 0,
        value_bytes: 0,
    };
    copy_table(view.records.range::<&[u8]>(..)?, |step| {
        write_step(&target, |transaction| {
            let mut table = transaction.open_table(RECORDS)?;
            for (key, value) in step {
                // A damaged record must not enter a copy that claims to be good.
                report.value_bytes += Stored::decode(key, value)?.value.len() as u64;
                report.keys += 1;
                table.insert(key.as_slice(), value.as_slice())?;
            }
            Ok(())
        })
    })?;
    let rows = view.history.range::<u64>(..)?;
    let rows = rows.map(|row| row.map(|(first, bytes)| (first.value(), bytes.value().to_vec())));
    in_steps(
        rows,
        |(_, bytes)| bytes.len(),
        |step| {
            write_step(&target, |transaction| {
                let mut table = transaction.open_table(HISTORY)?;
                for (first, bytes) in step {
                    Segment::decode(*first, bytes)?;
                    table.insert(first, bytes.as_slice())?;
                }
                Ok(())
            })
        },
    )?;
    let rows = view.leased.range::<&[u8]>(..)?;
    let rows = rows.map(|row| row.map(|(row, _)| row.value().to_vec()));
    in_steps(rows, Vec::len, |step| {
        write_step(&target, |transaction| {
            let mut table = transaction.open_table(LEASED)?;
            for row in step {
                table.insert(row.as_slice(), ())?;
            }
            Ok(())
        })
    })?;
    // The format comes last: a copy without it is no store.
    Engine { database: target }.initialise(view.state)?;
    Ok(report)
}

type Row = (Vec<u8>, Vec<u8>);

fn copy_table(
    range: redb::Range<'_, &'static [u8], &'static [u8]>,
    write: impl FnMut(&[Row]) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let rows =
        range.map(|row| row.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())));
    in_steps(rows, |(key, value)| key.len() + value.len(), write)
}

fn in_steps<T>(
    rows: impl Iterator<Item = Result<T, redb::StorageError>>,
    size: impl Fn(&T) -> usize,
    mut write: impl FnMut(&[T]) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let (mut step, mut bytes) = (Vec::new(), 0);
    for row in rows {
        let row = row?;
        bytes += size(&row);
        step.push(row);
        if bytes >= STEP_BYTES {
            write(&step)?;
            step.clear();
            bytes = 0;
        }
    }
    write(&step)
}

fn write_step(
    target: &Database,
    write: impl FnOnce(&redb::WriteTransaction) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let mut transaction = target.begin_write()?;
    transaction.set_two_phase_commit(true);
    write(&transaction)?;
    transaction.commit()?;
    Ok(())
}

fn check_file(path: &Path) -> Result<Report, OpenError> {
    let site = Site {
        path: path.to_owned(),
        cache_bytes: 16 * 1024 * 1024,
        medium: plain_medium(),
    };
    site.guarded(|| check_site(&site))
}

fn check_site(site: &Site) -> Result<Report, OpenError> {
    let (mut engine, _) = site.open()?;
    match engine.database.check_integrity() {
        Ok(true) => {}
        Ok(false) => return Err(site.damaged("the engine's own structures had to be repaired")),
        Err(error) => return Err(site.explain(error.into())),
    }
    walk(&engine).map_err(|error| site.explain(error))
}

/// Reads everything there is.
fn walk(engine: &Engine) -> Result<Report, EngineError> {
    let view = View::new(engine)?;
    let mut report = Report {
        revision: view.state.revision,
        oldest: view.state.oldest,
        keys: 0,
        value_bytes: 0,
    };
    for entry in view.records.range::<&[u8]>(..)? {
        let (key, value) = entry?;
        let stored = Stored::decode(key.value(), value.value())?;
        to_key(key.value())?;
        if stored.modified > view.state.revision {
            return Err(EngineError::damaged("a record is newer than the store"));
        }
        report.keys += 1;
        report.value_bytes += stored.value.len() as u64;
    }
    let mut expected = view.state.oldest;
    for entry in view.history.range::<u64>(..)? {
        let (first, bytes) = entry?;
        let segment = Segment::decode(first.value(), bytes.value())?;
        segment.for_each(|revision, _| {
            if revision > expected.next() {
                return Err(EngineError::damaged(format!(
                    "the history has a gap after revision {expected}"
                )));
            }
            expected = expected.max(revision);
            Ok(true)
        })?;
    }
    if expected != view.state.revision {
        return Err(EngineError::damaged("the history ends too early"));
    }
    Ok(report)
}
