//! A TCP proxy in front of a server that breaks connections on demand.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What the proxy was told to do, and did.
#[derive(Debug, Default)]
struct Orders {
    /// Deliver the next commit, and break the connection before its answer.
    lose_next: AtomicBool,
    lost: AtomicUsize,
}

/// A proxy on the current runtime.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) address: std::net::SocketAddr,
    orders: Arc<Orders>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    pub(crate) async fn start(to: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let orders = Arc::new(Orders::default());
        let followed = Arc::clone(&orders);
        let task = tokio::spawn(async move {
            let mut running = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (to, orders) = (to.clone(), Arc::clone(&followed));
                running.spawn(async move {
                    if let Ok(server) = TcpStream::connect(to).await {
                        carry(client, server, &orders).await;
                    }
                });
            }
        });
        Self {
            address,
            orders,
            task,
        }
    }

    pub(crate) fn lose_next(&self) -> impl Fn() + Send + Sync + 'static {
        let orders = Arc::clone(&self.orders);
        move || orders.lose_next.store(true, Ordering::SeqCst)
    }

    pub(crate) fn lost(&self) -> usize {
        self.orders.lost.load(Ordering::SeqCst)
    }
}

async fn carry(client: TcpStream, server: TcpStream, orders: &Orders) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let mut question = vec![0; 64 << 10];
    let mut answer = vec![0; 64 << 10];
    let mut doomed = false;
    loop {
        tokio::select! {
            read = from_client.read(&mut question) => {
                let Ok(length @ 1..) = read else { return };
                // Reads say that they want a consistent answer; commits do not.
                let commit = question.starts_with(b"PUT /v1/txn? ");
                if commit && orders.lose_next.swap(false, Ordering::SeqCst) {
                    doomed = true;
                }
                if to_server.write_all(&question[..length]).await.is_err() {
                    return;
                }
            }
            read = from_server.read(&mut answer) => {
                let Ok(length @ 1..) = read else { return };
                if doomed {
                    orders.lost.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                if to_client.write_all(&answer[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}
