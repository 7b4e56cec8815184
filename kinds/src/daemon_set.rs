//! Daemon sets: one pod of a template on every node that a selector chooses.

use jiff::Timestamp;
use platctrl_framework::model::{FieldError, Propagation, Resource};
use platctrl_framework::store::Revision;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::template::check_selector;
use crate::{Amount, PodTemplate, Span};

/// Keeps one pod of a template on every node that a selector chooses.
///
/// Nodes come and go, and change their labels: pods follow. A new template goes over the nodes
/// so that enough pods stay healthy, and no faster than it may.
#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "platctrl.dev",
    version = "v1",
    kind = "DaemonSet",
    short("ds"),
    status = DaemonSetStatus,
    validate = validate,
    deletion_policy = deletion_policy,
    column(name = "Desired", path = ".status.desired"),
    column(name = "Current", path = ".status.current"),
    column(name = "Updated", path = ".status.updated"),
    column(name = "Ready", path = ".status.ready"),
    column(name = "Selector", path = ".spec.nodeSelector", wide)
)]
#[serde(rename_all = "camelCase")]
pub struct DaemonSetSpec {
    /// Which nodes: a label selector, `*` for every node.
    pub node_selector: String,
    /// How many of the pods stay healthy while others are changed: a count, or a share of the
    /// nodes that are chosen, of which one may always be changed. Default 90%.
    #[serde(default = "ninety_percent")]
    pub minimum_healthy: Amount,
    /// How fast pods are made, changed and taken away. Left out: as fast as it may otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// How long a node's pod may take to be ready before the node is reported. Default 5m.
    #[serde(default = "five_minutes")]
    pub timeout: Span,
    /// Nodes that get a new template before the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// Nothing is done: pods are neither made nor changed nor taken away.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disabled: bool,
    /// What becomes of the pods when this is deleted.
    #[serde(default)]
    pub deletion_policy: Propagation,
    /// How long a delete waits before it takes effect on the pods, so that it can be taken back
    /// (`platctrl undelete`). Default 0s; a delete may say otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_grace: Option<Span>,
    /// What the pods are.
    pub template: PodTemplate,
}

fn ninety_percent() -> Amount {
    Amount::Percent(90)
}

fn five_minutes() -> Span {
    Span::from_secs(300)
}

/// At most so many pods in so much time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// How many.
    #[schemars(range(min = 1))]
    pub pods: u32,
    /// In how much time.
    pub per: Span,
}

/// Nodes that get a new template before the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Canary {
    /// Which of the set's nodes: a label selector.
    pub node_selector: String,
    /// The others keep what they have until this is set to false. Otherwise they follow once the
    /// pods of all these nodes are ready.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only: bool,
}

/// What a daemon set reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DaemonSetStatus {
    /// Nodes that are chosen.
    #[serde(default)]
    pub desired: u32,
    /// Pods on them.
    #[serde(default)]
    pub current: u32,
    /// Those of them with the present template.
    #[serde(default)]
    pub updated: u32,
    /// Pods on chosen nodes that are ready with the present template.
    #[serde(default)]
    pub ready: u32,
    /// Chosen nodes that have no place for a pod.
    #[serde(default)]
    pub without_place: u32,
    /// How much of the rate limit is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<RateUsed>,
    /// The revision of the store at which the counts are exact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub observed_revision: Option<Revision>,
}

/// How much of a rate limit is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RateUsed {
    /// When a pod was last made, changed or taken away.
    #[schemars(with = "String")]
    pub at: Timestamp,
    /// How many since there was last a pause as long as the limit's time.
    pub pods: u32,
}

fn validate(spec: &DaemonSetSpec, errors: &mut Vec<FieldError>) {
    check_selector("spec.nodeSelector", &spec.node_selector, errors);
    if let Some(canary) = &spec.canary {
        let selector = &canary.node_selector;
        check_selector("spec.canary.nodeSelector", selector, errors);
    }
    if spec.minimum_healthy == Amount::Percent(100) {
        errors.push(FieldError::new(
            "spec.minimumHealthy",
            "is 100%: no pod could ever be changed, because each node has one",
        ));
    }
    if let Some(limit) = spec.rate_limit {
        if limit.pods == 0 {
            let problem = "is 0: nothing could ever be done; to do nothing, set spec.disabled";
            errors.push(FieldError::new("spec.rateLimit.pods", problem));
        }
        if limit.per < Span::from_millis(100) {
            errors.push(FieldError::new("spec.rateLimit.per", "is below 100ms"));
        }
    }
    if spec.timeout < Span::from_secs(1) {
        errors.push(FieldError::new("spec.timeout", "is below 1s"));
    }
    let node = "is each node that spec.nodeSelector chooses: leave it out";
    spec.template.check(node, errors);
}

fn deletion_policy(spec: &DaemonSetSpec) -> Propagation {
    spec.deletion_policy
}
