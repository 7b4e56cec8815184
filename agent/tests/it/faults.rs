//! What breaks on a node: killed agents and shims, a reboot, programs that want too much.

use std::fs;

use platctrl_agent::Order;
use platctrl_test_support::needs;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::crash::Subject;
use crate::rig::{Rig, eventually, get, is_alive, kill, name, tombstone, want};
use crate::updates::lines;

/// The supervisor of a program, which has to live.
pub(crate) fn shim_of(rig: &Rig, program: &str) -> u32 {
    let dir = rig.layout().pod(&name()).shim(program);
    let state = platctrl_shim_lib::read_state(&dir).unwrap().unwrap();
    assert!(platctrl_shim_lib::is_alive(&state), "it has a supervisor");
    state.shim.unwrap().pid
}

#[test]
fn an_agent_and_its_shims_that_are_killed_together_leave_one_copy_of_each_program() {
    let mut rig = Rig::new();
    let spec = rig.spec(&rig.app("one"));
    let host = rig.host();
    let (worker, told) = rig.worker(&host, want(1, &spec));
    let first = told.ready();
    let shim = shim_of(&rig, "web");
    drop((worker, host));
    rig.crash();
    kill(shim);
    eventually("the shim to be gone", || (!is_alive(shim)).then_some(()));
    let old = first.status.pids["web"];
    assert!(is_alive(old), "nobody watches over it");
    let host = rig.host();
    let (_worker, told) = rig.worker(&host, want(1, &spec));
    let again = told.wait("another copy", |it| {
        it.is_ready() && it.status.pids.get("web").is_some_and(|pid| *pid != old)
    });
    assert!(!is_alive(old), "there are never two");
    let exit = again.status.exits.last().unwrap();
    assert_eq!((exit.code, exit.signal), (None, None), "nobody saw how");
    assert_eq!(get(again.status.ports["http"], "/version"), "one");
}

#[test]
fn what_is_to_end_is_not_started_first_though_its_supervisor_is_gone() {
    // Alone; with its program; with the machine.
    for (dies, boots) in [(false, false), (true, false), (true, true)] {
        let mut rig = Rig::new();
        let script = "#!/bin/sh\necho $$ >> \"$HOME/starts\"\nexec sleep 1000\n";
        let mut spec = rig.script("sleeper", script);
        spec["keepData"] = true.into();
        let host = rig.host();
        let starts = rig.layout().pod(&name()).data().join("starts");
        let (worker, told) = rig.worker(&host, want(1, &spec));
        told.ready();
        eventually("its start", || (lines(&starts).len() == 1).then_some(()));
        let (shim, program) = (shim_of(&rig, "web"), lines(&starts)[0].parse().unwrap());
        drop((worker, host));
        rig.crash();
        kill(shim);
        eventually("the shim to be gone", || (!is_alive(shim)).then_some(()));
        assert!(is_alive(program), "nobody watches over it");
        if dies {
            kill(program);
            eventually("it to be gone", || (!is_alive(program)).then_some(()));
        }
        if boots {
            another_boot(&rig);
        }
        let host = rig.host();
        let (_worker, told) = rig.worker(&host, tombstone(1, &spec));
        told.wait("the end", |it| it.phase.as_str() == "Gone");
        assert!(!is_alive(program));
        assert_eq!(lines(&starts).len(), 1, "it was not started to be ended");
    }
}

/// What lives in memory is gone with the machine, and the boot has another name.
fn another_boot(rig: &Rig) {
    let dir = rig.layout().pod(&name()).shim("web");
    for runtime in ["sock", "out", "lock"] {
        let _ = fs::remove_file(dir.join(runtime));
    }
    let mut state = platctrl_shim_lib::read_state(&dir).unwrap().unwrap();
    state.boot_id = "00000000-0000-0000-0000-000000000000".into();
    fs::write(dir.join("state"), state.encode()).unwrap();
}

#[test]
fn after_a_reboot_every_program_is_back_without_the_store() {
    let mut rig = Rig::new();
    let spec = rig.spec(&rig.app("one"));
    let host = rig.host();
    let (worker, told) = rig.worker(&host, want(1, &spec));
    let first = told.ready();
    let (shim, program) = (shim_of(&rig, "web"), first.status.pids["web"]);
    drop((worker, host));
    rig.crash();
    for pid in [shim, program] {
        kill(pid);
        eventually("it to be gone", || (!is_alive(pid)).then_some(()));
    }
    another_boot(&rig);
    let host = rig.host();
    let (_worker, told) = rig.worker(&host, Order::Unknown);
    let again = told.ready();
    assert_eq!(again.status.ports, first.status.ports);
    assert_eq!(get(again.status.ports["http"], "/version"), "one");
}

#[test]
fn what_was_being_forgotten_when_the_machine_went_down_holds_up_no_end() {
    let mut rig = Rig::new();
    let spec = rig.script("sleeper", "#!/bin/sh\nexec sleep 1000\n");
    let host = rig.host();
    let (worker, told) = rig.worker(&host, want(1, &spec));
    told.ready();
    drop((worker, host));
    rig.crash();
    rig.kill_all();
    another_boot(&rig);
    let dir = rig.layout().pod(&name()).shim("web");
    fs::remove_file(dir.join("spec")).unwrap();
    assert!(platctrl_shim_lib::read_state(&dir).unwrap().is_some());
    let host = rig.host();
    let (_worker, told) = rig.worker(&host, tombstone(1, &spec));
    told.wait("the end", |it| it.phase.as_str() == "Gone");
}

