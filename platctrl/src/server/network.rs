//! The API over the network: TLS and nothing else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use super::auth::Origin;
use super::{Server, connection, drain, router};
use crate::tls::{self, ServerIdentity, TlsError};

/// How long a client may take to make its connection a secure one.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The first byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 22;
/// What whoever speaks plain HTTP is told.
const PLAIN: &str = "this port speaks TLS only: use https://\n";

/// Where a server listens on the network, and what it shows there.
pub(crate) struct Network {
    listener: TcpListener,
    identity: ServerIdentity,
    config: Arc<ServerConfig>,
}

impl Network {
    /// Checks the files, so that what is wrong with them is told before anything runs.
    pub(crate) fn new(listener: TcpListener, identity: ServerIdentity) -> Result<Self, TlsError> {
        let config = identity.config()?;
        Ok(Self {
            listener,
            identity,
            config,
        })
    }
}

impl Server {
    /// Serves over TLS until `shutdown` completes. [`Server::serve`] must run, too: it reads the
    /// store for watches.
    pub(crate) async fn serve_network(
        &self,
        network: Network,
        shutdown: impl Future<Output = ()>,
    ) -> std::io::Result<()> {
        let Network {
            listener,
            identity,
            mut config,
        } = network;
        let mut made = Instant::now();
        let router = router(self.app.clone());
        let stopping = self.app.stopping.clone();
        let connections = TaskTracker::new();
        tokio::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                accepted = self.next(listener.accept()) => accepted,
                () = &mut shutdown => break,
            };
            let Some(((stream, address), permit)) = accepted else {
                continue;
            };
            if made.elapsed() > ServerIdentity::GOOD_FOR {
                made = Instant::now();
                match identity.config() {
                    Ok(new) => config = new,
                    Err(error) => {
                        tracing::error!(%error, "the server's certificate stays what it was");
                    }
                }
            }
            let (router, stopping, config) = (router.clone(), stopping.clone(), config.clone());
            connections.spawn(async move {
                let shaken = tokio::time::timeout(HANDSHAKE, secure(stream, address, config));
                if let Ok(Some((stream, origin))) = shaken.await {
                    connection(stream, origin, router, stopping).await;
                }
                drop(permit);
            });
        }
        drop(listener);
        stopping.cancel();
        drain(connections).await;
        Ok(())
    }
}

/// Makes a connection secure, or says in one line why it cannot be used.
async fn secure(
    mut stream: TcpStream,
    address: SocketAddr,
    config: Arc<ServerConfig>,
) -> Option<(tokio_rustls::server::TlsStream<TcpStream>, Origin)> {
    let mut first = [0];
    if stream.peek(&mut first).await.ok()? == 0 {
        return None;
    }
    if first[0] != TLS_HANDSHAKE {
        refuse_plain(&mut stream).await;
        return None;
    }
    // Small answers are not held back for more.
    let _ = stream.set_nodelay(true);
    let accepted = TlsAcceptor::from(config).accept(stream).await;
    let stream = accepted
        .inspect_err(|error| tracing::debug!(%address, %error, "no TLS came about"))
        .ok()?;
    let shown = stream.get_ref().1.peer_certificates();
    let shown = shown.and_then(|shown| shown.first());
    let (person, node) = (shown.and_then(tls::person_of), shown.and_then(tls::node_of));
    let origin = Origin::Network {
        address,
        person,
        node,
    };
    Some((stream, origin))
}

async fn refuse_plain(stream: &mut TcpStream) {
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{PLAIN}",
        PLAIN.len()
    );
    if stream.write_all(answer.as_bytes()).await.is_err() || stream.shutdown().await.is_err() {
        return;
    }
    // What was asked is read to its end, so that the answer is not lost in a reset.
    let mut rest = [0; 4_096];
    for _ in 0..64 {
        match stream.read(&mut rest).await {
            Ok(read) if read > 0 => {}
            _ => break,
        }
    }
}
