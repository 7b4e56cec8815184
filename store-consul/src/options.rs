//! How a store on Consul is reached and used.

use std::path::PathBuf;
use std::time::Duration;

/// Everything about a store on Consul that is not in its address.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// The file that holds the ACL token. It is read again when Consul does not know the token
    /// any more, so that tokens can be rotated without a restart.
    pub token_file: Option<PathBuf>,
    /// TLS; None speaks plain HTTP.
    pub tls: Option<TlsOptions>,
    /// The datacenter; None is that of the agent asked.
    pub datacenter: Option<String>,
    /// How long one request may take, beyond the time it is meant to block.
    pub timeout: Duration,
    /// Connections at once, those that wait for changes included. Consul closes the door to a
    /// client address with more than 200 (`limits.http_max_conns_per_client`).
    pub max_connections: usize,
    /// The servers' `session_ttl_min`: no lease is shorter.
    pub min_lease: Duration,
    /// How often the store is looked through for what somebody wrote around it.
    pub probe_interval: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            token_file: None,
            tls: None,
            datacenter: None,
            timeout: Duration::from_secs(10),
            max_connections: 48,
            min_lease: Duration::from_secs(10),
            probe_interval: Duration::from_secs(30),
        }
    }
}

/// How the connection is protected. Files are PEM and are read again when they have changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsOptions {
    /// The authorities that may have signed the server's certificate. Required: the authorities
    /// of the machine are not asked.
    pub ca_file: PathBuf,
    /// This client's certificate and key, where the servers ask for one
    /// (`verify_incoming`).
    pub client: Option<(PathBuf, PathBuf)>,
    /// The name that the server's certificate must have, if not that of the address. Consul's
    /// own certificates are for `server.<datacenter>.consul`.
    pub server_name: Option<String>,
}

impl TlsOptions {
    /// TLS with the authorities in a file.
    #[must_use]
    pub fn with_ca(ca_file: impl Into<PathBuf>) -> Self {
        Self {
            ca_file: ca_file.into(),
            ..Self::default()
        }
    }
}
