//! What a node and its pods use: processor time and memory, as the kernel counts them.
//!
//! Read from files alone, as [`inspect`](crate::inspect) is: also without an agent. The kernel
//! counts time since a group was made; how much is used now is what two looks differ by.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::cgroup::{self, Cgroups, Used};
use crate::layout::{Layout, LayoutError};
use crate::name::PodName;

/// The kernel counts the machine's time in these, whatever it counts in itself.
const TICKS_A_SECOND: u64 = 100;

/// One look.
///
/// ```no_run
/// use platctrl_agent::UsageSample;
///
/// let data_dir = "/var/lib/platctrl".as_ref();
/// let earlier = UsageSample::take(data_dir)?;
/// std::thread::sleep(std::time::Duration::from_secs(1));
/// let usage = UsageSample::take(data_dir)?.since(&earlier);
/// for (pod, used) in &usage.pods {
///     println!("{pod}: {:?} thousandths of a processor", used.cpu_millis);
/// }
/// # Ok::<(), platctrl_agent::LayoutError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageSample {
    /// When, on a clock that only goes forward.
    at: Duration,
    node: Used,
    pods: BTreeMap<PodName, Used>,
}

/// What is used of a machine, or by a pod. What nobody counts there is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Usage {
    /// Thousandths of a processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
    /// Bytes of memory, without files that the kernel can drop at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// What a node and its pods use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeUsage {
    /// The whole machine, whoever uses it.
    pub node: Usage,
    /// What the machine has.
    pub capacity: Usage,
    /// Each pod that is on the node.
    pub pods: BTreeMap<PodName, Usage>,
}

impl UsageSample {
    /// Looks at the machine and at the pods of a data directory. Blocks for well under a
    /// millisecond a pod.
    ///
    /// # Errors
    /// When the data directory cannot be read.
    pub fn take(data_dir: &Path) -> Result<Self, LayoutError> {
        let layout = Layout::open(data_dir)?;
        let cgroups = Cgroups::detect(&cgroup::tag(layout.data_dir()));
        let pods = layout.pods()?.into_iter().map(|name| {
            let used = cgroups.used_by_pod(&name.directory());
            (name, used)
        });
        let pods = pods.collect();
        Ok(Self {
            at: now(),
            node: Used {
                cpu: read("/proc/stat").and_then(|text| busy(&text)),
                memory: read("/proc/meminfo").and_then(|text| {
                    let (all, free) = memory(&text)?;
                    Some(all.saturating_sub(free))
                }),
            },
            pods,
        })
    }

    /// What was used between an earlier look and this one.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> NodeUsage {
        let span = self.at.saturating_sub(earlier.at);
        let none = Used::default();
        let pods = self.pods.iter().map(|(name, now)| {
            let before = earlier.pods.get(name).unwrap_or(&none);
            (name.clone(), usage(before, now, span))
        });
        NodeUsage {
            node: usage(&earlier.node, &self.node, span),
            capacity: capacity(),
            pods: pods.collect(),
        }
    }
}

fn usage(before: &Used, now: &Used, span: Duration) -> Usage {
    let cpu = now.cpu.zip(before.cpu).and_then(|(now, before)| {
        // A group that was made anew counts anew.
        let used = now.checked_sub(before)?.as_micros().saturating_mul(1_000);
        let millis = used.checked_div(span.as_micros())?;
        u64::try_from(millis).ok()
    });
    Usage {
        cpu_millis: cpu,
        memory_bytes: now.memory,
    }
}

fn now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or_default())
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn capacity() -> Usage {
    let cpus = std::thread::available_parallelism().ok();
    Usage {
        cpu_millis: cpus.map(|cpus| (cpus.get() as u64).saturating_mul(1_000)),
        memory_bytes: read("/proc/meminfo").and_then(|text| Some(memory(&text)?.0)),
    }
}

/// The time that all processors were at work: what `/proc/stat` says in its first line, without
/// the time that they waited for work or for a disk.
fn busy(stat: &str) -> Option<Duration> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Option<Vec<u64>> = line
        .split_whitespace()
        .map(|number| number.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; what guests use is in user already.
    let &[user, nice, system, _, _, irq, softirq, ..] = ticks?.as_slice() else {
        return None;
    };
    let ticks = [nice, system, irq, softirq]
        .into_iter()
        .fold(user, u64::saturating_add);
    Some(Duration::from_millis(
        ticks.saturating_mul(1_000 / TICKS_A_SECOND),
    ))
}

/// The machine's memory, and what of it can be had.
fn memory(meminfo: &str) -> Option<(u64, u64)> {
    let field = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kilobytes.saturating_mul(1_024))
    };
    Some((field("MemTotal:")?, field("MemAvailable:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_files_are_read() {
        let stat = "cpu  100 20 30 4000 50 6 7 8 9 10\ncpu0 1 2 3\n";
        assert_eq!(busy(stat), Some(Duration::from_millis(1_630)));
        for wrong in ["", "cpu  1 2 3\n", "cpu  1 2 3 x 5 6 7\n"] {
            assert_eq!(busy(wrong), None, "{wrong:?}");
        }
        let meminfo = "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  400 kB\n";
        assert_eq!(memory(meminfo), Some((1_024_000, 409_600)));
        assert_eq!(memory("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn what_is_used_is_what_two_looks_differ_by() {
        let used = |millis, memory| Used {
            cpu: Some(Duration::from_millis(millis)),
            memory: Some(memory),
        };
        let pod = |name: &str| PodName::new("default", name).unwrap();
        let before = UsageSample {
            at: Duration::from_secs(10),
            node: used(5_000, 1),
            pods: [(pod("a"), used(100, 1)), (pod("again"), used(900, 1))].into(),
        };
        let now = UsageSample {
            at: Duration::from_secs(12),
            node: used(8_000, 7),
            pods: [
                (pod("a"), used(600, 5)),
                (pod("again"), used(3, 6)),
                (pod("new"), used(50, 8)),
                (pod("unknown"), Used::default()),
            ]
            .into(),
        };
        let seen = now.since(&before);
        let usage = |cpu_millis, memory_bytes| Usage {
            cpu_millis,
            memory_bytes,
        };
        assert_eq!(seen.node, usage(Some(1_500), Some(7)));
        let expected = [
            (pod("a"), usage(Some(250), Some(5))),
            (pod("again"), usage(None, Some(6))),
            (pod("new"), usage(None, Some(8))),
            (pod("unknown"), usage(None, None)),
        ];
        assert_eq!(seen.pods, expected.into());
        // No time between two looks says nothing.
        assert_eq!(now.since(&now).node.cpu_millis, None);
    }

    #[test]
    fn a_machine_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        Layout::prepare(dir.path()).unwrap();
        let first = UsageSample::take(dir.path()).unwrap();
        let seen = UsageSample::take(dir.path()).unwrap().since(&first);
        assert!(seen.node.memory_bytes > Some(0) && seen.pods.is_empty());
        assert!(seen.capacity.memory_bytes > seen.node.memory_bytes);
        assert!(seen.capacity.cpu_millis >= Some(1_000));
    }
}
