//! This machine: what pods need of it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use platctrl_agent::cgroup::{self, Cgroups};

use super::Finding;
use crate::cli::alone;
use crate::place::Pointer;

/// Fewer open files than this are soon used up by a server or an agent.
const OPEN_FILES: u64 = 4096;
/// Less free space than this is soon used up by artifacts and logs.
const FREE: u64 = 1 << 30;
/// Less than this stops them now.
const FREE_AT_LEAST: u64 = 64 << 20;

/// What was seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Machine {
    root: bool,
    data_dir: PathBuf,
    exists: bool,
    /// The first directory above pods that their users cannot pass.
    barrier: Option<PathBuf>,
    free: Option<u64>,
    no_groups: Option<String>,
    no_landlock: bool,
    no_useradd: bool,
    no_shim: Option<PathBuf>,
    no_agent: Option<PathBuf>,
    open_files: Option<u64>,
    /// The `up` that was last seen with this data directory, and whether it answers.
    up: Option<(u32, bool)>,
}

/// Looks, and changes nothing.
pub(super) fn look(data_dir: &Path) -> Machine {
    let root = rustix::process::geteuid().is_root();
    // What is not there yet will be made in the nearest directory that is.
    let there = data_dir.ancestors().find(|dir| dir.exists());
    let blocked = |dir: &&Path| {
        let mode = std::fs::metadata(dir).map(|it| it.permissions().mode());
        mode.is_ok_and(|mode| mode & 0o001 == 0)
    };
    let barrier = there
        .filter(|_| root)
        .and_then(|dir| dir.ancestors().find(blocked));
    let free = there.and_then(|dir| rustix::fs::statvfs(dir).ok());
    let own = std::env::current_exe().ok();
    let missing = |name| {
        let beside = own.as_ref().map(|own| own.with_file_name(name));
        beside.filter(|program| !program.is_file())
    };
    let modules = std::fs::read_to_string("/sys/kernel/security/lsm");
    Machine {
        root,
        data_dir: data_dir.to_owned(),
        exists: data_dir.exists(),
        barrier: barrier.map(Path::to_owned),
        free: free.map(|it| it.f_bavail.saturating_mul(it.f_frsize)),
        no_groups: Cgroups::detect(&cgroup::tag(data_dir))
            .unavailable()
            .map(str::to_owned),
        // Where the list cannot be read nothing is said.
        no_landlock: modules.is_ok_and(|list| !list.split(',').any(|it| it.trim() == "landlock")),
        no_useradd: root && !is_program("useradd"),
        no_shim: missing("platctrl-shim"),
        no_agent: missing(alone::PROGRAM),
        open_files: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
        up: Pointer::read()
            .filter(|up| up.data_dir == data_dir)
            .map(|up| {
                let answers = std::os::unix::net::UnixStream::connect(&up.socket).is_ok();
                (up.pid, answers)
            }),
    }
}

fn is_program(name: &str) -> bool {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .any(|dir| Path::new(dir).join(name).is_file())
}

