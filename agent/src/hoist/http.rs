//! The HTTP client of the process that fetches: one request at a time, redirects looked at one by
//! one, proxies, and only authorities that the machine trusts.
//!
//! What a server answers is hostile. It can make us ask elsewhere, so where a redirect may lead is
//! decided here ([`redirected`]), and addresses are looked at after names were resolved.

use std::error::Error as StdError;
use std::fmt;
use std::fs::File;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use super::network::{Network, is_this_machine, literal};
use super::source;

/// Redirects that are followed.
const REDIRECTS: usize = 5;
/// How long one address may take to answer.
const CONNECT: Duration = Duration::from_secs(10);
/// How much a proxy may say before the tunnel is open.
const PROXY_ANSWER: usize = 8 * 1024;
/// Where machines keep the certificates of the authorities that they trust.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

pub(super) type Cause = Box<dyn StdError + Send + Sync>;

/// A connection of any kind.
pub(super) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Connection for S {}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) reason: String,
    /// Asking again can only be answered the same way.
    pub(super) permanent: bool,
}

impl Failure {
    pub(super) fn new(error: &dyn StdError) -> Self {
        // The transport's own words are behind its general ones.
        let mut reason = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            reason = format!("{reason}: {error}");
            cause = error.source();
        }
        Self {
            reason: super::escape(reason.as_bytes()),
            permanent: false,
        }
    }

    pub(super) fn refused(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            permanent: true,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl StdError for Failure {}

/// Asks servers. Everything it needs of the file system is read when it is made.
#[derive(Clone)]
pub(super) struct Client {
    network: Network,
    trust: Arc<ClientConfig>,
    authorities: usize,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// A client that trusts the machine's authorities and the network's further ones.
    pub(super) fn new(network: Network) -> Result<Self, Failure> {
        let mut roots = RootCertStore::empty();
        if let Some(bundle) = BUNDLES.iter().find_map(|path| File::open(path).ok()) {
            for certificate in CertificateDer::pem_reader_iter(bundle).flatten() {
                // The machine's bundle may hold what this library cannot use.
                let _ = roots.add(certificate);
            }
        }
        for path in &network.authorities {
            let unusable = |error: &dyn fmt::Display| {
                Failure::refused(format!("the authorities in {}: {error}", path.display()))
            };
            let certificates = CertificateDer::pem_file_iter(path).map_err(|e| unusable(&e))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|e| unusable(&e))?;
                roots.add(certificate).map_err(|e| unusable(&e))?;
            }
        }
        Self::trusting(network, roots)
    }

    /// A client that trusts the authorities in this text (PEM) and no others, and asks directly.
    pub(super) fn of_authority(pem: &str) -> Result<Self, Failure> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|e| Failure::new(&e))?;
            roots.add(certificate).map_err(|e| Failure::new(&e))?;
        }
        Self::trusting(Network::default(), roots)
    }

    fn trusting(network: Network, roots: RootCertStore) -> Result<Self, Failure> {
        let authorities = roots.len();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let trust = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Failure::new(&e))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            network,
            trust: Arc::new(trust),
            authorities,
        })
    }

    /// Asks for `url` and what it redirects to, with these headers, until something else than a
    /// redirect is answered. Also says who answered.
    pub(super) async fn get(
        &self,
        url: &Url,
        headers: &[(header::HeaderName, String)],
    ) -> Result<(Url, Response<Incoming>), Failure> {
        let mut url = url.clone();
        let asked_here = url.host().is_some_and(|host| is_this_machine(&host));
        for _ in 0..=REDIRECTS {
            let mut request = Request::get(url.as_str())
                .header(header::ACCEPT, "*/*")
                // What is unpacked on the way has another digest.
                .header(header::ACCEPT_ENCODING, "identity")
                .header(
                    header::USER_AGENT,
                    concat!("platctrl/", env!("CARGO_PKG_VERSION")),
                );
            for (name, value) in headers {
                request = request.header(name, value);
            }
            let request = request
                .body(Empty::<Bytes>::new())
                .map_err(|e| Failure::new(&e))?;
            let response = self.send(request, asked_here).await?;
            if !is_redirect(response.status()) {
                return Ok((url, response));
            }
            let to = response.headers().get(header::LOCATION);
            let to = to.and_then(|to| to.to_str().ok()).unwrap_or_default();
            url = redirected(&url, to).map_err(Failure::refused)?;
        }
        Err(Failure::refused(format!(
            "it redirected more than {REDIRECTS} times, last to {}",
            source::shown(&url)
        )))
    }

    /// Sends one request, over a connection of its own. `may_be_here`: an address of this machine
    /// itself is asked too.
    pub(super) async fn send<B>(
        &self,
        request: Request<B>,
        may_be_here: bool,
    ) -> Result<Response<Incoming>, Failure>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Cause>,
    {
        let url = Url::parse(&request.uri().to_string()).map_err(|e| Failure::new(&e))?;
        let proxy = self.network.proxy_for(&url).map(Proxy::parse).transpose()?;
        let stream = match &proxy {
            // Where a name leads is the proxy's business then.
            Some(proxy) => {
                let stream = connect(&proxy.host, proxy.port, true).await?;
                match url.scheme() {
                    "https" => proxy.tunnel(stream, &url).await?,
                    _ => stream,
                }
            }
            None => {
                let host = url
                    .host()
                    .ok_or_else(|| Failure::refused("it names no host"))?;
                connect(&host.to_owned(), port(&url), may_be_here).await?
            }
        };
        let stream: Box<dyn Connection> = match url.scheme() {
            "https" => Box::new(self.secure(stream, &url).await?),
            _ => Box::new(stream),
        };
        let mut request = request;
        let headers = request.headers_mut();
        if !headers.contains_key(header::HOST) {
            headers.insert(header::HOST, value(url.authority())?);
        }
        match &proxy {
            Some(proxy) if url.scheme() == "http" => {
                if let Some(authorization) = &proxy.authorization {
                    headers.insert(header::PROXY_AUTHORIZATION, value(authorization)?);
                }
            }
            // A server wants the path alone; a proxy the whole.
            _ => {
                let path = match url.query() {
                    Some(query) => format!("{}?{query}", url.path()),
                    None => url.path().to_owned(),
                };
                *request.uri_mut() = path.parse().map_err(|e| Failure::new(&e))?;
            }
        }
        over(stream, request).await
    }

    async fn secure(
        &self,
        stream: TcpStream,
        url: &Url,
    ) -> Result<impl Connection + use<>, Failure> {
        if self.authorities == 0 {
            return Err(Failure::refused(
                "this machine trusts no authority: install its certificates (ca-certificates)",
            ));
        }
        let host = url.host_str().unwrap_or_default();
        let name = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let name = ServerName::try_from(name).map_err(|e| Failure::new(&e))?;
        let connector = TlsConnector::from(Arc::clone(&self.trust));
        connector
            .connect(name, stream)
            .await
            .map_err(|e| Failure::new(&e))
    }
}

