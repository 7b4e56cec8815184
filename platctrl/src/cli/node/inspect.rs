//! `node inspect`: what is on this machine, from its files alone, joined with what the server says
//! about it where one answers.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use platctrl_agent::{InspectedPod, PodName, Position};
use serde_json::{Value, json};
use tokio::net::UnixStream;

use crate::api::{Api, Collection, Query};
use crate::cli::{Setting, here, list};
use crate::error::{Failure, Result};
use crate::output::{self, Table};
use crate::roles::desk;

/// How long a server may take to say what it knows.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// How to print it
    #[arg(short, long, value_name = "FORMAT", value_parser = ["json", "table"], default_value = "table")]
    output: String,
}

pub(super) async fn run(args: &InspectArgs, setting: &Setting) -> Result<()> {
    let data_dir = here::data_dir(setting)?;
    let directory = data_dir.clone();
    let looked = tokio::task::spawn_blocking(move || {
        let pods = here::pods(&directory)?;
        let node = platctrl_agent::inspect_node(&directory).map_err(Failure::failed)?;
        Ok::<_, Failure>((pods, node))
    });
    let (pods, node) = looked.await.map_err(Failure::failed)??;
    let agent = agent(&data_dir).await;
    let stored = match tokio::time::timeout(PATIENCE, stored(setting)).await {
        Ok(Ok(stored)) => Some(stored),
        Ok(Err(failure)) => {
            output::note(format_args!("the store is not asked: {failure}"));
            None
        }
        Err(_) => {
            output::note("the store is not asked: the server does not answer");
            None
        }
    };
    let joined: Vec<_> = pods
        .iter()
        .map(|pod| Joined {
            pod,
            stored: stored.as_ref().map(|stored| stored.get(&pod.name)),
        })
        .collect();
    if args.output == "json" {
        let items: Vec<_> = joined.iter().map(Joined::json).collect();
        let mut node = json!(node);
        node["agent"] = agent.into();
        let all = json!({"kind": "List", "node": node, "items": items});
        return output::print(output::json_text(&all));
    }
    output::note(format_args!(
        "the agent {agent}; incarnation {}; {} of {} are left in {}",
        node.incarnation,
        bytes(node.disk_free),
        bytes(node.disk_size),
        data_dir.display()
    ));
    let heading = [
        "NAMESPACE",
        "POD",
        "WANTED",
        "RUNS",
        "PHASE",
        "HEALTH",
        "PIDS",
        "RESTARTS",
        "DISK",
        "STATE",
    ];
    let mut lines = vec![heading.map(str::to_owned).to_vec()];
    lines.extend(joined.iter().map(Joined::line));
    output::print(Table::default().render(&lines))
}

/// What the agent of this machine does, in words.
async fn agent(data_dir: &Path) -> String {
    let socket = desk::socket(data_dir);
    if UnixStream::connect(&socket).await.is_err() {
        return "does not run".to_owned();
    }
    let agent = Api::unix(socket);
    match tokio::time::timeout(PATIENCE, agent.stream("/readyz")).await {
        Ok(Ok(_)) => "takes orders".to_owned(),
        Ok(Err(failure)) => format!("takes no orders: {}", output::plain(&failure.message)),
        Err(_) => "does not answer".to_owned(),
    }
}

/// Every pod that the server knows, by name.
async fn stored(setting: &Setting) -> Result<BTreeMap<PodName, Value>> {
    let (api, catalog) = setting.connect().await?;
    let kind = catalog.named("pods")?;
    let (items, _) = list(&api, &Collection::new(&kind, None), &Query::default()).await?;
    let named = items.into_iter().filter_map(|pod| {
        let text = |field: &str| pod["metadata"][field].as_str().map(str::to_owned);
        let name = PodName::new(text("namespace")?, text("name")?).ok()?;
        Some((name, pod))
    });
    Ok(named.collect())
}

/// A pod of this machine, and what is stored about it; None inside: nothing is.
struct Joined<'a> {
    pod: &'a InspectedPod,
    stored: Option<Option<&'a Value>>,
}

