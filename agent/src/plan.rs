//! What to do next with a pod, decided over plain data.

use platctrl_framework::model::{Digest, Uid};

use crate::state::Position;
use crate::version::Desired;

/// One thing to do.
///
/// An update is this table; the position of a pod in it is in its record, and each step may be
/// interrupted anywhere and done again.
///
/// | step | effect | on failure | on a crash here |
/// |---|---|---|---|
/// | [`Fetch`](Self::Fetch) | artifacts fetched, verified, unpacked; user and ports found; all recorded as `next` | old runs; tried again with backoff | fetched again, or found complete |
/// | [`Configure`](Self::Configure) | env and config of the new generation, in directories of its own | old runs; tried again | written again |
/// | [`Drain`](Self::Drain) | `Ready=False`, reason Draining, for `drainDelay` | – | the rest of the delay is waited |
/// | [`Stop`](Self::Stop) | SIGTERM, grace, SIGKILL to all of the old version | tried again; the new one does not start beside it | stopped again |
/// | [`Flip`](Self::Flip) | `current` names the new generation; the record says so | tried again | done again |
/// | [`Start`](Self::Start) | one supervisor for each program | others start; that one is tried again | those that run are left alone, the rest started |
/// | [`Prune`](Self::Prune) | files of older generations removed | tried at the next change | done at the next change |
/// | [`Remove`](Self::Remove) | supervisors ended, home and cgroups removed, record removed | tried again | done again |
///
/// The old version runs until the new one is fetched and verified. Only a tombstone, or a newer
/// spec of the same uid, stops anything: absence is never an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Get the new version ready, up to what it needs to run.
    Fetch,
    /// Write its environment and configuration.
    Configure,
    /// Show that the pod is about to go, and wait.
    Drain,
    /// Stop the programs.
    Stop,
    /// Make the next version the current one.
    Flip,
    /// Start the programs that have no supervisor.
    Start,
    /// Remove what no version needs any more.
    Prune,
    /// Forget a version that was fetched and is not wanted any more.
    Discard,
    /// Remove everything of the pod.
    Remove,
}

impl Step {
    /// Its name in failpoints: `agent.<name>` before it and `agent.<name>.done` after.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Configure => "configure",
            Self::Drain => "drain",
            Self::Stop => "stop",
            Self::Flip => "flip",
            Self::Start => "start",
            Self::Prune => "prune",
            Self::Discard => "discard",
            Self::Remove => "remove",
        }
    }
}

/// What the store says about a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// Somebody wants this.
    Want(Box<Desired>),
    /// The record of it is missing, and nobody ordered its end.
    Missing,
    /// Nobody knows: the store cannot be asked, or its answer cannot be believed.
    Unknown,
}

/// Why something that seems to be wanted is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hold {
    /// The intent is missing without a tombstone.
    Unexplained,
    /// The intent is of another uid, and nobody ordered the end of the one that runs.
    UidChanged {
        /// The one that runs.
        running: Uid,
        /// The one that is wanted.
        wanted: Uid,
    },
    /// The intent is older than what was wanted before.
    WentBack {
        /// The newest generation that was seen.
        seen: u64,
        /// The one wanted now.
        wanted: u64,
    },
    /// The same generation had another spec before.
    Rewritten {
        /// The generation.
        generation: u64,
    },
    /// The spec cannot be right.
    Invalid {
        /// What is wrong with it.
        problem: String,
    },
    /// The spec has a field that this agent does not know.
    Unsupported {
        /// Its path.
        field: String,
    },
}

impl Hold {
    /// One word in camel case.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Unexplained => "Unexplained",
            Self::UidChanged { .. } => "UidChanged",
            Self::WentBack { .. } => "GenerationWentBack",
            Self::Rewritten { .. } => "GenerationRewritten",
            Self::Invalid { .. } => "Invalid",
            Self::Unsupported { .. } => "Unsupported",
        }
    }

    /// What is held, why, and the way out.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::Unexplained => "the pod's intent is missing and nobody ordered its end: what runs keeps running; `platctrl failsafe adopt` writes the intent again, `platctrl failsafe remove` ends the pod".into(),
            Self::UidChanged { running, wanted } => format!("the pod that runs is {running}, the one wanted is {wanted}, and nobody ordered the end of the first: it keeps running; `platctrl failsafe remove` ends it"),
            Self::WentBack { seen, wanted } => format!("generation {wanted} is wanted after generation {seen} was: the store seems to have been restored; what runs keeps running until a newer generation is applied"),
            Self::Rewritten { generation } => format!("generation {generation} has another spec than it had: the store seems to have been restored or written by hand; what runs keeps running until a newer generation is applied"),
            Self::Invalid { problem } => format!("the spec cannot be carried out: {problem}; what runs keeps running"),
            Self::Unsupported { field } => format!("Unsupported({field}): this agent does not know the field and must not ignore it; what runs keeps running; upgrade the agent, or leave the field out"),
        }
    }
}

