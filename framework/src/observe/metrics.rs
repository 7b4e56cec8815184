//! Metrics for Prometheus: what is known at the moment of a scrape, written out.
//!
//! Nothing is registered by those who work: they keep numbers under locks of their own, and a
//! scrape reads them. So every label is there from the start, with a zero where nothing happened
//! yet, and a runtime that nobody scrapes pays for counting alone. Names are controller-runtime's
//! where the meaning is the same, so that dashboards and alerts for it work; what it does not
//! have begins with `platctrl_`.

mod page;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;

use self::page::Page;
use super::convergence::Timed;
use super::journal::Tally;
use super::runs::Ending;
use super::store::{Calls, MeteredStore, OUTCOMES, Operation};
use crate::controller::RuntimeHandle;
use crate::failsafe::{FailsafeView, Guard};
use crate::store::Revision;

/// The classes of a queue, in the words of metrics.
pub(crate) const PRIORITIES: [&str; 3] = ["change", "retry", "sync"];

/// Every guard, so that each has its line before it holds anything.
const GUARDS: [Guard; 7] = [
    Guard::History,
    Guard::Vanished,
    Guard::Changed,
    Guard::WentBack,
    Guard::RealityLost,
    Guard::Fewer,
    Guard::Budget,
];

/// What is known of a controller.
#[derive(Clone, Debug, Default)]
pub(crate) struct ControllerFacts {
    pub(crate) name: String,
    pub(crate) tally: Tally,
    pub(crate) convergence: Timed,
    /// Ready keys by class.
    pub(crate) ready: [usize; PRIORITIES.len()],
    pub(crate) waiting: usize,
    pub(crate) parked: usize,
    pub(crate) running: usize,
    pub(crate) adds: u64,
    pub(crate) oldest_ready: Duration,
    pub(crate) longest_parked: Duration,
    pub(crate) longest_running: Duration,
    /// All running keys together.
    pub(crate) unfinished: Duration,
    pub(crate) failing: usize,
    pub(crate) concurrency: usize,
    pub(crate) since_success: Duration,
    /// It does not work: a source is not read, a kind is unreadable, or others do the work.
    pub(crate) idle: bool,
}

/// What is known of a source of a view.
#[derive(Clone, Debug, Default)]
pub(crate) struct SourceFacts {
    pub(crate) prefix: String,
    pub(crate) revision: Revision,
    pub(crate) heard: Duration,
    pub(crate) lists: u64,
    pub(crate) watches: u64,
    pub(crate) failing: bool,
}

/// What is known of a runtime.
#[derive(Clone, Debug, Default)]
pub(crate) struct RuntimeFacts {
    pub(crate) name: String,
    /// The claim or shards that it works under, and how much of it it holds.
    pub(crate) leads: Option<bool>,
    pub(crate) sources: Vec<SourceFacts>,
    pub(crate) controllers: Vec<ControllerFacts>,
    pub(crate) objects: usize,
    pub(crate) set_aside: usize,
    /// The newest revision that the store is known to have.
    pub(crate) newest: Revision,
    pub(crate) calls: Calls,
    pub(crate) events_lost: u64,
    pub(crate) failsafe: FailsafeView,
}

/// The metrics of runtimes and stores: as text for `/metrics`, or for a [`Registry`] of yours.
///
/// ```
/// # use std::sync::Arc;
/// # use platctrl_framework::{controller::Runtime, environment::Environment, store::MemoryStore};
/// use platctrl_framework::observe::{Metrics, Registry};
///
/// # let environment = Environment::system();
/// # let store = Arc::new(MemoryStore::new(environment.clone()));
/// let runtime = Runtime::new(store, environment);
/// let metrics = Metrics::new().runtime(&runtime.handle());
/// assert!(metrics.text().ends_with("# EOF\n"));
///
/// let mut registry = Registry::default();
/// registry.register_collector(Box::new(metrics));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    runtimes: Vec<RuntimeHandle>,
    stores: Vec<(String, MeteredStore)>,
}

impl Metrics {
    /// The media type of [`Metrics::text`].
    pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// The metrics of nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Those of a runtime too, with the label `runtime` for its name. While it does not run there
    /// are none.
    #[must_use]
    pub fn runtime(mut self, runtime: &RuntimeHandle) -> Self {
        self.runtimes.push(runtime.clone());
        self
    }

    /// Those of a store that is used without a runtime too, with `client` in the place of a
    /// runtime's name.
    #[must_use]
    pub fn store(mut self, client: &str, store: &MeteredStore) -> Self {
        self.stores.push((client.to_owned(), store.clone()));
        self
    }

