//! What a launchable is given: identity, limits, files, environment.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use platctrl_shim_lib::{ExitStatus, Phase, Resource, RestartPolicy, Rlimit, User};

use platctrl_test_support::needs;

use crate::rig::{Rig, SOON, running, wait_for};

/// Runs the script to its end and gives its output.
fn output(rig: &mut Rig) -> String {
    rig.spec.restart.policy = RestartPolicy::Never;
    let mut client = rig.spawn().unwrap();
    client
        .wait_until(SOON, |state| state.phase == Phase::Exited)
        .unwrap();
    let exit = rig.exits().pop().unwrap();
    assert_eq!(exit.status, ExitStatus::Code(0), "{}", rig.log());
    wait_for("the last line", || rig.log().ends_with("end\n"));
    rig.log()
}

fn field<'a>(status: &'a str, name: &str) -> Vec<&'a str> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap_or_else(|| {
            panic!("no {name} in {status}");
        });
    line.trim_start_matches(':').split_whitespace().collect()
}

#[test]
fn the_environment_is_exactly_the_given_one_also_with_newlines_and_bytes() {
    use std::os::unix::ffi::OsStringExt as _;
    let mut rig = Rig::new("");
    rig.spec.argv = vec!["/usr/bin/env".into(), "-0".into()];
    rig.spec.env = vec![
        ("ONE".into(), "first\nSECOND=fake\n\\x41 = \t".into()),
        ("RAW".into(), std::ffi::OsString::from_vec(vec![0xff, 0x01])),
    ];
    rig.spec.restart.policy = RestartPolicy::Never;
    let mut client = rig.spawn().unwrap();
    client
        .wait_until(SOON, |state| state.phase == Phase::Exited)
        .unwrap();
    let expected = b"ONE=first\nSECOND=fake\n\\x41 = \t\0RAW=\xff\x01\0";
    let log = rig.spec.log.dir.join("web.log");
    wait_for("the environment", || {
        fs::read(&log).is_ok_and(|log| log.len() >= expected.len())
    });
    assert_eq!(fs::read(&log).unwrap(), expected);
}

#[test]
fn it_starts_with_three_files_clean_signals_a_session_and_its_limits() {
    let mut rig = Rig::new(
        "umask; pwd; ulimit -Hn; ulimit -Sn; ulimit -c; ls -l /proc/$$/fd; cat /proc/self/status; echo pgrp $(cut -d' ' -f5,6 /proc/$$/stat) me $$; echo end",
    );
    rig.spec.umask = 0o027;
    // What whoever starts the shim forgot to close goes no further.
    let forgotten = fs::File::open("/etc/passwd").unwrap();
    rustix::io::fcntl_setfd(&forgotten, rustix::io::FdFlags::empty()).unwrap();
    rig.spec.rlimits.push(Rlimit {
        resource: Resource::OpenFiles,
        soft: 100,
        hard: 200,
    });
    let text = output(&mut rig);
    let lines: Vec<_> = text.lines().collect();
    let cwd = fs::canonicalize(&rig.spec.cwd).unwrap();
    assert_eq!(
        lines[..5],
        ["0027", cwd.to_str().unwrap(), "200", "100", "0"]
    );
    // A shell keeps its script open at 10.
    let files: Vec<_> = lines
        .iter()
        .filter_map(|line| line.split_once(" -> "))
        .map(|(left, target)| (left.rsplit(' ').next().unwrap(), target))
        .filter(|(_, target)| !target.ends_with("/app/launch"))
        .collect();
    let out = rig.dir.join("out");
    let out = out.to_str().unwrap();
    assert_eq!(files, [("0", "/dev/null"), ("1", out), ("2", out)]);
    for mask in ["SigBlk", "SigIgn", "SigPnd", "ShdPnd"] {
        assert_eq!(field(&text, mask), ["0000000000000000"], "{mask}");
    }
    assert_eq!(field(&text, "NoNewPrivs"), ["1"]);
    let ids: Vec<_> = field(&text, "pgrp").into_iter().collect();
    assert_eq!(
        ids,
        [ids[3], ids[3], "me", ids[3]],
        "group and session are its own"
    );
}