/// Sends a request over a connection, which lives as long as the answer.
pub(super) async fn over<B>(
    stream: impl Connection + 'static,
    request: Request<B>,
) -> Result<Response<Incoming>, Failure>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Cause>,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| Failure::new(&e))?;
    // What goes wrong here is also what the request or the body fails with. It ends with the
    // process at the latest, which is a short one.
    tokio::spawn(async move { drop(connection.await) });
    sender
        .send_request(request)
        .await
        .map_err(|e| Failure::new(&e))
}

fn value(text: &str) -> Result<header::HeaderValue, Failure> {
    text.parse()
        .map_err(|e: header::InvalidHeaderValue| Failure::new(&e))
}

fn port(url: &Url) -> u16 {
    url.port_or_known_default().unwrap_or(443)
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where a redirect from `from` leads, or why we do not go there.
fn redirected(from: &Url, to: &str) -> Result<Url, String> {
    let joined = from.join(to).map_err(|error| {
        format!(
            "it redirected to `{}`: {error}",
            super::escape(to.as_bytes())
        )
    })?;
    let refuse = |reason: &str| {
        let to = source::shown(&joined);
        Err(format!("it redirected to {to}, {reason}"))
    };
    match joined.scheme() {
        "https" => {}
        "http" if from.scheme() == "http" => {}
        "http" => return refuse("which is not protected as the first address was"),
        _ => return refuse("which is not on the web"),
    }
    let mut target = joined.clone();
    target.set_fragment(None);
    if source::web(target.as_str()).is_err() {
        return refuse("which is no address of an artifact");
    }
    let (Some(here), Some(there)) = (from.host(), joined.host()) else {
        return refuse("which names no host");
    };
    if is_this_machine(&there) && !is_this_machine(&here) {
        return refuse("which is this machine itself");
    }
    if literal(&there).is_some_and(is_link_local) {
        return refuse("which is a machine's own address for its metadata");
    }
    Ok(target)
}

/// Addresses that mean something to one machine or link alone: metadata services are among them.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_unspecified(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_unspecified(),
    }
}

