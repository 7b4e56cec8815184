//! How far a roll is on each node, as plain data: what [`live`](super::live) shows.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{number, text};
use crate::output;

/// How far a pod is. What somebody has to look at comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// It has the wanted version, and does not work.
    Failed,
    /// It gets the wanted version.
    Installing,
    /// It ends.
    Leaving,
    /// It has the version that is left.
    Old,
    /// It has the wanted version, and works.
    Healthy,
}

impl Stage {
    const ALL: [Self; 5] = [
        Self::Failed,
        Self::Installing,
        Self::Leaving,
        Self::Old,
        Self::Healthy,
    ];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Installing => "installing",
            Self::Leaving => "leaving",
            Self::Old => "old",
            Self::Healthy => "healthy",
        }
    }
}

/// A pod of a roll.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) node: String,
    pub(super) name: String,
    pub(super) stage: Stage,
    /// What it waits for, or what is wrong with it.
    pub(super) why: String,
}

/// The names of the controller that is to get the pods, and of the one that has them.
pub(super) fn sides(roll: &Value) -> (&str, &str) {
    let (from, to) = (text(roll, "/spec/from"), text(roll, "/spec/to"));
    match roll["spec"]["rollback"] == true || text(roll, "/status/phase") == "RollingBack" {
        true => (from, to),
        false => (to, from),
    }
}

/// How far a pod of one of the two controllers is; None for any other pod.
pub(super) fn moved(roll: &Value, pod: &Value) -> Option<Moved> {
    let (wanted, left) = sides(roll);
    let owners = pod["metadata"]["ownerReferences"].as_array()?;
    let mut owners = owners
        .iter()
        .filter(|owner| owner["kind"] == "ReplicationController")
        .filter_map(|owner| owner["name"].as_str());
    let owner = owners.find(|owner| *owner == wanted || *owner == left)?;
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "Ready");
    let is = |status: &str| ready.is_some_and(|ready| ready["status"] == status);
    let reason = ready.map_or("", |ready| text(ready, "/reason"));
    let is_broken = text(pod, "/status/phase") == "Failed"
        || (is("False") && matches!(reason, "Unhealthy" | "Crashed"));
    let is_leaving = !text(pod, "/metadata/deletionTimestamp").is_empty();
    let stage = match owner == wanted {
        _ if is_leaving => Stage::Leaving,
        true if is("True") => Stage::Healthy,
        true if is_broken => Stage::Failed,
        true => Stage::Installing,
        false => Stage::Old,
    };
    let why = match stage {
        Stage::Healthy => String::new(),
        Stage::Old if is("True") => String::new(),
        Stage::Old => format!("not ready: {}", state(pod, ready)),
        _ => state(pod, ready),
    };
    Some(Moved {
        node: output::plain(text(pod, "/spec/nodeName")),
        name: output::plain(text(pod, "/metadata/name")),
        stage,
        why,
    })
}

/// What a pod says of itself: its phase, and what it waits for.
fn state(pod: &Value, ready: Option<&Value>) -> String {
    let phase = match text(pod, "/status/phase") {
        "" => "Pending",
        phase => phase,
    };
    let own = text(pod, "/status/message");
    let message = match own.is_empty() {
        true => ready.map_or("", |ready| text(ready, "/message")),
        false => own,
    };
    let shown = match message.is_empty() {
        true => phase.to_owned(),
        false => format!("{phase}: {message}"),
    };
    output::plain(&shown).replace(['\n', '\t'], " ")
}

/// What there is on a node, in one line of three cells.
pub(super) fn nodes(pods: &[Moved]) -> Vec<Vec<String>> {
    let mut by_node: BTreeMap<&str, Vec<&Moved>> = BTreeMap::new();
    for pod in pods {
        by_node.entry(&pod.node).or_default().push(pod);
    }
    let mut nodes: Vec<_> = by_node.into_iter().collect();
    for (_, pods) in &mut nodes {
        pods.sort_by(|a, b| (a.stage, &a.name).cmp(&(b.stage, &b.name)));
    }
    // Where something goes on comes first: there may be no room for all.
    nodes.sort_by_key(|(node, pods)| (pods.first().map(|pod| pod.stage), *node));
    let line = |(node, pods): (&str, Vec<&Moved>)| {
        let told = pods.iter().find(|pod| !pod.why.is_empty());
        let why = told.map_or_else(
            || match pods.as_slice() {
                [one] => format!("pod/{}", one.name),
                _ => String::new(),
            },
            |pod| format!("pod/{}: {}", pod.name, pod.why),
        );
        let what = match pods.as_slice() {
            [one] => one.stage.as_str().to_owned(),
            several => counts(&several.iter().map(|pod| pod.stage)),
        };
        let node = if node.is_empty() { "-" } else { node };
        vec![node.to_owned(), what, why]
    };
    nodes.into_iter().map(line).collect()
}

