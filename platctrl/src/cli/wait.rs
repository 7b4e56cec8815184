//! `wait`: until a condition holds, or an object is gone.

use std::time::Duration;

use futures::StreamExt as _;
use serde_json::Value;
use tokio::time::Instant;

use super::{Setting, failsafe, find};
use crate::api::{Api, Collection, Query, Target};
use crate::error::{Code, Failure, Result};
use crate::output;

/// Between two attempts to watch.
const AGAIN: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub(crate) struct WaitArgs {
    /// KIND/NAME or KIND NAME
    #[arg(required = true, num_args = 1..=2, value_name = "KIND/NAME")]
    what: Vec<String>,
    #[command(flatten)]
    namespace: super::NamespaceFlag,
    /// What for: condition=TYPE, condition=TYPE=STATUS, or delete
    #[arg(long = "for", value_parser = Goal::parse, value_name = "CONDITION")]
    goal: Goal,
    /// How long
    #[arg(long, default_value = "30s", value_parser = super::duration, value_name = "TIME")]
    timeout: Duration,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Goal {
    Condition { kind: String, status: String },
    Delete,
}

impl Goal {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "delete" {
            return Ok(Self::Delete);
        }
        let condition = text
            .strip_prefix("condition=")
            .filter(|condition| !condition.is_empty());
        let condition =
            condition.ok_or("write condition=TYPE, condition=TYPE=STATUS, or delete")?;
        let (kind, status) = condition.split_once('=').unwrap_or((condition, "True"));
        Ok(Self::Condition {
            kind: kind.to_owned(),
            status: status.to_owned(),
        })
    }
}

pub(crate) async fn run(args: &WaitArgs, setting: &Setting) -> Result<()> {
    let (api, catalog) = setting.connect().await?;
    let target = catalog.target(&args.what)?;
    let deadline = Instant::now() + args.timeout;
    let namespace = &args.namespace.namespace;
    let mut last = String::new();
    match &args.goal {
        Goal::Delete => {
            until_gone(&api, &target, namespace, &Value::Null, deadline).await?;
            output::print(format_args!("{} is gone\n", target.title()))
        }
        Goal::Condition { kind, status } => {
            find::exact(&api, &target, namespace).await?;
            let holds = |object: Option<&Value>| {
                let object = object?;
                let conditions = object["status"]["conditions"]
                    .as_array()
                    .into_iter()
                    .flatten();
                let mut found = conditions.filter(|condition| condition["type"] == *kind.as_str());
                let found = found.next()?;
                last = output::plain(found["message"].as_str().unwrap_or_default());
                let generation = object["metadata"]["generation"]
                    .as_u64()
                    .unwrap_or_default();
                let seen = object["status"]["observedGeneration"]
                    .as_u64()
                    .unwrap_or(generation);
                // What is said about an older generation is not about what was asked for.
                let holds = found["status"]
                    .as_str()
                    .is_some_and(|it| it.eq_ignore_ascii_case(status));
                (holds && seen >= generation).then_some(())
            };
            follow(&api, &target, namespace, deadline, holds)
                .await
                .map_err(|failure| match failure.code {
                    Code::Timeout => {
                        let why = if last.is_empty() {
                            String::new()
                        } else {
                            format!(": {last}")
                        };
                        let message =
                            format!("{} has not become {kind}={status}{why}", target.title());
                        Failure::new(Code::Timeout, message).hint(format!(
                            "`platctrl describe {}` says what it waits for",
                            target.title()
                        ))
                    }
                    _ => failure,
                })?;
            output::print(format_args!("{} is {kind}={status}\n", target.title()))
        }
    }
}

/// Waits until no object of that name has this uid; with none, until there is no such object.
pub(crate) async fn until_gone(
    api: &Api,
    target: &Target,
    namespace: &str,
    uid: &Value,
    deadline: Instant,
) -> Result<()> {
    let gone = |object: Option<&Value>| match object {
        None => Some(()),
        Some(object) => (!uid.is_null() && object["metadata"]["uid"] != *uid).then_some(()),
    };
    follow(api, target, namespace, deadline, gone)
        .await
        .map_err(|failure| match failure.code {
            Code::Timeout => {
                Failure::new(Code::Timeout, format!("{} is not gone yet", target.title())).hint(
                    format!(
                        "`platctrl describe {}` says what it waits for",
                        target.title()
                    ),
                )
            }
            _ => failure,
        })
}

/// Looks at an object now and whenever it changes, until `look` has an answer. The object is None
/// while there is none.
pub(crate) async fn follow<T>(
    api: &Api,
    target: &Target,
    namespace: &str,
    deadline: Instant,
    mut look: impl FnMut(Option<&Value>) -> Option<T>,
) -> Result<T> {
    let collection = Collection::new(&target.kind, Some(namespace));
    let query = Query::default().with("fieldSelector", &format!("metadata.name={}", target.name));
    let work = async {
        loop {
            let (items, revision) = find::list(api, &collection, &query).await?;
            if let Some(answer) = look(items.first()) {
                return Ok(answer);
            }
            let since = revision.as_str().unwrap_or_default();
            let watch = query
                .clone()
                .with("watch", "1")
                .with("resourceVersion", since);
            let mut events = api.watch(&watch.on(collection.path())).await?;
            while let Some(event) = events.next().await {
                // A watch may end at any time; the list says how things are.
                let Ok((what, object)) = event else { break };
                let object = match what.as_str() {
                    "BOOKMARK" => continue,
                    "DELETED" => None,
                    _ => Some(&object),
                };
                if let Some(answer) = look(object) {
                    return Ok(answer);
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    };
    let late = || {
        Err(Failure::new(
            Code::Timeout,
            format!("{}: it took too long", target.title()),
        ))
    };
    match tokio::time::timeout_at(deadline, work).await {
        Ok(answer) => answer,
        Err(_) => match failsafe::held(api).await {
            Some(held) => Err(held),
            None => late(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_a_condition_or_the_end() {
        let condition = |kind: &str, status: &str| Goal::Condition {
            kind: kind.into(),
            status: status.into(),
        };
        assert_eq!(
            Goal::parse("condition=Ready"),
            Ok(condition("Ready", "True"))
        );
        assert_eq!(
            Goal::parse("condition=Ready=false"),
            Ok(condition("Ready", "false"))
        );
        assert_eq!(Goal::parse("delete"), Ok(Goal::Delete));
        assert!(Goal::parse("ready").is_err() && Goal::parse("condition=").is_err());
    }
}
