//! A runtime's status as a tree.

use std::fmt;
use std::time::Duration;

use super::status::{ControllerStatus, RuntimeStatus};
use crate::cache::{Freshness, SourceStatus};
use crate::failsafe::FailsafeView;
use crate::observe::{Standing, StatusTree, shown};

/// A key that is ready for longer than this has too few workers, or slow ones.
const READY_TOO_LONG: Duration = Duration::from_secs(30);

impl RuntimeStatus {
    /// The status as a tree: with [`Display`](fmt::Display) for people, with serde for programs.
    #[must_use]
    pub fn tree(&self) -> StatusTree {
        let mut tree = StatusTree::new(format!("runtime {}", self.name));
        tree = match self.freshness {
            Some(Freshness::Exact(revision)) => tree.with("revision", revision.to_string()),
            Some(Freshness::Bounded(low, high)) => {
                tree.with("revisions", format!("{low} to {high}"))
            }
            None => tree.but(Standing::Waiting, "not everything was read yet"),
        };
        tree = match self.leads {
            Some(true) => tree.with("leads", true),
            Some(false) => tree.with("leads", false).but(
                Standing::Waiting,
                "another process leads, and this one stands by",
            ),
            None => tree,
        };
        if let Some(shards) = &self.shards {
            tree = tree
                .with(
                    "shards",
                    format!("{} of {}", shards.held.len(), shards.count),
                )
                .with("members", shards.members);
            if shards.waits_for_others {
                let why = "processes that go by another number of shards have to end first";
                tree = tree.but(Standing::Waiting, why);
            }
        }
        if self.set_aside > 0 {
            let why = format!(
                "{} records cannot be read and were set aside",
                self.set_aside
            );
            tree = tree
                .with("setAside", self.set_aside)
                .but(Standing::Troubled, why);
        }
        for (kind, why) in &self.unregistered {
            let part = StatusTree::new(format!("kind {kind}"));
            tree = tree.part(part.but(Standing::Troubled, format!("it is not registered: {why}")));
        }
        if let Some(failsafe) = failsafe_tree(&self.failsafe) {
            tree = tree.part(failsafe);
        }
        for source in &self.sources {
            tree = tree.part(source_tree(source, self.lag(source)));
        }
        for controller in &self.controllers {
            tree = tree.part(controller_tree(controller));
        }
        tree
    }
}

impl fmt::Display for RuntimeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tree().fmt(f)
    }
}

/// What is held back; None while nothing is.
fn failsafe_tree(failsafe: &FailsafeView) -> Option<StatusTree> {
    let mut tree = StatusTree::new("failsafe");
    if let Some(freeze) = &failsafe.frozen {
        let reason = freeze.reason.as_deref().unwrap_or("no reason given");
        let why = format!("{} froze every change: {reason}", freeze.by);
        tree = tree.but(Standing::Waiting, why);
    }
    if let Some(why) = &failsafe.too_new {
        tree = tree.but(Standing::Troubled, why.clone());
    }
    if failsafe.withheld > 0 {
        tree = tree.with("withheld", failsafe.withheld);
    }
    if failsafe.refusals > 0 {
        tree = tree.with("refusals", failsafe.refusals);
    }
    for hold in &failsafe.holds {
        let name = format!("hold {} {}", hold.guard.as_str(), hold.id);
        let part = StatusTree::new(name)
            .with("objects", hold.count)
            .with("since", hold.since.to_string())
            .but(Standing::Troubled, hold.message.clone());
        tree = tree.part(part);
    }
    (tree.standing != Standing::Well || !tree.parts.is_empty()).then_some(tree)
}

fn source_tree(source: &SourceStatus, lag: Option<u64>) -> StatusTree {
    let mut tree = StatusTree::new(format!("source {}", source.prefix));
    tree = match source.revision {
        Some(revision) => tree.with("revision", revision.to_string()),
        None => tree.but(Standing::Waiting, "it was not read yet"),
    };
    if let Some(lag) = lag {
        tree = tree.with("lag", lag);
    }
    if let Some(heard) = source.heard {
        tree = tree.with("heard", format!("{} ago", shown(heard)));
    }
    tree = tree
        .with("lists", source.lists)
        .with("watches", source.watches);
    match &source.failing {
        Some(error) => tree.but(Standing::Troubled, error.to_string()),
        None => tree,
    }
}

fn controller_tree(controller: &ControllerStatus) -> StatusTree {
    let ControllerStatus { name, .. } = controller;
    let mut tree = StatusTree::new(format!("controller {name}"))
        .with("ready", controller.ready)
        .with("running", controller.running)
        .with("waiting", controller.waiting)
        .with("runs", controller.runs);
    for (name, count) in [
        (
            "parked",
            u64::try_from(controller.parked).unwrap_or(u64::MAX),
        ),
        ("errors", controller.errors),
        ("conflicts", controller.conflicts),
        ("timeouts", controller.timeouts),
        ("panics", controller.panics),
    ] {
        if count > 0 {
            tree = tree.with(name, count);
        }
    }
    if let Some(unreadable) = &controller.unreadable {
        tree = tree.but(Standing::Troubled, format!("nothing runs: {unreadable}"));
    }
    if !controller.waits_for.is_empty() {
        let sources: Vec<_> = controller
            .waits_for
            .iter()
            .map(ToString::to_string)
            .collect();
        let why = format!("nothing runs before {} was read", sources.join(", "));
        tree = tree.but(Standing::Waiting, why);
    }
    if controller.oldest_ready > READY_TOO_LONG {
        let why = format!(
            "a key is ready for {} and has no worker",
            shown(controller.oldest_ready)
        );
        tree = tree.but(Standing::Troubled, why);
    }
    if let Some(parked) = &controller.longest_parked {
        let why = format!(
            "{} waits for {} to show revision {} for {}",
            parked.key,
            parked.source,
            parked.revision,
            shown(parked.waited)
        );
        tree = tree.part(StatusTree::new("parked").but(Standing::Waiting, why));
    }
    for failing in &controller.failing {
        let part = StatusTree::new(failing.key.to_string())
            .with("failures", failing.failures)
            .but(Standing::Troubled, failing.error.clone());
        tree = tree.part(part);
    }
    tree
}
