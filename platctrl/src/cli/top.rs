//! `top`: what machines and pods use at the moment.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use clap::{Subcommand, ValueEnum};
use serde_json::Value;

use super::{NamespaceFlag, Setting, find};
use crate::api::{Api, Collection, OTHER_VERSION, Query};
use crate::error::{Code, Failure, Result};
use crate::output::{self, Format, Table};

/// What is shown of something that nobody counts.
const UNKNOWN: &str = "<unknown>";

#[derive(Debug, Subcommand)]
pub(crate) enum TopVerb {
    /// Of machines: processors and memory, whoever uses them
    #[command(visible_aliases = ["node", "no"])]
    Nodes(NodesArgs),
    /// Of pods: what their programs use
    #[command(visible_aliases = ["pod", "po"])]
    Pods(PodsArgs),
}

/// What comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum By {
    #[default]
    Name,
    Cpu,
    Memory,
}

/// How the answer is shown.
#[derive(Debug, clap::Args)]
struct Shown {
    /// What comes first: the first name, or who uses most
    #[arg(long, value_enum, default_value_t)]
    sort_by: By,
    /// How to print it [default: table]
    #[arg(
        short,
        long,
        value_name = "table or json",
        default_value = "table",
        hide_default_value = true
    )]
    output: Format,
}

#[derive(Debug, clap::Args)]
pub(crate) struct NodesArgs {
    /// Only this one
    name: Option<String>,
    #[command(flatten)]
    shown: Shown,
}

#[derive(Debug, clap::Args)]
pub(crate) struct PodsArgs {
    /// Only this one
    name: Option<String>,
    #[command(flatten)]
    namespace: NamespaceFlag,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only those whose labels fit
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    #[command(flatten)]
    shown: Shown,
}

pub(crate) async fn run(verb: &TopVerb, setting: &Setting) -> Result<()> {
    match verb {
        TopVerb::Nodes(args) => nodes(args, setting).await,
        TopVerb::Pods(args) => pods(args, setting).await,
    }
}

/// What a server tells; one that tells nothing is no fleet that is idle.
async fn ask(api: &Api, path: &str) -> Result<Value> {
    let answer = api.get(path).await?;
    if answer["items"].is_array() {
        return Ok(answer);
    }
    Err(Failure::failed("the server does not say what is used").hint(OTHER_VERSION))
}

async fn nodes(args: &NodesArgs, setting: &Setting) -> Result<()> {
    let mut answer = ask(&setting.api()?, "/top/nodes").await?;
    keep(&mut answer, "items", |item| {
        is_named(&item["name"], args.name.as_deref())
    });
    keep(&mut answer, "missing", |item| {
        is_named(&item["node"], args.name.as_deref())
    });
    sort(&mut answer, args.shown.sort_by);
    let headings = ["NAME", "CPU", "CPU%", "MEMORY", "MEMORY%", "PODS"];
    print(
        &answer,
        &args.shown.output,
        "node",
        args.name.as_deref(),
        &headings,
        |item| {
            let (usage, capacity) = (&item["usage"], &item["capacity"]);
            let share = |field: &str| {
                let part = usage[field].as_u64().zip(capacity[field].as_u64());
                let percent =
                    part.and_then(|(part, whole)| part.saturating_mul(100).checked_div(whole));
                percent.map_or_else(|| UNKNOWN.to_owned(), |percent| format!("{percent}%"))
            };
            vec![
                text(&item["name"]),
                cpu(usage),
                share("cpuMillis"),
                memory(usage),
                share("memoryBytes"),
                item["pods"].as_u64().unwrap_or_default().to_string(),
            ]
        },
    )
}

async fn pods(args: &PodsArgs, setting: &Setting) -> Result<()> {
    let namespace = (!args.all_namespaces).then_some(args.namespace.namespace.as_str());
    let mut query = Query::default();
    if let Some(namespace) = namespace {
        query = query.with("namespace", namespace);
    }
    let mut answer = match &args.selector {
        None => ask(&setting.api()?, &query.on("/top/pods")).await?,
        Some(selector) => {
            let (api, catalog) = setting.connect().await?;
            let collection = Collection::new(&catalog.named("pods")?, namespace);
            let chosen = Query::default().with("labelSelector", selector);
            let (chosen, _) = find::list(&api, &collection, &chosen).await?;
            let name = |of: &Value| (text(&of["namespace"]), text(&of["name"]));
            let chosen: BTreeSet<_> = chosen.iter().map(|pod| name(&pod["metadata"])).collect();
            let mut answer = ask(&api, &query.on("/top/pods")).await?;
            keep(&mut answer, "items", |item| chosen.contains(&name(item)));
            answer
        }
    };
    keep(&mut answer, "items", |item| {
        is_named(&item["name"], args.name.as_deref())
    });
    sort(&mut answer, args.shown.sort_by);
    let mut headings = vec!["NAMESPACE", "NAME", "NODE", "CPU", "MEMORY"];
    if namespace.is_some() {
        headings.remove(0);
    }
    print(
        &answer,
        &args.shown.output,
        "pod",
        args.name.as_deref(),
        &headings,
        |item| {
            let mut line = vec![
                text(&item["namespace"]),
                text(&item["name"]),
                text(&item["node"]),
                cpu(&item["usage"]),
                memory(&item["usage"]),
            ];
            if namespace.is_some() {
                line.remove(0);
            }
            line
        },
    )
}

