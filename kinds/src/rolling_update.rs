//! Rolling updates: pods go over from one replication controller to another.

use jiff::Timestamp;
use platctrl_framework::model::{FieldError, Phase, Resource, check_name};
use platctrl_framework::store::Revision;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Amount, Span, default_floor};

/// Moves pods from one replication controller to another, without ever taking away more healthy
/// ones than it may.
///
/// While it works it claims both controllers: how many pods each has is its to say. Deleting it
/// stops it where it is.
#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "platctrl.dev",
    version = "v1",
    kind = "RollingUpdate",
    short("ru"),
    status = RollingUpdateStatus,
    validate = validate,
    validate_update = validate_update,
    column(name = "Phase", path = ".status.phase"),
    column(name = "From", path = ".spec.from"),
    column(name = "To", path = ".spec.to"),
    column(name = "Moved", path = ".status.updated"),
    column(name = "Replicas", path = ".spec.replicas"),
    column(name = "Healthy", path = ".status.healthy"),
    column(name = "Minimum", path = ".status.floor"),
    column(name = "Next", path = ".status.next", wide)
)]
#[serde(rename_all = "camelCase")]
pub struct RollingUpdateSpec {
    /// The replication controller whose pods are moved.
    pub from: String,
    /// The replication controller that gets them.
    pub to: String,
    /// How many pods both have together, in the end and on the way.
    pub replicas: u32,
    /// How many of both stay healthy: a count, or a share of `replicas`. Left out: all but one,
    /// or all but a tenth if that is more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_healthy: Option<Amount>,
    /// How many pods more than `replicas` there may be. At 0, the default, pods are updated in
    /// place; else new ones are made before old ones are taken away.
    #[serde(default, skip_serializing_if = "Amount::is_zero")]
    pub surge: Amount,
    /// How long a moved pod has to be ready before it counts as healthy. Default 10s.
    #[serde(default = "ten_seconds")]
    pub min_healthy_time: Span,
    /// The least time between two moves. Default 0s.
    #[serde(default, skip_serializing_if = "is_no_time")]
    pub delay: Span,
    /// Nothing is moved.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Pods go back from `to` to `from`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rollback: bool,
    /// Without any progress for so long, the roll has failed. Default 10m.
    #[serde(default = "ten_minutes")]
    pub progress_deadline: Span,
    /// What happens when it has failed.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// How many moved pods may be seen to be unhealthy, as a count or a share of `replicas`:
    /// with one more, the roll has failed. Left out: only the deadline counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_budget: Option<Amount>,
    /// How many pods stay as they are.
    #[serde(default, skip_serializing_if = "Amount::is_zero")]
    pub keep_old: Amount,
    /// Stops on the way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
    /// How many of the steps somebody has let pass.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub promoted: u32,
}

/// What happens to a roll that has failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnFailure {
    /// It is paused.
    #[default]
    Pause,
    /// Pods go back to where they came from.
    Rollback,
}

/// A stop on the way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// How many pods are moved up to here, in all.
    pub up_to: Amount,
    /// Who lets the roll go on.
    #[serde(default)]
    pub gate: Gate,
}

/// Who lets a roll go on after a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Gate {
    /// Somebody says so: `platctrl rollout promote`.
    #[default]
    Manual,
    /// Nobody: it goes on once all that was moved is healthy.
    Auto,
}

/// What a rolling update reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RollingUpdateStatus {
    /// Pods that `to` has.
    #[serde(default)]
    pub updated: u32,
    /// Those of them that were healthy for long enough.
    #[serde(default)]
    pub confirmed: u32,
    /// Healthy pods of both.
    #[serde(default)]
    pub healthy: u32,
    /// How many have to stay healthy.
    #[serde(default)]
    pub floor: u32,
    /// What the roll last said that `from` is to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_replicas: Option<u32>,
    /// What the roll last said that `to` is to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_replicas: Option<u32>,
    /// What happens next, and what it waits for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub next: String,
    /// When the first pod could be moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub started_at: Option<Timestamp>,
    /// When it came to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub finished_at: Option<Timestamp>,
    /// The revision of the store at which the counts are exact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub observed_revision: Option<Revision>,
}

