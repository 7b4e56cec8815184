//! Artifacts from the web and from S3, fetched by real helper processes from servers of the test's.

use std::path::Path;
use std::time::Duration;

use super::broken_off::{BrokenOff, large};
use super::node::{Node, good, wait_until};
use super::tree;
use super::web_server::{Answer, Asked, WebServer, cut, file, full, head};
use crate::hoist::{Digest, Network, S3, Source, Store, Timeouts};

/// An artifact that does not come in one piece.
fn store_with(node: &Node, change: impl FnOnce(&mut crate::hoist::Config)) -> Store {
    let mut config = node.config();
    change(&mut config);
    Store::open(config).unwrap()
}

fn s(text: &str) -> Source {
    Source::parse(text).unwrap()
}

#[tokio::test]
async fn an_artifact_comes_over_http_and_over_https_by_way_of_redirects() {
    let node = Node::new();
    let artifact = good();
    let digest = Digest::of(&artifact);
    let ca = node.path("ca.crt");
    let body = artifact.clone();
    let secure = WebServer::tls(&ca, &["localhost"], move |asked, _| match asked.path() {
        "/b?sig=hunter2" => full("302 Found", &[("location", "c")], b""),
        // A proxy on the way may claim what it wants: the bytes are what they are.
        "/c" => full("200 OK", &[("content-encoding", "gzip")], &body),
        _ => full("404 Not Found", &[], b""),
    })
    .await;
    let port = secure.address.port();
    let plain = WebServer::plain(move |_, _| {
        let location = format!("https://localhost:{port}/b?sig=hunter2");
        full("301 Moved Permanently", &[("location", &location)], b"")
    })
    .await;
    let store = store_with(&node, |config| {
        config.network.authorities = vec![ca.clone()];
    });
    let install = store.ensure(&digest, &plain.source("/a")).await.unwrap();
    assert!(install.path.join("bin/launch").exists());
    let asked = secure.asked();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[1].header("accept-encoding"), Some("identity"));
    let host = format!("localhost:{port}");
    assert_eq!(asked[1].header("host"), Some(host.as_str()));
    // An authority that nobody trusts is no authority.
    drop(store);
    let node = Node::new();
    let error = node.open().ensure(&digest, &plain.source("/a")).await;
    let error = error.unwrap_err().to_string();
    // Or the machine trusts nobody at all.
    let refused = error.contains("UnknownIssuer") || error.contains("trusts no authority");
    assert!(refused, "{error}");
    assert!(!error.contains("hunter"), "{error}");
    assert_eq!(node.leftovers(), [] as [&Path; 0]);
}

