//! Nobody reads, and Ctrl-C.

use std::fs;
use std::io::Read as _;
use std::process::{Child, Command, Stdio};

use super::{Does, Ground, ROWS, is_told};
use crate::rig::{Rig, Said, eventually, kill};

const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

/// Runs a command whose output nobody reads, from the start.
fn unread(command: &mut Command) -> Said {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    drop(reader);
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::from(writer))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.wait_with_output().unwrap().into()
}

#[test]
fn a_broken_pipe_ends_no_work_half_way() {
    let ground = Ground::new();
    let objects = ground.objects();
    for row in ROWS {
        let arguments = ground.arguments(row, &objects);
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut command = ground.rig().command(&words);
        let said = unread(
            command
                .env("EDITOR", "true")
                .env("TMPDIR", ground.rig().path("")),
        );
        is_told(row, &said);
        let code = said.code.unwrap();
        let is_lost_token = row.verb == "token create" && code == 1;
        // What has no result has nothing that could be lost.
        assert!(
            row.well.contains(&code)
                || code == 0
                || is_lost_token
                || (row.verb == "token delete" && code == 5),
            "{row:?}: {said:#?}"
        );
        assert!(!said.err.contains("Broken pipe"), "{row:?}: {said:#?}");
    }
    // A token that nobody saw is good for nobody.
    let list = ground.rig().cli(&["token", "list"]).ok();
    assert!(!list.contains("somebody"), "{list}");
}

#[test]
fn all_of_several_objects_are_applied_and_deleted_though_nobody_reads() {
    let mut rig = Rig::new();
    rig.quickstart_artifact();
    rig.up();
    let one = fs::read_to_string(rig.manifest(0, |text| text)).unwrap();
    let all: Vec<_> = ["a", "b", "c"]
        .iter()
        .map(|name| one.replacen("name: hello", &format!("name: {name}"), 1))
        .collect();
    rig.write("all.yaml", all.join("---\n"));
    let names = || rig.cli(&["get", "rc", "-o", "name"]).ok();
    let said = unread(&mut rig.command(&["apply", "-f", "all.yaml"]));
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:#?}");
    assert_eq!(names().lines().count(), 3);
    let said = unread(&mut rig.command(&["delete", "-f", "all.yaml", "--wait"]));
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:#?}");
    assert_eq!(names(), "");
    // What cannot be written for another reason is told, and done all the same.
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let mut command = rig.command(&["apply", "-f", "all.yaml"]);
    let said = Said::from(
        command
            .stdout(full)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap(),
    );
    assert_eq!(said.code, Some(1), "{said:#?}");
    assert!(
        said.err.contains("cannot write the output") && said.err.contains("hint:"),
        "{said:#?}"
    );
    assert_eq!(names().lines().count(), 3);
}

/// Whether a process catches a signal.
fn catches(child: &Child, signal: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    caught.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

/// Interrupts a command that waits; what it said by then.
#[track_caller]
fn interrupted(command: &mut Command, signal: i32) -> Said {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("a command that listens for signals", || {
        catches(&child, signal).then_some(())
    });
    assert!(child.try_wait().unwrap().is_none(), "it does not wait");
    kill(child.id(), signal);
    let ended = eventually("the end of what was interrupted", || {
        child.try_wait().unwrap()
    });
    let (mut out, mut err) = (String::new(), String::new());
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut out)
        .unwrap();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut err)
        .unwrap();
    Said {
        code: ended.code(),
        out,
        err,
    }
}

#[test]
fn ctrl_c_ends_what_waits_in_order_and_leaves_nothing_behind() {
    let ground = Ground::new();
    let rig = ground.rig();
    let before = ground.everything();
    let pod = format!("pod/{}", ground.pod);
    let looks: [&[&str]; 8] = [
        &["get", "pods", "-w"],
        &["get", "events", "-w"],
        &["events", "-w"],
        &["logs", "-f", &pod],
        &["wait", "rc/hello", "--for", "delete", "--timeout", "10m"],
        &["wait", "rc/none", "--for", "create", "--timeout", "10m"],
        &["diff", "-f", "-"],
        &["get", &pod, "-w", "-o", "json"],
    ];
    for signal in [SIGINT, SIGTERM] {
        for arguments in looks {
            let said = interrupted(&mut rig.command(arguments), signal);
            assert_eq!(said.code, Some(130), "{arguments:?}: {said:#?}");
            assert_eq!(said.err, "", "{arguments:?}");
        }
        // What changes something says how far it came.
        let orders: [&[&str]; 2] = [&["apply", "-f", "-"], &["delete", "-f", "-"]];
        for arguments in orders {
            let said = interrupted(&mut rig.command(arguments), signal);
            assert_eq!(said.code, Some(130), "{arguments:?}: {said:#?}");
            assert!(
                said.err.contains("interrupted") && said.err.contains("hint:"),
                "{said:#?}"
            );
        }
    }
    // The terminal is the editor's: what is typed there ends nothing else.
    // A shell may stand between the editor and platctrl.
    let editor = rig.write(
        "editor",
        "#!/bin/sh\npid=$PPID\ncase \"$(readlink /proc/$pid/exe)\" in\n*/platctrl) ;;\n*) pid=$(cut -d' ' -f4 /proc/$pid/stat) ;;\nesac\nkill -INT $pid || exit 1\nsed -i 's/maxPerNode:.*/maxPerNode: 9/' \"$1\"\n",
    );
    fs::set_permissions(&editor, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(ground.everything(), before);
    let mut edit = rig.command(&["edit", "rc/help"]);
    let said = Said::from(
        edit.env("EDITOR", &editor)
            .env("TMPDIR", rig.path(""))
            .output()
            .unwrap(),
    );
    assert_eq!(said.out, "replicationcontroller/help edited\n", "{said:#?}");
    // A backup that is interrupted is none, and its file is gone.
    let left: Vec<_> = fs::read_dir(rig.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("unfinished") || name.starts_with("platctrl-edit-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn without_a_terminal_nothing_asks_and_nothing_is_drawn() {
    let ground = Ground::new();
    let rig = ground.rig();
    let mut command = rig.command(&["edit", "rc/hello"]);
    for name in ["EDITOR", "VISUAL"] {
        command.env_remove(name);
    }
    Said::from(command.output().unwrap()).fails(2, &["no terminal", "hint:"]);
    rig.cli(&["uninstall"]).fails(2, &["say --yes", "hint:"]);
    let objects = ground.objects();
    // `is_told` looks at each for what only a terminal understands.
    for row in ROWS.iter().filter(|row| row.does == Does::Asks) {
        let arguments = ground.arguments(row, &objects);
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let said = rig.cli(&words);
        is_told(row, &said);
        assert!(row.well.contains(&said.code.unwrap()), "{row:?}: {said:#?}");
    }
}
