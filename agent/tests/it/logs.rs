//! What of a log is given to whoever asks: runs, times, and files that move meanwhile.

use std::cell::RefCell;
use std::time::{Duration, SystemTime};

use platctrl_agent::{LogError, LogQuery, LogReader};
use serde_json::json;

use crate::rig::{Rig, eventually, kill, name, want};

/// Says which run it is, in a line and in one without an end, and ends twice.
const THRICE: &str = "#!/bin/sh\nn=$(cat \"$HOME/n\" 2>/dev/null || echo 0)\nn=$((n+1))\n\
    echo $n > \"$HOME/n\"\necho \"run $n begins\"\nprintf \"and run $n goes on\"\n\
    [ $n -ge 3 ] || exit 1\nexec sleep 1000\n";

fn query() -> LogQuery {
    LogQuery::default()
}

fn previous() -> LogQuery {
    let mut query = query();
    query.previous = true;
    query
}

fn open(rig: &Rig, query: LogQuery) -> Result<LogReader, LogError> {
    LogReader::open(&rig.data_dir(), &name(), query)
}

pub(crate) fn text(log: LogReader) -> String {
    let read = RefCell::new(Vec::new());
    let send = |piece: bytes::Bytes| {
        read.borrow_mut().extend_from_slice(&piece);
        true
    };
    log.copy(&|| false, &send).unwrap();
    String::from_utf8(read.into_inner()).unwrap()
}

fn spec(rig: &Rig, script: &str) -> serde_json::Value {
    let mut spec = rig.spec(&rig.pack("writer", &[("bin/launch", Some(script))]));
    spec["ports"] = json!({});
    spec
}

#[test]
fn the_previous_run_is_byte_for_byte_what_it_wrote() {
    let rig = Rig::new();
    let host = rig.host();
    let (_worker, told) = rig.worker(&host, want(1, &spec(&rig, THRICE)));
    let report = told.wait("the third run", |it| {
        it.status.restarts == 2 && it.is_ready()
    });
    let of = |run: u32| format!("run {run} begins\nand run {run} goes on");
    eventually("the third run's words", || {
        text(open(&rig, query()).unwrap())
            .ends_with("run 3 goes on")
            .then_some(())
    });
    assert_eq!(
        text(open(&rig, query()).unwrap()),
        format!("{}{}{}", of(1), of(2), of(3))
    );
    let log = open(&rig, previous()).unwrap();
    assert_eq!(log.note(), None);
    assert_eq!(text(log), of(2));
    let mut last_line = previous();
    last_line.tail = Some(1);
    assert_eq!(text(open(&rig, last_line).unwrap()), "and run 2 goes on");
    kill(report.status.pids["web"]);
    told.wait("the fourth run", |it| {
        it.status.restarts == 3 && it.is_ready()
    });
    assert_eq!(text(open(&rig, previous()).unwrap()), of(3));
}

#[test]
fn before_a_run_has_ended_there_is_no_previous_one() {
    let rig = Rig::new();
    let host = rig.host();
    let script = "#!/bin/sh\necho first\nexec sleep 1000\n";
    let (_worker, told) = rig.worker(&host, want(1, &spec(&rig, script)));
    told.ready();
    let error = open(&rig, previous()).unwrap_err();
    assert!(matches!(error, LogError::NoPrevious { .. }), "{error}");
}

#[test]
fn a_run_is_found_over_many_files_and_what_is_not_kept_of_it_is_told() {
    let rig = Rig::new();
    let host = rig.host();
    let script = "#!/bin/sh\n[ ! -e \"$HOME/ran\" ] || exec sleep 1000\n: > \"$HOME/ran\"\n\
        i=0; while [ $i -lt 3000 ]; do echo \"line number $i\"; i=$((i+1)); done\nexit 1\n";
    let all: String = (0..3000)
        .map(|line| format!("line number {line}\n"))
        .collect();
    for (files, whole) in [(40, true), (3, false)] {
        let mut spec = spec(&rig, script);
        spec["launchables"]["web"]["logs"] = json!({"maxSize": "4Ki", "maxFiles": files});
        let (worker, told) = rig.worker(&host, want(1, &spec));
        told.wait("the second run", |it| {
            it.status.restarts == 1 && it.is_ready()
        });
        let log = open(&rig, previous()).unwrap();
        assert_eq!(log.note().is_none(), whole);
        let text = text(log);
        match whole {
            true => assert_eq!(text, all),
            false => assert!(all.ends_with(&text) && text.len() > 4000, "{}", text.len()),
        }
        worker.order(crate::rig::tombstone(1, &spec));
        told.wait("the end", |report| report.phase.as_str() == "Gone");
    }
}