#[tokio::test]
async fn what_a_server_on_the_web_does_wrong_is_told_and_leaves_nothing() {
    let artifact = good();
    let n = artifact.len();
    let to = |location: &str| full("302 Found", &[("location", location)], b"");
    let length = |length: usize| head("200 OK", &[("content-length", &length.to_string())]);
    let page = b"<html>\x1b[2J log in".as_slice();
    let with = |head: String, body: &[u8]| Answer::Bytes([head.as_bytes(), body].concat());
    let cases = [
        (
            "a redirect for ever",
            to("/a"),
            "FetchFailed",
            "more than 5 times",
            6,
        ),
        (
            "a redirect to a file",
            to("file:///etc/shadow"),
            "FetchFailed",
            "not on the web",
            1,
        ),
        (
            "a redirect to metadata",
            to("http://169.254.169.254/"),
            "FetchFailed",
            "metadata",
            1,
        ),
        (
            "a redirect to nowhere",
            full("302 Found", &[], b""),
            "FetchFailed",
            "more than 5 times",
            6,
        ),
        (
            "no such thing",
            full("404 Not Found", &[], b""),
            "ArtifactNotFound",
            "correct the location",
            1,
        ),
        (
            "not for us",
            full("403 Forbidden", &[], b""),
            "FetchFailed",
            "403",
            1,
        ),
        (
            "out of order",
            full("500 No", &[], b""),
            "FetchFailed",
            "500",
            1,
        ),
        (
            "a page",
            full("200 OK", &[("content-type", "text/html")], page),
            "DigestMismatch",
            "which is text/html",
            1,
        ),
        (
            "a page's text",
            full("200 OK", &[], page),
            "DigestMismatch",
            "begins with `<html>",
            1,
        ),
        (
            "a longer length",
            with(length(n + 1), &artifact),
            "FetchFailed",
            "did not give",
            1,
        ),
        (
            "a shorter length",
            with(length(n - 1), &artifact),
            "DigestMismatch",
            "has the digest",
            1,
        ),
        (
            "a huge length",
            with(length(1 << 40), b""),
            "ArtifactTooLarge",
            "100000 bytes",
            1,
        ),
        (
            "no length, and no end",
            Answer::Endless(head("200 OK", &[("transfer-encoding", "chunked")]).into_bytes()),
            "ArtifactTooLarge",
            "100000 bytes",
            1,
        ),
        (
            "a part nobody asked for",
            full(
                "206 Partial Content",
                &[("content-range", "bytes 0-9/10")],
                b"0123456789",
            ),
            "FetchFailed",
            "206",
            1,
        ),
        (
            "no HTTP",
            Answer::Bytes(b"hello\r\n\r\n".to_vec()),
            "FetchFailed",
            "did not give",
            1,
        ),
        (
            "nothing",
            Answer::Bytes(Vec::new()),
            "FetchFailed",
            "did not give",
            1,
        ),
    ];
    for (what, answer, reason, words, requests) in cases {
        let node = Node::new();
        let store = store_with(&node, |config| config.limits.compressed_bytes = 100_000);
        let server = WebServer::plain(move |_, _| answer.clone()).await;
        let source = server.source("/a?token=hunter2");
        let error = store
            .ensure(&Digest::of(&artifact), &source)
            .await
            .unwrap_err();
        assert_eq!(server.asked().len(), requests, "{what}: {error}");
        assert_eq!(error.reason(), reason, "{what}: {error}");
        let text = error.to_string();
        assert!(text.contains(words), "{what}: {text}");
        assert!(!text.contains("hunter"), "{what}: {text}");
        assert!(!text.contains(char::is_control), "{what}: {text:?}");
        assert_eq!(node.leftovers(), [] as [&Path; 0], "{what}");
        assert_eq!(tree(&node.path("data/cache/sha256")).len(), 0, "{what}");
    }
}

#[tokio::test]
async fn a_server_on_the_web_that_falls_silent_or_drips_is_given_up() {
    let digest = Digest::of(b"x");
    for (answer, words) in [
        (Answer::Silence(Vec::new()), "sent nothing for"),
        (
            Answer::Silence(head("200 OK", &[("content-length", "9")]).into_bytes()),
            "sent nothing for",
        ),
        (
            Answer::Drip(head("200 OK", &[("content-length", "99999")]).into_bytes()),
            "sent next to nothing for",
        ),
    ] {
        let node = Node::new();
        let store = store_with(&node, |config| {
            config.timeouts = Timeouts {
                stall: Duration::from_secs(2),
                ..Timeouts::default()
            };
        });
        let server = WebServer::plain(move |_, _| answer.clone()).await;
        let error = store
            .ensure(&digest, &server.source("/a"))
            .await
            .unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert!(!error.is_permanent());
        assert_eq!(node.leftovers(), [] as [&Path; 0]);
    }
}

#[tokio::test]
async fn a_transfer_that_breaks_off_goes_on_where_it_stopped() {
    let node = Node::new();
    let artifact = large();
    let (digest, n) = (Digest::of(&artifact), artifact.len());
    let third = n / 3;
    let body = artifact.clone();
    let server = WebServer::plain(move |asked, number| match number {
        0 | 1 => cut(file(asked, &body, "\"one\""), third),
        _ => file(asked, &body, "\"one\""),
    })
    .await;
    let store = node.open();
    store.ensure(&digest, &server.source("/a")).await.unwrap();
    let asked = server.asked();
    let ranges: Vec<_> = asked.iter().map(Asked::from).collect();
    // What was in flight when it broke off may not have arrived.
    assert_eq!(ranges.len(), 3);
    assert_eq!(ranges[0], None);
    assert!(
        ranges[1].is_some_and(|at| at > 0 && at <= third),
        "{ranges:?}"
    );
    assert!(
        ranges[2] > ranges[1] && ranges[2] <= Some(2 * third),
        "{ranges:?}"
    );
    assert_eq!(asked[1].header("if-range"), Some("\"one\""));
    assert_eq!(node.leftovers(), [] as [&Path; 0]);
}