impl Machine {
    /// What that means for whoever runs pods here.
    pub(super) fn judge(&self) -> Vec<Finding> {
        let dir = self.data_dir.display();
        let mut findings = vec![
            match self.root {
                true => Finding::good("user", "root: each app gets a user of its own"),
                false => Finding::warning("user", "not root: all pods run as this user")
                    .hint("run `platctrl up` or `platctrl agent` as root to keep apps apart"),
            },
            match (&self.barrier, self.exists) {
                (Some(barrier), _) => Finding::bad(
                    "data directory",
                    format!(
                        "users of pods cannot pass {} to reach {dir}",
                        barrier.display()
                    ),
                )
                .hint(format!(
                    "`chmod o+x {}`, or choose another place with --data-dir",
                    barrier.display()
                )),
                (None, true) => Finding::good("data directory", format!("{dir}")),
                (None, false) => Finding::good("data directory", format!("{dir} is not there yet")),
            },
        ];
        if let Some(free) = self.free {
            let found = format!("{} MiB free", free >> 20);
            let hint = "free some: artifacts, logs and the store need room";
            findings.push(match free {
                free if free < FREE_AT_LEAST => Finding::bad("disk", found).hint(hint),
                free if free < FREE => Finding::warning("disk", found).hint(hint),
                _ => Finding::good("disk", found),
            });
        }
        findings.push(match &self.no_groups {
            None => Finding::good("control groups", "there, and may be used"),
            Some(why) if self.root => Finding::bad("control groups", why)
                .hint("without them no limits hold; mount them, or run on a machine that has them"),
            Some(why) => Finding::warning("control groups", why)
                .hint("no limits hold for pods of this user; run as root to have them"),
        });
        if self.no_landlock {
            findings.push(
                Finding::warning("sandbox", "the kernel does not offer Landlock")
                    .hint("artifacts are unpacked with fewer walls around; add landlock to the kernel's lsm="),
            );
        }
        if self.no_useradd {
            findings.push(
                Finding::bad("users", "there is no useradd")
                    .hint("install the package that has it (passwd or shadow-utils)"),
            );
        }
        if let Some(shim) = &self.no_shim {
            findings.push(
                Finding::bad("supervisor", format!("{} is not there", shim.display()))
                    .hint("install platctrl-shim beside platctrl: pods are started by it"),
            );
        }
        if let Some(agent) = &self.no_agent {
            findings.push(
                Finding::bad("agent", format!("{} is not there", agent.display())).hint(
                    "install platctrl-agent beside platctrl: `platctrl agent` is that program",
                ),
            );
        }
        if let Some(files) = self.open_files.filter(|files| *files < OPEN_FILES) {
            findings.push(
                Finding::warning("open files", format!("at most {files}")).hint(format!(
                    "raise the limit to {OPEN_FILES} or more (ulimit -n)"
                )),
            );
        }
        match self.up {
            Some((pid, true)) => {
                findings.push(Finding::good(
                    "platctrl up",
                    format!("runs as process {pid}"),
                ));
            }
            Some((pid, false)) => findings.push(
                Finding::warning(
                    "platctrl up",
                    format!("process {pid} is gone or does not answer"),
                )
                .hint(
                    "its pods run on; `platctrl up` with the same data directory takes them over",
                ),
            ),
            None => {}
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn verdict(machine: &Machine, about: &str) -> Option<Verdict> {
        let findings = machine.judge();
        let found = findings.iter().find(|it| it.about == about)?;
        assert!(
            found.verdict == Verdict::Good || found.hint.is_some(),
            "{found:?} has no way out"
        );
        Some(found.verdict)
    }

    fn sound() -> Machine {
        Machine {
            root: true,
            exists: true,
            free: Some(10 << 30),
            open_files: Some(1 << 20),
            ..Machine::default()
        }
    }

    #[test]
    fn a_sound_machine_is_found_sound() {
        assert!(sound().judge().iter().all(|it| it.verdict == Verdict::Good));
    }

    #[test]
    fn each_trouble_is_told_with_a_way_out() {
        let with = |change: fn(&mut Machine)| {
            let mut machine = sound();
            change(&mut machine);
            machine
        };
        for (machine, about, expected) in [
            (with(|it| it.root = false), "user", Verdict::Warning),
            (
                with(|it| it.barrier = Some("/root".into())),
                "data directory",
                Verdict::Bad,
            ),
            (with(|it| it.free = Some(1)), "disk", Verdict::Bad),
            (
                with(|it| it.free = Some(100 << 20)),
                "disk",
                Verdict::Warning,
            ),
            (
                with(|it| it.no_groups = Some("none".into())),
                "control groups",
                Verdict::Bad,
            ),
            (
                with(|it| it.no_landlock = true),
                "sandbox",
                Verdict::Warning,
            ),
            (with(|it| it.no_useradd = true), "users", Verdict::Bad),
            (
                with(|it| it.no_shim = Some("/a".into())),
                "supervisor",
                Verdict::Bad,
            ),
            (
                with(|it| it.no_agent = Some("/a".into())),
                "agent",
                Verdict::Bad,
            ),
            (
                with(|it| it.open_files = Some(256)),
                "open files",
                Verdict::Warning,
            ),
            (
                with(|it| it.up = Some((1, false))),
                "platctrl up",
                Verdict::Warning,
            ),
            (
                with(|it| it.up = Some((1, true))),
                "platctrl up",
                Verdict::Good,
            ),
        ] {
            assert_eq!(verdict(&machine, about), Some(expected), "{about}");
        }
    }
}
