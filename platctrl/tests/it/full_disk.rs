//! A disk that fills up under platctrl: it is said, nothing stops, and nothing is lost.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::rig::{Rig, eventually};

/// A rig whose data directory is a small disk of its own.
struct SmallDisk {
    rig: Option<Rig>,
    disk: PathBuf,
}

impl SmallDisk {
    fn new(megabytes: u32) -> Self {
        let rig = Rig::new();
        let disk = rig.data_dir();
        fs::create_dir(&disk).unwrap();
        let options = format!("size={megabytes}m,mode=711");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&disk)
            .status()
            .unwrap();
        assert!(mounted.success());
        Self {
            rig: Some(rig),
            disk,
        }
    }

    fn rig(&mut self) -> &mut Rig {
        self.rig.as_mut().unwrap()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.rig.take());
        let _ = Command::new("umount").arg("-l").arg(&self.disk).status();
        let _ = fs::remove_dir_all(self.disk.parent().unwrap());
    }
}

/// Fills the disk, but for about so many bytes, and returns the file that does.
fn fill(disk: &Path, leave: usize) -> PathBuf {
    let ballast = disk.join("ballast");
    let mut file = fs::File::create(&ballast).unwrap();
    let error = loop {
        if let Err(error) = file.write_all(&[7; 16 * 1024]) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::StorageFull, "the disk is full");
    let written = file.metadata().unwrap().len();
    file.set_len(written.saturating_sub(leave as u64)).unwrap();
    ballast
}

/// A program that does nothing.
fn sleeper(dir: &Path) {
    let launch = dir.join("launch");
    fs::write(&launch, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    fs::set_permissions(&launch, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_full_disk_is_told_and_stops_nothing() {
    // It mounts a small disk.
    if !platctrl_test_support::needs::root() {
        return;
    }
    let mut small = SmallDisk::new(48);
    let disk = small.disk.clone();
    let rig = small.rig();
    rig.up();
    let running = rig.quickstart(1).remove(0);

    // Nothing at all is left: an upload does not fit. Nobody else uses the disk meanwhile; what the
    // store gives back now and then is less than what is uploaded.
    rig.artifact("other", |dir| {
        sleeper(dir);
        let noise = fs::File::open("/dev/urandom").unwrap();
        let mut padding = fs::File::create(dir.join("padding")).unwrap();
        std::io::copy(&mut noise.take(4 << 20), &mut padding).unwrap();
    });
    let ballast = fill(&disk, 0);
    rig.write(
        "other.yaml",
        fs::read_to_string(rig.path("hello.yaml"))
            .unwrap()
            .replace("name: hello", "name: other")
            .replace("hello.tar.gz", "other.tar.gz"),
    );
    let said = rig.cli(&["apply", "-f", "other.yaml"]);
    assert_ne!(said.code, Some(0), "{said:#?}");
    assert!(said.err.to_lowercase().contains("space"), "{said:#?}");
    assert!(running.answer().is_some(), "pods serve on");
    fs::remove_file(&ballast).unwrap();

    // An artifact that is small when packed and does not fit when unpacked.
    rig.artifact("large", |dir| {
        sleeper(dir);
        fs::write(dir.join("padding"), vec![0; 9 << 20]).unwrap();
    });
    let ballast = fill(&disk, 6 << 20);
    let manifest = fs::read_to_string(rig.path("hello.yaml")).unwrap();
    let manifest = manifest
        .replace("name: hello", "name: large")
        .replace("hello.tar.gz", "large.tar.gz")
        .replace("      health: { http", "      # { http");
    rig.write("large.yaml", manifest);
    rig.cli(&["apply", "-f", "large.yaml"]).ok();
    let name = eventually("the full disk on the pod", || {
        let pods = rig.pods();
        let pod = pods.iter().find(|pod| {
            let message = pod["status"]["message"].as_str().unwrap_or_default();
            message.to_lowercase().contains("no space") || message.contains("full")
        })?;
        Some(pod["metadata"]["name"].as_str()?.to_owned())
    });
    assert!(name.starts_with("large-"));
    let described = rig.cli(&["describe", "pod", &name]).ok();
    assert!(described.contains("pace"), "{described}");
    assert!(running.answer().is_some(), "other pods serve on");

    // Room again: what was wanted comes by itself, and what was running was never touched.
    fs::remove_file(&ballast).unwrap();
    eventually("the large pod", || {
        let pods = rig.pods();
        let pod = pods.iter().find(|pod| pod["metadata"]["name"] == name)?;
        (pod["status"]["phase"] == "Running").then_some(())
    });
    let after = rig.json(&["get", "pod", &running.name]);
    assert_eq!(after["status"]["pids"]["web"], running.pid);
    assert_eq!(after["status"]["restarts"], 0);
}
