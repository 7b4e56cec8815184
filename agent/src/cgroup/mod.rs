//! Control groups: each program in its own, so that it can be limited, counted and ended whole.
//!
//! Linux has two kinds. Wherever cgroup2 is mounted a program gets a *tracking* group in it, which
//! can be killed at once and tells whether anybody lives in it. Limits are set in whichever kind
//! has the controller. Everything lies in one directory `platctrl-<tag>` of each hierarchy:
//!
//! ```text
//! /sys/fs/cgroup/[unified|memory|…]/platctrl-<tag>/pod-<pod>/run-<program>
//! ```
//!
//! `mounts` finds the hierarchies, `limits` writes limits, `members` ends what is in a group.
//! Everything here blocks, for well under a millisecond unless it says so.

mod disk;
mod limits;
mod members;
mod mounts;
#[cfg(test)]
mod tests;
mod usage;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use platctrl_framework::model::Digest;
use platctrl_kinds::Resources;

use mounts::{Controller, Mounts};
pub use usage::Used;

/// How long [`Cgroups::remove`] waits for the last process to be gone.
const EMPTY_WITHIN: Duration = Duration::from_secs(5);
/// A directory that somebody else removes while it is being filled is made again so often.
const ATTEMPTS: u32 = 8;

/// Why something could not be done with a group.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// The kernel refused.
    #[error("cannot {doing} {}: {source}", path.display())]
    Failed {
        /// The verb.
        doing: &'static str,
        /// Its object.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Processes are still in it.
    #[error(
        "processes are still in {}: {}; if they were killed, the kernel waits for a device or a network file system",
        path.display(), pids(members)
    )]
    Populated {
        /// The group.
        path: PathBuf,
        /// Their ids.
        members: Vec<u32>,
    },
}

fn pids(members: &[u32]) -> String {
    let shown: Vec<_> = members.iter().take(10).map(u32::to_string).collect();
    let more = if members.len() > shown.len() {
        ", …"
    } else {
        ""
    };
    format!("pids {}{more}", shown.join(", "))
}

impl CgroupError {
    fn new(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Failed {
            doing,
            path: path.to_owned(),
            source,
        }
    }
}

/// The groups of one program. Without any, nothing is limited or tracked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Group {
    /// Directories to join beside `tracking`, by writing to `cgroup.procs` in each.
    pub join: Vec<PathBuf>,
    /// A directory of cgroup2 that holds the program alone. It has to be joined as well.
    pub tracking: Option<PathBuf>,
    /// What was asked for and is not in force here, for people: `memory: no memory controller …`.
    pub unenforced: Vec<String>,
}

impl Group {
    /// Every directory to join.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.tracking.iter().chain(&self.join).map(PathBuf::as_path)
    }
}

/// The control groups of one agent.
#[derive(Clone, Debug)]
pub struct Cgroups {
    base: String,
    mounts: Mounts,
    unavailable: Option<String>,
    /// The disk whose use is limited.
    disk: Option<String>,
}

/// A short name for a data directory, to tell the groups of two agents on one machine apart.
///
/// ```
/// use std::path::Path;
///
/// let tag = platctrl_agent::cgroup::tag(Path::new("/var/lib/platctrl"));
/// assert_eq!(tag.len(), 10);
/// assert_ne!(tag, platctrl_agent::cgroup::tag(Path::new("/var/lib/platctrl-demo")));
/// ```
#[must_use]
pub fn tag(data_dir: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let digest = Digest::of(data_dir.as_os_str().as_bytes());
    digest.hex().chars().take(10).collect()
}

impl Cgroups {
    /// Looks at what is mounted. Changes nothing.
    ///
    /// Where groups cannot be used (not root, none mounted, mounted read-only) every [`Group`] is
    /// empty and [`Cgroups::unavailable`] says why.
    #[must_use]
    pub fn detect(tag: &str) -> Self {
        if !rustix::process::geteuid().is_root() {
            return Self::without(tag, "only root can make them; this is not root".into());
        }
        match fs::read_to_string("/proc/self/mountinfo") {
            Ok(mountinfo) => Self::from_mountinfo(tag, &mountinfo),
            Err(error) => Self::without(tag, format!("cannot read /proc/self/mountinfo: {error}")),
        }
    }

