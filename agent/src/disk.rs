//! How much of the disk a tree takes that somebody else writes to meanwhile, as an app to its data.
//!
//! Its owner may be hostile: swap a directory for a link while it is looked at, nest directories
//! deeper than a path is long, make more files than anybody wants to count, or files that are large
//! in name only. So every directory is opened from the one that was asked for, through no link and
//! onto no other file system, and what is looked at has an end.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat, openat2, statat,
};

/// Entries that are looked at.
const MOST: u64 = 1_000_000;
/// Bytes of the path of a directory that is still looked into.
const DEEPEST: usize = 64 << 10;
/// Bytes of a path that the kernel takes at once, with room for one more name.
const AT_ONCE: usize = 3_800;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);
const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// What a tree takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Bytes on the disk, of files with several names once.
    pub(crate) bytes: u64,
    /// There is more than was looked at.
    pub(crate) at_least: bool,
}

/// What is below a directory. What cannot be read counts nothing.
pub(crate) fn taken(directory: &Path) -> Taken {
    taken_of(directory, MOST)
}

fn taken_of(directory: &Path, most: u64) -> Taken {
    let mut taken = Taken::default();
    let Ok(root) = openat(CWD, directory, DIRECTORY, Mode::empty()) else {
        return taken;
    };
    let mut several = HashSet::new();
    let mut left = most;
    // Paths below the root; the empty one is the root itself.
    let mut pending: Vec<Box<[u8]>> = vec![Box::default()];
    while let Some(path) = pending.pop() {
        // It is perhaps something else by now.
        let Ok(open) = open_below(&root, &path) else {
            continue;
        };
        let Ok(entries) = Dir::read_from(&open) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if left == 0 {
                taken.at_least = true;
                return taken;
            }
            left -= 1;
            // Of the entry itself, not of what a link names.
            let Ok(stat) = statat(&open, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if !is_directory && stat.st_nlink > 1 && !several.insert((stat.st_dev, stat.st_ino)) {
                continue;
            }
            let blocks = u64::try_from(stat.st_blocks).unwrap_or_default();
            taken.bytes = taken.bytes.saturating_add(blocks.saturating_mul(512));
            if !is_directory {
                continue;
            }
            let below = match path.is_empty() {
                true => name.to_bytes().to_vec(),
                false => [&path, b"/".as_slice(), name.to_bytes()].concat(),
            };
            match below.len() <= DEEPEST {
                true => pending.push(below.into()),
                false => taken.at_least = true,
            }
        }
    }
    taken
}

