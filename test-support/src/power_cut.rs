//! A disk whose power can be cut: a file system of its own, ext4 in an image, of which a test can
//! have what its device was given so far and nothing else.
//!
//! It is mounted so that nothing goes to the device before somebody flushes it: no commit by the
//! clock, and files that replace others are not written out for that alone. A cut is a copy of the
//! image as it is then, mounted in the place of the first: the journal is replayed, and what was
//! not flushed is gone. Every cut asserts that.
//!
//! The mounts are in a namespace of the calling thread's, and images in memory: all of it goes with
//! the thread and the processes it has started, whatever ends them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use rustix::fs::SeekFrom;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::needs;
use crate::processes::SOON;

/// What is written at a cut, and has to be lost in it.
const UNFLUSHED: &str = ".unflushed";
/// Files that are larger are not compared when it is told what was lost.
const COMPARED: u64 = 256 << 10;

/// A file system that is mounted at a directory, for as long as this lives.
#[derive(Debug)]
pub struct Disk {
    /// A file system in memory, where the images are.
    images: tempfile::TempDir,
    at: PathBuf,
    cuts: u32,
}

impl Disk {
    /// Mounts an empty disk at this directory, for this thread and what it starts from here on.
    /// None where that cannot be done, which is told.
    ///
    /// # Panics
    /// When it is not done although it could be.
    #[must_use]
    pub fn mount(at: &Path, megabytes: u32) -> Option<Self> {
        if !needs::root() {
            return None;
        }
        own_mounts();
        let images = tempfile::Builder::new().prefix("disk").tempdir().unwrap();
        mount(
            "platctrl-test",
            images.path(),
            "tmpfs",
            MountFlags::empty(),
            None,
        )
        .unwrap();
        let disk = Self {
            images,
            at: at.to_owned(),
            cuts: 0,
        };
        let image = disk.image();
        let file = File::create(&image).unwrap();
        file.set_len(u64::from(megabytes) << 20).unwrap();
        let mut make = Command::new("mkfs.ext4");
        make.args(["-q", "-F", "-m", "0", "-J", "size=16"]);
        make.args(["-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"]);
        let made = output(make.arg(&image), "mkfs.ext4")?;
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "mkfs.ext4: {said}");
        mount_image(&image, at).then_some(disk)
    }

    fn image(&self) -> PathBuf {
        self.images.path().join(format!("{}.ext4", self.cuts))
    }

    /// Cuts the power: from now on there is what had been flushed. Nobody may be using the disk any
    /// more. Returns what was lost, or is other than it was.
    ///
    /// # Panics
    /// When the cut did not happen.
    pub fn cut(&mut self) -> Vec<PathBuf> {
        let before = contents(&self.at);
        let image = self.image();
        self.cuts += 1;
        let copy = self.image();
        let aside = self.images.path().join("aside");
        let _ = fs::create_dir(&aside);
        let deadline = Instant::now() + SOON;
        loop {
            let canary = self.at.join(format!("{UNFLUSHED}.{}", rand()));
            fs::write(&canary, "lost").unwrap();
            copy_at_rest(&image, &copy, &self.at);
            assert!(mount_image(&copy, &aside), "what was copied is mounted");
            let survivor = aside.join(canary.file_name().unwrap());
            if !survivor.exists() {
                break;
            }
            // Somebody has flushed all there is on this machine, just then.
            unmount(&aside, UnmountFlags::empty()).unwrap();
            assert!(
                Instant::now() < deadline,
                "what nobody flushed is never lost: {}",
                canary.display()
            );
        }
        unmount(&self.at, UnmountFlags::DETACH).unwrap();
        rustix::mount::mount_move(&aside, &self.at).unwrap();
        let _ = fs::remove_file(image);
        let after = contents(&self.at);
        let differs = |(path, content): (PathBuf, Vec<u8>)| {
            (after.get(&path) != Some(&content)).then_some(path)
        };
        before.into_iter().filter_map(differs).collect()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for mounted in [&self.at, &self.images.path().join("aside")] {
            let _ = unmount(mounted, UnmountFlags::DETACH);
        }
        let _ = unmount(self.images.path(), UnmountFlags::DETACH);
    }
}

/// What this thread mounts from here on is seen by itself and what it starts, and goes with them.
#[expect(unsafe_code, reason = "unshare can part threads from their files")]
fn own_mounts() {
    thread_local!(static PARTED: Cell<bool> = const { Cell::new(false) });
    // Once: threads that it has started would not see what comes after another time.
    if PARTED.replace(true) {
        return;
    }
    // SAFETY: tables of files stay shared; what is parted is what the thread sees of mounts.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).unwrap();
}

