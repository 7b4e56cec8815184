//! Restart policy, backoff, and programs that cannot be executed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use platctrl_shim_lib::{Event, ExitStatus, Phase, Request, RestartPolicy};
use rustix::process::Signal;

use crate::rig::{Rig, SOON, alive, kill, running, running_again};

#[test]
fn a_killed_launchable_is_started_again_at_once_and_its_end_is_recorded() {
    let rig = Rig::new("exec sleep 1000");
    let (mut client, first) = rig.run();
    kill(first.child.unwrap(), Signal::KILL);
    let second = running_again(&mut client, &first);
    assert!(!alive(first.child.unwrap()));
    assert!(alive(second.child.unwrap()));
    assert_eq!(
        (second.restarts, second.failures, second.last_exit),
        (1, 1, 1)
    );
    let [exit] = &rig.exits()[..] else {
        panic!("{:?}", rig.exits())
    };
    assert_eq!(
        exit.status,
        ExitStatus::Signal {
            signal: 9,
            core: false
        }
    );
    assert_eq!((exit.process, exit.requested), (first.child, false));
}

#[test]
fn a_second_end_in_a_row_waits_and_the_wait_outlives_the_shim() {
    let mut rig = Rig::new("exec sleep 1000");
    rig.spec.restart.initial = Duration::from_secs(200);
    let (mut client, first) = rig.run();
    kill(first.child.unwrap(), Signal::KILL);
    let second = running_again(&mut client, &first);
    kill(second.child.unwrap(), Signal::KILL);
    let waiting = client
        .wait_until(SOON, |state| state.phase == Phase::Backoff)
        .unwrap();
    let wait = waiting.next_start_in().unwrap();
    assert!((100..=200).contains(&wait.as_secs()), "{wait:?}");

    rig.kill_shim();
    let mut client = rig.spawn().unwrap();
    let still = client
        .wait_until(SOON, |state| state.phase == Phase::Backoff)
        .unwrap();
    assert_ne!(still.shim, waiting.shim);
    assert_eq!(still.next_start_boot_ms, waiting.next_start_boot_ms);
    assert_eq!((still.restarts, still.failures), (1, 2));

    client.request(Request::Start).unwrap();
    assert_eq!(
        client.status().unwrap().phase,
        Phase::Backoff,
        "start does not cut a wait short"
    );
    client.request(Request::Restart { timeout: None }).unwrap();
    assert_eq!(running(&mut client).failures, 0, "restart does");
}

#[test]
fn waits_are_kept_and_then_it_is_started() {
    let mut rig = Rig::new("echo run; exit 3");
    rig.spec.restart.initial = Duration::from_millis(20);
    let mut client = rig.spawn().unwrap();
    client
        .wait_until(SOON, |state| state.last_exit >= 4)
        .unwrap();
    let exits = rig.exits();
    assert!(
        exits.iter().all(|exit| exit.status == ExitStatus::Code(3)),
        "{exits:?}"
    );
    let gap = exits[3].started_boot_ms - exits[2].ended_boot_ms;
    assert!(
        gap >= 32,
        "the third wait is 40 ms less a fifth at most, not {gap}"
    );
}

#[test]
fn on_failure_starts_again_until_it_succeeds_and_then_rests() {
    let mut rig = Rig::new("[ -e $OUT/second ] && exit 0; touch $OUT/second; exit 1");
    rig.spec.restart.policy = RestartPolicy::OnFailure;
    let mut client = rig.spawn().unwrap();
    let state = client
        .wait_until(SOON, |state| state.phase == Phase::Exited)
        .unwrap();
    assert_eq!((state.restarts, state.child), (1, None));
    let codes: Vec<_> = rig.exits().into_iter().map(|exit| exit.status).collect();
    assert_eq!(codes, [ExitStatus::Code(1), ExitStatus::Code(0)]);

    // It stays finished: for a request to have it up, and for another shim.
    client.request(Request::Start).unwrap();
    assert_eq!(client.status().unwrap().phase, Phase::Exited);
    client.request(Request::Quit).unwrap();
    let gone = loop {
        if let Err(error) = client.next_event(SOON) {
            break error;
        }
    };
    assert_eq!(gone.kind(), std::io::ErrorKind::UnexpectedEof);
    let mut client = rig.spawn().unwrap();
    assert_eq!(client.status().unwrap().phase, Phase::Exited);
    assert_eq!(rig.exits().len(), 2);
}

