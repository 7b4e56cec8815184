//! Tests of the whole module: archives made by hand, byte by byte, and real helper processes.

mod attacks;
mod broken_off;
mod helpers;
mod node;
mod power;
mod raw;
mod room;
mod roundtrip;
mod sources;
mod store;
mod swaps;
mod unix_server;
mod web;
mod web_server;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::inspect::verify_within;
use super::{Error, Limits, Rule, unpack};

/// A directory to unpack into, beside a tree that nothing may touch.
struct Canary {
    area: TempDir,
    before: BTreeMap<PathBuf, String>,
}

impl Canary {
    fn new() -> Self {
        let area = tempfile::tempdir().unwrap();
        let outside = area.path().join("outside");
        fs::create_dir_all(outside.join("bin")).unwrap();
        fs::create_dir(area.path().join("target")).unwrap();
        fs::write(outside.join("shadow"), "secret").unwrap();
        fs::write(outside.join("bin/sh"), "a shell").unwrap();
        fs::set_permissions(outside.join("shadow"), fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink("shadow", outside.join("link")).unwrap();
        let before = tree(&outside);
        Self { area, before }
    }

    fn target(&self) -> PathBuf {
        self.area.path().join("target")
    }

    /// Unpacks, and asserts that nothing but the target has changed.
    fn unpack(&self, artifact: &[u8], limits: &Limits) -> Result<(), Error> {
        let target = super::install::open_directory(&self.target()).unwrap();
        let outcome = unpack::unpack(artifact, "test", None, limits, target);
        assert_eq!(
            tree(&self.area.path().join("outside")),
            self.before,
            "the canary"
        );
        let mut area: Vec<_> = fs::read_dir(self.area.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        area.sort();
        assert_eq!(
            area,
            ["outside", "target"],
            "something new beside the target"
        );
        outcome.map(drop)
    }
}

/// Every path of a tree, with its kind, mode, owner and content.
fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    fn walk(root: &Path, directory: &Path, found: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if metadata.is_file() {
                format!("{:?}", fs::read(&path).unwrap())
            } else {
                String::new()
            };
            // A link's own mode and a directory's size mean nothing.
            let mode = if metadata.is_symlink() {
                0
            } else {
                metadata.mode()
            };
            let text = format!("{mode:o} {}:{} {content}", metadata.uid(), metadata.gid());
            found.insert(path.strip_prefix(root).unwrap().to_owned(), text);
            if metadata.is_dir() {
                walk(root, &path, found);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}

/// The rule an error names, if it is a refusal.
fn rule(error: &Error) -> Option<Rule> {
    match error {
        Error::Refused(refusal) => Some(refusal.rule),
        _ => None,
    }
}

/// Writes `artifact` to a file and verifies it as `hoist verify` would.
fn verify_bytes(artifact: &[u8], limits: &Limits) -> Result<super::Verified, Error> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.tar.gz");
    fs::write(&file, artifact).unwrap();
    verify_within(&file, None, limits)
}
