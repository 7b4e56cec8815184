//! `node drain`: empties a machine, and tells what stays on it and why.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::life::change_node;
use crate::api::{Api, Catalog, Collection, Query, Target, media};
use crate::cli::find;
use crate::error::{Code, Failure, Result};
use crate::output;

/// Between two looks at what is left.
const AGAIN: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(crate) struct DrainArgs {
    /// The name of the node, or node/NAME
    #[arg(value_parser = super::node_name)]
    pub(super) name: String,
    /// Say what would be moved and what would stay, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// How long it may take before this command says what is left
    #[arg(long, default_value = "10m", value_parser = crate::cli::duration, value_name = "TIME")]
    deadline: Duration,
    /// Also pods of controllers whose strategy is Static: each is replaced elsewhere first
    #[arg(long)]
    move_static: bool,
    /// Delete pods that nothing keeps: they are not made again
    #[arg(long)]
    delete_bare: bool,
}

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    /// Its controller moves it.
    Moves,
    /// It is on its way out.
    Leaves,
    /// Its controller moves it only if that is asked for.
    Static(String),
    /// Its controller does nothing.
    Disabled(String),
    /// A daemon set keeps one on every node of its own.
    Daemon(String),
    /// Nothing keeps it.
    Bare,
}

/// A pod on a node.
pub(super) struct OnNode {
    pub(super) name: String,
    namespace: String,
    uid: Value,
    fate: Fate,
    /// It never runs twice at once.
    pub(super) is_singleton: bool,
}

impl OnNode {
    /// Why it is not moved; None when it is, or is deleted.
    fn stays(&self, args: &DrainArgs) -> Option<String> {
        Some(match &self.fate {
            Fate::Moves | Fate::Leaves => return None,
            Fate::Static(_) if args.move_static => return None,
            Fate::Bare if args.delete_bare => return None,
            Fate::Static(name) => {
                format!(
                    "stays: rc/{name} is Static; --move-static moves it, `strategy: Dynamic` always does"
                )
            }
            Fate::Disabled(name) => format!("stays: rc/{name} is disabled"),
            Fate::Daemon(name) => {
                format!("stays: ds/{name} keeps one on each of its nodes")
            }
            Fate::Bare => {
                "stays: nothing keeps it that could make another; --delete-bare deletes it".into()
            }
        })
    }

    fn is_daemon(&self) -> bool {
        matches!(self.fate, Fate::Daemon(_))
    }

    /// What a dry run says of it.
    fn plan(&self, args: &DrainArgs) -> String {
        match (self.stays(args), &self.fate) {
            (Some(why), _) => why,
            (None, Fate::Bare) => "is deleted: nothing keeps it".to_owned(),
            (None, Fate::Leaves) => "is on its way out".to_owned(),
            (None, _) if self.is_singleton => {
                "is ended, and made anew elsewhere when it is gone".to_owned()
            }
            (None, _) => "is moved".to_owned(),
        }
    }
}

/// The pods on a node, those on their way out too.
pub(super) async fn pods(api: &Api, catalog: &Catalog, node: &str) -> Result<Vec<OnNode>> {
    let all = |word: &str| Ok::<_, Failure>(Collection::new(&catalog.named(word)?, None));
    let (found, _) = find::list(api, &all("pods")?, &Query::default()).await?;
    let owners = all("replicationcontrollers")?;
    let (owners, _) = find::list(api, &owners, &Query::default()).await?;
    let there = found.iter().filter(|pod| pod["spec"]["nodeName"] == node);
    Ok(there.map(|pod| on_node(pod, &owners)).collect())
}

fn on_node(pod: &Value, owners: &[Value]) -> OnNode {
    let text = |value: &Value| output::plain(value.as_str().unwrap_or_default());
    let references = pod["metadata"]["ownerReferences"].as_array();
    let references = references.into_iter().flatten();
    let owner = references.clone().find_map(|reference| {
        let is = |owner: &&Value| owner["metadata"]["uid"] == reference["uid"];
        owners.iter().find(is)
    });
    let daemon = references
        .clone()
        .find(|reference| reference["kind"] == "DaemonSet");
    let fate = match (owner, daemon) {
        _ if pod["metadata"]["deletionTimestamp"].is_string() => Fate::Leaves,
        (Some(owner), _) => {
            let name = text(&owner["metadata"]["name"]);
            if owner["spec"]["disabled"] == true {
                Fate::Disabled(name)
            } else if owner["spec"]["strategy"] == "Dynamic" {
                Fate::Moves
            } else {
                Fate::Static(name)
            }
        }
        (None, Some(set)) => Fate::Daemon(text(&set["name"])),
        (None, None) => Fate::Bare,
    };
    OnNode {
        name: text(&pod["metadata"]["name"]),
        namespace: text(&pod["metadata"]["namespace"]),
        uid: pod["metadata"]["uid"].clone(),
        fate,
        is_singleton: pod["spec"]["singleton"] == true,
    }
}

