//! Shims that are killed, agents that come and go, files that are damaged.

use std::fs;
use std::io;
use std::process::Command;
use std::time::Duration;

use platctrl_shim_lib::{
    Client, ExitStatus, Phase, ProcessId, Request, RestartPolicy, is_alive, write_spec,
};
use rustix::process::Signal;

use crate::rig::{Rig, SOON, alive, identify, kill, pid_in, running, running_again, wait_for};

#[test]
fn after_a_killed_shim_the_next_ends_the_old_copy_records_unknown_and_starts_one() {
    let rig = Rig::new("echo $$ >> $OUT/copies; exec sleep 1000");
    let (_, first) = rig.run();
    let old = rig.kill_shim();
    assert_eq!(old.child, first.child);
    assert!(
        alive(first.child.unwrap()),
        "a killed shim alone ends nothing"
    );

    let mut client = rig.spawn().unwrap();
    assert!(
        !alive(first.child.unwrap()),
        "the old copy is gone before the shim is ready"
    );
    let second = running(&mut client);
    assert_ne!(second.child, first.child);
    let [exit] = &rig.exits()[..] else {
        panic!("{:?}", rig.exits())
    };
    assert_eq!(
        (&exit.status, exit.process),
        (&ExitStatus::Unknown, first.child)
    );
    assert_eq!((second.restarts, second.failures), (1, 1));
    wait_for("both copies to have told", || {
        fs::read_to_string(rig.out("copies"))
            .unwrap_or_default()
            .lines()
            .count()
            == 2
    });
}

#[test]
fn what_the_old_copy_forked_into_sessions_of_their_own_goes_with_it() {
    let rig = Rig::new(
        "setsid sh -c 'echo $$ > $OUT/daemon; exec sleep 1000' & \
         sh -c 'echo $$ > $OUT/orphan; exec sleep 1000' & \
         exec sleep 1000",
    );
    let (_, state) = rig.run();
    let daemon = pid_in(&rig.out("daemon"));
    let orphan = pid_in(&rig.out("orphan"));
    rig.kill_shim();
    // The leader goes too, so that nothing but their output tells whose they are.
    kill(state.child.unwrap(), Signal::KILL);
    wait_for("the leader to die", || !alive(state.child.unwrap()));
    assert!(alive(daemon) && alive(orphan));
    let _client = rig.spawn().unwrap();
    assert!(!alive(daemon) && !alive(orphan));
}

#[test]
fn a_tracking_cgroup_is_emptied_before_a_new_copy_starts() {
    let mut rig = Rig::new(
        "setsid sh -c 'echo $$ > $OUT/daemon; exec sleep 1000 >/dev/null 2>&1' & exec sleep 1000",
    );
    if !rig.track() {
        return;
    }
    let (_, state) = rig.run();
    let daemon = pid_in(&rig.out("daemon"));
    rig.kill_shim();
    kill(state.child.unwrap(), Signal::KILL);
    let _client = rig.spawn().unwrap();
    assert!(!alive(daemon));
}

#[test]
fn a_stranger_with_the_old_number_is_left_alone() {
    let rig = Rig::new("exec sleep 1000");
    let (_, _) = rig.run();
    let mut state = rig.kill_shim();
    kill(state.child.unwrap(), Signal::KILL);
    let mut stranger = Command::new("sleep").arg("1000").spawn().unwrap();
    let told = identify(stranger.id()).unwrap();
    // As if the number had been given away since.
    state.child = Some(ProcessId {
        pid: told.pid,
        start_ticks: told.start_ticks - 1,
    });
    state.seq += 1;
    fs::write(rig.dir.join("state"), state.encode()).unwrap();
    let mut client = rig.spawn().unwrap();
    running(&mut client);
    let lives = alive(told);
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert!(lives);
    assert_eq!(rig.exits().last().unwrap().status, ExitStatus::Unknown);
}

