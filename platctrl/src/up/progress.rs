//! What a person sees while pods come up: each change of a pod, then where everything answers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use platctrl_agent::AgentHandle;
use platctrl_framework::model::KindDefinition;
use platctrl_kinds::Pod;
use serde_json::Value;

use crate::api::{Api, Catalog, Collection, Query};
use crate::cli::apply::{self, Prepared};
use crate::cli::list;
use crate::error::{Code, Result};
use crate::manifest::Manifests;
use crate::output::{self, Table, at};

/// Between two looks at what is not ready yet.
const LOOK: Duration = Duration::from_millis(100);

/// How many pods there are; None when nobody answers.
pub(super) async fn running(api: &Api) -> Option<usize> {
    let pods = Collection::new(&KindDefinition::of::<Pod>(), None);
    let (items, _) = list(api, &pods, &Query::default()).await.ok()?;
    Some(
        items
            .iter()
            .filter(|pod| {
                pod["status"]["pids"]
                    .as_object()
                    .is_some_and(|it| !it.is_empty())
            })
            .count(),
    )
}

/// Applies manifests and shows what becomes of them; of what was there before when there are none.
pub(super) async fn follow(
    api: &Api,
    agent: &AgentHandle,
    files: &[PathBuf],
    wait: bool,
) -> Result<()> {
    let mut applied = Vec::new();
    if !files.is_empty() {
        let manifests = Manifests::read(files)?;
        let catalog = Catalog::load(api).await?;
        applied = apply::prepare(api, &catalog, manifests, apply::Namespaces::default()).await?;
        for object in &applied {
            let outcome = object.write(api).await?;
            output::note(format_args!("{} {outcome}", object.title()));
        }
    }
    if wait {
        until_ready(api, agent, &applied).await?;
        show(api).await?;
    }
    Ok(())
}

async fn pods(api: &Api) -> Result<Vec<Value>> {
    let pods = Collection::new(&KindDefinition::of::<Pod>(), None);
    Ok(list(api, &pods, &Query::default()).await?.0)
}

fn is_ready(pod: &Value) -> bool {
    at(pod, ".status.conditions.Ready").is_some_and(|ready| ready == "True")
}

/// Waits for what was applied, or for all pods, and tells each change on the way.
async fn until_ready(api: &Api, agent: &AgentHandle, applied: &[Prepared]) -> Result<()> {
    let mut told = BTreeMap::new();
    loop {
        match look(api, agent, applied, &mut told).await {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            // The store may refuse for a while, as on a full disk: that ends nothing.
            Err(failure) if matches!(failure.code, Code::Unreachable | Code::Timeout) => {
                tracing::debug!(%failure, "cannot see how things are");
            }
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Tells what changed; whether everything is ready.
async fn look(
    api: &Api,
    agent: &AgentHandle,
    applied: &[Prepared],
    told: &mut BTreeMap<String, String>,
) -> Result<bool> {
    let all = pods(api).await?;
    // What is in the store may be from before this process: the agent has to have looked.
    let reports = agent.reports();
    let ready: BTreeSet<_> = reports
        .iter()
        .filter(|it| it.is_ready())
        .map(|it| it.uid.as_str())
        .collect();
    let mut settled = true;
    for pod in &all {
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
        if is_ready(pod) && !ready.contains(uid) {
            settled = false;
            continue;
        }
        let (name, state) = state(pod);
        if told.get(&name) != Some(&state) {
            output::note(format_args!("pod/{name} {state}"));
            told.insert(name, state);
        }
    }
    if applied.is_empty() {
        return Ok(settled && all.iter().all(is_ready));
    }
    Ok(settled && are_ready(api, applied).await?)
}

/// A pod's name, and how it is in a line.
fn state(pod: &Value) -> (String, String) {
    let text = |value: &Value| output::plain(value.as_str().unwrap_or_default());
    let name = text(&pod["metadata"]["name"]);
    let status = &pod["status"];
    let phase = Some(text(&status["phase"])).filter(|phase| !phase.is_empty());
    let mut state = phase.unwrap_or_else(|| "Pending".to_owned());
    if is_ready(pod) {
        state.push_str(", ready");
    } else {
        let message = text(&status["message"]);
        if !message.is_empty() {
            state.push_str(": ");
            state.push_str(&message);
        }
    }
    (name, state)
}

async fn are_ready(api: &Api, applied: &[Prepared]) -> Result<bool> {
    for object in applied {
        let answer = api.get(&object.collection().object(&object.name)).await;
        let now = match answer {
            Ok(now) => now,
            // Somebody ended it meanwhile: there is nothing to wait for.
            Err(failure) if failure.code == Code::NotFound => continue,
            Err(failure) => return Err(failure),
        };
        let status = &now["status"];
        let seen = status["observedGeneration"].as_u64().unwrap_or_default()
            >= now["metadata"]["generation"].as_u64().unwrap_or_default();
        let ready = match (now["spec"]["replicas"].as_u64(), object.kind.kind.as_str()) {
            (Some(wanted), _) => status["readyReplicas"].as_u64().unwrap_or_default() >= wanted,
            (None, "Pod") => is_ready(&now),
            _ => true,
        };
        if !(seen && ready) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The pods with their health and where they answer.
async fn show(api: &Api) -> Result<()> {
    let pods = pods(api).await?;
    if pods.is_empty() {
        output::note("there are no pods");
        return Ok(());
    }
    let mut lines = vec![
        ["NAME", "READY", "PHASE", "URL"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for pod in &pods {
        let (name, _) = state(pod);
        let ready = at(pod, ".status.conditions.Ready")
            .and_then(Value::as_str)
            .unwrap_or("Unknown");
        let phase = pod["status"]["phase"].as_str().unwrap_or("Pending");
        lines.push(vec![
            name,
            output::plain(ready),
            output::plain(phase),
            urls(pod),
        ]);
    }
    // Nobody may be there to read it, which is no reason to stop.
    let _ = output::print(Table::default().render(&lines));
    Ok(())
}

fn urls(pod: &Value) -> String {
    let status = &pod["status"];
    let host = status["hostIP"].as_str().unwrap_or("127.0.0.1");
    let ports = status["ports"].as_object().into_iter().flatten();
    let urls = ports.filter_map(|(_, port)| Some(format!("http://{host}:{}", port.as_u64()?)));
    output::plain(&urls.collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_is_told_with_what_it_waits_for() {
        let pod = json!({"metadata": {"name": "a"}, "status": {"phase": "Starting", "message": "port in use"}});
        assert_eq!(state(&pod), ("a".into(), "Starting: port in use".into()));
        let ready = json!({"metadata": {"name": "a"}, "status": {"phase": "Running", "message": "x", "hostIP": "127.0.0.1",
            "ports": {"http": 81}, "conditions": [{"type": "Ready", "status": "True"}]}});
        assert_eq!(state(&ready).1, "Running, ready");
        assert_eq!(urls(&ready), "http://127.0.0.1:81");
    }
}