    fn from_mountinfo(tag: &str, mountinfo: &str) -> Self {
        let mounts = Mounts::parse(mountinfo);
        if mounts.is_empty() {
            let why = "none is mounted writable; in a container, mount /sys/fs/cgroup read-write";
            return Self::without(tag, why.into());
        }
        Self {
            base: format!("platctrl-{}", encode(tag)),
            mounts,
            unavailable: None,
            disk: None,
        }
    }

    fn without(tag: &str, why: String) -> Self {
        let base = format!("platctrl-{}", encode(tag));
        Self {
            base,
            mounts: Mounts::default(),
            unavailable: Some(why),
            disk: None,
        }
    }

    /// Limits of reading and writing are for the disk that this directory is on.
    #[must_use]
    pub fn with_disk_of(self, directory: &Path) -> Self {
        let disk = disk::of(directory);
        Self { disk, ..self }
    }

    /// Why there are no groups on this machine for this process. None when there are.
    #[must_use]
    pub fn unavailable(&self) -> Option<&str> {
        self.unavailable.as_deref()
    }

    /// The groups of a program of a pod, which exist once [`Cgroups::create`] made them. Both
    /// names may hold anything.
    #[must_use]
    pub fn group(&self, pod: &str, program: &str) -> Group {
        let below = |mount: &Path| self.pod_directory(mount, pod).join(run_name(program));
        Group {
            join: self.mounts.v1().map(below).collect(),
            tracking: self.mounts.v2().map(below),
            unenforced: Vec::new(),
        }
    }

    /// Makes the groups of a program, those that are missing, and sets its limits.
    ///
    /// # Errors
    /// [`CgroupError`]; a limit for which this machine has no controller is no error but named in
    /// [`Group::unenforced`].
    pub fn create(
        &self,
        pod: &str,
        program: &str,
        resources: &Resources,
    ) -> Result<Group, CgroupError> {
        let mut group = self.group(pod, program);
        for mount in self.mounts.all() {
            self.make(mount, pod, program)?;
        }
        self.set_limits(&mut group, resources)?;
        Ok(group)
    }

    /// Replaces the limits of a group, also while it is in use.
    ///
    /// # Errors
    /// [`CgroupError`], also when the group does not exist.
    pub fn set_limits(&self, group: &mut Group, resources: &Resources) -> Result<(), CgroupError> {
        group.unenforced.clear();
        let disk = self.disk.as_deref();
        for controller in Controller::ALL {
            let asked = controller.asked(resources);
            let in_v1 = self.mounts.v1_with(controller);
            let directory = match in_v1 {
                Some(mount) => group.join.iter().find(|path| path.starts_with(mount)),
                None => group.tracking.as_ref(),
            };
            let set = match (directory, in_v1) {
                (None, _) => Ok(false),
                (Some(directory), Some(_)) => {
                    limits::set_v1(directory, controller, resources, disk)
                }
                (Some(directory), None) => limits::set_v2(directory, controller, resources, disk),
            };
            if !set? && asked {
                let why = match (&self.unavailable, directory) {
                    (Some(why), _) => format!("no control groups: {why}"),
                    (None, _) if controller == Controller::Io && disk.is_none() => {
                        "the node does not keep its pods on a disk of its own".to_owned()
                    }
                    (None, Some(path)) => {
                        format!("no {controller} controller in {}", path.display())
                    }
                    (None, None) => format!("no {controller} controller is mounted"),
                };
                group.unenforced.push(format!("{controller}: {why}"));
            }
        }
        Ok(())
    }

