//! `rollout start`: another version, and the roll to it.

use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use platctrl_kinds::Amount;
use platctrl_kinds::line::{CAUSE, LINE, MADE_BY, REVISION};
use serde_json::{Map, Value, json};

use super::line::Line;
use super::{live, text, title};
use crate::api::{Api, Catalog, Query, media};
use crate::cli::{NamespaceFlag, apply};
use crate::error::{Code, Failure, Result};
use crate::manifest::{self, Document, Manifests};
use crate::output;

#[derive(Debug, clap::Args)]
pub(crate) struct StartArgs {
    /// The replication controller whose pods are taken over, or an earlier one of its line
    #[arg(required = true, num_args = 1..=2, value_name = "KIND/NAME")]
    what: Vec<String>,
    #[command(flatten)]
    namespace: NamespaceFlag,
    /// The manifest of the new version: a ReplicationController
    #[arg(
        short,
        long,
        value_name = "FILE|-",
        required_unless_present = "location",
        conflicts_with = "location"
    )]
    filename: Option<PathBuf>,
    /// As it is now, with the artifact from here
    #[arg(long, value_name = "URL|PATH")]
    location: Option<String>,
    /// The digest of that artifact
    #[arg(long, requires = "location", value_name = "DIGEST")]
    digest: Option<String>,
    /// Which program gets the artifact, where there are several
    #[arg(long, requires = "location", value_name = "NAME")]
    launchable: Option<String>,
    /// How many pods stay healthy: a count or a share, as 8 or 90%
    #[arg(long, value_name = "N|N%")]
    minimum_healthy: Option<Amount>,
    /// How many pods more there may be: new ones are made before old ones go
    #[arg(long, value_name = "N|N%")]
    surge: Option<Amount>,
    /// How long a pod has to be ready before it counts as healthy [default: 10s]
    #[arg(long, value_parser = super::super::duration, value_name = "TIME")]
    min_healthy_time: Option<Duration>,
    /// The least time between two moves
    #[arg(long, value_parser = super::super::duration, value_name = "TIME")]
    delay: Option<Duration>,
    /// Stop after so many until somebody says `promote`; several times for several stops
    #[arg(long, value_name = "N|N%")]
    step: Vec<Amount>,
    /// How many pods stay as they are
    #[arg(long, value_name = "N|N%")]
    keep_old: Option<Amount>,
    /// How long it may come no further before it has failed [default: 10m]
    #[arg(long, value_parser = super::super::duration, value_name = "TIME")]
    progress_deadline: Option<Duration>,
    /// How many moved pods may be unhealthy before it has failed
    #[arg(long, value_name = "N|N%")]
    failure_budget: Option<Amount>,
    /// Go back when it has failed, instead of pausing
    #[arg(long)]
    rollback_on_failure: bool,
    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    cause: Option<String>,
    /// Check everything, change nothing
    #[arg(long)]
    dry_run: bool,
    /// Follow it until it is done, or waits for somebody
    #[arg(long)]
    wait: bool,
    /// How long to follow it with --wait
    #[arg(long, default_value = "1h", value_parser = super::super::duration, value_name = "TIME")]
    timeout: Duration,
}

