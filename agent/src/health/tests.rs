//! Probes against real servers, most of them hostile.

use std::sync::atomic::{AtomicUsize, Ordering};

use platctrl_kinds::{Span, TcpCheck};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

/// A server that handles each connection as told, until it is dropped.
struct Server {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn new<F>(handle: impl Fn(TcpStream, usize) -> F + Send + 'static) -> Self
    where
        F: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            let mut running = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let number = count.fetch_add(1, Ordering::SeqCst);
                // What clients do to a connection is nothing to a server.
                running.spawn(handle(stream, number));
            }
        });
        Self {
            address,
            connections,
            task,
        }
    }

    /// Reads the request and answers with `answer`.
    async fn answering(answer: &'static str) -> Self {
        Self::new(move |mut stream, _| async move {
            read_request(&mut stream).await?;
            stream.write_all(answer.as_bytes()).await
        })
        .await
    }
}

async fn read_request(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8(request).unwrap())
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn check(timeout: Duration) -> Health {
    let millis =
        |duration: Duration| Span::from_millis(u64::try_from(duration.as_millis()).unwrap());
    Health {
        http: None,
        tcp: Some(TcpCheck {
            port: "http".into(),
        }),
        exec: None,
        interval: Span::from_millis(20),
        timeout: millis(timeout),
        failure_threshold: 1,
        success_threshold: 1,
        grace: Span::from_millis(0),
    }
}

fn prober() -> Prober {
    Prober::new(Environment::system())
}

fn http(address: SocketAddr) -> Target {
    Target::Http {
        address,
        path: "/_status".into(),
    }
}

async fn once(address: SocketAddr, timeout: Duration) -> Result<(), String> {
    prober().probe(&check(timeout), &http(address)).await
}

async fn until(
    states: &mut watch::Receiver<HealthState>,
    is: impl Fn(&HealthState) -> bool,
) -> HealthState {
    let wait = states.wait_for(|state| is(state));
    tokio::time::timeout(DEADLINE, wait)
        .await
        .expect("in time")
        .unwrap()
        .clone()
}

#[tokio::test]
async fn a_2xx_is_healthy_and_is_asked_for_by_path_and_host() {
    let (sender, mut requests) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::new(move |mut stream, _| {
        let sender = sender.clone();
        async move {
            let _ = sender.send(read_request(&mut stream).await?);
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await
        }
    })
    .await;
    once(server.address, DEADLINE).await.unwrap();
    let request = requests.recv().await.unwrap();
    assert!(
        request.starts_with("GET /_status HTTP/1.1\r\n"),
        "{request}"
    );
    assert!(
        request.contains(&format!("host: {}\r\n", server.address)),
        "{request}"
    );
}

#[tokio::test]
async fn a_long_answer_that_ends_is_healthy() {
    let server = Server::new(|mut stream, _| async move {
        read_request(&mut stream).await?;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            .await?;
        for _ in 0..25 {
            stream
                .write_all(format!("1000\r\n{}\r\n", "x".repeat(4096)).as_bytes())
                .await?;
        }
        stream.write_all(b"0\r\n\r\n").await
    })
    .await;
    once(server.address, DEADLINE).await.unwrap();
}

#[tokio::test]
async fn answers_that_are_none_are_unhealthy_and_say_why() {
    let cases = [
        (
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
            "503",
        ),
        ("HTTP/1.1 404 Not Found\r\n\r\n", "404"),
        ("hello\r\n", "not HTTP/1.1"),
        ("<html>HTTP/0.9 answers like this</html>\n", "not HTTP/1.1"),
        ("", "closed the connection before its answer was whole"),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
            "before its answer was whole",
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            "chunk",
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
            "",
        ),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 Oh\r\n\r\n",
            "500",
        ),
    ];
    for (answer, expected) in cases {
        let server = Server::answering(answer).await;
        let reason = once(server.address, DEADLINE).await.unwrap_err();
        let asked = format!("GET http://{}/_status: ", server.address);
        let problem = reason
            .strip_prefix(&asked)
            .unwrap_or_else(|| panic!("{reason}"));
        assert!(
            problem.contains(expected) && !problem.is_empty(),
            "{answer:?}: {reason}"
        );
        assert!(!reason.contains("timed out"), "{answer:?}: {reason}");
    }
}

