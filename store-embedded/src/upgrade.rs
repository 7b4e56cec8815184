//! Brings a file of an older format to the one that this version writes.
//!
//! All steps happen in one transaction of the engine with the note of the new format: a crash or
//! a failure leaves the file as the older version wrote it, and that version can still open it.

use std::path::Path;

use redb::{ReadableDatabase as _, TableError, WriteTransaction};

use crate::codec::FORMAT;
use crate::engine::{Engine, META};
use crate::error::{EngineError, OpenError};

/// Turns one format into the next.
pub(crate) type Step = fn(&WriteTransaction) -> Result<(), EngineError>;

/// The step at position `n` turns format `n + 1` into `n + 2`.
pub(crate) const STEPS: [Step; FORMAT as usize - 1] = [];

/// Brings the file to the newest format that `steps` lead to.
pub(crate) fn upgrade(engine: &Engine, path: &Path, steps: &[Step]) -> Result<(), OpenError> {
    let damaged = |detail: String| OpenError::Damaged {
        path: path.to_owned(),
        detail,
    };
    let format = read(engine).map_err(|error| damaged(error.to_string()))?;
    let format = format.ok_or_else(|| damaged("it holds no store of ours".to_owned()))?;
    let format = <[u8; 4]>::try_from(format.as_slice())
        .map(u32::from_le_bytes)
        .map_err(|_| damaged("its format is no number".to_owned()))?;
    let newest = u32::try_from(steps.len())
        .unwrap_or(u32::MAX)
        .saturating_add(1);
    if format > newest {
        return Err(OpenError::NewerFormat {
            path: path.to_owned(),
            found: format,
            supported: newest,
        });
    }
    let done = format
        .checked_sub(1)
        .ok_or_else(|| damaged("its format is 0, which never was".to_owned()))?;
    let to_do = &steps[done as usize..];
    if to_do.is_empty() {
        return Ok(());
    }
    tracing::info!(path = %path.display(), from = format, to = newest, "upgrading the store's format");
    let run = || -> Result<(), EngineError> {
        let mut transaction = engine.database.begin_write()?;
        transaction.set_two_phase_commit(true);
        for step in to_do {
            step(&transaction)?;
        }
        transaction
            .open_table(META)?
            .insert("format", newest.to_le_bytes().as_slice())?;
        transaction.commit()?;
        Ok(())
    };
    run().map_err(|error| {
        OpenError::io("upgrade the format of", path)(std::io::Error::other(error.to_string()))
    })
}

fn read(engine: &Engine) -> Result<Option<Vec<u8>>, EngineError> {
    let transaction = engine.database.begin_read()?;
    let meta = match transaction.open_table(META) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        other => other?,
    };
    Ok(meta.get("format")?.map(|value| value.value().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::State;
    use crate::engine::{FILE, LEASED, Site, plain_medium};
    use platctrl_framework::store::Revision;
    use redb::ReadableTableMetadata as _;

    fn site(dir: &tempfile::TempDir) -> Site {
        Site {
            path: dir.path().join(FILE),
            cache_bytes: 1024 * 1024,
            medium: plain_medium(),
        }
    }

    fn note(transaction: &WriteTransaction, row: &[u8]) -> Result<(), EngineError> {
        transaction.open_table(LEASED)?.insert(row, ())?;
        Ok(())
    }

    fn first(transaction: &WriteTransaction) -> Result<(), EngineError> {
        note(transaction, b"first")
    }

    fn second(transaction: &WriteTransaction) -> Result<(), EngineError> {
        note(transaction, b"second")
    }

    fn fails(transaction: &WriteTransaction) -> Result<(), EngineError> {
        note(transaction, b"half")?;
        Err(EngineError::damaged("a row nobody expected"))
    }

    fn noted(engine: &Engine) -> (u64, u32) {
        let transaction = engine.database.begin_read().unwrap();
        let rows = transaction.open_table(LEASED).unwrap().len().unwrap();
        let format = read(engine).unwrap().unwrap();
        (rows, u32::from_le_bytes(format.try_into().unwrap()))
    }

    #[test]
    fn an_older_format_is_upgraded_step_by_step_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let site = site(&dir);
        site.create().unwrap();
        let (engine, _) = site.open().unwrap();
        upgrade(&engine, &site.path, &[first]).unwrap();
        assert_eq!(noted(&engine), (1, 2));
        // The first is not done again.
        upgrade(&engine, &site.path, &[fails, second]).unwrap();
        assert_eq!(noted(&engine), (2, 3));
        upgrade(&engine, &site.path, &[fails, fails]).unwrap();
        assert_eq!(noted(&engine), (2, 3));

        // And a version that knows fewer formats says so.
        drop(engine);
        let error = site.open().unwrap_err();
        assert!(
            matches!(error, OpenError::NewerFormat { found: 3, .. }),
            "{error}"
        );
    }

    #[test]
    fn a_step_that_fails_leaves_the_file_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let site = site(&dir);
        site.create().unwrap();
        let (engine, before) = site.open().unwrap();
        let error = upgrade(&engine, &site.path, &[first, fails]).unwrap_err();
        assert!(
            error.to_string().contains("a row nobody expected"),
            "{error}"
        );
        assert_eq!(noted(&engine), (0, 1));
        drop(engine);
        assert_eq!(site.open().unwrap().1, before);
        assert_eq!(
            before,
            State {
                revision: Revision::ZERO,
                ..before
            }
        );
    }
}
