//! The API over TLS: who is let in, and what everybody else is told.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use serde_json::Value;

use crate::rig::{Rig, SOON, Said, eventually};

/// `platctrl up` that listens on a port of its own.
pub(crate) struct Listening {
    pub(crate) rig: Rig,
    pub(crate) url: String,
}

/// An answer that was read to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) code: u16,
    pub(crate) head: String,
    pub(crate) json: Value,
}

impl Reply {
    fn of(answer: &str) -> Self {
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
        let body = if chunked {
            unchunked(body)
        } else {
            body.to_owned()
        };
        Self {
            code: code.unwrap_or_else(|| panic!("no answer: {answer:?}")),
            head: head.to_owned(),
            json: serde_json::from_str(&body).unwrap_or(Value::Null),
        }
    }

    /// It was refused because of who asked, and said so.
    #[track_caller]
    pub(crate) fn is_forbidden(&self, what: &str) {
        assert_eq!(
            (self.code, &self.json["reason"]),
            (403, &"Forbidden".into()),
            "{what}: {self:?}"
        );
    }
}

/// A body that came in pieces.
fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 {
            break;
        }
        whole.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    whole
}

pub(crate) type Stream = StreamOwned<ClientConnection, TcpStream>;

/// An answer that goes on.
pub(crate) struct Going(Stream);

impl Going {
    /// Waits for its end.
    pub(crate) fn ends(&mut self) {
        self.0.sock.set_read_timeout(Some(SOON)).unwrap();
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => {}
            // A server may hang up without the end of TLS.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "{error}"),
        }
    }
}

/// A connection to a server of that authority, with somebody's certificate and key or without.
pub(crate) fn secure(
    address: &str,
    host: &str,
    ca: &Path,
    person: Option<(PathBuf, PathBuf)>,
) -> Stream {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(ca).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match person {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => config
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(certificate).unwrap()],
                PrivateKeyDer::from_pem_file(key).unwrap(),
            )
            .unwrap(),
    };
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let client = ClientConnection::new(Arc::new(config), name).unwrap();
    StreamOwned::new(client, TcpStream::connect(address).unwrap())
}

impl Listening {
    pub(crate) fn new() -> Self {
        Self::with(&[])
    }

    pub(crate) fn with(more: &[&str]) -> Self {
        let mut rig = Rig::new();
        let flags = ["--listen", "127.0.0.1:0"];
        let flags: Vec<&str> = flags.iter().chain(more).copied().collect();
        rig.up_with(&flags);
        let url = fs::read_to_string(rig.data_dir().join("listens")).unwrap();
        Self { rig, url }
    }

    /// The token of whoever runs the server.
    pub(crate) fn admin(&self) -> String {
        let token = fs::read_to_string(self.rig.data_dir().join("token")).unwrap();
        token.trim().to_owned()
    }

    /// A request with a token.
    pub(crate) fn send(
        &self,
        token: &str,
        method: &str,
        path: &str,
        kind: &str,
        body: &str,
    ) -> Reply {
        let mut head = format!("Authorization: Bearer {token}\r\n");
        if !kind.is_empty() {
            head.push_str(&format!("Content-Type: {kind}\r\n"));
        }
        self.exchange(method, path, &head, body)
    }

    /// A request with these lines in its head.
    pub(crate) fn exchange(&self, method: &str, path: &str, head: &str, body: &str) -> Reply {
        Reply::of(&self.said(method, path, head, body, None))
    }

    /// Begins to read an answer that goes on.
    pub(crate) fn open(&self, token: &str, path: &str) -> Going {
        let mut stream = self.stream(None);
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        Going(stream)
    }

    /// A command somewhere else: with nothing of the server's data directory but what is given.
    pub(crate) fn elsewhere(&self, args: &[&str]) -> Command {
        let mut command = self.rig.command(args);
        command
            .env("PLATCTRL_DATA_DIR", self.rig.path("elsewhere"))
            .env("PLATCTRL_SERVER", &self.url)
            .env("PLATCTRL_CA", self.rig.data_dir().join("tls/ca.crt"));
        command
    }

