//! Where things are on this machine: the data directory, its socket, and the `up` that runs.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Code, Failure, Result};

/// Overrides the default data directory.
pub(crate) const DATA_DIR: &str = "PLATCTRL_DATA_DIR";

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn absolute_variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
}

/// The data directory: what was given, or the one for this user.
pub(crate) fn data_dir(given: Option<&Path>) -> Result<PathBuf> {
    let dir = match given {
        Some(dir) if dir.as_os_str().is_empty() => {
            return Err(Failure::usage("the data directory's name is empty"));
        }
        Some(dir) => dir.to_owned(),
        None => default_data_dir()?,
    };
    std::path::absolute(&dir)
        .map_err(|error| Failure::failed(format!("cannot use {}: {error}", dir.display())))
}

fn default_data_dir() -> Result<PathBuf> {
    if is_root() {
        return Ok("/var/lib/platctrl".into());
    }
    if let Some(state) = absolute_variable("XDG_STATE_HOME") {
        return Ok(state.join("platctrl"));
    }
    let home = absolute_variable("HOME").ok_or_else(|| {
        Failure::usage("there is no home directory to keep anything in").hint(format!(
            "give a data directory with --data-dir or {DATA_DIR}"
        ))
    })?;
    Ok(home.join(".local/state/platctrl"))
}

/// The API's socket of a data directory.
pub(crate) fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join("platctrl.sock")
}

/// The socket on which a process of controllers tells of itself.
pub(crate) fn controllers_socket(data_dir: &Path) -> PathBuf {
    data_dir.join("controllers.sock")
}

/// Where the authority is, in a data directory.
pub(crate) const TLS: &str = "tls";

/// Where the first token is, in a data directory.
pub(crate) fn token(data_dir: &Path) -> PathBuf {
    data_dir.join("token")
}

/// Where the server of a data directory says at which URL it answers, while it does.
pub(crate) fn listens(data_dir: &Path) -> PathBuf {
    data_dir.join("listens")
}

/// The embedded store of a data directory.
pub(crate) fn store(data_dir: &Path) -> PathBuf {
    data_dir.join("store")
}

/// What a running `up` says about itself to other processes of the same user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pointer {
    pub(crate) pid: u32,
    pub(crate) data_dir: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) node: String,
}

impl Pointer {
    /// Where it is written. None for a user without a run-time directory.
    pub(crate) fn path() -> Option<PathBuf> {
        let run = if is_root() {
            Some(PathBuf::from("/run"))
        } else {
            absolute_variable("XDG_RUNTIME_DIR")
        };
        run.map(|run| run.join("platctrl/up.json"))
    }

    /// The one that was written last, whether or not its process still runs.
    pub(crate) fn read() -> Option<Self> {
        let text = std::fs::read(Self::path()?).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Writes it whole or not at all, unless another `up` of this user runs: then clients keep
    /// finding that one, which is returned. A failure is no reason not to work: clients can still
    /// be told the data directory.
    pub(crate) fn write(&self) -> Option<Self> {
        let path = Self::path()?;
        let other = Self::read().filter(|other| other.data_dir != self.data_dir);
        if let Some(other) = other
            && crate::server::connect(&other.socket).is_ok()
        {
            return Some(other);
        }
        let write = || -> std::io::Result<()> {
            let dir = path.parent().unwrap_or(Path::new("/"));
            std::fs::create_dir_all(dir)?;
            let temporary = dir.join(format!(".up.json.{}", self.pid));
            std::fs::write(&temporary, serde_json::to_vec(self)?)?;
            std::fs::rename(&temporary, &path)
        };
        if let Err(error) = write() {
            tracing::warn!(path = %path.display(), %error, "clients will need --data-dir");
        }
        None
    }

    /// Removes what was written for this data directory. The directory it was in stays: agents
    /// lock the list of users there.
    pub(crate) fn remove(data_dir: &Path) {
        if let Some(path) = Self::path()
            && Self::read().is_some_and(|pointer| pointer.data_dir == data_dir)
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Who has a data directory: one `up` or `uninstall` at a time.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: std::fs::File,
}

/// Somebody else has the lock.
#[derive(Debug)]
pub(crate) struct Busy {
    /// Its process, where it said so.
    pub(crate) pid: Option<u32>,
}

impl Lock {
    /// The lock's file.
    pub(crate) fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("up.lock")
    }

    /// Takes the lock of a directory that exists.
    pub(crate) fn take(data_dir: &Path) -> std::io::Result<Result<Self, Busy>> {
        use std::io::{Seek as _, Write as _};
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = Self::path(data_dir);
        let mut options = std::fs::OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        let mut file = options.open(&path)?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Ok(Err(Busy {
                    pid: Self::holder(data_dir),
                }));
            }
            Err(error) => return Err(error.into()),
        }
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Ok(Self { _file: file }))
    }

    /// The process that wrote its number into the lock last.
    pub(crate) fn holder(data_dir: &Path) -> Option<u32> {
        std::fs::read_to_string(Self::path(data_dir))
            .ok()?
            .trim()
            .parse()
            .ok()
    }
}

/// Finds the socket of the server that a client talks to.
pub(crate) fn server(given: Option<&str>, dir: Option<&Path>) -> Result<PathBuf> {
    if let Some(server) = given {
        return match server.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(path.into()),
            _ => Err(
                Failure::usage(format!("the server `{server}` cannot be reached")).hint(
                    "write unix:PATH, as unix:/var/lib/platctrl/platctrl.sock, or https://HOST:PORT",
                ),
            ),
        };
    }
    if let Some(dir) = dir {
        return Ok(socket(&data_dir(Some(dir))?));
    }
    if let Some(pointer) = Pointer::read()
        && pointer.socket.exists()
    {
        return Ok(pointer.socket);
    }
    let socket = socket(&data_dir(None)?);
    match socket.try_exists() {
        Ok(true) => Ok(socket),
        _ => Err(Failure::new(Code::Unreachable, "no platctrl runs on this machine").hint(
            "start one with `platctrl up`, or say where it is with --data-dir DIR or --server unix:PATH",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_to_ask_for_a_lock_is_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path()).unwrap().unwrap();
        let busy = Lock::take(dir.path()).unwrap().unwrap_err();
        assert_eq!(busy.pid, Some(std::process::id()));
        drop(first);
        Lock::take(dir.path()).unwrap().unwrap();
    }

    #[test]
    fn a_server_is_a_socket() {
        assert_eq!(
            server(Some("unix:/a/b"), None).unwrap(),
            PathBuf::from("/a/b")
        );
        assert_eq!(
            server(Some("http://a"), None).unwrap_err().code,
            Code::Usage
        );
        assert_eq!(server(Some("unix:"), None).unwrap_err().code, Code::Usage);
        let dir = Path::new("/srv/d");
        assert_eq!(
            server(None, Some(dir)).unwrap(),
            PathBuf::from("/srv/d/platctrl.sock")
        );
    }
}