/// What versions of one program say about themselves: the names of labels and annotations of
/// replication controllers and of the rolls between them.
pub mod line {
    /// The label of everything that belongs to a line: its name.
    pub const LINE: &str = "platctrl.dev/line";
    /// The annotation that says which version of the line a replication controller is.
    pub const REVISION: &str = "platctrl.dev/revision";
    /// The annotation that says who made it.
    pub const MADE_BY: &str = "platctrl.dev/made-by";
    /// The annotation that says why, in the words of who made it.
    pub const CAUSE: &str = "platctrl.dev/cause";
}

/// The phases of a rolling update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RollPhase {
    /// It has not claimed its controllers.
    Pending,
    /// Pods are moved.
    Rolling,
    /// Pods go back.
    RollingBack,
    /// Somebody paused it, or it failed.
    Paused,
    /// It waits for somebody to let it pass a step.
    AtGate,
    /// All pods are moved and healthy.
    Complete,
    /// All pods are back.
    RolledBack,
}

impl RollPhase {
    /// The phase as it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Rolling => "Rolling",
            Self::RollingBack => "RollingBack",
            Self::Paused => "Paused",
            Self::AtGate => "AtGate",
            Self::Complete => "Complete",
            Self::RolledBack => "RolledBack",
        }
    }

    /// A status of this phase is the last one.
    #[must_use]
    pub fn is_final(phase: &Phase) -> bool {
        [Self::Complete, Self::RolledBack]
            .iter()
            .any(|end| end.as_str() == phase.as_str())
    }
}

impl From<RollPhase> for Phase {
    fn from(phase: RollPhase) -> Self {
        Self::new(phase.as_str())
    }
}

fn ten_seconds() -> Span {
    Span::from_secs(10)
}

fn ten_minutes() -> Span {
    Span::from_secs(600)
}

fn is_no_time(span: &Span) -> bool {
    *span == Span::default()
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

const MAX_REPLICAS: u32 = 1_000_000;
const MAX_STEPS: usize = 64;

impl RollingUpdateSpec {
    /// How many pods stay healthy.
    #[must_use]
    pub fn floor(&self) -> u32 {
        match self.minimum_healthy {
            Some(amount) => amount.rounded_up(self.replicas),
            None => default_floor(self.replicas),
        }
    }

    /// How many pods more than `replicas` there may be.
    #[must_use]
    pub fn most_surge(&self) -> u32 {
        self.surge.rounded_up(self.replicas)
    }

    /// How many pods `to` has in the end.
    #[must_use]
    pub fn goal(&self) -> u32 {
        let kept = self.keep_old.rounded_up(self.replicas);
        self.replicas.saturating_sub(kept)
    }

    /// The gates that wait for somebody, in order: how many pods are moved up to each.
    pub fn gates(&self) -> impl Iterator<Item = u32> + '_ {
        let manual = self.steps.iter().filter(|step| step.gate == Gate::Manual);
        manual.map(|step| step.up_to.rounded_up(self.replicas).min(self.goal()))
    }
}

fn validate(spec: &RollingUpdateSpec, errors: &mut Vec<FieldError>) {
    let mut wrong = |field: &str, problem: String| {
        errors.push(FieldError::new(format!("spec.{field}"), problem));
    };
    for (field, name) in [("from", &spec.from), ("to", &spec.to)] {
        if let Err(error) = check_name("name of a replication controller", name) {
            wrong(field, error.to_string());
        }
    }
    if spec.from == spec.to {
        wrong(
            "to",
            format!(
                "is `{}`, as spec.from: pods go from one controller to another",
                spec.to
            ),
        );
    }
    if spec.replicas > MAX_REPLICAS {
        wrong("replicas", format!("is above {MAX_REPLICAS}"));
        return;
    }
    let (replicas, floor) = (spec.replicas, spec.floor());
    if replicas > 0 && floor >= replicas && spec.surge.is_zero() {
        wrong(
            "minimumHealthy",
            format!(
                "keeps {floor} of {replicas} pods healthy, so that none can ever be updated in place: lower it, or set spec.surge to 1 or more"
            ),
        );
    }
    if floor > replicas {
        wrong(
            "minimumHealthy",
            format!("is above spec.replicas, {replicas}"),
        );
    }
    if spec.most_surge() > MAX_REPLICAS {
        wrong("surge", format!("is above {MAX_REPLICAS}"));
    }
    if spec.keep_old.rounded_up(replicas) > replicas {
        wrong("keepOld", format!("is above spec.replicas, {replicas}"));
    }
    if spec.steps.len() > MAX_STEPS {
        wrong("steps", format!("has more than {MAX_STEPS} steps"));
    }
    let mut before = 0;
    for (index, step) in spec.steps.iter().enumerate() {
        let up_to = step.up_to.rounded_up(replicas);
        let field = format!("steps[{index}].upTo");
        if up_to > replicas {
            wrong(&field, format!("is above spec.replicas, {replicas}"));
        } else if up_to < before {
            wrong(&field, format!("is {up_to}, below the step before"));
        }
        before = up_to;
    }
    if spec.progress_deadline <= spec.min_healthy_time {
        wrong(
            "progressDeadline",
            "is not above spec.minHealthyTime: every move would count as failed".into(),
        );
    } else if spec.progress_deadline <= spec.delay {
        wrong(
            "progressDeadline",
            "is not above spec.delay: every delay would count as a failure".into(),
        );
    }
}

