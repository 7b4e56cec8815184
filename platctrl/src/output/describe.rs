//! Everything about one object, for people: what is wanted, what is, and what happened.

use jiff::Timestamp;
use platctrl_framework::model::KindDefinition;
use serde_json::Value;

use super::next::next;
use super::table::{Table, headings, row};
use super::{age, plain, yaml_text};
use crate::cli;

/// Fields of a status that have a section of their own.
const TOLD_APART: [&str; 3] = ["conditions", "exits", "observedSpec"];

/// The description of an object, with the pods that belong to it, or the node of a pod, and its
/// events, oldest first.
pub(crate) fn describe(
    kind: &KindDefinition,
    object: &Value,
    node: Option<&Value>,
    pods: Option<&(KindDefinition, Vec<Value>)>,
    events: &[Value],
    now: Timestamp,
) -> String {
    let metadata = &object["metadata"];
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            text.push_str(&format!("{:<13}{value}\n", format!("{name}:")));
        }
    };
    let string = |value: &Value| plain(value.as_str().unwrap_or_default());
    line("Name", string(&metadata["name"]));
    line("Namespace", string(&metadata["namespace"]));
    line("Kind", format!("{} ({})", kind.kind, kind.api_version()));
    line("Uid", string(&metadata["uid"]));
    let created = string(&metadata["creationTimestamp"]);
    line(
        "Created",
        format!(
            "{created} ({} ago)",
            age(&metadata["creationTimestamp"], now)
        ),
    );
    line("Labels", pairs(&metadata["labels"]));
    line("Annotations", pairs(&metadata["annotations"]));
    let owners = metadata["ownerReferences"].as_array().into_iter().flatten();
    let owners = owners.map(|owner| {
        format!(
            "{}/{}",
            string(&owner["kind"]).to_lowercase(),
            string(&owner["name"])
        )
    });
    line("Owner", owners.collect::<Vec<_>>().join(", "));
    let deletion = &metadata["deletion"];
    if deletion.is_object() {
        let reason = string(&deletion["reason"]);
        let why = if reason.is_empty() {
            reason
        } else {
            format!(": {reason}")
        };
        line(
            "Ending",
            format!(
                "since {} by {}{why}",
                string(&deletion["at"]),
                string(&deletion["by"])
            ),
        );
    }
    let generation = metadata["generation"].as_u64().unwrap_or_default();
    let observed = object["status"]["observedGeneration"].as_u64();
    let seen = match observed {
        _ if generation == 0 => String::new(),
        Some(observed) if observed >= generation => format!("{generation}, acted on"),
        Some(observed) => format!("{generation}, of which {observed} was acted on"),
        None => format!("{generation}, nobody has acted on it yet"),
    };
    line("Generation", seen);

    section(
        &mut text,
        "Next",
        &next(&kind.kind, object, node).join("\n"),
    );
    section(&mut text, "Spec", &yaml(&object["spec"]));
    let mut status = object["status"].clone();
    if let Value::Object(fields) = &mut status {
        fields.retain(|name, _| !TOLD_APART.contains(&name.as_str()));
    }
    section(&mut text, "Status", &yaml(&status));
    section(
        &mut text,
        "Conditions",
        &conditions(&object["status"]["conditions"], now),
    );
    section(&mut text, "Exits", &exits(&object["status"]["exits"], now));
    if let Some((pod_kind, pods)) = pods.filter(|(_, pods)| !pods.is_empty()) {
        let mut lines = vec![headings(pod_kind, false, true)];
        lines.extend(pods.iter().map(|pod| row(pod_kind, pod, false, true, now)));
        section(&mut text, "Pods", &Table::default().render(&lines));
    }
    let mut lines = vec![
        ["LAST", "TYPE", "REASON", "FROM", "MESSAGE"]
            .map(str::to_owned)
            .to_vec(),
    ];
    lines.extend(events.iter().map(|event| cli::event_line(event, now)));
    let events = if events.is_empty() {
        String::new()
    } else {
        Table::default().render(&lines)
    };
    section(&mut text, "Events", &events);
    text
}

fn section(text: &mut String, name: &str, body: &str) {
    if body.trim().is_empty() {
        return;
    }
    text.push_str(&format!("\n{name}:\n"));
    for line in body.lines() {
        text.push_str("  ");
        text.push_str(line);
        text.push('\n');
    }
}

fn yaml(value: &Value) -> String {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            yaml_text(value).map_or_else(|_| value.to_string(), |text| plain(&text))
        }
        _ => String::new(),
    }
}

fn pairs(value: &Value) -> String {
    let fields = value.as_object().into_iter().flatten();
    // What apply remembers for itself is in the spec.
    let shown = fields.filter(|(name, _)| *name != platctrl_framework::client::LAST_APPLIED);
    let shown =
        shown.map(|(name, value)| plain(&format!("{name}={}", value.as_str().unwrap_or_default())));
    shown.collect::<Vec<_>>().join(", ")
}

fn conditions(value: &Value, now: Timestamp) -> String {
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    if items.is_empty() {
        return String::new();
    }
    let mut lines = vec![
        ["TYPE", "STATUS", "SINCE", "REASON", "MESSAGE"]
            .map(str::to_owned)
            .to_vec(),
    ];
    lines.extend(items.iter().map(|item| {
        let text = |field: &str| plain(item[field].as_str().unwrap_or_default()).replace('\n', " ");
        let since = age(&item["lastTransitionTime"], now);
        vec![
            text("type"),
            text("status"),
            since,
            text("reason"),
            text("message"),
        ]
    }));
    Table::default().render(&lines)
}

fn exits(value: &Value, now: Timestamp) -> String {
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    if items.is_empty() {
        return String::new();
    }
    let mut lines = vec![
        ["AGO", "PROGRAM", "ENDED", "MESSAGE"]
            .map(str::to_owned)
            .to_vec(),
    ];
    lines.extend(items.iter().map(|item| {
        let how = match (item["code"].as_i64(), item["signal"].as_i64()) {
            (Some(code), _) => format!("with code {code}"),
            (None, Some(signal)) => format!("by signal {signal}"),
            (None, None) => "unknown".to_owned(),
        };
        let text = |field: &str| plain(item[field].as_str().unwrap_or_default()).replace('\n', " ");
        vec![
            age(&item["at"], now),
            text("launchable"),
            how,
            text("message"),
        ]
    }));
    Table::default().render(&lines)
}

#[cfg(test)]
mod tests {
    use platctrl_kinds::ReplicationController;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_description_says_what_is_wanted_what_is_and_what_happened() {
        let kind = KindDefinition::of::<ReplicationController>();
        let object = json!({
            "metadata": {"name": "hello", "namespace": "default", "generation": 2, "labels": {"a": "b"},
                "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"replicas": 3},
            "status": {"observedGeneration": 1, "readyReplicas": 2,
                "conditions": [{"type": "Ready", "status": "False", "reason": "Few", "message": "2 of 3"}]},
        });
        let event = json!({"type": "Normal", "reason": "Created", "message": "created pod x", "count": 2,
            "source": {"component": "controllers"}, "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:30Z"});
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        let text = describe(&kind, &object, None, None, &[event], now);
        for part in [
            "Name:        hello\n",
            "Generation:  2, of which 1 was acted on\n",
            "Next:\n  waiting: of 2 generations of its spec 1 are acted on\n",
            "Spec:\n  replicas: 3\n",
            "Ready   False    -       Few      2 of 3\n",
            "30s    Normal   Created   controllers   created pod x (×2 in 60s)\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }
}