    /// All of them in the OpenMetrics text format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self.clone()));
        let mut text = String::new();
        // A text takes whatever is written to it.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let runtimes = self.runtimes.iter().filter_map(RuntimeHandle::facts);
        let runtimes: Vec<_> = runtimes.collect();
        let stores = self.stores.iter();
        let stores = stores.map(|(client, store)| (client.clone(), store.calls()));
        write(encoder, &runtimes, &stores.collect::<Vec<_>>())
    }
}

/// The labels of a controller in controller-runtime's metrics, and ours beside them.
type Labels<'f> = [(&'static str, &'f str); 2];
type QueueLabels<'f> = [(&'static str, &'f str); 3];

struct Each<'f>(&'f [RuntimeFacts]);

impl<'f> Each<'f> {
    fn controllers<T>(&self, value: impl Fn(&'f ControllerFacts) -> T) -> Vec<(Labels<'f>, T)> {
        let of_runtime = |runtime: &'f RuntimeFacts| {
            let name = runtime.name.as_str();
            runtime.controllers.iter().map(move |it| (name, it))
        };
        let all = self.0.iter().flat_map(of_runtime);
        all.map(|(runtime, it)| {
            let labels = [("controller", it.name.as_str()), ("runtime", runtime)];
            (labels, value(it))
        })
        .collect()
    }

