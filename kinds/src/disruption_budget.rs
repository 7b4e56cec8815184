//! Disruption budgets: how many pods of a workload have to stay healthy.

use platctrl_framework::model::{FieldError, Resource};
use platctrl_framework::store::Revision;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Amount;
use crate::template::check_selector;

/// How many pods of each workload stay healthy, whoever wants to take some away.
///
/// It counts for rolling updates, drains, moves, scale-downs and restarts alike. It cannot prevent
/// losses that nobody chose.
#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "platctrl.dev",
    version = "v1",
    kind = "DisruptionBudget",
    short("db"),
    status = DisruptionBudgetStatus,
    validate = validate,
    column(name = "Minimum", path = ".spec.minimumHealthy"),
    column(name = "Healthy", path = ".status.healthy"),
    column(name = "Allowed", path = ".status.allowed"),
    column(name = "Selector", path = ".spec.podSelector", wide)
)]
#[serde(rename_all = "camelCase")]
pub struct DisruptionBudgetSpec {
    /// The pods it is for, by their labels; for each controller of such pods it counts apart.
    pub pod_selector: String,
    /// How many of a controller's pods stay healthy: a count, or a share of how many it wants.
    pub minimum_healthy: Amount,
}

/// What a disruption budget comes to, over all workloads that it is for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DisruptionBudgetStatus {
    /// Controllers whose pods it is for.
    #[serde(default)]
    pub workloads: u32,
    /// Their healthy pods.
    #[serde(default)]
    pub healthy: u32,
    /// How many of them could be taken away now.
    #[serde(default)]
    pub allowed: u32,
    /// The revision of the store at which the counts are exact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub observed_revision: Option<Revision>,
}

fn validate(spec: &DisruptionBudgetSpec, errors: &mut Vec<FieldError>) {
    check_selector("spec.podSelector", &spec.pod_selector, errors);
}

/// How many of `wanted` pods stay healthy where nobody said so: all but one, or all but a tenth.
#[must_use]
pub const fn default_floor(wanted: u32) -> u32 {
    let tenth = wanted / 10;
    wanted.saturating_sub(if tenth > 1 { tenth } else { 1 })
}
