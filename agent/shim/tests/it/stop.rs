//! Stopping: politely, then everything.

use std::fs;
use std::time::Duration;

use platctrl_shim_lib::{ExitStatus, Phase, Request};
use rustix::process::Signal;

use crate::rig::{Rig, SOON, alive, kill, pid_in, running, running_again, wait_for};

fn stop(timeout: u64) -> Request {
    Request::Stop {
        timeout: Some(Duration::from_millis(timeout)),
    }
}

/// Ignores SIGTERM, and so do a child, a daemon in a session of its own, and that one's child.
const STUBBORN: &str = "trap '' TERM
    sh -c 'echo $$ > $OUT/child; while :; do sleep 1000; done' &
    setsid sh -c '(setsid sh -c \"echo \\$\\$ > $OUT/grandchild; while :; do sleep 1000; done\" &) ; \
        echo $$ > $OUT/daemon; exec >/dev/null 2>&1; while :; do sleep 1000; done' &
    echo $$ > $OUT/leader
    while :; do sleep 1000; done";

#[test]
fn a_launchable_that_obeys_is_stopped_by_sigterm_and_not_started_again() {
    let rig = Rig::new(
        "trap 'echo bye; exit 7' TERM; echo $$ > $OUT/ready; while :; do sleep 0.01; done",
    );
    let (mut client, first) = rig.run();
    pid_in(&rig.out("ready"));
    client.request(stop(30_000)).unwrap();
    let state = client
        .wait_until(SOON, |state| state.phase.at_rest())
        .unwrap();
    assert_eq!(
        (state.phase, state.wanted, state.child),
        (Phase::Stopped, false, None)
    );
    let exit = rig.exits().pop().unwrap();
    assert_eq!((exit.status, exit.requested), (ExitStatus::Code(7), true));
    assert_eq!(exit.process, first.child);
    assert_eq!(state.failures, 0);
    wait_for("its last words", || rig.log().contains("bye"));
}

fn everything_goes(rig: &Rig) {
    let (mut client, _) = rig.run();
    let all = ["leader", "child", "daemon", "grandchild"].map(|name| pid_in(&rig.out(name)));
    client.request(stop(50)).unwrap();
    assert_eq!(client.status().unwrap().phase, Phase::Stopping);
    client
        .wait_until(SOON, |state| state.phase == Phase::Stopped)
        .unwrap();
    for process in all {
        assert!(!alive(process), "{process:?} of {all:?} survived");
    }
    let exit = rig.exits().pop().unwrap();
    assert_eq!(
        exit.status,
        ExitStatus::Signal {
            signal: 9,
            core: false
        }
    );
}

#[test]
fn what_ignores_sigterm_forks_twice_or_leaves_the_session_is_killed_without_a_cgroup() {
    everything_goes(&Rig::new(STUBBORN));
}

#[test]
fn what_ignores_sigterm_forks_twice_or_leaves_the_session_is_killed_by_its_cgroup() {
    let mut rig = Rig::new(STUBBORN);
    if rig.track() {
        everything_goes(&rig);
        let events = rig.spec.tracking.as_ref().unwrap().join("cgroup.events");
        assert!(fs::read_to_string(events).unwrap().contains("populated 0"));
    }
}

#[test]
fn workers_get_the_time_to_finish_after_their_leader() {
    let rig = Rig::new(
        "sh -c 'trap \"while [ ! -e $OUT/go ]; do sleep 0.01; done; echo done > $OUT/done; exit\" TERM; \
            echo $$ > $OUT/worker; while :; do sleep 0.01; done' & wait",
    );
    let (mut client, first) = rig.run();
    let worker = pid_in(&rig.out("worker"));
    client.request(stop(30_000)).unwrap();
    wait_for("the leader to end", || !alive(first.child.unwrap()));
    assert!(alive(worker));
    fs::write(rig.out("go"), "").unwrap();
    client
        .wait_until(SOON, |state| state.phase == Phase::Stopped)
        .unwrap();
    assert_eq!(fs::read_to_string(rig.out("done")).unwrap(), "done\n");
}

#[test]
fn a_second_stop_can_shorten_the_first() {
    let rig = Rig::new("trap '' TERM; echo $$ > $OUT/ready; while :; do sleep 1000; done");
    let (mut client, _) = rig.run();
    pid_in(&rig.out("ready"));
    client.request(stop(3_600_000)).unwrap();
    assert_eq!(client.status().unwrap().phase, Phase::Stopping);
    client.request(stop(0)).unwrap();
    client
        .wait_until(SOON, |state| state.phase == Phase::Stopped)
        .unwrap();
}

#[test]
fn what_a_crashed_launchable_left_behind_is_killed_before_the_next_copy() {
    let rig = Rig::new(
        "sh -c 'echo $$ > $OUT/child.$PPID; exec sleep 1000' & echo $$ > $OUT/leader; wait",
    );
    let (mut client, first) = rig.run();
    let leader = first.child.unwrap();
    let child = pid_in(&rig.out(&format!("child.{}", leader.pid)));
    kill(leader, Signal::KILL);
    running_again(&mut client, &first);
    assert!(!alive(child));
}

#[test]
fn zombies_of_the_launchable_are_collected() {
    let rig = Rig::new(
        "(sh -c 'echo $$ > $OUT/orphan; while [ ! -e $OUT/go ]; do sleep 0.01; done' &) ; exec sleep 1000",
    );
    let (_, state) = rig.run();
    let orphan = pid_in(&rig.out("orphan"));
    let stat = |pid: u32| fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    wait_for("the orphan to come to the shim", || {
        let stat = stat(orphan.pid).unwrap();
        let parent = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .nth(1)
            .unwrap()
            .to_owned();
        parent == state.shim.unwrap().pid.to_string()
    });
    fs::write(rig.out("go"), "").unwrap();
    wait_for("it to be collected", || stat(orphan.pid).is_none());
    assert!(alive(state.child.unwrap()));
}

#[test]
fn sigterm_to_the_shim_stops_both_and_the_next_shim_starts_it_again() {
    let rig = Rig::new("exec sleep 1000");
    let (_, first) = rig.run();
    kill(first.shim.unwrap(), Signal::TERM);
    wait_for("the shim to leave", || !alive(first.shim.unwrap()));
    assert!(!alive(first.child.unwrap()));
    let left = rig.state();
    assert_eq!((left.phase, left.wanted), (Phase::Stopped, true));
    let mut client = rig.spawn().unwrap();
    running(&mut client);
}
