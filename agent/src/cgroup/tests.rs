//! Groups of the real kernel, as root, and of a pretended one where it has only version 2.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};

use platctrl_kinds::{Bytes, Cpu};

use super::*;

/// Real groups with a tag of their own, removed whatever happens.
struct Real(Cgroups);

impl Real {
    /// None where there are none, which is said.
    fn new() -> Option<Self> {
        let cgroups = Cgroups::detect(&format!("pct{:016x}", rand::random::<u64>()));
        let cgroups = cgroups.with_disk_of(Path::new(env!("CARGO_MANIFEST_DIR")));
        if let Some(why) = cgroups.unavailable() {
            eprintln!("skipped: no control groups: {why}");
            return None;
        }
        Some(Self(cgroups))
    }

    fn directories(&self) -> Vec<PathBuf> {
        self.0
            .mounts
            .all()
            .map(|mount| mount.join(&self.0.base))
            .collect()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let removed = self.0.remove_all();
        let left: Vec<_> = self
            .directories()
            .into_iter()
            .filter(|path| path.exists())
            .collect();
        if !std::thread::panicking() {
            removed.unwrap();
            assert_eq!(left, Vec::<PathBuf>::new());
        }
    }
}

/// A shell in a group. It waits for a line before it goes on to `script`.
struct Shell(Child);

