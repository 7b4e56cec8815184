//! Replication controllers: so many pods of one template, on nodes that a selector chooses.

use jiff::Timestamp;
use platctrl_framework::model::{FieldError, Propagation, Resource, check_labels};
use platctrl_framework::store::Revision;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::template::check_selector;
use crate::{PodTemplate, Span};

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
    /// How long a delete waits before it takes effect on the pods, so that it can be taken back
    /// (`platctrl undelete`). Default 0s; a delete may say otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_grace: Option<Span>,
    /// How many earlier versions are kept to go back to, when rolls have taken all pods from them.
    /// Default 10. The first one is always kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision_history_limit: Option<u32>,
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
    /// The revision of the store at which the counts are exact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub observed_revision: Option<Revision>,
}

/// That something moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// When.
    #[schemars(with = "String")]
    pub at: Timestamp,
}

/// Earlier versions that are kept where nobody says how many.
const HISTORY: u32 = 10;

impl ReplicationControllerSpec {
    /// How many earlier versions are kept.
    #[must_use]
    pub fn history_limit(&self) -> u32 {
        self.revision_history_limit.unwrap_or(HISTORY)
    }
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
    check_selector("spec.nodeSelector", &spec.node_selector, errors);
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
    let node = "is chosen for each pod: leave it out, and choose nodes by spec.nodeSelector";
    spec.template.check(node, errors);
}

fn deletion_policy(spec: &ReplicationControllerSpec) -> Propagation {
    spec.deletion_policy
}
