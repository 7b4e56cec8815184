//! A pod's program for tests: serves HTTP on PORT_HTTP, or only lives where there is no such port.
//!
//! `/env` answers with its environment, `/who` with its user, `/version` with what is in the file
//! `version` of its artifact, `/crash` ends it with code 7, and `/_status` with 200, or with 503
//! while there is a file `unhealthy` in its home. With IGNORE_TERM it only ends by SIGKILL. When
//! there is the file that LOG_LINES_WHEN names in its home, it writes 200,000 numbered lines. With
//! TLS_IN, a directory, it serves HTTPS as `server`, to those alone whom `ca.pem` there has signed.

#![allow(
    clippy::unwrap_used,
    reason = "this is a part of tests: what goes wrong is a failure"
)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

fn main() {
    println!("started");
    if let Ok(code) = env("EXIT_WITH").parse() {
        std::process::exit(code);
    }
    if !env("LOG_LINES_WHEN").is_empty() {
        std::thread::spawn(log_lines);
    }
    let Ok(port) = env("PORT_HTTP").parse::<u16>() else {
        loop {
            std::thread::park();
        }
    };
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let tls = Some(env("TLS_IN")).filter(|dir| !dir.is_empty());
    let tls = tls.map(|dir| Arc::new(tls_in(Path::new(&dir))));
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        match &tls {
            None => answer(stream),
            Some(tls) => {
                let connection = ServerConnection::new(Arc::clone(tls)).unwrap();
                answer(StreamOwned::new(connection, stream));
            }
        }
    }
}

fn tls_in(dir: &Path) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificate = |name: &str| CertificateDer::from_pem_file(dir.join(name)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate("ca.pem")).unwrap();
    let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let key = PrivateKeyDer::from_pem_file(dir.join("server.key")).unwrap();
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients.build().unwrap())
        .with_single_cert(vec![certificate("server.pem")], key)
        .unwrap()
}

fn answer(mut stream: impl Read + Write) {
    let mut buffer = [0; 4096];
    let Ok(length) = stream.read(&mut buffer) else {
        return;
    };
    let request = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let path = request.split(' ').nth(1).unwrap_or("/").to_owned();
    let (status, body) = match path.as_str() {
        "/env" => {
            let all = std::env::vars().map(|(name, value)| format!("{name}={value}\n"));
            (200, all.collect())
        }
        "/who" => (
            200,
            std::fs::read_to_string("/proc/self/status").unwrap_or_default(),
        ),
        "/config" => (
            200,
            std::fs::read_to_string(env("CONFIG_PATH")).unwrap_or_default(),
        ),
        "/version" => {
            let file = PathBuf::from(env("LAUNCHABLE_ROOT")).join("version");
            (200, std::fs::read_to_string(file).unwrap_or_default())
        }
        "/crash" => std::process::exit(7),
        "/_status" if PathBuf::from(env("HOME")).join("unhealthy").exists() => {
            (503, "unhealthy".to_owned())
        }
        _ => (200, "ok".to_owned()),
    };
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    let _ = stream.write_all(answer.as_bytes());
    let _ = stream.flush();
}

fn log_lines() {
    let home = PathBuf::from(std::env::var("HOME").unwrap());
    let go = home.join(std::env::var("LOG_LINES_WHEN").unwrap());
    // A test puts it there, and nothing tells of it.
    while !go.exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let mut out = std::io::stdout().lock();
    for number in 0..200_000 {
        writeln!(out, "line {number}").unwrap();
    }
    out.flush().unwrap();
    std::fs::write(home.join("written"), "").unwrap();
}
