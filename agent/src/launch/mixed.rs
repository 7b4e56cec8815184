//! Units under whichever supervisor they were begun with.
//!
//! An operator may change what supervises programs while pods run. A unit stays with what has it,
//! until it is forgotten: two supervisors of one program would start it twice.

use std::path::Path;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::mpsc;

use super::{Runit, Shims, SuperviseError, Supervisor, Unit, UnitEvent, UnitSpec, is_runit};

/// Shims and `runsv` on one node.
#[derive(Clone, Debug)]
pub(crate) struct Mixed {
    shims: Shims,
    runit: Runit,
    prefer_runit: bool,
}

impl Mixed {
    /// New units are begun with this `runsv`, or else with a shim.
    pub(crate) fn new(shim: &Path, runsv: Option<&Path>) -> Self {
        Self {
            shims: Shims::new(shim),
            // Where it is installed, for units of a time when it was preferred.
            runit: Runit::new(runsv.unwrap_or(Path::new("runsv")), shim),
            prefer_runit: runsv.is_some(),
        }
    }

    fn of(&self, unit: &Unit) -> &dyn Supervisor {
        let is_shims = || unit.dir.join("state").exists();
        match is_runit(&unit.dir) || (self.prefer_runit && !is_shims()) {
            true => &self.runit,
            false => &self.shims,
        }
    }
}

impl Supervisor for Mixed {
    fn start<'a>(
        &'a self,
        unit: &'a Unit,
        spec: &'a UnitSpec,
    ) -> BoxFuture<'a, Result<(), SuperviseError>> {
        self.of(unit).start(unit, spec)
    }

    fn hand<'a>(
        &'a self,
        unit: &'a Unit,
        spec: &'a UnitSpec,
    ) -> BoxFuture<'a, Result<bool, SuperviseError>> {
        self.of(unit).hand(unit, spec)
    }

    fn watch(&self, unit: &Unit, after_exit: u64) -> mpsc::Receiver<UnitEvent> {
        self.of(unit).watch(unit, after_exit)
    }

    fn stop<'a>(
        &'a self,
        unit: &'a Unit,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<bool, SuperviseError>> {
        self.of(unit).stop(unit, timeout)
    }

    fn again<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Result<(), SuperviseError>> {
        self.of(unit).again(unit)
    }

    fn forget<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Result<(), SuperviseError>> {
        self.of(unit).forget(unit)
    }
}
