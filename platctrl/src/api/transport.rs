//! How a server is reached: its local socket, or TLS.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::chain;
use crate::error::{Code, Failure, Result};
use crate::tls;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(15);

/// A token, which is not shown by accident.
#[derive(Clone)]
pub(crate) struct Token(String);

impl Token {
    pub(crate) fn new(text: &str) -> Self {
        Self(text.trim().to_owned())
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// A server on the network.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    /// `https://HOST:PORT`.
    pub(crate) url: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The certificate of the authority that signed the server's.
    pub(crate) ca: PathBuf,
    pub(crate) token: Option<Token>,
}

impl Remote {
    pub(crate) fn new(url: &str, ca: PathBuf, token: Option<Token>) -> Result<Self> {
        let wrong = |why: &str| {
            Failure::usage(format!("the server `{url}` cannot be used: {why}"))
                .hint("write https://HOST:PORT, as https://10.0.0.1:7654")
        };
        let uri: Uri = url.parse().map_err(|_| wrong("it is no URL"))?;
        let host = uri.host().ok_or_else(|| wrong("it names no host"))?;
        let port = uri.port_u16().ok_or_else(|| wrong("it names no port"))?;
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(wrong("it has a path"));
        }
        Ok(Self {
            url: format!("https://{host}:{port}"),
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            ca,
            token,
        })
    }
}

/// How a server is reached.
#[derive(Clone, Debug)]
pub(crate) enum Transport {
    /// Its socket on this machine.
    Unix(PathBuf),
    /// Another machine, or this one by its address.
    Tls(Remote),
}

/// A connection of either kind.
pub(super) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Connection for S {}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tls(remote) => remote.url.fmt(f),
        }
    }
}

impl Transport {
    pub(super) async fn connect(&self) -> Result<Box<dyn Connection>> {
        match self {
            Self::Unix(path) => {
                let connect = || {
                    let stream = crate::server::connect(path)?;
                    stream.set_nonblocking(true)?;
                    UnixStream::from_std(stream)
                };
                let stream = connect().map_err(|error| unreachable(path, &error))?;
                Ok(Box::new(stream))
            }
            Self::Tls(remote) => {
                let connected = tokio::time::timeout(CONNECT, secure(remote)).await;
                connected
                    .unwrap_or_else(|_| Err(nobody_at(remote, "no connection came about in 15 s")))
            }
        }
    }
}

fn nobody_at(remote: &Remote, why: impl fmt::Display) -> Failure {
    Failure::new(
        Code::Unreachable,
        format!("cannot reach {}: {why}", remote.url),
    )
    .hint("is it the server's address, and does `platctrl server` or `platctrl up` run there with --listen?")
}

async fn secure(remote: &Remote) -> Result<Box<dyn Connection>> {
    let config = tls::client_config(&remote.ca).map_err(|error| {
        Failure::failed(error)
            .hint("name the certificate of the server's authority (its ca.crt) with --ca FILE or PLATCTRL_CA")
    })?;
    let name = ServerName::try_from(remote.host.clone())
        .map_err(|error| Failure::usage(format!("{}: {error}", remote.url)))?;
    let stream = TcpStream::connect((remote.host.as_str(), remote.port))
        .await
        .map_err(|error| nobody_at(remote, error))?;
    // Small requests are not held back for more.
    let _ = stream.set_nodelay(true);
    let stream = TlsConnector::from(Arc::clone(&config))
        .connect(name, stream)
        .await
        .map_err(|error| not_trusted(remote, &error))?;
    Ok(Box::new(stream))
}

fn not_trusted(remote: &Remote, error: &io::Error) -> Failure {
    let why = chain(error);
    let cause = error
        .get_ref()
        .and_then(|cause| cause.downcast_ref::<rustls::Error>());
    let (code, hint) = match cause {
        Some(rustls::Error::InvalidCertificate(_)) => (
            Code::Denied,
            format!(
                "{} is not the authority of this server, or the server is reached by a name that it does not have (`--tls-name` of the server)",
                remote.ca.display()
            ),
        ),
        Some(rustls::Error::InvalidMessage(_)) => (
            Code::Unreachable,
            "the port does not speak TLS: is it platctrl's?".to_owned(),
        ),
        _ => (
            Code::Unreachable,
            "does the port speak TLS, and does a proxy stand between?".to_owned(),
        ),
    };
    Failure::new(code, format!("{}: {why}", remote.url)).hint(hint)
}

fn unreachable(path: &Path, error: &io::Error) -> Failure {
    let start =
        "start it with `platctrl up`, or say where it is with --data-dir DIR or --server unix:PATH";
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Failure::new(
            Code::Unreachable,
            format!("no platctrl runs at {}", path.display()),
        )
        .hint(start),
        io::ErrorKind::PermissionDenied => Failure::new(
            Code::Denied,
            format!("{} is not yours to use", path.display()),
        )
        .hint("be the user that runs `platctrl up`: for root's, use sudo"),
        _ => Failure::new(
            Code::Unreachable,
            format!("cannot reach {}: {error}", path.display()),
        )
        .hint(start),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remote_server_is_a_host_and_a_port() {
        let remote = |url: &str| Remote::new(url, "ca.crt".into(), None);
        let seen = remote("https://10.0.0.1:7654/").unwrap();
        assert_eq!((seen.host.as_str(), seen.port), ("10.0.0.1", 7654));
        let seen = remote("https://[::1]:7654").unwrap();
        assert_eq!((seen.host.as_str(), seen.port), ("::1", 7654));
        for wrong in ["https://h", "https://h:1/a", "https://", "https://h:99999"] {
            assert_eq!(remote(wrong).unwrap_err().code, Code::Usage, "{wrong}");
        }
    }
}
