//! What is drawn on a terminal, and only there: colours, progress, and a roll node by node.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use rustix::termios::{Winsize, tcsetwinsize};

use crate::rig::{Rig, eventually};

/// A command at a terminal of its own.
struct Terminal {
    child: Child,
    /// Everything that it wrote there.
    screen: JoinHandle<String>,
}

impl Terminal {
    fn run(command: &mut Command, columns: u16, rows: u16) -> Self {
        use rustix::fs::{Mode, OFlags};
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let theirs = rustix::fs::open(name.as_c_str(), flags, Mode::empty()).unwrap();
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&theirs, size).unwrap();
        let stdio = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        let child = command
            .env_remove("NO_COLOR")
            .stdin(stdio(&theirs))
            .stdout(stdio(&theirs))
            .stderr(stdio(&theirs))
            .spawn()
            .unwrap();
        // The command keeps ends of it too.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        drop(theirs);
        let screen = std::thread::spawn(move || {
            let (mut ours, mut all) = (File::from(ours), Vec::new());
            let mut piece = [0; 4096];
            // The terminal is gone when nobody has the other end.
            while let Ok(read @ 1..) = ours.read(&mut piece) {
                all.extend_from_slice(&piece[..read]);
            }
            String::from_utf8_lossy(&all).into_owned()
        });
        Self { child, screen }
    }

    /// Its exit code, and everything that was drawn.
    fn end(mut self) -> (Option<i32>, String) {
        let ended = eventually("the end of a command at a terminal", || {
            self.child.try_wait().unwrap()
        });
        (ended.code(), self.screen.join().unwrap())
    }
}

/// The lines that stand on a terminal when everything was drawn.
fn shown(drawn: &str) -> Vec<String> {
    let mut lines: Vec<Vec<char>> = vec![Vec::new()];
    let (mut row, mut column) = (0, 0);
    let mut rest = drawn;
    while let Some(c) = rest.chars().next() {
        if let Some(escape) = rest.strip_prefix("\u{1b}[") {
            let end = escape.find(|c: char| c.is_ascii_alphabetic()).unwrap();
            let (number, what) = (escape[..end].parse().unwrap_or(1), &escape[end..=end]);
            match what {
                "A" => row -= number,
                "K" => lines[row].truncate(column),
                "J" => {
                    lines[row].truncate(column);
                    lines.truncate(row + 1);
                }
                "m" => {}
                other => panic!("nobody knows what {other} is"),
            }
            rest = &escape[end + 1..];
            continue;
        }
        match c {
            '\r' => column = 0,
            '\n' => {
                row += 1;
                if lines.len() == row {
                    lines.push(Vec::new());
                }
            }
            c => {
                let line = &mut lines[row];
                line.resize(line.len().max(column + 1), ' ');
                line[column] = c;
                column += 1;
            }
        }
        rest = &rest[c.len_utf8()..];
    }
    lines
        .into_iter()
        .map(|line| line.into_iter().collect())
        .collect()
}