#[test]
fn never_rests_after_a_failure_and_a_newer_generation_starts_anew() {
    let mut rig = Rig::new("exit 9");
    rig.spec.restart.policy = RestartPolicy::Never;
    let mut client = rig.spawn().unwrap();
    client
        .wait_until(SOON, |state| state.phase == Phase::Exited)
        .unwrap();
    client.request(Request::Quit).unwrap();
    assert_eq!(rig.exits().len(), 1);
    rig.spec.generation += 1;
    rig.script("exec sleep 1000");
    let (_, state) = rig.run();
    assert_eq!((state.generation, state.restarts), (rig.spec.generation, 0));
}

#[test]
fn a_program_that_cannot_be_executed_says_why_and_waits() {
    type Break = fn(&mut Rig);
    let cases: [(&str, &str, Break); 6] = [
        ("/launch: No such file", "", |rig| {
            fs::remove_file(&rig.spec.argv[0]).unwrap();
        }),
        ("/launch: No such file", "interpreter", |rig| {
            fs::write(&rig.spec.argv[0], "#!/no/such/shell\n").unwrap();
        }),
        ("/launch: Exec format error", "#!/bin/sh", |rig| {
            fs::write(&rig.spec.argv[0], "echo no first line\n").unwrap();
        }),
        ("/launch: Permission denied", "executable", |rig| {
            let mode = fs::Permissions::from_mode(0o644);
            fs::set_permissions(&rig.spec.argv[0], mode).unwrap();
        }),
        ("cannot enter /no/such/dir", "", |rig| {
            rig.spec.cwd = "/no/such/dir".into();
        }),
        ("cannot join the cgroup /no/such/group", "", |rig| {
            rig.spec.cgroups.push("/no/such/group".into());
        }),
    ];
    for (what, hint, damage) in cases {
        let mut rig = Rig::new("exec sleep 1000");
        rig.spec.restart.initial = Duration::from_secs(100);
        damage(&mut rig);
        let mut client = rig.spawn().unwrap();
        let state = client
            .wait_until(SOON, |state| state.phase == Phase::Backoff)
            .unwrap();
        let told = &state.message;
        assert!(
            told.contains(what) && told.contains(hint),
            "{what:?} {hint:?}: {told:?}"
        );
        let [exit] = &rig.exits()[..] else {
            panic!("{:?}", rig.exits())
        };
        let ExitStatus::NotStarted { errno, message } = &exit.status else {
            panic!("{exit:?}");
        };
        assert_eq!(message, told);
        assert_ne!(*errno, 0);
    }
}

#[test]
fn a_program_that_is_repaired_starts_with_the_next_attempt_and_the_message_goes() {
    let mut rig = Rig::new("");
    rig.spec.restart.initial = Duration::from_millis(10);
    fs::remove_file(&rig.spec.argv[0]).unwrap();
    let mut client = rig.spawn().unwrap();
    client
        .wait_until(SOON, |state| !state.message.is_empty())
        .unwrap();
    rig.script("exec sleep 1000");
    assert_eq!(running(&mut client).message, "");
}

#[test]
fn only_the_last_ends_are_kept_and_a_late_subscriber_gets_those() {
    let mut rig = Rig::new("exit 1");
    rig.spec.restart.initial = Duration::from_millis(1);
    rig.spec.restart.max = Duration::from_millis(1);
    let mut client = rig.spawn().unwrap();
    client
        .wait_until(SOON, |state| state.last_exit > 40)
        .unwrap();
    client.request(Request::Stop { timeout: None }).unwrap();
    client
        .wait_until(SOON, |state| state.phase.at_rest())
        .unwrap();
    let exits = rig.exits();
    assert_eq!(exits.len(), 32);
    let last = exits.last().unwrap().seq;
    let kept: Vec<_> = exits.iter().map(|exit| exit.seq).collect();
    assert_eq!(kept, (last - 31..=last).collect::<Vec<_>>());
    let mut late = platctrl_shim_lib::Client::connect(&rig.dir).unwrap();
    late.subscribe(last - 2).unwrap();
    let mut next = || late.next_event(SOON).unwrap().unwrap();
    assert_eq!(next(), Event::Exit(exits[30].clone()));
    assert_eq!(next(), Event::Exit(exits[31].clone()));
    assert!(matches!(next(), Event::State(state) if state.phase == Phase::Stopped));
}
