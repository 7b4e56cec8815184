//! The server that `artifact:` locations are fetched from.

use std::fmt;
use std::path::PathBuf;

/// The server that `artifact:` locations are fetched from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Server {
    /// HTTP over the unix socket at this path.
    Unix(PathBuf),
    /// HTTP over TLS.
    Tls(TlsServer),
}

/// A server on the network.
#[derive(Clone, PartialEq, Eq)]
pub struct TlsServer {
    host: String,
    port: u16,
    pub(super) ca: PathBuf,
    pub(super) token: Option<String>,
}

impl TlsServer {
    /// The server at this host and port, whose certificate an authority in the file `ca` signed
    /// (PEM, read at each connection), and that lets in whoever shows `token`.
    #[must_use]
    pub fn new(host: &str, port: u16, ca: impl Into<PathBuf>, token: Option<String>) -> Self {
        Self {
            host: host.to_owned(),
            port,
            ca: ca.into(),
            token,
        }
    }
}

impl fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsServer")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("ca", &self.ca)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tls(TlsServer { host, port, .. }) if host.contains(':') => {
                write!(f, "https://[{host}]:{port}")
            }
            Self::Tls(TlsServer { host, port, .. }) => write!(f, "https://{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_shown_without_its_token() {
        let token = Some("web1.secret".to_owned());
        let server = Server::Tls(TlsServer::new("::1", 7654, "ca.crt", token));
        assert_eq!(server.to_string(), "https://[::1]:7654");
        assert!(!format!("{server:?}").contains("secret"));
    }
}
