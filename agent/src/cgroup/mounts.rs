//! Which control group hierarchies are mounted, from `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use platctrl_kinds::Resources;

/// What the kernel can limit for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Controller {
    Cpu,
    Memory,
    Pids,
    Io,
}

impl Controller {
    pub(super) const ALL: [Self; 4] = [Self::Cpu, Self::Memory, Self::Pids, Self::Io];

    /// The kernel's name for it, in version 2.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Io => "io",
        }
    }

    /// Its name in version 1.
    const fn old_name(self) -> &'static str {
        match self {
            Self::Io => "blkio",
            other => other.name(),
        }
    }

    /// Whether there is a limit for it.
    pub(super) fn asked(self, resources: &Resources) -> bool {
        match self {
            Self::Cpu => resources.cpu.is_some(),
            Self::Memory => resources.memory.is_some(),
            Self::Pids => resources.pids.is_some(),
            Self::Io => !resources.io.is_empty(),
        }
    }
}

/// A mounted hierarchy of version 1.
#[derive(Clone, Debug, PartialEq, Eq)]
struct V1 {
    path: PathBuf,
    controllers: Vec<Controller>,
}

/// The hierarchies we use, each where it is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Mounts {
    v2: Option<PathBuf>,
    v1: Vec<V1>,
    /// systemd's hierarchy on machines with version 1: it has no controllers, only members.
    named: Option<PathBuf>,
}

impl Mounts {
    /// Takes the first writable mount of each hierarchy.
    pub(super) fn parse(mountinfo: &str) -> Self {
        let mut mounts = Self::default();
        for mount in mountinfo.lines().filter_map(parse_line) {
            if !mount.writable || !mount.path.join("cgroup.procs").is_file() {
                continue;
            }
            match mount.kind {
                Kind::V2 => {
                    mounts.v2.get_or_insert(mount.path);
                }
                Kind::Systemd => {
                    mounts.named.get_or_insert(mount.path);
                }
                Kind::V1(mut controllers) => {
                    controllers.retain(|controller| mounts.v1_with(*controller).is_none());
                    if !controllers.is_empty() {
                        mounts.v1.push(V1 {
                            path: mount.path,
                            controllers,
                        });
                    }
                }
            }
        }
        mounts
    }

    /// As if version 2 were not mounted.
    #[cfg(test)]
    pub(super) fn without_v2(self) -> Self {
        Self { v2: None, ..self }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.v2.is_none() && self.v1.is_empty()
    }

    pub(super) fn v2(&self) -> Option<&Path> {
        self.v2.as_deref()
    }

    /// The hierarchies beside version 2 that programs join.
    pub(super) fn v1(&self) -> impl Iterator<Item = &Path> {
        self.v1
            .iter()
            .map(|v1| v1.path.as_path())
            .chain(self.named())
    }

    pub(super) fn named(&self) -> Option<&Path> {
        self.named.as_deref()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Path> {
        self.v2().into_iter().chain(self.v1())
    }

    /// Where version 1 has the controller. A controller is in one version at a time.
    pub(super) fn v1_with(&self, controller: Controller) -> Option<&Path> {
        let has = |v1: &&V1| v1.controllers.contains(&controller);
        self.v1.iter().find(has).map(|v1| v1.path.as_path())
    }
}

#[derive(Debug)]
enum Kind {
    V2,
    V1(Vec<Controller>),
    Systemd,
}

#[derive(Debug)]
struct Mount {
    path: PathBuf,
    writable: bool,
    kind: Kind,
}

/// `36 31 0:33 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory`; see proc(5).
fn parse_line(line: &str) -> Option<Mount> {
    let (own, filesystem) = line.split_once(" - ")?;
    let mut own = own.split(' ').skip(4);
    let (path, options) = (unescape(own.next()?), own.next()?);
    let mut filesystem = filesystem.split(' ');
    let (kind, super_options) = (filesystem.next()?, filesystem.nth(1)?);
    let kind = match kind {
        "cgroup2" => Kind::V2,
        "cgroup"
            if super_options
                .split(',')
                .any(|option| option == "name=systemd") =>
        {
            Kind::Systemd
        }
        "cgroup" => Kind::V1(
            Controller::ALL
                .into_iter()
                .filter(|known| {
                    super_options
                        .split(',')
                        .any(|option| option == known.old_name())
                })
                .collect(),
        ),
        _ => return None,
    };
    let is_writable = |options: &str| options.split(',').any(|option| option == "rw");
    let writable = is_writable(options) && is_writable(super_options);
    Some(Mount {
        path,
        writable,
        kind,
    })
}

/// The kernel writes spaces and the like as a backslash and three octal digits.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut path = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = (byte == b'\\')
            .then(|| text.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        path.push(escaped.unwrap_or(byte));
        at += if escaped.is_some() { 4 } else { 1 };
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_its_escapes_and_options() {
        let line =
            r"36 31 0:33 / /mnt/a\040b\134c rw,nosuid shared:3 - cgroup cgroup rw,cpu,cpuacct";
        let mount = parse_line(line).unwrap();
        assert_eq!(mount.path, Path::new(r"/mnt/a b\c"));
        assert!(mount.writable);
        assert!(matches!(mount.kind, Kind::V1(controllers) if controllers == [Controller::Cpu]));

        let read_only = "30 23 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup2 rw";
        assert!(!parse_line(read_only).unwrap().writable);
        for other in [
            "",
            "1 2 3",
            "31 23 0:28 / /tmp rw - tmpfs tmpfs rw",
            "a - cgroup2",
        ] {
            assert!(parse_line(other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn a_mount_of_which_nothing_is_there_is_not_used() {
        let mounts = Mounts::parse("1 2 0:3 / /nowhere/at/all rw - cgroup2 cgroup2 rw");
        assert!(mounts.is_empty());
    }
}
