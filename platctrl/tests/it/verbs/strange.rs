//! Servers of another version, and what is no server of platctrl at all.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Ground, is_told, with_a_server};
use crate::rig::{Rig, Said};

/// What a server makes of a request: its path, and all of it.
type Answers = dyn Fn(&str, &[u8]) -> Vec<u8> + Send + Sync;

/// A server on a socket of its own, one request a connection.
struct Strange {
    socket: PathBuf,
    asked: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Strange {
    fn new(socket: PathBuf, answers: Arc<Answers>) -> Self {
        let listener = UnixListener::bind(&socket).unwrap();
        let (asked, stop) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (count, stopped) = (asked.clone(), stop.clone());
        let serve = move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                let (answers, count) = (answers.clone(), count.clone());
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let Some((path, request)) = request(&mut stream) else {
                        return;
                    };
                    count.fetch_add(1, Ordering::Release);
                    // Whoever asked may have gone.
                    let _ = stream.write_all(&answers(&path, &request));
                });
            }
        };
        Self {
            socket,
            asked,
            stop,
            thread: Some(std::thread::spawn(serve)),
        }
    }

    fn flag(&self) -> String {
        format!("unix:{}", self.socket.display())
    }
}

impl Drop for Strange {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = UnixStream::connect(&self.socket);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A request with its body.
fn request(stream: &mut UnixStream) -> Option<(String, Vec<u8>)> {
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let read = stream.read(&mut piece).ok()?;
        if read == 0 {
            return None;
        }
        bytes.extend_from_slice(&piece[..read]);
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse::<usize>().ok())?
        });
        if bytes.len() >= end + 4 + length.unwrap_or(0) {
            return Some((head.split(' ').nth(1)?.to_owned(), bytes));
        }
    }
}

fn answer(status: &str, media: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {media}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Answers that no server of this version gives.
fn odd_answers() -> Vec<(&'static str, Arc<Answers>)> {
    let fixed = |status: &'static str, media: &'static str, body: &'static str| -> Arc<Answers> {
        Arc::new(move |_: &str, _: &[u8]| answer(status, media, body.as_bytes()))
    };
    vec![
        ("an empty object", fixed("200 OK", "application/json", "{}")),
        ("nothing", fixed("200 OK", "application/json", "null")),
        ("a list", fixed("200 OK", "application/json", "[]")),
        ("numbers", fixed("200 OK", "application/json", "[1, 2, 3]")),
        ("a page", fixed("200 OK", "text/html", "<html>hello</html>")),
        (
            "no text",
            fixed("200 OK", "application/json", "\u{1}\u{1b}[2J"),
        ),
        (
            "no such path",
            fixed("404 Not Found", "text/plain", "no route\u{1b}[31m"),
        ),
        (
            "a status of nothing",
            fixed("404 Not Found", "application/json", "{\"kind\": 7}"),
        ),
        (
            "trouble",
            fixed("500 Internal Server Error", "text/plain", ""),
        ),
        ("elsewhere", fixed("302 Found", "text/plain", "")),
        (
            "not HTTP",
            Arc::new(|_: &str, _: &[u8]| b"SSH-2.0-OpenSSH_9\r\n".to_vec()),
        ),
        ("silence", Arc::new(|_: &str, _: &[u8]| Vec::new())),
        (
            "half an answer",
            Arc::new(|_: &str, _: &[u8]| {
                b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"items\":".to_vec()
            }),
        ),
        (
            "kinds of a form that is to come",
            Arc::new(|path: &str, _: &[u8]| {
                let body = match path {
                    "/kinds" => {
                        json!({"items": [{"apiVersion": "kinds/v9", "spec": {"names": {}}}]})
                    }
                    _ => json!({"kind": "Future", "spec": []}),
                };
                answer("200 OK", "application/json", body.to_string().as_bytes())
            }),
        ),
    ]
}

