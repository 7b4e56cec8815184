//! The engine without the store: the same tables, rows of the same size, no judging of
//! transactions, no checksums, no watchers, no queue.

use std::fmt;
use std::path::Path;

use platctrl_bench::{Result, hash};
use redb::{
    Builder, Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition,
};

const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");
const HISTORY: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("history");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// What stands before a record's value: checksum, two revisions, lease.
const RECORD_HEADER: usize = 28;
/// What stands at the begin of a history row: checksum and time.
const ROW_HEADER: usize = 12;
/// A history row is written once it is this long.
const ROW_FULL: usize = 3_000;
/// The engine's cache, as the store sets it.
const CACHE_BYTES: usize = 16 << 20;

/// What is written for each put.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Writes {
    /// The record.
    RecordsOnly,
    /// The record, its history with the value it replaced, and the state.
    LikeTheStore,
}

pub(crate) struct Bare {
    database: Database,
    writes: Writes,
    revision: u64,
}

impl Bare {
    pub(crate) fn create(path: &Path, writes: Writes) -> Result<Self> {
        let database = Builder::new().set_cache_size(CACHE_BYTES).create(path)?;
        Ok(Self {
            database,
            writes,
            revision: 0,
        })
    }

    /// Writes all of these in one durable transaction, each at a revision of its own.
    pub(crate) fn commit(&mut self, puts: &[(String, String)]) -> Result<()> {
        self.write(puts, true)
    }

    /// Writes all of these in one durable transaction at one revision.
    pub(crate) fn commit_together(&mut self, puts: &[(String, String)]) -> Result<()> {
        self.write(puts, false)
    }

    fn write(&mut self, puts: &[(String, String)], revision_each: bool) -> Result<()> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_two_phase_commit(true);
        {
            let mut records = transaction.open_table(RECORDS)?;
            let mut history = transaction.open_table(HISTORY)?;
            let mut row = vec![0; ROW_HEADER];
            let mut first = self.revision + 1;
            let mut record = Vec::new();
            for (place, (key, value)) in puts.iter().enumerate() {
                let begins = revision_each || place == 0;
                self.revision += u64::from(begins);
                record.clear();
                record.resize(RECORD_HEADER, 0);
                record[12..20].copy_from_slice(&self.revision.to_le_bytes());
                record.extend_from_slice(value.as_bytes());
                let before = records.insert(key.as_bytes(), record.as_slice())?;
                if self.writes == Writes::RecordsOnly {
                    continue;
                }
                if begins {
                    row.extend_from_slice(&self.revision.to_le_bytes());
                    row.extend_from_slice(&[0; 4]);
                }
                row.extend_from_slice(&[0; 1 + 2]);
                row.extend_from_slice(key.as_bytes());
                row.extend_from_slice(&[0; 16]);
                if let Some(before) = before {
                    row.extend_from_slice(before.value());
                }
                if revision_each && row.len() >= ROW_FULL {
                    history.insert(first, row.as_slice())?;
                    row.truncate(ROW_HEADER);
                    first = self.revision + 1;
                }
            }
            if row.len() > ROW_HEADER {
                history.insert(first, row.as_slice())?;
            }
            if self.writes == Writes::LikeTheStore {
                let mut state = [0; 36];
                state[4..12].copy_from_slice(&self.revision.to_le_bytes());
                transaction
                    .open_table(META)?
                    .insert("state", state.as_slice())?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    pub(crate) fn compact(&mut self) -> Result<()> {
        self.database.compact()?;
        Ok(())
    }
}

/// What lies in a file, of the store or of the bare engine.
#[derive(Debug, PartialEq)]
pub(crate) struct Census {
    records: u64,
    checksum: u64,
    history_rows: u64,
    pub(crate) history_bytes: u64,
    file_bytes: u64,
}

impl Census {
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let database = Builder::new().open(path)?;
        let transaction = database.begin_read()?;
        let table = transaction.open_table(RECORDS)?;
        let (mut checksum, mut history_bytes) = (0_u64, 0);
        for entry in table.iter()? {
            let (key, value) = entry?;
            let value = value.value().get(RECORD_HEADER..).unwrap_or_default();
            checksum = checksum.wrapping_add(hash(&[key.value(), value]));
        }
        let history = transaction.open_table(HISTORY)?;
        for entry in history.iter()? {
            history_bytes += entry?.1.value().len() as u64;
        }
        Ok(Self {
            records: table.len()?,
            checksum,
            history_rows: history.len()?,
            history_bytes,
            file_bytes: std::fs::metadata(path)?.len(),
        })
    }

    /// What must be the same on all sides.
    pub(crate) fn content(&self) -> (u64, u64) {
        (self.records, self.checksum)
    }
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        write!(
            f,
            "{} records (checksum {:016x}), {} history rows of {:.1} MiB, file of {:.1} MiB",
            self.records,
            self.checksum,
            self.history_rows,
            mib(self.history_bytes),
            mib(self.file_bytes)
        )
    }
}
