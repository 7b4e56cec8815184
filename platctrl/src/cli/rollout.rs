//! `rollout`: take a replication controller's pods over to another version, and look after that.
//!
//! All versions of one program are a line, named after the first replication controller of it.
//! Each is a replication controller of its own, which is what `history` lists and `undo` goes
//! back to. A rolling update moves the pods from one to the next.

mod line;
mod live;
mod start;
mod view;

use std::time::Duration;

use clap::{Args, Subcommand};
use http::Method;
use platctrl_kinds::RollPhase;
use serde_json::{Value, json};

use super::{NamespaceFlag, Setting};
use crate::api::{Api, Catalog, Collection, media};
use crate::error::{Code, Failure, Result};
use crate::output;
use line::Line;

#[derive(Debug, Subcommand)]
pub(crate) enum RolloutVerb {
    /// Begin to take pods over to another version
    Start(Box<start::StartArgs>),
    /// Show a roll, node by node, until it is done, or waits for somebody
    Status(StatusArgs),
    /// List the versions there were: who made them, what and when
    History(LineArgs),
    /// Go back: to where a roll that is under way came from, or to the version before
    Undo(UndoArgs),
    /// Move nothing more until `resume`
    Pause(LineArgs),
    /// Go on
    Resume(LineArgs),
    /// Let a roll pass the step where it waits
    Promote(PromoteArgs),
    /// Give a roll up: every pod stays where it is
    Cancel(LineArgs),
}

impl RolloutVerb {
    /// Whether it changes nothing.
    pub(crate) fn only_looks(&self) -> bool {
        matches!(self, Self::Status(_) | Self::History(_))
    }
}

/// What a roll is about.
#[derive(Debug, Args)]
pub(crate) struct LineArgs {
    /// A replication controller of the line, or a rolling update: KIND/NAME or KIND NAME
    #[arg(required = true, num_args = 1..=2, value_name = "KIND/NAME")]
    what: Vec<String>,
    #[command(flatten)]
    namespace: NamespaceFlag,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    line: LineArgs,
    /// Say how it is now, and do not wait
    #[arg(long)]
    now: bool,
    /// How long to follow it
    #[arg(long, default_value = "1h", value_parser = super::duration, value_name = "TIME")]
    timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct UndoArgs {
    #[command(flatten)]
    line: LineArgs,
    /// The revision to go back to, as `history` lists them
    #[arg(long, value_name = "N")]
    to_revision: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct PromoteArgs {
    #[command(flatten)]
    line: LineArgs,
    /// Past all steps
    #[arg(long)]
    full: bool,
}

pub(crate) async fn run(verb: &RolloutVerb, setting: &Setting) -> Result<()> {
    let (api, catalog) = setting.connect().await?;
    let find = async |args: &LineArgs| {
        let target = catalog.target(&args.what)?;
        Line::find(&api, &catalog, &target, &args.namespace.namespace).await
    };
    match verb {
        RolloutVerb::Start(args) => start::run(&api, &catalog, args).await,
        RolloutVerb::Status(args) => status(&api, &catalog, args, &find(&args.line).await?).await,
        RolloutVerb::History(args) => find(args).await?.history(),
        RolloutVerb::Undo(args) => undo(&api, args, &find(&args.line).await?).await,
        RolloutVerb::Pause(args) => {
            let change = json!({"spec": {"paused": true}});
            find(args).await?.change(&api, &change, "paused").await
        }
        RolloutVerb::Resume(args) => {
            let change = json!({"spec": {"paused": false}});
            find(args).await?.change(&api, &change, "resumed").await
        }
        RolloutVerb::Promote(args) => promote(&api, args, &find(&args.line).await?).await,
        RolloutVerb::Cancel(args) => {
            let line = find(args).await?;
            let roll = line.active()?;
            let uid = &roll["metadata"]["uid"];
            let options =
                json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}});
            let path = line.rolls.object(text(roll, "/metadata/name"));
            api.call(Method::DELETE, &path, Some((media::JSON, &options)))
                .await?;
            let (from, to) = (text(roll, "/spec/from"), text(roll, "/spec/to"));
            output::print(format_args!(
                "{} cancelled: {from} and {to} keep the pods that they have\n",
                title(roll)
            ))
        }
    }
}

/// A text in an object.
fn text<'o>(object: &'o Value, pointer: &str) -> &'o str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn number(object: &Value, pointer: &str) -> u64 {
    object
        .pointer(pointer)
        .and_then(Value::as_u64)
        .unwrap_or_default()
}

/// `rollingupdate/hello-2`.
fn title(roll: &Value) -> String {
    format!(
        "rollingupdate/{}",
        output::plain(text(roll, "/metadata/name"))
    )
}

fn is_final(roll: &Value) -> bool {
    let phase = text(roll, "/status/phase");
    [RollPhase::Complete, RollPhase::RolledBack]
        .iter()
        .any(|end| end.as_str() == phase)
}

/// `3 of 5 moved, 5 healthy, 4 needed: waiting …`
fn line_of(roll: &Value) -> String {
    let next = text(roll, "/status/next");
    let next = if next.is_empty() {
        "not begun yet"
    } else {
        next
    };
    output::plain(&format!(
        "{}: {} of {} moved; {next}",
        title(roll),
        number(roll, "/status/updated"),
        number(roll, "/spec/replicas"),
    ))
}

