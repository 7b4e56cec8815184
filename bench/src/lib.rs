//! What the bench targets share: runs taken in turns, medians, and the lines that are printed.
//!
//! A machine's speed drifts by half within an hour, so a figure is a ratio of two sides measured
//! in turns (A B A B) in the same minute, of medians. Both sides' runs are printed before the
//! ratio. Both must have done the same work: where they have not ([`same`]), the target ends with
//! exit code 1. A missed goal is printed and does not fail the target: whoever reads it judges
//! whether the machine was quiet.

pub mod etcd;
pub mod queue;

use std::fmt::Debug;
use std::process::ExitCode;
use std::time::Duration;

// Where the queue's own source, which `queue` compiles, looks for its neighbours.
use platctrl_framework::{environment, store};

/// What can go wrong in a bench target; it ends the target.
pub type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

/// Prints one figure with its goal: `RATIO <name> <value> goal >=N|<=N`.
pub fn ratio(name: &str, value: f64, goal: Goal) {
    let (sign, bound) = match goal {
        Goal::AtLeast(bound) => (">=", bound),
        Goal::AtMost(bound) => ("<=", bound),
    };
    println!("RATIO {name} {} goal {sign}{bound}", short(value));
}

/// Prints the runs of one side and returns their median.
pub fn raw(name: &str, unit: &str, runs: &[f64]) -> f64 {
    let runs = sorted(runs);
    let middle = percentile(&runs, 0.5);
    if let [first, .., last] = runs.as_slice() {
        let (low, high, n) = (short(*first), short(*last), runs.len());
        println!("{name:<52} {} {unit} [{low}..{high}] n={n}", short(middle));
    } else {
        println!("{name:<52} {} {unit}", short(middle));
    }
    middle
}

/// Enough digits to compare, no more.
fn short(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 1_000.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 0.1 => 2,
        _ => 4,
    };
    format!("{value:.digits$}")
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

/// The value that a share of the values, which are sorted, do not exceed; NaN of none.
#[must_use]
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted
        .get(place.saturating_sub(1))
        .copied()
        .unwrap_or(f64::NAN)
}

/// The median; NaN of none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    percentile(&sorted(values), 0.5)
}

/// The 99th percentile; NaN of none.
#[must_use]
pub fn p99(values: &[f64]) -> f64 {
    percentile(&sorted(values), 0.99)
}

/// That two sides did the same work.
///
/// # Errors
/// When they did not, which makes their ratio worthless.
pub fn same<T: PartialEq + Debug>(what: &str, one: &T, other: &T) -> Result<()> {
    if one == other {
        return Ok(());
    }
    Err(format!("unequal work: {what} is {one:?} on one side and {other:?} on the other").into())
}

/// How often each side is measured: five times unless `PLATCTRL_BENCH_RUNS` says otherwise.
#[must_use]
pub fn runs() -> usize {
    let runs = std::env::var("PLATCTRL_BENCH_RUNS").ok();
    runs.and_then(|runs| runs.parse().ok()).unwrap_or(5).max(1)
}

/// Whether `PLATCTRL_BENCH_SCALE=full` asks for the sizes of the goals where they take minutes.
#[must_use]
pub fn full_scale() -> bool {
    std::env::var_os("PLATCTRL_BENCH_SCALE").is_some_and(|scale| scale == "full")
}

/// The body of a target: names the machine's state before and after, and turns an error into exit
/// code 1.
pub fn target(name: &str, body: impl FnOnce() -> Result<()>) -> ExitCode {
    println!("# {name}: {}", machine());
    let outcome = body();
    println!("# {name}: {}", machine());
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Cores, load and stolen time: what tells a quiet machine from a shared one.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<&str> = load.split(' ').take(3).collect();
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<u64> = stat
        .lines()
        .next()
        .map(|line| {
            line.split_whitespace()
                .skip(1)
                .flat_map(str::parse)
                .collect()
        })
        .unwrap_or_default();
    let steal = ticks.get(7).copied().unwrap_or(0);
    format!(
        "{cores} cores, load {}, steal ticks {steal}",
        load.join(" ")
    )
}

/// Processor time of this process.
#[must_use]
pub fn process_cpu() -> Duration {
    clock(rustix::time::ClockId::ProcessCPUTime)
}

/// Processor time of the calling thread.
#[must_use]
pub fn thread_cpu() -> Duration {
    clock(rustix::time::ClockId::ThreadCPUTime)
}

fn clock(id: rustix::time::ClockId) -> Duration {
    let time = rustix::time::clock_gettime(id);
    Duration::try_from(time).unwrap_or_default()
}

/// A line such as `Rss:   123 kB` of a file below `/proc`, in bytes.
///
/// # Errors
/// The process is gone, or the file has no such line.
pub fn proc_bytes(file: &str, field: &str) -> Result<u64> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.split_whitespace().next());
    let number: u64 = number
        .ok_or_else(|| format!("{file} has no {field}"))?
        .parse()?;
    Ok(number * 1024)
}

/// A hash that is the same in every run: FNV-1a.
#[must_use]
pub fn hash(parts: &[&[u8]]) -> u64 {
    let bytes = parts.iter().copied().flatten();
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// Text of `length` lower-case letters and digits, the same for the same seed.
#[must_use]
pub fn text(seed: u64, length: usize) -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz012345";
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = String::with_capacity(length + 12);
    while text.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let letter = |shift: u32| char::from(LETTERS[(state >> shift) as usize & 31]);
        text.extend((0..12).map(|n| letter(n * 5)));
    }
    text.truncate(length);
    text
}