impl Shell {
    fn new(group: &Group, script: &str) -> Self {
        let mut child = Command::new("/bin/sh")
            .arg("-c")
            .arg(format!("read go; {script}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        for directory in group.directories() {
            let joined = limits::write(&directory.join("cgroup.procs"), &child.id().to_string());
            if joined.is_err() {
                let _ = child.kill();
            }
            joined.unwrap();
        }
        use std::io::Write as _;
        child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        Self(child)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        line.trim().to_owned()
    }

    /// Waits for so many lines, all the same.
    fn lines(&mut self, count: usize, wanted: &str) {
        let lines = BufReader::new(self.0.stdout.as_mut().unwrap()).lines();
        for line in lines.take(count) {
            assert_eq!(line.unwrap(), wanted);
        }
    }

    fn output(mut self) -> String {
        let mut output = String::new();
        self.0
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut output)
            .unwrap();
        output
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn resources(cpu: Option<u32>, memory: Option<u64>, pids: Option<u32>) -> Resources {
    Resources {
        cpu: cpu.map(Cpu::from_millis),
        memory: memory.map(Bytes::new),
        pids,
        ..Resources::default()
    }
}

/// A process that ignores SIGTERM, with a child in a session of its own.
const STUBBORN: &str =
    "trap '' TERM HUP; setsid sleep 1000 & echo ready; while :; do sleep 1000; done";

#[test]
fn what_is_killed_is_killed_whole_and_then_removed() {
    let Some(real) = Real::new() else { return };
    let group = real
        .0
        .create("default.a", "web/one", &Resources::default())
        .unwrap();
    assert!(!real.0.populated(&group).unwrap());
    let mut shell = Shell::new(&group, STUBBORN);
    assert_eq!(shell.line(), "ready");
    assert!(real.0.populated(&group).unwrap());

    real.0.kill(&group).unwrap();
    shell.0.wait().unwrap();
    real.0.remove(&group).unwrap();
    assert!(
        !real.0.populated(&group).unwrap(),
        "what is not there is not populated"
    );
    assert!(
        group
            .directories()
            .all(|path| !path.exists() && !path.parent().unwrap().exists())
    );
    real.0.kill(&group).unwrap();
    real.0.remove(&group).unwrap();
}

#[test]
fn without_version_2_a_group_is_killed_one_by_one_even_while_it_forks() {
    let Some(mut real) = Real::new() else { return };
    real.0.mounts = real.0.mounts.clone().without_v2();
    if real.0.mounts.is_empty() {
        eprintln!("skipped: no version 1 is mounted");
        return;
    }
    let limit = resources(None, None, Some(40));
    let group = real.0.create("default.bomb", "run", &limit).unwrap();
    assert_eq!(group.tracking, None);
    let bomb = "b() { echo forked; b & b & sleep 1000; }; b";
    let mut shell = Shell::new(&group, bomb);
    shell.lines(6, "forked");
    assert!(members::list(&group).unwrap().len() > 5);
    real.0.kill(&group).unwrap();
    let _ = shell.0.wait();
    real.0.remove(&group).unwrap();
}

#[test]
fn a_group_that_is_in_use_is_not_removed_and_says_by_whom() {
    let Some(real) = Real::new() else { return };
    let group = real
        .0
        .create("default.a", "web", &Resources::default())
        .unwrap();
    let mut shell = Shell::new(&group, "echo ready; read more");
    assert_eq!(shell.line(), "ready");
    let error = members::wait_until_empty(&group, Duration::from_millis(20)).unwrap_err();
    assert!(
        error.to_string().contains(&shell.0.id().to_string()),
        "{error}"
    );
}

#[test]
fn the_limit_of_processes_holds_and_can_be_changed_while_it_is_in_force() {
    let Some(real) = Real::new() else { return };
    let mut group = real
        .0
        .create("default.a", "web", &resources(None, None, Some(4)))
        .unwrap();
    if !group.unenforced.is_empty() {
        eprintln!("skipped: {:?}", group.unenforced);
        return;
    }
    // Four sleep beside the shell only after the limit was raised.
    let script = "for i in 1 2 3 4; do sleep 1000 >/dev/null & done; echo forked";
    let output = Shell::new(&group, script).output();
    assert_eq!(output, "", "the shell ends when it cannot fork");
    real.0.kill(&group).unwrap();

    real.0
        .set_limits(&mut group, &resources(None, None, Some(64)))
        .unwrap();
    let mut shell = Shell::new(&group, script);
    assert_eq!(shell.line(), "forked");
    real.0.kill(&group).unwrap();
}

#[test]
fn the_limit_of_memory_holds_and_kills_are_counted() {
    let Some(real) = Real::new() else { return };
    let group = real
        .0
        .create("default.a", "web", &resources(None, Some(16 << 20), None))
        .unwrap();
    if !group.unenforced.is_empty() {
        eprintln!("skipped: {:?}", group.unenforced);
        return;
    }
    assert_eq!(real.0.oom_kills(&group), 0);
    // The shell may be the one that is killed: then its output ends without a word.
    let hog = "head -c 400m /dev/zero | tail -n 1 >/dev/null; echo $?";
    let output = Shell::new(&group, hog).output();
    assert_ne!(output.trim(), "0", "the hog was let be");
    assert!(real.0.oom_kills(&group) > 0);
}

#[test]
fn groups_that_somebody_removed_are_made_again() {
    let Some(real) = Real::new() else { return };
    let mut group = real
        .0
        .create("default.a", "web", &Resources::default())
        .unwrap();
    for directory in group.directories() {
        fs::remove_dir(directory).unwrap();
        fs::remove_dir(directory.parent().unwrap()).unwrap();
    }
    assert!(
        real.0
            .set_limits(&mut group, &resources(None, None, Some(9)))
            .is_err()
    );
    let again = real
        .0
        .create("default.a", "web", &resources(None, None, Some(9)))
        .unwrap();
    assert!(again.directories().all(Path::is_dir));
}

#[test]
fn every_limit_is_written_and_taken_back() {
    let Some(real) = Real::new() else { return };
    let Some(pids) = real.0.mounts.v1_with(Controller::Pids).map(Path::to_owned) else {
        eprintln!("skipped: version 1 has no pids controller");
        return;
    };
    let mut asked = resources(Some(1500), Some(64 << 20), Some(77));
    if real.0.disk.is_some() {
        asked.io.write_bytes = Some(Bytes::new(1 << 20));
    }
    let mut group = real.0.create("default.a", "web", &asked).unwrap();
    let read = |controller: Controller, file: &str| {
        let mount = real.0.mounts.v1_with(controller)?;
        let directory = group.join.iter().find(|path| path.starts_with(mount))?;
        Some(
            fs::read_to_string(directory.join(file))
                .unwrap()
                .trim()
                .to_owned(),
        )
    };
    assert!(group.join.iter().any(|path| path.starts_with(&pids)));
    assert_eq!(read(Controller::Pids, "pids.max").as_deref(), Some("77"));
    if real.0.mounts.v1_with(Controller::Cpu).is_some() {
        assert_eq!(
            read(Controller::Cpu, "cpu.cfs_quota_us").as_deref(),
            Some("150000")
        );
    }
    if real.0.mounts.v1_with(Controller::Memory).is_some() {
        let memory = read(Controller::Memory, "memory.limit_in_bytes");
        assert_eq!(memory.as_deref(), Some("67108864"));
    }
    if let (Some(mount), Some(disk)) = (real.0.mounts.v1_with(Controller::Io), &real.0.disk) {
        let directory = group
            .join
            .iter()
            .find(|path| path.starts_with(mount))
            .unwrap();
        let written = |file: &str| fs::read_to_string(directory.join(file)).unwrap();
        let line = format!("{disk} 1048576");
        assert!(written("blkio.throttle.write_bps_device").contains(&line));
        assert_eq!(written("blkio.throttle.read_bps_device").trim(), "");
    }
    for asked in [
        resources(Some(100), Some(32 << 20), Some(5)),
        Resources::default(),
    ] {
        real.0.set_limits(&mut group, &asked).unwrap();
        assert_eq!(group.unenforced, Vec::<String>::new());
    }
    let directory = group
        .join
        .iter()
        .find(|path| path.starts_with(&pids))
        .unwrap();
    assert_eq!(
        fs::read_to_string(directory.join("pids.max"))
            .unwrap()
            .trim(),
        "max"
    );
}

#[test]
fn the_groups_of_a_pod_go_together_and_those_of_others_stay() {
    let Some(real) = Real::new() else { return };
    let create = |pod, program| real.0.create(pod, program, &Resources::default()).unwrap();
    let (a, b) = (create("default.a", "one"), create("default.a", "two"));
    let other = create("default.ab", "one");
    real.0.remove_pod("default.a").unwrap();
    assert!(
        a.directories()
            .chain(b.directories())
            .all(|path| !path.exists())
    );
    assert!(other.directories().all(Path::is_dir));
}

#[test]
fn supervisors_have_directories_of_their_own() {
    let Some(real) = Real::new() else { return };
    for directory in real.0.supervisors().unwrap() {
        assert!(directory.join("cgroup.procs").is_file());
    }
}

/// A machine with version 2 alone, pretended: plain files where the kernel has its own.
fn unified() -> (tempfile::TempDir, Cgroups) {
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("sys fs");
    fs::create_dir(&mount).unwrap();
    for file in ["cgroup.procs", "cgroup.subtree_control"] {
        fs::write(mount.join(file), "").unwrap();
    }
    let escaped = mount.to_str().unwrap().replace(' ', "\\040");
    let mountinfo = format!(
        "22 1 0:20 / / rw - ext4 /dev/a rw\n30 22 0:26 / {escaped} rw,nosuid - cgroup2 cgroup2 rw\n"
    );
    let cgroups = Cgroups::from_mountinfo("test", &mountinfo);
    (dir, cgroups)
}

fn pretend_files(group: &Group, files: &[&str]) {
    let directory = group.tracking.as_ref().unwrap();
    fs::create_dir_all(directory).unwrap();
    for file in files {
        fs::write(directory.join(file), "").unwrap();
    }
}

#[test]
fn with_version_2_alone_limits_are_in_the_tracking_group() {
    let (_dir, cgroups) = unified();
    let group = cgroups.group("default.a", "web/one");
    let directory = group.tracking.clone().unwrap();
    assert!(directory.ends_with("sys fs/platctrl-test/pod-default.a/run-web%2fone"));
    assert_eq!(group.join, Vec::<PathBuf>::new());
    let files = [
        "cpu.max",
        "memory.max",
        "memory.swap.max",
        "memory.oom.group",
        "pids.max",
        "io.max",
    ];
    pretend_files(&group, &files);

    let mut asked = resources(Some(1500), Some(64 << 20), Some(77));
    asked.io.write_bytes = Some(Bytes::new(1 << 20));
    asked.io.read_operations = Some(500);
    let cgroups = Cgroups {
        disk: Some("254:0".into()),
        ..cgroups
    };
    let made = cgroups.create("default.a", "web/one", &asked).unwrap();
    assert_eq!(made, group);
    let written = files.map(|file| fs::read_to_string(directory.join(file)).unwrap());
    let io = "254:0 rbps=max wbps=1048576 riops=500 wiops=max";
    assert_eq!(written, ["150000 100000", "67108864", "0", "1", "77", io]);
    // Changed while it is in use; but not to less memory than is in use.
    let mut group = made;
    fs::write(directory.join("memory.current"), "50000000\n").unwrap();
    let less = resources(None, Some(32 << 20), Some(5));
    let error = cgroups.set_limits(&mut group, &less).unwrap_err();
    assert!(
        error.to_string().contains("50000000 bytes are in use"),
        "{error}"
    );
    let read = |file: &str| fs::read_to_string(directory.join(file)).unwrap();
    assert_eq!(read("memory.max"), "67108864");
    // The kernel's files hold what was written last, these what was written over.
    pretend_files(&group, &files);
    fs::write(directory.join("memory.current"), "1000\n").unwrap();
    cgroups.set_limits(&mut group, &less).unwrap();
    assert_eq!(read("memory.max"), "33554432");
    assert_eq!(read("cpu.max"), "max 100000");
    assert_eq!(read("pids.max"), "5");
    assert_eq!(
        read("io.max"),
        "254:0 rbps=max wbps=max riops=max wiops=max"
    );
    // Each level above hands the controllers down.
    let root = fs::read_to_string(
        directory
            .ancestors()
            .nth(3)
            .unwrap()
            .join("cgroup.subtree_control"),
    );
    assert!(root.unwrap().starts_with("+io"));

    fs::write(
        directory.join("memory.events"),
        "low 0\noom 3\noom_kill 2\n",
    )
    .unwrap();
    assert_eq!(cgroups.oom_kills(&group), 2);
    for (events, populated) in [("populated 1\nfrozen 0\n", true), ("populated 0\n", false)] {
        fs::write(directory.join("cgroup.events"), events).unwrap();
        assert_eq!(cgroups.populated(&group).unwrap(), populated);
    }
    fs::write(directory.join("cgroup.kill"), "").unwrap();
    cgroups.kill(&group).unwrap();
    assert_eq!(
        fs::read_to_string(directory.join("cgroup.kill")).unwrap(),
        "1"
    );
}

#[test]
fn a_limit_without_a_controller_is_named_and_does_not_stop_the_pod() {
    let (_dir, cgroups) = unified();
    pretend_files(&cgroups.group("default.a", "web"), &["cpu.max", "pids.max"]);
    let asked = resources(Some(100), Some(64 << 20), None);
    let group = cgroups.create("default.a", "web", &asked).unwrap();
    assert_eq!(group.unenforced.len(), 1);
    assert!(
        group.unenforced[0].starts_with("memory: no memory controller in /"),
        "{group:?}"
    );
}

#[test]
fn where_there_are_no_groups_it_is_said_and_pods_run() {
    for mountinfo in [
        "",
        "30 22 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup2 rw\n",
    ] {
        let cgroups = Cgroups::from_mountinfo("test", mountinfo);
        assert!(cgroups.unavailable().unwrap().contains("read-write"));
        let group = cgroups
            .create("default.a", "web", &resources(None, None, Some(1)))
            .unwrap();
        assert_eq!(group.directories().count(), 0);
        assert!(
            group.unenforced[0].starts_with("pids: no control groups"),
            "{group:?}"
        );
        assert!(!cgroups.populated(&group).unwrap());
        cgroups.kill(&group).unwrap();
        cgroups.remove(&group).unwrap();
        cgroups.remove_all().unwrap();
    }
}

#[test]
fn no_name_leaves_its_directory_or_meets_another_or_a_file_of_the_kernels() {
    assert_eq!(encode("default.hello-1_x"), "default.hello-1_x");
    assert_eq!(encode("../a b\n%"), "..%2fa%20b%0a%25");
    let long = "a".repeat(300);
    let names = [
        "",
        ".",
        "..",
        "a/b",
        "a%2fb",
        "é",
        "memory.max",
        &long,
        &format!("{long}b"),
    ];
    let encoded: std::collections::BTreeSet<_> = names.iter().map(|name| encode(name)).collect();
    assert_eq!(encoded.len(), names.len());
    for name in encoded {
        let name = format!("pod-{name}");
        assert!(name.len() <= 255 && !name.contains('/'), "{name}");
        assert_eq!(Path::new(&name).components().count(), 1);
    }
}
