//! `failsafe`, `freeze` and `thaw`: what is held back, and what a person says to that.

use std::path::PathBuf;

use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Setting;
use crate::api::{Api, OTHER_VERSION, media};
use crate::error::{Code, Failure, Result};
use crate::manifest::Manifests;
use crate::output::{self, Table};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum FailsafeVerb {
    /// Show what is held back, and whose intents are missing
    List(ListArgs),
    /// Let holds go: what is there now is taken as it is
    Reset(ResetArgs),
    /// Write a lost intent again, as it was last known or as a manifest says
    Adopt(RecallArgs),
    /// End an object in order whose intent was lost
    Remove(RecallArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Print JSON
    #[arg(short, long, value_parser = ["json"], value_name = "FORMAT")]
    output: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ResetArgs {
    /// The holds, as `platctrl failsafe list` names them
    #[arg(
        required_unless_present = "all",
        conflicts_with = "all",
        value_name = "HOLD"
    )]
    holds: Vec<String>,
    /// All of them
    #[arg(long)]
    all: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RecallArgs {
    /// KIND/NAME or KIND NAME
    #[arg(required = true, num_args = 1..=2, value_name = "KIND/NAME")]
    what: Vec<String>,
    #[command(flatten)]
    namespace: super::NamespaceFlag,
    /// Its manifest, when no program remembers it
    #[arg(short, long, value_name = "FILE|-")]
    filename: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct FreezeArgs {
    /// Why, for everybody who asks
    #[arg(long, value_name = "WHY")]
    reason: Option<String>,
}

pub(crate) async fn run(verb: &FailsafeVerb, setting: &Setting) -> Result<()> {
    match verb {
        FailsafeVerb::List(args) => list(args, &setting.api()?).await,
        FailsafeVerb::Reset(args) => reset(args, &setting.api()?).await,
        FailsafeVerb::Adopt(args) => recall(args, setting, "adopt").await,
        FailsafeVerb::Remove(args) => recall(args, setting, "remove").await,
    }
}

/// Stops every change: pods keep running, and are restarted when they crash.
pub(crate) async fn freeze(args: &FreezeArgs, setting: &Setting) -> Result<()> {
    set(args, &setting.api()?, "freeze", "frozen").await
}

/// Ends a freeze.
pub(crate) async fn thaw(args: &FreezeArgs, setting: &Setting) -> Result<()> {
    set(args, &setting.api()?, "thaw", "thawed").await
}

async fn order(api: &Api, what: &str, body: &Value) -> Result<Value> {
    let path = format!("/failsafe/{what}");
    let answer = api
        .call(Method::POST, &path, Some((media::JSON, body)))
        .await?;
    Ok(answer.body)
}

/// A server answered what nobody asked for.
fn strange(what: &str) -> Failure {
    Failure::failed(format!("the server does not say {what}")).hint(OTHER_VERSION)
}

async fn set(args: &FreezeArgs, api: &Api, what: &str, done: &str) -> Result<()> {
    let answer = order(api, what, &json!({"reason": args.reason})).await?;
    let changed = answer["changed"].as_bool();
    let already = !changed.ok_or_else(|| strange("whether it changed anything"))?;
    output::print(format_args!(
        "{}{done}\n",
        if already { "already " } else { "" }
    ))?;
    if what == "freeze" {
        output::note(
            "pods keep running and are restarted when they crash; nothing else changes until `platctrl thaw`",
        );
    }
    Ok(())
}

/// Says that so many changes are meant, before something is done that makes them.
pub(crate) async fn expect(api: &Api, changes: u32) -> Result<()> {
    order(api, "expect", &json!({"changes": changes})).await?;
    Ok(())
}

/// Why nothing happens, if a failsafe holds or everything is frozen. For those who have waited.
pub(crate) async fn held(api: &Api) -> Option<Failure> {
    let state = api.get("/failsafe").await.ok()?;
    if state["frozen"] == true {
        let by = text(&state["freeze"], "by");
        let reason = state["freeze"]["reason"]
            .as_str()
            .unwrap_or("no reason given");
        let message = output::plain(&format!("frozen by {by}: {reason}"));
        return Some(Failure::new(Code::Held, message).hint("`platctrl thaw` lets changes go on"));
    }
    let holds = state["holds"].as_array()?;
    let first = holds.first()?;
    let message = output::plain(&format!("held: {}", text(first, "message")));
    Some(Failure::new(Code::Held, message).hint("`platctrl failsafe list` says what is held"))
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_default()
}

async fn list(args: &ListArgs, api: &Api) -> Result<()> {
    let state = api.get("/failsafe").await?;
    if !state["holds"].is_array() {
        return Err(strange("what it holds"));
    }
    if args.output.is_some() {
        return output::print(output::json_text(&state));
    }
    let now = Timestamp::now();
    if state["frozen"] == true {
        let freeze = &state["freeze"];
        let reason = freeze["reason"].as_str().unwrap_or("no reason given");
        output::print(
            output::plain(&format!(
                "frozen by {} since {}: {reason}",
                text(freeze, "by"),
                output::age(&freeze["at"], now)
            )) + "\n",
        )?;
    }
    let items = |field: &str| state[field].as_array().cloned().unwrap_or_default();
    let (holds, unexplained) = (items("holds"), items("unexplained"));
    if !holds.is_empty() {
        let heading = ["HOLD", "HOLDER", "COUNT", "AGE", "WHY"].map(str::to_owned);
        let line = |hold: &Value| {
            vec![
                output::plain(text(hold, "id")),
                output::plain(text(hold, "holder")),
                hold["count"].to_string(),
                output::age(&hold["since"], now),
                output::plain(text(hold, "message")),
            ]
        };
        let lines: Vec<_> = std::iter::once(heading.to_vec())
            .chain(holds.iter().map(line))
            .collect();
        output::print(Table::default().render(&lines))?;
    }
    if !unexplained.is_empty() {
        let heading = ["MISSING INTENT", "NAMESPACE", "NODE"].map(str::to_owned);
        let line = |it: &Value| {
            let name = format!("{}/{}", text(it, "kind"), text(it, "name"));
            vec![
                output::plain(&name),
                output::plain(text(it, "namespace")),
                output::plain(text(it, "node")),
            ]
        };
        let lines: Vec<_> = std::iter::once(heading.to_vec())
            .chain(unexplained.iter().map(line))
            .collect();
        output::print(Table::default().render(&lines))?;
        output::note(
            "what runs keeps running; `platctrl failsafe adopt KIND/NAME` writes an intent again, `platctrl failsafe remove KIND/NAME` ends the object",
        );
    }
    if !holds.is_empty() {
        output::note("`platctrl failsafe reset HOLD` takes what is there now as it is");
    }
    if holds.is_empty() && unexplained.is_empty() && state["frozen"] != true {
        output::note("nothing is held");
    }
    Ok(())
}

async fn reset(args: &ResetArgs, api: &Api) -> Result<()> {
    let answer = order(api, "reset", &json!({"ids": args.holds, "all": args.all})).await?;
    let done = answer["reset"].as_array().cloned();
    let done = done.ok_or_else(|| strange("what it let go"))?;
    if done.is_empty() {
        output::note("nothing is held");
    }
    for id in done {
        let id = id.as_str().unwrap_or_default();
        output::print(output::plain(&format!("{id} reset")) + "\n")?;
    }
    Ok(())
}

async fn recall(args: &RecallArgs, setting: &Setting, what: &str) -> Result<()> {
    let (api, catalog) = setting.connect().await?;
    let target = catalog.target(&args.what)?;
    let mut body = json!({
        "group": target.kind.group,
        "kind": target.kind.plural,
        "name": target.name,
        "namespace": args.namespace.namespace,
    });
    if let Some(file) = &args.filename {
        let documents = Manifests::read_aside(std::slice::from_ref(file))
            .await?
            .check()?;
        let [document] = &documents[..] else {
            return Err(Failure::usage(format!(
                "the manifest has {} documents; give the one of {}",
                documents.len(),
                target.title()
            )));
        };
        body["object"] = document.value.clone();
    }
    order(&api, what, &body).await?;
    let done = if what == "adopt" {
        "adopted"
    } else {
        "to be removed"
    };
    output::print(format_args!("{} {done}\n", target.title()))
}