/// Opens a directory below another, however long its path is.
fn open_below(root: &OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let mut at: Option<OwnedFd> = None;
    let mut rest = path;
    loop {
        let cut = match rest.get(..AT_ONCE) {
            // A name is never longer than this.
            Some(head) => head.iter().rposition(|byte| *byte == b'/').unwrap_or(0),
            None => rest.len(),
        };
        let head: &OsStr = match &rest[..cut] {
            [] => OsStr::new("."),
            head => OsStr::from_bytes(head),
        };
        let from = at.as_ref().unwrap_or(root).as_fd();
        at = Some(openat2(from, head, DIRECTORY, Mode::empty(), INSIDE)?);
        match rest.get(cut + 1..) {
            Some(further) if !further.is_empty() => rest = further,
            _ => break,
        }
    }
    at.ok_or(rustix::io::Errno::NOENT)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use rustix::fs::{RenameFlags, mkdirat, renameat_with};

    use super::*;

    /// Files that take so much of the disk.
    fn fill(path: &Path, bytes: usize) {
        fs::write(path, vec![7; bytes]).unwrap();
        let file = fs::File::open(path).unwrap();
        // Some file systems say what a file takes once it is on the disk.
        file.sync_all().unwrap();
    }

    #[test]
    fn what_is_below_a_directory_counts_once_and_as_it_is_on_the_disk() {
        let area = tempfile::tempdir().unwrap();
        let root = area.path().join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        let nothing = taken(&root).bytes;
        fill(&root.join("a/b/file"), 1 << 20);
        let one = taken(&root).bytes;
        assert!((1 << 20..3 << 20).contains(&(one - nothing)), "{one}");
        // Another name of it, a link, and a file that is large in name only.
        fs::hard_link(root.join("a/b/file"), root.join("again")).unwrap();
        fill(&area.path().join("outside"), 4 << 20);
        symlink(area.path(), root.join("link")).unwrap();
        symlink(area.path().join("outside"), root.join("file")).unwrap();
        let sparse = fs::File::create(root.join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        let all = taken(&root);
        assert!(all.bytes - one < 64 << 10, "{all:?}");
        assert!(!all.at_least);
        assert_eq!(taken(&root.join("none")), Taken::default());
        assert_eq!(
            taken(&root.join("link")),
            Taken::default(),
            "no link either"
        );
    }

    #[test]
    fn a_tree_deeper_than_a_path_is_long_counts_and_looking_has_an_end() {
        let area = tempfile::tempdir().unwrap();
        let name = "d".repeat(200);
        let mut at = openat(CWD, area.path(), DIRECTORY, Mode::empty()).unwrap();
        // Twice what a path may be long; then far more than is looked into.
        for depth in 0..400 {
            mkdirat(&at, &name, Mode::RWXU).unwrap();
            at = openat(&at, &name, DIRECTORY, Mode::empty()).unwrap();
            if depth == 40 {
                let file = openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU);
                let mut file = fs::File::from(file.unwrap());
                std::io::Write::write_all(&mut file, &vec![7; 1 << 20]).unwrap();
                file.sync_all().unwrap();
            }
        }
        let all = taken(area.path());
        assert!(all.bytes >= 1 << 20 && all.at_least, "{all:?}");
        let few = taken_of(area.path(), 10);
        assert!(few.bytes < 1 << 20 && few.at_least, "{few:?}");
        let trash = tempfile::tempdir().unwrap();
        crate::files::remove_tree(&area.path().join(&name), trash.path()).unwrap();
    }

    #[test]
    fn a_directory_that_is_swapped_for_a_link_while_it_is_looked_at_is_not_followed() {
        let area = tempfile::tempdir().unwrap();
        let root = area.path().join("root");
        let canary = area.path().join("canary");
        fs::create_dir_all(root.join("d")).unwrap();
        fs::create_dir(&canary).unwrap();
        fill(&canary.join("file"), 8 << 20);
        symlink(&canary, root.join("l")).unwrap();
        let (swaps, done) = (AtomicU64::new(0), AtomicBool::new(false));
        let mut worst = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (d, l) = (root.join("d"), root.join("l"));
                while !done.load(Ordering::Relaxed) {
                    renameat_with(CWD, &d, CWD, &l, RenameFlags::EXCHANGE).unwrap();
                    swaps.fetch_add(1, Ordering::Relaxed);
                }
            });
            let mut looks = 0;
            while looks < 3000 || swaps.load(Ordering::Relaxed) < 3000 {
                worst = worst.max(taken(&root).bytes);
                looks += 1;
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(worst < 1 << 20, "{worst} bytes: a link was followed");
    }

    #[test]
    fn what_is_removed_while_its_owner_swaps_directories_for_links_takes_nothing_else_along() {
        let area = tempfile::tempdir().unwrap();
        let canary = area.path().join("canary");
        fs::create_dir(&canary).unwrap();
        for name in ["one", "two"] {
            fs::create_dir(canary.join(name)).unwrap();
            fs::write(canary.join(name).join("file"), "alive").unwrap();
        }
        let trash = area.path().join("trash");
        fs::create_dir(&trash).unwrap();
        let swaps = AtomicU64::new(0);
        for round in 0..200 {
            let root = area.path().join("root");
            fs::create_dir(&root).unwrap();
            let inside = root.join("x");
            fs::create_dir(&inside).unwrap();
            // Its owner holds on to it, wherever it is moved.
            let held = openat(CWD, &inside, DIRECTORY, Mode::empty()).unwrap();
            for at in ["d", "e"] {
                fs::create_dir_all(inside.join(at).join("deep/er")).unwrap();
            }
            symlink(&canary, inside.join("l")).unwrap();
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let swap = |a: &str, b: &str| {
                            renameat_with(&held, a, &held, b, RenameFlags::EXCHANGE)
                        };
                        for (a, b) in [("d", "l"), ("e", "l")] {
                            if swap(a, b).is_ok() {
                                swaps.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                });
                // It may have to be tried again, as it is for a pod.
                while crate::files::remove_tree(&root, &trash).is_err() {}
                done.store(true, Ordering::Relaxed);
            });
            assert!(!root.exists(), "{round}");
            assert_eq!(fs::read_dir(&trash).unwrap().count(), 0, "{round}");
        }
        assert!(swaps.load(Ordering::Relaxed) > 0, "the fault happened");
        for name in ["one", "two"] {
            let text = fs::read_to_string(canary.join(name).join("file")).unwrap();
            assert_eq!(text, "alive");
        }
        assert_eq!(fs::read_dir(&canary).unwrap().count(), 2);
    }
}
