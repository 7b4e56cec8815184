//! Finding objects: one by its name, or by the beginning of it; several by their labels.

use serde_json::Value;

use crate::api::{Api, Catalog, Collection, OTHER_VERSION, Query, Target, take};
use crate::error::{Code, Failure, Result};
use crate::output;

/// Objects in one page of a list.
const PAGE: &str = "500";

/// Every object of a collection, page by page, and the revision that the list is of.
pub(crate) async fn list(
    api: &Api,
    collection: &Collection,
    query: &Query,
) -> Result<(Vec<Value>, Value)> {
    let mut items = Vec::new();
    let mut next = String::new();
    let mut whole = false;
    loop {
        let mut page = query.clone();
        if !whole {
            page = page.with("limit", PAGE);
        }
        if !next.is_empty() {
            page = page.with("continue", &next);
        }
        let mut answer = match api.get(&page.on(collection.path())).await {
            Ok(answer) => answer,
            // The server has let go of the moment that the pages are of: all of them at once, then.
            Err(failure) if !next.is_empty() && failure.code == Code::Failed => {
                (items, next, whole) = (Vec::new(), String::new(), true);
                continue;
            }
            Err(failure) => return Err(failure),
        };
        let Value::Array(more) = take(&mut answer, "items") else {
            return Err(Failure::failed("the server's list has no items").hint(OTHER_VERSION));
        };
        items.extend(more);
        next = answer["metadata"]["continue"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        if next.is_empty() {
            return Ok((items, answer["metadata"]["resourceVersion"].clone()));
        }
    }
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// The object of exactly this name, if there is one.
pub(crate) async fn there(api: &Api, target: &Target, namespace: &str) -> Result<Option<Value>> {
    let collection = Collection::new(&target.kind, Some(namespace));
    match api.get(&collection.object(&target.name)).await {
        Ok(object) => Ok(Some(object)),
        Err(failure) if failure.code == Code::NotFound => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// The object of this name that has this uid: of several that were given one name, perhaps not the
/// one that has it.
pub(crate) async fn with_uid(
    api: &Api,
    target: &Target,
    namespace: &str,
    uid: &str,
) -> Result<Option<Value>> {
    let collection = Collection::new(&target.kind, Some(namespace));
    let (items, _) = list(api, &collection, &Query::default()).await?;
    let mut items = items.into_iter();
    Ok(items.find(|item| name(item) == target.name && item["metadata"]["uid"] == *uid))
}

/// The object of exactly this name. When there is none, says which ones may have been meant: the
/// beginning of several names is ambiguous, that of one is not enough where something is changed.
pub(crate) async fn exact(api: &Api, target: &Target, namespace: &str) -> Result<Value> {
    let collection = Collection::new(&target.kind, Some(namespace));
    match api.get(&collection.object(&target.name)).await {
        Err(failure) if failure.code == Code::NotFound => {
            let (items, _) = list(api, &collection, &Query::default()).await?;
            let begun: Vec<&Value> = items
                .iter()
                .filter(|item| name(item).starts_with(&target.name))
                .collect();
            Err(match begun.len() {
                0 | 1 => missing(target, namespace, &items),
                _ => ambiguous(target, &begun),
            })
        }
        answer => answer,
    }
}

/// The object of this name or, for people, the only one whose name begins so.
pub(crate) async fn by_beginning(api: &Api, target: &Target, namespace: &str) -> Result<Value> {
    let collection = Collection::new(&target.kind, Some(namespace));
    match api.get(&collection.object(&target.name)).await {
        Err(failure) if failure.code == Code::NotFound => {}
        answer => return answer,
    }
    let (items, _) = list(api, &collection, &Query::default()).await?;
    let found: Vec<&Value> = items
        .iter()
        .filter(|item| name(item).starts_with(&target.name))
        .collect();
    match found.as_slice() {
        [] => Err(missing(target, namespace, &items)),
        [one] => Ok((*one).clone()),
        several => Err(ambiguous(target, several)),
    }
}

/// The objects of a kind with these labels, or all of them; that there are none is an error.
pub(crate) async fn selected(
    api: &Api,
    catalog: &Catalog,
    words: &[String],
    namespace: &str,
    selector: Option<&str>,
) -> Result<Vec<(Target, Value)>> {
    let [word] = words else {
        return Err(
            Failure::usage("several words and a selection exclude each other")
                .hint("name a kind alone, as `pods -l app=web`"),
        );
    };
    let kind = catalog.named(word)?;
    let mut query = Query::default();
    if let Some(selector) = selector {
        query = query.with("labelSelector", selector);
    }
    let collection = Collection::new(&kind, Some(namespace));
    let (items, _) = list(api, &collection, &query).await?;
    if items.is_empty() {
        let which = if selector.is_some() {
            " with these labels"
        } else {
            ""
        };
        let message = format!("there are no {}{which}", kind.plural);
        return Err(Failure::new(Code::NotFound, message).hint(format!(
            "`platctrl get {}` lists what there is",
            kind.plural
        )));
    }
    let target = |object: Value| {
        let target = Target {
            kind: kind.clone(),
            name: name(&object).to_owned(),
        };
        (target, object)
    };
    Ok(items.into_iter().map(target).collect())
}

/// Refuses the beginning of several names; what else a wrong name is, is told by [`missing`].
pub(crate) fn ambiguous(target: &Target, found: &[&Value]) -> Failure {
    const SHOWN: usize = 20;
    let mut names: Vec<_> = found
        .iter()
        .map(|item| format!("{}/{}", target.kind.singular, name(item)))
        .collect();
    names.sort();
    if names.len() > SHOWN {
        let rest = names.split_off(SHOWN).len();
        names.push(format!("and {rest} more"));
    }
    let message = format!(
        "`{}` is the beginning of {} names:\n  {}",
        output::plain(&target.name),
        found.len(),
        output::plain(&names.join("\n  "))
    );
    Failure::usage(message).hint("write more of the name")
}

/// There is no such object; perhaps one of these was meant.
pub(crate) fn missing(target: &Target, namespace: &str, items: &[Value]) -> Failure {
    let cluster = target.kind.scope == platctrl_framework::model::Scope::Cluster;
    let failure = target.missing((!cluster).then_some(namespace));
    let begins: Vec<&Value> = items
        .iter()
        .filter(|item| name(item).starts_with(&target.name))
        .collect();
    let near = match begins.as_slice() {
        [one] => Some(name(one)),
        _ => output::nearest(&target.name, items.iter().map(name)),
    };
    match near {
        Some(near) => failure.hint(format!(
            "did you mean {}/{}?",
            target.kind.singular,
            output::plain(near)
        )),
        None => failure.hint(format!(
            "`platctrl get {}` lists what there is",
            target.kind.plural
        )),
    }
}

/// A node says that a pod has several programs: whoever asked said too little.
pub(super) fn one_of_several(failure: Failure) -> Failure {
    let is_missing = |(field, _): &(String, String)| field == "launchable";
    if !failure.fields.iter().any(is_missing) {
        return failure;
    }
    // The first line has the programs, the others what the hint says better.
    let message = failure.message.lines().next().unwrap_or_default();
    Failure::usage(message).hint("name one with --launchable")
}