    fn with_token(&self, token: &str, args: &[&str]) -> Said {
        let mut command = self.elsewhere(args);
        command
            .env("PLATCTRL_TOKEN", token)
            .output()
            .unwrap()
            .into()
    }

    /// One request over TLS, without a token; the whole answer.
    fn ask(&self, method: &str, path: &str, person: Option<(PathBuf, PathBuf)>) -> String {
        self.said(method, path, "", "", person)
    }

    fn stream(&self, person: Option<(PathBuf, PathBuf)>) -> Stream {
        let address = self.url.strip_prefix("https://").unwrap();
        let ca = self.rig.data_dir().join("tls/ca.crt");
        secure(address, "127.0.0.1", &ca, person)
    }

    fn said(
        &self,
        method: &str,
        path: &str,
        head: &str,
        body: &str,
        person: Option<(PathBuf, PathBuf)>,
    ) -> String {
        let mut stream = self.stream(person);
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{head}\r\n{body}"
        );
        // A server may refuse before it has read everything.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = String::new();
        // A server may hang up without the end of TLS.
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    pub(crate) fn token(&self, name: &str, role: &str) -> String {
        let made = self.rig.cli(&["token", "create", name, "--role", role]);
        made.ok().trim().to_owned()
    }
}

#[test]
fn a_token_lets_in_as_far_as_its_role_goes_and_until_it_is_taken_away() {
    let server = Listening::new();
    let get = ["get", "nodes", "-o", "name"];
    let node = format!("node/{}\n", server.rig.app);

    // Whoever runs the server has the first token, and nobody else can read it.
    let file = server.rig.data_dir().join("token");
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let admin = fs::read_to_string(&file).unwrap();
    assert_eq!(server.with_token(&admin, &get).ok(), node);

    let nobody = server.elsewhere(&get).output().unwrap();
    Said::from(nobody).fails(4, &["say who you are"]);
    server
        .with_token("admin.0000", &get)
        .fails(4, &["not known here", "platctrl token create"]);

    let viewer = server.token("ann", "viewer");
    assert_eq!(server.with_token(&viewer, &get).ok(), node);
    let target = format!("node/{}", server.rig.app);
    let label = ["label", target.as_str(), "a=b"];
    server
        .with_token(&viewer, &label)
        .fails(4, &["ann", "viewer", "takes the role operator"]);
    server
        .with_token(&viewer, &["token", "list"])
        .fails(4, &["takes the role admin"]);
    let operator = server.token("bob", "operator");
    server.with_token(&operator, &label).ok();
    server
        .with_token(&operator, &["token", "create", "c", "--role", "admin"])
        .fails(4, &["takes the role admin"]);

    // The list names them and shows no secret.
    let list = server.with_token(&admin, &["token", "list"]).ok();
    assert!(list.contains("ann") && list.contains("viewer"), "{list}");
    assert!(!list.contains(viewer.split_once('.').unwrap().1), "{list}");
    server
        .rig
        .cli(&["token", "create", "ann", "--role", "admin"])
        .fails(6, &["there is a token `ann` already"]);

    server.rig.cli(&["token", "delete", "ann"]).ok();
    eventually("the end of a token", || {
        (server.with_token(&viewer, &get).code == Some(4)).then_some(())
    });
    server
        .rig
        .cli(&["token", "delete", "ann"])
        .fails(5, &["there is no token `ann`"]);
}

