//! What comes next with an object, and what that waits for: from what it says of itself.

use serde_json::Value;

use super::plain;

/// The lines that say it, the most urgent first. Never none. `node`: that of a pod.
pub(super) fn next(kind: &str, object: &Value, node: Option<&Value>) -> Vec<String> {
    let mut lines = Vec::new();
    let mut say = |line: String| {
        if !line.is_empty() && !lines.contains(&line) {
            lines.push(line);
        }
    };
    let said = Said(&object["status"]["conditions"]);
    say(unseen(object));
    match kind {
        "Pod" => {
            say(node.map_or_else(String::new, of_its_node));
            say(of_pod(object, said));
        }
        "Node" => say(said.unless("Alive", "True", "silent")),
        _ => {}
    }
    say(said.when("Held", "True", "held"));
    let stalled = said.when("Stalled", "True", "stalled");
    let progress = said.message("Progressing");
    // One that is stalled says there what it waits for, too, mostly in the same words.
    if !stalled.contains(&progress) || progress.is_empty() {
        say(stalled.clone());
        say(progress);
    } else {
        say(stalled);
    }
    match kind {
        "Pod" => {}
        "Node" => say(said.unless("Available", "True", "takes no new pods")),
        "DisruptionBudget" => say(said.message("Disruptable")),
        _ => {}
    }
    if lines.is_empty() {
        let rests = said.message(if kind == "Pod" { "Ready" } else { "Available" });
        lines.push(match rests.is_empty() {
            true => "nothing is to be done".to_owned(),
            false => format!("nothing is to be done: {rests}"),
        });
    }
    lines
}

/// Conditions.
#[derive(Clone, Copy)]
struct Said<'o>(&'o Value);

impl<'o> Said<'o> {
    fn get(self, kind: &str) -> Option<&'o Value> {
        let mut all = self.0.as_array()?.iter();
        all.find(|condition| condition["type"] == kind)
    }

    /// Its message, or where there is none its reason.
    fn text(condition: &Value) -> String {
        match line(&condition["message"]) {
            empty if empty.is_empty() => line(&condition["reason"]),
            message => message,
        }
    }

    fn message(self, kind: &str) -> String {
        let condition = self.get(kind);
        condition.map_or_else(String::new, |it| line(&it["message"]))
    }

    /// What a condition says when its status is this.
    fn when(self, kind: &str, status: &str, what: &str) -> String {
        let condition = self.get(kind).filter(|it| it["status"] == status);
        condition.map_or_else(String::new, |it| format!("{what}: {}", Self::text(it)))
    }

    /// What a condition says unless its status is this.
    fn unless(self, kind: &str, status: &str, what: &str) -> String {
        let condition = self.get(kind).filter(|it| it["status"] != status);
        condition.map_or_else(String::new, |it| format!("{what}: {}", Self::text(it)))
    }
}

fn line(value: &Value) -> String {
    plain(value.as_str().unwrap_or_default()).replace(['\n', '\t'], " ")
}

/// Nobody has acted on the newest spec.
fn unseen(object: &Value) -> String {
    let wanted = object["metadata"]["generation"]
        .as_u64()
        .unwrap_or_default();
    match object["status"]["observedGeneration"].as_u64() {
        Some(observed) if observed < wanted => {
            format!("waiting: of {wanted} generations of its spec {observed} are acted on")
        }
        None if wanted > 0 => "waiting: nobody has acted on it yet".to_owned(),
        _ => String::new(),
    }
}

/// A pod's node is not heard of: what was last said of the pod may not be so any more.
fn of_its_node(node: &Value) -> String {
    let said = Said(&node["status"]["conditions"]);
    let name = line(&node["metadata"]["name"]);
    let what = format!("what follows is old, its node {name} is silent");
    said.unless("Alive", "True", &what)
}

