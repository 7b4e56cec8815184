//! Output: rotation, floods, long lines, full disks, killed shims.

use std::fs;
use std::path::Path;
use std::time::Duration;

use platctrl_shim_lib::{Phase, Request, RestartPolicy};

use crate::rig::{Rig, SOON, alive, pid_in, running, wait_for};

fn total(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum()
}

fn run_to_end(rig: &mut Rig) {
    rig.spec.restart.policy = RestartPolicy::Never;
    let mut client = rig.spawn().unwrap();
    client
        .wait_until(SOON, |state| state.phase == Phase::Exited)
        .unwrap();
    client.request(Request::Quit).unwrap(); // all output is in the log once it has left
    let shim = rig.state().shim.unwrap();
    wait_for("the shim to leave", || !alive(shim));
}

#[test]
fn both_streams_reach_the_log_in_order_and_byte_for_byte() {
    let mut rig = Rig::new("echo out; echo err >&2; printf 'a\\000b\\377\\033[31m\\n'; echo last");
    run_to_end(&mut rig);
    let log = fs::read(rig.spec.log.dir.join("web.log")).unwrap();
    assert_eq!(log, b"out\nerr\na\0b\xff\x1b[31m\nlast\n");
}

#[test]
fn output_keeps_to_its_files_and_to_whole_lines() {
    let mut rig = Rig::new("i=0; while [ $i -lt 2000 ]; do echo line number $i; i=$((i+1)); done");
    (rig.spec.log.max_bytes, rig.spec.log.max_files) = (4096, 3);
    run_to_end(&mut rig);
    let names = ["web.log.2", "web.log.1", "web.log"];
    assert_eq!(fs::read_dir(&rig.spec.log.dir).unwrap().count(), 3);
    let text: String = names
        .iter()
        .map(|name| fs::read_to_string(rig.spec.log.dir.join(name)).unwrap())
        .inspect(|text| assert!(text.len() <= 4096 && text.ends_with('\n')))
        .collect();
    let numbers: Vec<u32> = text
        .lines()
        .map(|line| line.strip_prefix("line number ").unwrap().parse().unwrap())
        .collect();
    assert_eq!(*numbers.last().unwrap(), 1999);
    assert!(
        numbers.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "no line is missing"
    );
}

#[test]
fn a_flood_without_a_newline_is_kept_within_bounds() {
    // A line of a GiB.
    let mut rig = Rig::new("head -c 1073741824 /dev/zero; echo; echo the end");
    (rig.spec.log.max_bytes, rig.spec.log.max_files) = (1 << 20, 4);
    run_to_end(&mut rig);
    assert!(rig.log().ends_with("\nthe end\n"));
    let total = total(&rig.spec.log.dir);
    assert!((3 << 20..=4 << 20).contains(&total), "{total}");
    assert_eq!(rig.state().log_dropped, 0);
}

#[test]
fn a_flood_of_lines_is_kept_within_bounds_and_to_whole_lines() {
    // As fast as it can: hundreds of megabytes a second.
    let mut rig = Rig::new("yes 'one of very many lines' | head -n 10000000; echo the end");
    (rig.spec.log.max_bytes, rig.spec.log.max_files) = (1 << 20, 4);
    run_to_end(&mut rig);
    let total = total(&rig.spec.log.dir);
    assert!((3 << 20..=4 << 20).contains(&total), "{total}");
    for file in fs::read_dir(&rig.spec.log.dir).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(text.ends_with('\n'));
        let known = |line: &str| ["one of very many lines", "the end"].contains(&line);
        assert!(text.lines().all(known));
    }
    assert!(rig.log().ends_with("\nthe end\n"));
    assert_eq!(rig.state().log_dropped, 0);
}

#[test]
fn a_full_disk_loses_output_tells_how_much_and_never_stops_the_launchable() {
    let mut rig = Rig::new(
        "echo begin; head -c 200000 /dev/zero; echo $$ > $OUT/wrote; \
         while [ ! -e $OUT/go ]; do sleep 0.01; done; echo after; exec sleep 1000",
    );
    if !rig.mount(&rig.spec.log.dir.clone(), "64k") {
        return;
    }
    let (mut client, state) = rig.run();
    pid_in(&rig.out("wrote"));
    let full = client
        .wait_until(SOON, |state| state.message.contains("output is lost"))
        .unwrap();
    assert!(full.message.contains("No space left"), "{}", full.message);
    assert_eq!(full.child, state.child, "it runs on");
    let log = rig.spec.log.dir.join("web.log");
    assert_eq!(
        fs::metadata(&log).unwrap().len(),
        64 << 10,
        "the disk is full"
    );

    fs::remove_file(&log).unwrap();
    fs::write(rig.out("go"), "").unwrap();
    wait_for("the log to go on", || rig.log().ends_with("after\n"));
    let lost = client.status().unwrap().log_dropped;
    assert!(lost >= 200_000 - (64 << 10), "{lost}");
    let log = rig.log();
    assert!(
        log.starts_with(&format!("[platctrl-shim: {lost} bytes of output lost: ")),
        "{log}"
    );
    assert_eq!(client.status().unwrap().message, "");
}

#[test]
fn a_missing_log_directory_does_not_keep_it_from_running() {
    let mut rig = Rig::new("echo lost; exec sleep 1000");
    rig.spec.log.dir = rig.root().join("nowhere");
    let (mut client, _) = rig.run();
    let state = client
        .wait_until(SOON, |state| state.log_dropped > 0)
        .unwrap();
    assert!(
        state.message.contains("output is lost"),
        "{}",
        state.message
    );
    fs::create_dir(&rig.spec.log.dir).unwrap();
    wait_for("what was lost to be told", || {
        rig.log().contains("5 bytes of output lost")
    });
}

#[test]
fn without_a_shim_a_launchable_waits_and_loses_nothing() {
    let mut rig = Rig::new(
        "trap '' TERM; while [ ! -e $OUT/go ]; do sleep 0.01; done; \
         echo $$ > $OUT/went; i=0; while [ $i -lt 40000 ]; do echo $i; i=$((i+1)); done; \
         echo $$ > $OUT/finished; exec sleep 1000",
    );
    rig.spec.restart.initial = Duration::from_secs(100);
    let (_, state) = rig.run();
    rig.kill_shim();
    fs::write(rig.out("go"), "").unwrap();
    pid_in(&rig.out("went"));
    // It fills the FIFO and waits there: asleep in a write to a pipe.
    let child = state.child.unwrap();
    wait_for("it to wait for a reader", || {
        let wchan = fs::read_to_string(format!("/proc/{}/wchan", child.pid)).unwrap();
        let syscall = fs::read_to_string(format!("/proc/{}/syscall", child.pid));
        wchan.contains("pipe_write") || syscall.is_ok_and(|text| text.starts_with("1 0x1 "))
    });
    assert!(alive(child) && !rig.out("finished").exists());
    // What it had written comes into the log with the next shim.
    let mut client = rig.spawn().unwrap();
    running(&mut client);
    wait_for("the lines of the old copy", || {
        rig.log().lines().count() > 1000
    });
    let log = rig.log();
    let kept = log.lines().take(1000).enumerate();
    assert!(kept.into_iter().all(|(i, line)| line == i.to_string()));
}