async fn delete_bare(api: &Api, catalog: &Catalog, pods: &[OnNode]) -> Result<()> {
    let kind = catalog.named("pods")?;
    for pod in pods.iter().filter(|pod| pod.fate == Fate::Bare) {
        let options = json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": pod.uid},
        });
        let path = Collection::new(&kind, Some(&pod.namespace)).object(&pod.name);
        match api
            .call(Method::DELETE, &path, Some((media::JSON, &options)))
            .await
        {
            Ok(_) => output::done(format_args!("pod/{} deleted\n", pod.name)),
            Err(failure) if failure.code == Code::NotFound => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

pub(super) async fn drain(
    api: &Api,
    catalog: &Catalog,
    args: &DrainArgs,
    node: &Target,
) -> Result<()> {
    find::exact(api, node, "").await?;
    let begin = pods(api, catalog, &node.name).await?;
    if args.dry_run {
        for pod in &begin {
            output::print(format_args!("pod/{}: {}\n", pod.name, pod.plan(args)))?;
        }
        let moved = begin.iter().filter(|pod| pod.stays(args).is_none()).count();
        let (title, all) = (node.title(), begin.len());
        return output::print(format_args!(
            "{title}: {moved} of {all} pods would be moved (dry run)\n"
        ));
    }
    let change = json!({"spec": {
        "unschedulable": true, "drain": true,
        "drainStatic": if args.move_static { json!(true) } else { Value::Null },
    }});
    change_node(api, node, &change, "draining").await?;
    if args.delete_bare {
        delete_bare(api, catalog, &begin).await?;
    }
    let deadline = Instant::now() + args.deadline;
    let mut last = usize::MAX;
    loop {
        let there = pods(api, catalog, &node.name).await?;
        let (daemons, left): (Vec<_>, Vec<_>) = there.into_iter().partition(OnNode::is_daemon);
        if left.is_empty() {
            if !daemons.is_empty() {
                let count = daemons.len();
                output::note(format_args!("{count} pods of daemon sets stay on it"));
            }
            return output::print(format_args!("{} drained\n", node.title()));
        }
        if left.len() != last {
            last = left.len();
            output::note(format_args!("{last} pods left on {}", node.title()));
        }
        let staying: Vec<_> = left
            .iter()
            .filter_map(|pod| Some(format!("pod/{}: {}", pod.name, pod.stays(args)?)))
            .collect();
        let only_staying = staying.len() == left.len();
        if only_staying || Instant::now() > deadline {
            let each = left.iter();
            let each = each.map(|pod| format!("pod/{}: {}", pod.name, pod.plan(args)));
            let told: Vec<_> = each.collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn args(move_static: bool, delete_bare: bool) -> DrainArgs {
        DrainArgs {
            name: "n1".into(),
            dry_run: true,
            deadline: AGAIN,
            move_static,
            delete_bare,
        }
    }

    #[test]
    fn a_drain_tells_of_each_pod_what_becomes_of_it() {
        let owners = [
            json!({"metadata": {"name": "still", "uid": "u1"}, "spec": {"strategy": "Static"}}),
            json!({"metadata": {"name": "moves", "uid": "u2"}, "spec": {"strategy": "Dynamic"}}),
            json!({"metadata": {"name": "off", "uid": "u3"}, "spec": {"strategy": "Dynamic", "disabled": true}}),
        ];
        let pod = |owner: Value| {
            let owners_of = match owner {
                Value::Null => json!([]),
                owner => json!([owner]),
            };
            on_node(
                &json!({"metadata": {"name": "p", "uid": "p", "ownerReferences": owners_of}}),
                &owners,
            )
        };
        let plan = |owner: Value, args: &DrainArgs| pod(owner).plan(args);
        let (none, all) = (args(false, false), args(true, true));
        let rc = |uid: &str| json!({"kind": "ReplicationController", "uid": uid});
        assert!(plan(rc("u1"), &none).contains("rc/still is Static; --move-static"));
        assert_eq!(plan(rc("u1"), &all), "is moved");
        assert_eq!(plan(rc("u2"), &none), "is moved");
        assert!(plan(rc("u3"), &all).contains("rc/off is disabled"));
        assert!(plan(Value::Null, &none).contains("--delete-bare"));
        assert_eq!(plan(Value::Null, &all), "is deleted: nothing keeps it");
        let daemon = json!({"kind": "DaemonSet", "name": "logs", "uid": "d"});
        assert!(plan(daemon.clone(), &all).contains("ds/logs keeps one"));
        assert!(pod(daemon).is_daemon());
        let once = json!({"metadata": {"name": "p", "ownerReferences": [rc("u2")]}, "spec": {"singleton": true}});
        assert!(
            on_node(&once, &owners)
                .plan(&none)
                .contains("when it is gone")
        );
    }
}
