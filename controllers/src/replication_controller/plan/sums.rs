//! Plans made from sums, without looking at each pod: for the many controllers of which nothing, or
//! only more pods, is wanted.

use super::Plan;

/// What is known of all pods without looking at each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Pods that are not on their way out.
    pub live: u32,
    /// Those of them that are ready and of the present template.
    pub ready: u32,
    /// Those of them that are of the present template.
    pub current: u32,
    /// Those of them whose nodes do not match, are not there, or do not keep their pods.
    pub astray: u32,
    /// Some are on their way out that hold their places until they are gone, as those do that never
    /// run twice.
    pub ending: bool,
}

/// What [`plan`](super::plan) says where nothing is to be done, as far as sums can tell: every pod
/// is there, of the present template and where it may be. None: it has to be asked. For a
/// controller of whose name no orphans are, and whose pods run beside no others.
#[must_use]
pub fn at_rest(sums: &Sums, replicas: u32) -> Option<Plan> {
    let rests =
        sums.live == replicas && sums.current == replicas && sums.astray == 0 && !sums.ending;
    rests.then(|| Plan {
        live: sums.live,
        ready: sums.ready,
        ..Plan::default()
    })
}

/// What [`plan`](super::plan) says where pods are missing and nothing else is to be done, as far as
/// sums can tell: each that is there is of the present template and where it may be. `place` chooses
/// nodes for so many new ones. None: it has to be asked. For a controller that is not disabled, of
/// whose name no orphans are, and whose pods run beside no others.
#[must_use]
pub fn grow(sums: &Sums, replicas: u32, place: impl FnOnce(u32) -> Vec<String>) -> Option<Plan> {
    let wanted = replicas
        .checked_sub(sums.live)
        .filter(|&wanted| wanted > 0)?;
    if sums.current != sums.live || sums.astray > 0 || sums.ending {
        return None;
    }
    let mut plan = Plan {
        live: sums.live,
        ready: sums.ready,
        ..Plan::default()
    };
    plan.make_new(wanted, place);
    Some(plan)
}