    /// With the label `name`, which the metrics of queues have beside `controller`.
    fn queues<T>(&self, value: impl Fn(&'f ControllerFacts) -> T) -> Vec<(QueueLabels<'f>, T)> {
        let all = self.controllers(value).into_iter();
        all.map(|([controller, runtime], value)| {
            ([("name", controller.1), controller, runtime], value)
        })
        .collect()
    }

    fn sources<T>(
        &self,
        value: impl Fn(&'f RuntimeFacts, &'f SourceFacts) -> T,
    ) -> Vec<(Labels<'f>, T)> {
        let of_runtime =
            |runtime: &'f RuntimeFacts| runtime.sources.iter().map(move |it| (runtime, it));
        let all = self.0.iter().flat_map(of_runtime);
        all.map(|(runtime, it)| {
            let labels = [("source", it.prefix.as_str()), ("runtime", &runtime.name)];
            (labels, value(runtime, it))
        })
        .collect()
    }

    fn runtimes<T>(
        &self,
        value: impl Fn(&'f RuntimeFacts) -> Option<T>,
    ) -> Vec<([(&'static str, &'f str); 1], T)> {
        let all = self.0.iter();
        all.filter_map(|it| Some(([("runtime", it.name.as_str())], value(it)?)))
            .collect()
    }
}

fn number(count: usize) -> f64 {
    count as f64
}

fn write(
    encoder: DescriptorEncoder<'_>,
    runtimes: &[RuntimeFacts],
    stores: &[(String, Calls)],
) -> fmt::Result {
    let mut page = Page(encoder);
    let each = Each(runtimes);
    reconciles(&mut page, &each)?;
    queues(&mut page, &each)?;
    convergence(&mut page, &each)?;
    views(&mut page, &each)?;
    failsafes(&mut page, &each)?;
    let own = runtimes.iter().map(|it| (it.name.as_str(), &it.calls));
    let others = stores
        .iter()
        .map(|(client, calls)| (client.as_str(), calls));
    calls(&mut page, &own.chain(others).collect::<Vec<_>>())
}

/// The value of `result` that controller-runtime would give a run, if any.
fn result_of(ending: Ending) -> Option<&'static str> {
    match ending {
        Ending::Done => Some("success"),
        Ending::Requeued => Some("requeue_after"),
        Ending::Conflict => Some("requeue"),
        Ending::Error | Ending::Terminal | Ending::Panic | Ending::Timeout => Some("error"),
        Ending::Cut => None,
    }
}

fn reconciles(page: &mut Page<'_>, each: &Each<'_>) -> fmt::Result {
    let results = ["success", "requeue_after", "requeue", "error"];
    let by_result =
        each.controllers(|it| it)
            .into_iter()
            .flat_map(|([controller, runtime], it)| {
                results.map(|result| {
                    let of_result = |ending: &&Ending| result_of(**ending) == Some(result);
                    let endings = Ending::ALL.iter().filter(of_result);
                    let count = endings.map(|ending| it.tally.count(*ending)).sum();
                    ([controller, runtime, ("result", result)], count)
                })
            });
    page.counter(
        "controller_runtime_reconcile",
        "Runs that ended, by result; requeue is a conflict that is repeated on a newer view",
        by_result.collect::<Vec<_>>(),
    )?;
    let errors = each.controllers(|it| {
        let failed = [
            Ending::Error,
            Ending::Terminal,
            Ending::Panic,
            Ending::Timeout,
        ];
        failed.iter().map(|ending| it.tally.count(*ending)).sum()
    });
    page.counter(
        "controller_runtime_reconcile_errors",
        "Runs that failed, panicked or took too long",
        errors,
    )?;
    for (name, help, ending) in [
        (
            "controller_runtime_terminal_reconcile_errors",
            "Runs that failed and are not repeated before something changes",
            Ending::Terminal,
        ),
        (
            "controller_runtime_reconcile_panics",
            "Runs that panicked",
            Ending::Panic,
        ),
        (
            "controller_runtime_reconcile_timeouts",
            "Runs that did not return in time",
            Ending::Timeout,
        ),
        (
            "platctrl_reconcile_cut",
            "Runs that were given up because the process lost its claim",
            Ending::Cut,
        ),
    ] {
        page.counter(
            name,
            help,
            each.controllers(move |it| it.tally.count(ending)),
        )?;
    }
    page.histogram(
        "controller_runtime_reconcile_time_seconds",
        "How long runs took",
        each.controllers(|it| it.tally.took.clone()),
    )?;
    for (name, help, value) in [
        (
            "controller_runtime_max_concurrent_reconciles",
            "Runs that there may be at once",
            (|it| number(it.concurrency)) as fn(&ControllerFacts) -> f64,
        ),
        (
            "controller_runtime_active_workers",
            "Runs that there are at once",
            |it| number(it.running),
        ),
        (
            "platctrl_reconcile_seconds_since_success",
            "Time since a run last ended well, or since the start",
            |it| it.since_success.as_secs_f64(),
        ),
        (
            "platctrl_reconcile_failing_keys",
            "Keys whose last run failed",
            |it| number(it.failing),
        ),
        (
            "platctrl_controller_held",
            "1 while the controller does not work: a source or a kind cannot be read, or others do the work",
            |it| f64::from(u8::from(it.idle)),
        ),
    ] {
        page.gauge(name, help, each.controllers(value))?;
    }
    Ok(())
}

fn queues(page: &mut Page<'_>, each: &Each<'_>) -> fmt::Result {
    let depth = each
        .queues(|it| it)
        .into_iter()
        .flat_map(|([name, controller, runtime], it)| {
            PRIORITIES
                .iter()
                .zip(it.ready)
                .map(move |(priority, depth)| {
                    let labels = [name, controller, runtime, ("priority", *priority)];
                    (labels, number(depth))
                })
        });
    page.gauge(
        "workqueue_depth",
        "Keys that are ready to run",
        depth.collect::<Vec<_>>(),
    )?;
    page.counter(
        "workqueue_adds",
        "Wishes for a run",
        each.queues(|it| it.adds),
    )?;
    page.counter(
        "workqueue_retries",
        "Runs that were asked for because one before failed or met a conflict",
        each.queues(|it| {
            let again = [
                Ending::Error,
                Ending::Panic,
                Ending::Timeout,
                Ending::Conflict,
            ];
            again.iter().map(|ending| it.tally.count(*ending)).sum()
        }),
    )?;
    page.histogram(
        "workqueue_queue_duration_seconds",
        "How long keys were ready before they ran",
        each.queues(|it| it.tally.waited.clone()),
    )?;
    page.histogram(
        "workqueue_work_duration_seconds",
        "How long runs took",
        each.queues(|it| it.tally.took.clone()),
    )?;
    for (name, help, value) in [
        (
            "workqueue_unfinished_work_seconds",
            "How long the runs there are have taken so far, together",
            (|it| it.unfinished.as_secs_f64()) as fn(&ControllerFacts) -> f64,
        ),
        (
            "workqueue_longest_running_processor_seconds",
            "How long the longest run there is has taken so far",
            |it| it.longest_running.as_secs_f64(),
        ),
    ] {
        page.gauge(name, help, each.queues(value))?;
    }
    let states = each
        .controllers(|it| it)
        .into_iter()
        .flat_map(|([controller, runtime], it)| {
            [
                ("ready", it.ready.iter().sum()),
                ("waiting", it.waiting),
                ("parked", it.parked),
                ("running", it.running),
            ]
            .map(|(state, count): (_, usize)| {
                ([controller, runtime, ("state", state)], number(count))
            })
        });
    page.gauge(
        "platctrl_queue_keys",
        "Keys by what they wait for: a worker, their time, the view to show their own writes",
        states.collect::<Vec<_>>(),
    )?;
    for (name, help, value) in [
        (
            "platctrl_queue_oldest_ready_seconds",
            "How long the oldest ready key waits for a worker",
            (|it| it.oldest_ready.as_secs_f64()) as fn(&ControllerFacts) -> f64,
        ),
        (
            "platctrl_queue_longest_parked_seconds",
            "How long a key waits for the view to show what it wrote",
            |it| it.longest_parked.as_secs_f64(),
        ),
    ] {
        page.gauge(name, help, each.controllers(value))?;
    }
    Ok(())
}

fn convergence(page: &mut Page<'_>, each: &Each<'_>) -> fmt::Result {
    page.histogram(
        "platctrl_convergence_seconds",
        "From a change of the spec, or the order to end, to the report that it is so",
        each.controllers(|it| it.convergence.took.clone()),
    )?;
    page.gauge(
        "platctrl_converging_objects",
        "Objects that are not as they are wanted since something was asked of them",
        each.controllers(|it| number(it.convergence.open)),
    )?;
    page.gauge(
        "platctrl_converging_oldest_seconds",
        "How long the oldest of them waits",
        each.controllers(|it| it.convergence.oldest.as_secs_f64()),
    )
}

fn views(page: &mut Page<'_>, each: &Each<'_>) -> fmt::Result {
    let leads = each.runtimes(|it| it.leads.map(|leads| f64::from(u8::from(leads))));
    page.gauge(
        "leader_election_master_status",
        "1 while the process holds the claim that it works under",
        leads
            .into_iter()
            .map(|([runtime], leads)| ([("name", runtime.1)], leads)),
    )?;
    page.gauge(
        "platctrl_cache_revision",
        "The revision up to which everything is in the view",
        each.sources(|_, source| source.revision.as_u64() as f64),
    )?;
    page.gauge(
        "platctrl_cache_lag_revisions",
        "Revisions that the store is known to have and the source was not told of",
        each.sources(|runtime, source| {
            let newest = runtime.newest.as_u64();
            newest.saturating_sub(source.revision.as_u64()) as f64
        }),
    )?;
    page.gauge(
        "platctrl_cache_heard_seconds",
        "Time since the source was last heard of",
        each.sources(|_, source| source.heard.as_secs_f64()),
    )?;
    page.gauge(
        "platctrl_cache_failing",
        "1 while the source is not up to date",
        each.sources(|_, source| f64::from(u8::from(source.failing))),
    )?;
    page.counter(
        "platctrl_cache_lists",
        "How often everything was read",
        each.sources(|_, source| source.lists),
    )?;
    page.counter(
        "platctrl_cache_watches",
        "How often a watch was begun",
        each.sources(|_, source| source.watches),
    )?;
    page.gauge(
        "platctrl_cache_objects",
        "Objects in the view",
        each.runtimes(|it| Some(number(it.objects))),
    )?;
    page.gauge(
        "platctrl_cache_set_aside_records",
        "Records that cannot be read",
        each.runtimes(|it| Some(number(it.set_aside))),
    )?;
    page.counter(
        "platctrl_events_lost",
        "Events that could not be written",
        each.runtimes(|it| Some(it.events_lost)),
    )
}

fn failsafes(page: &mut Page<'_>, each: &Each<'_>) -> fmt::Result {
    let holds = each.runtimes(|it| Some(&it.failsafe.holds));
    let by_guard = holds.into_iter().flat_map(|([runtime], holds)| {
        GUARDS.map(|guard| {
            let count = holds.iter().filter(|hold| hold.guard == guard).count();
            ([("guard", guard.as_str()), runtime], number(count))
        })
    });
    page.gauge(
        "platctrl_failsafe_holds",
        "What a failsafe holds back until a person has looked",
        by_guard.collect::<Vec<_>>(),
    )?;
    page.gauge(
        "platctrl_failsafe_withheld_intents",
        "Intents that are shown as they last were, because what is there now is not believed",
        each.runtimes(|it| Some(number(it.failsafe.withheld))),
    )?;
    page.counter(
        "platctrl_failsafe_refusals",
        "How often a commit or an end was held back",
        each.runtimes(|it| Some(it.failsafe.refusals)),
    )?;
    let frozen = |it: &RuntimeFacts| f64::from(u8::from(it.failsafe.frozen.is_some()));
    page.gauge(
        "platctrl_frozen",
        "1 while a person has frozen every change",
        each.runtimes(|it| Some(frozen(it))),
    )
}

fn calls(page: &mut Page<'_>, clients: &[(&str, &Calls)]) -> fmt::Result {
    let mut counts = Vec::new();
    let mut took = Vec::new();
    for (client, calls) in clients {
        for operation in Operation::ALL {
            let common = [("client", *client), ("operation", operation.as_str())];
            for (outcome, count) in OUTCOMES.iter().zip(calls.counts[operation as usize]) {
                counts.push(([common[0], common[1], ("outcome", *outcome)], count));
            }
            if operation != Operation::Watch {
                took.push((common, calls.took[operation as usize].clone()));
            }
        }
    }
    page.counter(
        "platctrl_store_requests",
        "What was asked of the store, by outcome; unknown may have happened",
        counts,
    )?;
    page.histogram(
        "platctrl_store_request_seconds",
        "How long the store took to answer",
        took,
    )
}