#[tokio::test]
async fn an_agent_that_was_restarted_goes_on_with_what_the_one_before_had() {
    let node = Node::new();
    let artifact = large();
    let begun = BrokenOff::new(&node, &artifact).await;
    let digest = Digest::of(&artifact);
    begun.store.ensure(&digest, &begun.source).await.unwrap();
    let asked = begun.server.asked();
    assert!(
        asked[1].from().is_some_and(|from| from > 0),
        "{:?}",
        asked[1]
    );
    assert_eq!(node.leftovers(), [] as [&Path; 0]);
}

#[tokio::test]
async fn what_changed_or_was_something_else_all_along_is_fetched_whole() {
    let artifact = large();
    let (digest, half) = (Digest::of(&artifact), artifact.len() / 2);
    let mut other = artifact.clone();
    other[10] ^= 1;
    // Each server sends half, breaks off, and then answers the request for the rest.
    type Rest = fn(&Asked, &[u8]) -> Answer;
    let cases: [(&str, Vec<u8>, Rest); 4] = [
        ("a new tag", other.clone(), |asked, body| {
            file(asked, body, "\"two\"")
        }),
        ("no ranges", artifact.clone(), |_, body| {
            full("200 OK", &[("etag", "\"one\"")], body)
        }),
        (
            "another range",
            artifact.clone(),
            |asked, body| match asked.from() {
                Some(from) => {
                    let range = format!("bytes {}-{}/{}", from + 1, body.len() - 1, body.len());
                    full(
                        "206 Partial Content",
                        &[("content-range", &range)],
                        &body[from + 1..],
                    )
                }
                None => file(asked, body, "\"one\""),
            },
        ),
        // The tag says that it is the same, and it is not.
        ("a lie", other, |asked, body| file(asked, body, "\"one\"")),
    ];
    for (what, first, rest) in cases {
        let node = Node::new();
        let body = artifact.clone();
        let server = WebServer::plain(move |asked, number| match number {
            0 => cut(file(asked, &first, "\"one\""), half),
            _ => rest(asked, &body),
        })
        .await;
        let store = node.open();
        store
            .ensure(&digest, &server.source("/a"))
            .await
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let asked = server.asked();
        assert!(asked[1].from().is_some(), "{what}: {asked:?}");
        assert_eq!(node.leftovers(), [] as [&Path; 0], "{what}");
    }
    // Without anything that tells the bytes from others, it is not tried.
    let node = Node::new();
    let body = artifact.clone();
    let server =
        WebServer::plain(move |asked, _| cut(file(asked, &body, "W/\"weak\""), half)).await;
    let error = node.open().ensure(&digest, &server.source("/a")).await;
    assert_eq!(error.unwrap_err().reason(), "FetchFailed");
    assert_eq!(server.asked().len(), 1);
    assert_eq!(node.leftovers(), [] as [&Path; 0]);
}

#[tokio::test]
async fn a_proxy_leads_to_servers_that_we_cannot_find_ourselves() {
    let node = Node::new();
    let artifact = good();
    let digest = Digest::of(&artifact);
    let ca = node.path("ca.crt");
    let body = artifact.clone();
    let behind = WebServer::tls(&ca, &["artifacts.invalid"], move |_, _| {
        full("200 OK", &[], &body)
    })
    .await;
    let (to, body) = (behind.address, artifact.clone());
    let proxy = WebServer::plain(move |asked, _| match asked.line.split(' ').next() {
        _ if asked.header("proxy-authorization") != Some("Basic bWU6aHVudGVyMg==") => {
            full("407 Proxy Authentication Required", &[], b"")
        }
        Some("CONNECT") => Answer::Tunnel(to),
        _ => full("200 OK", &[], &body),
    })
    .await;
    for scheme in ["http", "https"] {
        let with = |user: &str| Network {
            http_proxy: Some(format!("http://{user}{}", proxy.address)),
            https_proxy: Some(format!("http://{user}{}", proxy.address)),
            authorities: vec![ca.clone()],
            ..Network::default()
        };
        let node = Node::new();
        let source = s(&format!("{scheme}://artifacts.invalid/a"));
        let store = store_with(&node, |config| config.network = with(""));
        let error = store
            .ensure(&digest, &source)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("407"), "{error}");
        drop(store);
        let store = store_with(&node, |config| config.network = with("me:hunter2@"));
        store.ensure(&digest, &source).await.unwrap();
    }
    let lines: Vec<_> = proxy.asked().into_iter().map(|asked| asked.line).collect();
    let whole = "GET http://artifacts.invalid/a HTTP/1.1".to_owned();
    let tunnel = "CONNECT artifacts.invalid:443 HTTP/1.1".to_owned();
    assert_eq!(lines, [whole.clone(), whole, tunnel.clone(), tunnel]);
    assert_eq!(behind.asked().len(), 1);
}

