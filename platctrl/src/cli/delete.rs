//! `delete`: orders the end of objects.

use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use platctrl_framework::model::Scope;
use serde_json::{Value, json};

use super::{Setting, find, wait};
use crate::api::{Api, Catalog, Collection, Target, media};
use crate::error::{Code, Failure, Result};
use crate::manifest::{self, Manifests};
use crate::output;

#[derive(Debug, clap::Args)]
pub(crate) struct DeleteArgs {
    /// KIND/NAME or KIND NAME; several as KIND/NAME KIND/NAME; with --selector a KIND
    #[arg(
        required_unless_present = "filename",
        conflicts_with = "filename",
        value_name = "KIND/NAME"
    )]
    what: Vec<String>,
    /// What the manifests of a file, a directory, or - for standard input name
    #[arg(short, long, value_name = "FILE|DIR|-")]
    filename: Vec<PathBuf>,
    /// All objects of a kind with these labels, as app=web, in one namespace
    #[arg(
        short = 'l',
        long,
        value_name = "SELECTOR",
        conflicts_with = "filename",
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    selector: Option<String>,
    /// The namespace of objects that name none
    #[arg(short, long, default_value = platctrl_kinds::DEFAULT_NAMESPACE)]
    namespace: String,
    /// Also what belongs to it, whatever its own policy says
    #[arg(long)]
    cascade: bool,
    /// Come back when it is gone
    #[arg(long)]
    wait: bool,
    /// Seconds that an orderly end may take; of what keeps pods: until it takes effect, and
    /// `undelete` can take it back
    #[arg(long, value_name = "SECONDS")]
    grace: Option<u32>,
    /// Also a pod that its workload cannot spare now
    #[arg(long)]
    force: bool,
    /// Of several pods that were given one name, that with this uid
    #[arg(long, conflicts_with_all = ["filename", "selector"], value_name = "UID")]
    uid: Option<String>,
    /// Those that do not exist are no error
    #[arg(long)]
    ignore_not_found: bool,
    /// How long to wait with --wait
    #[arg(long, default_value = "5m", value_parser = super::duration, value_name = "TIME")]
    timeout: Duration,
}

pub(crate) async fn run(args: &DeleteArgs, setting: &Setting) -> Result<()> {
    let (api, catalog) = setting.connect().await?;
    let found = match &args.selector {
        Some(selector) => selected(args, &api, &catalog, selector).await?,
        None => looked_up(args, &api, &catalog).await?,
    };
    for (target, namespace, object) in &found {
        delete(&api, args, target, namespace, object).await?;
        output::done(format_args!("{} deleted\n", target.title()));
    }
    if args.wait {
        let deadline = tokio::time::Instant::now() + args.timeout;
        for (target, namespace, object) in &found {
            wait::until_gone(
                &api,
                target,
                namespace,
                &object["metadata"]["uid"],
                deadline,
            )
            .await?;
        }
    }
    Ok(())
}

/// What is to end: each with its namespace, and as it is now.
type Found = Vec<(Target, String, Value)>;

async fn selected(
    args: &DeleteArgs,
    api: &Api,
    catalog: &Catalog,
    selector: &str,
) -> Result<Found> {
    let (what, namespace) = (&args.what, &args.namespace);
    match find::selected(api, catalog, what, namespace, Some(selector)).await {
        Ok(found) => Ok(found
            .into_iter()
            .map(|(target, object)| (target, namespace.clone(), object))
            .collect()),
        Err(failure) if failure.code == Code::NotFound && args.ignore_not_found => Ok(Vec::new()),
        Err(failure) => Err(failure),
    }
}

/// All are looked up first: a name that is wrong is found before anything ends.
async fn looked_up(args: &DeleteArgs, api: &Api, catalog: &Catalog) -> Result<Found> {
    let targets = if args.what.is_empty() {
        from_manifests(args, catalog).await?
    } else {
        named(args, catalog)?
    };
    let mut found = Vec::new();
    for (target, namespace) in targets {
        let object = match (&args.uid, args.ignore_not_found) {
            (Some(uid), _) => find::with_uid(api, &target, &namespace, uid).await?,
            (None, true) => find::there(api, &target, &namespace).await?,
            (None, false) => Some(find::exact(api, &target, &namespace).await?),
        };
        if object.is_none() && !args.ignore_not_found {
            let cluster = target.kind.scope == Scope::Cluster;
            let failure = target.missing((!cluster).then_some(namespace.as_str()));
            let hint = "none of the name has that uid: `platctrl get -o json` shows uids";
            return Err(failure.hint(hint));
        }
        found.extend(object.map(|object| (target, namespace, object)));
    }
    Ok(found)
}

fn named(args: &DeleteArgs, catalog: &Catalog) -> Result<Vec<(Target, String)>> {
    let targets = catalog.targets(&args.what)?.into_iter();
    Ok(targets
        .map(|target| (target, args.namespace.clone()))
        .collect())
}

/// The objects of manifests, the last first: what was made last was made for the others.
async fn from_manifests(args: &DeleteArgs, catalog: &Catalog) -> Result<Vec<(Target, String)>> {
    let mut targets = Vec::new();
    let mut problems = Vec::new();
    for document in Manifests::read_aside(&args.filename).await?.check()? {
        let (api_version, kind) = (document.text("/apiVersion"), document.text("/kind"));
        let name = document.text("/metadata/name");
        let Some(definition) = catalog.of_manifest(api_version, kind) else {
            problems.push(document.problem(
                "kind",
                &format!("there is no kind `{kind}` of `{api_version}`"),
            ));
            continue;
        };
        if name.is_empty() {
            problems.push(document.problem("metadata.name", "is required"));
            continue;
        }
        let namespace = document.text("/metadata/namespace");
        let namespace = if namespace.is_empty() {
            &args.namespace
        } else {
            namespace
        };
        targets.push((
            Target {
                kind: definition.clone(),
                name: name.to_owned(),
            },
            namespace.to_owned(),
        ));
    }
    if !problems.is_empty() {
        return Err(manifest::problems(&problems));
    }
    targets.reverse();
    Ok(targets)
}

async fn delete(
    api: &Api,
    args: &DeleteArgs,
    target: &Target,
    namespace: &str,
    object: &Value,
) -> Result<()> {
    let mut options = json!({
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        // This very object: not another that got its name meanwhile.
        "preconditions": { "uid": object["metadata"]["uid"] },
        "propagationPolicy": if args.cascade { "Foreground" } else { "Background" },
    });
    if args.force {
        options["force"] = true.into();
    }
    if let Some(grace) = args.grace {
        options["gracePeriodSeconds"] = grace.into();
    }
    let namespace = (target.kind.scope != Scope::Cluster).then_some(namespace);
    let path = Collection::new(&target.kind, namespace).object(&target.name);
    match api
        .call(Method::DELETE, &path, Some((media::JSON, &options)))
        .await
    {
        Ok(_) => Ok(()),
        Err(failure) if failure.code == Code::NotFound => Ok(()),
        Err(failure) => Err(Failure {
            message: format!("{}: {}", target.title(), failure.message),
            ..failure
        }),
    }
}
