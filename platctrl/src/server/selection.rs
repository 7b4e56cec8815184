//! Which objects a list or watch is about.

use platctrl_framework::model::{KnownKind, RawObject, Selector, schema};
use serde_json::Value;

use super::request::{Query, shown};
use super::status::{Failure, Result};

/// Namespace, labels and fields.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    pub(super) namespace: Option<String>,
    labels: Selector,
    fields: Vec<FieldRequirement>,
}

#[derive(Clone, Debug)]
struct FieldRequirement {
    path: String,
    equal: bool,
    value: String,
}

impl Selection {
    pub(super) fn parse(
        kind: &KnownKind,
        namespace: Option<String>,
        query: &Query,
    ) -> Result<Self> {
        let refuse =
            |error: &dyn std::fmt::Display| Failure::bad_request(format!("labelSelector: {error}"));
        // Unlike in specs, a list without a selector is a list of everything, as in Kubernetes.
        let labels = query
            .get("labelSelector")
            .filter(|text| !text.trim().is_empty());
        let labels = labels.map_or(Ok(Selector::everything()), str::parse);
        Ok(Self {
            namespace,
            labels: labels.map_err(|error| refuse(&error))?,
            fields: fields(kind, query.get("fieldSelector").unwrap_or_default())?,
        })
    }

    /// Only the object of this name.
    pub(super) fn named(mut self, name: &str) -> Self {
        self.fields.push(FieldRequirement {
            path: "metadata.name".to_owned(),
            equal: true,
            value: name.to_owned(),
        });
        self
    }

    /// The value that a field must have, if the selection says so.
    pub(super) fn required(&self, path: &str) -> Option<&str> {
        let mut fields = self.fields.iter();
        let found = fields.find(|field| field.equal && field.path == path);
        found.map(|field| field.value.as_str())
    }

    pub(super) fn matches(&self, object: &RawObject) -> bool {
        let metadata = &object.metadata;
        let in_namespace = |namespace: &str| metadata.namespace.as_deref() == Some(namespace);
        self.namespace.as_deref().is_none_or(in_namespace)
            && self.labels.matches(&metadata.labels)
            && self.fields.iter().all(|field| {
                let matches = with_field(object, &field.path, |value| value == field.value);
                matches == field.equal
            })
    }

    /// As [`Selection::matches`], for what is no object of the store.
    pub(super) fn matches_value(&self, value: &Value) -> bool {
        let namespace = value.pointer("/metadata/namespace").and_then(Value::as_str);
        self.namespace
            .as_deref()
            .is_none_or(|wanted| namespace == Some(wanted))
            && self.labels.is_everything()
            && self.fields.iter().all(|field| {
                let pointer = format!("/{}", field.path.replace('.', "/"));
                let text = value.pointer(&pointer).map(text_of).unwrap_or_default();
                (text == field.value) == field.equal
            })
    }
}

/// Asks a question about the text of a field; a missing one is empty.
fn with_field<T>(object: &RawObject, path: &str, ask: impl FnOnce(&str) -> T) -> T {
    match path {
        "metadata.name" => return ask(&object.metadata.name),
        "metadata.namespace" => {
            return ask(object.metadata.namespace.as_deref().unwrap_or_default());
        }
        "status.phase" => return ask(object.status.phase.as_str()),
        _ => {}
    }
    let mut segments = path.split('.');
    let root = segments.next();
    let mut value = match root {
        Some("spec") => Some(&object.spec),
        Some("status") => segments
            .next()
            .and_then(|name| object.status.detail.get(name)),
        _ => None,
    };
    for segment in segments {
        value = value.and_then(|value| value.get(segment));
    }
    ask(&value.map(text_of).unwrap_or_default())
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn fields(kind: &KnownKind, text: &str) -> Result<Vec<FieldRequirement>> {
    let terms = text.split(',').filter(|term| !term.trim().is_empty());
    let parsed = terms.map(|term| {
        let (path, equal, value) = match (term.split_once("!="), term.split_once('=')) {
            (Some((path, value)), _) => (path, false, value),
            (None, Some((path, value))) => (path, true, value.strip_prefix('=').unwrap_or(value)),
            (None, None) => {
                return Err(Failure::bad_request(format!(
                    "fieldSelector: `{}` is no FIELD=VALUE or FIELD!=VALUE",
                    shown(term)
                )));
            }
        };
        let path = path.trim();
        let known = schema::field_at(&kind.definition.schema, path);
        // A scalar has no fields of its own.
        if path.is_empty() || known.is_none_or(|field| field.get("properties").is_some()) {
            return Err(Failure::bad_request(format!(
                "fieldSelector: {} have no field `{}` to select by",
                kind.definition.plural,
                shown(path)
            )));
        }
        Ok(FieldRequirement {
            path: path.to_owned(),
            equal,
            value: value.trim().to_owned(),
        })
    });
    parsed.collect()
}

#[cfg(test)]
mod tests {
    use platctrl_framework::model::Kinds;
    use platctrl_kinds::Pod;
    use serde_json::json;

    use super::*;

    fn selection(query: &str) -> Result<Selection> {
        let kinds = Kinds::new().with::<Pod>();
        let pods = kinds.iter().next().unwrap();
        Selection::parse(pods, None, &Query::parse(Some(query)).unwrap())
    }

    #[test]
    fn objects_are_selected_by_labels_and_fields() {
        let pod: RawObject = serde_json::from_value(json!({
            "apiVersion": "platctrl.dev/v1", "kind": "Pod",
            "metadata": {"name": "a", "namespace": "default", "labels": {"app": "hello"}},
            "spec": {"nodeName": "web1", "launchables": {}},
            "status": {"phase": "Running", "restarts": 2},
        }))
        .unwrap();
        for (query, selected) in [
            ("", true),
            ("labelSelector=", true),
            ("labelSelector=app%3Dhello", true),
            ("labelSelector=app!%3Dhello", false),
            (
                "fieldSelector=metadata.name%3Da,spec.nodeName%3D%3Dweb1",
                true,
            ),
            ("fieldSelector=spec.nodeName!%3Dweb1", false),
            (
                "fieldSelector=status.phase%3DRunning,status.restarts%3D2",
                true,
            ),
            ("fieldSelector=status.phase%3DFailed", false),
        ] {
            assert_eq!(selection(query).unwrap().matches(&pod), selected, "{query}");
        }
    }

    #[test]
    fn a_selector_that_selects_by_nothing_is_refused() {
        for query in [
            "fieldSelector=spec.nodename%3Dx",
            "fieldSelector=spec.nodeName",
            "fieldSelector=spec%3Da",
            "labelSelector=a+b",
        ] {
            assert!(selection(query).is_err(), "{query}");
        }
    }
}