/// Connects to the first address of `host` that answers.
async fn connect(host: &Host, port: u16, may_be_here: bool) -> Result<TcpStream, Failure> {
    let addresses: Vec<SocketAddr> = match host {
        // Waits, which nothing else in this process minds.
        Host::Domain(name) => (name.as_str(), port)
            .to_socket_addrs()
            .map_err(|error| Failure {
                reason: format!("cannot find the address of {name}: {error}"),
                permanent: false,
            })?
            .collect(),
        Host::Ipv4(address) => vec![(*address, port).into()],
        Host::Ipv6(address) => vec![(*address, port).into()],
    };
    let mut failure = Failure {
        reason: format!("{host} has no address"),
        permanent: false,
    };
    for address in addresses {
        let ip = address.ip().to_canonical();
        if is_link_local(ip) || ip.is_loopback() && !may_be_here {
            failure = Failure::refused(format!("{host} is at {ip}, where no artifacts are"));
            continue;
        }
        match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failure = Failure::new(&error),
            Err(_) => {
                failure = Failure {
                    reason: format!("no answer within {CONNECT:?}"),
                    permanent: false,
                };
            }
        }
        failure.reason = format!("cannot connect to {host} at {address}: {}", failure.reason);
    }
    Err(failure)
}

/// A proxy's address, understood.
struct Proxy {
    host: Host,
    port: u16,
    /// The value of a `Proxy-Authorization` header.
    authorization: Option<String>,
}

impl Proxy {
    fn parse(text: &str) -> Result<Self, Failure> {
        let refuse = |why: &str| Failure::refused(format!("the proxy's address {why}"));
        let whole = match text.contains("://") {
            true => text.to_owned(),
            false => format!("http://{text}"),
        };
        let url = Url::parse(&whole).map_err(|_| refuse("is no URL"))?;
        if url.scheme() != "http" {
            return Err(refuse("is not of the form http://HOST:PORT"));
        }
        let host = url
            .host()
            .ok_or_else(|| refuse("names no host"))?
            .to_owned();
        let decode = |text: &str| {
            percent_encoding::percent_decode_str(text)
                .decode_utf8_lossy()
                .into_owned()
        };
        let authorization = (!url.username().is_empty()).then(|| {
            let user = decode(url.username());
            let password = decode(url.password().unwrap_or_default());
            let both =
                base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
            format!("Basic {both}")
        });
        Ok(Self {
            host,
            port: url.port().unwrap_or(3128),
            authorization,
        })
    }

