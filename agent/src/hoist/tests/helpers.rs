//! Helper processes: what they may not do, and what is made of those that do it all the same.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use platctrl_test_support::needs;

use super::node::{Node, ensured, good, helper, is_root};
use super::tree;
use crate::hoist::{ChildCommand, Digest, Error, Limits, Store};

/// A shell script as a helper: its user is the helpers', and it has no fence.
fn unfenced(script: &str) -> ChildCommand {
    // What the real one does first.
    match is_root() {
        true => ChildCommand::new(
            "/usr/bin/setpriv",
            [
                "--reuid=64999",
                "--regid=64999",
                "--clear-groups",
                "/bin/sh",
                "-c",
                script,
                "sh",
            ],
        ),
        false => ChildCommand::new("/bin/sh", ["-c", script, "sh"]),
    }
}

/// A store whose helper is a shell script, standing in for an unpacker that was taken over.
fn taken_over(node: &Node, script: &str) -> Store {
    let mut config = node.config();
    // The read helper stays the real one, so the script gets the task as its first argument.
    let helper = config.child.program.display().to_string();
    let script = format!(
        "if [ \"$1\" = read ]; then exec {helper} \"$@\"; fi\n\
         PATH=/usr/bin:/bin; umask 022; cd /proc/self/fd/1/ || exit 3\n\
         finish() {{ echo \"{{\\\"done\\\":{{\\\"entries\\\":$1,\\\"bytes\\\":1,\\\"missing\\\":[]}}}}\" >&2; exit 0; }}\n\
         mkdir bin && printf '#!/bin/sh\\n' > bin/launch && chmod 755 bin/launch || exit 4\n{script}"
    );
    config.child = unfenced(&script);
    Store::open(config).unwrap()
}

#[tokio::test]
async fn a_tree_that_its_unpacker_tampered_with_is_refused() {
    for (script, words) in [
        ("finish 1", "has 2 entries, not 1"),
        ("finish 3", "has 2 entries, not 3"),
        ("mkfifo p; finish 3", "p has a type or mode"),
        ("touch f; chmod 4755 f; finish 3", "f has a type or mode"),
        ("touch f; chmod 666 f; finish 3", "f has a type or mode"),
        ("mkdir d; chmod 1777 d; finish 3", "d has a type or mode"),
        ("ln -s /etc/shadow l; finish 3", "l links to where"),
        ("ln -s ../../x bin/l; finish 3", "bin/l links to where"),
        ("rm bin/launch; finish 1", "bin/launch is missing"),
        (
            "d=d; while [ ${#d} -lt 79 ]; do d=$d/d; done; mkdir -p $d; finish 42",
            "is nested too deeply",
        ),
    ] {
        let node = Node::new();
        let store = taken_over(&node, script);
        let artifact = node.publish("a", &good());
        let error = ensured(&store, &artifact).await.unwrap_err();
        assert!(error.to_string().contains(words), "{script}: {error}");
        assert!(!store.is_installed(&artifact.0));
        assert_eq!(node.leftovers(), [] as [&Path; 0], "{script}");
    }
    // The script does what an unpacker does, or the cases above mean nothing.
    let node = Node::new();
    let artifact = node.publish("a", &good());
    ensured(&taken_over(&node, "finish 2"), &artifact)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_tree_with_something_of_another_owner_is_refused() {
    if !needs::root() {
        return;
    }
    for (whose, words) in [("1", "bin/launch belongs to somebody else"), ("64999", "")] {
        let node = Node::new();
        let mut config = node.config();
        let helper = config.child.program.display();
        // It is still root, and gives what it wrote to somebody.
        let script = format!(
            "if [ \"$1\" = read ]; then exec {helper} \"$@\"; fi\n\
             PATH=/usr/bin:/bin; umask 022; cd /proc/self/fd/1/ || exit 3\n\
             mkdir bin && printf '#!/bin/sh\\n' > bin/launch && chmod 755 bin/launch\n\
             chown 64999:64999 bin && chown {whose}:64999 bin/launch\n\
             echo '{{\"done\":{{\"entries\":2,\"bytes\":1,\"missing\":[]}}}}' >&2"
        );
        config.child = ChildCommand::new("/bin/sh", ["-c", &script, "sh"]);
        let store = Store::open(config).unwrap();
        let artifact = node.publish("a", &good());
        let outcome = ensured(&store, &artifact).await;
        match words {
            "" => drop(outcome.unwrap()),
            words => {
                let error = outcome.unwrap_err().to_string();
                assert!(error.contains(words), "{error}");
            }
        }
        assert_eq!(node.leftovers(), [] as [&Path; 0]);
    }
}

#[tokio::test]
async fn a_helper_that_dies_or_talks_nonsense_is_an_error_with_its_last_words() {
    for (script, words) in [
        ("kill -9 $$", "signal: 9"),
        (
            "echo 'out of luck' >&2; exit 7",
            "exit status: 7): out of luck",
        ),
        ("printf '\\033[2Jx' >&2; exit 7", "\\u{1b}[2Jx"),
        ("exit 0", "exit status: 0"),
        (
            "echo '{\"done\":{\"entries\":2,\"bytes\":1,\"missing\":[]}}' >&2; exit 1",
            "exit status: 1",
        ),
    ] {
        let node = Node::new();
        let store = taken_over(&node, script);
        let artifact = node.publish("a", &good());
        let error = ensured(&store, &artifact).await.unwrap_err();
        assert!(matches!(*error, Error::Child { .. }), "{script}: {error}");
        assert!(error.to_string().contains(words), "{script}: {error}");
        assert!(!error.is_permanent());
        assert_eq!(node.leftovers(), [] as [&Path; 0], "{script}");
    }
    let node = Node::new();
    let mut config = node.config();
    config.child = ChildCommand::new("/nonexistent", [] as [&str; 0]);
    let artifact = node.publish("a", &good());
    let error = ensured(&Store::open(config).unwrap(), &artifact)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("cannot start /nonexistent"),
        "{error}"
    );
}

