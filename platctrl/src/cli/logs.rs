//! `logs`: what a pod's programs wrote.

use std::time::Duration;

use futures::StreamExt as _;

use super::{Setting, find};
use crate::api::{Collection, Query};
use crate::error::{Code, Failure, Result};
use crate::output;

#[derive(Debug, clap::Args)]
pub(crate) struct LogsArgs {
    /// The pod: pod/NAME or NAME; the beginning of a name will do
    #[arg(value_name = "pod/NAME")]
    pod: String,
    #[command(flatten)]
    namespace: super::NamespaceFlag,
    /// Go on and print what comes
    #[arg(short, long)]
    follow: bool,
    /// Of this program, when the pod has several
    #[arg(long, value_name = "NAME")]
    launchable: Option<String>,
    /// Only the last so many lines
    #[arg(long, value_name = "LINES")]
    tail: Option<u64>,
    /// Only what was written in the last so long: 30s, 5m, 2h
    #[arg(long, value_name = "TIME", value_parser = super::duration)]
    since: Option<Duration>,
    /// Only what was written since then: 2027-01-31T08:00:00Z
    #[arg(long, value_name = "WHEN", conflicts_with = "since")]
    since_time: Option<jiff::Timestamp>,
    /// Only what the run before the present one wrote; of a program that does not run, the last
    #[arg(short, long, conflicts_with = "follow")]
    previous: bool,
}

pub(crate) async fn run(args: &LogsArgs, setting: &Setting) -> Result<()> {
    let (api, catalog) = setting.connect().await?;
    let word = if args.pod.contains('/') {
        args.pod.clone()
    } else {
        format!("pod/{}", args.pod)
    };
    let target = catalog.target(&[word])?;
    if target.kind.kind != "Pod" {
        let message = format!("{} writes nothing: pods do", target.title());
        return Err(Failure::usage(message).hint(format!(
            "`platctrl describe {}` lists its pods",
            target.title()
        )));
    }
    let namespace = &args.namespace.namespace;
    let pod = find::by_beginning(&api, &target, namespace).await?;
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let mut query = Query::default();
    if let Some(launchable) = &args.launchable {
        query = query.with("launchable", launchable);
    }
    if args.follow {
        query = query.with("follow", "true");
    }
    if let Some(lines) = args.tail {
        query = query.with("tailLines", &lines.to_string());
    }
    if let Some(since) = args.since {
        // Whole seconds, and rather more than less.
        let seconds = since.as_secs() + u64::from(since.subsec_nanos() > 0);
        query = query.with("sinceSeconds", &seconds.to_string());
    }
    if let Some(since) = args.since_time {
        query = query.with("sinceTime", &since.to_string());
    }
    if args.previous {
        query = query.with("previous", "true");
    }
    let path = query.on(&Collection::new(&target.kind, Some(namespace)).part(name, "log"));
    let mut text = api.stream(&path).await.map_err(find::one_of_several)?;
    while let Some(piece) = text.next().await {
        let piece = piece.map_err(|error| {
            Failure::new(Code::Unreachable, format!("the log broke off: {error}")).hint("ask again")
        })?;
        output::print_bytes(&piece)?;
    }
    Ok(())
}
