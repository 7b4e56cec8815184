//! Removing what is not needed any more: older generations, a version that is not to take over, or
//! all that there is of the pod.

use std::path::Path;
use std::sync::Arc;

use platctrl_framework::model::EventType;

use super::lane::Which;
use super::steps::Outcome;
use super::trouble::{waiting, with_files};
use super::{Pod, Progress, prepare};
use crate::files::{self, FileError};
use crate::launch::once;
use crate::layout::PodPaths;
use crate::plan::Step;
use crate::report::Trouble;
use crate::secrets::Secrets;

impl Pod {
    pub(super) fn prune(&mut self) -> Outcome {
        let keep: Vec<_> = self
            .record
            .current
            .iter()
            .chain(&self.record.next)
            .chain(self.record.previous.iter().filter(|_| self.record.unproven))
            .collect();
        let (trash, running) = (self.host.layout.trash(), self.units.generations());
        if let Err(error) = prepare::prune(&self.paths, &trash, &keep, &running) {
            // Nothing needs it gone: the next change tries again.
            tracing::warn!(pod = %self.name, %error, "cannot remove an older generation");
        }
        self.stale = false;
        Ok(Progress::Done)
    }

    pub(super) async fn discard(&mut self) -> Outcome {
        self.forget_next();
        self.stale = true;
        self.save(Step::Discard).await?;
        Ok(Progress::Done)
    }

    pub(super) async fn remove(&mut self) -> Outcome {
        self.give_up_errand(Which::Prepare).await;
        let once = self.paths.once();
        let ended = once::end_all(&*self.host.errands, &once, "").await;
        ended.map_err(|error| Trouble::passing(Step::Remove, "StillAlive", error.to_string()))?;
        self.units.check_health(None, None);
        for program in self.units.programs() {
            self.forget(&program, Step::Remove).await?;
        }
        let version = self.record.current.as_ref().or(self.record.next.as_ref());
        let last = self.record.last.as_ref();
        let keep_data = version
            .map(|version| &version.spec)
            .or(last.map(|last| &last.spec))
            .is_some_and(|spec| spec.keep_data);
        let (host, name) = (Arc::clone(&self.host), self.name.clone());
        let remove = move || {
            let removed = host.remove_groups(&name);
            removed.map_err(|error| Trouble::passing(Step::Remove, "StillAlive", error.to_string()))
        };
        waiting(Step::Remove, remove).await?;
        let (paths, trash) = (self.paths.clone(), self.host.layout.trash());
        with_files(Step::Remove, move || {
            remove_files(&paths, &trash, keep_data)
        })
        .await?;
        self.host.ports.set(&self.name, []);
        self.gone = true;
        let message = if keep_data {
            "stopped and removed; its data directory is kept".to_owned()
        } else {
            "stopped and removed".to_owned()
        };
        self.event(EventType::Normal, "Removed", message);
        Ok(Progress::Done)
    }

    pub(super) async fn forget(&mut self, program: &str, step: Step) -> Result<(), Trouble> {
        let Some(unit) = self.units.unit(program) else {
            return Ok(());
        };
        let supervisor = Arc::clone(&self.host.supervisor);
        supervisor
            .forget(&unit)
            .await
            .map_err(|error| Trouble::passing(step, "StopFailed", error.to_string()))?;
        self.units.forget(program);
        self.record.seen_exits.remove(program);
        Ok(())
    }
}

/// Removes the files of a pod, for good: its end is told after this, and must not be undone. Its
/// record goes last, so that until then it is known what is left to do.
fn remove_files(paths: &PodPaths, trash: &Path, keep_data: bool) -> Result<(), FileError> {
    Secrets::take_back(paths, |_| false)?;
    if keep_data && paths.data().exists() {
        let entries = std::fs::read_dir(paths.home())
            .map_err(|error| FileError::new("read", paths.home(), error))?;
        for entry in entries
            .flatten()
            .filter(|entry| entry.file_name() != "data")
        {
            files::remove_tree(&entry.path(), trash)?;
        }
        files::flush_names(paths.home())?;
    } else {
        remove_for_good(paths.home(), trash)?;
    }
    remove_for_good(paths.state(), trash)
}

fn remove_for_good(path: &Path, trash: &Path) -> Result<(), FileError> {
    files::remove_tree(path, trash)?;
    path.parent().map_or(Ok(()), files::flush_names)
}
