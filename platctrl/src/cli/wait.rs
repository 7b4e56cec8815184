//! `wait`: until a condition holds, or an object is gone.

use std::time::Duration;

use futures::StreamExt as _;
use serde_json::Value;
use tokio::time::Instant;

use super::{Setting, failsafe, find};
use crate::api::{Api, Catalog, Collection, Query, Target};
use crate::error::{Code, Failure, Result};
use crate::output;
use crate::output::jsonpath::JsonPath;

/// Between two attempts to watch.
const AGAIN: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub(crate) struct WaitArgs {
    /// KIND/NAME or KIND NAME; several as KIND/NAME KIND/NAME; with --selector or --all a KIND
    #[arg(required = true, value_name = "KIND/NAME")]
    what: Vec<String>,
    #[command(flatten)]
    namespace: super::NamespaceFlag,
    /// All objects of a kind with these labels, as app=web
    #[arg(short = 'l', long, value_name = "SELECTOR", conflicts_with = "all")]
    selector: Option<String>,
    /// All objects of a kind
    #[arg(long)]
    all: bool,
    /// What for: condition=TYPE, condition=TYPE=STATUS, jsonpath=PATH=VALUE, create, or delete
    #[arg(long = "for", value_parser = Goal::parse, value_name = "CONDITION")]
    goal: Goal,
    /// How long, for all of them together
    #[arg(long, default_value = "30s", value_parser = super::duration, value_name = "TIME")]
    timeout: Duration,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq)]
enum Goal {
    Condition {
        kind: String,
        status: String,
    },
    /// What a path leads to is this.
    Value {
        path: JsonPath,
        written: String,
        value: String,
    },
    Create,
    Delete,
}

impl Goal {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            "write condition=TYPE, condition=TYPE=STATUS, jsonpath=PATH=VALUE, create, or delete";
        match text {
            "delete" => return Ok(Self::Delete),
            "create" => return Ok(Self::Create),
            _ => {}
        }
        if let Some(rest) = text.strip_prefix("jsonpath=") {
            // A path may have an = in a filter; a value that has one is not waited for.
            let (path, value) = rest.rsplit_once('=').ok_or(wrong)?;
            let path = path.trim_matches('\'');
            return Ok(Self::Value {
                path: JsonPath::parse(path).map_err(|error| error.to_string())?,
                written: path.to_owned(),
                value: value.trim_matches('\'').to_owned(),
            });
        }
        let condition = text
            .strip_prefix("condition=")
            .filter(|condition| !condition.is_empty())
            .ok_or(wrong)?;
        let (kind, status) = condition.split_once('=').unwrap_or((condition, "True"));
        Ok(Self::Condition {
            kind: kind.to_owned(),
            status: status.to_owned(),
        })
    }

    /// What is told when it is reached, and when it is not.
    fn title(&self) -> String {
        match self {
            Self::Condition { kind, status } => format!("{kind}={status}"),
            Self::Value { written, value, .. } => format!("{written}={value}"),
            Self::Create => "there".to_owned(),
            Self::Delete => "gone".to_owned(),
        }
    }

    /// Whether an object is so; else what it says of that.
    fn holds(&self, object: Option<&Value>) -> Result<(), String> {
        match (self, object) {
            (Self::Delete, None) | (Self::Create, Some(_)) => Ok(()),
            (Self::Delete, Some(_)) | (_, None) => Err(String::new()),
            (Self::Condition { kind, status }, Some(object)) => is_so(object, kind, status),
            (Self::Value { path, value, .. }, Some(object)) => {
                let Some(found) = path.first(object) else {
                    return Err(String::new());
                };
                let shown = match found {
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                match shown == *value {
                    true => Ok(()),
                    false => Err(format!("it is {}", output::cell(Some(found)))),
                }
            }
        }
    }
}

