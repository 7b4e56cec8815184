//! A server on the web that answers what a test wants: HTTP, HTTPS, a proxy, S3.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// `GET /a HTTP/1.1`.
    pub(super) line: String,
    headers: Vec<(String, String)>,
}

impl Asked {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(it, _)| it == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(super) fn path(&self) -> &str {
        self.line.split(' ').nth(1).unwrap()
    }

    /// From where on the rest is asked for.
    pub(super) fn from(&self) -> Option<usize> {
        let range = self.header("range")?.strip_prefix("bytes=")?;
        range.strip_suffix('-')?.parse().ok()
    }
}

/// What is answered.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    /// These bytes, and the end of the connection.
    Bytes(Vec<u8>),
    /// These bytes, and then nothing any more.
    Silence(Vec<u8>),
    /// These bytes, then the last one again and again.
    Endless(Vec<u8>),
    /// These bytes, then one now and then.
    Drip(Vec<u8>),
    /// A tunnel to this address, as a proxy opens one.
    Tunnel(SocketAddr),
}

pub(super) fn head(status: &str, headers: &[(&str, &str)]) -> String {
    let lines = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"));
    format!("HTTP/1.1 {status}\r\n{}\r\n", lines.collect::<String>())
}

pub(super) fn full(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let length = body.len().to_string();
    let mut all = vec![("content-length", length.as_str())];
    all.extend(headers);
    Answer::Bytes([head(status, &all).as_bytes(), body].concat())
}

/// The whole of `body`, or the rest of it that was asked for.
pub(super) fn file(asked: &Asked, body: &[u8], etag: &str) -> Answer {
    let valid = asked.header("if-range").is_none_or(|it| it == etag);
    match asked.from() {
        Some(from) if valid => {
            let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
            let headers = [("etag", etag), ("content-range", range.as_str())];
            full("206 Partial Content", &headers, &body[from..])
        }
        _ => full("200 OK", &[("etag", etag)], body),
    }
}

/// Everything up to `count` bytes of the body of an answer.
pub(super) fn cut(answer: Answer, count: usize) -> Answer {
    let Answer::Bytes(bytes) = answer else {
        panic!("no bytes to cut")
    };
    let end = bytes.windows(4).position(|it| it == b"\r\n\r\n").unwrap() + 4;
    Answer::Bytes(bytes[..end + count].to_vec())
}

/// A server that is up until its test ends.
#[derive(Debug, Clone)]
pub(super) struct WebServer {
    pub(super) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl WebServer {
    pub(super) async fn plain(
        answer: impl Fn(&Asked, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::new(None, answer).await
    }

    /// One with a certificate for `names`; writes that of the authority to `ca`.
    pub(super) async fn tls(
        ca: &Path,
        names: &[&str],
        answer: impl Fn(&Asked, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(ca, issuer.pem()).unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap();
        let certificate = certificate.signed_by(&key, &issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        Self::new(Some(TlsAcceptor::from(Arc::new(config))), answer).await
    }

    async fn new(
        tls: Option<TlsAcceptor>,
        answer: impl Fn(&Asked, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (log, answer) = (Arc::clone(&asked), Arc::new(answer));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (log, answer, tls) = (Arc::clone(&log), Arc::clone(&answer), tls.clone());
                tokio::spawn(async move {
                    let answer = |asked: &Asked| {
                        let number = {
                            let mut log = log.lock().unwrap();
                            log.push(asked.clone());
                            log.len() - 1
                        };
                        answer(asked, number)
                    };
                    match tls {
                        None => converse(stream, answer).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => converse(stream, answer).await,
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        Self { address, asked }
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(super) fn source(&self, path: &str) -> crate::hoist::Source {
        crate::hoist::Source::parse(&self.url(path)).unwrap()
    }
}

async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: impl Fn(&Asked) -> Answer,
) -> Option<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.ok()?);
    }
    let text = String::from_utf8(request).unwrap();
    let mut lines = text.lines().filter(|line| !line.is_empty());
    let line = lines.next().unwrap().to_owned();
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_ascii_lowercase(), value.to_owned())
    });
    let asked = Asked {
        line,
        headers: headers.collect(),
    };
    let answer = answer(&asked);
    match answer {
        Answer::Bytes(bytes) => {
            stream.write_all(&bytes).await.ok()?;
            stream.shutdown().await.ok()
        }
        Answer::Silence(bytes) => {
            stream.write_all(&bytes).await.ok()?;
            std::future::pending().await
        }
        Answer::Endless(bytes) => {
            stream.write_all(&bytes).await.ok()?;
            let chunk = [b"10000\r\n".as_slice(), &[b'x'; 0x10000], b"\r\n"].concat();
            loop {
                stream.write_all(&chunk).await.ok()?;
            }
        }
        Answer::Drip(bytes) => {
            stream.write_all(&bytes).await.ok()?;
            loop {
                stream.write_all(b"x").await.ok()?;
                stream.flush().await.ok()?;
                // What a drip is.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Answer::Tunnel(to) => {
            let mut server = TcpStream::connect(to).await.ok()?;
            stream
                .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                .await
                .ok()?;
            tokio::io::copy_bidirectional(&mut stream, &mut server)
                .await
                .ok()?;
            Some(())
        }
    }
}
