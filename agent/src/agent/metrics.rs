//! What an agent tells Prometheus beside its runtime: its pods, what they ask for, and what the
//! process itself costs. Read at each scrape from what the workers told last.

use std::collections::BTreeMap;
use std::fmt;

use platctrl_framework::observe::{Metrics, Registry};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::AgentHandle;
use crate::report::Report;

/// The phases that each have their line, also while no pod is in one.
const PHASES: [&str; 8] = [
    "Pending",
    "Fetching",
    "Installing",
    "Starting",
    "Running",
    "Stopping",
    "Succeeded",
    "Failed",
];

impl AgentHandle {
    /// The media type of [`metrics`](Self::metrics).
    pub const METRICS_TYPE: &str = Metrics::CONTENT_TYPE;

    /// The metrics of the agent and its runtime, in the OpenMetrics text format.
    #[must_use]
    pub fn metrics(&self) -> String {
        let mut registry = Registry::default();
        let runtime = Metrics::new().runtime(&self.runtime);
        registry.register_collector(Box::new(runtime));
        registry.register_collector(Box::new(Pods(self.clone())));
        let mut text = String::new();
        // A text takes whatever is written to it.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }
}

#[derive(Debug)]
struct Pods(AgentHandle);

struct Page<'e>(DescriptorEncoder<'e>);

impl Page<'_> {
    fn gauge<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, f64)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// One that has no labels.
    fn number(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let descriptor = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge);
        descriptor?.encode_gauge(&value)
    }

    fn counter(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        family.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }
}

impl Collector for Pods {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let reports = self.0.reports();
        let mut page = Page(encoder);
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        page.gauge(
            "platctrl_agent_info",
            "The agent's version",
            [(version, 1.0)],
        )?;
        let away = self.0.waits_for().is_some();
        page.number(
            "platctrl_agent_takes_orders",
            "Whether the agent takes orders: the store is there, and the right one",
            f64::from(u8::from(!away)),
        )?;
        let count = |is: &dyn Fn(&Report) -> bool| {
            reports.iter().filter(|report| is(report)).count() as f64
        };
        let phases = PHASES.map(|phase| {
            let pods = count(&|report: &Report| report.phase.as_str() == phase);
            ([("phase", phase)], pods)
        });
        page.gauge("platctrl_agent_pods", "Pods on the node, by phase", phases)?;
        page.number(
            "platctrl_agent_pods_ready",
            "Pods that can do their work",
            count(&Report::is_ready),
        )?;
        page.number(
            "platctrl_agent_restart_requests",
            "Pods that ask for a restart which nobody has granted",
            count(&|report| report.status.restart_request.is_some()),
        )?;
        let mut held: BTreeMap<&str, f64> = BTreeMap::new();
        for report in &reports {
            if let Some(condition) = report.condition(platctrl_kinds::condition::HELD) {
                *held.entry(&condition.reason).or_default() += 1.0;
            }
        }
        let held = held
            .into_iter()
            .map(|(reason, pods)| ([("reason", reason)], pods));
        page.gauge(
            "platctrl_agent_pods_held",
            "Pods for which something is not done, for safety",
            held.collect::<Vec<_>>(),
        )?;
        page.number(
            "platctrl_agent_program_restarts",
            "How often programs of the present pods were started again",
            reports.iter().map(|it| it.status.restarts).sum::<u64>() as f64,
        )?;
        let Some(process) = Process::read() else {
            return Ok(());
        };
        page.number(
            "process_resident_memory_bytes",
            "Memory that the process has in use",
            process.resident,
        )?;
        page.number(
            "process_open_fds",
            "Files that the process has open",
            process.files,
        )?;
        page.counter(
            "process_cpu_seconds",
            "Processor time of the process",
            process.seconds,
        )
    }
}

/// What this process costs.
struct Process {
    resident: f64,
    files: f64,
    seconds: f64,
}

impl Process {
    fn read() -> Option<Self> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kibibytes: u32 = line.split_whitespace().next()?.parse().ok()?;
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Some(Self {
            resident: f64::from(kibibytes) * 1024.0,
            files: std::fs::read_dir("/proc/self/fd").ok()?.count() as f64,
            seconds: time.tv_sec as f64 + time.tv_nsec as f64 / 1e9,
        })
    }
}

#[cfg(test)]
mod tests {
    /// What agents tell of themselves is in the book, by name.
    #[test]
    fn the_book_lists_every_metric_that_is_an_agents_own() {
        let book = std::fs::read_to_string(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../book/src/operate/nodes.md"
        ))
        .unwrap();
        let source = include_str!("metrics.rs");
        let names: Vec<&str> = source
            .split('"')
            .filter(|text| text.starts_with("platctrl_agent_") && !text.contains(' '))
            .filter(|text| text.len() > "platctrl_agent_".len())
            .collect();
        assert!(names.len() >= 7, "{names:?}");
        for name in names {
            assert!(book.contains(&format!("`{name}`")), "{name}");
        }
    }
}