#[tokio::test]
async fn nobody_there_is_said_plainly() {
    let address = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let reason = once(address, DEADLINE).await.unwrap_err();
    assert_eq!(
        reason,
        format!("GET http://{address}/_status: connection refused")
    );
}

#[tokio::test]
async fn a_redirect_to_itself_is_not_followed() {
    let server = Server::answering("HTTP/1.1 301 Moved\r\nlocation: /_status\r\n\r\n").await;
    let reason = once(server.address, DEADLINE).await.unwrap_err();
    assert!(
        reason.contains("301") && reason.contains("not followed"),
        "{reason}"
    );
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_head_of_a_megabyte_is_refused() {
    let server = Server::new(|mut stream, _| async move {
        read_request(&mut stream).await?;
        let head = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(1 << 20));
        stream.write_all(head.as_bytes()).await
    })
    .await;
    let reason = once(server.address, DEADLINE).await.unwrap_err();
    assert!(
        reason.contains("the head of the answer is longer than 16 KiB"),
        "{reason}"
    );
}

#[tokio::test]
async fn an_endless_body_is_refused() {
    let server = Server::new(|mut stream, _| async move {
        read_request(&mut stream).await?;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
        loop {
            stream.write_all(&[b'x'; 65_536]).await?;
        }
    })
    .await;
    let reason = once(server.address, DEADLINE).await.unwrap_err();
    assert!(reason.contains("longer than 1024 KiB"), "{reason}");
}

/// Writes a little, slowly: the pause is what is tested, nothing waits for its end.
async fn trickle(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    tokio::time::sleep(Duration::from_millis(5)).await;
    Ok(())
}

