//! The kind whose objects say what a program holds: its intent takes resets, its reality lists
//! the holds.

use jiff::Timestamp;
use platctrl_derive::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a program holds back, and what a person lets go.
///
/// The object of a program has the program's name. Its status is written by the program.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "platctrl.dev",
    version = "v1",
    kind = "Failsafe",
    short("fs"),
    scope = "Cluster",
    status = FailsafeStatus,
    column(name = "Held", path = ".status.held"),
    column(name = "Frozen", path = ".status.frozen"),
    column(name = "Why", path = ".status.summary")
)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct FailsafeSpec {
    /// Holds that are let go: what is there now is taken as it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reset: Vec<Reset>,
    /// Objects whose intents are missing and are written again as they were last known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adopt: Vec<Recall>,
    /// Objects whose intents are missing and that are to end in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<Recall>,
}

/// Lets one hold go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reset {
    /// The hold, as the status lists it.
    pub id: String,
    /// Its `since`: a later hold of the same id is another one.
    #[schemars(with = "String")]
    pub since: Timestamp,
}

/// Names an object whose intent is missing. An order of this kind counts for ten minutes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Recall {
    /// The key of its intent, as `o/intent/platctrl.dev/pods/web1/default/hello`.
    pub key: String,
    /// When it was ordered.
    #[schemars(with = "String")]
    pub at: Timestamp,
    /// Who ordered it.
    #[serde(default)]
    pub by: String,
}

/// What a program holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct FailsafeStatus {
    /// How many holds there are.
    #[serde(default)]
    pub held: u32,
    /// Everything is frozen.
    #[serde(default)]
    pub frozen: bool,
    /// The holds in short.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub summary: String,
    /// The holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holds: Vec<Hold>,
    /// Keys of intents that are missing while somebody still reports, at most a hundred. What is
    /// listed here can be adopted or removed without a manifest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unexplained: Vec<String>,
    /// What this program remembers of the store over a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<super::Baseline>,
}

/// Which guard holds.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Guard {
    /// The store shows another history than before: nothing is taken away.
    History,
    /// Many intents vanished in one step; the last known ones are kept in view.
    Vanished,
    /// Many intents changed in one step without an order; the last known ones are kept in view.
    Changed,
    /// Many intents went back in one step; the last known ones are kept in view.
    WentBack,
    /// Many reports vanished in one step.
    RealityLost,
    /// Far fewer objects are there than when this program was last seen.
    Fewer,
    /// More was to be taken away in a window than the budget has.
    Budget,
}

impl Guard {
    /// The guard as one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::History => "history",
            Self::Vanished => "vanished",
            Self::Changed => "changed",
            Self::WentBack => "went-back",
            Self::RealityLost => "reality-lost",
            Self::Fewer => "fewer",
            Self::Budget => "budget",
        }
    }
}

/// Something a guard holds back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Hold {
    /// Names it for a reset.
    pub id: String,
    /// Which guard holds.
    pub guard: Guard,
    /// The kind it is about, as `pods.platctrl.dev`; empty when about all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// The failure domain it is about; empty when about all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Since when.
    #[schemars(with = "String")]
    pub since: Timestamp,
    /// What happened, with the numbers that decided it.
    pub message: String,
    /// How many objects it is about.
    #[serde(default)]
    pub count: u32,
    /// Some of them, at most twenty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub objects: Vec<String>,
}