/// `1 failed, 2 old`
pub(super) fn counts(stages: &(impl Iterator<Item = Stage> + Clone)) -> String {
    let of = |stage: Stage| stages.clone().filter(|it| *it == stage).count();
    let counted = Stage::ALL.map(|stage| (of(stage), stage));
    let told = counted.iter().filter(|(count, _)| *count > 0);
    let told: Vec<_> = told
        .map(|(count, stage)| format!("{count} {}", stage.as_str()))
        .collect();
    told.join(", ")
}

/// `[####      ] 2 of 5 moved, 5 healthy, 4 needed`
pub(super) fn bar(roll: &Value) -> String {
    const WIDTH: u64 = 20;
    let (moved, of) = (
        number(roll, "/status/updated"),
        number(roll, "/spec/replicas"),
    );
    let filled = match of {
        0 => WIDTH,
        of => moved.min(of).saturating_mul(WIDTH) / of,
    };
    let (bar, rest) = (
        "#".repeat(filled as usize),
        " ".repeat((WIDTH - filled) as usize),
    );
    format!(
        "[{bar}{rest}] {moved} of {of} moved, {} healthy, {} needed",
        number(roll, "/status/healthy"),
        number(roll, "/status/floor")
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn roll(rollback: bool) -> Value {
        json!({
            "metadata": {"name": "a-2"},
            "spec": {"from": "a", "to": "a-2", "replicas": 4, "rollback": rollback},
            "status": {"updated": 1, "healthy": 3, "floor": 3},
        })
    }

    fn pod(name: &str, node: &str, owner: &str, phase: &str, ready: &Value) -> Value {
        json!({
            "metadata": {"name": name, "ownerReferences": [
                {"kind": "ReplicationController", "name": owner, "uid": "u"},
            ]},
            "spec": {"nodeName": node},
            "status": {"phase": phase, "message": "", "conditions": [ready]},
        })
    }

    fn ready(status: &str, reason: &str, message: &str) -> Value {
        json!({"type": "Ready", "status": status, "reason": reason, "message": message})
    }

    #[test]
    fn a_pod_is_as_far_as_its_owner_and_its_health_say() {
        let good = || ready("True", "Healthy", "");
        for (owner, phase, health, stage, why) in [
            ("a", "Running", good(), Stage::Old, ""),
            ("a-2", "Running", good(), Stage::Healthy, ""),
            (
                "a-2",
                "Fetching",
                ready("Unknown", "Updating", "12 of 40 MiB"),
                Stage::Installing,
                "Fetching: 12 of 40 MiB",
            ),
            (
                "a-2",
                "Running",
                ready("False", "Crashed", "ended with code 1"),
                Stage::Failed,
                "Running: ended with code 1",
            ),
            (
                "a-2",
                "Running",
                ready("False", "NotChecked", ""),
                Stage::Installing,
                "Running",
            ),
            (
                "a",
                "Failed",
                ready("False", "Crashed", "x"),
                Stage::Old,
                "not ready: Failed: x",
            ),
        ] {
            let found = moved(&roll(false), &pod("p", "n", owner, phase, &health)).unwrap();
            assert_eq!(
                (found.stage, found.why.as_str()),
                (stage, why),
                "{owner} {phase}"
            );
        }
        // On the way back the sides are changed.
        let found = moved(&roll(true), &pod("p", "n", "a", "Running", &good())).unwrap();
        assert_eq!(found.stage, Stage::Healthy);
        let mut leaving = pod("p", "n", "a", "Stopping", &ready("False", "Draining", ""));
        leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert_eq!(moved(&roll(false), &leaving).unwrap().stage, Stage::Leaving);
        assert!(moved(&roll(false), &pod("p", "n", "b", "Running", &good())).is_none());
        assert!(moved(&roll(false), &json!({})).is_none());
    }

    #[test]
    fn of_each_node_what_needs_a_look_is_told_first() {
        let one = |node: &str, name: &str, stage: Stage, why: &str| Moved {
            node: node.into(),
            name: name.into(),
            stage,
            why: why.into(),
        };
        let lines = nodes(&[
            one("n1", "a", Stage::Healthy, ""),
            one("n2", "b", Stage::Old, ""),
            one("n3", "c", Stage::Old, ""),
            one("n3", "d", Stage::Failed, "Crashed"),
        ]);
        assert_eq!(
            lines,
            [
                ["n3", "1 failed, 1 old", "pod/d: Crashed"],
                ["n2", "old", "pod/b"],
                ["n1", "healthy", "pod/a"],
            ]
        );
        assert_eq!(
            bar(&roll(false)),
            "[#####               ] 1 of 4 moved, 3 healthy, 3 needed"
        );
        assert!(bar(&json!({})).contains("0 of 0"));
    }

    #[test]
    fn nothing_that_a_pod_says_moves_the_cursor() {
        let odd = pod(
            "p\u{1b}[2J",
            "n",
            "a-2",
            "Run\nning",
            &ready("False", "X", "\u{1b}[31m\n"),
        );
        let found = moved(&roll(false), &odd).unwrap();
        let all = format!("{}{}", found.name, found.why);
        assert!(!all.contains('\u{1b}') && !all.contains('\n'), "{all:?}");
    }
}
