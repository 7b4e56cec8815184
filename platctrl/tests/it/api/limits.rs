//! What a client may cost.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::{Api, CONTROLLERS, controller};

async fn raw(api: &Api, request: &[u8]) -> String {
    let stream = platctrl::server::connect(&api.dir.path().join("platctrl.sock")).unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut stream = UnixStream::from_std(stream).unwrap();
    let _ = stream.write_all(request).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let _ = tokio::time::timeout(Duration::from_secs(20), read)
        .await
        .expect("it ends");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn what_is_no_http_harms_nobody() {
    let api = Api::start().await;
    for request in [
        &b""[..],
        b"\0\0\0\0",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n",
        b"GET /apis/%ff%fe/v1/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"POST /apis/platctrl.dev/v1/pods HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let answer = raw(&api, request).await;
        assert!(!answer.contains("200 OK"), "{answer}");
    }
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(200_000));
    raw(&api, long.as_bytes()).await;
    api.get("/healthz").await;
    api.post(CONTROLLERS, &controller("a")).await.done();
}

#[tokio::test]
async fn more_connections_than_allowed_wait_for_one_to_end() {
    let api = Api::with(|config| config.max_connections = 1).await;
    let held = api.stream(&format!("{CONTROLLERS}?watch=1")).await;
    let waiting = api.get("/healthz");
    tokio::pin!(waiting);
    let early = tokio::time::timeout(Duration::from_millis(100), waiting.as_mut()).await;
    assert!(early.is_err(), "there is no room for it yet");
    drop(held);
    let answer = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    assert_eq!(answer.expect("now there is room").text(), "ok");
}

#[tokio::test]
async fn a_server_that_stops_ends_its_watches() {
    let api = Api::start().await;
    let mut watch = api.stream(&format!("{CONTROLLERS}?watch=1")).await;
    let Api { _stop, dir, .. } = api;
    drop(_stop);
    assert_eq!(watch.line().await, None);
    drop(dir);
}
