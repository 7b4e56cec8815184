//! What there is to know of this machine that is nobody's secret: no process's arguments or
//! environment, and of files nothing but names, sizes and rights.

use std::fs::{File, Metadata};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde_json::{Value, json};

/// How deep a directory is listed, and how much of it.
const DEPTH: usize = 3;
const MAX_LINES: usize = 5_000;

/// Files of the kernel that are told.
const KERNEL: [(&str, &str); 7] = [
    ("memory.txt", "/proc/meminfo"),
    ("load.txt", "/proc/loadavg"),
    ("mounts.txt", "/proc/self/mounts"),
    ("limits.txt", "/proc/self/limits"),
    ("cgroup.txt", "/proc/self/cgroup"),
    ("pressure-memory.txt", "/proc/pressure/memory"),
    ("release.txt", "/etc/os-release"),
];

/// What machine it is.
pub(super) fn facts() -> Value {
    let name = rustix::system::uname();
    json!({
        "name": name.nodename().to_string_lossy(),
        "kernel": name.release().to_string_lossy(),
        "architecture": name.machine().to_string_lossy(),
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "user": rustix::process::geteuid().as_raw(),
    })
}

/// Files of the kernel that can be read here.
pub(super) fn kernel() -> Vec<(&'static str, String)> {
    let read = KERNEL.iter();
    read.filter_map(|(name, path)| Some((*name, std::fs::read_to_string(path).ok()?)))
        .collect()
}

/// The last bytes of a file.
pub(super) fn tail(path: &Path, most: usize) -> io::Result<String> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(most as u64)))?;
    let mut bytes = Vec::new();
    file.take(most as u64).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What is in a directory: rights, owner, size and name.
pub(super) fn listing(dir: &Path) -> String {
    let mut lines = Vec::new();
    list(dir, 0, &mut lines);
    let is_cut = lines.len() > MAX_LINES;
    lines.truncate(MAX_LINES);
    if is_cut {
        lines.push("…".to_owned());
    }
    lines.join("\n") + "\n"
}

fn list(path: &Path, depth: usize, lines: &mut Vec<String>) {
    let line = |metadata: &Metadata| {
        format!(
            "{:>6o} {:>6} {:>12}  {}",
            metadata.mode() & 0o177_777,
            metadata.uid(),
            metadata.len(),
            path.display()
        )
    };
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => {
            lines.push(format!("{}: {error}", path.display()));
            return;
        }
    };
    lines.push(line(&metadata));
    if !metadata.is_dir() || depth == DEPTH || lines.len() > MAX_LINES {
        return;
    }
    let Ok(entries) = std::fs::read_dir(path) else {
        return;
    };
    let mut entries: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for entry in entries {
        list(&entry, depth + 1, lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_file_and_the_names_in_a_directory_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        std::fs::write(&file, "0123456789").unwrap();
        assert_eq!(tail(&file, 4).unwrap(), "6789");
        assert_eq!(tail(&file, 40).unwrap(), "0123456789");
        assert!(tail(&dir.path().join("b"), 4).is_err());
        std::fs::create_dir_all(dir.path().join("1/2/3/4")).unwrap();
        let listed = listing(dir.path());
        assert!(
            listed.contains("10  ") && listed.contains("/1/2/3\n"),
            "{listed}"
        );
        assert!(!listed.contains("/1/2/3/4"), "{listed}");
    }
}