fn is_so(object: &Value, kind: &str, status: &str) -> Result<(), String> {
    let conditions = object["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten();
    let mut found = conditions.filter(|condition| condition["type"] == kind);
    let found = found.next().ok_or_else(String::new)?;
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
    match holds && seen >= generation {
        true => Ok(()),
        false => Err(output::plain(found["message"].as_str().unwrap_or_default())),
    }
}

pub(crate) async fn run(args: &WaitArgs, setting: &Setting) -> Result<()> {
    let (api, catalog) = setting.connect().await?;
    let deadline = Instant::now() + args.timeout;
    for target in targets(args, &api, &catalog).await? {
        one(args, &api, &target, deadline).await?;
    }
    Ok(())
}

/// What is waited for, all of it there unless its coming or going is what counts.
async fn targets(args: &WaitArgs, api: &Api, catalog: &Catalog) -> Result<Vec<Target>> {
    let namespace = &args.namespace.namespace;
    if args.all || args.selector.is_some() {
        let selector = args.selector.as_deref();
        return match find::selected(api, catalog, &args.what, namespace, selector).await {
            Ok(found) => Ok(found.into_iter().map(|(target, _)| target).collect()),
            Err(failure) if failure.code == Code::NotFound && args.goal == Goal::Delete => {
                Ok(Vec::new())
            }
            Err(failure) => Err(failure),
        };
    }
    let targets = catalog.targets(&args.what)?;
    if !matches!(args.goal, Goal::Create | Goal::Delete) {
        for target in &targets {
            find::exact(api, target, namespace).await?;
        }
    }
    Ok(targets)
}

async fn one(args: &WaitArgs, api: &Api, target: &Target, deadline: Instant) -> Result<()> {
    let (title, goal) = (target.title(), args.goal.title());
    let mut last = String::new();
    let look = |object: Option<&Value>| match args.goal.holds(object) {
        Ok(()) => Some(()),
        Err(why) => {
            last = why;
            None
        }
    };
    let waited = follow(api, target, &args.namespace.namespace, deadline, look).await;
    waited.map_err(|failure| match failure.code {
        Code::Timeout => {
            let why = match last.is_empty() {
                true => String::new(),
                false => format!(": {last}"),
            };
            let message = match args.goal {
                Goal::Delete => format!("{title} is not gone yet"),
                Goal::Create => format!("{title} is not there yet"),
                _ => format!("{title} has not become {goal}{why}"),
            };
            Failure::new(Code::Timeout, message).hint(match args.goal {
                Goal::Create => "nobody has made it; --timeout waits longer".to_owned(),
                _ => format!("`platctrl describe {title}` says what it waits for"),
            })
        }
        _ => failure,
    })?;
    output::print(output::plain(&format!("{title} is {goal}\n")))
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
    use serde_json::json;

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
        assert_eq!(Goal::parse("create"), Ok(Goal::Create));
        for wrong in ["ready", "condition=", "jsonpath={.a", "jsonpath=.a"] {
            assert!(Goal::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_object_is_so_when_its_newest_generation_says_so() {
        let object = |seen: u64| {
            json!({
                "metadata": {"generation": 2},
                "status": {"observedGeneration": seen, "phase": "Running", "restarts": 3,
                    "conditions": [{"type": "Ready", "status": "True", "message": "all well"}]},
            })
        };
        let ready = Goal::parse("condition=Ready").unwrap();
        assert_eq!(ready.holds(Some(&object(2))), Ok(()));
        assert_eq!(ready.holds(Some(&object(1))), Err("all well".to_owned()));
        assert!(ready.holds(None).is_err());
        for (goal, holds) in [
            ("jsonpath={.status.phase}=Running", true),
            ("jsonpath=.status.restarts=3", true),
            ("jsonpath={.status.phase}=Failed", false),
            ("jsonpath={.status.none}=x", false),
            ("create", true),
            ("delete", false),
        ] {
            let goal = Goal::parse(goal).unwrap();
            assert_eq!(goal.holds(Some(&object(2))).is_ok(), holds, "{goal:?}");
        }
        assert_eq!(Goal::Delete.holds(None), Ok(()));
    }
}
