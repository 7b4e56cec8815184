//! The real program, over TCP.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A running server, killed at the end of its test.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(config: &str) -> Self {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(config.as_bytes()).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_platctrl-quickstart"))
            .env_clear()
            .env("PORT_HTTP", "0")
            .env("CONFIG_PATH", file.path())
            .env("POD_NAME", "hello-1")
            .env("NODE_NAME", "here")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let port = line.trim().rsplit(':').next().unwrap().parse().unwrap();
        Self { child, port }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }

    /// Sends `request` and reads until the server closes.
    fn exchange(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_root_answers_with_the_greeting_the_pod_the_node_and_the_pid() {
    let server = Server::start("greeting: hi\n");
    let answer = server.exchange("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let expected = format!(
        "hi from pod hello-1 on node here, pid {}\n",
        server.child.id()
    );
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with(&format!("\r\n\r\n{expected}")), "{answer}");
}

#[test]
fn the_status_says_ok_and_the_rest_is_refused() {
    let server = Server::start("");
    for (line, status, body) in [
        ("GET /_status", "200 OK", "\r\n\r\nok"),
        ("HEAD /_status", "200 OK", "\r\n\r\n"),
        ("GET /other", "404 Not Found", "/_status\n"),
        ("DELETE /", "405 Method Not Allowed", "here\n"),
        ("GET", "400 Bad Request", "understood\n"),
    ] {
        let answer = server.exchange(&format!(
            "{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        ));
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}\r\n")),
            "{line}: {answer}"
        );
        assert!(answer.ends_with(body), "{line}: {answer}");
    }
}

#[test]
fn peers_that_say_nothing_keep_nobody_else_waiting() {
    let server = Server::start("");
    let _silent: Vec<TcpStream> = (0..20).map(|_| server.connect()).collect();
    let answer = server.exchange("GET /_status HTTP/1.0\r\n\r\n");
    assert!(answer.ends_with("ok"), "{answer}");
}

#[test]
fn more_connections_than_it_serves_are_told_to_come_back() {
    let server = Server::start("");
    let _silent: Vec<TcpStream> = (0..64).map(|_| server.connect()).collect();
    let answer = server.exchange("");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}

#[test]
fn a_missing_port_is_named_with_its_way_out() {
    let output = Command::new(env!("CARGO_BIN_EXE_platctrl-quickstart"))
        .env_clear()
        .output()
        .unwrap();
    assert!(!output.status.success());
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.contains("PORT_HTTP") && message.contains("ports:"),
        "{message}"
    );
}