/// What is so on this node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Whose programs and files are here; empty when nobody's or unknown.
    pub uid: Uid,
    /// Only the directories of the pod are known, not what they are.
    pub unidentified: bool,
    /// The newest generation and spec of that uid that was wanted before.
    pub seen: Option<(u64, Digest)>,
    /// The spec of the version that is current.
    pub current: Option<Digest>,
    /// The spec of the version that is fetched and takes over next.
    pub next: Option<Digest>,
    /// How far the change has come.
    pub position: Position,
    /// The drain has lasted as long as it should.
    pub drained: bool,
    /// Every program of the pod that has a supervisor is at rest.
    pub at_rest: bool,
    /// A program of the current version has no supervisor.
    pub missing: bool,
    /// Files of older generations are there.
    pub stale: bool,
    /// The pod never runs twice at once: it may run elsewhere by now, unless it is wanted here.
    pub singleton: bool,
}

/// What to do, in this order. When one step has to wait, those behind it wait with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
    /// What is not done, and why.
    pub hold: Option<Hold>,
}

/// Decides what to do.
#[must_use]
pub fn plan(order: &Order, observed: &Observed) -> Plan {
    let mut plan = decide(order, observed);
    if observed.singleton && !matches!(order, Order::Want(_)) {
        // What runs is left alone; what does not may have been replaced while nobody could say so.
        plan.steps.retain(|step| *step != Step::Start);
    }
    plan
}

fn decide(order: &Order, observed: &Observed) -> Plan {
    let desired = match order {
        Order::Want(desired) => desired,
        // Nothing was ever done here: there is nothing to hold either.
        Order::Missing if observed.current.is_some() || observed.unidentified => {
            return keep(observed, Some(Hold::Unexplained));
        }
        Order::Missing | Order::Unknown => return keep(observed, None),
    };
    if let Some(hold) = suspicious(desired, observed) {
        return keep(observed, Some(hold));
    }
    if desired.tombstone.is_some() {
        return end(observed);
    }
    if observed.position >= Position::Stopping && observed.next.is_some() {
        // Its predecessor is stopped: finish this, then see what is wanted.
        return take_over(observed);
    }
    if let Some(field) = &desired.unsupported {
        return keep(
            observed,
            Some(Hold::Unsupported {
                field: field.clone(),
            }),
        );
    }
    if observed.current == Some(desired.digest) {
        let mut plan = keep(observed, None);
        if observed.next.is_some() || observed.position != Position::Settled {
            plan.steps.insert(0, Step::Discard);
        }
        return plan;
    }
    if observed.next == Some(desired.digest) {
        return take_over(observed);
    }
    // Names in it become parts of paths: whoever wrote it, it is checked here.
    if let Some(problem) = desired.problem() {
        return keep(observed, Some(Hold::Invalid { problem }));
    }
    let mut plan = take_over(observed);
    plan.steps.insert(0, Step::Fetch);
    // Until the new one is ready, the old one is looked after.
    if observed.missing && observed.position < Position::Stopping {
        plan.steps.insert(0, Step::Start);
    }
    plan
}

/// An order that does not follow from what was ordered before.
fn suspicious(desired: &Desired, observed: &Observed) -> Option<Hold> {
    if observed.uid.is_empty() {
        return None;
    }
    if observed.uid != desired.uid {
        let holds_something = observed.current.is_some() || observed.next.is_some();
        return holds_something.then(|| Hold::UidChanged {
            running: observed.uid.clone(),
            wanted: desired.uid.clone(),
        });
    }
    let (seen, digest) = observed.seen?;
    if desired.generation < seen {
        return Some(Hold::WentBack {
            seen,
            wanted: desired.generation,
        });
    }
    (desired.generation == seen && desired.digest != digest)
        .then_some(Hold::Rewritten { generation: seen })
}

/// Whatever runs keeps running; what was stopped half way goes on.
fn keep(observed: &Observed, hold: Option<Hold>) -> Plan {
    let mut plan = if observed.position >= Position::Stopping && observed.next.is_some() {
        take_over(observed)
    } else if observed.missing && observed.position < Position::Stopping {
        Plan {
            steps: vec![Step::Start],
            hold: None,
        }
    } else {
        Plan::default()
    };
    if observed.stale && plan.steps.is_empty() {
        plan.steps.push(Step::Prune);
    }
    plan.hold = hold;
    plan
}

/// From the current version, if there is one, to the next.
fn take_over(observed: &Observed) -> Plan {
    let mut steps = vec![Step::Configure];
    if !observed.at_rest || observed.position == Position::Stopping {
        if observed.position < Position::Stopping && !observed.drained {
            steps.push(Step::Drain);
        }
        steps.push(Step::Stop);
    }
    steps.extend([Step::Flip, Step::Start, Step::Prune]);
    Plan { steps, hold: None }
}

