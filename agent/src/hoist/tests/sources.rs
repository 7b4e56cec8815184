//! Where artifacts come from: what the server does wrong, what files may be read.

use std::fs::{self};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use platctrl_test_support::needs;
use tokio::sync::Notify;

use super::node::{Node, good, wait_until};
use super::raw::Raw;
use super::tree;
use super::unix_server::{ok, serve, serve_when};
use crate::hoist::{Digest, Source, Store, Timeouts};

#[tokio::test]
async fn what_a_server_does_wrong_is_told_and_leaves_nothing() {
    let artifact = good();
    let digest = Digest::of(&artifact);
    let n = artifact.len();
    let other = Raw::good().gz();
    let page = b"<html>\x1b[2J out of order".to_vec();
    let chunk = [b"10000\r\n".to_vec(), vec![b'x'; 0x10000], b"\r\n".to_vec()].concat();
    let head = |status: &str, length: usize| {
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n")
    };
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
    for (what, answer, reason, words) in [
        (
            "other bytes",
            ok(&other),
            "DigestMismatch",
            Digest::of(&other).to_string(),
        ),
        (
            "an error page as 200",
            ok(&page),
            "DigestMismatch",
            digest.to_string(),
        ),
        (
            "404",
            (head("404 Not Found", 0), vec![]),
            "ArtifactNotFound",
            "platctrl apply".into(),
        ),
        (
            "500",
            (head("500 No", page.len()), page.clone()),
            "FetchFailed",
            "out of order".into(),
        ),
        (
            "302",
            (
                "HTTP/1.1 302 Found\r\nlocation: file:///etc/shadow\r\ncontent-length: 0\r\n\r\n"
                    .into(),
                vec![],
            ),
            "FetchFailed",
            "302".into(),
        ),
        (
            "a longer length",
            (head("200 OK", n + 1), artifact.clone()),
            "FetchFailed",
            "unix:".into(),
        ),
        (
            "a shorter length",
            (head("200 OK", n - 1), artifact.clone()),
            "DigestMismatch",
            digest.to_string(),
        ),
        (
            "a huge length",
            (head("200 OK", 1 << 40), vec![]),
            "ArtifactTooLarge",
            "100000 bytes".into(),
        ),
        (
            "endless chunks",
            (chunked, chunk.repeat(3)),
            "ArtifactTooLarge",
            "100000 bytes".into(),
        ),
        (
            "no HTTP",
            ("hello\r\n\r\n".into(), vec![]),
            "FetchFailed",
            "unix:".into(),
        ),
        (
            "nothing",
            (String::new(), vec![]),
            "FetchFailed",
            "unix:".into(),
        ),
    ] {
        let node = Node::new();
        let mut config = node.config();
        config.limits.compressed_bytes = 100_000;
        let store = Store::open(config).unwrap();
        let requests = serve(&node.path("socket"), move || answer.clone());
        let error = store
            .ensure(&digest, &Source::Artifact(digest))
            .await
            .unwrap_err();
        assert_eq!(requests.load(Ordering::SeqCst), 1, "{what}");
        assert_eq!(error.reason(), reason, "{what}: {error}");
        let text = error.to_string();
        assert!(text.contains(&words), "{what}: {text}");
        assert!(!text.contains(char::is_control), "{what}: {text:?}");
        drop(store);
        wait_until("the partial file's end", || node.leftovers().is_empty()).await;
        assert_eq!(tree(&node.path("data/cache/sha256")).len(), 0, "{what}");
    }
}

#[tokio::test]
async fn a_server_that_falls_silent_or_drips_is_given_up() {
    let artifact = good();
    let digest = Digest::of(&artifact);
    for (stall, total, words) in [
        (1_500, 600_000, "sent nothing for"),
        (600_000, 1_500, "was not done after"),
    ] {
        let node = Node::new();
        let mut config = node.config();
        let millis = Duration::from_millis;
        config.timeouts = Timeouts {
            stall: millis(stall),
            total: millis(total),
            ..Timeouts::default()
        };
        let store = Store::open(config).unwrap();
        let never = Some(Arc::new(Notify::new()));
        let body = artifact.clone();
        let requests = serve_when(&node.path("socket"), move || ok(&body), never);
        let error = store
            .ensure(&digest, &Source::Artifact(digest))
            .await
            .unwrap_err();
        assert!(requests.load(Ordering::SeqCst) <= 1);
        assert!(error.to_string().contains(words), "{error}");
        assert!(!error.is_permanent());
    }
    let node = Node::new();
    let error = node
        .open()
        .ensure(&digest, &Source::Artifact(digest))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("socket"),
        "nobody listens: {error}"
    );
}

#[tokio::test]
async fn files_are_read_under_allowed_directories_only_and_as_the_helpers_user() {
    let node = Node::new();
    let store = node.open();
    let artifact = good();
    let digest = Digest::of(&artifact);
    let write = |path: &str| fs::write(node.path(path), &artifact).unwrap();
    write("outside/a");
    write("artifacts/real");
    write("artifacts/private");
    fs::create_dir(node.path("artifacts/directory")).unwrap();
    fs::set_permissions(
        node.path("artifacts/private"),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    symlink("../outside/a", node.path("artifacts/out")).unwrap();
    symlink(node.path("artifacts/real"), node.path("artifacts/absolute")).unwrap();
    symlink("../outside", node.path("artifacts/out-directory")).unwrap();
    symlink("loop", node.path("artifacts/loop")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        node.path("artifacts/pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o644),
        0,
    )
    .unwrap();
    for (file, reason) in [
        ("outside/a", "LocationNotAllowed"),
        ("artifacts", "LocationNotAllowed"),
        ("artifacts/../outside/a", "LocationNotAllowed"),
        ("artifacts/out", "LocationNotAllowed"),
        ("artifacts/out-directory/a", "LocationNotAllowed"),
        ("artifacts/absolute", "LocationNotAllowed"),
        ("artifacts/loop", "LocationNotAllowed"),
        ("artifacts/missing", "ArtifactNotFound"),
        ("artifacts/real/below", "ArtifactNotFound"),
        ("artifacts/directory", "InstallFailed"),
        ("artifacts/pipe", "InstallFailed"),
        ("artifacts/private", "ArtifactUnreadable"),
    ] {
        // Without root the helper is the user whose own it is.
        if file == "artifacts/private" && !needs::root() {
            continue;
        }
        let source = Source::File(node.path(file));
        let error = store.ensure(&digest, &source).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{file}: {error}");
        assert!(error.to_string().contains(file), "{file}: {error}");
    }
    assert_eq!(node.leftovers(), [] as [&Path; 0]);
    symlink("real", node.path("artifacts/latest")).unwrap();
    store
        .ensure(&digest, &Source::File(node.path("artifacts/latest")))
        .await
        .unwrap();
}

#[tokio::test]
async fn another_digest_than_the_files_is_refused_naming_both() {
    let node = Node::new();
    let store = node.open();
    let (actual, source) = node.publish("a", &good());
    let asked = Digest::of(b"another");
    let text = store.ensure(&asked, &source).await.unwrap_err().to_string();
    for part in [actual.to_string(), asked.to_string(), source.to_string()] {
        assert!(text.contains(&part), "{text}");
    }
    assert_eq!(node.leftovers(), [] as [&Path; 0]);
    assert_eq!(tree(&node.path("data/cache/sha256")).len(), 0);
    let text = store
        .ensure(&asked, &Source::Artifact(actual))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        text.contains(&actual.to_string()) && text.contains(&asked.to_string()),
        "{text}"
    );
}
