//! How a store is reached: TLS, credentials, deadlines.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// How a store is reached. Start from the default and set what differs.
///
/// ```
/// use std::time::Duration;
/// use platctrl_store_etcd::{Options, Tls};
///
/// let mut options = Options::default();
/// options.tls = Some(Tls::new("/etc/platctrl/etcd-ca.pem").with_client_certificate(
///     "/etc/platctrl/etcd.pem",
///     "/etc/platctrl/etcd.key",
/// ));
/// options.deadline = Duration::from_secs(5);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// TLS; without it connections are plain.
    pub tls: Option<Tls>,
    /// A user of etcd. With [`Tls::client_certificate`] the certificate's common name is the
    /// user, and no password is needed.
    pub credentials: Option<Credentials>,
    /// How long one call may take in all, over however many members are tried: 10 s.
    pub deadline: Duration,
    /// How long one member may take to accept a connection: 3 s.
    pub connect_timeout: Duration,
    /// How long a member may leave a read unanswered before another one is asked: 3 s.
    pub attempt_timeout: Duration,
    /// How often the other side of a quiet connection is asked whether it is there, and how long
    /// it may take to answer: 5 s.
    pub keep_alive: Duration,
    /// How long a watch goes on trying to resume before it ends with an error: 60 s.
    pub watch_patience: Duration,
    /// How often a watcher of a quiet prefix is told how far the store is, when nothing makes
    /// it known earlier: 10 s.
    pub progress_interval: Duration,
    /// How often the files of [`Tls`] are looked at for changes: 10 s.
    pub reload_interval: Duration,
    /// The bytes of undelivered events that are kept for one slow watcher: 8 MiB. Beyond, its
    /// watch is paused and later resumed where it was.
    pub watch_buffer: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tls: None,
            credentials: None,
            deadline: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(3),
            attempt_timeout: Duration::from_secs(3),
            keep_alive: Duration::from_secs(5),
            watch_patience: Duration::from_secs(60),
            progress_interval: Duration::from_secs(10),
            reload_interval: Duration::from_secs(10),
            watch_buffer: 8 << 20,
        }
    }
}

/// The files that TLS needs, all in PEM. They are read again when they change; connections are
/// renewed with the new ones once those work.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tls {
    /// The certificates that the servers' are signed with.
    pub ca: PathBuf,
    /// The certificate (with those that lead to its root) and key that this process shows.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// The name that the servers' certificates are for, when it is not that in the location.
    pub server_name: Option<String>,
}

impl Tls {
    /// Servers must show a certificate signed by one in the file `ca`.
    #[must_use]
    pub fn new(ca: impl Into<PathBuf>) -> Self {
        Self {
            ca: ca.into(),
            client_certificate: None,
            server_name: None,
        }
    }

    /// Shows a certificate to the servers.
    #[must_use]
    pub fn with_client_certificate(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.client_certificate = Some((certificate.into(), key.into()));
        self
    }

    /// Expects this name in the servers' certificates.
    #[must_use]
    pub fn with_server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }
}

/// A user of etcd and its password, which is never shown.
#[derive(Clone)]
pub struct Credentials {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl Credentials {
    /// A user with a password.
    #[must_use]
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            user: user.into(),
            password: password.into(),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}
