//! A disk that is full at any write of an update: what runs keeps running, and with room again the
//! update goes through.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;

use platctrl_test_support::needs;
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::json;

use crate::rig::{Rig, is_alive, tombstone, want};

/// A small file system in the place of the data directory.
pub(crate) struct Small(PathBuf);

impl Small {
    pub(crate) fn mount(rig: &Rig) -> Self {
        let at = rig.data_dir();
        fs::create_dir(&at).unwrap();
        // The supervisor's program is copied there.
        let size = fs::metadata(rig.helper()).unwrap().len() + (24 << 20);
        let options = std::ffi::CString::new(format!("size={size},mode=0711")).unwrap();
        let flags = MountFlags::empty();
        rustix::mount::mount("platctrl-test", &at, "tmpfs", flags, options.as_c_str()).unwrap();
        Self(at)
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Leaves about so many bytes.
    pub(crate) fn leave(&self, bytes: u64) {
        let room = rustix::fs::statvfs(&self.0).unwrap();
        let free = room.f_bavail * room.f_frsize;
        let mut filler = File::create(self.filler()).unwrap();
        let mut left = free.saturating_sub(bytes);
        let chunk = vec![7; 64 << 10];
        while left > 0 {
            let n = left.min(chunk.len() as u64);
            if filler
                .write_all(&chunk[..usize::try_from(n).unwrap()])
                .is_err()
            {
                break;
            }
            left -= n;
        }
    }

    pub(crate) fn make_room(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

/// Taken away in this order, whatever happens.
struct Node {
    rig: Rig,
    small: Small,
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
        // The rig could not remove what was mounted, nor what it lies in.
        let _ = self.0.parent().map(fs::remove_dir_all);
    }
}

#[test]
fn at_whatever_write_the_disk_is_full_the_old_version_runs_and_the_update_follows() {
    // It mounts a small file system.
    if !needs::root() {
        return;
    }
    let rig = Rig::new();
    let small = Small::mount(&rig);
    let node = Node { rig, small };
    let (rig, small) = (&node.rig, &node.small);
    let script = "#!/bin/sh\nexec sleep 1000\n";
    let version = |number: u64| {
        // Something of every size to write: an artifact, its tree, a record, files.
        let noise: String = (0..400 * number).map(|i| format!("{i:x} ")).collect();
        let name = format!("v{number}");
        let artifact = rig.pack(
            &name,
            &[("bin/launch", Some(script)), ("noise", Some(&noise))],
        );
        let mut spec = rig.spec(&artifact);
        spec["ports"] = json!({});
        spec["config"] = json!({"text": "x".repeat(3000)});
        spec
    };
    let host = rig.host();
    let mut spec = version(1);
    let (worker, told) = rig.worker(&host, want(1, &spec));
    let mut running = told.ready();
    let mut refused = 0;
    for (step, left) in [0, 4, 8, 12, 16, 20, 24, 32, 40, 56, 72]
        .into_iter()
        .enumerate()
    {
        let generation = 2 * u64::try_from(step).unwrap() + 2;
        spec = version(generation);
        small.leave(left << 10);
        worker.order(want(generation, &spec));
        let report = told.wait("a word about it", |it| {
            it.observed_generation == generation && it.is_ready() || is_full(it)
        });
        if report.observed_generation != generation {
            refused += 1;
            // Until the new one is ready to take over, nothing happens to the old one.
            if let Some(pid) = running.status.pids.get("web")
                && report.status.pids == running.status.pids
            {
                assert!(is_alive(*pid), "with {left} KiB left");
            }
        }
        small.make_room();
        // Somebody looks: it is tried again at once.
        spec["config"]["again"] = true.into();
        let next = generation + 1;
        worker.order(want(next, &spec));
        running = told.wait("the update", |it| {
            it.is_ready() && it.observed_generation == next
        });
        assert!(is_alive(running.status.pids["web"]), "generation {next}");
    }
    assert!(refused >= 3, "the disk was full {refused} times only");
    worker.order(tombstone(running.observed_generation, &spec));
    told.wait("the end", |report| report.phase.as_str() == "Gone");
}

fn is_full(report: &platctrl_agent::Report) -> bool {
    report
        .status
        .message
        .to_lowercase()
        .contains("no space left")
}