#[test]
fn another_boot_kills_nobody_and_starts_at_once() {
    let mut rig = Rig::new("exec sleep 1000");
    rig.spec.restart.initial = Duration::from_secs(100);
    let (_, _) = rig.run();
    let mut state = rig.kill_shim();
    let real = state.child.unwrap();
    state.boot_id = "00000000-0000-0000-0000-000000000000".into();
    state.failures = 7;
    state.seq += 1;
    fs::write(rig.dir.join("state"), state.encode()).unwrap();
    let mut client = rig.spawn().unwrap();
    let now = running(&mut client);
    let spared = alive(real);
    kill(real, Signal::KILL);
    assert!(spared, "numbers of another boot mean nothing");
    assert_eq!(
        now.failures, 8,
        "the count survives, but this start did not wait"
    );
}

#[test]
fn a_stop_survives_the_shim_and_a_start_undoes_it() {
    let rig = Rig::new("exec sleep 1000");
    let (mut client, _) = rig.run();
    client.request(Request::Stop { timeout: None }).unwrap();
    client
        .wait_until(SOON, |state| state.phase == Phase::Stopped)
        .unwrap();
    rig.kill_shim();
    let mut client = rig.spawn().unwrap();
    let state = client.status().unwrap();
    assert_eq!(
        (state.phase, state.wanted, state.child),
        (Phase::Stopped, false, None)
    );
    client.request(Request::Start).unwrap();
    running(&mut client);
}

/// Starts the shim that is to start nothing.
fn down(rig: &Rig) -> Client {
    let shim = env!("CARGO_BIN_EXE_shim-under-test");
    platctrl_shim_lib::spawn_down(shim.as_ref(), &rig.dir).unwrap()
}

fn copies(rig: &Rig) -> usize {
    let copies = fs::read_to_string(rig.out("copies")).unwrap_or_default();
    copies.lines().count()
}

#[test]
fn what_a_killed_shim_left_is_ended_without_being_started_first() {
    // As the shim was killed: the copy runs on; it died as well; the machine went down.
    for (dies, boots) in [(false, false), (true, false), (true, true)] {
        let rig = Rig::new("echo $$ >> $OUT/copies; exec sleep 1000");
        let (_, first) = rig.run();
        let child = first.child.unwrap();
        wait_for("the copy to tell", || copies(&rig) == 1);
        let mut state = rig.kill_shim();
        if dies {
            kill(child, Signal::KILL);
            wait_for("the copy to die", || !alive(child));
        }
        if boots {
            state.boot_id = "00000000-0000-0000-0000-000000000000".into();
            state.seq += 1;
            fs::write(rig.dir.join("state"), state.encode()).unwrap();
        }
        let mut client = down(&rig);
        assert!(!alive(child));
        client.request(Request::Stop { timeout: None }).unwrap();
        let rests = client.wait_until(SOON, |state| state.phase.at_rest());
        let rests = rests.unwrap();
        assert_eq!((rests.phase, rests.wanted), (Phase::Stopped, false));
        assert_eq!((rests.restarts, rests.child), (0, None));
        assert_eq!(copies(&rig), 1, "nothing was started");
        // The next shim leaves it so, until it is wanted again.
        rig.kill_shim();
        let mut client = rig.spawn().unwrap();
        assert_eq!(client.status().unwrap().phase, Phase::Stopped);
        client.request(Request::Start).unwrap();
        running(&mut client);
        wait_for("another copy", || copies(&rig) == 2);
    }
}

#[test]
fn a_program_that_is_too_old_to_start_nothing_is_stopped_all_the_same() {
    use std::os::unix::fs::PermissionsExt as _;
    let rig = Rig::new("exec sleep 1000");
    rig.run();
    let state = rig.kill_shim();
    let old = rig.root().join("old-shim");
    let shim = env!("CARGO_BIN_EXE_shim-under-test");
    let script = format!("#!/bin/sh\n[ $# = 1 ] || exit 2\nexec '{shim}' \"$1\"\n");
    fs::write(&old, script).unwrap();
    fs::set_permissions(&old, fs::Permissions::from_mode(0o755)).unwrap();
    let mut client = platctrl_shim_lib::spawn_down(&old, &rig.dir).unwrap();
    client.request(Request::Stop { timeout: None }).unwrap();
    client
        .wait_until(SOON, |state| state.phase == Phase::Stopped)
        .unwrap();
    assert!(!alive(state.child.unwrap()));
}