    /// Directories for supervisors to join, so that a service manager which ends the agent's
    /// group leaves them alone. They are made where they are missing.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn supervisors(&self) -> Result<Vec<PathBuf>, CgroupError> {
        let mounts = self.mounts.v2().into_iter().chain(self.mounts.named());
        mounts
            .map(|mount| {
                let path = mount.join(&self.base).join("supervisors");
                fs::create_dir_all(&path)
                    .map_err(|error| CgroupError::new("make the group", &path, error))?;
                Ok(path)
            })
            .collect()
    }

    /// Kills everything in a group, also what was forked meanwhile. What was killed may take a
    /// moment to be gone: see [`Cgroups::populated`]. Blocks for at most about a second.
    ///
    /// # Errors
    /// [`CgroupError`]; a group that does not exist is no error.
    pub fn kill(&self, group: &Group) -> Result<(), CgroupError> {
        members::kill(group)
    }

    /// Whether anything lives in a group. Nothing lives in one that does not exist.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn populated(&self, group: &Group) -> Result<bool, CgroupError> {
        members::populated(group)
    }

    /// How often the kernel killed a process of the group for want of memory.
    #[must_use]
    pub fn oom_kills(&self, group: &Group) -> u64 {
        let in_v1 = self.mounts.v1_with(Controller::Memory);
        let file = match in_v1 {
            Some(mount) => {
                let directory = group.join.iter().find(|path| path.starts_with(mount));
                directory.map(|path| path.join("memory.oom_control"))
            }
            None => group
                .tracking
                .as_ref()
                .map(|path| path.join("memory.events")),
        };
        // A group that is gone, or a kernel that does not count: none that we know of.
        file.and_then(|file| fs::read_to_string(file).ok())
            .and_then(|text| {
                let line = text
                    .lines()
                    .find_map(|line| line.strip_prefix("oom_kill "))?;
                line.trim().parse().ok()
            })
            .unwrap_or(0)
    }

    /// Removes a group once nothing lives in it any more. Kills nothing. Blocks until the group
    /// is empty, for at most five seconds.
    ///
    /// # Errors
    /// [`CgroupError::Populated`] names what still lives.
    pub fn remove(&self, group: &Group) -> Result<(), CgroupError> {
        members::wait_until_empty(group, EMPTY_WITHIN)?;
        for directory in group.directories() {
            members::remove_tree(directory)?;
            if let Some(pod) = directory.parent() {
                // Another program of the pod may need it.
                let _ = fs::remove_dir(pod);
            }
        }
        Ok(())
    }

    /// Removes the groups of all programs of a pod, as [`Cgroups::remove`].
    ///
    /// # Errors
    /// [`CgroupError::Populated`] names what still lives.
    pub fn remove_pod(&self, pod: &str) -> Result<(), CgroupError> {
        self.remove_each(|mount| self.pod_directory(mount, pod))
    }

    /// Kills whatever is left in any group of this agent, and removes them all. Blocks as
    /// [`Cgroups::remove`].
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn remove_all(&self) -> Result<(), CgroupError> {
        members::kill(&self.whole(|mount| mount.join(&self.base)))?;
        self.remove_each(|mount| mount.join(&self.base))
    }

    fn remove_each(&self, directory: impl Fn(&Path) -> PathBuf) -> Result<(), CgroupError> {
        let group = self.whole(directory);
        members::wait_until_empty(&group, EMPTY_WITHIN)?;
        group.directories().try_for_each(members::remove_tree)
    }

    /// A group of which everything below counts too.
    fn whole(&self, directory: impl Fn(&Path) -> PathBuf) -> Group {
        Group {
            join: self.mounts.v1().map(&directory).collect(),
            tracking: self.mounts.v2().map(&directory),
            unenforced: Vec::new(),
        }
    }

    fn pod_directory(&self, mount: &Path, pod: &str) -> PathBuf {
        mount.join(&self.base).join(format!("pod-{}", encode(pod)))
    }

    /// Makes the directories of a program in one hierarchy.
    fn make(&self, mount: &Path, pod: &str, program: &str) -> Result<(), CgroupError> {
        let pod = self.pod_directory(mount, pod);
        let path = pod.join(run_name(program));
        let unified = self.mounts.v2() == Some(mount);
        for attempt in 1.. {
            let made = fs::create_dir_all(&pod).and_then(|()| {
                if unified {
                    let above = [mount, &mount.join(&self.base), &pod];
                    above.into_iter().for_each(limits::delegate);
                }
                fs::create_dir_all(&path)
            });
            match made {
                Ok(()) => return Ok(()),
                // The last program of the pod took its directory with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => {}
                Err(error) => return Err(CgroupError::new("make the group", &path, error)),
            }
        }
        Ok(())
    }
}

fn run_name(program: &str) -> String {
    format!("run-{}", encode(program))
}

/// A name as part of a path: letters, digits, `.`, `_` and `-` as they are, other bytes as `%` and
/// two digits. What would be too long for the kernel ends in a hash, after a `%-` that is nowhere
/// else. The prefixes before it keep a pod `memory.max` from being a file of the kernel's.
fn encode(name: &str) -> String {
    const LONGEST: usize = 200;
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02x}"));
        }
    }
    if encoded.len() > LONGEST {
        encoded.truncate(LONGEST - 34);
        encoded.push_str("%-");
        encoded.extend(Digest::of(name.as_bytes()).hex().chars().take(32));
    }
    encoded
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