#[test]
fn a_server_that_is_not_the_right_one_is_not_talked_to() {
    let server = Listening::new();
    let other = server.rig.path("other");
    let dir = other.to_str().unwrap();
    server.rig.cli(&["ca", "init", "--tls-dir", dir]).ok();
    server
        .rig
        .cli(&["ca", "init", "--tls-dir", dir])
        .fails(6, &["has an authority already"]);
    let get = ["get", "nodes"];
    let mut command = server.elsewhere(&get);
    let foreign = command
        .env("PLATCTRL_CA", other.join("ca.crt"))
        .env("PLATCTRL_TOKEN", "not.sent")
        .output()
        .unwrap();
    Said::from(foreign).fails(4, &["UnknownIssuer", "is not the authority of this server"]);
    let mut command = server.elsewhere(&get);
    let missing = command.env("PLATCTRL_CA", "/nowhere.crt").output().unwrap();
    Said::from(missing).fails(1, &["/nowhere.crt", "--ca"]);
    let mut command = server.elsewhere(&get);
    let nobody = command
        .env("PLATCTRL_SERVER", "https://127.0.0.1:1")
        .output()
        .unwrap();
    Said::from(nobody).fails(3, &["127.0.0.1:1", "refused"]);

    // A server whose files are missing says how they are made.
    let mut rig = Rig::new();
    let missing = rig.path("tls");
    let said = rig.cli(&[
        "up",
        "--listen",
        "not an address",
        "--tls-dir",
        missing.to_str().unwrap(),
    ]);
    said.fails(2, &["--listen"]);
    fs::create_dir(&missing).unwrap();
    fs::write(missing.join("ca.crt"), "no certificate").unwrap();
    let said = rig.cli(&[
        "up",
        "--node",
        &rig.app,
        "--listen",
        "127.0.0.1:0",
        "--tls-dir",
        missing.to_str().unwrap(),
    ]);
    said.fails(1, &["ca.crt", "holds no certificate"]);
    rig.up();
}

#[test]
fn a_certificate_of_the_authority_names_a_person_and_their_role() {
    let server = Listening::new();
    let dir = server.rig.path("");
    for role in ["viewer", "operator"] {
        let name = format!("eve-{role}");
        let issue = ["ca", "issue", &name, "--role", role, "-o"];
        let args: Vec<&str> = issue.into_iter().chain(dir.to_str()).collect();
        server.rig.cli(&args).ok();
        let key = server.rig.path(&format!("{name}.key"));
        let mode = fs::metadata(key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let ask = |name: &str, method: &str, path: &str| {
        let file = |suffix: &str| server.rig.path(&format!("{name}.{suffix}"));
        server.ask(method, path, Some((file("crt"), file("key"))))
    };
    let who = ask("eve-viewer", "GET", "/auth/self");
    assert!(who.contains(r#""name":"eve-viewer""#), "{who}");
    let refused = ask("eve-viewer", "POST", "/failsafe/freeze");
    assert!(refused.contains("takes the role operator"), "{refused}");
    let who = ask("eve-operator", "GET", "/auth/self");
    assert!(who.contains(r#""role":"operator""#), "{who}");
}

#[test]
fn plain_http_gets_400_and_one_line_and_anybody_may_ask_for_health() {
    let server = Listening::new();
    let address = server.url.strip_prefix("https://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .write_all(b"GET /apis HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.ends_with("use https://\n"), "{answer}");

    let health = server.ask("GET", "/healthz", None);
    assert!(health.starts_with("HTTP/1.1 200 "), "{health}");
    assert!(health.ends_with("\r\n\r\nok"), "{health}");
    let refused = server.ask("GET", "/version", None);
    assert!(refused.starts_with("HTTP/1.1 401 "), "{refused}");
    assert!(
        refused.to_lowercase().contains("www-authenticate: bearer"),
        "{refused}"
    );

    // Whoever says nothing holds nobody up.
    let silent = TcpStream::connect(address).unwrap();
    let admin = fs::read_to_string(server.rig.data_dir().join("token")).unwrap();
    server.with_token(&admin, &["get", "nodes"]).ok();
    drop(silent);
}

#[test]
fn a_kubeconfig_says_where_the_server_is_and_who_asks() {
    let server = Listening::new();
    let text = server.rig.cli(&["kubeconfig"]).ok();
    for part in [
        server.url.as_str(),
        "certificate-authority-data:",
        "current-context: platctrl",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let quiet = Rig::new();
    quiet
        .cli(&["kubeconfig"])
        .fails(3, &["does not listen on the network", "--listen"]);
}