#[test]
fn a_shim_that_is_to_start_nothing_is_the_one_that_runs_already() {
    let rig = Rig::new("exec sleep 1000");
    let (_, first) = rig.run();
    let state = down(&rig).status().unwrap();
    assert_eq!((state.shim, state.child), (first.shim, first.child));
    assert!(state.wanted, "it stops when it is asked to");
}

#[test]
fn never_means_that_a_run_whose_shim_was_killed_is_not_repeated() {
    let mut rig = Rig::new("exec sleep 1000");
    rig.spec.restart.policy = RestartPolicy::Never;
    let (_, first) = rig.run();
    rig.kill_shim();
    let mut client = rig.spawn().unwrap();
    let state = client
        .wait_until(SOON, |state| state.phase.at_rest())
        .unwrap();
    assert_eq!(state.phase, Phase::Exited);
    assert!(!alive(first.child.unwrap()));
}

#[test]
fn a_client_that_comes_back_finds_the_same_processes() {
    let rig = Rig::new("exec sleep 1000");
    let (client, first) = rig.run();
    drop(client);
    let mut client = Client::connect(&rig.dir).unwrap();
    let state = client.status().unwrap();
    assert_eq!((state.shim, state.child), (first.shim, first.child));
    assert!(is_alive(&rig.state()));
    // Starting a shim where one runs gives that one.
    let state = rig.spawn().unwrap().status().unwrap();
    assert_eq!((state.shim, state.child), (first.shim, first.child));
}

#[test]
fn the_shim_is_no_child_of_who_started_it() {
    let rig = Rig::new("exec sleep 1000");
    let (_, state) = rig.run();
    let shim = state.shim.unwrap().pid;
    let stat = fs::read_to_string(format!("/proc/{shim}/stat")).unwrap();
    let fields: Vec<_> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    assert_ne!(fields[1], std::process::id().to_string(), "parent");
    assert_eq!(fields[3], shim.to_string(), "session");
    let environment = fs::read(format!("/proc/{shim}/environ")).unwrap();
    assert!(
        environment.is_empty(),
        "{}",
        String::from_utf8_lossy(&environment)
    );
    let mut command = fs::read(format!("/proc/{shim}/cmdline")).unwrap();
    command.pop();
    assert!(command.ends_with(rig.dir.as_os_str().as_encoded_bytes()));
}

#[test]
fn damaged_files_stop_no_shim() {
    let damages: [&[u8]; 4] = [b"", b"garbage\n", &[0xff; 9000], &[0; 8192]];
    for damage in damages {
        let rig = Rig::new("exec sleep 1000");
        let (_, first) = rig.run();
        rig.kill_shim();
        fs::write(rig.dir.join("state"), damage).unwrap();
        fs::write(rig.dir.join("exits"), damage).unwrap();
        let (mut client, second) = rig.run();
        assert!(
            !alive(first.child.unwrap()),
            "found by its output, without any state"
        );
        kill(second.child.unwrap(), Signal::KILL);
        running_again(&mut client, &second);
        assert_eq!(rig.exits().len(), 1);
        assert_eq!(rig.state().last_exit, 1);
    }
}

#[test]
fn no_file_makes_a_launchable_wait_longer_than_its_policy_allows() {
    let mut rig = Rig::new("exec sleep 1000");
    rig.spec.restart.max = Duration::from_secs(100);
    let (_, _) = rig.run();
    let mut state = rig.kill_shim();
    kill(state.child.unwrap(), Signal::KILL);
    state.phase = Phase::Backoff;
    state.child = None;
    state.next_start_boot_ms = Some(u64::MAX);
    state.seq += 1;
    fs::write(rig.dir.join("state"), state.encode()).unwrap();
    let mut client = rig.spawn().unwrap();
    let state = client
        .wait_until(SOON, |state| state.phase == Phase::Backoff)
        .unwrap();
    assert!(state.next_start_in().unwrap() <= Duration::from_secs(100));
}