#[tokio::test]
async fn whatever_takes_too_long_times_out_at_every_stage() {
    let short = Duration::from_millis(50);
    let silent = Server::new(|stream, _| async move {
        std::future::pending::<()>().await;
        drop(stream);
        Ok(())
    });
    let drip = Server::new(|mut stream, _| async move {
        read_request(&mut stream).await?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await?;
        loop {
            trickle(&mut stream, b"x").await?;
        }
    });
    let slow_body = Server::new(|mut stream, _| async move {
        read_request(&mut stream).await?;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
            .await?;
        loop {
            trickle(&mut stream, b"x").await?;
        }
    });
    let for_ever_100 = Server::new(|mut stream, _| async move {
        read_request(&mut stream).await?;
        loop {
            trickle(&mut stream, b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
    });
    let too_late = Server::new(|mut stream, _| async move {
        read_request(&mut stream).await?;
        // Only after the client gave up and closed.
        let _ = stream.read_u8().await;
        stream.write_all(OK.as_bytes()).await
    });
    let servers = [
        silent.await,
        drip.await,
        slow_body.await,
        for_ever_100.await,
        too_late.await,
    ];
    for (number, server) in servers.iter().enumerate() {
        let reason = once(server.address, short).await.unwrap_err();
        assert!(
            reason.ends_with("timed out after 50ms"),
            "{number}: {reason}"
        );
        assert_eq!(server.connections.load(Ordering::SeqCst), 1, "{number}");
    }
    // A queue that nobody accepts from: connected as far as the kernel is concerned.
    let half_open = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let reason = once(half_open.local_addr().unwrap(), short)
        .await
        .unwrap_err();
    assert!(reason.ends_with("timed out after 50ms"), "{reason}");
}

#[tokio::test]
async fn a_verdict_follows_what_the_pod_answers_and_is_told_only_when_it_changes() {
    let server = Server::new(|mut stream, number| async move {
        read_request(&mut stream).await?;
        let answer = if number < 10 {
            OK
        } else {
            "HTTP/1.1 500 Oh\r\n\r\n"
        };
        stream.write_all(answer.as_bytes()).await
    })
    .await;
    let probe = prober().spawn(check(DEADLINE), http(server.address), None);
    let mut states = probe.states();
    let healthy = until(&mut states, |state| state.verdict == Verdict::Healthy).await;
    // Nine more that say the same are no news: the next is the first that failed.
    tokio::time::timeout(DEADLINE, states.changed())
        .await
        .unwrap()
        .unwrap();
    let unhealthy = states.borrow_and_update().clone();
    assert!(server.connections.load(Ordering::SeqCst) > 10);
    let Verdict::Unhealthy { reason } = &unhealthy.verdict else {
        panic!("{unhealthy:?}")
    };
    assert!(reason.ends_with(": 500"), "{reason}");
    assert!(unhealthy.since >= healthy.since);
}

#[tokio::test]
async fn what_an_earlier_agent_knew_is_stale_until_asked_again() {
    let server = Server::answering(OK).await;
    let since = "2026-01-02T03:04:05Z".parse().unwrap();
    let known = HealthState {
        verdict: Verdict::Healthy,
        since,
        stale: false,
    };
    let probe = prober().spawn(check(DEADLINE), http(server.address), Some(known.clone()));
    let mut states = probe.states();
    assert!(states.borrow().stale);
    let fresh = until(&mut states, |state| !state.stale).await;
    assert_eq!(fresh, known, "healthy since then, and not stale any more");
}

#[tokio::test]
async fn a_dropped_probe_asks_no_more() {
    let server = Server::answering(OK).await;
    let probe = prober().spawn(check(DEADLINE), http(server.address), None);
    let mut states = probe.states();
    until(&mut states, |state| state.verdict == Verdict::Healthy).await;
    drop(probe);
    // The task is gone, and its sender with it.
    while states.changed().await.is_ok() {}
}

#[tokio::test]
async fn endpoints_that_hang_delay_no_other() {
    // Three times as many as may begin at once, all hanging for as long as the test lasts.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hanging = silent.local_addr().unwrap();
    let prober = prober();
    let hangs: Vec<_> = (0..AT_ONCE * 3)
        .map(|_| prober.spawn(check(DEADLINE * 2), http(hanging), None))
        .collect();
    let mut accepted = Vec::new();
    for _ in 0..AT_ONCE {
        let stream = tokio::time::timeout(DEADLINE, silent.accept())
            .await
            .unwrap()
            .unwrap();
        accepted.push(stream);
    }
    assert_eq!(prober.places.available_permits(), 0, "every place is taken");
    let server = Server::answering(OK).await;
    let probe = prober.spawn(check(DEADLINE), http(server.address), None);
    until(&mut probe.states(), |state| {
        state.verdict == Verdict::Healthy
    })
    .await;
    assert!(
        hangs
            .iter()
            .all(|hang| hang.states.borrow().verdict == Verdict::Unknown)
    );
}

#[tokio::test]
async fn only_so_many_probes_begin_at_once() {
    let prober = prober();
    let all = prober
        .places
        .acquire_many(u32::try_from(AT_ONCE).unwrap())
        .await
        .unwrap();
    let server = Server::answering(OK).await;
    let probe = prober.spawn(check(DEADLINE), http(server.address), None);
    tokio::task::yield_now().await;
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
    drop(all);
    until(&mut probe.states(), |state| {
        state.verdict == Verdict::Healthy
    })
    .await;
}

#[tokio::test]
async fn whoever_accepts_connections_is_healthy_over_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let target = Target::Tcp(address);
    prober().probe(&check(DEADLINE), &target).await.unwrap();
    drop(listener);
    let reason = prober().probe(&check(DEADLINE), &target).await;
    let expected = format!("connect to {address}: connection refused");
    assert_eq!(reason.unwrap_err(), expected);
}
