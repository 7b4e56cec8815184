//! Groups of the real kernel, as root, and of a pretended one where it has only version 2.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};

use platctrl_kinds::{Bytes, Cpu};
use platctrl_test_support::needs;
use platctrl_test_support::processes::eventually;

use super::*;

/// Real groups with a tag of their own, removed whatever happens.
struct Real(Cgroups);

impl Real {
    /// None where there are none, which is said.
    fn new() -> Option<Self> {
        if !needs::root() {
            return None;
        }
        let cgroups = Cgroups::detect(&format!("pct{:016x}", rand::random::<u64>()));
        let cgroups = cgroups.with_disk_of(&std::env::temp_dir());
        if let Some(why) = cgroups.unavailable() {
            needs::lacks(&format!("control groups ({why})"));
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
        // The only test that is for version 1 alone.
        eprintln!("LEFT OUT: no version 1 is mounted");
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
        needs::lacks(&format!("{:?}", group.unenforced));
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
        needs::lacks(&format!("{:?}", group.unenforced));
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

/// Where the limits of a controller are for a group, and whether in the files of version 1. None,
/// which is said, where nobody has that controller.
fn limits_of(real: &Real, group: &Group, controller: Controller) -> Option<(PathBuf, bool)> {
    let found = match real.0.mounts.v1_with(controller) {
        Some(mount) => {
            let directory = group.join.iter().find(|path| path.starts_with(mount));
            directory.map(|it| (it.clone(), true))
        }
        None => {
            let has = |directory: &PathBuf| {
                let controllers = fs::read_to_string(directory.join("cgroup.controllers"));
                let named =
                    |text: String| text.split_whitespace().any(|it| it == controller.name());
                controllers.is_ok_and(named)
            };
            group.tracking.clone().filter(has).map(|it| (it, false))
        }
    };
    if found.is_none() {
        needs::lacks(&format!("{controller} controller"));
    }
    found
}

fn read(directory: &Path, file: &str) -> String {
    let text = fs::read_to_string(directory.join(file)).unwrap();
    text.trim().to_owned()
}

#[test]
fn every_limit_is_written_and_taken_back() {
    let Some(real) = Real::new() else { return };
    let mut asked = resources(Some(1500), Some(64 << 20), Some(77));
    let disk = real.0.disk.clone();
    if disk.is_some() {
        asked.io.write_bytes = Some(Bytes::new(1 << 20));
    } else {
        needs::lacks("disk below the directory of temporary files");
    }
    let mut group = real.0.create("default.a", "web", &asked).unwrap();
    let values = |group: &Group, controller: Controller, v1: &[&str], v2: &[&str]| {
        let (directory, is_v1) = limits_of(&real, group, controller)?;
        let files = if is_v1 { v1 } else { v2 };
        let values: Vec<_> = files.iter().map(|file| read(&directory, file)).collect();
        Some((is_v1, values.join(" ")))
    };
    let pids = |group: &Group| values(group, Controller::Pids, &["pids.max"], &["pids.max"]);
    let cpu = |group: &Group| values(group, Controller::Cpu, &["cpu.cfs_quota_us"], &["cpu.max"]);
    let memory = |group: &Group| {
        let v2 = ["memory.max", "memory.oom.group"];
        values(group, Controller::Memory, &["memory.limit_in_bytes"], &v2)
    };
    let io = |group: &Group| {
        let v1 = [
            "blkio.throttle.read_bps_device",
            "blkio.throttle.write_bps_device",
        ];
        values(group, Controller::Io, &v1, &["io.max"])
    };
    if let Some((_, found)) = pids(&group) {
        assert_eq!(found, "77");
    }
    if let Some((is_v1, found)) = cpu(&group) {
        assert_eq!(found, if is_v1 { "150000" } else { "150000 100000" });
    }
    if let Some((is_v1, found)) = memory(&group) {
        assert_eq!(found, if is_v1 { "67108864" } else { "67108864 1" });
    }
    if let Some(disk) = &disk
        && let Some((is_v1, found)) = io(&group)
    {
        let v1 = format!("{disk} 1048576");
        let v2 = format!("{disk} rbps=max wbps=1048576 riops=max wiops=max");
        assert_eq!(found.trim(), if is_v1 { v1 } else { v2 });
    }
    for asked in [
        resources(Some(100), Some(32 << 20), Some(5)),
        Resources::default(),
        // What is taken away already may be taken away again.
        Resources::default(),
    ] {
        real.0.set_limits(&mut group, &asked).unwrap();
        assert_eq!(group.unenforced, Vec::<String>::new());
    }
    if let Some((_, found)) = pids(&group) {
        assert_eq!(found, "max");
    }
    if let Some((is_v1, found)) = cpu(&group) {
        assert_eq!(found, if is_v1 { "-1" } else { "max 100000" });
    }
    if let Some((false, found)) = memory(&group) {
        assert_eq!(found, "max 1");
    }
    if let Some((_, found)) = io(&group) {
        assert_eq!(found.trim(), "", "no disk has a limit");
    }
}

#[test]
fn the_limit_of_processor_time_holds_and_can_be_taken_back_while_it_is_in_force() {
    let Some(real) = Real::new() else { return };
    let asked = resources(Some(50), None, None);
    let mut group = real.0.create("default.a", "web", &asked).unwrap();
    let Some((directory, is_v1)) = limits_of(&real, &group, Controller::Cpu) else {
        return;
    };
    let counted = |name: &str| -> u64 {
        let stat = read(&directory, "cpu.stat");
        let line = stat.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().parse().unwrap()
    };
    let busy = Shell::new(&group, "while :; do :; done");
    eventually("its being held up", || {
        (counted("nr_throttled ") > 2).then_some(())
    });
    real.0
        .set_limits(&mut group, &Resources::default())
        .unwrap();
    let limit = read(
        &directory,
        if is_v1 { "cpu.cfs_quota_us" } else { "cpu.max" },
    );
    assert!(["-1", "max 100000"].contains(&limit.as_str()), "{limit}");
    // It goes on, and is held up no more: it takes two seconds, of which each had ten periods.
    let usage = || -> Duration {
        match is_v1 {
            true => Duration::from_millis(10 * ticks(busy.0.id())),
            false => Duration::from_micros(counted("usage_usec ")),
        }
    };
    let (before, begun) = (counted("nr_throttled "), usage());
    eventually("its time", || {
        (usage() > begun + Duration::from_secs(2)).then_some(())
    });
    // One that had begun may be counted when it ends.
    assert!(counted("nr_throttled ") <= before + 1);
    real.0.kill(&group).unwrap();
}

/// The processor time of a process, in hundredths of a second.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit(')').next().unwrap();
    let fields: Vec<_> = fields.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn the_limit_of_writing_holds_and_can_be_taken_back_while_it_is_in_force() {
    let Some(real) = Real::new() else { return };
    if real.0.disk.is_none() {
        needs::lacks("disk below the directory of temporary files");
        return;
    }
    // 64 MiB at 64 KiB a second would take a quarter of an hour.
    let mut asked = Resources::default();
    asked.io.write_bytes = Some(Bytes::new(64 << 10));
    let mut group = real.0.create("default.a", "web", &asked).unwrap();
    if limits_of(&real, &group, Controller::Io).is_none() {
        return;
    }
    let dir = tempfile::tempdir_in(std::env::temp_dir()).unwrap();
    let file = dir.path().join("written");
    let write = format!(
        "dd if=/dev/zero of={} bs=64k count=1024 oflag=direct 2>/dev/null; echo $?",
        file.display()
    );
    let mut shell = Shell::new(&group, &write);
    let written = || fs::metadata(&file).map_or(0, |it| it.len());
    eventually("its first bytes", || (written() > 0).then_some(()));
    assert!(written() < 32 << 20, "the limit did not hold");
    real.0
        .set_limits(&mut group, &Resources::default())
        .unwrap();
    assert_eq!(shell.line(), "0");
    assert_eq!(written(), 64 << 20);
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