pub(super) async fn run(api: &Api, catalog: &Catalog, args: &StartArgs) -> Result<()> {
    let namespace = &args.namespace.namespace;
    let target = catalog.target(&args.what)?;
    let line = Line::find(api, catalog, &target, namespace).await?;
    if let Some(roll) = line.under_way() {
        let message = format!("{} is under way", title(roll));
        return Err(Failure::new(Code::Conflict, message).hint(
            "`platctrl rollout status` follows it, `undo` goes back, `cancel` leaves everything where it is",
        ));
    }
    let current = line.current()?;
    let from = text(current, "/metadata/name").to_owned();
    let mut document = match &args.filename {
        Some(file) => of_file(file).await?,
        None => of_location(args, current)?,
    };
    let (revision, next) = line.next();
    let wanted = document.text("/metadata/name").to_owned();
    // A name that a version has already means the line, and not that version.
    let to = if wanted.is_empty() || line.has(&wanted) {
        next
    } else {
        wanted
    };
    let app = text(current, "/spec/template/spec/app");
    let app = if app.is_empty() { &from } else { app };
    prepare(&mut document, &to, &line.name, revision, app, args)?;

    let replicas = line.replicas(&from);
    let spec = roll_spec(args, &from, &to, replicas);
    let prepared = Manifests {
        documents: vec![document],
        problems: Vec::new(),
    };
    let prepared =
        apply::prepare(api, catalog, prepared, apply::Namespaces::only(namespace)).await?;
    // The roll is checked as well before anything is written.
    create_roll(api, &line, &to, &spec, true).await?;
    if args.dry_run {
        return output::print(format_args!(
            "rollingupdate/{to} created (dry run): {from} to {to}\n"
        ));
    }
    for version in &prepared {
        let outcome = version.write(api).await?;
        output::done(format_args!("{} {outcome}\n", version.title()));
    }
    let name = create_roll(api, &line, &to, &spec, false).await?;
    output::done(format_args!(
        "rollingupdate/{name} created: {from} to {to}\n"
    ));
    if args.wait {
        live::follow(api, catalog, &line, &name, args.timeout).await?;
    }
    Ok(())
}

async fn of_file(file: &std::path::Path) -> Result<Document> {
    let documents = Manifests::read_aside(&[file.to_owned()]).await?.check()?;
    let mut versions = documents
        .into_iter()
        .filter(|document| document.text("/kind") == "ReplicationController");
    match (versions.next(), versions.next()) {
        (Some(version), None) => Ok(version),
        (None, _) => Err(Failure::usage(format!(
            "{} has no ReplicationController",
            file.display()
        ))
        .hint("the new version is one; how it is rolled out is said by flags")),
        (Some(_), Some(_)) => Err(Failure::usage(format!(
            "{} has several ReplicationControllers",
            file.display()
        ))
        .hint("write the one to roll out into a file of its own")),
    }
}

/// The present version with another artifact.
fn of_location(args: &StartArgs, current: &Value) -> Result<Document> {
    let mut spec = current["spec"].clone();
    let launchables = spec.pointer_mut("/template/spec/launchables");
    let launchables = launchables.and_then(Value::as_object_mut);
    let Some(launchables) = launchables else {
        return Err(Failure::failed("the present version has no programs"));
    };
    let names: Vec<String> = launchables.keys().cloned().collect();
    let name = match (&args.launchable, names.as_slice()) {
        (Some(name), names) if names.contains(name) => name,
        (None, [one]) => one,
        (None, names) => {
            return Err(Failure::usage(format!(
                "there are several programs: {}",
                names.join(", ")
            ))
            .hint("say which one by --launchable NAME"));
        }
        (Some(name), names) => {
            return Err(Failure::usage(format!(
                "there is no program `{}`: there are {}",
                output::plain(name),
                names.join(", ")
            )));
        }
    };
    if let Some(launchable) = launchables.get_mut(name).and_then(Value::as_object_mut) {
        launchable.insert("location".into(), args.location.clone().into());
        launchable.remove("digest");
        if let Some(digest) = &args.digest {
            launchable.insert("digest".into(), digest.clone().into());
        }
    }
    let text = json!({
        "apiVersion": "platctrl.dev/v1",
        "kind": "ReplicationController",
        "metadata": {"name": "", "labels": current["metadata"]["labels"]},
        "spec": spec,
    });
    // Paths start from where the command is given.
    let base = std::env::current_dir().unwrap_or_default();
    let parsed = manifest::parse("--location", &base, &text.to_string());
    let mut documents = parsed.map_err(Failure::failed)?;
    documents
        .pop()
        .ok_or_else(|| Failure::failed("the present version cannot be read"))
}

