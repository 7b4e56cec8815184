//! The local unix socket: bound only where nobody answers, and only for its owner and root.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// The socket's name in the data directory.
pub const SOCKET: &str = "platctrl.sock";

/// Why the local socket cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another server has it.
    #[error("{} is answered by another server: stop that one, or choose another --data-dir", .path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else has its name.
    #[error("{} is there and is no socket: move it away", .path.display())]
    NoSocket {
        /// The socket.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {doing} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The path of a socket for bind and connect, which take 108 bytes: through the directory, held
/// open, whatever the length of its own path.
struct Short {
    _directory: File,
    path: PathBuf,
}

impl Short {
    fn of(path: &Path) -> io::Result<Self> {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it names no file",
            ));
        };
        let directory = if directory.as_os_str().is_empty() {
            Path::new(".")
        } else {
            directory
        };
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::DIRECTORY.bits().cast_signed())
            .open(directory)?;
        let path = Path::new("/proc/self/fd")
            .join(directory.as_raw_fd().to_string())
            .join(name);
        Ok(Self {
            _directory: directory,
            path,
        })
    }
}

/// Connects to a socket whose path may be of any length. Blocks no longer than the peer's
/// backlog takes.
///
/// # Errors
/// The system's.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(Short::of(path)?.path)
}

/// Opens the socket at `path`, for the owner alone. A socket that a process left behind is
/// replaced once it is sure that nobody answers. Must be called on a tokio runtime.
///
/// # Errors
/// [`BindError`].
pub fn bind(path: &Path) -> Result<UnixListener, BindError> {
    let failed = |doing| {
        move |source| BindError::Io {
            doing,
            path: path.to_owned(),
            source,
        }
    };
    let short = Short::of(path).map_err(failed("open the directory of"))?;
    // Two servers that start at once must not take the socket from each other.
    let lock_path = path.with_extension("lock");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(&lock_path)
        .map_err(|source| BindError::Io {
            doing: "open",
            path: lock_path.clone(),
            source,
        })?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|error| failed("lock")(error.into()))?;
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at")(error)),
        Ok(there) if !there.file_type().is_socket() => {
            return Err(BindError::NoSocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => match UnixStream::connect(&short.path) {
            // Nobody listens: its process is gone.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed("remove the left-over"))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // An answer, or one that is too busy to give one.
            Ok(_) => {
                return Err(BindError::InUse {
                    path: path.to_owned(),
                });
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(BindError::InUse {
                    path: path.to_owned(),
                });
            }
            Err(error) => return Err(failed("try")(error)),
        },
    }
    // Made under another name, closed to others, and only then put in its place: there is no
    // moment in which somebody else could connect.
    let name = format!(".{SOCKET}.{}", std::process::id());
    let temporary = path.with_file_name(name);
    let short = Short::of(&temporary).map_err(failed("open the directory of"))?;
    let _ = std::fs::remove_file(&temporary);
    let bound = (|| {
        let listener = UnixListener::bind(&short.path)?;
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&temporary, path)?;
        Ok(listener)
    })();
    bound.map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        failed("listen on")(error)
    })
}

/// Whoever is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    uid: u32,
    pub(super) name: String,
}

impl Peer {
    pub(super) fn of(stream: &tokio::net::UnixStream) -> io::Result<Self> {
        let uid = stream.peer_cred()?.uid();
        Ok(Self {
            uid,
            name: user_name(uid).unwrap_or_else(|| format!("uid:{uid}")),
        })
    }

    /// The user that the server runs as.
    pub(super) fn own() -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
            name: "own".to_owned(),
        }
    }

    /// Root, and the user that the server runs as.
    pub(super) fn is_allowed(&self) -> bool {
        self.uid == 0 || self.uid == rustix::process::geteuid().as_raw()
    }
}

/// A user's name in the machine's own list.
fn user_name(uid: u32) -> Option<String> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let user = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    user.filter(|name| !name.is_empty() && name.len() <= 64)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[tokio::test]
    async fn a_left_over_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET);
        let first = bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(bind(&path), Err(BindError::InUse { .. })));
        drop(first);
        let _second = bind(&path).unwrap();
        assert!(connect(&path).is_ok());
    }

    #[tokio::test]
    async fn a_path_longer_than_the_system_takes_works() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120)).join("e".repeat(120));
        std::fs::create_dir_all(&deep).unwrap();
        let path = deep.join(SOCKET);
        let _listener = bind(&path).unwrap();
        assert!(connect(&path).is_ok());
    }

    #[tokio::test]
    async fn a_file_in_the_place_of_the_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET);
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path), Err(BindError::NoSocket { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn root_is_known_by_name() {
        assert_eq!(user_name(0).as_deref(), Some("root"));
    }
}
