//! `node cordon`, `uncordon` and `retire`: what people say about a machine that is there.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::drain::{drain, pods};
use super::{NameArgs, NodeVerb};
use crate::api::{Api, Catalog, Collection, Target, media, segment};
use crate::cli::{Setting, find, policy};
use crate::error::{Code, Failure, Result};
use crate::output;
use crate::store::StoreAccess;

/// How long an agent that is heard of may take to stop its pods.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks at that.
const AGAIN: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(crate) struct RetireArgs {
    /// The name of the node, or node/NAME
    #[arg(value_parser = super::node_name)]
    name: String,
    /// Although its agent is heard of: it stops all its pods
    #[arg(long)]
    force: bool,
    /// The machine is off, or its pods are: those that never run twice are replaced, too
    #[arg(long)]
    machine_is_off: bool,
    /// Also take away what its agent may do in this store, as whoever may: etcd://… or consul://…
    #[arg(long, value_name = "URL")]
    revoke_in: Option<String>,
    #[command(flatten)]
    access: Box<StoreAccess>,
}

pub(super) async fn run(verb: &NodeVerb, setting: &Setting) -> Result<()> {
    let (api, catalog) = setting.connect().await?;
    let kind = catalog.named("nodes")?;
    let node = |name: &str| Target {
        kind: kind.clone(),
        name: name.to_owned(),
    };
    match verb {
        NodeVerb::Admit { .. } | NodeVerb::Revoke { .. } | NodeVerb::Inspect(_) => Ok(()),
        NodeVerb::Cordon(NameArgs { name }) => {
            let change = json!({"spec": {"unschedulable": true}});
            change_node(&api, &node(name), &change, "cordoned").await
        }
        NodeVerb::Uncordon(NameArgs { name }) => {
            let change =
                json!({"spec": {"unschedulable": null, "drain": null, "drainStatic": null}});
            change_node(&api, &node(name), &change, "uncordoned").await
        }
        NodeVerb::Drain(args) => drain(&api, &catalog, args, &node(&args.name)).await,
        NodeVerb::Retire(args) => retire(&api, &catalog, args, &node(&args.name)).await,
    }
}

pub(super) async fn change_node(
    api: &Api,
    node: &Target,
    change: &Value,
    done: &str,
) -> Result<()> {
    find::exact(api, node, "").await?;
    let path = Collection::new(&node.kind, None).object(&node.name);
    api.call(Method::PATCH, &path, Some((media::MERGE_PATCH, change)))
        .await?;
    output::done(format_args!("{} {done}\n", node.title()));
    Ok(())
}

async fn retire(api: &Api, catalog: &Catalog, args: &RetireArgs, node: &Target) -> Result<()> {
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
    if is_silent && !args.machine_is_off {
        let there = pods(api, catalog, &node.name).await?;
        let once: Vec<_> = there.iter().filter(|pod| pod.is_singleton).collect();
        if let Some(first) = once.first() {
            let message = format!(
                "{} pods of {} never run twice, pod/{} among them, and nobody can say whether they still run",
                once.len(),
                node.title(),
                first.name
            );
            return Err(Failure::new(Code::Conflict, message).hint(
                "see to it that the machine is off, or cut off from whatever these pods use; then say --machine-is-off",
            ));
        }
    }
    let incarnation = object["spec"]["incarnation"].as_u64().unwrap_or_default() + 1;
    let change = json!({
        // The very node that was looked at.
        "metadata": {"resourceVersion": object["metadata"]["resourceVersion"]},
        "spec": {"incarnation": incarnation, "unschedulable": true},
    });
    let done = format!("retired: incarnation {incarnation} begins, the pods of earlier ones end");
    if is_silent {
        // Before anything of it is replaced.
        revoke(api, args, &node.name).await?;
        return change_node(api, node, &change, &done).await;
    }
    // An agent that is there has to hear the order first.
    change_node(api, node, &change, &done).await?;
    if args.revoke_in.is_some() {
        await_incarnation(api, node, incarnation).await?;
    }
    revoke(api, args, &node.name).await
}

/// Waits until the agent has stopped what it started under earlier incarnations.
async fn await_incarnation(api: &Api, node: &Target, incarnation: u64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let object = find::exact(api, node, "").await?;
        if object["status"]["incarnation"].as_u64() >= Some(incarnation) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let message = format!("the agent of {} does not stop its pods", node.title());
            return Err(Failure::new(Code::Timeout, message)
                .hint("its rights in the store are as they were; the order stands"));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Takes away what the node's agent is known by.
async fn revoke(api: &Api, args: &RetireArgs, name: &str) -> Result<()> {
    if let Some(url) = &args.revoke_in {
        policy::revoke_agent(url, name, &args.access).await?;
    } else {
        output::note(format_args!(
            "hint: what its agent may do in the store is taken away by --revoke-in URL, or by `platctrl store policy URL --role agent --node {name} --revoke`"
        ));
    }
    // Only an admin sees tokens; whoever is none takes the node out of service all the same.
    let tokens = match api.get("/auth/tokens").await {
        Ok(answer) => answer,
        Err(failure) if matches!(failure.code, Code::Denied | Code::NotFound) => {
            output::note("hint: a token of the node, if there is one, is deleted by an admin");
            return Ok(());
        }
        Err(failure) => return Err(failure),
    };
    let its = |token: &&Value| token["name"] == name && token["role"] == "node";
    if let Some(tokens) = tokens["tokens"].as_array()
        && tokens.iter().any(|token| its(&token))
    {
        let path = format!("/auth/tokens/{}", segment(name));
        api.call(Method::DELETE, &path, None).await?;
        output::done(format_args!("token/{name} deleted\n"));
    }
    Ok(())
}
