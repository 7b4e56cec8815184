//! What the machine is and how it fares: facts, and conditions that change seldom.
//!
//! Readings are taken from the kernel; what they mean is decided over plain data, with a margin
//! between the beginning and the end of a pressure, so that a node's record is not written each
//! time a number moves.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use platctrl_framework::model::{Condition, ConditionStatus};
use platctrl_kinds::node_condition::{CLOCK_SKEW, DISK_PRESSURE, MEMORY_PRESSURE};

/// Below these shares of free space, file names and memory there is pressure, until above the
/// second.
const SPACE: [f64; 2] = [0.05, 0.08];
const INODES: [f64; 2] = [0.05, 0.08];
const MEMORY: [f64; 2] = [0.05, 0.10];
/// A clock that moved by more than this beside the machine's own counter was set.
const JUMP: Duration = Duration::from_secs(1);
/// A clock that differs from that of the controllers by more than this is wrong.
const SKEW: Duration = Duration::from_secs(5);
/// A clock that was set is told for so long.
const TOLD: Duration = Duration::from_secs(600);

/// What a full disk is called.
const FULL_DISK: &str =
    "less than 5 % of the space or of the file names is left where pods are kept";

/// A share of something that is left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Left {
    free: u64,
    all: u64,
}

impl Left {
    fn share(self) -> f64 {
        if self.all == 0 {
            return 1.0;
        }
        self.free as f64 / self.all as f64
    }
}

/// What the kernel says at one moment. What it does not say is None.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Reading {
    space: Option<Left>,
    inodes: Option<Left>,
    memory: Option<Left>,
    /// What the wall clock says, and a counter that nobody sets.
    wall: Timestamp,
    counter: Duration,
}

impl Reading {
    /// Reads; `data_dir` is where pods are.
    pub(super) fn take(data_dir: &Path, wall: Timestamp, counter: Duration) -> Self {
        let disk = rustix::fs::statvfs(data_dir).ok();
        Self {
            space: disk.as_ref().map(|disk| Left {
                free: disk.f_bavail.saturating_mul(disk.f_frsize),
                all: disk.f_blocks.saturating_mul(disk.f_frsize),
            }),
            // Some file systems make them as they are needed, and say 0.
            inodes: disk.filter(|disk| disk.f_files > 0).map(|disk| Left {
                free: disk.f_favail,
                all: disk.f_files,
            }),
            memory: memory(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default()),
            wall,
            counter,
        }
    }
}

fn memory(meminfo: &str) -> Option<Left> {
    let field = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some(Left {
        free: field("MemAvailable:")?,
        all: field("MemTotal:")?,
    })
}

/// How the machine fares, as it was judged last.
#[derive(Clone, Debug, Default)]
pub(super) struct Judgement {
    disk: bool,
    memory: bool,
    before: Option<(Timestamp, Duration)>,
    /// When the clock was set, and by how much.
    jumped: Option<(Duration, SignedDuration)>,
    /// By how much it differs from the controllers'.
    skew: Option<SignedDuration>,
}

impl Judgement {
    /// Takes a reading in.
    pub(super) fn judge(&mut self, reading: &Reading) {
        let low = |left: Option<Left>, bounds: [f64; 2], was: bool| {
            left.is_some_and(|left| left.share() < bounds[usize::from(was)])
        };
        self.disk = low(reading.space, SPACE, self.disk) || low(reading.inodes, INODES, self.disk);
        self.memory = low(reading.memory, MEMORY, self.memory);
        if let Some((wall, counter)) = self.before {
            let passed = SignedDuration::try_from(reading.counter.saturating_sub(counter));
            let moved = reading.wall.duration_since(wall) - passed.unwrap_or_default();
            if moved.unsigned_abs() > JUMP {
                self.jumped = Some((reading.counter, moved));
            }
        }
        let is_old = |at: Duration| reading.counter.saturating_sub(at) > TOLD;
        if self.jumped.is_some_and(|(at, _)| is_old(at)) {
            self.jumped = None;
        }
        self.before = Some((reading.wall, reading.counter));
    }

    /// A link of the chain was made at `at` by the clock of who made it, at most `ago` ago.
    pub(super) fn compare_clock(&mut self, at: Timestamp, ago: Duration, now: Timestamp) {
        let age = now.duration_since(at);
        let oldest = SignedDuration::try_from(ago + SKEW).unwrap_or(SignedDuration::MAX);
        let newest = -SignedDuration::try_from(SKEW).unwrap_or_default();
        self.skew = (age > oldest || age < newest).then_some(age);
    }

    /// Why no further pods are to be taken in.
    pub(super) fn full(&self) -> Option<String> {
        self.disk
            .then(|| format!("{FULL_DISK}; it is not begun before there is room"))
    }

    pub(super) fn conditions(&self) -> [Condition; 3] {
        let condition = |kind: &str, is: bool, reasons: [&str; 2], message: String| {
            let status = match is {
                true => ConditionStatus::True,
                false => ConditionStatus::False,
            };
            Condition::new(kind, status, reasons[usize::from(is)], message)
        };
        let text = |is: bool, text: &str| if is { text.to_owned() } else { String::new() };
        let disk = text(
            self.disk,
            &format!("{FULL_DISK}: free some, or move the data directory"),
        );
        let memory = text(
            self.memory,
            "less than 5 % of the memory is available: the kernel may end programs soon",
        );
        let clock = match (self.jumped, self.skew) {
            (Some((_, by)), _) => format!("the clock was set by {by:#}"),
            (None, Some(by)) => format!(
                "the clock differs from that of the controllers by about {by:#}: times in reports are wrong, and certificates may be refused"
            ),
            (None, None) => String::new(),
        };
        let skewed = self.jumped.is_some() || self.skew.is_some();
        let reasons = if self.jumped.is_some() {
            ["Steady", "Jumped"]
        } else {
            ["Steady", "Differs"]
        };
        [
            condition(
                DISK_PRESSURE,
                self.disk,
                ["EnoughSpace", "LittleSpace"],
                disk,
            ),
            condition(
                MEMORY_PRESSURE,
                self.memory,
                ["EnoughMemory", "LittleMemory"],
                memory,
            ),
            condition(CLOCK_SKEW, skewed, reasons, clock),
        ]
    }
}

