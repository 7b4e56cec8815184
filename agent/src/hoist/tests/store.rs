//! The store of a node, with real files, real helper processes and a real socket.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::sync::Notify;

use super::raw::{Block, Raw, gzip};
use super::{rule, tree};
use crate::hoist::{
    ChildCommand, Config, Digest, Error, Install, Limits, Rule, Server, Source, Store, Timeouts,
};

/// A directory for one test, which the helpers' user may enter.
struct Node {
    area: TempDir,
}

impl Node {
    fn new() -> Self {
        let area = tempfile::tempdir().unwrap();
        fs::set_permissions(area.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for directory in ["artifacts", "outside", "data"] {
            fs::create_dir(area.path().join(directory)).unwrap();
        }
        Self { area }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.area.path().join(path)
    }

    fn config(&self) -> Config {
        let mut config = Config::new(self.path("data"));
        config.allowed_directories = vec![self.path("artifacts")];
        config.server = Some(Server::Unix(self.path("socket")));
        config.child = ChildCommand::new(helper(self.area.path()), [] as [&str; 0]);
        config
    }

    fn open(&self) -> Store {
        Store::open(self.config()).unwrap()
    }

    /// Puts an artifact where `file:` may read it.
    fn publish(&self, name: &str, artifact: &[u8]) -> (Digest, Source) {
        let file = self.path("artifacts").join(name);
        fs::write(&file, artifact).unwrap();
        (Digest::of(artifact), Source::File(file))
    }

    /// What is in the data directory besides what belongs there.
    fn leftovers(&self) -> Vec<PathBuf> {
        let installs = tree(&self.path("data/installs")).into_keys();
        let installs = installs.filter(|path| path.to_string_lossy().starts_with(".tmp"));
        installs
            .chain(tree(&self.path("data/cache/partial")).into_keys())
            .collect()
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The program that is nothing but a helper, where the helpers' user may start it.
fn helper(area: &Path) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let target = tests.parent().and_then(Path::parent).unwrap();
    let built = target.join("examples/hoist_child");
    if !built.exists() {
        // Only after `cargo test --lib`; any other run has built it.
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--example", "hoist_child"]);
        assert!(
            cargo
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .status()
                .unwrap()
                .success()
        );
    }
    let helper = area.join("helper");
    if !helper.exists() {
        fs::copy(built, &helper).unwrap();
    }
    helper
}

fn good() -> Vec<u8> {
    Raw::good()
        .file("lib/data", &[7; 5000])
        .symlink("lib/launch", "../bin/launch")
        .gz()
}

async fn ensured(store: &Store, artifact: &(Digest, Source)) -> Result<Install, Arc<Error>> {
    store.ensure(&artifact.0, &artifact.1).await
}

/// Answers each request on `socket` with what `answer` makes; counts them.
fn serve(
    socket: &Path,
    answer: impl Fn() -> (String, Vec<u8>) + Send + Sync + 'static,
) -> Arc<AtomicUsize> {
    serve_when(socket, answer, None)
}

/// As [`serve`]; the body is sent once `go` says so, or never when it never does.
fn serve_when(
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

fn ok(body: &[u8]) -> (String, Vec<u8>) {
    (
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()),
        body.to_vec(),
    )
}

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

async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
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
        (50, 60_000, "sent nothing for"),
        (60_000, 50, "was not done after"),
    ] {
        let node = Node::new();
        let mut config = node.config();
        let millis = Duration::from_millis;
        config.timeouts = Timeouts {
            stall: millis(stall),
            total: millis(total),
        };
        let store = Store::open(config).unwrap();
        let never = Some(Arc::new(Notify::new()));
        let body = artifact.clone();
        let requests = serve_when(&node.path("socket"), move || ok(&body), never);
        let error = store
            .ensure(&digest, &Source::Artifact(digest))
            .await
            .unwrap_err();
        assert_eq!(requests.load(Ordering::SeqCst), 1);
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
        if file == "artifacts/private" && !is_root() {
            eprintln!("skipped: {file} is this user's own");
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
    if is_root() {
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

#[tokio::test]
async fn pruning_keeps_what_is_used() {
    let node = Node::new();
    let store = node.open();
    let old = node.publish("old", &good());
    let new = node.publish("new", &Raw::good().file("new", b"").gz());
    let stranger = node.path("data/installs/somebody-elses");
    fs::create_dir(&stranger).unwrap();
    for artifact in [&old, &new] {
        ensured(&store, artifact).await.unwrap();
    }
    let pruned = store.prune(&BTreeSet::from([new.0])).await.unwrap();
    let gone = BTreeSet::from([old.0]);
    assert_eq!((&pruned.installs, &pruned.cached), (&gone, &gone));
    assert!(store.is_installed(&new.0) && !store.is_installed(&old.0));
    assert!(stranger.exists(), "what is not ours is left alone");
    assert_eq!(node.leftovers(), [] as [&Path; 0]);
    assert_eq!(
        store.prune(&BTreeSet::from([new.0])).await.unwrap(),
        Default::default()
    );
    ensured(&store, &old).await.unwrap();
}

/// A small file system of its own, gone with the test.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: &Path, options: &str) -> Self {
        let options = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("platctrl-test", at, "tmpfs", flags, options.as_c_str()).unwrap();
        Self(at.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn a_full_disk_is_told_as_such_and_leaves_nothing() {
    if !is_root() {
        eprintln!("skipped: mounting a small file system needs root");
        return;
    }
    let node = Node::new();
    let noise: Vec<u8> = (0u32..60_000)
        .flat_map(|i| Digest::of(i.to_le_bytes()).hex().into_bytes())
        .collect();
    for (what, options, artifact) in [
        (
            "the cache",
            "size=1m",
            Raw::good().file("noise", &noise).gz(),
        ),
        (
            "the tree",
            "size=1m",
            Raw::good().file("zeros", &[0; 4 << 20]).gz(),
        ),
        (
            "the tree's files",
            "size=1m,nr_inodes=40",
            (0..50)
                .fold(Raw::good(), |raw, i| raw.file(format!("{i}"), b""))
                .gz(),
        ),
    ] {
        let disk = Tmpfs::mount(&node.path("data"), options);
        let store = node.open();
        let artifact = node.publish("a", &artifact);
        let error = ensured(&store, &artifact).await.unwrap_err();
        assert!(matches!(*error, Error::NoSpace { .. }), "{what}: {error}");
        assert_eq!(error.reason(), "NoSpace");
        assert_eq!(node.leftovers(), [] as [&Path; 0], "{what}");
        // With room again, what failed works.
        drop(store);
        rustix::mount::mount_remount(
            &disk.0,
            rustix::mount::MountFlags::empty(),
            c"size=64m,nr_inodes=1000",
        )
        .unwrap();
        ensured(&node.open(), &artifact).await.unwrap();
        drop(disk);
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
    config.child = ChildCommand::new("/bin/sh", ["-c", &script, "sh"]);
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
    command.arg("unpack").arg(order.to_string()).env_clear();
    command
        .stdin(Stdio::piped())
        .stdout(target)
        .stderr(Stdio::piped());
    if is_root() {
        use std::os::unix::process::CommandExt as _;
        command.uid(64_999).gid(64_999);
    }
    let mut child = command.spawn().unwrap();
    // It waits for the artifact, which never comes: the sandbox is complete once it reads.
    let mut artifact = child.stdin.take().unwrap();
    artifact.write_all(&[0x1f]).unwrap();
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    let deadline = Instant::now() + Duration::from_secs(60);
    let limits = loop {
        let limits = fs::read_to_string(proc.join("limits")).unwrap();
        let processes = limits
            .lines()
            .find(|line| line.starts_with("Max processes"))
            .unwrap();
        if processes.split_whitespace().nth(2) == Some("0") {
            break limits;
        }
        assert!(Instant::now() < deadline, "{limits}");
    };
    let status = fs::read_to_string(proc.join("status")).unwrap();
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
    command.arg("unpack").arg(order.to_string());
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
