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
