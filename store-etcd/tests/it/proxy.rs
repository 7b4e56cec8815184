//! A TCP proxy in front of a member that breaks connections on demand.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What the proxy was told to do.
#[derive(Debug, Default)]
struct Orders {
    /// Deliver the next thing a client says, and break the connection before the answer.
    lose_next: AtomicBool,
    /// How many answers were lost.
    lost: AtomicUsize,
    /// Nothing is let through, either way.
    holding: AtomicBool,
    /// How many connections were made.
    accepted: AtomicUsize,
}

/// A proxy on the current runtime.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) address: String,
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
        let address = listener.local_addr().unwrap().to_string();
        let orders = Arc::new(Orders::default());
        let followed = Arc::clone(&orders);
        let task = tokio::spawn(async move {
            let mut running = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (to, orders) = (to.clone(), Arc::clone(&followed));
                orders.accepted.fetch_add(1, Ordering::SeqCst);
                running.spawn(async move {
                    let Ok(server) = TcpStream::connect(to).await else {
                        return;
                    };
                    carry(client, server, &orders).await;
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

    pub(crate) fn accepted(&self) -> usize {
        self.orders.accepted.load(Ordering::SeqCst)
    }

    /// Lets nothing through, and connections stay open, until it is told otherwise.
    pub(crate) fn hold(&self, holding: bool) {
        self.orders.holding.store(holding, Ordering::SeqCst);
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
        while orders.holding.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::select! {
            read = from_client.read(&mut question) => {
                let Ok(length @ 1..) = read else { return };
                if orders.holding.load(Ordering::SeqCst) {
                    continue;
                }
                // A request carries a head; acknowledgements of the protocol are shorter.
                if length > 60 && orders.lose_next.swap(false, Ordering::SeqCst) {
                    doomed = true;
                }
                if to_server.write_all(&question[..length]).await.is_err() {
                    return;
                }
            }
            read = from_server.read(&mut answer) => {
                let Ok(length @ 1..) = read else { return };
                if doomed && length > 40 {
                    orders.lost.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                if !doomed && to_client.write_all(&answer[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}
