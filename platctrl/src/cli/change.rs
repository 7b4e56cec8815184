//! `scale`, `label` and `annotate`: small changes of objects.

use std::time::Duration;

use http::Method;
use platctrl_framework::model::Scope;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{Setting, find};
use crate::api::{Api, Collection, Target, media};
use crate::error::{Code, Failure, Result};
use crate::output;

/// How long a controller is given to say what it makes of a new scale.
const ANSWER: Duration = Duration::from_secs(1);
/// Between two looks at it.
const AGAIN: Duration = Duration::from_millis(10);

#[derive(Debug, clap::Args)]
pub(crate) struct ScaleArgs {
    /// KIND/NAME or KIND NAME
    #[arg(required = true, num_args = 1..=2, value_name = "KIND/NAME")]
    what: Vec<String>,
    #[command(flatten)]
    namespace: super::NamespaceFlag,
    /// How many pods
    #[arg(long)]
    replicas: u32,
}

#[derive(Debug, clap::Args)]
pub(crate) struct LabelArgs {
    /// KIND/NAME or KIND NAME, with --selector a KIND; then NAME=VALUE to set and NAME- to remove
    #[arg(required = true, value_name = "KIND/NAME NAME=VALUE")]
    words: Vec<String>,
    /// All objects of a kind with these labels, as app=web, in one namespace
    #[arg(
        short = 'l',
        long,
        value_name = "SELECTOR",
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    selector: Option<String>,
    #[command(flatten)]
    namespace: super::NamespaceFlag,
    /// Also change those that have another value
    #[arg(long)]
    overwrite: bool,
}

/// The notes of an object that `label` and `annotate` change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Notes {
    /// Its field in the metadata.
    field: &'static str,
    /// One of them.
    one: &'static str,
    /// What was done to the object.
    done: &'static str,
}

/// What selectors choose by.
pub(crate) const LABELS: Notes = Notes {
    field: "labels",
    one: "label",
    done: "labeled",
};

/// What people and programs note on an object; nothing chooses by it.
pub(crate) const ANNOTATIONS: Notes = Notes {
    field: "annotations",
    one: "annotation",
    done: "annotated",
};

/// Sends a merge patch; when there is no such object, says which one may have been meant.
async fn patch(
    api: &Api,
    target: &Target,
    namespace: &str,
    part: Option<&str>,
    patch: &Value,
) -> Result<Value> {
    let scope = (target.kind.scope != Scope::Cluster).then_some(namespace);
    let collection = Collection::new(&target.kind, scope);
    let path = match part {
        Some(part) => collection.part(&target.name, part),
        None => collection.object(&target.name),
    };
    match api
        .call(Method::PATCH, &path, Some((media::MERGE_PATCH, patch)))
        .await
    {
        Ok(answer) => Ok(answer.body),
        Err(failure) if failure.code == Code::NotFound => {
            find::exact(api, target, namespace).await?;
            Err(failure)
        }
        Err(failure) => Err(failure),
    }
}

pub(crate) async fn scale(args: &ScaleArgs, setting: &Setting) -> Result<()> {
    let (api, catalog) = setting.connect().await?;
    let target = catalog.target(&args.what)?;
    let namespace = &args.namespace.namespace;
    let change = json!({ "spec": { "replicas": args.replicas } });
    patch(&api, &target, namespace, Some("scale"), &change).await?;
    output::done(format_args!("{} scaled\n", target.title()));
    if let Some(message) = unplaced(&api, &target, namespace).await {
        output::note(format_args!("warning: {}", output::plain(&message)));
    }
    Ok(())
}