/// Facts about the machine. A selector may name them; nothing is trusted for them.
pub(super) fn facts() -> BTreeMap<String, String> {
    let uname = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = rustix::system::sysinfo();
    let bytes = memory.totalram.saturating_mul(u64::from(memory.mem_unit));
    let mut facts = BTreeMap::from([
        ("attr.os".into(), std::env::consts::OS.into()),
        ("attr.arch".into(), std::env::consts::ARCH.into()),
        ("attr.kernel".into(), text(uname.release())),
        ("attr.hostname".into(), text(uname.nodename())),
        ("attr.cpus".into(), cpus.to_string()),
        ("attr.memory".into(), bytes.to_string()),
        ("attr.cgroup".into(), cgroups().into()),
    ]);
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    for (name, field) in [
        ("attr.distribution", "ID="),
        ("attr.release", "VERSION_ID="),
    ] {
        let value = release.lines().find_map(|line| line.strip_prefix(field));
        // It is for people and selectors, and of whoever made the machine.
        let value = value.map(|value| value.trim_matches('"')).filter(|value| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            !value.is_empty() && value.len() <= 63 && value.bytes().all(plain)
        });
        facts.extend(value.map(|value| (name.into(), value.into())));
    }
    facts
}

/// Which cgroups there are: `v2`, `v1`, or `hybrid` when both.
fn cgroups() -> &'static str {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let has = |kind: &str| {
        let mut kinds = mounts.lines().filter_map(|line| line.split(' ').nth(2));
        kinds.any(|found| found == kind)
    };
    match (has("cgroup2"), has("cgroup")) {
        (true, true) => "hybrid",
        (true, false) => "v2",
        (false, true) => "v1",
        (false, false) => "none",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(second: u64) -> Reading {
        Reading {
            space: Some(Left { free: 50, all: 100 }),
            inodes: Some(Left { free: 50, all: 100 }),
            memory: Some(Left { free: 50, all: 100 }),
            wall: Timestamp::from_second(second.cast_signed()).unwrap(),
            counter: Duration::from_secs(second),
        }
    }

    fn is(judgement: &Judgement, kind: &str) -> bool {
        let conditions = judgement.conditions();
        let found = conditions.iter().find(|it| it.kind == kind).unwrap();
        found.status == ConditionStatus::True
    }

    #[test]
    fn a_pressure_ends_only_when_there_is_a_margin_again() {
        let mut judgement = Judgement::default();
        let mut told = Vec::new();
        for (second, free) in [50, 6, 4, 6, 7, 9, 6].into_iter().enumerate() {
            let left = Some(Left { free, all: 100 });
            judgement.judge(&Reading {
                space: left,
                ..reading(second as u64)
            });
            told.push(is(&judgement, DISK_PRESSURE));
        }
        assert_eq!(told, [false, false, true, true, true, false, false]);
        for inodes in [true, false] {
            let left = |is: bool| Left {
                free: if is { 1 } else { 50 },
                all: 100,
            };
            judgement.judge(&Reading {
                inodes: Some(left(inodes)),
                memory: Some(left(!inodes)),
                ..reading(9)
            });
            assert_eq!(is(&judgement, DISK_PRESSURE), inodes);
            assert_eq!(is(&judgement, MEMORY_PRESSURE), !inodes);
        }
    }

    #[test]
    fn a_clock_that_was_set_is_told_for_a_while() {
        for by in [-3600_i64, 3600] {
            let mut judgement = Judgement::default();
            judgement.judge(&reading(10_000));
            judgement.judge(&reading(10_010));
            assert!(!is(&judgement, CLOCK_SKEW));
            let set = |second: u64| Reading {
                wall: Timestamp::from_second(second.cast_signed() + by).unwrap(),
                ..reading(second)
            };
            judgement.judge(&set(10_020));
            assert!(is(&judgement, CLOCK_SKEW), "{by}");
            judgement.judge(&set(10_500));
            assert!(is(&judgement, CLOCK_SKEW));
            judgement.judge(&set(10_700));
            assert!(!is(&judgement, CLOCK_SKEW));
        }
    }

    #[test]
    fn a_clock_that_differs_from_the_controllers_is_told_until_it_does_not() {
        let mut judgement = Judgement::default();
        let at = Timestamp::from_second(10_000).unwrap();
        let minute = Duration::from_secs(60);
        for (second, differs) in [
            (10_010, false),
            (10_064, false),
            (10_100, true),
            (9_990, true),
            (9_998, false),
        ] {
            judgement.compare_clock(at, minute, Timestamp::from_second(second).unwrap());
            assert_eq!(is(&judgement, CLOCK_SKEW), differs, "{second}");
        }
    }

    #[test]
    fn this_machine_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let reading = Reading::take(dir.path(), Timestamp::now(), Duration::ZERO);
        assert!(
            reading.space.is_some() && reading.memory.is_some(),
            "{reading:?}"
        );
        let facts = facts();
        assert_eq!(facts["attr.os"], "linux");
        assert!(facts["attr.memory"].parse::<u64>().unwrap() > 0);
        assert_eq!(memory("MemTotal: x kB"), None);
    }
}
