//! Checks over TLS: who is believed, and to whom the agent shows its certificate.

use std::net::SocketAddr;
use std::time::Duration;

use platctrl_framework::environment::Environment;
use platctrl_kinds::Span;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::super::http;
use super::*;

struct Authority(Issuer<'static, KeyPair>, String);

/// A certificate and its key, in PEM.
struct Pair(String, String);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self(Issuer::new(params, key), pem)
    }

    fn issue(&self, name: &str) -> Pair {
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Pair(certificate.pem(), key.serialize_pem())
    }
}

/// Serves 200 over TLS; with `clients`, to whom that authority knows alone.
async fn serve(pair: &Pair, clients: Option<&Authority>) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            let der = CertificateDer::from_pem_slice(authority.1.as_bytes()).unwrap();
            roots.add(der).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.unwrap())
        }
    };
    let chain = vec![CertificateDer::from_pem_slice(pair.0.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(pair.1.as_bytes()).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await?;
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await?);
                }
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                stream.write_all(answer).await?;
                stream.shutdown().await
            });
        }
    });
    address
}

async fn ask(files: &ProbeFiles, address: SocketAddr, name: Option<&str>) -> Result<(), String> {
    let tls = Tls::new(files.clone());
    let (environment, timeout) = (Environment::system(), Span::from_secs(60));
    http::get(&environment, address, "/", Some((&tls, name)), timeout).await
}

fn write(dir: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn without_an_authority_anybody_is_believed_and_with_one_only_whom_it_signed() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::new(), Authority::new());
    let address = serve(&ours.issue("web.example"), None).await;
    let anybody = ProbeFiles::default();
    ask(&anybody, address, None).await.unwrap();
    let trusting = |authority: &Authority, name: &str| ProbeFiles {
        ca: Some(write(&dir, name, &authority.1)),
        identity: None,
    };
    let (ours, theirs) = (trusting(&ours, "ours"), trusting(&theirs, "theirs"));
    ask(&ours, address, None).await.unwrap();
    ask(&ours, address, Some("web.example")).await.unwrap();
    let refused = ask(&ours, address, Some("db.example")).await.unwrap_err();
    assert!(
        refused.contains("https://") && refused.contains("no TLS"),
        "{refused}"
    );
    ask(&theirs, address, None).await.unwrap_err();
    ask(&theirs, address, Some("web.example"))
        .await
        .unwrap_err();
}

#[tokio::test]
async fn the_agents_certificate_is_shown_and_read_again_when_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, stranger) = (Authority::new(), Authority::new());
    let address = serve(&authority.issue("web.example"), Some(&authority)).await;
    ask(&ProbeFiles::default(), address, None)
        .await
        .unwrap_err();
    let wrong = stranger.issue("agent");
    let files = ProbeFiles {
        ca: None,
        identity: Some((write(&dir, "crt", &wrong.0), write(&dir, "key", &wrong.1))),
    };
    let tls = Tls::new(files.clone());
    let once = || async {
        let (environment, timeout) = (Environment::system(), Span::from_secs(60));
        http::get(&environment, address, "/", Some((&tls, None)), timeout).await
    };
    once().await.unwrap_err();
    let right = authority.issue("agent");
    write(&dir, "crt", &right.0);
    write(&dir, "key", &right.1);
    // A file that was written twice within a tick of the file system's clock looks the same.
    let later = SystemTime::now() + Duration::from_secs(5);
    let changed = std::fs::File::options()
        .write(true)
        .open(dir.path().join("crt"))
        .unwrap();
    changed.set_modified(later).unwrap();
    once().await.unwrap();
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let address = serve(&Authority::new().issue("a"), None).await;
    for text in [
        "",
        "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
    ] {
        let files = ProbeFiles {
            ca: Some(write(&dir, "ca.pem", text)),
            identity: None,
        };
        let refused = ask(&files, address, None).await.unwrap_err();
        assert!(refused.contains("ca.pem"), "{refused}");
    }
}