fn end(observed: &Observed) -> Plan {
    let mut steps = Vec::new();
    if !observed.at_rest {
        if observed.position < Position::Stopping && !observed.drained {
            steps.push(Step::Drain);
        }
        steps.push(Step::Stop);
    }
    steps.push(Step::Remove);
    Plan { steps, hold: None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Step::{Configure, Discard, Drain, Fetch, Flip, Prune, Remove, Start, Stop};
    use super::*;
    use crate::version::Tombstone;

    fn digest(text: &str) -> Digest {
        Digest::of(text)
    }

    fn want(uid: &str, generation: u64, spec: &str) -> Desired {
        Desired {
            uid: uid.into(),
            generation,
            digest: digest(spec),
            spec: serde_json::from_value(
                serde_json::json!({"launchables": {"web": {"location": "file:/a"}}}),
            )
            .unwrap(),
            labels: std::collections::BTreeMap::new(),
            tombstone: None,
            unsupported: None,
        }
    }

    fn order(desired: Desired) -> Order {
        Order::Want(Box::new(desired))
    }

    fn tombstoned(mut desired: Desired) -> Order {
        desired.tombstone = Some(Tombstone {
            grace: None,
            by: "me".into(),
            reason: None,
        });
        order(desired)
    }

    /// Version `spec` of u1 runs.
    fn running(spec: &str) -> Observed {
        Observed {
            uid: "u1".into(),
            seen: Some((1, digest(spec))),
            current: Some(digest(spec)),
            ..Observed::default()
        }
    }

    fn steps(order: &Order, observed: &Observed) -> Vec<Step> {
        plan(order, observed).steps
    }

    #[test]
    fn a_new_pod_is_fetched_configured_and_started() {
        let observed = Observed {
            at_rest: true,
            ..Observed::default()
        };
        let plan = plan(&order(want("u1", 1, "a")), &observed);
        assert_eq!(plan.steps, [Fetch, Configure, Flip, Start, Prune]);
        assert_eq!(plan.hold, None);
    }

    #[test]
    fn the_old_version_is_stopped_only_after_the_new_one_is_fetched() {
        let newer = order(want("u1", 2, "b"));
        let all = [Fetch, Configure, Drain, Stop, Flip, Start, Prune];
        assert_eq!(steps(&newer, &running("a")), all);
        let fetched = Observed {
            next: Some(digest("b")),
            ..running("a")
        };
        assert_eq!(steps(&newer, &fetched), all[1..]);
        let drained = Observed {
            drained: true,
            position: Position::Draining,
            ..fetched
        };
        assert_eq!(
            steps(&newer, &drained),
            [Configure, Stop, Flip, Start, Prune]
        );
        let stopped = Observed {
            at_rest: true,
            position: Position::Stopped,
            ..drained
        };
        assert_eq!(steps(&newer, &stopped), [Configure, Flip, Start, Prune]);
    }

    #[test]
    fn a_version_whose_predecessor_is_stopped_is_finished_first() {
        let stopped = Observed {
            next: Some(digest("b")),
            at_rest: true,
            position: Position::Stopped,
            ..running("a")
        };
        for order in [order(want("u1", 3, "c")), Order::Missing, Order::Unknown] {
            assert_eq!(
                steps(&order, &stopped),
                [Configure, Flip, Start, Prune],
                "{order:?}"
            );
        }
    }

    #[test]
    fn going_back_to_what_runs_stops_nothing() {
        let fetched = Observed {
            next: Some(digest("b")),
            seen: Some((2, digest("b"))),
            ..running("a")
        };
        assert_eq!(steps(&order(want("u1", 3, "a")), &fetched), [Discard]);
    }

    #[test]
    fn what_is_wanted_and_runs_is_left_alone_and_started_again_when_its_supervisor_is_lost() {
        let same = order(want("u1", 1, "a"));
        assert_eq!(steps(&same, &running("a")), []);
        let lost = Observed {
            missing: true,
            ..running("a")
        };
        for order in [same, Order::Missing, Order::Unknown] {
            assert_eq!(steps(&order, &lost), [Start], "{order:?}");
        }
    }

    #[test]
    fn a_pod_that_never_runs_twice_is_started_only_while_it_is_known_to_be_wanted() {
        let stopped = Observed {
            missing: true,
            singleton: true,
            ..running("a")
        };
        for order in [Order::Unknown, Order::Missing] {
            assert_eq!(plan(&order, &stopped).steps, []);
            let other = Observed {
                singleton: false,
                ..stopped.clone()
            };
            assert_eq!(plan(&order, &other).steps, [Start], "others are");
        }
        let wanted = Order::Want(Box::new(want("u1", 1, "a")));
        assert_eq!(plan(&wanted, &stopped).steps, [Start]);
    }

    #[test]
    fn only_a_tombstone_ends_a_pod() {
        let gone = tombstoned(want("u1", 1, "a"));
        assert_eq!(steps(&gone, &running("a")), [Drain, Stop, Remove]);
        let at_rest = Observed {
            at_rest: true,
            ..running("a")
        };
        assert_eq!(steps(&gone, &at_rest), [Remove]);
        // Also of a pod that never ran, and of one whose record was lost.
        assert_eq!(
            steps(
                &gone,
                &Observed {
                    at_rest: true,
                    ..Observed::default()
                }
            ),
            [Remove]
        );
        let unidentified = Observed {
            unidentified: true,
            ..Observed::default()
        };
        assert_eq!(steps(&gone, &unidentified), [Drain, Stop, Remove]);
    }

    #[test]
    fn orders_that_do_not_follow_are_held() {
        let observed = Observed {
            seen: Some((5, digest("a"))),
            ..running("a")
        };
        let cases = [
            (Order::Missing, "Unexplained"),
            (order(want("u2", 9, "b")), "UidChanged"),
            (tombstoned(want("u2", 9, "b")), "UidChanged"),
            (order(want("u1", 4, "b")), "GenerationWentBack"),
            (order(want("u1", 5, "b")), "GenerationRewritten"),
            (
                order(Desired {
                    unsupported: Some("spec.x".into()),
                    ..want("u1", 6, "b")
                }),
                "Unsupported",
            ),
        ];
        for (order, reason) in cases {
            let plan = plan(&order, &observed);
            assert_eq!(plan.steps, [], "{order:?}");
            assert_eq!(plan.hold.as_ref().map(Hold::reason), Some(reason));
            assert!(!plan.hold.unwrap().message().is_empty());
        }
    }

    #[test]
    fn names_that_would_leave_the_pods_directories_are_refused() {
        for name in ["../../etc", "a/b", "..", ""] {
            let mut desired = want("u1", 1, "a");
            let launchable = desired.spec.launchables.remove("web").unwrap();
            desired.spec.launchables.insert(name.into(), launchable);
            let plan = plan(
                &order(desired),
                &Observed {
                    at_rest: true,
                    ..Observed::default()
                },
            );
            assert_eq!(
                (plan.steps.len(), plan.hold.unwrap().reason()),
                (0, "Invalid"),
                "{name}"
            );
        }
    }

    #[test]
    fn a_new_pod_takes_the_name_of_one_that_left_nothing() {
        let leftover = Observed {
            current: None,
            at_rest: true,
            ..running("a")
        };
        assert!(!steps(&order(want("u2", 1, "b")), &leftover).is_empty());
    }

    fn positions() -> impl Strategy<Value = Position> {
        prop_oneof![
            Just(Position::Settled),
            Just(Position::Draining),
            Just(Position::Stopping),
            Just(Position::Stopped)
        ]
    }

    prop_compose! {
        fn any_observed()(
            uid in 0..3, seen in proptest::option::of((1..4u64, 0..3)),
            current in proptest::option::of(0..3), next in proptest::option::of(0..3),
            position in positions(),
            flags in any::<[bool; 6]>(),
        ) -> Observed {
            let version = |n: i32| digest(&n.to_string());
            let uid = if uid == 0 { Uid::default() } else { format!("u{uid}").as_str().into() };
            Observed {
                uid,
                seen: seen.map(|(generation, spec)| (generation, version(spec))),
                current: current.map(version),
                next: next.map(version),
                position,
                drained: flags[0], at_rest: flags[1], missing: flags[2],
                stale: flags[3], unidentified: flags[4], singleton: flags[5],
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_is_stopped_without_an_order(observed in any_observed()) {
            for order in [Order::Missing, Order::Unknown] {
                let steps = steps(&order, &observed);
                prop_assert!(!steps.contains(&Remove) && !steps.contains(&Drain));
                // What was being stopped for a version that is ready goes on to that version.
                let committed = observed.position >= Position::Stopping && observed.next.is_some();
                prop_assert!(!steps.contains(&Stop) || committed);
            }
        }

        #[test]
        fn a_running_version_is_never_stopped_before_the_next_is_there(
            observed in any_observed(), generation in 1..5u64, spec in 0..3_i32,
        ) {
            let desired = want("u1", generation, &spec.to_string());
            let steps = steps(&order(desired), &observed);
            let at = |step| steps.iter().position(|s| *s == step);
            if let Some(stop) = at(Stop) {
                prop_assert!(observed.next.is_some() || at(Fetch).is_some_and(|fetch| fetch < stop));
                prop_assert!(at(Flip).is_some_and(|flip| flip > stop));
            }
            prop_assert!(!steps.contains(&Remove));
        }
    }
}