#[test]
fn root_runs_it_as_the_user_with_exactly_its_groups_and_no_way_back() {
    if !needs::root() {
        return;
    }
    let mut rig = Rig::new(
        "cat /proc/$$/status; cat /proc/$$/oom_score_adj; echo again > /dev/stdout; \
         ls -d / > /dev/null; touch $OUT/mine; echo end",
    );
    fs::set_permissions(rig.out(""), fs::Permissions::from_mode(0o777)).unwrap();
    rig.spec.user = Some(User {
        uid: 54_321,
        gid: 54_322,
        groups: vec![54_323, 54_324],
    });
    let text = output(&mut rig);
    assert_eq!(field(&text, "Uid"), ["54321"; 4]);
    assert_eq!(field(&text, "Gid"), ["54322"; 4]);
    assert_eq!(field(&text, "Groups"), ["54323", "54324"]);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&text, set), ["0000000000000000"], "{set}");
    }
    assert_eq!(field(&text, "NoNewPrivs"), ["1"]);
    assert!(
        text.contains("\nagain\n"),
        "it may open its own output again"
    );
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(fs::metadata(rig.out("mine")).unwrap().uid(), 54_321);
    let log = fs::metadata(rig.spec.log.dir.join("web.log")).unwrap();
    assert_eq!(
        (log.uid(), log.mode() & 0o777),
        (0, 0o600),
        "its log is not its own"
    );
}

#[test]
fn a_user_that_cannot_enter_its_directory_is_told_so() {
    if !needs::root() {
        return;
    }
    let mut rig = Rig::new("exec sleep 1000");
    rig.spec.user = Some(User {
        uid: 54_321,
        gid: 54_321,
        groups: vec![],
    });
    fs::set_permissions(rig.root(), fs::Permissions::from_mode(0o700)).unwrap();
    let mut client = rig.spawn().unwrap();
    let state = client
        .wait_until(SOON, |state| state.phase == Phase::Backoff)
        .unwrap();
    assert!(state.message.contains("cannot enter"), "{}", state.message);
    assert!(
        state.message.contains("Permission denied"),
        "{}",
        state.message
    );
}

#[test]
fn it_joins_its_cgroups_before_it_runs() {
    let mut rig = Rig::new("cat /proc/$$/cgroup; echo end");
    if !rig.track() {
        return;
    }
    let group = rig.spec.tracking.clone().unwrap();
    let name = group.file_name().unwrap().to_str().unwrap();
    let text = output(&mut rig);
    assert!(
        text.lines()
            .any(|line| line.starts_with("0::") && line.ends_with(name)),
        "{text}"
    );
}

#[test]
fn an_unprivileged_shim_runs_it_as_itself() {
    use std::os::unix::process::CommandExt as _;
    let mut rig = Rig::new("id -u; id -g; echo end");
    rig.spec.restart.policy = RestartPolicy::Never;
    if !rustix::process::geteuid().is_root() {
        let text = output(&mut rig);
        let uid = rustix::process::getuid().as_raw().to_string();
        assert_eq!(text.lines().next(), Some(uid.as_str()));
        return;
    }
    platctrl_shim_lib::write_spec(&rig.dir, &rig.spec).unwrap();
    for path in [&rig.dir, &rig.dir.join("spec"), &rig.spec.log.dir] {
        std::os::unix::fs::chown(path, Some(54_321), Some(54_321)).unwrap();
    }
    // Where that user can reach it.
    let shim = rig.root().join("shim-program");
    fs::copy(env!("CARGO_BIN_EXE_shim-under-test"), &shim).unwrap();
    let started = std::process::Command::new(&shim)
        .arg(&rig.dir)
        .uid(54_321)
        .gid(54_321)
        .output()
        .unwrap();
    assert!(started.status.success(), "{started:?}");
    wait_for("the output", || rig.log() == "54321\n54321\nend\n");
}

#[test]
fn no_core_is_dumped_and_the_shim_runs_on_after_a_crash() {
    let mut rig = Rig::new("kill -SEGV $$");
    rig.spec.restart.initial = std::time::Duration::from_secs(100);
    let mut client = rig.spawn().unwrap();
    client
        .wait_until(SOON, |state| state.phase == Phase::Backoff)
        .unwrap();
    for exit in rig.exits() {
        assert_eq!(
            exit.status,
            ExitStatus::Signal {
                signal: 11,
                core: false
            }
        );
    }
    rig.script("exec sleep 1000");
    client
        .request(platctrl_shim_lib::Request::Restart { timeout: None })
        .unwrap();
    running(&mut client);
}