/// What a pod waits for until it is ready, or gone.
fn of_pod(pod: &Value, said: Said<'_>) -> String {
    let status = &pod["status"];
    let phase = match line(&status["phase"]) {
        empty if empty.is_empty() => "Pending".to_owned(),
        phase => phase,
    };
    let told = match line(&status["message"]) {
        empty if empty.is_empty() => line(&status["reason"]),
        message => message,
    };
    let with = |what: String| match told.is_empty() {
        true => what,
        false => format!("{what}: {told}"),
    };
    if pod["metadata"]["deletion"].is_object() {
        return with(format!("ending ({phase})"));
    }
    match phase.as_str() {
        "Running" => said.unless("Ready", "True", "waiting to be ready"),
        "Succeeded" | "Gone" => with(phase),
        "Failed" => with("failed".to_owned()),
        _ if status["reason"] == "Stopped" => with("stopped".to_owned()),
        _ => with(format!("waiting ({phase})")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(conditions: &Value) -> Value {
        json!({
            "metadata": {"generation": 2},
            "status": {"observedGeneration": 2, "conditions": conditions},
        })
    }

    #[test]
    fn what_is_held_comes_before_what_is_stalled_and_that_before_what_is_waited_for() {
        let all = object(&json!([
            {"type": "Available", "status": "False", "message": "3 of 10 pods are ready"},
            {"type": "Progressing", "status": "True", "message": "waiting: 3 of 10 ready"},
            {"type": "Stalled", "status": "True", "message": "nothing has moved for 10m"},
            {"type": "Held", "status": "True", "reason": "Failsafe", "message": "too many at once"},
        ]));
        let lines = next("ReplicationController", &all, None);
        assert_eq!(
            lines,
            [
                "held: too many at once",
                "stalled: nothing has moved for 10m",
                "waiting: 3 of 10 ready"
            ]
        );
        let same = object(&json!([
            {"type": "Progressing", "status": "True", "message": "waiting: 3 of 10 ready"},
            {"type": "Stalled", "status": "True", "message": "nothing has moved for 10m: waiting: 3 of 10 ready"},
        ]));
        assert_eq!(
            next("RollingUpdate", &same, None),
            ["stalled: nothing has moved for 10m: waiting: 3 of 10 ready"]
        );
    }

    #[test]
    fn what_rests_says_so_with_its_numbers() {
        let rests = object(&json!([
            {"type": "Available", "status": "True", "message": "10 of 10 pods are ready"},
            {"type": "Progressing", "status": "False", "message": ""},
            {"type": "Held", "status": "False", "message": ""},
        ]));
        assert_eq!(
            next("DaemonSet", &rests, None),
            ["nothing is to be done: 10 of 10 pods are ready"]
        );
        assert_eq!(
            next("Site", &object(&json!([])), None),
            ["nothing is to be done"]
        );
        let mut unseen = rests;
        unseen["status"]["observedGeneration"] = 1.into();
        assert_eq!(
            next("DaemonSet", &unseen, None),
            ["waiting: of 2 generations of its spec 1 are acted on"]
        );
        assert_eq!(
            next("DaemonSet", &json!({"metadata": {"generation": 1}}), None),
            ["waiting: nobody has acted on it yet"]
        );
    }

    #[test]
    fn a_node_and_a_budget_say_theirs() {
        let node = object(&json!([
            {"type": "Alive", "status": "Unknown", "message": "nothing was heard of it for 41 s"},
            {"type": "Available", "status": "False", "message": "a person said so"},
        ]));
        assert_eq!(
            next("Node", &node, None),
            [
                "silent: nothing was heard of it for 41 s",
                "takes no new pods: a person said so"
            ]
        );
        let budget = object(&json!([
            {"type": "Disruptable", "status": "True", "message": "hello: 4 healthy, 3 needed, 1 may go"},
        ]));
        assert_eq!(
            next("DisruptionBudget", &budget, None),
            ["hello: 4 healthy, 3 needed, 1 may go"]
        );
    }

    #[test]
    fn a_pod_says_what_it_waits_for_until_it_is_ready() {
        let pod = |phase: &str, message: &str, ready: (&str, &str)| {
            json!({"metadata": {}, "status": {"phase": phase, "message": message, "conditions": [
                {"type": "Ready", "status": ready.0, "reason": "Some", "message": ready.1},
            ]}})
        };
        for (given, told) in [
            (
                pod(
                    "Fetching",
                    "12 of 40 MiB",
                    ("False", "it was not started yet"),
                ),
                "waiting (Fetching): 12 of 40 MiB",
            ),
            (
                pod("Running", "", ("False", "no answer")),
                "waiting to be ready: no answer",
            ),
            (
                pod("Running", "", ("False", "")),
                "waiting to be ready: Some",
            ),
            (
                pod("Running", "", ("True", "its health check passes")),
                "nothing is to be done: its health check passes",
            ),
            (pod("Failed", "ended", ("False", "x")), "failed: ended"),
        ] {
            let lines = next("Pod", &given, None);
            assert_eq!(lines, [told]);
        }
        let mut ends = pod("Stopping", "", ("False", ""));
        ends["metadata"]["deletion"] = json!({"by": "ann"});
        assert_eq!(next("Pod", &ends, None), ["ending (Stopping)"]);
        assert_eq!(next("Pod", &json!({}), None), ["waiting (Pending)"]);
        // Nothing of it moves the cursor.
        let odd = next("Pod", &pod("Run\u{1b}[31m\nning", "", ("", "")), None);
        assert!(
            odd.iter().all(|line| !line.contains(['\u{1b}', '\n'])),
            "{odd:?}"
        );
        let node = json!({"metadata": {"name": "n1"}, "status": {"conditions": [
            {"type": "Alive", "status": "Unknown", "message": "nothing was heard of it for 41 s"},
        ]}});
        let ready = pod("Running", "", ("True", "its health check passes"));
        assert_eq!(
            next("Pod", &ready, Some(&node)),
            ["what follows is old, its node n1 is silent: nothing was heard of it for 41 s"]
        );
    }
}