#[test]
fn a_number_of_a_process_before_the_boot_keeps_no_port_from_being_looked_at() {
    let mut rig = Rig::new();
    let spec = rig.spec(&rig.app("one"));
    let host = rig.host();
    let (worker, told) = rig.worker(&host, want(1, &spec));
    let port = told.ready().status.ports["http"];
    drop((worker, host));
    rig.crash();
    rig.kill_all();
    another_boot(&rig);
    // Somebody has the number now, and somebody the port.
    let dir = rig.layout().pod(&name()).shim("web");
    let mut state = platctrl_shim_lib::read_state(&dir).unwrap().unwrap();
    state.child.as_mut().unwrap().pid = std::process::id();
    fs::write(dir.join("state"), state.encode()).unwrap();
    let _taken = eventually("the port", || {
        std::net::TcpListener::bind(("0.0.0.0", port)).ok()
    });
    let host = rig.host();
    let (_worker, told) = rig.worker(&host, Order::Unknown);
    let again = told.ready();
    assert_ne!(again.status.ports["http"], port);
    assert_eq!(get(again.status.ports["http"], "/version"), "one");
}

#[test]
fn a_program_that_forks_without_end_reaches_its_limit_and_is_ended_whole() {
    if !needs::root() {
        return;
    }
    let rig = Rig::new();
    let bomb = "#!/bin/sh\ni=0\nwhile [ $i -lt 300 ]; do setsid sleep 1000 & i=$((i+1)); done\necho unlimited\nwait\n";
    let mut spec = rig.spec(&rig.pack("bomb", &[("bin/launch", Some(bomb))]));
    spec["launchables"]["web"]["resources"] = json!({"pids": 20});
    spec["launchables"]["web"]["restart"] = json!({"policy": "Never"});
    let host = rig.host();
    let (worker, told) = rig.worker(&host, want(1, &spec));
    told.wait("its end", |it| {
        it.phase.as_str() == "Failed" || it.is_ready()
    });
    if !told.events("LimitsNotEnforced").is_empty() {
        needs::lacks("controller that counts processes");
        return;
    }
    let log = rig.layout().pod(&name()).log().join("web.log");
    let said = eventually("the limit", || {
        let text = fs::read_to_string(&log).ok()?;
        text.to_lowercase().contains("fork").then_some(text)
    });
    assert!(!said.contains("unlimited"), "{said}");
    // Its end for good is told once nothing is left of it.
    told.wait("its end", |it| it.phase.as_str() == "Failed");
    worker.order(tombstone(1, &spec));
    told.wait("the end", |it| it.phase.as_str() == "Gone");
}

#[test]
fn a_program_that_takes_too_much_memory_is_told_so_and_started_again() {
    if !needs::root() {
        return;
    }
    let rig = Rig::new();
    // One line without an end, of which the last of the two keeps everything.
    let hog = "#!/bin/sh\necho $$ >> \"$HOME/starts\"\nexec tail -n 1 /dev/zero\n";
    let mut spec = rig.spec(&rig.pack("hog", &[("bin/launch", Some(hog))]));
    spec["launchables"]["web"]["resources"] = json!({"memory": "16Mi"});
    let host = rig.host();
    let (_worker, told) = rig.worker(&host, want(1, &spec));
    told.wait("its end", |it| !it.status.exits.is_empty() || it.is_ready());
    if !told.events("LimitsNotEnforced").is_empty() {
        needs::lacks("controller of memory");
        return;
    }
    let report = told.wait("its end", |it| !it.status.exits.is_empty());
    let exit = &report.status.exits[0];
    assert_eq!(exit.signal, Some(9));
    assert!(exit.message.contains("out of memory"), "{exit:?}");
    let starts = rig.layout().pod(&name()).data().join("starts");
    eventually("its next start", || {
        (lines(&starts).len() > 1).then_some(())
    });
}

#[test]
fn while_the_agent_is_stopped_no_line_of_a_program_is_missing() {
    let rig = Rig::new();
    let mut spec = rig.spec(&rig.app("one"));
    spec["launchables"]["web"]["env"] = json!({"LOG_LINES_WHEN": "go"});
    spec["launchables"]["web"]["logs"] = json!({"maxSize": "64Mi"});
    let order = want(1, &spec);
    let mut agent = Subject::start(&rig, &order, None);
    agent.ready(1);
    let data = rig.layout().pod(&name()).data();
    let pid = Pid::from_raw(agent.pid().cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let state = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", agent.pid())).unwrap();
        stat.rsplit(')').next().unwrap().trim().chars().next()
    };
    eventually("the agent to be stopped", || {
        (state() == Some('T')).then_some(())
    });
    fs::write(data.join("go"), "").unwrap();
    let log = rig.layout().pod(&name()).log().join("web.log");
    eventually("its last line", || {
        data.join("written").exists().then_some(())?;
        let text = fs::read_to_string(&log).ok()?;
        text.ends_with("line 199999\n").then_some(())
    });
    assert_eq!(state(), Some('T'), "the agent took no part in it");
    let text = fs::read_to_string(&log).unwrap();
    let numbers = text.lines().filter_map(|line| line.strip_prefix("line "));
    let numbers: Vec<u32> = numbers.map(|number| number.parse().unwrap()).collect();
    assert!(
        numbers.iter().copied().eq(0..200_000),
        "every line is there"
    );
    kill_process(pid, Signal::CONT).unwrap();
    drop(agent);
    Subject::start(&rig, &tombstone(1, &spec), None).wait("the end", |it| it["phase"] == "Gone");
}
