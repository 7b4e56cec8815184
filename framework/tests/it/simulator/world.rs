//! Runs of a sound controller.

use std::path::Path;
use std::process::Command;

use super::simulation;

const MARK: &str = "=== the trace ===";

/// Prints the trace, too: the test below runs this one in processes of its own and reads it.
#[test]
fn a_schedule_is_replayed_with_its_trace() {
    let run = simulation().replay("seed=7 jitter crash-after@3 hide@8:13");
    let trace = run.unwrap().trace;
    assert!(trace.lines().count() > 50, "{trace}");
    println!("{MARK}\n{trace}{MARK}");
}

#[test]
fn the_same_seed_gives_the_same_trace_byte_for_byte() {
    let one = simulation().run(7).unwrap();
    assert_eq!(one.trace, simulation().run(7).unwrap().trace);
    assert_ne!(one.trace, simulation().run(8).unwrap().trace);
}

#[test]
fn the_same_schedule_gives_the_same_trace_in_another_process() {
    let trace = || {
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "simulator::world::a_schedule_is_replayed_with_its_trace",
                "--nocapture",
            ])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split(MARK)
            .nth(1)
            .expect("a trace is printed")
            .to_owned()
    };
    let one = trace();
    assert_eq!(one, trace());
}

#[test]
fn a_sound_controller_passes_everything_that_can_go_wrong_at_each_write() {
    let explored = simulation().exhaustive().unwrap();
    assert!(
        explored.writes >= 20 && explored.runs > 4 * explored.writes,
        "{explored:?}"
    );
    assert_eq!(
        explored.runs, explored.faults,
        "everything planned did happen"
    );
}

#[test]
fn a_sound_controller_passes_what_is_drawn() {
    let explored = simulation().random(0..40).unwrap();
    assert!(explored.faults > 80, "{explored:?}");
}

/// `tokio::select!` takes its branches in random order unless it is told not to.
#[test]
fn no_select_in_this_crate_follows_chance() {
    let mut directories = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut selects = 0;
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for rest in text.split("tokio::select! {").skip(1) {
                selects += 1;
                let line = rest.trim_start().lines().next().unwrap_or_default();
                assert_eq!(line, "biased;", "{}: {line}", path.display());
            }
        }
    }
    assert!(selects > 10, "only {selects} were found");
}
