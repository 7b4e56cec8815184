//! What a group uses, as the kernel counts it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::mounts::Controller;
use super::{Cgroups, Group};

/// What a group has used of processors since it was made, and uses of memory now. Nothing is said
/// of what nobody counts here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Used {
    /// Processor time.
    pub cpu: Option<Duration>,
    /// Bytes of memory, without files that the kernel can drop at once.
    pub memory: Option<u64>,
}

impl Cgroups {
    /// What all programs of a pod use.
    #[must_use]
    pub fn used_by_pod(&self, pod: &str) -> Used {
        self.used(&self.whole(|mount| self.pod_directory(mount, pod)))
    }

    fn used(&self, group: &Group) -> Used {
        let in_v1 = |controller| {
            let mount = self.mounts.v1_with(controller)?;
            group.join.iter().find(|path| path.starts_with(mount))
        };
        let tracking = group.tracking.as_deref();
        // Version 2 counts time also where version 1 has the controller.
        let cpu = tracking
            .and_then(cpu_v2)
            .or_else(|| cpu_v1(in_v1(Controller::Cpu)?));
        let memory = match in_v1(Controller::Memory) {
            Some(directory) => memory(directory, "memory.usage_in_bytes", "total_inactive_file"),
            None => tracking.and_then(|it| memory(it, "memory.current", "inactive_file")),
        };
        Used { cpu, memory }
    }
}

fn cpu_v2(directory: &Path) -> Option<Duration> {
    let micros = line(&directory.join("cpu.stat"), "usage_usec")?;
    Some(Duration::from_micros(micros))
}

/// Where time is counted beside the controller that limits it.
fn cpu_v1(directory: &Path) -> Option<Duration> {
    let text = fs::read_to_string(directory.join("cpuacct.usage")).ok()?;
    Some(Duration::from_nanos(text.trim().parse().ok()?))
}

fn memory(directory: &Path, all: &str, droppable: &str) -> Option<u64> {
    let all: u64 = fs::read_to_string(directory.join(all))
        .ok()?
        .trim()
        .parse()
        .ok()?;
    let droppable = line(&directory.join("memory.stat"), droppable).unwrap_or(0);
    Some(all.saturating_sub(droppable))
}

/// The number in the line of a file that begins with a word.
fn line(file: &Path, word: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let (name, number) = line.split_once(' ')?;
        (name == word).then(|| number.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read_in_both_versions() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(cpu_v2(dir.path()), None);
        write("cpu.stat", "usage_usec 1500000\nuser_usec 7\n");
        assert_eq!(cpu_v2(dir.path()), Some(Duration::from_millis(1_500)));
        write("cpuacct.usage", "2000000\n");
        assert_eq!(cpu_v1(dir.path()), Some(Duration::from_millis(2)));
        write("memory.current", "1000\n");
        assert_eq!(
            memory(dir.path(), "memory.current", "inactive_file"),
            Some(1_000)
        );
        write(
            "memory.stat",
            "anon 5\ninactive_file 300\ntotal_inactive_file 400\n",
        );
        assert_eq!(
            memory(dir.path(), "memory.current", "inactive_file"),
            Some(700)
        );
        write("memory.usage_in_bytes", "399\n");
        let old = memory(dir.path(), "memory.usage_in_bytes", "total_inactive_file");
        assert_eq!(old, Some(0));
        write("memory.current", "much");
        assert_eq!(memory(dir.path(), "memory.current", "inactive_file"), None);
    }
}
