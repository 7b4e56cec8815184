//! The first look at a pod: what of it is on this node, as its files and its supervisors tell.

use platctrl_framework::model::EventType;

use super::Pod;
use crate::blocking::blocking;
use crate::files::FileError;
use crate::layout::PodPaths;
use crate::name::PodName;
use crate::state::{Found, KnownHealth, PodRecord};

impl Pod {
    /// Finds out what is on this node of the pod.
    pub(super) async fn meet(&mut self) -> Result<(), FileError> {
        let (name, paths) = (self.name.clone(), self.paths.clone());
        let look = move || {
            let programs = paths.programs()?;
            let found = read_record(&name, &paths, &programs)?;
            Ok((programs, found))
        };
        let (programs, found) = match blocking(look).await {
            Ok(result) => result?,
            Err(panic) => {
                return Err(FileError::new(
                    "read",
                    self.paths.state(),
                    std::io::Error::other(panic),
                ));
            }
        };
        match found {
            Found::Nothing => {}
            Found::Whole(record) => self.record = *record,
            Found::Damaged { record, reason } => {
                self.unidentified = record.current.is_none() && !programs.is_empty();
                self.record = *record;
                let message = format!(
                    "the pod's record on the node was damaged ({reason}); it was set aside and made again from what runs"
                );
                self.event(EventType::Warning, "RecordDamaged", message);
            }
        }
        for version in self.record.current.iter().chain(&self.record.next) {
            self.host
                .ports
                .set(&self.name, version.ports.values().copied());
        }
        for program in programs {
            self.oom_kills
                .insert(program.clone(), self.host.oom_kills(&self.name, &program));
            let seen = self.record.seen_exits.get(&program).copied().unwrap_or(0);
            self.units.watch(&program, self.paths.shim(&program), seen);
        }
        for event in self.units.introductions().await {
            self.heard(event);
        }
        let pids = self.units.pids();
        let known = |known: &Option<KnownHealth>| {
            let same = known.clone().filter(|known| known.pids == pids);
            same.map(|known| known.state)
        };
        let (health, liveness) = (known(&self.record.health), known(&self.record.liveness));
        let current = self.record.current.as_ref();
        self.units.check(current, health, liveness);
        Ok(())
    }
}

/// The record of a pod; when it is damaged, what the copy made at the last flip tells.
fn read_record(name: &PodName, paths: &PodPaths, programs: &[String]) -> Result<Found, FileError> {
    let found = PodRecord::read(name, &paths.record(), programs)?;
    if let Found::Damaged { reason, .. } = found {
        let record = match PodRecord::read(name, &paths.record_copy(), programs)? {
            Found::Whole(copy) => copy,
            Found::Damaged { record, .. } => record,
            Found::Nothing => Box::new(PodRecord::new(name.clone())),
        };
        return Ok(Found::Damaged { record, reason });
    }
    Ok(found)
}