/// Makes a manifest one of the next version of a line, without pods.
fn prepare(
    document: &mut Document,
    name: &str,
    line: &str,
    revision: u64,
    app: &str,
    args: &StartArgs,
) -> Result<()> {
    let wrong = |document: &Document, field: &str| {
        let problem = document.problem(field, "is required, and is a mapping");
        Failure::failed(problem)
    };
    let Some(metadata) = document.value["metadata"].as_object_mut() else {
        return Err(wrong(document, "metadata"));
    };
    metadata.insert("name".into(), name.into());
    for (field, entries) in [
        ("labels", vec![(LINE, line.to_owned())]),
        ("annotations", notes(revision, args.cause.as_deref())),
    ] {
        let map = metadata.entry(field).or_insert_with(|| json!({}));
        if map.is_null() {
            *map = json!({});
        }
        // What is no mapping is refused with its line by the check.
        if let Some(map) = map.as_object_mut() {
            map.extend(
                entries
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value.into())),
            );
        }
    }
    let Some(spec) = document.value["spec"].as_object_mut() else {
        return Err(wrong(document, "spec"));
    };
    spec.insert("replicas".into(), 0.into());
    spec.remove("claimedBy");
    // Pods keep their user and home, which are named after the app.
    if let Some(Value::Object(pod)) = document.value.pointer_mut("/spec/template/spec") {
        pod.entry("app").or_insert_with(|| app.into());
    }
    Ok(())
}

/// Who makes a version, and why.
fn notes(revision: u64, cause: Option<&str>) -> Vec<(&'static str, String)> {
    let who = ["SUDO_USER", "USER", "LOGNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|who| !who.is_empty()));
    let mut notes = vec![(REVISION, revision.to_string())];
    notes.extend(who.map(|who| (MADE_BY, who)));
    notes.extend(cause.map(|cause| (CAUSE, cause.to_owned())));
    notes
}

fn roll_spec(args: &StartArgs, from: &str, to: &str, replicas: u64) -> Value {
    let mut spec = Map::new();
    spec.insert("from".into(), from.into());
    spec.insert("to".into(), to.into());
    spec.insert("replicas".into(), replicas.into());
    let span = |time: Duration| format!("{}ms", time.as_millis());
    let amounts = [
        ("minimumHealthy", args.minimum_healthy),
        ("surge", args.surge),
        ("keepOld", args.keep_old),
        ("failureBudget", args.failure_budget),
    ];
    for (field, amount) in amounts {
        spec.extend(amount.map(|amount| (field.to_owned(), json!(amount))));
    }
    let times = [
        ("minHealthyTime", args.min_healthy_time),
        ("delay", args.delay),
        ("progressDeadline", args.progress_deadline),
    ];
    for (field, time) in times {
        spec.extend(time.map(|time| (field.to_owned(), span(time).into())));
    }
    if !args.step.is_empty() {
        let steps = args.step.iter().map(|up_to| json!({"upTo": up_to}));
        spec.insert("steps".into(), steps.collect());
    }
    if args.rollback_on_failure {
        spec.insert("onFailure".into(), "Rollback".into());
    }
    Value::Object(spec)
}

/// Creates a roll that is named after the version that it goes to. Going back to a version is
/// another roll to it.
pub(super) async fn create_roll(
    api: &Api,
    line: &Line,
    to: &str,
    spec: &Value,
    dry_run: bool,
) -> Result<String> {
    let mut metadata = json!({
        "labels": {LINE: line.name},
        "annotations": Map::from_iter(notes(0, None).into_iter().skip(1).map(|(name, who)| (name.to_owned(), who.into()))),
    });
    let mut query = Query::default();
    if dry_run {
        query = query.with("dryRun", "All");
    }
    for generated in [false, true] {
        match generated {
            false => metadata["name"] = to.into(),
            true => {
                metadata["generateName"] = format!("{to}-").into();
                if let Some(metadata) = metadata.as_object_mut() {
                    metadata.remove("name");
                }
            }
        }
        let roll = json!({
            "apiVersion": "platctrl.dev/v1", "kind": "RollingUpdate",
            "metadata": metadata, "spec": spec,
        });
        let path = query.on(line.rolls.path());
        match api
            .call(Method::POST, &path, Some((media::JSON, &roll)))
            .await
        {
            Ok(answer) => return Ok(text(&answer.body, "/metadata/name").to_owned()),
            Err(failure) if failure.code == Code::Conflict && !generated => {}
            Err(failure) => return Err(failure),
        }
    }
    Err(Failure::new(
        Code::Conflict,
        "a roll of that name was there already: try again",
    ))
}
