//! A server on a unix socket that answers what a test wants.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::sync::Notify;

/// Answers each request on `socket` with what `answer` makes; counts them.
pub(super) fn serve(
    socket: &Path,
    answer: impl Fn() -> (String, Vec<u8>) + Send + Sync + 'static,
) -> Arc<AtomicUsize> {
    serve_when(socket, answer, None)
}

/// As [`serve`]; the body is sent once `go` says so, or never when it never does.
pub(super) fn serve_when(
    socket: &Path,
    answer: impl Fn() -> (String, Vec<u8>) + Send + Sync + 'static,
    go: Option<Arc<Notify>>,
) -> Arc<AtomicUsize> {
    let listener = UnixListener::bind(socket).unwrap();
    let requests = Arc::new(AtomicUsize::new(0));
    let (count, answer) = (Arc::clone(&requests), Arc::new(answer));
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (count, answer, go) = (Arc::clone(&count), Arc::clone(&answer), go.clone());
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => request.push(byte),
                        Err(_) => return,
                    }
                }
                count.fetch_add(1, Ordering::SeqCst);
                let (head, body) = answer();
                let _ = stream.write_all(head.as_bytes()).await;
                if let Some(go) = go {
                    go.notified().await;
                }
                let _ = stream.write_all(&body).await;
            });
        }
    });
    requests
}

pub(super) fn ok(body: &[u8]) -> (String, Vec<u8>) {
    (
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()),
        body.to_vec(),
    )
}