impl Joined<'_> {
    fn json(&self) -> Value {
        let mut value = json!(self.pod);
        if let Some(stored) = self.stored {
            value["stored"] = match stored {
                None => Value::Null,
                Some(pod) => json!({
                    "uid": pod["metadata"]["uid"],
                    "generation": pod["metadata"]["generation"],
                    "deletionTimestamp": pod["metadata"]["deletionTimestamp"],
                    "phase": pod["status"]["phase"],
                    "observedGeneration": pod["status"]["observedGeneration"],
                    "spec": pod["spec"],
                    "status": pod["status"],
                }),
            };
        }
        value["state"] = self.state().into();
        value
    }

    /// How what is here and what is wanted go together, in words.
    fn state(&self) -> String {
        let pod = self.pod;
        match self.stored {
            Some(None) if !pod.uid.is_empty() => {
                return "not in the store: kept running".into();
            }
            Some(Some(stored)) if stored["metadata"]["uid"] != json!(pod.uid) => {
                return "another pod of that name is wanted".into();
            }
            Some(Some(stored))
                if stored["metadata"]["generation"].as_u64() > pod.wanted_generation =>
            {
                return "a newer generation is wanted, and not heard of yet".into();
            }
            _ => {}
        }
        if pod.ending {
            return "ending".into();
        }
        if pod.stopped {
            return "stopped here".into();
        }
        if let Some(restart) = &pod.restart {
            return match restart.granted {
                true => "restarting".into(),
                false => format!("asks for a restart: {}", output::plain(&restart.why)),
            };
        }
        if let Some(problem) = pod.programs.iter().find(|it| !it.message.is_empty()) {
            let (program, message) = (&problem.program, &problem.message);
            return output::plain(&format!("{program}: {message}"));
        }
        if pod.programs.iter().any(|it| it.supervisor.is_none()) {
            return "without a supervisor".into();
        }
        if pod.wanted_generation == pod.running_generation {
            return "as wanted".into();
        }
        if let Some(why) = &pod.reverted {
            return output::plain(&format!("went back to the version before: {why}"));
        }
        // What it waits for, as its agent said last.
        let said = self.stored.flatten().map(|stored| &stored["status"]);
        let said = said.and_then(|status| status["message"].as_str());
        let said = said.filter(|said| !said.is_empty());
        let said = said.map_or_else(String::new, |said| format!(": {said}"));
        let does = match pod.position {
            Position::Settled => "getting the wanted version ready",
            Position::Draining | Position::Disabling | Position::Stopping => {
                "the version before is being stopped"
            }
            _ => "the wanted version is being started",
        };
        output::plain(&format!("{does}{said}"))
    }

    fn line(&self) -> Vec<String> {
        let pod = self.pod;
        let number = |it: Option<u64>| it.map_or_else(|| "-".to_owned(), |it| it.to_string());
        let pids: Vec<_> = pod.programs.iter().filter_map(|it| it.pid).collect();
        let pids: Vec<_> = pids.iter().map(u32::to_string).collect();
        let health = match &pod.health {
            None => "-",
            Some(platctrl_agent::health::Verdict::Healthy) => "healthy",
            Some(platctrl_agent::health::Verdict::Unhealthy { .. }) => "unhealthy",
            Some(platctrl_agent::health::Verdict::Unknown) => "unknown",
        };
        let restarts: u64 = pod.programs.iter().map(|it| it.restarts).sum();
        let disk = pod.disk.data + pod.disk.logs + pod.disk.installs;
        vec![
            pod.name.namespace().to_owned(),
            pod.name.name().to_owned(),
            number(pod.wanted_generation),
            number(pod.running_generation),
            match pod.phase.is_empty() {
                true => "-".to_owned(),
                false => output::plain(&pod.phase),
            },
            health.to_owned(),
            if pids.is_empty() {
                "-".to_owned()
            } else {
                pids.join(",")
            },
            restarts.to_string(),
            match pod.disk.at_least {
                true => format!("> {}", bytes(disk)),
                false => bytes(disk),
            },
            self.state(),
        ]
    }
}

fn bytes(count: u64) -> String {
    match count {
        0..1_048_576 => format!("{} KiB", count.div_ceil(1 << 10)),
        1_048_576..1_073_741_824 => format!("{} MiB", count >> 20),
        _ => format!("{:.1} GiB", count as f64 / f64::from(1 << 30)),
    }
}
