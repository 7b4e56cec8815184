//! The store of a node: one fetch for all, one install for all, and what a crash leaves.

use std::fs::{self};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use platctrl_test_support::needs;
use tokio::sync::Notify;

use super::broken_off::large;
use super::node::{Node, ensured, good, wait_until};
use super::raw::{Block, Raw, gzip};
use super::unix_server::{ok, serve_when};
use super::web_server::{Answer, WebServer};
use super::{rule, tree};
use crate::hoist::{Digest, Error, Rule, Source, Store};

#[tokio::test]
async fn an_artifact_is_installed_complete_root_owned_and_read_only() {
    let node = Node::new();
    let store = node.open();
    let artifact = node.publish("a.tar.gz", &good());
    assert!(!store.is_installed(&artifact.0));
    let install = ensured(&store, &artifact).await.unwrap();
    assert!(store.is_installed(&artifact.0));
    assert_eq!(store.installed(&artifact.0), Some(install.clone()));
    let name = format!("sha256-{}", artifact.0.hex());
    assert_eq!(install.path, node.path("data/installs").join(name));
    assert_eq!(
        fs::read(install.path.join("lib/launch")).unwrap(),
        b"#!/bin/sh\n"
    );
    let mine = rustix::process::geteuid().as_raw();
    for (path, _) in tree(&install.path) {
        let metadata = fs::symlink_metadata(install.path.join(&path)).unwrap();
        assert_eq!(
            (metadata.uid(), metadata.gid()),
            (mine, rustix::process::getegid().as_raw())
        );
        assert!(
            metadata.is_symlink() || metadata.mode() & 0o7022 == 0,
            "{}",
            path.display()
        );
    }
    assert_eq!(fs::metadata(&install.path).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(node.leftovers(), [] as [&Path; 0]);
    // From now on the source does not matter.
    fs::remove_file(node.path("artifacts/a.tar.gz")).unwrap();
    assert_eq!(ensured(&store, &artifact).await.unwrap(), install);
}

#[tokio::test(flavor = "multi_thread")]
async fn however_many_ask_at_once_an_artifact_is_fetched_once() {
    let node = Node::new();
    let store = node.open();
    let artifact = good();
    let digest = Digest::of(&artifact);
    let go = Arc::new(Notify::new());
    let requests = serve_when(
        &node.path("socket"),
        move || ok(&artifact),
        Some(Arc::clone(&go)),
    );
    let ask = || {
        let store = store.clone();
        tokio::spawn(async move { store.ensure(&digest, &Source::Artifact(digest)).await })
    };
    let asking: Vec<_> = (0..20).map(|_| ask()).collect();
    let given_up = ask();
    wait_until("the request", || requests.load(Ordering::SeqCst) == 1).await;
    // One that gives up takes nothing from the others.
    given_up.abort();
    go.notify_one();
    for ask in asking {
        ask.await.unwrap().unwrap();
    }
    assert_eq!(requests.load(Ordering::SeqCst), 1);
    assert!(store.is_installed(&digest));
}

#[tokio::test(flavor = "multi_thread")]
async fn however_many_ask_at_once_a_failure_is_theirs_together() {
    let node = Node::new();
    let store = node.open();
    let digest = Digest::of(b"x");
    let go = Arc::new(Notify::new());
    let answer = || ok(b"y");
    let requests = serve_when(&node.path("socket"), answer, Some(Arc::clone(&go)));
    let source = Source::Artifact(digest);
    // All of them ask before any is answered.
    let asking = (0..20).map(|_| store.ensure(&digest, &source));
    let all = futures::future::join_all(asking);
    let (outcomes, ()) = tokio::join!(all, async {
        wait_until("the request", || requests.load(Ordering::SeqCst) == 1).await;
        go.notify_one();
    });
    for outcome in outcomes {
        assert_eq!(outcome.unwrap_err().reason(), "DigestMismatch");
    }
    assert_eq!(requests.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_everybody_gave_up_leaves_nothing_and_can_be_had_again() {
    let node = Node::new();
    let store = node.open();
    let artifact = good();
    let digest = Digest::of(&artifact);
    let (head, _) = ok(&artifact);
    // The head comes at once, the body never.
    let never = Some(Arc::new(Notify::new()));
    let answer = move || (head.clone(), Vec::new());
    let requests = serve_when(&node.path("socket"), answer, never);
    let asking = {
        let store = store.clone();
        tokio::spawn(async move { store.ensure(&digest, &Source::Artifact(digest)).await })
    };
    let partial = node.path("data/cache/partial");
    wait_until("a partial file", || {
        requests.load(Ordering::SeqCst) == 1 && fs::read_dir(&partial).unwrap().count() == 1
    })
    .await;
    asking.abort();
    wait_until("the end of the partial file", || {
        fs::read_dir(&partial).unwrap().count() == 0
    })
    .await;
    let (_, source) = node.publish("a.tar.gz", &artifact);
    store.ensure(&digest, &source).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_up_can_be_had_again_at_once() {
    let node = Node::new();
    let store = node.open();
    let artifact = large();
    let (digest, source) = node.publish("a.tar.gz", &artifact);
    let (head, body) = ok(&artifact);
    let half = [head.as_bytes(), &body[..body.len() / 2]].concat();
    let server = WebServer::plain(move |_, _| Answer::Silence(half.clone())).await;
    let part = node.path(&format!("data/cache/partial/{}.part", digest.hex()));
    for _ in 0..20 {
        let asking = {
            let (store, source) = (store.clone(), server.source("/a"));
            tokio::spawn(async move { store.ensure(&digest, &source).await })
        };
        wait_until("a part", || {
            fs::metadata(&part).is_ok_and(|it| it.len() > 0)
        })
        .await;
        asking.abort();
        let _ = asking.await;
        // Whoever writes for the one that gave up writes on for a moment, and removes it all.
        let install = store.ensure(&digest, &source).await.unwrap();
        fs::remove_dir_all(install.path).unwrap();
        fs::remove_file(node.path(&format!("data/cache/sha256/{}", digest.hex()))).unwrap();
    }
}

#[tokio::test]
async fn what_the_unpacker_refuses_is_refused_with_entry_and_rule_and_leaves_nothing() {
    let node = Node::new();
    let store = node.open();
    let good = Raw::good;
    for (name, artifact, expected) in [
        (
            "traversal",
            good().file("../x", b"").gz(),
            Rule::ParentComponent,
        ),
        (
            "link",
            good().symlink("l", "/etc/shadow").gz(),
            Rule::SymlinkTarget,
        ),
        (
            "device",
            good().block(&Block::new("n", b'3')).gz(),
            Rule::EntryType,
        ),
        ("bomb", gzip(&vec![0; 12 << 20]), Rule::CompressionRatio),
        ("page", b"<html>".to_vec(), Rule::NotGzip),
    ] {
        let artifact = node.publish(name, &artifact);
        let error = ensured(&store, &artifact).await.unwrap_err();
        assert_eq!(rule(&error), Some(expected), "{name}: {error}");
        assert!(error.is_permanent());
        assert_eq!(node.leftovers(), [] as [&Path; 0], "{name}");
        assert!(!store.is_installed(&artifact.0));
    }
    let artifact = node.publish("launch", &Raw::default().file("README", b"").gz());
    let error = ensured(&store, &artifact).await.unwrap_err();
    assert_eq!(error.reason(), "LaunchInvalid");
    assert_eq!(node.leftovers(), [] as [&Path; 0]);
    let (_, source) = node.publish("other", &good().gz());
    let error = store.ensure(&artifact.0, &source).await;
    assert!(
        error.is_err(),
        "cached bytes are those of the digest, whatever the source"
    );
}

#[tokio::test]
async fn a_crash_at_any_step_leaves_an_install_or_none() {
    let node = Node::new();
    let artifact = node.publish("a", &good());
    let install = ensured(&node.open(), &artifact).await.unwrap();
    let marker = install.path.join(".platctrl-install.json");
    let installs = node.path("data/installs");
    // Each step of an install, as a crash right after it leaves the disk.
    type Step = (&'static str, Box<dyn Fn()>);
    let to_tmp = {
        let (path, tmp) = (install.path.clone(), installs.join(".tmp-crash"));
        move || fs::rename(&path, &tmp).unwrap()
    };
    let in_tmp = |path: &str| installs.join(".tmp-crash").join(path);
    let (launch, tmp_marker) = (in_tmp("bin/launch"), in_tmp(".platctrl-install.json"));
    let text = fs::read_to_string(&marker).unwrap();
    let steps: Vec<Step> = vec![
        ("an empty directory", {
            let (path, tmp) = (install.path.clone(), installs.join(".tmp-crash"));
            Box::new(move || {
                fs::remove_dir_all(&path).unwrap();
                fs::create_dir(&tmp).unwrap();
            })
        }),
        ("half a tree", {
            let (to_tmp, tmp_marker) = (to_tmp.clone(), tmp_marker.clone());
            Box::new(move || {
                to_tmp();
                fs::remove_file(&tmp_marker).unwrap();
                fs::remove_file(&launch).unwrap();
            })
        }),
        ("a tree without a marker", {
            let to_tmp = to_tmp.clone();
            Box::new(move || {
                to_tmp();
                fs::remove_file(&tmp_marker).unwrap();
            })
        }),
        ("a marked tree without its name", Box::new(to_tmp)),
        ("a name without a marker", {
            let marker = marker.clone();
            Box::new(move || fs::remove_file(&marker).unwrap())
        }),
        ("an empty marker", {
            let marker = marker.clone();
            Box::new(move || fs::write(&marker, "").unwrap())
        }),
        ("half a marker", {
            let (marker, text) = (marker.clone(), text.clone());
            Box::new(move || fs::write(&marker, &text[..text.len() / 2]).unwrap())
        }),
        ("another artifact's marker", {
            let (marker, text) = (marker.clone(), text.clone());
            let other = text.replace(&artifact.0.to_string(), &Digest::of(b"x").to_string());
            assert_ne!(text, other);
            Box::new(move || fs::write(&marker, &other).unwrap())
        }),
        ("a marker of a later form", {
            let (marker, text) = (marker.clone(), text.clone());
            let other = text.replace("\"format\":1", "\"format\":2");
            assert_ne!(text, other);
            Box::new(move || fs::write(&marker, &other).unwrap())
        }),
    ];
    let mut steps = steps;
    // The other one owns what it wrote.
    if needs::root() {
        steps.push(("a marker that somebody else wrote", {
            let marker = marker.clone();
            Box::new(move || std::os::unix::fs::chown(&marker, Some(64_999), None).unwrap())
        }));
    }
    let complete = tree(&install.path);
    for (what, crash) in steps {
        crash();
        fs::write(node.path("data/cache/partial/x.part"), "half").unwrap();
        let store = node.open();
        assert_eq!(node.leftovers(), [] as [&Path; 0], "{what}");
        assert!(!store.is_installed(&artifact.0), "{what}");
        let again = ensured(&store, &artifact)
            .await
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(again, install);
        assert_eq!(tree(&install.path), complete, "{what}");
        assert_eq!(node.leftovers(), [] as [&Path; 0], "{what}");
    }
}

#[tokio::test]
async fn a_cached_artifact_that_went_bad_is_fetched_again() {
    let node = Node::new();
    let store = node.open();
    let artifact = node.publish("a", &good());
    let cached = node.path("data/cache/sha256").join(artifact.0.hex());
    fs::write(&cached, "rotten").unwrap();
    ensured(&store, &artifact).await.unwrap();
    assert_eq!(fs::read(&cached).unwrap(), good());
}

#[tokio::test]
async fn one_process_at_a_time_has_the_store() {
    let node = Node::new();
    let store = node.open();
    let error = Store::open(node.config()).unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    drop(store);
    node.open();
}
