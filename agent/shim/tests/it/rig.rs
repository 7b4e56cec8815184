//! A shim in a directory of its own, ended whatever happens.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use platctrl_shim_lib::{
    Client, ExitRecord, Phase, ProcessId, Request, Spec, State, read_exits, read_state, spawn,
    write_spec,
};
use platctrl_test_support::needs;
pub(crate) use platctrl_test_support::processes::SOON;
use platctrl_test_support::processes::eventually;
use rustix::process::{Pid, Signal, kill_process};

pub(crate) struct Rig {
    /// Unmounted at the end: after the shim has left, before the directories go.
    disk: Option<Tmpfs>,
    root: tempfile::TempDir,
    /// The shim's directory.
    pub(crate) dir: PathBuf,
    pub(crate) spec: Spec,
    /// Removed at the end.
    cgroup: Option<PathBuf>,
}

impl Rig {
    /// A rig whose launchable is this shell script. In it, `$OUT` is a directory to write to.
    pub(crate) fn new(script: &str) -> Self {
        Self::at("", script)
    }

    /// The same, below a directory of that name.
    pub(crate) fn at(below: &str, script: &str) -> Self {
        let root = tempfile::Builder::new().prefix("shim").tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let base = root.path().join(below);
        let (app, logs, out) = (base.join("app"), base.join("log"), base.join("out"));
        for dir in [&app, &logs, &out] {
            fs::create_dir_all(dir).unwrap();
        }
        let mut spec = Spec::new([app.join("launch")], &app, logs, "web");
        spec.env = vec![
            ("PATH".into(), "/usr/bin:/bin:/usr/sbin:/sbin".into()),
            ("OUT".into(), out.into()),
        ];
        let rig = Self {
            root,
            dir: base.join("shim"),
            spec,
            cgroup: None,
            disk: None,
        };
        rig.script(script);
        rig
    }

    /// Replaces the launchable's script.
    pub(crate) fn script(&self, script: &str) {
        let path = PathBuf::from(&self.spec.argv[0]);
        let new = path.with_extension("new");
        fs::write(&new, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, path).unwrap();
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    /// A file the launchable wrote below `$OUT`.
    pub(crate) fn out(&self, name: &str) -> PathBuf {
        self.dir.with_file_name("out").join(name)
    }

    pub(crate) fn log(&self) -> String {
        let log = self.spec.log.dir.join("web.log");
        String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned()
    }

    /// Starts a shim (again).
    pub(crate) fn spawn(&self) -> io::Result<Client> {
        write_spec(&self.dir, &self.spec)?;
        spawn(Path::new(env!("CARGO_BIN_EXE_shim-under-test")), &self.dir)
    }

    /// Starts a shim and waits until the launchable runs.
    pub(crate) fn run(&self) -> (Client, State) {
        let mut client = self.spawn().unwrap();
        let state = running(&mut client);
        (client, state)
    }

    pub(crate) fn state(&self) -> State {
        read_state(&self.dir).unwrap().unwrap()
    }

    pub(crate) fn exits(&self) -> Vec<ExitRecord> {
        read_exits(&self.dir).unwrap()
    }

    /// Kills the shim, and waits until it is gone.
    pub(crate) fn kill_shim(&self) -> State {
        let state = self.state();
        assert!(
            platctrl_shim_lib::is_alive(&state),
            "there is no shim to kill"
        );
        let shim = state.shim.unwrap();
        kill(shim, Signal::KILL);
        wait_for("the shim to die", || !alive(shim));
        state
    }

    /// Mounts a file system of that size, when this test is root and may.
    pub(crate) fn mount(&mut self, at: &Path, size: &str) -> bool {
        self.disk = Tmpfs::mount(at, size);
        self.disk.is_some()
    }

    /// A cgroup of this rig's own in the v2 hierarchy, when this test is root and there is one.
    pub(crate) fn track(&mut self) -> bool {
        if !needs::root() {
            return false;
        }
        let Some(group) = cgroup_v2() else {
            needs::lacks("version 2 of control groups");
            return false;
        };
        let group = group.join(self.root.path().file_name().unwrap());
        fs::create_dir(&group).unwrap();
        self.spec.tracking = Some(group.clone());
        self.cgroup = Some(group);
        true
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Ok(mut client) = Client::connect(&self.dir) {
            let _ = client.request(Request::Stop {
                timeout: Some(Duration::ZERO),
            });
            let _ = client.wait_until(SOON, |state| state.phase.at_rest());
            let _ = client.request(Request::Quit);
        }
        if let Ok(Some(state)) = read_state(&self.dir) {
            for process in [state.shim, state.child].into_iter().flatten() {
                if alive(process) {
                    kill(process, Signal::KILL);
                }
            }
        }
        if let Some(group) = &self.cgroup {
            let _ = fs::write(group.join("cgroup.kill"), "1");
            let deadline = Instant::now() + SOON;
            while fs::remove_dir(group).is_err() && Instant::now() < deadline {
                std::thread::yield_now();
            }
        }
    }
}

/// A tiny file system; unmounted at the end.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: &Path, size: &str) -> Option<Self> {
        if !needs::root() {
            return None;
        }
        let mounted = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={size},mode=755"),
                "tmpfs",
            ])
            .arg(at)
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            needs::lacks("right to mount a small tmpfs");
            return None;
        }
        Some(Self(at.to_owned()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Waits until the launchable runs.
pub(crate) fn running(client: &mut Client) -> State {
    client
        .wait_until(SOON, |state| state.phase == Phase::Running)
        .unwrap()
}

/// Waits until a newer run than `before` runs.
pub(crate) fn running_again(client: &mut Client, before: &State) -> State {
    let newer = |state: &State| state.phase == Phase::Running && state.child != before.child;
    client.wait_until(SOON, newer).unwrap()
}

#[track_caller]
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    eventually(what, || condition().then_some(()));
}

/// The number a script wrote to this file, once it is there.
pub(crate) fn pid_in(path: &Path) -> ProcessId {
    let mut pid = None;
    wait_for(&format!("{}", path.display()), || {
        let text = fs::read_to_string(path).unwrap_or_default();
        pid = text.strip_suffix('\n').and_then(|text| text.parse().ok());
        pid.is_some()
    });
    identify(pid.unwrap()).expect("the process lives")
}

/// The process of that number as it is now; `None` if it has ended.
pub(crate) fn identify(pid: u32) -> Option<ProcessId> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    (fields[0] != "Z").then(|| ProcessId {
        pid,
        start_ticks: fields[19].parse().unwrap(),
    })
}

pub(crate) fn alive(process: ProcessId) -> bool {
    identify(process.pid) == Some(process)
}

pub(crate) fn kill(process: ProcessId, signal: Signal) {
    if alive(process) {
        let _ = kill_process(Pid::from_raw(process.pid.cast_signed()).unwrap(), signal);
    }
}

fn cgroup_v2() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        right
            .starts_with("cgroup2 ")
            .then(|| left.split(' ').nth(4).map(PathBuf::from))?
    })
}
