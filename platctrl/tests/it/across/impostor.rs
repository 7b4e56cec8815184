//! Servers that are not what they say: one with a good certificate that asks whatever it likes, and
//! one whose certificate another authority signed.

use std::fs;
use std::io;
use std::sync::Arc;

use axum::body::Body;
use base64::Engine as _;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use platctrl_test_support::certificates::Authority;
use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::fleet::Fleet;
use crate::rig::SOON;

/// A server of the test's own.
pub(super) struct Liar {
    runtime: Arc<Runtime>,
    listener: TcpListener,
    acceptor: TlsAcceptor,
    url: String,
}

impl Liar {
    /// With a certificate of the fleet's authority.
    pub(super) fn new(fleet: &Fleet) -> Self {
        let ca = fs::read_to_string(fleet.path("tls/ca.crt")).unwrap();
        let key = fs::read_to_string(fleet.path("tls/ca.key")).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&ca, KeyPair::from_pem(&key).unwrap()).unwrap();
        let own = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![fleet.own_address()]).unwrap();
        let certificate = params.signed_by(&own, &issuer).unwrap();
        Self::with(fleet, &certificate.pem(), &own.serialize_pem())
    }

    /// With one of another authority.
    pub(super) fn stranger(fleet: &Fleet) -> Self {
        let pair = Authority::new("stranger").issue("server", vec![fleet.own_address()]);
        Self::with(fleet, &pair.certificate, &pair.key)
    }

    fn with(fleet: &Fleet, certificate: &str, key: &str) -> Self {
        let runtime = Runtime::new().unwrap();
        let address = format!("{}:0", fleet.own_address());
        let listener = runtime.block_on(TcpListener::bind(address)).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        Self {
            runtime: Arc::new(runtime),
            listener,
            acceptor: TlsAcceptor::from(Arc::new(config)),
            url,
        }
    }

    pub(super) fn url(&self) -> String {
        self.url.clone()
    }

    /// Waits for a node's agent, and takes its stream.
    pub(super) fn called_by(&mut self, node: &str) -> Stream {
        let taken = async {
            let (stream, _) = self.listener.accept().await.unwrap();
            let mut stream = self.acceptor.accept(stream).await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let wanted = format!("GET /stream/nodes/{node} HTTP/1.1\r\n");
            assert!(head.starts_with(&wanted), "{head}");
            let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: platctrl-node\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
            let turned = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
            let (requests, connection) = turned.unwrap();
            tokio::spawn(connection);
            requests
        };
        let requests = self.runtime.block_on(async { timeout(SOON, taken).await });
        Stream {
            runtime: Arc::clone(&self.runtime),
            requests: requests.expect("the agent calls"),
        }
    }

    /// Agents call, and hang up before they say anything.
    pub(super) fn is_not_believed(&mut self) {
        let refused = async {
            let (stream, _) = self.listener.accept().await.unwrap();
            self.acceptor.accept(stream).await.map(drop).unwrap_err()
        };
        let refused = self
            .runtime
            .block_on(async { timeout(SOON, refused).await });
        refused.expect("the agent calls");
    }
}

/// A node's stream.
pub(super) struct Stream {
    runtime: Arc<Runtime>,
    requests: SendRequest<Body>,
}

impl Stream {
    /// The code of the node's answer to a question, asked for somebody with a role.
    pub(super) fn ask(&mut self, method: &str, path: &str, behalf: Option<(&str, &str)>) -> u16 {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("http://node{path}"));
        if let Some((name, role)) = behalf {
            let text = serde_json::json!({"name": name, "role": role, "from": "10.0.0.1"});
            let encoder = base64::engine::general_purpose::URL_SAFE_NO_PAD;
            let text = encoder.encode(text.to_string());
            request = request.header("platctrl-on-behalf-of", text);
        }
        // Whoever asks for a command stays until its end.
        let body = match method {
            "POST" => Body::from_stream(futures::stream::pending::<io::Result<Bytes>>()),
            _ => Body::empty(),
        };
        let request = request.body(body).unwrap();
        let asked = async {
            self.requests.ready().await.unwrap();
            let (head, body) = self
                .requests
                .send_request(request)
                .await
                .unwrap()
                .into_parts();
            if head.status.is_success() {
                body.collect().await.unwrap();
            }
            head.status.as_u16()
        };
        self.runtime
            .block_on(async { timeout(SOON, asked).await.unwrap() })
    }
}