/// Why some of the pods have no place, if the controller says so soon.
async fn unplaced(api: &Api, target: &Target, namespace: &str) -> Option<String> {
    let deadline = Instant::now() + ANSWER;
    loop {
        let object = find::exact(api, target, namespace).await.ok()?;
        let status = &object["status"];
        if status["observedGeneration"] == object["metadata"]["generation"] {
            let conditions = status["conditions"].as_array()?;
            let scheduled = conditions.iter().find(|it| it["type"] == "Scheduled")?;
            let unplaced = scheduled["status"] == "False";
            return unplaced.then(|| scheduled["message"].as_str().map(ToOwned::to_owned))?;
        }
        if Instant::now() > deadline {
            return None;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Sets and removes labels or annotations.
pub(crate) async fn note(notes: Notes, args: &LabelArgs, setting: &Setting) -> Result<()> {
    let Notes { field, one, done } = notes;
    let is_one_word = args.selector.is_some() || args.words[0].contains('/');
    let count = if is_one_word { 1 } else { 2 };
    let (what, changes) = args.words.split_at(count.min(args.words.len()));
    let changes = wanted(changes, one)?;
    let (api, catalog) = setting.connect().await?;
    let namespace = &args.namespace.namespace;
    let selector = args.selector.as_deref();
    let found = match selector {
        Some(_) => find::selected(&api, &catalog, what, namespace, selector).await?,
        None => {
            let target = catalog.target(what)?;
            let object = find::exact(&api, &target, namespace).await?;
            vec![(target, object)]
        }
    };
    // All are looked at first: one that may not be changed is found before any is.
    let mut different = Vec::new();
    for (target, object) in &found {
        let now = &object["metadata"][field];
        let differs = |name: &str, value: &Value| now.get(name).unwrap_or(&Value::Null) != value;
        for (name, value) in changes.iter().filter(|(name, value)| differs(name, value)) {
            let is = now.get(name).and_then(Value::as_str);
            if let (Some(is), false, false) = (is, args.overwrite, value.is_null()) {
                let message = format!("{} has the {one} {name}={is} already", target.title());
                return Err(Failure::new(Code::Conflict, output::plain(&message))
                    .hint("--overwrite changes it"));
            }
        }
        different.push(changes.iter().any(|(name, value)| differs(name, value)));
    }
    let change = json!({ "metadata": { field: changes } });
    for ((target, _), differs) in found.iter().zip(different) {
        if differs {
            patch(&api, target, namespace, None, &change).await?;
        }
        let said = if differs { done } else { "unchanged" };
        output::print(format_args!("{} {said}\n", target.title()))?;
    }
    Ok(())
}

/// `a=b` sets, `a-` removes.
fn wanted(words: &[String], one: &str) -> Result<Map<String, Value>> {
    let mut changes = Map::new();
    for word in words {
        let (name, value) = match (word.split_once('='), word.strip_suffix('-')) {
            (Some((name, value)), _) => (name, Value::from(value)),
            (None, Some(name)) => (name, Value::Null),
            (None, None) => {
                return Err(
                    Failure::usage(format!("`{}` changes no {one}", output::plain(word)))
                        .hint("write NAME=VALUE to set it, NAME- to remove it"),
                );
            }
        };
        if changes.insert(name.to_owned(), value).is_some() {
            return Err(Failure::usage(format!(
                "the {one} `{}` is given twice",
                output::plain(name)
            )));
        }
    }
    if changes.is_empty() {
        return Err(Failure::usage(format!("no {one} is given"))
            .hint("write NAME=VALUE to set it, NAME- to remove it"));
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_set_and_removed() {
        let words = |words: &[&str]| {
            words
                .iter()
                .map(|&word| word.to_owned())
                .collect::<Vec<_>>()
        };
        let changes = wanted(&words(&["a=b-", "c-", "d="]), "label").unwrap();
        assert_eq!(Value::from(changes), json!({"a": "b-", "c": null, "d": ""}));
        for bad in [&["a"][..], &["a=1", "a-"], &[]] {
            assert_eq!(
                wanted(&words(bad), "label").unwrap_err().code,
                Code::Usage,
                "{bad:?}"
            );
        }
    }
}
