//! What is said of a node: its conditions.

use platctrl_framework::model::ConditionStatus::{False, True, Unknown};
use platctrl_framework::model::{Condition, ConditionStatus, Object};
use platctrl_kinds::{Node, condition};

use super::{DRAINING, Judged, LOST, Limits, Verdict, is_gone, is_retired};
use crate::ledger::ALIVE;

/// What is said of a node. Without a verdict its life is left as it was said before.
pub(super) fn conditions(node: &Object<Node>, judged: &Judged, limits: &Limits) -> Vec<Condition> {
    let mut all = life(judged, limits);
    all.extend(work(node, judged));
    all
}

fn zone_of(zone: Option<&String>) -> String {
    zone.map_or_else(String::new, |zone| format!(" in zone {zone}"))
}

/// Whether it is heard of, given up, and why not.
fn life(judged: &Judged, limits: &Limits) -> Vec<Condition> {
    let seconds = judged.silent_for.as_secs();
    let silent = format!("nothing was heard of it for {seconds} s");
    let free = || Condition::new(condition::HELD, False, "Free", "");
    // Silent for so long that it would be lost, and not given up all the same.
    let held = |reason: &str, why: String| {
        let message = format!("{silent}, but {why}, and nothing is given up");
        vec![
            Condition::new(ALIVE, Unknown, reason, message.clone()),
            Condition::new(LOST, False, reason, ""),
            Condition::new(condition::HELD, True, reason, message),
        ]
    };
    match &judged.verdict {
        Verdict::Open => Vec::new(),
        Verdict::Alive => vec![
            Condition::new(ALIVE, True, "Beats", "its agent is heard of"),
            Condition::new(LOST, False, "Beats", ""),
            free(),
        ],
        Verdict::Unknown => vec![
            Condition::new(
                ALIVE,
                Unknown,
                "Silent",
                format!(
                    "{silent}; after {} s it is lost, and its pods may be replaced",
                    limits.lost_after.as_secs()
                ),
            ),
            Condition::new(LOST, False, "Waiting", ""),
            free(),
        ],
        Verdict::Withheld {
            silent: many,
            of,
            zone,
        } => {
            let place = zone_of(zone.as_ref());
            held(
                "ManySilent",
                format!(
                    "{many} of {of} nodes{place} are silent: that is more likely the fault of the network or of who listens"
                ),
            )
        }
        Verdict::Doubted { seen } => held(
            "SecondOpinion",
            format!("{seen}: it does its work and is only cut off from the store"),
        ),
        Verdict::Paced { lost, zone } => {
            let place = zone_of(zone.as_ref());
            let window = limits.rate.window.as_secs();
            held(
                "TooFast",
                format!(
                    "{lost} nodes{place} were given up within {window} s: it waits for its turn"
                ),
            )
        }
        Verdict::Lost => vec![
            Condition::new(ALIVE, False, "Silent", silent.clone()),
            Condition::new(
                LOST,
                True,
                "Silent",
                format!(
                    "{silent}, more than {} s: its pods may be replaced",
                    limits.lost_after.as_secs()
                ),
            ),
            free(),
        ],
    }
}

/// Whether it takes pods, and how far its drain is.
fn work(node: &Object<Node>, judged: &Judged) -> Vec<Condition> {
    let drain = &judged.drain;
    let is = |holds: bool| -> ConditionStatus {
        match holds {
            true => True,
            false => False,
        }
    };
    let takes = match &judged.verdict {
        _ if node.spec.drain => Some((False, "Draining", "its pods are moved away")),
        _ if node.spec.unschedulable => Some((
            False,
            "Cordoned",
            "a person said that it takes no new pods: `platctrl node uncordon` ends that",
        )),
        Verdict::Alive => Some((True, "TakesPods", "it takes pods")),
        // As it was said before.
        Verdict::Open => None,
        _ => Some((
            Unknown,
            "Silent",
            "it takes no new pods until it is heard of",
        )),
    };
    let available =
        takes.map(|(takes, reason, why)| Condition::new("Available", takes, reason, why));
    let available = available.into_iter();
    if is_retired(node) {
        let [progressing, stalled] = retirement(node, judged);
        let draining = match node.spec.drain {
            true => Condition::new(DRAINING, True, "Retiring", progressing.message.clone()),
            false => Condition::new(DRAINING, False, "NotAsked", ""),
        };
        return available.chain([draining, progressing, stalled]).collect();
    }
    if !node.spec.drain {
        let settled = [
            Condition::new(DRAINING, False, "NotAsked", ""),
            Condition::new("Progressing", False, "Settled", ""),
            Condition::new("Stalled", False, "Moving", ""),
        ];
        return available.chain(settled).collect();
    }
    let (done, stuck) = (drain.is_done(), drain.is_stuck());
    let left = match (done, drain.daemons) {
        (true, 0) => "no pod is left on it".to_owned(),
        _ => drain.text(),
    };
    let reason = if done { "Drained" } else { "Draining" };
    let moving = match done {
        true => left.clone(),
        false => format!("its pods are being moved away: {left}"),
    };
    let way_out = "`platctrl node drain --move-static` moves pods of Static controllers, `--delete-bare` deletes those that nothing keeps";
    let draining = [
        Condition::new(DRAINING, True, reason, moving.clone()),
        Condition::new("Progressing", is(!done && !stuck), reason, moving),
        match stuck {
            true => Condition::new("Stalled", True, "PodsStay", format!("{left}; {way_out}")),
            false => Condition::new("Stalled", False, "Moving", ""),
        },
    ];
    available.chain(draining).collect()
}

/// How far the end of a node is that a person has given up: `Progressing` and `Stalled`.
fn retirement(node: &Object<Node>, judged: &Judged) -> [Condition; 2] {
    let incarnation = node.spec.incarnation;
    let left = judged.pods.iter().filter(|pod| !is_gone(pod)).count();
    let pods = match left {
        1 => "1 pod".to_owned(),
        _ => format!("{left} pods"),
    };
    let moving = Condition::new("Stalled", False, "Moving", "");
    if left == 0 {
        let message = format!(
            "retired as incarnation {incarnation} began, and no pod of it is left: delete its record, or let its agent come back"
        );
        return [
            Condition::new("Progressing", False, "Retired", message),
            moving,
        ];
    }
    let message = match &judged.verdict {
        verdict if verdict.is_silent() => format!(
            "retired as incarnation {incarnation} began: {pods} of it are being reported as gone, and may be replaced then"
        ),
        Verdict::Alive => format!(
            "retired as incarnation {incarnation} began: its agent is heard of and ends {pods} itself"
        ),
        _ => format!(
            "retired as incarnation {incarnation} began: {pods} are left until its agent ends them, or is silent"
        ),
    };
    [
        Condition::new("Progressing", True, "Retiring", message),
        moving,
    ]
}
