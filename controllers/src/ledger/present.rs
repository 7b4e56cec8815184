//! The pods of a workload that are kept from view to view, as its account sees them.

use std::collections::HashMap;
use std::sync::Arc;

use platctrl_framework::cache::View;
use platctrl_framework::model::{Digest, Uid};

use super::account::{Member, Members};
use crate::crew::{Brief, Crew};
use crate::nodes::Names;

/// All pods of a workload.
#[derive(Debug)]
pub(super) struct Present {
    crews: Vec<Arc<Crew>>,
    /// The nodes that are not heard of: what their pods last reported counts for nothing.
    silent: Names,
    healthy: u32,
    /// The specs of those that something was decided about.
    specs: HashMap<Uid, Digest>,
}

impl Present {
    pub(super) fn new<'v>(
        view: &View,
        crews: &[Arc<Crew>],
        silent: &Names,
        victims: impl Iterator<Item = &'v Uid>,
    ) -> Self {
        let find = |uid: &Uid| crews.iter().find_map(|crew| crew.get(uid));
        let specs = victims.filter_map(|uid| Some((uid.clone(), find(uid)?.digest(view)?)));
        let specs = specs.collect();
        let counts = |pod: &&Brief| pod.ready && !pod.leaving;
        // One that has two of the owners counts once.
        let twice = |at: usize, pod: &Brief| {
            pod.shared && (crews.iter().take(at)).any(|crew| crew.get(&pod.uid).is_some())
        };
        let uncounted = crews.iter().enumerate().map(|(at, crew)| {
            let on_silent = silent.iter().flat_map(|node| crew.on_node(node));
            let unheard = on_silent.filter(counts).count();
            let again = crew.shared().filter(counts);
            let again = again.filter(|pod| !silent.contains(pod.node()) && twice(at, pod));
            unheard + again.count()
        });
        let uncounted = u32::try_from(uncounted.sum::<usize>()).unwrap_or(u32::MAX);
        let ready = crews.iter().map(|crew| crew.ready()).sum::<u32>();
        Self {
            crews: crews.to_vec(),
            silent: silent.clone(),
            healthy: ready.saturating_sub(uncounted),
            specs,
        }
    }

    fn member(&self, pod: &Brief) -> Member {
        Member {
            healthy: pod.ready && !self.silent.contains(pod.node()),
            leaving: pod.leaving,
            spec: self.specs.get(&pod.uid).copied(),
            request: pod.request.as_deref().map(ToOwned::to_owned),
        }
    }
}

impl Members for Present {
    fn get(&self, pod: &Uid) -> Option<Member> {
        let found = self.crews.iter().find_map(|crew| crew.get(pod));
        found.map(|pod| self.member(pod))
    }

    fn healthy(&self) -> u32 {
        self.healthy
    }

    fn count(&self) -> u32 {
        let all = self.crews.iter().map(|crew| crew.len()).sum::<usize>();
        u32::try_from(all).unwrap_or(u32::MAX)
    }

    fn asking(&self) -> Vec<(Uid, Member)> {
        let asking = self.crews.iter().flat_map(|crew| crew.asking());
        let mut asking: Vec<_> = asking
            .map(|pod| (pod.uid.clone(), self.member(pod)))
            .collect();
        asking.sort_by(|one, other| one.0.cmp(&other.0));
        asking
    }
}
