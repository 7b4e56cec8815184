//! A relay in front of a server that lies about indexes on demand: they went backwards, as they do
//! when tombstones were reaped or a snapshot was restored.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[derive(Debug, Default)]
struct State {
    /// Told instead of the index of the next answer to a wait for such a path.
    lie: Option<(String, u64)>,
    /// What was asked in waits, in order: the path and the index.
    waits: Vec<(String, u64)>,
}

/// Relays requests to one server, each on a connection of its own, until it is dropped.
pub(crate) struct Relay {
    pub(crate) address: std::net::SocketAddr,
    state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relay {
    pub(crate) async fn start(to: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (to, state) = (to.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    // A connection that breaks ends its relay, and nothing else.
                    let _ = serve(client, &to, &state).await;
                });
            }
        });
        Self {
            address,
            state,
            task,
        }
    }

    /// The next answer to a wait for a path that ends like this tells this index.
    pub(crate) fn lie(&self, end: &str, index: u64) {
        self.locked().lie = Some((end.to_owned(), index));
    }

    /// The waits so far for paths that end like this: their indexes.
    pub(crate) fn waits(&self, end: &str) -> Vec<u64> {
        let state = self.locked();
        let waits = state.waits.iter().filter(|(path, _)| path.ends_with(end));
        waits.map(|(_, index)| *index).collect()
    }

    /// The index of the last of them.
    pub(crate) fn last_wait(&self, end: &str) -> Option<u64> {
        self.waits(end).pop()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests of one connection, one after the other.
async fn serve(mut client: TcpStream, to: &str, state: &Mutex<State>) -> std::io::Result<()> {
    let mut read = Vec::new();
    loop {
        let (head, body) = request(&mut client, &mut read).await?;
        let target = head.split(' ').nth(1).unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let index = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("index=")?.parse::<u64>().ok());
        if let Some(index) = index {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.waits.push((path.to_owned(), index));
        }
        // The older version of the protocol ends an answer with the connection.
        let mut server = TcpStream::connect(to).await?;
        let head = head.replacen(" HTTP/1.1", " HTTP/1.0", 1);
        server.write_all(head.as_bytes()).await?;
        server.write_all(&body).await?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer).await?;
        let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Ok(());
        };
        let body = answer.split_off(end + 4);
        let lie = index.and_then(|_| {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            let lie = state.lie.take_if(|(end, _)| path.ends_with(end.as_str()));
            lie.map(|(_, index)| index)
        });
        let text = String::from_utf8_lossy(&answer);
        let mut told = String::new();
        for line in text.trim_end().split("\r\n") {
            let line = line.replacen("HTTP/1.0", "HTTP/1.1", 1);
            let name = line.split(':').next().unwrap_or_default().to_lowercase();
            match (name.as_str(), lie) {
                ("content-length" | "connection" | "transfer-encoding", _) => {}
                ("x-consul-index", Some(lie)) => told.push_str(&format!("{name}: {lie}\r\n")),
                _ => told.push_str(&format!("{line}\r\n")),
            }
        }
        told.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        client.write_all(told.as_bytes()).await?;
        client.write_all(&body).await?;
    }
}

/// The next request: its head and its body.
async fn request(client: &mut TcpStream, read: &mut Vec<u8>) -> std::io::Result<(String, Vec<u8>)> {
    let mut more = [0; 16 << 10];
    loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&read[..end + 4]).into_owned();
            let length = head.to_lowercase();
            let length = length.split("content-length:").nth(1);
            let length = length.and_then(|rest| rest.lines().next()?.trim().parse().ok());
            let whole = end + 4 + length.unwrap_or(0);
            if read.len() >= whole {
                let rest = read.split_off(whole);
                let body = std::mem::replace(read, rest).split_off(end + 4);
                return Ok((head, body));
            }
        }
        match client.read(&mut more).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => read.extend_from_slice(&more[..count]),
        }
    }
}
