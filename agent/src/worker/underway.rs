//! Steps that go on beside the worker, and what steps come to: noted, or tried again after a while.

use std::sync::Arc;

use platctrl_framework::failpoint;
use platctrl_framework::model::{Digest, EventType};

use super::errands::Sender;
use super::lane::{Errand, Finding, Which};
use super::{Pod, Progress};
use crate::launch::once;
use crate::plan::{Order, Step, UPDATE};
use crate::report::Trouble;
use crate::state::Preparation;
use crate::version::Version;

impl Pod {
    /// The version that a step is about.
    pub(super) fn subject_of(&self, step: Step, order: &Order) -> Option<Digest> {
        let version = match step {
            step if step.prepares() => {
                return match order {
                    Order::Want(desired) => Some(desired.digest),
                    Order::Missing | Order::Unknown => None,
                };
            }
            Step::BeforeLaunch => self.record.next.as_ref(),
            _ => self.record.current.as_ref(),
        };
        version.map(|version| version.digest)
    }

    /// Lets a step go on beside the worker.
    pub(super) fn send(
        &mut self,
        which: Which,
        step: Step,
        order: &Order,
        errand: impl Future<Output = Result<Finding, Trouble>> + Send + 'static,
    ) -> Progress {
        let digest = self.subject_of(step, order);
        self.lane(which).errand = Some(Errand {
            step,
            digest,
            task: tokio::spawn(errand),
        });
        Progress::Underway
    }

    pub(super) fn sender(&self) -> Sender {
        Sender {
            host: Arc::clone(&self.host),
            observer: Arc::clone(&self.observer),
            name: self.name.clone(),
            uid: self.record.uid.clone(),
            paths: self.paths.clone(),
        }
    }

    /// What is under way is not wanted any more: it ends, with all that it started.
    pub(super) async fn give_up_errand(&mut self, which: Which) {
        if let Some(errand) = self.lane(which).errand.take() {
            let step = errand.step;
            drop(errand);
            self.end_runs(step).await;
        }
    }

    /// Ends and forgets the supervised runs of a step.
    pub(super) async fn end_runs(&self, step: Step) {
        if let Some(prefix) = step.runs() {
            self.end_runs_of(step.name(), prefix).await;
        }
    }

    /// Ends and forgets all supervised runs, but those that somebody made by hand.
    pub(super) async fn end_all_runs(&self) {
        for row in UPDATE {
            self.end_runs(row.step).await;
        }
    }

    async fn end_runs_of(&self, step: &str, prefix: &str) {
        let ended = once::end_all(&*self.host.errands, &self.paths.once(), prefix).await;
        if let Err(error) = ended {
            tracing::warn!(pod = %self.name, step, %error, "what a step started does not end");
        }
    }

    /// A step that went on beside the worker has ended.
    pub(super) async fn take(
        &mut self,
        which: Which,
        step: Step,
        result: Result<Finding, Trouble>,
    ) {
        let outcome = match result {
            Ok(finding) => self.finish(step, finding).await,
            Err(trouble) => Err(trouble),
        };
        match outcome {
            Ok(()) => {
                failpoint!(&format!("agent.{}.done", step.name()));
                self.lane(which).done(step);
            }
            Err(trouble) => self.failed(which, trouble).await,
        }
    }

    /// Notes what a step came to that went on beside the worker.
    async fn finish(&mut self, step: Step, finding: Finding) -> Result<(), Trouble> {
        match (step, finding) {
            (Step::Authorise, _) => self.set_preparation(Preparation::Authorised),
            (Step::BeforeInstall, _) => self.set_preparation(Preparation::Hooked),
            (Step::AfterInstall, _) => self.set_preparation(Preparation::Ready),
            (_, Finding::Version(version)) => self.fetched(*version),
            (step, Finding::Nothing) => self.launched_further(step),
        }
        // What is noted is noted: authorising alone changed nothing yet.
        if step != Step::Authorise {
            self.save(step).await?;
        }
        self.end_runs(step).await;
        Ok(())
    }

    fn set_preparation(&mut self, preparation: Preparation) {
        if let Some(prepared) = &mut self.record.prepared {
            prepared.preparation = preparation;
        }
    }

    fn fetched(&mut self, version: Version) {
        self.host.ports.set(&self.name, self.all_ports(&version));
        let names: Vec<_> = version.installs.keys().cloned().collect();
        let message = format!(
            "generation {}: {} of {} fetched, verified and unpacked",
            version.generation,
            if names.len() == 1 {
                "the artifact"
            } else {
                "the artifacts"
            },
            names.join(", "),
        );
        self.record.next = Some(version);
        self.set_preparation(Preparation::Fetched);
        self.event(EventType::Normal, "Installed", message);
    }

    /// The ports of the version that runs and of the one that follows.
    fn all_ports(&self, next: &Version) -> Vec<u16> {
        let current = self
            .record
            .current
            .iter()
            .flat_map(|current| current.ports.values());
        current.chain(next.ports.values()).copied().collect()
    }

    /// A step failed: it is tried again after a while, or the version before is gone back to.
    pub(super) async fn failed(&mut self, which: Which, trouble: Trouble) {
        let Some(trouble) = self.go_back(trouble).await else {
            return;
        };
        let environment = self.host.environment.clone();
        let (reason, message) = (trouble.step.failure(), trouble.message.clone());
        if self.lane(which).fail(trouble, &environment) {
            self.event(EventType::Warning, reason, message);
        }
    }
}
