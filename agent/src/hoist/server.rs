//! The server that `artifact:` locations are fetched from, and a connection to it.

use std::error::Error as StdError;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

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
    ca: PathBuf,
    token: Option<String>,
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

/// A connection of either kind.
pub(super) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Connection for S {}

impl Server {
    /// The value of an `Authorization` header, where the server wants one.
    pub(super) fn authorization(&self) -> Option<String> {
        match self {
            Self::Unix(_) => None,
            Self::Tls(server) => Some(format!("Bearer {}", server.token.as_ref()?)),
        }
    }

    pub(super) async fn connect(
        &self,
    ) -> Result<Box<dyn Connection>, Box<dyn StdError + Send + Sync>> {
        let server = match self {
            Self::Unix(socket) => return Ok(Box::new(UnixStream::connect(socket).await?)),
            Self::Tls(server) => server,
        };
        let config = trusting(&server.ca)?;
        let name = ServerName::try_from(server.host.clone())?;
        let stream = TcpStream::connect((server.host.as_str(), server.port)).await?;
        let stream = TlsConnector::from(config).connect(name, stream).await?;
        Ok(Box::new(stream))
    }
}

/// A client that believes what the authorities of this file signed.
fn trusting(ca: &Path) -> Result<Arc<ClientConfig>, Box<dyn StdError + Send + Sync>> {
    let unusable = |error: &dyn fmt::Display| format!("{}: {error}", ca.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|error| unusable(&error))? {
        let certificate = certificate.map_err(|error| unusable(&error))?;
        roots.add(certificate).map_err(|error| unusable(&error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
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
        assert_eq!(server.authorization().unwrap(), "Bearer web1.secret");
    }

    #[tokio::test]
    async fn an_authority_that_cannot_be_read_is_named() {
        let server = Server::Tls(TlsServer::new("127.0.0.1", 1, "/nowhere/ca.crt", None));
        let error = server.connect().await.err().unwrap();
        assert!(error.to_string().contains("/nowhere/ca.crt"), "{error}");
    }
}