#[tokio::test]
async fn a_server_that_answers_nobody_leaves_room_for_the_others() {
    let node = Node::new();
    let dead = WebServer::plain(|_, _| Answer::Silence(Vec::new())).await;
    let artifact = good();
    let body = artifact.clone();
    let alive = WebServer::plain(move |_, _| full("200 OK", &[], &body)).await;
    let store = node.open();
    let stuck: Vec<_> = (0..20)
        .map(|i| {
            let (store, source) = (store.clone(), dead.source(&format!("/{i}")));
            tokio::spawn(async move { store.ensure(&Digest::of([i]), &source).await })
        })
        .collect();
    wait_until("the dead one is asked", || dead.asked().len() == 3).await;
    store
        .ensure(&Digest::of(&artifact), &alive.source("/a"))
        .await
        .unwrap();
    assert_eq!(dead.asked().len(), 3, "no more than its share at once");
    stuck.iter().for_each(tokio::task::JoinHandle::abort);
}

/// A server that speaks as much of S3 as it takes to give an object.
async fn s3(artifact: Vec<u8>) -> WebServer {
    WebServer::plain(move |asked, number| {
        let date = ("last-modified", "Sat, 21 Nov 2026 12:00:00 GMT");
        if asked.path() != "/bucket/some/artifact.tar.gz" {
            let text = b"<Error><Code>NoSuchKey</Code></Error>";
            return full(
                "404 Not Found",
                &[("content-type", "application/xml")],
                text,
            );
        }
        let Answer::Bytes(answer) = file(asked, &artifact, "\"one\"") else {
            unreachable!()
        };
        let end = answer.windows(2).position(|it| it == b"\r\n").unwrap() + 2;
        let (line, rest) = answer.split_at(end);
        let date = format!("{}: {}\r\n", date.0, date.1);
        let answer = Answer::Bytes([line, date.as_bytes(), rest].concat());
        match number {
            0 => cut(answer, artifact.len() / 2),
            _ => answer,
        }
    })
    .await
}

#[tokio::test]
async fn an_artifact_comes_from_a_server_that_speaks_s3_signed_and_in_parts() {
    let node = Node::new();
    let artifact = large();
    let digest = Digest::of(&artifact);
    let server = s3(artifact).await;
    let network = |key: Option<&str>| Network {
        s3: S3 {
            endpoint: Some(server.url("")),
            region: Some("somewhere-1".into()),
            access_key_id: key.map(str::to_owned),
            secret_access_key: key.map(|_| "hunter2".to_owned()),
            ..S3::default()
        },
        ..Network::default()
    };
    let store = store_with(&node, |config| config.network = network(Some("AKIA")));
    let source = s("s3://bucket/some/artifact.tar.gz");
    store.ensure(&digest, &source).await.unwrap();
    let asked = server.asked();
    assert_eq!(asked.len(), 2);
    for asked in &asked {
        let authorization = asked.header("authorization").unwrap();
        assert!(authorization.starts_with("AWS4-HMAC-SHA256 Credential=AKIA/"));
        assert!(authorization.contains("/somewhere-1/s3/aws4_request"));
        assert!(!authorization.contains("hunter"));
    }
    assert!(asked[1].from().is_some_and(|from| from > 0), "{asked:?}");
    assert_eq!(asked[1].header("if-match"), Some("\"one\""));
    assert_eq!(node.leftovers(), [] as [&Path; 0]);
    let error = store
        .ensure(&Digest::of(b"x"), &s("s3://bucket/none"))
        .await;
    let error = error.unwrap_err();
    assert_eq!(error.reason(), "ArtifactNotFound", "{error}");
    drop(store);

    let node = Node::new();
    let store = store_with(&node, |config| config.network = network(None));
    store.ensure(&digest, &source).await.unwrap();
    let anonymous = server.asked().pop().unwrap();
    assert_eq!(anonymous.header("authorization"), None);
    drop(store);

    let nobody = Network {
        s3: S3 {
            endpoint: Some("http://127.0.0.1:1".into()),
            ..S3::default()
        },
        ..Network::default()
    };
    let node = Node::new();
    let store = store_with(&node, |config| config.network = nobody);
    let error = store.ensure(&digest, &source).await.unwrap_err();
    assert_eq!(error.reason(), "FetchFailed", "{error}");
}
