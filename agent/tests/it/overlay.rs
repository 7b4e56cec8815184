//! A data directory on an overlay of two file systems, where a file is on another device than its
//! directory, so that nobody can tell whether a tree was tampered with.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use platctrl_test_support::needs;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::rig::{Rig, want};

/// Mounted, until it is dropped.
struct Mounted(Vec<PathBuf>);

impl Mounted {
    fn mount(&mut self, kind: &str, at: PathBuf, options: &str) -> PathBuf {
        fs::create_dir_all(&at).unwrap();
        let options = CString::new(options).unwrap();
        let flags = MountFlags::empty();
        rustix::mount::mount(kind, &at, kind, flags, options.as_c_str()).unwrap();
        self.0.push(at.clone());
        at
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        while let Some(at) = self.0.pop() {
            let _ = rustix::mount::unmount(&at, UnmountFlags::DETACH);
        }
    }
}

#[test]
fn a_data_directory_on_an_overlay_of_several_file_systems_is_refused_with_the_way_out() {
    if !needs::root() {
        return;
    }
    let area = tempfile::tempdir().unwrap();
    // Dropped in this order: the node, what it lies on, and the directory of both.
    let mut mounted = Mounted(Vec::new());
    let lower = mounted.mount("tmpfs", area.path().join("lower"), "mode=0755");
    let upper = mounted.mount("tmpfs", area.path().join("upper"), "mode=0755");
    for directory in ["up", "work"] {
        fs::create_dir(upper.join(directory)).unwrap();
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.join("up").display(),
        upper.join("work").display()
    );
    let overlay = mounted.mount("overlay", area.path().join("overlay"), &options);
    fs::set_permissions(
        area.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let rig = Rig::under(
        &overlay,
        platctrl_framework::environment::Environment::system(),
    );
    let spec = rig.script("one", "#!/bin/sh\nexec sleep 1000\n");
    let file = fs::metadata(rig.artifacts().join("one.tar.gz")).unwrap();
    let directory = fs::metadata(rig.artifacts()).unwrap();
    if file.dev() == directory.dev() {
        needs::lacks("overlay that shows the devices of its layers");
        return;
    }
    let host = rig.host();
    let (_worker, told) = rig.worker(&host, want(1, &spec));
    let refused = told.wait("a refusal", |it| it.status.reason == "ArtifactRefused");
    let message = &refused.status.message;
    for part in [
        "the unpacked tree was refused",
        "is on another file system than the tree",
        "an overlay of several is not",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert!(refused.status.pids.is_empty());
}