#[test]
fn a_damaged_spec_is_refused_with_the_reason_and_stops_nothing_that_runs() {
    let rig = Rig::new("exec sleep 1000");
    let (mut client, first) = rig.run();
    fs::write(rig.dir.join("spec"), "platctrl-shim-spec 1\ngener").unwrap();
    let refused = client.request(Request::Respec).unwrap_err();
    assert!(refused.to_string().contains("damaged"), "{refused}");
    kill(first.child.unwrap(), Signal::KILL);
    running_again(&mut client, &first);

    let shim = env!("CARGO_BIN_EXE_shim-under-test");
    let other = rig.root().join("other");
    write_spec(&other, &rig.spec).unwrap();
    fs::write(other.join("spec"), "nonsense").unwrap();
    let refused = platctrl_shim_lib::spawn(shim.as_ref(), &other).unwrap_err();
    assert!(refused.to_string().contains("damaged"), "{refused}");
}

#[test]
fn a_directory_open_to_others_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let rig = Rig::new("exec sleep 1000");
    write_spec(&rig.dir, &rig.spec).unwrap();
    fs::set_permissions(&rig.dir, fs::Permissions::from_mode(0o750)).unwrap();
    let refused = rig.spawn().unwrap_err();
    assert!(refused.to_string().contains("0700"), "{refused}");
    let gone = Client::connect(&rig.dir).unwrap_err();
    assert_eq!(gone.kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_directory_with_a_very_long_path_works() {
    let below = format!("{}/{}", "deep".repeat(40), "er".repeat(60));
    let rig = Rig::at(&below, "exec sleep 1000");
    assert!(rig.dir.as_os_str().len() > 250);
    let (_, state) = rig.run();
    let again = Client::connect(&rig.dir).unwrap().status().unwrap();
    assert_eq!(again.child, state.child);
}

#[test]
fn a_full_disk_makes_no_shim_forget() {
    let mut rig = Rig::new("exec sleep 1000");
    let disk = rig.root().join("disk");
    fs::create_dir(&disk).unwrap();
    if !rig.mount(&disk, "256k") {
        return;
    }
    rig.dir = disk.join("shim");
    let (mut client, first) = rig.run();
    let full = fs::write(disk.join("filler"), vec![1; 1 << 20]).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);

    kill(first.child.unwrap(), Signal::KILL);
    let second = running_again(&mut client, &first);
    assert_eq!((second.last_exit, second.message.as_str()), (1, ""));
    assert_eq!(rig.exits().len(), 1);
    assert_eq!(rig.state().child, second.child);

    // A first shim that finds no room says so.
    let other = disk.join("other");
    fs::create_dir(&other).unwrap();
    fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let spec = rig.root().join("spec");
    fs::copy(rig.dir.join("spec"), &spec).unwrap();
    std::os::unix::fs::symlink(&spec, other.join("spec")).unwrap();
    let shim = env!("CARGO_BIN_EXE_shim-under-test");
    let refused = platctrl_shim_lib::spawn(shim.as_ref(), &other).unwrap_err();
    assert!(refused.to_string().contains("No space left"), "{refused}");
}

#[test]
fn shims_started_at_the_same_moment_are_one() {
    let rig = Rig::new("echo $$ >> $OUT/copies; exec sleep 1000");
    write_spec(&rig.dir, &rig.spec).unwrap();
    let shim = env!("CARGO_BIN_EXE_shim-under-test");
    let start = || platctrl_shim_lib::spawn(shim.as_ref(), &rig.dir).map(drop);
    let results: Vec<_> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
        starts
            .into_iter()
            .map(|start| start.join().unwrap())
            .collect()
    });
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let mut client = Client::connect(&rig.dir).unwrap();
    running(&mut client);
    wait_for("one copy", || rig.out("copies").exists());
    let state = client.status().unwrap();
    assert_eq!((state.restarts, state.last_exit), (0, 0));
    let copies = fs::read_to_string(rig.out("copies")).unwrap();
    assert_eq!(copies, format!("{}\n", state.child.unwrap().pid));
}