fn validate_update(old: &RollingUpdateSpec, new: &RollingUpdateSpec, errors: &mut Vec<FieldError>) {
    for (field, old, new) in [("from", &old.from, &new.from), ("to", &old.to, &new.to)] {
        if old != new {
            errors.push(FieldError::new(
                format!("spec.{field}"),
                format!("was `{old}` and cannot change: delete this roll and begin another"),
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(change: impl FnOnce(&mut serde_json::Value)) -> Vec<String> {
        let mut json = serde_json::json!({"from": "a", "to": "b", "replicas": 10});
        change(&mut json);
        let spec: RollingUpdateSpec = match serde_json::from_value(json) {
            Ok(spec) => spec,
            Err(error) => return vec![error.to_string()],
        };
        let mut errors = Vec::new();
        validate(&spec, &mut errors);
        errors.iter().map(|error| error.path.clone()).collect()
    }

    #[test]
    fn what_could_never_work_is_refused() {
        assert!(problems(|_| {}).is_empty());
        let cases: [(&str, serde_json::Value, &str); 13] = [
            ("to", "a".into(), "spec.to"),
            ("to", "../b".into(), "spec.to"),
            ("minimumHealthy", 10.into(), "spec.minimumHealthy"),
            ("minimumHealthy", "100%".into(), "spec.minimumHealthy"),
            ("minimumHealthy", "91%".into(), "spec.minimumHealthy"),
            ("minimumHealthy", (-1).into(), "below 0"),
            ("minimumHealthy", "ten".into(), "neither a count"),
            ("minimumHealthy", "101%".into(), "neither a count"),
            ("replicas", 4_000_000.into(), "spec.replicas"),
            ("keepOld", 11.into(), "spec.keepOld"),
            ("surge", 4_000_000_000_u32.into(), "spec.surge"),
            (
                "steps",
                serde_json::json!([{"upTo": 3}, {"upTo": 2}]),
                "spec.steps[1].upTo",
            ),
            ("progressDeadline", "5s".into(), "spec.progressDeadline"),
        ];
        for (field, value, named) in cases {
            let found = problems(|json| json[field] = value.clone());
            assert!(
                found.iter().any(|problem| problem.contains(named)),
                "{field}: {value}: {found:?}"
            );
        }
        let with_surge = problems(|json| {
            json["minimumHealthy"] = "100%".into();
            json["surge"] = 1.into();
        });
        assert!(with_surge.is_empty(), "{with_surge:?}");
    }

    #[test]
    fn shares_become_counts() {
        let spec: RollingUpdateSpec = serde_json::from_value(serde_json::json!({
            "from": "a", "to": "b", "replicas": 15, "surge": "10%", "keepOld": "10%",
            "steps": [{"upTo": "10%"}, {"upTo": 8, "gate": "Auto"}, {"upTo": "100%"}],
        }))
        .unwrap();
        assert_eq!((spec.floor(), spec.most_surge(), spec.goal()), (14, 2, 13));
        assert_eq!(spec.gates().collect::<Vec<_>>(), [2, 13]);
    }
}