    /// Asks for a connection to the server of `url`.
    async fn tunnel(&self, mut stream: TcpStream, url: &Url) -> Result<TcpStream, Failure> {
        let failed = |error: std::io::Error| Failure {
            reason: format!("the proxy {}: {error}", self.host),
            permanent: false,
        };
        let target = format!("{}:{}", url.host_str().unwrap_or_default(), port(url));
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        if let Some(authorization) = &self.authorization {
            request.push_str(&format!("Proxy-Authorization: {authorization}\r\n"));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await.map_err(failed)?;
        // Byte by byte: what follows belongs to the server.
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            if answer.len() == PROXY_ANSWER {
                return Err(failed(std::io::Error::other("it says too much")));
            }
            answer.push(stream.read_u8().await.map_err(failed)?);
        }
        let line = answer
            .split(|byte| *byte == b'\r')
            .next()
            .unwrap_or_default();
        let line = super::escape(line);
        if line.split(' ').nth(1) != Some("200") {
            let reason = format!("the proxy {} answered `{line}`", self.host);
            return Err(Failure {
                reason,
                permanent: false,
            });
        }
        Ok(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_that_leads_to_this_machine_or_its_metadata_is_not_asked() {
        let server = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = server.local_addr().unwrap().port();
        let asked = async |host: Host, may_be_here| connect(&host, port, may_be_here).await;
        let here = [
            Host::Domain("localhost".to_owned()),
            Host::Ipv4([127, 0, 0, 1].into()),
            Host::Ipv6(std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped()),
        ];
        for host in here {
            let refused = asked(host.clone(), false).await.unwrap_err();
            assert!(refused.permanent, "{host}: {refused}");
            assert!(
                refused.reason.contains("where no artifacts are"),
                "{refused}"
            );
        }
        asked(Host::Ipv4([127, 0, 0, 1].into()), true)
            .await
            .unwrap();
        // What is a machine's own for its metadata is asked in no case.
        for may_be_here in [true, false] {
            let metadata = Host::Ipv4([169, 254, 169, 254].into());
            let refused = asked(metadata, may_be_here).await.unwrap_err();
            assert!(
                refused.reason.contains("where no artifacts are"),
                "{refused}"
            );
        }
    }

    #[test]
    fn a_redirect_leads_to_the_web_and_nowhere_else() {
        let from = |text: &str| Url::parse(text).unwrap();
        let public = from("https://example.org/a/b?c");
        for (to, there) in [
            (
                "https://cdn.example.net/x?sig=1",
                "https://cdn.example.net/x?sig=1",
            ),
            ("/x", "https://example.org/x"),
            ("x", "https://example.org/a/x"),
            ("//other.test/x#y", "https://other.test/x"),
        ] {
            assert_eq!(redirected(&public, to).unwrap().as_str(), there);
        }
        for (to, words) in [
            ("http://example.org/x", "not protected"),
            ("file:///etc/shadow", "not on the web"),
            ("ftp://example.org/x", "not on the web"),
            ("gopher://example.org/x", "not on the web"),
            ("https://127.0.0.1/x", "this machine"),
            ("https://[::1]/x", "this machine"),
            ("https://[::ffff:127.0.0.1]/x", "this machine"),
            ("https://localhost/x", "this machine"),
            ("https://2130706433/x", "this machine"),
            ("https://169.254.169.254/latest", "metadata"),
            ("https://[fe80::1]/x", "metadata"),
            ("https://0.0.0.0/x", "metadata"),
            ("https://me:hunter2@example.org/x", "no address"),
            ("https://", "empty host"),
        ] {
            let why = redirected(&public, to).unwrap_err();
            assert!(
                why.contains(words) && !why.contains("hunter"),
                "{to}: {why}"
            );
        }
        let plain = from("http://example.org/a");
        assert!(redirected(&plain, "http://example.net/a").is_ok());
        assert!(redirected(&plain, "https://example.net/a").is_ok());
        let here = from("http://127.0.0.1:8080/a");
        assert!(redirected(&here, "http://localhost:9090/a").is_ok());
        assert!(redirected(&here, "http://169.254.169.254/a").is_err());
    }

    #[test]
    fn a_proxys_password_is_sent_and_not_shown() {
        let proxy = Proxy::parse("http://me:p%40ss@proxy.test:8080").unwrap();
        assert_eq!(proxy.port, 8080);
        let both = base64::engine::general_purpose::STANDARD.encode("me:p@ss");
        assert_eq!(proxy.authorization, Some(format!("Basic {both}")));
        assert_eq!(Proxy::parse("proxy.test").unwrap().port, 3128);
        for wrong in ["https://p", "socks5://p", "http://", "::"] {
            assert!(Proxy::parse(wrong).is_err(), "{wrong}");
        }
        let error = Proxy::parse("socks5://me:hunter2@p").err().unwrap();
        assert!(!error.reason.contains("hunter"), "{error}");
    }
}
