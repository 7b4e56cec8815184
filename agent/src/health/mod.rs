//! Whether a pod can do its work, and whether it lives: asked again and again.
//!
//! One task for each check asks, counts and tells only what changed. `verdict` counts and decides
//! when to ask next, without any I/O; `http` and `exec` ask once. Probes are spread over their interval and
//! only so many begin at once, but one that waits for an answer stands in nobody's way.

mod exec;
mod http;
#[cfg(test)]
mod tests;
mod tls;
mod verdict;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use platctrl_framework::environment::Environment;
use platctrl_kinds::{Health, Span};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

pub use exec::Beside;
pub use tls::ProbeFiles;
use tls::Tls;
use verdict::Counter;

/// So many probes begin at once.
const AT_ONCE: usize = 32;
/// An answer that takes longer than this is waited for without a place among those.
const QUICK: Duration = Duration::from_millis(100);

/// What is known of a pod's health.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthState {
    /// What the checks say.
    pub verdict: Verdict,
    /// Since when they say so.
    pub since: Timestamp,
    /// They said so to an earlier agent, and nobody asked again yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stale: bool,
}

/// What checks say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// Nothing yet.
    #[default]
    Unknown,
    /// It can do its work.
    Healthy,
    /// It cannot.
    Unhealthy {
        /// What the last check met, for people:
        /// `GET http://127.0.0.1:31234/_status: connection refused`.
        reason: String,
    },
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// An HTTP server.
    Http {
        /// Where it listens.
        address: SocketAddr,
        /// What is asked for.
        path: String,
    },
    /// An HTTP server over TLS.
    Https {
        /// Where it listens.
        address: SocketAddr,
        /// What is asked for.
        path: String,
        /// The name that its certificate has to be for; None for any.
        name: Option<String>,
    },
    /// Whoever accepts connections.
    Tcp(SocketAddr),
    /// A command beside a program of the pod.
    Exec(Beside),
}

/// Starts probes. Clones share the places that keep hundreds of pods from being asked at once.
#[derive(Clone, Debug)]
pub struct Prober {
    environment: Environment,
    places: Arc<Semaphore>,
    tls: Arc<Tls>,
}

impl Prober {
    /// A prober that takes time and chance from `environment`.
    #[must_use]
    pub fn new(environment: Environment) -> Self {
        Self {
            environment,
            places: Arc::new(Semaphore::new(AT_ONCE)),
            tls: Arc::default(),
        }
    }

    /// Shows this certificate over TLS, and believes these authorities.
    #[must_use]
    pub fn with_tls(mut self, files: ProbeFiles) -> Self {
        self.tls = Arc::new(Tls::new(files));
        self
    }

    /// Asks `target` as `check` says, from now until the probe is dropped.
    ///
    /// With `previous`, what an earlier agent knew of the same process, the probe begins with that,
    /// stale, and there is no grace unless nothing was known. Must be called on a tokio runtime.
    #[must_use = "a probe that is dropped asks no more"]
    pub fn spawn(&self, check: Health, target: Target, previous: Option<HealthState>) -> Probe {
        let previous = previous.filter(|previous| previous.verdict != Verdict::Unknown);
        let begin = match &previous {
            Some(previous) => HealthState {
                stale: true,
                ..previous.clone()
            },
            None => HealthState {
                verdict: Verdict::Unknown,
                since: self.environment.now(),
                stale: false,
            },
        };
        let counter = Counter::new(&check, begin.verdict.clone(), previous.is_none());
        let (states, receiver) = watch::channel(begin);
        let prober = self.clone();
        let task = tokio::spawn(async move { prober.run(&check, &target, counter, &states).await });
        Probe {
            states: receiver,
            task,
        }
    }

    async fn run(
        self,
        check: &Health,
        target: &Target,
        mut counter: Counter,
        states: &watch::Sender<HealthState>,
    ) {
        let begun = self.environment.monotonic();
        loop {
            // Large, and not there while the check waits for its next turn.
            let outcome = Box::pin(self.probe(check, target)).await;
            let age = self.environment.monotonic().saturating_sub(begun);
            let verdict = counter.count(age, outcome);
            let now = self.environment.now();
            states.send_if_modified(|state| state.learn(verdict, now));
            let random = self.environment.random_u64();
            self.environment.sleep(counter.pause(age, random)).await;
        }
    }

    /// Asks once. Waiting for a place is not counted as time of the check.
    async fn probe(&self, check: &Health, target: &Target) -> Result<(), String> {
        let place = self.places.acquire().await;
        let asking = self.ask(target, check.timeout);
        let mut asking = std::pin::pin!(asking);
        tokio::select! {
            outcome = &mut asking => return outcome,
            () = self.environment.sleep(QUICK) => {}
        }
        drop(place);
        asking.await
    }

    async fn ask(&self, target: &Target, timeout: Span) -> Result<(), String> {
        let environment = &self.environment;
        match target {
            Target::Http { address, path } => {
                http::get(environment, *address, path, None, timeout).await
            }
            Target::Https {
                address,
                path,
                name,
            } => {
                let tls = Some((&*self.tls, name.as_deref()));
                http::get(environment, *address, path, tls, timeout).await
            }
            Target::Tcp(address) => {
                let outcome = tokio::select! {
                    outcome = http::connect(*address) => outcome.map(drop),
                    () = environment.sleep(timeout.duration()) => {
                        Err(format!("timed out after {timeout}"))
                    }
                };
                outcome.map_err(|problem| format!("connect to {address}: {problem}"))
            }
            Target::Exec(beside) => exec::run(environment, beside, timeout).await,
        }
    }
}

impl HealthState {
    /// Takes a verdict in and says whether anything changed.
    fn learn(&mut self, verdict: Option<&Verdict>, now: Timestamp) -> bool {
        let Some(verdict) = verdict else { return false };
        let kind = std::mem::discriminant(verdict);
        let since = if kind == std::mem::discriminant(&self.verdict) {
            self.since
        } else {
            now
        };
        let next = Self {
            verdict: verdict.clone(),
            since,
            stale: false,
        };
        let changed = *self != next;
        *self = next;
        changed
    }
}

/// A running probe. Dropping it ends it.
#[derive(Debug)]
pub struct Probe {
    states: watch::Receiver<HealthState>,
    task: JoinHandle<()>,
}

impl Probe {
    /// What is known, now and whenever it changes.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<HealthState> {
        self.states.clone()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.task.abort();
    }
}