#[test]
fn a_roll_is_drawn_in_place_on_a_terminal_and_told_line_by_line_on_a_pipe() {
    let rig = Rig::running();
    rig.quickstart(2);
    rig.manifest(2, |text| text.replace("greeting: hi", "greeting: servus"));
    let start = [
        "rollout",
        "start",
        "rc/hello",
        "-f",
        "hello.yaml",
        "--min-healthy-time",
        "100ms",
        "--minimum-healthy",
        "1",
        "--step",
        "1",
    ];
    // Whoever waits is told when it was too long; the roll goes on.
    let late = rig.cli(&[&start[..], &["--wait", "--timeout", "1ms"]].concat());
    assert_eq!(late.code, Some(7), "{late:#?}");
    for part in ["is not done after", "it goes on", "hint:"] {
        assert!(late.err.contains(part), "{late:#?}");
    }

    // At a gate it waits for somebody; the view ends well, and says so.
    let mut status = rig.command(&["rollout", "status", "rc/hello"]);
    let (code, drawn) = Terminal::run(&mut status, 60, 24).end();
    assert_eq!(code, Some(0), "{drawn}");
    let lines = shown(&drawn);
    let all = lines.join("\n");
    assert!(
        lines[0].starts_with("rollingupdate/hello-2: hello to hello-2"),
        "{all}"
    );
    assert!(lines[1].contains("] 1 of 2 moved"), "{all}");
    assert!(lines[2].contains("gate"), "{all}");
    let node = lines
        .iter()
        .find(|line| line.starts_with(&rig.app))
        .unwrap();
    // Both pods are on the one node.
    assert!(node.contains("1 old, 1 healthy"), "{all}");
    assert!(lines.iter().all(|line| line.chars().count() < 60), "{all}");
    // Nothing is left of what was drawn before.
    assert_eq!(
        lines
            .iter()
            .filter(|line| line.contains("] 1 of 2 moved"))
            .count(),
        1,
        "{all}"
    );

    // On a pipe each change is a line.
    rig.cli(&["rollout", "promote", "rc/hello"]).ok();
    let said = rig.cli(&["rollout", "status", "rc/hello"]).ok();
    assert!(!said.contains('\u{1b}'), "{said}");
    assert!(said.contains("2 of 2 moved; complete"), "{said}");

    // One that cannot work says on which node, and why; the exit code says that it failed.
    rig.script_artifact("broken", "#!/bin/sh\nexec sleep 600\n");
    let said = rig.cli(&[
        "rollout",
        "start",
        "rc/hello-2",
        "--location",
        "broken.tar.gz",
        "--minimum-healthy",
        "1",
        "--min-healthy-time",
        "0s",
        "--progress-deadline",
        "15s",
        "--wait",
    ]);
    assert_eq!(said.code, Some(1), "{said:#?}");
    assert!(
        said.err.contains("is paused because it failed") && said.err.contains("hint:"),
        "{said:#?}"
    );
    let of_node = format!("node/{}: pod/", rig.app);
    let told = |stage: &str| {
        let mut lines = said.out.lines();
        lines.any(|line| line.starts_with(&of_node) && line.contains(stage))
    };
    assert!(told(" installing: ") || told(" failed: "), "{said:#?}");
}

#[test]
fn colours_and_progress_are_for_terminals_alone() {
    let mut rig = Rig::new();
    // Large enough that sending it takes more than one piece.
    rig.artifact("hello", |dir| {
        let mut noise = vec![0; 6 << 20];
        File::open("/dev/urandom")
            .unwrap()
            .read_exact(&mut noise)
            .unwrap();
        std::fs::write(dir.join("noise"), noise).unwrap();
        std::fs::write(dir.join("launch"), "#!/bin/sh\nexec sleep 600\n").unwrap();
        std::fs::set_permissions(
            dir.join("launch"),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
    });
    rig.manifest(0, |text| text);
    rig.up();
    let diff = ["diff", "-f", "hello.yaml"];
    let (code, drawn) = Terminal::run(&mut rig.command(&diff), 100, 24).end();
    assert_eq!(code, Some(1), "{drawn}");
    assert!(drawn.contains("\u{1b}[32m+"), "{drawn}");
    assert!(!rig.cli(&diff).out.contains('\u{1b}'));

    let (code, drawn) =
        Terminal::run(&mut rig.command(&["apply", "-f", "hello.yaml"]), 100, 24).end();
    assert_eq!(code, Some(0), "{drawn}");
    assert!(
        drawn.contains("uploading") && drawn.contains(" MiB of "),
        "{drawn}"
    );
    // The bar is gone when the work is done.
    let left = shown(&drawn);
    assert_eq!(left[0], "replicationcontroller/hello created", "{left:?}");

    let (code, drawn) =
        Terminal::run(&mut rig.command(&["store", "backup", "saved"]), 100, 24).end();
    assert_eq!(code, Some(0), "{drawn}");
    assert!(drawn.contains("saving the store"), "{drawn}");
    let quiet = rig.cli(&["store", "backup", "saved-too"]);
    assert_eq!(quiet.err, "", "{quiet:#?}");
    quiet.ok();
}
