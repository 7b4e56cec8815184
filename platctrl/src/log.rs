//! What this program says of itself: on standard error and, of processes that stay, also in a file
//! of their data directory, so that it is there for whoever asks later why something happened.
//!
//! The file is bounded, and nothing depends on it: on a full disk its lines are lost and work goes
//! on.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

/// Chooses what is said, in place of `-v`.
const VARIABLE: &str = "PLATCTRL_LOG";
/// A file is put aside when it is as large as this; one such file is kept.
const MAX_FILE: u64 = 4 << 20;

static FILE: OnceLock<Record> = OnceLock::new();

/// Begins to say things on standard error: warnings, and more for `-v` and `-vv`.
pub(crate) fn to_stderr(verbose: u8) {
    let default = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = |default: &str| {
        std::env::var(VARIABLE)
            .ok()
            .and_then(|filter| EnvFilter::try_new(filter).ok())
            .unwrap_or_else(|| EnvFilter::new(default))
    };
    let stderr = fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_filter(filter(default));
    let file = fmt::layer()
        .with_writer(|| Recorder)
        .with_ansi(false)
        .with_filter(filter(if verbose > 1 { "debug" } else { "info" }));
    let subscriber = tracing_subscriber::registry().with(stderr).with(file);
    // It is the first: nothing else in this program sets one.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// The directory of the files, in a data directory.
pub(crate) fn directory(data_dir: &Path) -> PathBuf {
    data_dir.join("log")
}

/// Also writes what is said into the file of a process that stays. Only the first call counts.
pub(crate) fn to_file(data_dir: &Path, process: &str) {
    let dir = directory(data_dir);
    let _ = std::fs::DirBuilder::new().mode(0o700).create(&dir);
    let record = Record {
        path: dir.join(format!("{process}.log")),
        open: Mutex::new(None),
    };
    if FILE.set(record).is_ok() {
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            process = std::process::id(),
            "{process} begins"
        );
    }
}

/// A file that is put aside before it gets too large.
#[derive(Debug)]
struct Record {
    path: PathBuf,
    /// The file and its size. None until the next line.
    open: Mutex<Option<(File, u64)>>,
}

impl Record {
    fn write(&self, line: &[u8]) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // What cannot be written is lost; the next line tries anew.
        if self.append(&mut open, line).is_err() {
            *open = None;
        }
    }

    fn append(&self, open: &mut Option<(File, u64)>, line: &[u8]) -> io::Result<()> {
        if open
            .as_ref()
            .is_some_and(|(_, size)| *size + line.len() as u64 > MAX_FILE)
        {
            *open = None;
            std::fs::rename(&self.path, self.path.with_extension("log.1"))?;
        }
        let (file, size) = match open {
            Some(open) => open,
            None => {
                let mut options = OpenOptions::new();
                let file = options
                    .append(true)
                    .create(true)
                    .mode(0o600)
                    .open(&self.path)?;
                let size = file.metadata()?.len();
                open.insert((file, size))
            }
        };
        file.write_all(line)?;
        *size += line.len() as u64;
        Ok(())
    }
}

/// Writes each line to the file, when there is one.
#[derive(Debug)]
struct Recorder;

impl Write for Recorder {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(record) = FILE.get() {
            record.write(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_put_aside_before_it_is_too_large_and_a_lost_one_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let record = Record {
            path: dir.path().join("up.log"),
            open: Mutex::new(None),
        };
        let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap_or_default();
        record.write(b"first\n");
        let large = vec![b'x'; usize::try_from(MAX_FILE).unwrap() - 3];
        record.write(&large);
        assert_eq!(read("up.log.1"), b"first\n");
        assert_eq!(read("up.log").len(), large.len());
        record.write(b"more\n");
        assert_eq!(read("up.log"), b"more\n");
        assert_eq!(read("up.log.1").len(), large.len());
        // Nobody may be stopped by it: not by a directory that is gone either.
        drop(record);
        let nowhere = Record {
            path: dir.path().join("no/up.log"),
            open: Mutex::new(None),
        };
        nowhere.write(b"lost\n");
        std::fs::create_dir(dir.path().join("no")).unwrap();
        nowhere.write(b"kept\n");
        assert_eq!(read("no/up.log"), b"kept\n");
    }
}
