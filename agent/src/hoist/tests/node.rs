//! A node's artifacts in a directory of their own, with real helper processes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::raw::Raw;
use super::tree;
use crate::hoist::{ChildCommand, Config, Digest, Error, Install, Server, Source, Store};

/// A directory for one test, which the helpers' user may enter.
pub(super) struct Node {
    pub(super) area: TempDir,
}

impl Node {
    pub(super) fn new() -> Self {
        let area = tempfile::tempdir().unwrap();
        fs::set_permissions(area.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for directory in ["artifacts", "outside", "data"] {
            fs::create_dir(area.path().join(directory)).unwrap();
        }
        Self { area }
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.area.path().join(path)
    }

    pub(super) fn config(&self) -> Config {
        let mut config = Config::new(self.path("data"));
        config.allowed_directories = vec![self.path("artifacts")];
        config.server = Some(Server::Unix(self.path("socket")));
        config.child = ChildCommand::new(helper(self.area.path()), [] as [&str; 0]);
        config
    }

    pub(super) fn open(&self) -> Store {
        Store::open(self.config()).unwrap()
    }

    /// Puts an artifact where `file:` may read it.
    pub(super) fn publish(&self, name: &str, artifact: &[u8]) -> (Digest, Source) {
        let file = self.path("artifacts").join(name);
        fs::write(&file, artifact).unwrap();
        (Digest::of(artifact), Source::File(file))
    }

    /// What is in the data directory besides what belongs there.
    pub(super) fn leftovers(&self) -> Vec<PathBuf> {
        let installs = tree(&self.path("data/installs")).into_keys();
        let installs = installs.filter(|path| path.to_string_lossy().starts_with(".tmp"));
        installs
            .chain(tree(&self.path("data/cache/partial")).into_keys())
            .collect()
    }
}

pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The program that is nothing but a helper, where the helpers' user may start it.
pub(super) fn helper(area: &Path) -> PathBuf {
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

pub(super) fn good() -> Vec<u8> {
    Raw::good()
        .file("lib/data", &[7; 5000])
        .symlink("lib/launch", "../bin/launch")
        .gz()
}

pub(super) async fn ensured(
    store: &Store,
    artifact: &(Digest, Source),
) -> Result<Install, Arc<Error>> {
    store.ensure(&artifact.0, &artifact.1).await
}

pub(super) async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come");
        // Between two looks at what tells nobody; the store under test works on this executor.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A small file system of its own, gone with the test.
pub(super) struct Tmpfs(pub(super) PathBuf);

impl Tmpfs {
    pub(super) fn mount(at: &Path, options: &str) -> Self {
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