#[test]
fn the_run_of_a_supervisor_that_was_killed_has_its_own_lines() {
    let rig = Rig::new();
    let host = rig.host();
    let script = "#!/bin/sh\necho \"I am $$\"\nexec sleep 1000\n";
    let (_worker, told) = rig.worker(&host, want(1, &spec(&rig, script)));
    let first = told.ready().status.pids["web"];
    let log = rig.layout().pod(&name()).log().join("web.log");
    eventually("its word", || {
        std::fs::read_to_string(&log)
            .ok()
            .filter(|it| !it.is_empty())
    });
    let state = platctrl_shim_lib::read_state(&rig.layout().pod(&name()).shim("web"));
    kill(state.unwrap().unwrap().shim.unwrap().pid);
    told.wait("another process", |it| {
        it.is_ready() && it.status.pids.get("web").is_some_and(|pid| *pid != first)
    });
    assert_eq!(
        text(open(&rig, previous()).unwrap()),
        format!("I am {first}\n")
    );
}

#[test]
fn what_came_since_a_time_is_told_by_the_line() {
    let rig = Rig::new();
    let host = rig.host();
    let script = "#!/bin/sh\necho \"I am $$\"\nexec sleep 1000\n";
    let (_worker, told) = rig.worker(&host, want(1, &spec(&rig, script)));
    let first = told.ready().status.pids["web"];
    let paths = rig.layout().pod(&name());
    let log = paths.log().join("web.log");
    eventually("its word", || {
        std::fs::read_to_string(&log)
            .ok()
            .filter(|it| !it.is_empty())
    });
    // As if that had been an hour ago.
    for entry in std::fs::read_dir(paths.shim("web")).unwrap() {
        let path = entry.unwrap().path();
        let is_marks = path
            .file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with("marks.");
        if !is_marks {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["at", offset, at, span] => {
                    let at: u64 = at.parse().unwrap();
                    format!("at {offset} {} {span}\n", at - 3_600_000)
                }
                _ => format!("{line}\n"),
            }
        });
        std::fs::write(&path, lines.collect::<String>()).unwrap();
    }
    kill(first);
    let second = told.wait("another process", |it| {
        it.is_ready() && it.status.pids.get("web").is_some_and(|pid| *pid != first)
    });
    let second = second.status.pids["web"];
    eventually("its word", || {
        let text = std::fs::read_to_string(&log).unwrap();
        text.contains(&format!("I am {second}\n")).then_some(())
    });
    let since = |seconds: u64| {
        let mut query = query();
        query.since = SystemTime::now().checked_sub(Duration::from_secs(seconds));
        text(open(&rig, query).unwrap())
    };
    assert_eq!(since(1800), format!("I am {second}\n"));
    assert_eq!(since(7200), format!("I am {first}\nI am {second}\n"));
    let mut query = query();
    query.since = SystemTime::now().checked_add(Duration::from_secs(60));
    assert_eq!(text(open(&rig, query).unwrap()), "");
}

#[test]
fn a_log_without_marks_as_an_older_supervisor_leaves_it_is_given_whole_and_that_is_told() {
    let rig = Rig::new();
    let host = rig.host();
    let (_worker, told) = rig.worker(&host, want(1, &spec(&rig, THRICE)));
    told.wait("the third run", |it| {
        it.status.restarts == 2 && it.is_ready()
    });
    eventually("the third run's words", || {
        text(open(&rig, query()).unwrap())
            .ends_with("run 3 goes on")
            .then_some(())
    });
    for entry in std::fs::read_dir(rig.layout().pod(&name()).shim("web")).unwrap() {
        let path = entry.unwrap().path();
        if path
            .file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with("marks.")
        {
            std::fs::remove_file(path).unwrap();
        }
    }
    let log = open(&rig, previous()).unwrap();
    assert!(
        log.note().unwrap().contains("older supervisor"),
        "{:?}",
        log.note()
    );
    assert_eq!(text(log).matches("begins").count(), 3);
}

#[test]
fn whoever_names_no_program_gets_the_only_one_and_not_what_scripts_said() {
    let rig = Rig::new();
    let script = |said: &str| format!("#!/bin/sh\necho {said}\n");
    let (enable, launch) = (script("enabled"), script("launched") + "exec sleep 1000\n");
    let artifact = rig.pack(
        "scripts",
        &[("bin/launch", Some(&launch)), ("bin/enable", Some(&enable))],
    );
    let mut spec = rig.spec(&artifact);
    spec["ports"] = json!({});
    let host = rig.host();
    let (worker, told) = rig.worker(&host, want(1, &spec));
    told.wait_for("the script", |told| {
        let mut events = told.events.iter();
        events.find(|it| it.reason == "ScriptSucceeded").map(drop)
    });
    let log = |program: Option<&str>| {
        let mut asked = query();
        asked.program = program.map(str::to_owned);
        open(&rig, asked)
    };
    eventually("its word", || {
        (text(log(None).ok()?) == "launched\n").then_some(())
    });
    assert_eq!(text(log(Some("web/bin/enable")).unwrap()), "enabled\n");
    // Of several programs one has to be named; scripts are not among them.
    spec["launchables"]["other"] = spec["launchables"]["web"].clone();
    worker.order(want(2, &spec));
    told.wait("two programs", |it| {
        it.is_ready() && it.status.pids.len() == 2
    });
    let several = eventually("two logs", || log(None).err());
    assert!(
        matches!(&several, LogError::Several { known } if known == &["other", "web"]),
        "{several}"
    );
}
