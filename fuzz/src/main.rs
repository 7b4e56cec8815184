//! Runs the fuzz targets on mutations of their seeds, with any compiler.
//!
//! Each target runs in a process of its own, so that one that ends by a signal, or does not end,
//! is a finding like a panic is. A finding is written to `target/fuzz/`, with how to repeat it.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use platctrl_fuzz::{Mutator, TARGETS, Target, find, seeds};

/// An input that takes longer than this is a finding.
const TOO_LONG: Duration = Duration::from_secs(20);

/// Feeds hostile input to everything that reads what others wrote.
#[derive(Debug, Parser)]
struct Arguments {
    /// Targets; all of them unless named
    targets: Vec<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// What the inputs follow from; the time unless given
    #[arg(long)]
    seed: Option<u64>,
    /// Run this input once on the one target named
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// List the targets
    #[arg(long)]
    list: bool,
    /// Run in this process, keeping the current input here
    #[arg(long, hide = true)]
    keep: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        for target in TARGETS {
            println!("{}", target.name);
        }
        return ExitCode::SUCCESS;
    }
    let mut chosen = Vec::new();
    for name in &arguments.targets {
        let Some(target) = find(name) else {
            eprintln!("there is no target `{name}`; --list prints them");
            return ExitCode::from(2);
        };
        chosen.push(target);
    }
    if chosen.is_empty() {
        chosen = TARGETS.to_vec();
    }
    let outcome = match (&arguments.input, &arguments.keep, chosen.as_slice()) {
        (Some(file), _, [target]) => std::fs::read(file).map(|input| {
            (target.run)(&input);
            ExitCode::SUCCESS
        }),
        (Some(_), _, _) => {
            eprintln!("--input is about one target: name it");
            return ExitCode::from(2);
        }
        (None, Some(keep), [target]) => run(target, &arguments, keep),
        (None, _, _) => run_each(&chosen, &arguments),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

/// Runs each target in a process of its own.
fn run_each(targets: &[Target], arguments: &Arguments) -> std::io::Result<ExitCode> {
    let seed = arguments.seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(0, |since| since.as_secs())
    });
    let findings = PathBuf::from("target/fuzz");
    std::fs::create_dir_all(&findings)?;
    let mut found = 0;
    for target in targets {
        let keep = findings.join(format!("{}.current", target.name));
        let status = Command::new(std::env::current_exe()?)
            .arg(target.name)
            .arg("--seconds")
            .arg(arguments.seconds.to_string())
            .arg("--seed")
            .arg(seed.to_string())
            .arg("--keep")
            .arg(&keep)
            .status()?;
        if status.success() {
            std::fs::remove_file(&keep)?;
            continue;
        }
        found += 1;
        let finding = findings.join(format!("{}-{seed}", target.name));
        std::fs::rename(&keep, &finding)?;
        eprintln!(
            "{}: {status}; repeat it with: cargo run -p platctrl-fuzz -- {} --input {}",
            target.name,
            target.name,
            finding.display()
        );
    }
    if found > 0 {
        eprintln!("{found} of {} targets found something", targets.len());
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends the process when one input takes too long.
fn watch_over(started: &'static AtomicU64, origin: Instant) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let since = Duration::from_millis(started.load(Ordering::Relaxed));
            if origin.elapsed().saturating_sub(since) > TOO_LONG {
                eprintln!("an input took longer than {TOO_LONG:?}");
                std::process::exit(3);
            }
        }
    });
}

/// Runs one target here. What it is fed is in the file `keep` before it is fed.
fn run(target: &Target, arguments: &Arguments, keep: &Path) -> std::io::Result<ExitCode> {
    static STARTED: AtomicU64 = AtomicU64::new(0);
    let seeds = seeds(target.name)?;
    let seed = arguments.seed.unwrap_or(0);
    let mut mutator = Mutator::new(seed, target.longest, target.words);
    let origin = Instant::now();
    watch_over(&STARTED, origin);
    let end = Duration::from_secs(arguments.seconds);
    let mut kept = std::fs::File::create(keep)?;
    let mut inputs = 0_u64;
    let mut queue = seeds.iter().map(|(_, seed)| seed.clone());
    while origin.elapsed() < end {
        let input = queue.next().unwrap_or_else(|| mutator.input(&seeds));
        rewrite(&mut kept, &input)?;
        let now = u64::try_from(origin.elapsed().as_millis()).unwrap_or(u64::MAX);
        STARTED.store(now, Ordering::Relaxed);
        let run = AssertUnwindSafe(|| (target.run)(&input));
        if catch_unwind(run).is_err() {
            return Ok(ExitCode::FAILURE);
        }
        inputs += 1;
    }
    println!("{}: {inputs} inputs in {:?}", target.name, origin.elapsed());
    Ok(ExitCode::SUCCESS)
}

fn rewrite(file: &mut std::fs::File, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Seek as _;
    file.rewind()?;
    file.write_all(bytes)?;
    file.set_len(bytes.len() as u64)
}
