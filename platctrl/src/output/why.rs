//! Why an object is where it is: what the controllers beside the server did about it and wait for.

use serde_json::Value;

use super::plain;

/// Runs of one controller that are shown, the newest.
const RUNS: usize = 3;

/// The part of a description that tells why; empty where nobody knows.
pub(crate) fn why(answer: &Value) -> String {
    let explanations = answer["explanations"].as_array().into_iter().flatten();
    let mut lines = Vec::new();
    for explanation in explanations {
        let summary = text(&explanation["object"]["summary"]);
        if !summary.is_empty() && !lines.contains(&summary) {
            lines.push(summary);
        }
        for story in explanation["controllers"].as_array().into_iter().flatten() {
            lines.extend(told(story));
        }
    }
    if lines.is_empty() {
        return String::new();
    }
    let lines: String = lines.iter().map(|line| format!("  {line}\n")).collect();
    format!("\nWhy:\n{lines}")
}

fn text(value: &Value) -> String {
    plain(value.as_str().unwrap_or_default()).replace('\n', " ")
}

/// What one controller did lately and waits for.
fn told(story: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let name = text(&story["controller"]);
    let mut state = text(&story["state"]["is"]);
    if let Some(failures) = story["failures"].as_u64().filter(|failures| *failures > 0) {
        state.push_str(&format!(", {failures} failures in a row"));
    }
    lines.push(format!("{name}: {state}"));
    for obstacle in story["obstacles"].as_array().into_iter().flatten() {
        lines.push(format!("  held back: {}", text(obstacle)));
    }
    let runs: Vec<_> = story["runs"].as_array().into_iter().flatten().collect();
    for run in runs.iter().rev().take(RUNS) {
        let ago = run["secondsAgo"].as_f64().unwrap_or_default();
        let causes = run["causes"].as_array().into_iter().flatten();
        let causes: Vec<_> = causes.map(text).collect();
        let mut line = format!("  {ago:.0}s ago: {}", text(&run["ending"]));
        if !causes.is_empty() {
            line.push_str(&format!(", because {}", causes.join("; ")));
        }
        if let Some(error) = run["error"].as_str() {
            line.push_str(&format!(": {}", plain(error).replace('\n', " ")));
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_controllers_did_is_told_newest_first_and_nothing_where_nobody_knows() {
        let run = |ago: f64, error: Option<&str>| {
            json!({"secondsAgo": ago, "ending": "failed",
            "causes": ["it changed at revision 7"], "error": error})
        };
        let answer = json!({"explanations": [{
            "object": {"summary": "it waits for a node"},
            "controllers": [{"controller": "replication-controllers", "state": {"is": "waiting"},
                "failures": 2, "obstacles": ["frozen by ann"],
                "runs": [run(9.0, None), run(2.0, Some("no\u{1b}[31m node"))]}],
        }]});
        let told = why(&answer);
        let expected = [
            "  it waits for a node",
            "  replication-controllers: waiting, 2 failures in a row",
            "    held back: frozen by ann",
        ];
        for line in expected {
            assert!(told.lines().any(|it| it == line), "{line} is not in {told}");
        }
        let (new, old) = (told.find("2s ago").unwrap(), told.find("9s ago").unwrap());
        assert!(new < old && !told.contains('\u{1b}'), "{told}");
        assert_eq!(why(&json!({"explanations": []})), "");
        assert_eq!(why(&Value::Null), "");
    }
}
