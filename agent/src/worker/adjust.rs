//! Changing a version while it runs: limits, and the manner of its end. No process notices, except
//! by what it may use.

use platctrl_framework::model::EventType;

use super::prepare;
use super::steps::Outcome;
use super::trouble::blocking;
use super::{Pod, Progress};
use crate::plan::{Order, Step};
use crate::report::Trouble;
use crate::version::Version;

impl Pod {
    /// The wanted version differs from the one that runs in nothing that needs another process.
    pub(super) fn is_adjustable(&self, order: &Order) -> bool {
        match (order, &self.record.current) {
            (Order::Want(desired), Some(current)) => {
                current.spec.differs_only_while_running(&desired.spec)
            }
            _ => false,
        }
    }

    /// Makes the version that runs the wanted one.
    pub(super) async fn adjust(&mut self, order: &Order) -> Outcome {
        let (Order::Want(desired), Some(current)) = (order, self.record.current.clone()) else {
            return Ok(Progress::Done);
        };
        let new = Version {
            digest: desired.digest,
            adjusted: Some(desired.generation),
            spec: desired.spec.clone(),
            ..current.clone()
        };
        if let Err(trouble) = self.set_limits(&new) {
            // All or none: what was set already goes back. It was in force a moment ago.
            let _ = self.set_limits(&current);
            return Err(trouble);
        }
        let what = self.configure_of(&new);
        blocking(Step::Configure, move || prepare::configure(&what)).await?;
        self.record.current = Some(new);
        self.save(Step::Adjust).await?;
        let message = format!(
            "generation {} changes what can be changed while programs run: none was started again",
            desired.generation
        );
        self.event(EventType::Normal, "Adjusted", message);
        Ok(Progress::Done)
    }

    fn set_limits(&self, version: &Version) -> Result<(), Trouble> {
        for program in version.programs.keys() {
            let Some(launchable) = version.launchable(program) else {
                continue;
            };
            let group = self.host.group(&self.name, program, &launchable.resources);
            let group = group.map_err(|error| {
                let message = format!("{program}: {error}; the limits before stay in force");
                Trouble::passing(Step::Adjust, "LimitRefused", message)
            })?;
            if !group.unenforced.is_empty() {
                let message = format!("{program}: {}", group.unenforced.join("; "));
                self.event(EventType::Warning, "LimitsNotEnforced", message);
            }
        }
        Ok(())
    }

    /// Makes the groups of a program again if somebody removed them: nothing can be started
    /// without.
    pub(super) fn mend_group(&self, program: &str) {
        let current = self.record.current.as_ref();
        let Some(launchable) = current.and_then(|it| it.launchable(program)) else {
            return;
        };
        if let Err(error) = self.host.group(&self.name, program, &launchable.resources) {
            tracing::warn!(pod = %self.name, program, %error, "cannot make the group of a program");
        }
    }
}