fn mount_image(image: &Path, at: &Path) -> bool {
    let mut mount = Command::new("mount");
    mount.args(["-n", "-t", "ext4", "-o"]);
    mount.arg("loop,commit=86400,noauto_da_alloc,nodiscard,errors=remount-ro");
    let what = "mount and loop devices";
    let Some(mounted) = output(mount.arg(image).arg(at), what) else {
        return false;
    };
    if !mounted.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&mounted.stderr));
        needs::lacks(what);
    }
    mounted.status.success()
}

/// None where there is no such program, which is told.
fn output(command: &mut Command, what: &str) -> Option<Output> {
    match command.output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            needs::lacks(what);
            None
        }
        Err(error) => panic!("{what}: {error}"),
    }
}

/// Copies an image at a moment when its device is given nothing.
fn copy_at_rest(image: &Path, copy: &Path, mounted_at: &Path) {
    let device = device(mounted_at);
    let deadline = Instant::now() + SOON;
    loop {
        let before = written(&device);
        copy_sparse(image, copy).unwrap();
        if before.is_some() && before == written(&device) {
            return;
        }
        assert!(Instant::now() < deadline, "{device} is never at rest");
    }
}

/// The name of the device that is mounted there.
fn device(at: &Path) -> String {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let at = at.canonicalize().unwrap();
    let line = mounts
        .lines()
        .rfind(|line| line.split(' ').nth(4).is_some_and(|it| Path::new(it) == at));
    let line = line.expect("the disk is mounted");
    let source = line.split(" - ").nth(1).unwrap().split(' ').nth(1).unwrap();
    source.rsplit('/').next().unwrap().to_owned()
}

/// How much the device was given so far; None while it is being given something.
fn written(device: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/sys/block/{device}/stat")).unwrap();
    let fields: Vec<_> = text.split_whitespace().collect();
    // Requests under way; then writes that are done.
    (fields[8] == "0").then(|| fields[4].to_owned())
}

fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (File::open(from)?, File::create(to)?);
    let end = from.metadata()?.len();
    to.set_len(end)?;
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < end {
        let Ok(data) = rustix::fs::seek(&from, SeekFrom::Data(at)) else {
            // There is nothing but a hole.
            break;
        };
        let hole = rustix::fs::seek(&from, SeekFrom::Hole(data))?;
        at = data;
        while at < hole {
            let size = buffer
                .len()
                .min(usize::try_from(hole - at).unwrap_or(usize::MAX));
            from.read_exact_at(&mut buffer[..size], at)?;
            to.write_all_at(&buffer[..size], at)?;
            at += size as u64;
        }
    }
    (&to).flush()
}

/// What is in the files of a tree, and where its links lead, for all that is not large.
fn contents(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    use std::os::unix::ffi::OsStrExt as _;
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().to_owned();
            if metadata.is_dir() {
                directories.push(path);
                found.insert(name, Vec::new());
            } else if metadata.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                found.insert(name, target.as_os_str().as_bytes().to_vec());
            } else if metadata.is_file() && metadata.len() <= COMPARED {
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}

fn rand() -> String {
    format!("{:016x}", crate::processes::random())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_flushed_is_there_after_a_cut_and_nothing_else_is() {
        let area = tempfile::tempdir().unwrap();
        let Some(mut disk) = Disk::mount(area.path(), 64) else {
            return;
        };
        let put = |name: &str, text: &str| {
            let mut file = File::create(area.path().join(name)).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file
        };
        let flush = || File::open(area.path()).unwrap().sync_all().unwrap();
        let read = |name: &str| fs::read_to_string(area.path().join(name));
        put("flushed", "one").sync_all().unwrap();
        put("written", "one");
        flush();
        put("later", "one");
        let lost = disk.cut();
        assert_eq!(read("flushed").unwrap(), "one");
        assert_eq!(read("written").unwrap(), "", "its name was flushed alone");
        assert!(read("later").is_err(), "not even its name was");
        assert_eq!(lost, [Path::new("later"), Path::new("written")]);

        // A file that replaces another is not written out for that alone.
        put("flushed", "two").sync_all().unwrap();
        put("new", "three");
        fs::rename(area.path().join("new"), area.path().join("flushed")).unwrap();
        disk.cut();
        assert_eq!(read("flushed").unwrap(), "two", "the name is the old one's");
        put("new", "three");
        fs::rename(area.path().join("new"), area.path().join("flushed")).unwrap();
        flush();
        disk.cut();
        assert_eq!(
            read("flushed").unwrap(),
            "",
            "the name alone is the new one's"
        );
    }
}