#[test]
fn what_is_no_server_of_this_version_is_told_by_every_verb() {
    let ground = Ground::new();
    let rig = ground.rig();
    let objects = ground.objects();
    for (at, (what, answers)) in odd_answers().into_iter().enumerate() {
        let strange = Strange::new(rig.path(&format!("strange{at}.sock")), answers);
        for row in with_a_server() {
            let arguments = ground.arguments(row, &objects);
            let flag = strange.flag();
            let mut words = vec!["--server", flag.as_str()];
            words.extend(arguments.iter().map(String::as_str));
            let mut command = rig.command(&words);
            let said = Said::from(
                command
                    .env("EDITOR", "true")
                    .env("TMPDIR", rig.path(""))
                    .output()
                    .unwrap(),
            );
            is_told(row, &said);
            assert!(
                said.code.is_some_and(|code| (1..=8).contains(&code)),
                "{what}: {row:?}: {said:#?}"
            );
        }
        assert!(
            strange.asked.load(Ordering::Acquire) > 0,
            "{what}: nobody asked"
        );
    }
    assert!(!rig.path("saved").exists(), "a backup of nothing");
}

/// Passes everything on to a server, and adds to each answer what a newer one may.
fn newer(socket: PathBuf) -> Arc<Answers> {
    Arc::new(move |path: &str, request: &[u8]| passed_on(&socket, path, request))
}

fn passed_on(socket: &Path, path: &str, request: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).unwrap();
    // The answer ends when the connection does.
    let end = request.windows(2).position(|two| two == b"\r\n").unwrap();
    let (line, rest) = request.split_at(end);
    stream
        .write_all(&[line, b"\r\nConnection: close", rest].concat())
        .unwrap();
    let mut whole = Vec::new();
    stream.read_to_end(&mut whole).unwrap();
    let end = whole
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    let head = String::from_utf8_lossy(&whole[..end]).into_owned();
    let is_json = head
        .to_lowercase()
        .contains("content-type: application/json");
    let body = &whole[end + 4..];
    let Ok(mut value) = serde_json::from_slice::<Value>(body) else {
        return whole;
    };
    if !is_json {
        return whole;
    }
    match path {
        "/version" => value["gitVersion"] = "v9.9.9".into(),
        _ => future(&mut value),
    }
    let kept = head
        .lines()
        .filter(|line| !line.to_lowercase().starts_with("content-length"));
    let kept: Vec<&str> = kept.collect();
    let body = value.to_string();
    let head = format!(
        "{}\r\nContent-Length: {}\r\n\r\n",
        kept.join("\r\n"),
        body.len()
    );
    [head.into_bytes(), body.into_bytes()].concat()
}

/// Fields that nobody knows yet, everywhere.
fn future(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(future),
        Value::Object(fields) => {
            let is_of_people = fields.contains_key("kind") || fields.contains_key("metadata");
            for (name, inner) in fields.iter_mut() {
                if matches!(name.as_str(), "items" | "status" | "metadata") {
                    future(inner);
                }
            }
            if is_of_people {
                fields.insert("future".into(), json!({"nobody": ["knows", 1, null]}));
            }
        }
        _ => {}
    }
}

#[test]
fn a_newer_server_that_says_more_is_understood_by_every_verb_that_looks() {
    let ground = Ground::new();
    let rig = ground.rig();
    let objects = ground.objects();
    let strange = Strange::new(
        rig.path("newer.sock"),
        newer(rig.data_dir().join("platctrl.sock")),
    );
    let flag = strange.flag();
    let run = |rig: &Rig, arguments: &[String]| {
        let mut words = vec!["--server", flag.as_str()];
        words.extend(arguments.iter().map(String::as_str));
        rig.cli(&words)
    };
    for row in with_a_server().filter(|row| row.does == super::Does::Asks) {
        // An answer without an end is not passed on.
        if matches!(row.verb, "wait" | "rollout status") {
            continue;
        }
        let said = run(rig, &ground.arguments(row, &objects));
        is_told(row, &said);
        assert!(row.well.contains(&said.code.unwrap()), "{row:?}: {said:#?}");
    }
    let version = run(rig, &["version".to_owned()]);
    assert!(version.out.contains("server 9.9.9"), "{version:#?}");
    assert!(
        version.err.contains("the server is of version 9.9.9") && version.err.contains("hint:"),
        "{version:#?}"
    );
    let doctor = run(rig, &["doctor".to_owned()]);
    assert!(doctor.out.contains("is of version 9.9.9"), "{doctor:#?}");
}
