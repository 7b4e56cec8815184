//! Replication controllers: so many pods of one template, on nodes that a selector chooses.

use std::collections::BTreeMap;

use jiff::Timestamp;
use platctrl_framework::model::{FieldError, Propagation, Resource, Selector, check_labels};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{PodSpec, Span};

/// Keeps so many pods of one template on nodes that a selector chooses.
#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "platctrl.dev",
    version = "v1",
    kind = "ReplicationController",
    short("rc"),
    status = ReplicationControllerStatus,
    validate = validate,
    deletion_policy = deletion_policy,
    column(name = "Desired", path = ".spec.replicas"),
    column(name = "Current", path = ".status.replicas"),
    column(name = "Ready", path = ".status.readyReplicas"),
    column(name = "Selector", path = ".spec.nodeSelector", wide)
)]
#[serde(rename_all = "camelCase")]
pub struct ReplicationControllerSpec {
    /// How many pods.
    pub replicas: u32,
    /// Which nodes may run them: a label selector, `*` for every node.
    pub node_selector: String,
    /// What happens to pods on nodes that are lost or no longer match.
    #[serde(default)]
    pub strategy: Strategy,
    /// How many of them one node may run. Default 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub max_per_node: u32,
    /// A label of nodes: each of its values gets equally many pods, as far as there is room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread_over: Option<String>,
    /// Nothing is done: pods are neither made nor changed nor taken away.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disabled: bool,
    /// How long nothing may move before it counts as stalled. Default 10m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress_deadline: Option<Span>,
    /// What becomes of the pods when this is deleted.
    #[serde(default)]
    pub deletion_policy: Propagation,
    /// The rolling update that decides how many pods there are, while it does. Written by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_by: Option<String>,
    /// What the pods are.
    pub template: PodTemplate,
}

fn one() -> u32 {
    1
}

/// What happens to pods on nodes that are lost or no longer match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Strategy {
    /// They stay and are reported.
    #[default]
    Static,
    /// They are replaced one at a time: a pod goes when another one is ready in its place.
    Dynamic,
}

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

/// What a replication controller reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicationControllerStatus {
    /// Pods that it owns and that are not on their way out.
    #[serde(default)]
    pub replicas: u32,
    /// Those of them that are ready with the present template.
    #[serde(default)]
    pub ready_replicas: u32,
    /// What moved last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}

/// That something moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// When.
    #[schemars(with = "String")]
    pub at: Timestamp,
}

/// More pods than this of one replication controller are refused.
const MAX_REPLICAS: u32 = 1_000_000;

fn validate(spec: &ReplicationControllerSpec, errors: &mut Vec<FieldError>) {
    if spec.replicas > MAX_REPLICAS {
        errors.push(FieldError::new(
            "spec.replicas",
            format!("is above {MAX_REPLICAS}"),
        ));
    }
    if let Err(error) = spec.node_selector.parse::<Selector>() {
        errors.push(FieldError::new("spec.nodeSelector", error.to_string()));
    }
    if let Some(label) = &spec.spread_over {
        // A label with a value that is always allowed.
        let labels = [(label.clone(), String::new())].into();
        let mut wrong = Vec::new();
        check_labels("spec", &labels, &mut wrong);
        let problem = |error: FieldError| FieldError::new("spec.spreadOver", error.problem);
        errors.extend(wrong.into_iter().map(problem));
    }
    if (spec.progress_deadline).is_some_and(|deadline| deadline < Span::from_secs(1)) {
        errors.push(FieldError::new("spec.progressDeadline", "is below 1s"));
    }
    if spec.max_per_node == 0 {
        errors.push(FieldError::new(
            "spec.maxPerNode",
            "is 0: no node could run any",
        ));
    }
    check_labels(
        "spec.template.metadata.labels",
        &spec.template.metadata.labels,
        errors,
    );
    if spec.template.spec.node_name.is_some() {
        errors.push(FieldError::new(
            "spec.template.spec.nodeName",
            "is chosen for each pod: leave it out, and choose nodes by spec.nodeSelector",
        ));
    }
    spec.template.spec.validate("spec.template.spec", errors);
}

fn deletion_policy(spec: &ReplicationControllerSpec) -> Propagation {
    spec.deletion_policy
}
