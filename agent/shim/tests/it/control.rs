//! Requests, subscriptions, hostile clients.

use std::fs;
use std::io::{Read as _, Write as _};
use std::time::Duration;

use platctrl_shim_lib::{Client, Event, Phase, Request};
use rustix::process::Signal;

use crate::rig::{Rig, SOON, alive, kill, pid_in, running_again, wait_for};

#[test]
fn a_subscriber_is_told_every_change_in_order() {
    let rig = Rig::new("exec sleep 1000");
    let (mut client, first) = rig.run();
    kill(first.child.unwrap(), Signal::KILL);
    let mut seen = Vec::new();
    while seen.last() != Some(&"running") {
        match client.next_event(SOON).unwrap().unwrap() {
            Event::State(state) => seen.push(state.phase.name()),
            Event::Exit(exit) => {
                assert_eq!(exit.seq, 1);
                seen.push("exit");
            }
        }
    }
    assert_eq!(seen, ["exit", "starting", "running"]);
}

#[test]
fn a_signal_reaches_the_launchable() {
    let rig = Rig::new(
        "trap 'echo $$ > $OUT/hup' HUP; echo $$ > $OUT/ready; while :; do sleep 0.01; done",
    );
    let (mut client, state) = rig.run();
    pid_in(&rig.out("ready"));
    client.request(Request::Signal(1)).unwrap();
    assert_eq!(pid_in(&rig.out("hup")), state.child.unwrap());
    assert!(client.request(Request::Signal(99)).is_err());
}

#[test]
fn a_new_spec_is_used_from_the_next_start_on() {
    let mut rig = Rig::new("echo generation $GEN; exec sleep 1000");
    rig.spec.env.push(("GEN".into(), "one".into()));
    let (mut client, first) = rig.run();
    rig.spec.generation = 2;
    rig.spec.env.last_mut().unwrap().1 = "two".into();
    platctrl_shim_lib::write_spec(&rig.dir, &rig.spec).unwrap();

    let lines = |expected: &str| wait_for(expected, || rig.log() == expected);
    lines("generation one\n");
    kill(first.child.unwrap(), Signal::KILL);
    let second = running_again(&mut client, &first);
    assert_eq!(second.generation, 1, "nobody has asked for the new one");
    lines("generation one\ngeneration one\n");
    client.request(Request::Respec).unwrap();
    assert_eq!(
        client.status().unwrap().child,
        second.child,
        "asking restarts nothing"
    );
    client.request(Request::Restart { timeout: None }).unwrap();
    let third = running_again(&mut client, &second);
    assert_eq!((third.generation, third.restarts), (2, 0));
    lines("generation one\ngeneration one\ngeneration two\n");
    assert!(rig.exits().last().unwrap().requested);
}

#[test]
fn a_shim_does_not_quit_from_a_running_launchable() {
    let rig = Rig::new("exec sleep 1000");
    let (mut client, state) = rig.run();
    let refused = client.request(Request::Quit).unwrap_err();
    assert!(refused.to_string().contains("running"), "{refused}");
    client.request(Request::Stop { timeout: None }).unwrap();
    client
        .wait_until(SOON, |state| state.phase.at_rest())
        .unwrap();
    client.request(Request::Quit).unwrap();
    wait_for("the shim to leave", || !alive(state.shim.unwrap()));
    assert!(Client::connect(&rig.dir).is_err());
    assert_eq!(rig.state().phase, Phase::Stopped, "what it knew stays");
}

#[test]
fn a_request_of_a_newer_agent_is_refused_and_the_next_is_answered() {
    let rig = Rig::new("exec sleep 1000");
    let (client, _) = rig.run();
    let mut stream = client.into_stream();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(b"hibernate 5\nstatus please\n").unwrap();
    let mut heard = String::new();
    while heard.matches("\nok\n").count() == 0 {
        let mut chunk = [0; 4096];
        let n = stream.read(&mut chunk).unwrap();
        assert_ne!(n, 0);
        heard.push_str(std::str::from_utf8(&chunk[..n]).unwrap());
    }
    assert!(
        heard.contains("err this\\x20shim\\x20does\\x20not\\x20know"),
        "{heard}"
    );
    assert!(heard.contains("phase=running"), "{heard}");
}

#[test]
fn clients_that_flood_stall_or_pile_up_hurt_nobody_else() {
    let mut rig = Rig::new("exit 1");
    rig.spec.restart.initial = Duration::from_millis(1);
    rig.spec.restart.max = Duration::from_millis(1);
    let mut good = rig.spawn().unwrap();

    let mut endless = Client::connect(&rig.dir).unwrap().into_stream();
    let flood = (0..1000).try_for_each(|_| endless.write_all(&[b'x'; 1000]));
    assert!(flood.is_err(), "a request without end is cut off");

    // Subscribed, and never reads: dropped once its socket is full.
    let mut deaf = Client::connect(&rig.dir).unwrap();
    deaf.subscribe(0).unwrap();
    let crowd: Vec<_> = (0..40).map(|_| Client::connect(&rig.dir)).collect();
    assert!(crowd.iter().any(Result::is_err), "there is a limit");
    let before = good.status().unwrap().last_exit;
    good.wait_until(SOON, |state| state.last_exit > before + 50)
        .unwrap();
    drop((crowd, deaf));
    wait_for("room for another", || Client::connect(&rig.dir).is_ok());
}

#[test]
fn the_socket_and_the_files_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let rig = Rig::new("exec sleep 1000");
    let (_, _) = rig.run();
    for name in ["", "spec", "state", "exits", "sock", "lock", "out"] {
        let mode = fs::metadata(rig.dir.join(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o077, 0, "{name}");
    }
}