fn is_named(name: &Value, wanted: Option<&str>) -> bool {
    wanted.is_none_or(|wanted| name == wanted)
}

fn keep(answer: &mut Value, list: &str, wanted: impl Fn(&Value) -> bool) {
    if let Some(items) = answer[list].as_array_mut() {
        items.retain(wanted);
    }
}

fn sort(answer: &mut Value, by: By) {
    let Some(items) = answer["items"].as_array_mut() else {
        return;
    };
    items.sort_by_cached_key(|item| {
        let most = match by {
            By::Name => 0,
            By::Cpu => item["usage"]["cpuMillis"].as_u64().unwrap_or_default(),
            By::Memory => item["usage"]["memoryBytes"].as_u64().unwrap_or_default(),
        };
        (Reverse(most), text(&item["namespace"]), text(&item["name"]))
    });
}

fn text(value: &Value) -> String {
    output::plain(value.as_str().unwrap_or_default())
}

fn cpu(usage: &Value) -> String {
    usage["cpuMillis"]
        .as_u64()
        .map_or_else(|| UNKNOWN.to_owned(), |millis| format!("{millis}m"))
}

/// As kubectl does, in MiB, and in KiB where there are few.
fn memory(usage: &Value) -> String {
    match usage["memoryBytes"].as_u64() {
        None => UNKNOWN.to_owned(),
        Some(bytes) if bytes >= 10 << 20 => format!("{}Mi", bytes >> 20),
        Some(bytes) => format!("{}Ki", bytes >> 10),
    }
}

fn print(
    answer: &Value,
    format: &Format,
    kind: &str,
    wanted: Option<&str>,
    headings: &[&str],
    line: impl Fn(&Value) -> Vec<String>,
) -> Result<()> {
    let list = |name: &str| answer[name].as_array().into_iter().flatten();
    for missing in list("missing") {
        output::note(format_args!(
            "warning: what is used of node {} is not known: {}",
            text(&missing["node"]),
            text(&missing["message"])
        ));
    }
    if list("items").next().is_none() {
        if list("missing").next().is_some() {
            return Err(Failure::new(Code::Unreachable, "no node says what is used"));
        }
        if let Some(name) = wanted {
            let message = format!("{kind}/{} is not there", output::plain(name));
            return Err(Failure::new(Code::NotFound, message)
                .hint(format!("`platctrl get {kind}s -A` lists what there is")));
        }
    }
    match format {
        Format::Json => {
            let text = serde_json::to_string_pretty(answer).map_err(Failure::failed)?;
            output::print(format_args!("{text}\n"))
        }
        Format::Table | Format::Wide => {
            let head = headings.iter().map(|&it| it.to_owned()).collect();
            let lines: Vec<Vec<String>> = std::iter::once(head)
                .chain(list("items").map(line))
                .collect();
            output::print(Table::default().render(&lines))
        }
        _ => Err(Failure::usage(
            "what is used is printed as a table or as json",
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_uses_most_comes_first_and_what_is_not_known_last() {
        let item = |name: &str, cpu: Value, memory: u64| json!({"namespace": "a", "name": name, "usage": {"cpuMillis": cpu, "memoryBytes": memory}});
        let mut answer = json!({"items": [
            item("c", json!(5), 1), item("b", Value::Null, 3), item("a", json!(7), 2),
        ]});
        let mut order = |by| -> String {
            sort(&mut answer, by);
            let items = answer["items"].as_array().unwrap();
            items
                .iter()
                .map(|it| it["name"].as_str().unwrap())
                .collect()
        };
        assert_eq!(order(By::Cpu), "acb");
        assert_eq!(order(By::Memory), "bac");
        assert_eq!(order(By::Name), "abc");
    }

    #[test]
    fn amounts_are_short_and_unknown_ones_say_so() {
        let used = json!({"cpuMillis": 1500, "memoryBytes": 64_u64 << 20});
        assert_eq!((cpu(&used), memory(&used)), ("1500m".into(), "64Mi".into()));
        assert_eq!(memory(&json!({"memoryBytes": 2048})), "2Ki");
        assert_eq!(
            (cpu(&Value::Null).as_str(), memory(&Value::Null).as_str()),
            (UNKNOWN, UNKNOWN)
        );
    }
}
