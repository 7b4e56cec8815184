//! What each step does. Each may be interrupted anywhere and done again.
//!
//! The longer ones are beside this: [taking out of use](super::stopping), [taking over and
//! back](super::launching), [starting](super::starting), [changing what
//! runs](super::adjust), [removing](super::removing).

use std::sync::Arc;

use super::lane::{Finding, Which};
use super::prepare::{self, Configure};
use super::trouble::{blocking, with_files};
use super::{Pod, Progress};
use crate::hooks::HookEvent;
use crate::plan::{Order, Step};
use crate::report::Trouble;
use crate::state::{PodRecord, Preparation, Prepared};
use crate::version::{Desired, Version};

pub(super) type Outcome = Result<Progress, Trouble>;

impl Pod {
    pub(super) async fn step(&mut self, step: Step, order: &Order) -> Outcome {
        match step {
            Step::Authorise => self.authorise(order).await,
            Step::BeforeInstall => self.call(step, HookEvent::BeforeInstall, order).await,
            // Verified and unpacked in one go with it.
            Step::Fetch | Step::Verify | Step::Unpack => self.fetch(order),
            Step::AfterInstall => self.call(step, HookEvent::AfterInstall, order).await,
            Step::Configure => self.configure().await,
            Step::Drain => self.drain().await,
            Step::Disable => self.disable(order).await,
            Step::Stop => self.stop(order).await,
            Step::BeforeLaunch => self.call(step, HookEvent::BeforeLaunch, order).await,
            Step::Flip => self.flip().await,
            Step::PostActivate => self.run_scripts(step, order).await,
            Step::Start => self.start().await,
            Step::Enable => self.enable(order).await,
            Step::Healthy => self.healthy().await,
            Step::AfterLaunch => self.call(step, HookEvent::AfterLaunch, order).await,
            Step::Adjust => self.adjust(order).await,
            Step::Prune => self.prune(),
            Step::Abandon => self.abandon().await,
            Step::Revert => Ok(Progress::Done),
            Step::Discard => self.discard().await,
            Step::BeforeUninstall => self.call(step, HookEvent::BeforeUninstall, order).await,
            Step::Remove => self.remove().await,
        }
    }

    /// Calls hooks beside the worker: for the version that a step is about.
    async fn call(&mut self, step: Step, event: HookEvent, order: &Order) -> Outcome {
        let Some(desired) = self.hooked_for(step, order) else {
            return Ok(Progress::Done);
        };
        if matches!(step, Step::AfterLaunch | Step::BeforeUninstall) {
            self.try_to_restore(step).await;
        }
        let which = if step.prepares() {
            Which::Prepare
        } else {
            Which::Main
        };
        let errand = self.sender().hooks(step, event, desired);
        Ok(self.send(which, step, order, errand))
    }

    /// The version that hooks are told of.
    fn hooked_for(&self, step: Step, order: &Order) -> Option<Desired> {
        let wanted = match order {
            Order::Want(desired) => Some((**desired).clone()),
            Order::Missing | Order::Unknown => self.record.last.clone(),
        };
        let version = match step {
            Step::BeforeLaunch => self.record.next.as_ref(),
            Step::AfterLaunch | Step::BeforeUninstall => self.record.current.as_ref(),
            _ => return wanted,
        };
        let (version, mut desired) = (version?, wanted?);
        desired.generation = version.generation;
        desired.digest = version.digest;
        desired.spec = version.spec.clone();
        Some(desired)
    }

    /// Runs scripts of the version that runs, beside the worker.
    pub(super) async fn run_scripts(&mut self, step: Step, order: &Order) -> Outcome {
        let Some(current) = self.record.current.clone() else {
            return Ok(Progress::Done);
        };
        match step {
            Step::Disable => self.try_to_restore(step).await,
            _ => self.restore().await?,
        }
        let errand = self.sender().scripts(step, current);
        Ok(self.send(Which::Main, step, order, errand))
    }

    /// Notes what is ordered, and asks whether it may run here.
    async fn authorise(&mut self, order: &Order) -> Outcome {
        let Order::Want(desired) = order else {
            return Ok(Progress::Done);
        };
        // From here on there is something of this uid on the node.
        let paths = self.paths.clone();
        with_files(Step::Authorise, move || paths.make_state()).await?;
        if self.foreign(&desired.uid) {
            self.record = PodRecord::new(self.name.clone());
        }
        self.record.uid = desired.uid.clone();
        self.record.last = Some((**desired).clone());
        self.record.next = None;
        self.record.quarantined = None;
        self.record.prepared = Some(Prepared {
            digest: desired.digest,
            preparation: Preparation::Begun,
        });
        self.save(Step::Authorise).await?;
        let news = self.refused.replace(desired.digest) != Some(desired.digest);
        let errand = self.sender().authorise((**desired).clone(), news);
        Ok(self.send(Which::Prepare, Step::Authorise, order, errand))
    }

    fn fetch(&mut self, order: &Order) -> Outcome {
        let Order::Want(desired) = order else {
            return Ok(Progress::Done);
        };
        let current = self.record.current.as_ref();
        let previous = current
            .map(|current| current.ports.clone())
            .unwrap_or_default();
        let (host, name) = (Arc::clone(&self.host), self.name.clone());
        let desired = (**desired).clone();
        let errand = async move {
            let version = prepare::resolve(host, name, desired, previous).await?;
            Ok(Finding::Version(Box::new(version)))
        };
        Ok(self.send(Which::Prepare, Step::Fetch, order, errand))
    }

    pub(super) fn configure_of(&self, version: &Version) -> Configure {
        let last = self.record.last.as_ref();
        Configure {
            paths: self.paths.clone(),
            name: self.name.clone(),
            uid: self.record.uid.clone(),
            node: self.host.node.clone(),
            secrets: self.host.secrets.clone(),
            version: version.clone(),
            labels: last.map(|last| last.labels.clone()).unwrap_or_default(),
        }
    }

    /// Writes the files of the version that runs, unless this process has written them: those that
    /// an earlier one wrote may have gone with the power.
    pub(super) async fn restore(&mut self) -> Result<(), Trouble> {
        let Some(current) = &self.record.current else {
            return Ok(());
        };
        let generation = current.generation;
        if !self.configured.contains(&generation) {
            let what = self.configure_of(current);
            blocking(Step::Configure, move || prepare::configure_current(&what)).await?;
            self.configured.insert(generation);
        }
        Ok(())
    }

    /// The same for what is about to end: what is wrong with its files does not hold that up.
    async fn try_to_restore(&mut self, step: Step) {
        if let Err(trouble) = self.restore().await {
            let (step, message) = (step.name(), trouble.message);
            tracing::warn!(pod = %self.name, step, message, "cannot write its files again");
        }
    }

    async fn configure(&mut self) -> Outcome {
        let Some(next) = &self.record.next else {
            return Ok(Progress::Done);
        };
        if self.configured.contains(&next.generation) {
            return Ok(Progress::Done);
        }
        let (generation, what) = (next.generation, self.configure_of(next));
        blocking(Step::Configure, move || prepare::configure(&what)).await?;
        self.configured.insert(generation);
        Ok(Progress::Done)
    }
}
