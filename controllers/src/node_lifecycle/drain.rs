//! What becomes of each pod of a node that is drained.

use std::collections::BTreeMap;
use std::sync::Arc;

use platctrl_framework::cache::View;
use platctrl_framework::model::{ConditionStatus, Object, ObjectKey, Resource as _};
use platctrl_kinds::{DaemonSet, Node, Pod, ReplicationController, Strategy};

use crate::ledger::controller_of;

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes, or is on its way out.
    Goes,
    /// A daemon set keeps one on each of its nodes, on this one as well.
    Daemon(String),
    /// Nothing moves it, and why.
    Stays(String),
}

/// What becomes of a pod while its node is drained.
#[must_use]
pub fn fate(view: &View, node: &Object<Node>, pod: &Object<Pod>) -> Fate {
    if pod.metadata.is_deleted() {
        return Fate::Goes;
    }
    let owner = pod.metadata.controller();
    if let Some(owner) = owner.filter(|owner| owner.kind == DaemonSet::KIND) {
        return Fate::Daemon(owner.name.clone());
    }
    let controller = controller_of(pod);
    let controller = controller
        .as_ref()
        .and_then(|key: &ObjectKey| view.get::<ReplicationController>(key));
    match (controller, owner) {
        (Some(owner), _) if owner.spec.disabled => {
            Fate::Stays(format!("rc/{} is disabled", owner.metadata.name))
        }
        (Some(owner), _) if owner.spec.strategy == Strategy::Dynamic || node.spec.drain_static => {
            Fate::Goes
        }
        (Some(owner), _) => Fate::Stays(format!("rc/{} is Static", owner.metadata.name)),
        (None, Some(owner)) => Fate::Stays(format!("{} {} keeps it", owner.kind, owner.name)),
        (None, None) => Fate::Stays("nothing keeps it that could make another".to_owned()),
    }
}

/// How far a drain has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drain {
    /// Pods that go, by name.
    pub going: Vec<String>,
    /// Pods of daemon sets.
    pub daemons: usize,
    /// Pods that stay, and why.
    pub staying: Vec<(String, String)>,
    /// What the controllers of those that go wait for, by name.
    pub waits: BTreeMap<String, String>,
}

/// What a pod's controller waits for before its next step.
fn wait_of(view: &View, pod: &Object<Pod>) -> Option<(String, String)> {
    let owner = view.get::<ReplicationController>(&controller_of(pod)?)?;
    let progressing = owner.status.conditions.get("Progressing")?;
    let stalled = owner.status.conditions.get("Stalled");
    let stalled = stalled.filter(|it| it.status == ConditionStatus::True);
    let message = &stalled.unwrap_or(progressing).message;
    (!message.is_empty()).then(|| (format!("rc/{}", owner.metadata.name), message.clone()))
}

impl Drain {
    /// How far the drain of a node with these pods has come.
    #[must_use]
    pub fn of(view: &View, node: &Object<Node>, pods: &[Arc<Object<Pod>>]) -> Self {
        let mut drain = Self::default();
        for pod in pods {
            let name = pod.metadata.name.clone();
            match fate(view, node, pod) {
                Fate::Goes => {
                    drain.going.push(name);
                    drain.waits.extend(wait_of(view, pod));
                }
                Fate::Daemon(_) => drain.daemons += 1,
                Fate::Stays(why) => drain.staying.push((name, why)),
            }
        }
        drain
    }

    /// Nothing is left that should go.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.going.is_empty() && self.staying.is_empty()
    }

    /// Nothing moves any more, and pods are left.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.going.is_empty() && !self.staying.is_empty()
    }

    /// What is left, for people.
    #[must_use]
    pub fn text(&self) -> String {
        const NAMED: usize = 3;
        let mut parts = Vec::new();
        let more = |count: usize| if count > NAMED { ", …" } else { "" };
        if !self.going.is_empty() {
            let names: Vec<&str> = self.going.iter().take(NAMED).map(String::as_str).collect();
            let count = self.going.len();
            parts.push(format!(
                "{count} go, each when its workload's ledger allows it: {}{}",
                names.join(", "),
                more(count)
            ));
        }
        let waits = self.waits.iter().take(NAMED);
        parts.extend(waits.map(|(owner, wait)| format!("{owner}: {wait}")));
        if !self.staying.is_empty() {
            let named = self.staying.iter().take(NAMED);
            let named: Vec<String> = named.map(|(pod, why)| format!("{pod} ({why})")).collect();
            let count = self.staying.len();
            parts.push(format!("{count} stay: {}{}", named.join(", "), more(count)));
        }
        if self.daemons > 0 {
            parts.push(format!("{} of daemon sets stay", self.daemons));
        }
        parts.join("; ")
    }
}
