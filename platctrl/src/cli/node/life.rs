//! `node cordon`, `uncordon`, `drain` and `retire`: what people say about a machine that is there.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::NodeVerb;
use crate::api::{Api, Catalog, Collection, Query, Target, media};
use crate::cli::{Setting, find};
use crate::error::{Code, Failure, Result};
use crate::output;

/// Between two looks at what is left.
const AGAIN: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(crate) struct DrainArgs {
    /// The name of the node
    name: String,
    /// Say what would be moved and what would stay, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// How long it may take before this command says what is left
    #[arg(long, default_value = "10m", value_parser = crate::cli::duration, value_name = "TIME")]
    deadline: Duration,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RetireArgs {
    /// The name of the node
    name: String,
    /// Although its agent is heard of: it stops all its pods
    #[arg(long)]
    force: bool,
}

pub(super) async fn run(verb: &NodeVerb, setting: &Setting) -> Result<()> {
    let (api, catalog) = setting.connect().await?;
    let kind = catalog.named("nodes")?;
    let node = |name: &str| Target {
        kind: kind.clone(),
        name: name.to_owned(),
    };
    match verb {
        NodeVerb::Admit { .. } => Ok(()),
        NodeVerb::Cordon { name } => {
            let change = json!({"spec": {"unschedulable": true}});
            change_node(&api, &node(name), &change, "cordoned").await
        }
        NodeVerb::Uncordon { name } => {
            let change = json!({"spec": {"unschedulable": null, "drain": null}});
            change_node(&api, &node(name), &change, "uncordoned").await
        }
        NodeVerb::Drain(args) => drain(&api, &catalog, args, &node(&args.name)).await,
        NodeVerb::Retire(args) => retire(&api, args, &node(&args.name)).await,
    }
}

async fn change_node(api: &Api, node: &Target, change: &Value, done: &str) -> Result<()> {
    find::exact(api, node, "").await?;
    let path = Collection::new(&node.kind, None).object(&node.name);
    api.call(Method::PATCH, &path, Some((media::MERGE_PATCH, change)))
        .await?;
    output::print(format_args!("{} {done}\n", node.title()))
}

/// A pod on a node, and what becomes of it.
struct OnNode {
    name: String,
    /// Why it is not moved.
    stays: Option<String>,
}

/// The pods on a node, those on their way out too.
async fn pods(api: &Api, catalog: &Catalog, node: &str) -> Result<Vec<OnNode>> {
    let all = |word: &str| Ok::<_, Failure>(Collection::new(&catalog.named(word)?, None));
    let (found, _) = find::list(api, &all("pods")?, &Query::default()).await?;
    let owners = all("replicationcontrollers")?;
    let (owners, _) = find::list(api, &owners, &Query::default()).await?;
    let mut there = Vec::new();
    for pod in found.iter().filter(|pod| pod["spec"]["nodeName"] == node) {
        let references = pod["metadata"]["ownerReferences"].as_array();
        let owner = references.into_iter().flatten().find_map(|reference| {
            let is = |owner: &&Value| owner["metadata"]["uid"] == reference["uid"];
            owners.iter().find(is)
        });
        let stays = match owner {
            _ if pod["metadata"]["deletionTimestamp"].is_string() => None,
            None => Some("nothing keeps it that could make another: delete it yourself".to_owned()),
            Some(owner) if owner["spec"]["strategy"] == "Dynamic" => None,
            Some(owner) => {
                let name = owner["metadata"]["name"].as_str().unwrap_or_default();
                Some(format!(
                    "rc/{name} is Static: `strategy: Dynamic` lets it be moved"
                ))
            }
        };
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        there.push(OnNode {
            name: output::plain(name),
            stays: stays.map(|why| output::plain(&why)),
        });
    }
    Ok(there)
}

async fn drain(api: &Api, catalog: &Catalog, args: &DrainArgs, node: &Target) -> Result<()> {
    find::exact(api, node, "").await?;
    let begin = pods(api, catalog, &node.name).await?;
    if args.dry_run {
        for pod in &begin {
            let what = pod.stays.as_deref().unwrap_or("is moved");
            output::print(format_args!("pod/{}: {what}\n", pod.name))?;
        }
        let moved = begin.iter().filter(|pod| pod.stays.is_none()).count();
        let (title, all) = (node.title(), begin.len());
        return output::print(format_args!(
            "{title}: {moved} of {all} pods would be moved (dry run)\n"
        ));
    }
    let change = json!({"spec": {"unschedulable": true, "drain": true}});
    change_node(api, node, &change, "draining").await?;
    let deadline = Instant::now() + args.deadline;
    let mut last = usize::MAX;
    loop {
        let left = pods(api, catalog, &node.name).await?;
        if left.is_empty() {
            return output::print(format_args!("{} drained\n", node.title()));
        }
        if left.len() != last {
            last = left.len();
            output::note(format_args!("{last} pods left on {}", node.title()));
        }
        let staying: Vec<_> = left
            .iter()
            .filter_map(|pod| Some(format!("pod/{}: {}", pod.name, pod.stays.as_deref()?)))
            .collect();
        let only_staying = staying.len() == left.len();
        if only_staying || Instant::now() > deadline {
            let names: Vec<_> = left.iter().map(|pod| format!("pod/{}", pod.name)).collect();
            let told = if only_staying { staying } else { names };
            let message = format!(
                "{} pods are left on {}\n  {}",
                left.len(),
                node.title(),
                told.join("\n  ")
            );
            let code = if only_staying {
                Code::Failed
            } else {
                Code::Timeout
            };
            return Err(Failure::new(code, message).hint(
                "the drain goes on; `platctrl node uncordon` ends it, `platctrl describe rc/NAME` says what a controller waits for",
            ));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn retire(api: &Api, args: &RetireArgs, node: &Target) -> Result<()> {
    let object = find::exact(api, node, "").await?;
    let conditions = object["status"]["conditions"].as_array();
    let alive = conditions
        .into_iter()
        .flatten()
        .find(|it| it["type"] == "Alive");
    let is_silent = alive.is_some_and(|alive| alive["status"] != "True");
    if !is_silent && !args.force {
        let message = format!("the agent of {} is heard of", node.title());
        return Err(Failure::new(Code::Conflict, message).hint(
            "`platctrl node drain` moves its pods in order; --force stops them all at once",
        ));
    }
    let incarnation = object["spec"]["incarnation"].as_u64().unwrap_or_default() + 1;
    let change = json!({
        // The very node that was looked at.
        "metadata": {"resourceVersion": object["metadata"]["resourceVersion"]},
        "spec": {"incarnation": incarnation, "unschedulable": true},
    });
    let done = format!("retired: incarnation {incarnation} begins, the pods of earlier ones end");
    change_node(api, node, &change, &done).await
}
