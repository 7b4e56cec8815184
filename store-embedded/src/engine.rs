//! The engine's file: how it is made, opened and laid out in tables.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, ReadTransaction, ReadableDatabase, StorageBackend,
    TableDefinition,
};

use crate::codec::{FORMAT, State};
use crate::error::{EngineError, OpenError};
use crate::upgrade::{STEPS, upgrade};

/// The file of a store, in its directory.
pub(crate) const FILE: &str = "store.redb";

/// Key → record.
pub(crate) const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");
/// Lease (big-endian) and key → nothing: the keys that hang on a lease.
pub(crate) const LEASED: TableDefinition<'_, &[u8], ()> = TableDefinition::new("leased");
/// First revision → segment of the history.
pub(crate) const HISTORY: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("history");
/// `format` and `state`.
pub(crate) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// Makes the engine's view of an open file; tests put their faults here.
pub(crate) type Medium = Arc<dyn Fn(File) -> io::Result<Box<dyn StorageBackend>> + Send + Sync>;

/// The file as the operating system gives it.
pub(crate) fn plain_medium() -> Medium {
    Arc::new(|file| {
        let backend = FileBackend::new(file).map_err(io::Error::other)?;
        Ok(Box::new(backend))
    })
}

/// An open file.
pub(crate) struct Engine {
    pub(crate) database: Database,
}

/// Where the file is and how it is opened; kept to open it again after a failure.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) path: PathBuf,
    pub(crate) cache_bytes: usize,
    pub(crate) medium: Medium,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Site {
    /// Makes a store that holds nothing. The file appears under its name only once it is whole,
    /// so that a crash never leaves half a store.
    pub(crate) fn create(&self) -> Result<(), OpenError> {
        let unfinished = self.path.with_extension("new");
        match std::fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(OpenError::io("remove", unfinished)(error));
            }
            _ => {}
        }
        let site = Self {
            path: unfinished.clone(),
            ..self.clone()
        };
        let engine = site.open_file(true)?;
        engine
            .initialise(State {
                revision: platctrl_framework::store::Revision::ZERO,
                oldest: platctrl_framework::store::Revision::ZERO,
                history_bytes: 0,
                opens: 0,
            })
            .map_err(|error| self.explain(error))?;
        drop(engine);
        publish(&unfinished, &self.path)
    }

    /// Opens the file and checks that this version understands it.
    pub(crate) fn open(&self) -> Result<(Engine, State), OpenError> {
        let length = std::fs::metadata(&self.path)
            .map_err(OpenError::io("look at", &self.path))?
            .len();
        if length == 0 {
            return Err(self.damaged("the file is empty"));
        }
        self.guarded(|| {
            let engine = self.open_file(false)?;
            upgrade(&engine, &self.path, &STEPS)?;
            let state = engine.state(&self.path)?;
            Ok((engine, state))
        })
    }

    /// Does something with the engine, which a damaged file can make trip over itself.
    pub(crate) fn guarded<T>(
        &self,
        work: impl FnOnce() -> Result<T, OpenError>,
    ) -> Result<T, OpenError> {
        catch_unwind(AssertUnwindSafe(work))
            .unwrap_or_else(|_| Err(self.damaged("the engine cannot walk it")))
    }

    fn open_file(&self, create: bool) -> Result<Engine, OpenError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            .mode(0o600)
            .open(&self.path)
            .map_err(OpenError::io("open", &self.path))?;
        let backend = (self.medium)(file).map_err(OpenError::io("open", &self.path))?;
        let path = self.path.clone();
        let opened = Builder::new()
            .set_cache_size(self.cache_bytes)
            .set_repair_callback(move |session| {
                let percent = (session.progress() * 100.0) as u32;
                tracing::info!(path = %path.display(), percent, "repairing after a crash");
            })
            .create_with_backend(Boxed(backend));
        match opened {
            Ok(database) => Ok(Engine { database }),
            Err(DatabaseError::DatabaseAlreadyOpen) => Err(OpenError::InUse {
                dir: self.path.clone(),
                pid: None,
            }),
            Err(error) => Err(self.explain(error.into())),
        }
    }

    pub(crate) fn damaged(&self, detail: impl Into<String>) -> OpenError {
        OpenError::Damaged {
            path: self.path.clone(),
            detail: detail.into(),
        }
    }

    pub(crate) fn explain(&self, error: EngineError) -> OpenError {
        match error {
            EngineError::Storage(error) => match *error {
                redb::Error::Io(source) if !is_damage(&source) => OpenError::Io {
                    action: "use",
                    path: self.path.clone(),
                    source,
                },
                other => self.damaged(other.to_string()),
            },
            EngineError::Damaged(detail) => self.damaged(detail),
        }
    }
}

/// The engine reports some contents it does not understand as input that is invalid or too short.
fn is_damage(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput
    )
}

impl Engine {
    /// Makes the tables and notes format and state.
    pub(crate) fn initialise(&self, state: State) -> Result<(), EngineError> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_two_phase_commit(true);
        transaction.open_table(RECORDS)?;
        transaction.open_table(LEASED)?;
        transaction.open_table(HISTORY)?;
        {
            let mut meta = transaction.open_table(META)?;
            meta.insert("state", state.encode().as_slice())?;
            meta.insert("format", FORMAT.to_le_bytes().as_slice())?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn state(&self, path: &Path) -> Result<State, OpenError> {
        let damaged = |detail: String| OpenError::Damaged {
            path: path.to_owned(),
            detail,
        };
        let read = || -> Result<Option<Vec<u8>>, EngineError> {
            let transaction = self.database.begin_read()?;
            let meta = transaction.open_table(META)?;
            Ok(meta.get("state")?.map(|value| value.value().to_vec()))
        };
        let state = read().map_err(|error| damaged(error.to_string()))?;
        let state = state.ok_or_else(|| damaged("its state is missing".to_owned()))?;
        State::decode(&state).map_err(|error| damaged(error.to_string()))
    }
}

/// The tables as one read transaction shows them.
pub(crate) struct View {
    pub(crate) records: redb::ReadOnlyTable<&'static [u8], &'static [u8]>,
    pub(crate) history: redb::ReadOnlyTable<u64, &'static [u8]>,
    pub(crate) leased: redb::ReadOnlyTable<&'static [u8], ()>,
    pub(crate) state: State,
    _transaction: ReadTransaction,
}

impl View {
    pub(crate) fn new(engine: &Engine) -> Result<Self, EngineError> {
        let transaction = engine.database.begin_read()?;
        let meta = transaction.open_table(META)?;
        let state = meta.get("state")?;
        let state = state.ok_or_else(|| EngineError::damaged("the store's state is missing"))?;
        Ok(Self {
            records: transaction.open_table(RECORDS)?,
            history: transaction.open_table(HISTORY)?,
            leased: transaction.open_table(LEASED)?,
            state: State::decode(state.value())?,
            _transaction: transaction,
        })
    }
}

/// Gives a finished file its name, durably.
pub(crate) fn publish(unfinished: &Path, path: &Path) -> Result<(), OpenError> {
    File::open(unfinished)
        .and_then(|file| file.sync_all())
        .map_err(OpenError::io("sync", unfinished))?;
    std::fs::rename(unfinished, path).map_err(OpenError::io("rename to", path))?;
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(OpenError::io("sync", dir))
}

/// The engine takes a backend by type; ours is chosen at run time.
#[derive(Debug)]
struct Boxed(Box<dyn StorageBackend>);

impl StorageBackend for Boxed {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}
