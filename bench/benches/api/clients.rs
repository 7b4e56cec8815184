//! Clients of the server that cost little themselves.

use std::path::Path;
use std::time::{Duration, Instant};

use platctrl_bench::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::PATIENCE;

const PODS: &str = "/apis/platctrl.dev/v1/namespaces/default/pods";

fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async { tokio::time::timeout(PATIENCE, work).await? })
}

async fn ask(socket: &Path, request: &str) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(request.as_bytes()).await?;
    Ok(stream)
}

/// Waits until a server has mirrored its store: no watch begins before.
pub(crate) fn mirrored(socket: &Path) -> Result<()> {
    run(async {
        let revision = revision(socket).await?;
        loop {
            let path = format!("{PODS}?watch=1&resourceVersion={revision}&timeoutSeconds=1");
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            let mut answer = String::new();
            let mut stream = ask(socket, &request).await?;
            stream.read_to_string(&mut answer).await?;
            if answer.starts_with("HTTP/1.1 200") {
                return Ok(());
            }
            if !answer.starts_with("HTTP/1.1 503") {
                return Err(format!("no watch begins: {answer}").into());
            }
        }
    })
}

/// Reads lists whole, so many at once; how many objects and bytes they had together.
pub(crate) fn list(socket: &Path, at_once: usize) -> Result<(usize, usize)> {
    let one = async || -> Result<(usize, usize)> {
        let request = format!("GET {PODS} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let mut stream = ask(socket, &request).await?;
        let (mut objects, mut bytes) = (0, 0);
        let mut buffer = vec![0; 256 * 1024];
        // What is looked for may be in two pieces.
        let mut tail = Vec::new();
        loop {
            let read = stream.read(&mut buffer).await?;
            if read == 0 {
                return Ok((objects, bytes));
            }
            bytes += read;
            tail.extend_from_slice(&buffer[..read]);
            let (found, rest) = count(&tail, b"\"phase\":\"Running\"");
            objects += found;
            tail = rest;
        }
    };
    run(async {
        let all = futures::future::try_join_all((0..at_once).map(|_| one())).await?;
        Ok(all
            .iter()
            .fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1)))
    })
}

/// How often something is in bytes, and the end in which the next may begin.
fn count(bytes: &[u8], what: &[u8]) -> (usize, Vec<u8>) {
    let (mut found, mut at) = (0, 0);
    while let Some(next) = bytes[at..]
        .windows(what.len())
        .position(|window| window == what)
    {
        found += 1;
        at += next + what.len();
    }
    let rest = bytes.len().saturating_sub(what.len() - 1).max(at);
    (found, bytes[rest..].to_vec())
}

/// Changes a pod again and again, and measures until the last of many watchers has been told.
pub(crate) fn watch(socket: &Path, watchers: usize, changes: usize) -> Result<Vec<Duration>> {
    run(async {
        let revision = revision(socket).await?;
        let request =
            format!("GET {PODS}?watch=1&resourceVersion={revision} HTTP/1.1\r\nHost: x\r\n\r\n");
        let mut streams = Vec::new();
        for _ in 0..watchers {
            let mut stream = ask(socket, &request).await?;
            until(&mut stream, b"\r\n\r\n").await?;
            streams.push(stream);
        }
        let mut times = Vec::new();
        for change in 0..changes {
            let mark = format!("change-{change:04}");
            let body = format!(r#"{{"metadata":{{"annotations":{{"mark":"{mark}"}}}}}}"#);
            let patch = format!(
                "PATCH {PODS}/pod-000000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/merge-patch+json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let begun = Instant::now();
            let mut patched = ask(socket, &patch).await?;
            let told = streams
                .iter_mut()
                .map(|stream| until(stream, mark.as_bytes()));
            futures::future::try_join_all(told).await?;
            times.push(begun.elapsed());
            let mut answer = String::new();
            patched.read_to_string(&mut answer).await?;
            if !answer.starts_with("HTTP/1.1 200") {
                return Err(format!("the change was refused: {answer}").into());
            }
        }
        Ok(times)
    })
}

/// Reads until something has come.
async fn until(stream: &mut UnixStream, what: &[u8]) -> Result<()> {
    let mut seen = Vec::new();
    let mut buffer = [0; 8 * 1024];
    while count(&seen, what).0 == 0 {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Err("the server hung up".into());
        }
        seen.extend_from_slice(&buffer[..read]);
    }
    Ok(())
}

/// The newest revision.
async fn revision(socket: &Path) -> Result<String> {
    let request = format!("GET {PODS}?limit=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    ask(socket, &request)
        .await?
        .read_to_string(&mut answer)
        .await?;
    let (_, rest) = answer
        .rsplit_once("\"resourceVersion\":\"")
        .ok_or("the list has no version")?;
    Ok(rest.split('"').next().unwrap_or_default().to_owned())
}
