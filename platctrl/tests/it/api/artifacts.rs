use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use platctrl_framework::model::Digest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::Api;

fn path(hex: &str) -> String {
    format!("/artifacts/sha256/{hex}")
}

fn file(api: &Api, hex: &str) -> PathBuf {
    api.dir.path().join("artifacts/sha256").join(hex)
}

fn unfinished(api: &Api) -> usize {
    std::fs::read_dir(api.dir.path().join("artifacts/partial")).map_or(0, Iterator::count)
}

fn connected(api: &Api) -> UnixStream {
    let stream = platctrl::server::connect(&api.dir.path().join("platctrl.sock")).unwrap();
    stream.set_nonblocking(true).unwrap();
    UnixStream::from_std(stream).unwrap()
}

/// The one answer that is said over a connection, which stays open.
async fn answer(stream: &mut UnixStream) -> String {
    let mut answer = String::new();
    loop {
        if let Some((head, body)) = answer.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.unwrap().parse().unwrap() {
                return answer;
            }
        }
        let mut bytes = [0; 4096];
        let read = stream.read(&mut bytes).await.unwrap();
        assert!(read > 0, "it ended after {answer}");
        answer.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
    }
}

#[tokio::test]
async fn an_artifact_is_stored_by_its_digest_and_read_again() {
    let api = Api::start().await;
    let bytes: Vec<u8> = (0..3_000_000_u32)
        .map(|number| (number % 251) as u8)
        .collect();
    let hex = Digest::of(&bytes).hex();
    let kind = "application/octet-stream";
    api.get(&path(&hex)).await.fails(404, "NotFound");
    let stored = api.ask(Method::PUT, &path(&hex), kind, bytes.clone()).await;
    assert_eq!(stored.code, 201);
    assert_eq!(stored.json()["location"], format!("artifact:sha256:{hex}"));
    assert_eq!(std::fs::read(file(&api, &hex)).unwrap(), bytes);
    let mode = std::fs::metadata(file(&api, &hex))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(
        api.ask(Method::PUT, &path(&hex), kind, bytes.clone())
            .await
            .code,
        200
    );
    let read = api.get(&path(&hex)).await;
    assert_eq!(read.header("content-length"), bytes.len().to_string());
    assert!(read.bytes == bytes);
    let head = api.ask(Method::HEAD, &path(&hex), "", "").await;
    assert_eq!(
        (head.code.as_u16(), head.header("content-length")),
        (200, "3000000")
    );
    assert!(head.bytes.is_empty());
    assert_eq!(unfinished(&api), 0);
}

#[tokio::test]
async fn an_artifact_of_another_digest_is_refused_and_leaves_nothing() {
    let api = Api::start().await;
    let hex = Digest::of("right").hex();
    let message = api
        .ask(Method::PUT, &path(&hex), "", "wrong")
        .await
        .fails(400, "BadRequest");
    assert!(message.contains(&Digest::of("wrong").hex()), "{message}");
    assert!(!file(&api, &hex).exists());
    assert_eq!(unfinished(&api), 0);
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let api = Api::start().await;
    let hex = Digest::of("whole").hex();
    let mut stream = connected(&api);
    let head = format!(
        "PUT {} HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nwho",
        path(&hex)
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let begun = async {
        while unfinished(&api) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), begun)
        .await
        .unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    drop(stream);
    let cleaned = async {
        while unfinished(&api) > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), cleaned)
        .await
        .unwrap();
    assert!(!file(&api, &hex).exists());
}

#[tokio::test]
async fn an_artifact_that_is_too_large_is_refused_before_it_is_sent() {
    let api = Api::start().await;
    let mut stream = connected(&api);
    let length = 1024_u64 * 1024 * 1024 + 1;
    let head = format!(
        "PUT {} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n",
        path(&"ab".repeat(32))
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("RequestEntityTooLarge"), "{answer}");
    assert_eq!(unfinished(&api), 0);
}

#[tokio::test]
async fn who_is_refused_while_it_uploads_hears_why_and_not_of_a_broken_pipe() {
    let api = Api::start().await;
    let mut stream = connected(&api);
    // Far more than the connection holds: it comes to its end only if the server takes it.
    let upload = vec![7; 16 << 20];
    let head = format!(
        "PUT {} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        path("x"),
        upload.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The answer is there before the upload begins.
    stream.readable().await.unwrap();
    stream.write_all(&upload).await.unwrap();
    let answer = answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("no SHA-256 digest"), "{answer}");
    // And the connection can be used on.
    let next = "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(next.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn what_is_no_digest_names_no_file() {
    let api = Api::start().await;
    for hex in [
        "x",
        &"AB".repeat(32),
        "..%2f..%2fplatctrl.sock",
        &"g".repeat(64),
    ] {
        api.get(&path(hex)).await.fails(400, "BadRequest");
        api.ask(Method::PUT, &path(hex), "", "x")
            .await
            .fails(400, "BadRequest");
    }
    api.delete(&path(&"ab".repeat(32)))
        .await
        .fails(405, "MethodNotAllowed");
    // A link in an artifact's place is not followed.
    let hex = "cd".repeat(32);
    std::fs::create_dir_all(file(&api, &hex).parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", file(&api, &hex)).unwrap();
    api.get(&path(&hex)).await.fails(500, "InternalError");
}

#[tokio::test]
async fn two_uploads_of_one_artifact_at_once_are_both_done() {
    let api = Api::start().await;
    let bytes = Bytes::from(vec![7; 1_000_000]);
    let hex = Digest::of(&bytes).hex();
    let put = || async {
        let request = Request::put(path(&hex))
            .header("host", "x")
            .body(Full::new(bytes.clone()))
            .unwrap();
        let answer = api.send(request).await;
        let code = answer.status();
        answer.into_body().collect().await.unwrap();
        code
    };
    let (one, two) = tokio::join!(put(), put());
    assert!(one.is_success() && two.is_success(), "{one} {two}");
    assert_eq!(std::fs::read(file(&api, &hex)).unwrap(), bytes);
}
