//! What controllers that make pods have in common: a template, and how its pods end with it.

use std::collections::BTreeMap;

use platctrl_framework::model::{FieldError, Selector, check_labels};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::PodSpec;

/// What a controller's pods are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodTemplate {
    /// Labels and annotations for the pods.
    #[serde(default)]
    pub metadata: TemplateMetadata,
    /// Their spec, without a node.
    pub spec: PodSpec,
}

/// Metadata that a template gives to pods.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateMetadata {
    /// Their labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Their annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Adds what is wrong with a selector.
pub(crate) fn check_selector(field: &str, text: &str, errors: &mut Vec<FieldError>) {
    if let Err(error) = text.parse::<Selector>() {
        errors.push(FieldError::new(field, error.to_string()));
    }
}

impl PodTemplate {
    /// Adds what is wrong with the template in `spec.template`. `node`: who says which node each
    /// pod is on.
    pub(crate) fn check(&self, node: &str, errors: &mut Vec<FieldError>) {
        check_labels(
            "spec.template.metadata.labels",
            &self.metadata.labels,
            errors,
        );
        if self.spec.node_name.is_some() {
            errors.push(FieldError::new("spec.template.spec.nodeName", node));
        }
        self.spec.validate("spec.template.spec", errors);
    }
}

#[cfg(test)]
mod tests {
    use platctrl_framework::model::{Kinds, Resource, schema};
    use serde_json::{Value, json};

    use crate::{DaemonSet, DisruptionBudget, ReplicationController, RollingUpdate};

    /// What is wrong with a spec, as a server or `apply` finds it.
    fn problems<K: Resource>(spec: &Value) -> Vec<String> {
        let kinds = Kinds::new().with::<K>();
        let known = kinds.get(&K::group_plural()).unwrap();
        let object = json!({
            "apiVersion": K::api_version(), "kind": K::KIND,
            "metadata": {"name": "a", "namespace": "default"}, "spec": spec,
        });
        let mut errors = schema::check_object(&known.definition, &object);
        if errors.is_empty() {
            errors = known
                .checks
                .as_ref()
                .map(|it| it.validate(spec))
                .unwrap_or_default();
        }
        errors.iter().map(ToString::to_string).collect()
    }

    fn refuses<K: Resource>(good: &Value, cases: &[(&str, Value)]) {
        assert_eq!(problems::<K>(good), Vec::<String>::new());
        for (field, value) in cases {
            let mut spec = good.clone();
            let at = format!("/{}", field.replace('.', "/"));
            match spec.pointer_mut(&at) {
                Some(place) => *place = value.clone(),
                None => spec[*field] = value.clone(),
            }
            let found = problems::<K>(&spec);
            let named = format!("spec.{field}");
            assert!(
                found.iter().any(|problem| problem.contains(&named)),
                "{}: {field}: {value}: {found:?}",
                K::KIND
            );
        }
    }

    #[test]
    fn what_could_never_be_done_is_refused_by_its_field() {
        let template = json!({"spec": {"launchables": {"web": {"location": "artifact:one"}}}});
        let huge = || json!(1e30);
        refuses::<ReplicationController>(
            &json!({"replicas": 2, "nodeSelector": "*", "template": template}),
            &[
                ("replicas", json!(-1)),
                ("replicas", json!(4_000_000)),
                ("replicas", json!(99_999_999_999_u64)),
                ("replicas", huge()),
                ("replicas", json!("50%")),
                ("replicas", json!(1.5)),
                ("maxPerNode", json!(0)),
                ("maxPerNode", json!(-1)),
                ("nodeSelector", json!("")),
                ("nodeSelector", json!("role in (web")),
                ("spreadOver", json!("not a label")),
                ("progressDeadline", json!("0s")),
                ("progressDeadline", json!("-1s")),
                ("deletionGrace", json!("-5s")),
                ("deletionGrace", json!("soon")),
                ("revisionHistoryLimit", json!(-1)),
                ("revisionHistoryLimit", json!("10%")),
                ("strategy", json!("Sometimes")),
                ("deletionPolicy", json!("Maybe")),
            ],
        );
        refuses::<DaemonSet>(
            &json!({
                "nodeSelector": "*", "template": template, "minimumHealthy": 1, "timeout": "1m",
                "rateLimit": {"pods": 1, "per": "1s"},
            }),
            &[
                ("minimumHealthy", json!("100%")),
                ("minimumHealthy", json!("101%")),
                ("minimumHealthy", json!("-1%")),
                ("minimumHealthy", json!("ten")),
                ("minimumHealthy", json!(-1)),
                ("minimumHealthy", huge()),
                ("rateLimit.pods", json!(0)),
                ("rateLimit.pods", json!(-3)),
                ("rateLimit.per", json!("0s")),
                ("timeout", json!("0s")),
                ("nodeSelector", json!("")),
                ("canary", json!({"nodeSelector": ""})),
            ],
        );
        refuses::<DisruptionBudget>(
            &json!({"podSelector": "app=hello", "minimumHealthy": "90%"}),
            &[
                ("podSelector", json!("")),
                ("minimumHealthy", json!("101%")),
                ("minimumHealthy", json!("half")),
                ("minimumHealthy", json!(-1)),
                ("minimumHealthy", huge()),
            ],
        );
        refuses::<RollingUpdate>(
            &json!({"from": "a", "to": "b", "replicas": 10}),
            &[
                ("replicas", json!(-1)),
                ("replicas", huge()),
                ("replicas", json!("100%")),
                ("minimumHealthy", json!(10)),
                ("minimumHealthy", json!("100%")),
                ("surge", json!("-10%")),
                ("failureBudget", json!("110%")),
                ("keepOld", json!(11)),
                ("delay", json!("-1s")),
                ("to", json!("a")),
                ("promoted", json!(-1)),
            ],
        );
    }
}