/// How a roll came out that nothing more happens to by itself; None while something does.
fn outcome(roll: &Value) -> Option<Result<()>> {
    let generation = number(roll, "/metadata/generation");
    if number(roll, "/status/observedGeneration") < generation {
        return None;
    }
    let conditions = roll.pointer("/status/conditions").and_then(Value::as_array);
    let condition = |kind: &str| {
        let mut all = conditions.into_iter().flatten();
        all.find(|it| it["type"] == kind && it["status"] == "True")
    };
    let stalled = condition("Stalled").map(|it| output::plain(text(it, "/message")));
    let failed = |what: &str| {
        let why = stalled
            .clone()
            .map(|why| format!(": {why}"))
            .unwrap_or_default();
        let failure = Failure::failed(format!("{} {what}{why}", title(roll)));
        Some(Err(failure.hint("`platctrl get pods` and `platctrl logs` show what its pods say; `platctrl rollout undo` goes back")))
    };
    match text(roll, "/status/phase") {
        "Complete" => Some(Ok(())),
        "RolledBack" if stalled.is_some() => failed("was rolled back"),
        "RolledBack" => Some(Ok(())),
        "Paused" if stalled.is_some() => failed("is paused because it failed"),
        "Paused" | "AtGate" => Some(Ok(())),
        _ => condition("Held").map(|held| {
            let why = output::plain(text(held, "/message"));
            let failure = Failure::failed(format!("{} cannot go on: {why}", title(roll)));
            Err(failure
                .hint("`platctrl rollout cancel` gives it up, and every pod stays where it is"))
        }),
    }
}

async fn status(api: &Api, catalog: &Catalog, args: &StatusArgs, line: &Line) -> Result<()> {
    let roll = line.newest()?;
    if args.now {
        return output::print(format_args!("{}\n", line_of(roll)));
    }
    let name = text(roll, "/metadata/name");
    live::follow(api, catalog, line, name, args.timeout).await
}

async fn promote(api: &Api, args: &PromoteArgs, line: &Line) -> Result<()> {
    let roll = line.active()?;
    let steps = roll.pointer("/spec/steps").and_then(Value::as_array);
    let manual = steps
        .into_iter()
        .flatten()
        .filter(|step| step["gate"] != "Auto");
    let gates = manual.count() as u64;
    let passed = number(roll, "/spec/promoted");
    if passed >= gates {
        let message = format!("{} has no step left to pass", title(roll));
        return Err(Failure::new(Code::Conflict, message)
            .hint("`platctrl rollout status` says what it waits for"));
    }
    let promoted = if args.full { gates } else { passed + 1 };
    let change = json!({
        "metadata": {"resourceVersion": roll["metadata"]["resourceVersion"]},
        "spec": {"promoted": promoted, "paused": false},
    });
    let said = format!("promoted past step {promoted} of {gates}");
    line.change(api, &change, &said).await
}

async fn undo(api: &Api, args: &UndoArgs, line: &Line) -> Result<()> {
    if let Some(roll) = line.under_way() {
        if args.to_revision.is_some() {
            let message = format!("{} is under way", title(roll));
            return Err(Failure::new(Code::Conflict, message)
                .hint("without --to-revision it is undone; when it is back, go on to another"));
        }
        if roll["spec"]["rollback"] == true {
            return output::print(format_args!("{} goes back already\n", title(roll)));
        }
        let change = json!({"spec": {"rollback": true, "paused": false}});
        return line.change(api, &change, "goes back").await;
    }
    let (from, to) = line.back(args.to_revision)?;
    // As careful as on the way there.
    let mut spec = line.care_of_last();
    spec.insert("from".into(), from.clone().into());
    spec.insert("to".into(), to.clone().into());
    spec.insert("replicas".into(), line.replicas(&from).into());
    let spec = Value::Object(spec);
    let name = start::create_roll(api, line, &to, &spec, false).await?;
    output::print(format_args!(
        "rollingupdate/{name} created: {from} goes back to {to}\n"
    ))
}

impl Line {
    /// Patches the roll that is under way.
    async fn change(&self, api: &Api, change: &Value, done: &str) -> Result<()> {
        let roll = self.active()?;
        let path = self.rolls.object(text(roll, "/metadata/name"));
        api.call(Method::PATCH, &path, Some((media::MERGE_PATCH, change)))
            .await?;
        output::print(format_args!("{} {done}\n", title(roll)))
    }
}

/// The objects of a kind in a namespace.
fn collection(catalog: &Catalog, word: &str, namespace: &str) -> Result<Collection> {
    Ok(Collection::new(&catalog.named(word)?, Some(namespace)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roll(phase: &str, conditions: &Value) -> Value {
        json!({
            "metadata": {"name": "hello-2", "generation": 2},
            "spec": {"replicas": 5},
            "status": {"phase": phase, "observedGeneration": 2, "updated": 3, "next": "waiting", "conditions": conditions},
        })
    }

    #[test]
    fn a_roll_is_followed_until_nothing_happens_by_itself() {
        let none = &json!([]);
        let stalled = &json!([{"type": "Stalled", "status": "True", "message": "too slow"}]);
        assert!(outcome(&roll("Rolling", none)).is_none());
        assert!(outcome(&roll("RollingBack", stalled)).is_none());
        for phase in ["Complete", "RolledBack", "Paused", "AtGate"] {
            assert!(outcome(&roll(phase, none)).unwrap().is_ok(), "{phase}");
        }
        for phase in ["RolledBack", "Paused"] {
            let failure = outcome(&roll(phase, stalled)).unwrap().unwrap_err();
            assert!(failure.message.contains("too slow"), "{failure:?}");
        }
        let held = json!([{"type": "Held", "status": "True", "message": "claimed by another"}]);
        assert!(outcome(&roll("Pending", &held)).unwrap().is_err());
        let mut unseen = roll("Complete", none);
        unseen["metadata"]["generation"] = 3.into();
        assert!(outcome(&unseen).is_none());
        assert_eq!(
            line_of(&roll("Rolling", none)),
            "rollingupdate/hello-2: 3 of 5 moved; waiting"
        );
    }
}
