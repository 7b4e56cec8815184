//! Which ports of the node are given to which pod.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use platctrl_kinds::Port;

use crate::name::PodName;
use crate::plan::Step;
use crate::report::Trouble;

/// The ports of a node's pods.
#[derive(Debug, Default)]
pub(crate) struct PortBook {
    given: Mutex<BTreeMap<u16, PodName>>,
}

impl PortBook {
    fn given(&self) -> MutexGuard<'_, BTreeMap<u16, PodName>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds numbers for the ports of a pod and keeps them for it, beside those it has.
    pub(crate) fn allocate(
        &self,
        pod: &PodName,
        wanted: &BTreeMap<String, Port>,
        previous: &BTreeMap<String, u16>,
    ) -> Result<BTreeMap<String, u16>, Trouble> {
        let mut given = self.given();
        let used = given
            .iter()
            .filter(|(_, owner)| *owner != pod)
            .map(|(port, owner)| (*port, owner.to_string()))
            .collect();
        let ports = crate::ports::allocate(&used, wanted, previous).map_err(|error| Trouble {
            step: Step::Fetch,
            reason: "PortUnavailable".into(),
            message: error.to_string(),
            permanent: false,
        })?;
        given.extend(ports.values().map(|port| (*port, pod.clone())));
        Ok(ports)
    }

    /// The same for a pod of which nothing runs: a number that somebody listens on is not its own
    /// any more.
    pub(crate) fn renew(
        &self,
        pod: &PodName,
        wanted: &BTreeMap<String, Port>,
        previous: &BTreeMap<String, u16>,
    ) -> Result<BTreeMap<String, u16>, Trouble> {
        let free = previous
            .iter()
            .filter(|(_, port)| crate::ports::is_free(**port));
        let free = free.map(|(name, port)| (name.clone(), *port)).collect();
        let renewed = self
            .allocate(pod, wanted, &free)
            .map_err(|trouble| Trouble {
                step: Step::Start,
                ..trouble
            })?;
        self.set(pod, renewed.values().copied());
        Ok(renewed)
    }

    /// Replaces the ports of a pod by `ports`.
    pub(crate) fn set(&self, pod: &PodName, ports: impl IntoIterator<Item = u16>) {
        let mut given = self.given();
        given.retain(|_, owner| owner != pod);
        given.extend(ports.into_iter().map(|port| (port, pod.clone())));
    }
}
