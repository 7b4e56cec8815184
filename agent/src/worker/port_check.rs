//! A pod's ports, looked at before its programs are started: while none of it ran, somebody else
//! may have taken one.

use platctrl_framework::model::EventType;

use super::Pod;
use super::trouble::waiting;
use crate::plan::Step;
use crate::report::Trouble;
use crate::state::boot_id;
use crate::version::Version;

impl Pod {
    /// Makes sure that the ports of `current` are free when nothing of the pod runs. One that the
    /// agent picked is replaced by another; one that was asked for is refused by its holder's name.
    pub(super) async fn renew_ports(&mut self, current: &Version) -> Result<Version, Trouble> {
        if current.ports.is_empty() || self.may_listen(current) {
            return Ok(current.clone());
        }
        let (host, name) = (std::sync::Arc::clone(&self.host), self.name.clone());
        let (wanted, ports) = (current.spec.ports.clone(), current.ports.clone());
        let renewed = waiting(Step::Start, move || {
            host.ports.renew(&name, &wanted, &ports)
        });
        let renewed = renewed.await?;
        if renewed == current.ports {
            return Ok(current.clone());
        }
        let new = Version {
            ports: renewed,
            ..current.clone()
        };
        self.record.current = Some(new.clone());
        self.configured.clear();
        self.save(Step::Start).await?;
        let message = "a port that it had is in use by others now: it got another one".to_owned();
        self.event(EventType::Warning, "PortChanged", message);
        Ok(new)
    }

    /// Something of the pod runs, or may: its ports are its own then.
    fn may_listen(&self, current: &Version) -> bool {
        let (programs, boot) = (self.units.programs(), boot_id());
        programs
            .iter()
            .chain(current.programs.keys())
            .any(|program| {
                let known = !self.units.is_at_rest(program) && self.units.is_supervised(program);
                let state = platctrl_shim_lib::read_state(&self.paths.shim(program));
                // A number of another boot is somebody else's.
                let state = state.ok().flatten().filter(|it| it.boot_id == boot);
                let left = state.and_then(|state| state.child);
                // One whose supervisor was killed listens on until the next one ends it.
                known || left.is_some_and(|it| runs(it.pid))
            })
    }
}

/// The process is there, and not only its end that nobody has asked for.
fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat.rsplit(')').next().unwrap_or_default();
        !state.trim_start().starts_with(['Z', 'X'])
    })
}