#[test]
fn a_helper_runs_without_privileges_and_ends_with_its_parent() {
    let node = Node::new();
    let target = File::open(node.path("data")).unwrap();
    let order = serde_json::json!({ "limits": Limits::default(), "digest": Digest::of(b"") });
    let mut command = Command::new(helper(node.area.path()));
    let user = if is_root() { "64999:64999" } else { "-" };
    command
        .args(["unpack", user, &order.to_string()])
        .env_clear();
    command
        .stdin(Stdio::piped())
        .stdout(target)
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It waits for the artifact, which never comes: the sandbox is complete once it reads.
    let mut artifact = child.stdin.take().unwrap();
    artifact.write_all(&[0x1f]).unwrap();
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        let status = fs::read_to_string(proc.join("status")).unwrap();
        // The filter is what it enters last.
        if status.contains("Seccomp:\t2") {
            break status;
        }
        assert!(Instant::now() < deadline, "{status}");
    };
    let limits = fs::read_to_string(proc.join("limits")).unwrap();
    let processes = limits
        .lines()
        .find(|line| line.starts_with("Max processes"));
    let processes = processes.unwrap().split_whitespace().nth(2);
    assert_eq!(processes, Some("0"), "{limits}");
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    if is_root() {
        assert!(
            status.contains("Uid:\t64999\t64999\t64999\t64999"),
            "{status}"
        );
        assert!(
            status.contains("Groups:\t \n") || status.contains("Groups:\t\n"),
            "{status}"
        );
        assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    }
    assert!(limits.contains("Max core file size        0"), "{limits}");
    assert_eq!(child.try_wait().unwrap(), None, "it is still there");
    // The agent dies: nobody reads the answer any more.
    drop(child.stderr.take());
    let deadline = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("the helper outlived its parent");
        }
    }
}

#[test]
fn a_helper_that_is_not_done_in_time_says_so_itself() {
    let node = Node::new();
    let target = File::open(node.path("data")).unwrap();
    let limits = Limits {
        wall_time: Duration::from_millis(20),
        ..Limits::default()
    };
    let order = serde_json::json!({ "limits": limits, "digest": Digest::of(b"") });
    let mut command = Command::new(helper(node.area.path()));
    command.args(["unpack", "-", &order.to_string()]);
    command
        .stdin(Stdio::piped())
        .stdout(target)
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _artifact = child.stdin.take();
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(said.contains("TooSlow"), "{said}");
    assert!(!child.wait().unwrap().success());
}

#[tokio::test]
async fn the_sandbox_of_a_real_helper_refuses_all_that_it_has_to() {
    let node = Node::new();
    let (allowed, missing) = node.open().prove().await.unwrap();
    if !missing.is_empty() {
        needs::lacks(&format!("{missing:?} in its kernel"));
        return;
    }
    assert_eq!(allowed, [] as [&str; 0]);
    assert_eq!(node.leftovers(), [] as [&Path; 0]);
}

#[tokio::test]
async fn what_a_proof_tries_is_nobody_elses_and_leaves_nothing_where_it_succeeds() {
    let node = Node::new();
    let mut config = node.config();
    // In the helper's place, with its user and without a fence: it notes where it may try.
    let note = node.path("outside/note");
    fs::write(&note, "").unwrap();
    fs::set_permissions(&note, fs::Permissions::from_mode(0o666)).unwrap();
    let script = format!(
        "user=$2; for at in \"$3\" \"$4\"; do stat -c '%a %u %F' \"$at\"; done >> {note}\n\
         : > \"$4/written\" && mkdir \"$4/deep\" && ln -s / \"$4/deep/root\" && echo tried >> {note}\n\
         echo '{{\"proved\":{{\"allowed\":[\"write\"],\"missing\":[]}}}}' >&2",
        note = note.display()
    );
    config.child = unfenced(&script);
    let store = Store::open(config).unwrap();
    let before = tree(&node.path("data"));
    let (allowed, _) = store.prove().await.unwrap();
    assert_eq!(allowed, ["write"]);
    let owner = if is_root() {
        64_999
    } else {
        rustix::process::geteuid().as_raw()
    };
    let private = format!("700 {owner} directory\n");
    let said = fs::read_to_string(&note).unwrap();
    assert_eq!(said, format!("{private}{private}tried\n"));
    assert_eq!(tree(&node.path("data")), before, "nothing is left");
    assert!(
        fs::read_dir("/").unwrap().count() > 0,
        "no link was followed"
    );
}
