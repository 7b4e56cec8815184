//! What a pod's worker tells: its status, and what happened.

use std::collections::BTreeMap;

use platctrl_framework::model::{Condition, ConditionStatus, Digest, EventType, Uid};
use platctrl_kinds::{PodPhase, PodStatus, RestartRequest, condition};

use crate::launch::{Activity, UnitExit, UnitState};
use crate::name::PodName;
use crate::plan::{Hold, Step};
use crate::state::PodRecord;
use crate::version::Desired;
use crate::worker::Wish;

/// A pod's status as its worker sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Which pod.
    pub name: PodName,
    /// Which pod of that name.
    pub uid: Uid,
    /// The generation that the status is about.
    pub observed_generation: u64,
    /// The digest of the spec that the status is about.
    pub observed_spec: Option<Digest>,
    /// Where in its life the pod is.
    pub phase: PodPhase,
    /// What is so about it. Times are added by whoever writes them down.
    pub conditions: Vec<Condition>,
    /// The rest of the status.
    pub status: PodStatus,
}

impl Report {
    /// The condition of this type.
    #[must_use]
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions
            .iter()
            .find(|condition| condition.kind == kind)
    }

    /// The pod can do its work.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.condition(condition::READY)
            .is_some_and(|ready| ready.status == ConditionStatus::True)
    }
}

/// Something that happened to a pod, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEvent {
    /// Which pod.
    pub name: PodName,
    /// Which pod of that name.
    pub uid: Uid,
    /// Whether somebody should look.
    pub event_type: EventType,
    /// One word in camel case.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// Hears what workers tell. Calls must not block.
pub trait Observer: std::fmt::Debug + Send + Sync + 'static {
    /// A pod's status is different now.
    fn report(&self, report: Report);
    /// Something happened.
    fn event(&self, event: PodEvent);
}

/// A step that could not be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// Which step.
    pub(crate) step: Step,
    /// One word in camel case.
    pub(crate) reason: String,
    /// What went wrong, and the way out.
    pub(crate) message: String,
    /// Trying again without a change can only fail again.
    pub(crate) permanent: bool,
}

/// What is known about a pod's ability to work, from its health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fitness {
    /// It has no check.
    Unchecked,
    /// No answer yet.
    Unknown,
    /// The check passes.
    Healthy {
        /// So an earlier agent saw it; nobody asked again yet.
        stale: bool,
    },
    /// The check fails.
    Unhealthy {
        /// What was seen.
        message: String,
    },
}

/// A unit as its worker knows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct UnitFacts {
    /// What its supervisor told last.
    pub(crate) state: Option<UnitState>,
    /// How its last run ended.
    pub(crate) last_exit: Option<UnitExit>,
}

/// Everything a report is made of.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) record: &'a PodRecord,
    /// What is wanted, or was last.
    pub(crate) desired: Option<&'a Desired>,
    pub(crate) units: &'a BTreeMap<String, Box<UnitFacts>>,
    pub(crate) fitness: &'a Fitness,
    pub(crate) fetching: bool,
    pub(crate) trouble: Option<&'a Trouble>,
    pub(crate) hold: Option<&'a Hold>,
    pub(crate) gone: bool,
    pub(crate) node: &'a str,
    pub(crate) host_ip: &'a str,
}

/// Makes the report.
pub(crate) fn compose(facts: &Facts<'_>) -> Report {
    let record = facts.record;
    let uid = match facts.desired {
        _ if !record.uid.is_empty() => record.uid.clone(),
        Some(desired) => desired.uid.clone(),
        None => Uid::default(),
    };
    let (generation, digest) = match (&record.current, facts.desired) {
        (Some(current), Some(desired))
            if current.digest == desired.digest && desired.uid == uid =>
        {
            (desired.generation, Some(desired.digest))
        }
        (Some(current), _) => (current.observed_generation(), Some(current.digest)),
        (None, Some(desired)) => (desired.generation, Some(desired.digest)),
        (None, None) => (0, None),
    };
    let phase = phase(facts);
    let ready = ready(facts, phase);
    let mut conditions = vec![ready.clone()];
    conditions.extend(installed(facts));
    if let Some(hold) = facts.hold {
        let held = (
            condition::HELD,
            ConditionStatus::True,
            hold.reason(),
            hold.message(),
        );
        conditions.push(Condition::new(held.0, held.1, held.2, held.3));
    }
    for condition in &mut conditions {
        condition.observed_generation = generation;
    }
    let (reason, message) = match (facts.hold, facts.trouble) {
        (Some(hold), _) => (hold.reason().to_owned(), hold.message()),
        (None, Some(trouble)) => (trouble.reason.clone(), trouble.message.clone()),
        (None, None) if ready.status == ConditionStatus::True => Default::default(),
        (None, None) => (ready.reason.clone(), ready.message.clone()),
    };
    let version = record.current.as_ref().or(record.next.as_ref());
    let states = || {
        facts
            .units
            .iter()
            .filter_map(|(name, unit)| Some((name, unit.state.as_ref()?)))
    };
    let status = PodStatus {
        ports: version
            .map(|version| version.ports.clone())
            .unwrap_or_default(),
        pids: states()
            .filter_map(|(name, state)| Some((name.clone(), state.pid?)))
            .collect(),
        restarts: states().map(|(_, state)| state.restarts).sum(),
        exits: record.exits.clone(),
        restart_request: request(facts),
        reason,
        message,
        node_name: facts.node.to_owned(),
        host_ip: facts.host_ip.to_owned(),
    };
    Report {
        name: record.name.clone(),
        uid,
        observed_generation: generation,
        observed_spec: digest,
        phase,
        conditions,
        status: if facts.gone { gone(status) } else { status },
    }
}

/// The restart that is asked for, until it is granted.
fn request(facts: &Facts<'_>) -> Option<RestartRequest> {
    let asked = facts.record.restart.as_ref().filter(|it| !it.granted)?;
    Some(RestartRequest {
        id: asked.id.clone(),
        reason: asked.why.clone(),
    })
}

/// Of a pod that is gone nothing is left to tell but how its programs ended.
fn gone(status: PodStatus) -> PodStatus {
    PodStatus {
        exits: status.exits,
        node_name: status.node_name,
        restarts: status.restarts,
        ..PodStatus::default()
    }
}

fn ending(facts: &Facts<'_>) -> bool {
    let ours = |desired: &&Desired| facts.record.uid.is_empty() || desired.uid == facts.record.uid;
    facts
        .desired
        .filter(ours)
        .is_some_and(|desired| desired.tombstone.is_some())
}

fn phase(facts: &Facts<'_>) -> PodPhase {
    let record = facts.record;
    if facts.gone {
        return PodPhase::Gone;
    }
    if ending(facts) || record.position.is_stopping() {
        return PodPhase::Stopping;
    }
    let Some(current) = &record.current else {
        return match facts.trouble {
            Some(trouble) if trouble.permanent => PodPhase::Failed,
            _ if facts.fetching => PodPhase::Fetching,
            Some(trouble) if trouble.step.prepares() => PodPhase::Fetching,
            _ if record.next.is_some() => PodPhase::Installing,
            _ => PodPhase::Pending,
        };
    };
    let programs = current.programs.keys().map(|program| {
        let unit = facts.units.get(program);
        let state = unit.and_then(|unit| unit.state.as_ref());
        let exit = unit.and_then(|unit| unit.last_exit.as_ref());
        let ended_well = exit.is_some_and(|exit| exit.code == Some(0));
        (state.map(|state| state.activity), ended_well)
    });
    phase_of_programs(&programs.collect::<Vec<_>>())
}

/// Where in its life a version is that is meant to run, from what each of its programs does, as far
/// as that is known, and whether the last run of it ended well.
pub(crate) fn phase_of_programs(programs: &[(Option<Activity>, bool)]) -> PodPhase {
    let is = |activity| programs.iter().any(|(known, _)| *known == Some(activity));
    let mut ended_well = programs.iter().map(|(_, well)| *well);
    if programs
        .iter()
        .all(|(known, _)| *known == Some(Activity::Finished))
    {
        return match ended_well.all(|well| well) {
            true => PodPhase::Succeeded,
            false => PodPhase::Failed,
        };
    }
    match is(Activity::Running) && !is(Activity::Starting) {
        true => PodPhase::Running,
        false => PodPhase::Starting,
    }
}

/// How a run ended, in words.
pub(crate) fn ended(exit: &UnitExit) -> String {
    let how = match (exit.code, exit.signal) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) if exit.message.is_empty() => "ended, nobody saw how".to_owned(),
        (None, None) => return exit.message.clone(),
    };
    if exit.message.is_empty() {
        how
    } else {
        format!("{how} ({})", exit.message)
    }
}

fn ready(facts: &Facts<'_>, phase: PodPhase) -> Condition {
    let record = facts.record;
    let no = |reason: &str, message: String| {
        Condition::new(condition::READY, ConditionStatus::False, reason, message)
    };
    if facts.gone {
        return no("Gone", "nothing of it is left on the node".into());
    }
    if ending(facts) || record.position.is_leaving() {
        return no("Draining", "it is about to be stopped".into());
    }
    if record.position.is_stopping() {
        return no(
            "Updating",
            "the old version is stopped for the new one".into(),
        );
    }
    let Some(current) = &record.current else {
        return match facts.trouble {
            Some(trouble) => no(&trouble.reason, trouble.message.clone()),
            None => no(phase.as_str(), "it was not started yet".into()),
        };
    };
    if record.stopped == Some(current.generation) {
        let message = "somebody stopped it on the node: `platctrl start` starts it again";
        return no("Stopped", message.into());
    }
    match &record.restart {
        Some(asked) if asked.granted => {
            return no("Restarting", format!("{} asked for it", asked.why));
        }
        Some(asked) if asked.wish == Wish::Liveness => {
            let message = format!("{}; it waits for a grant to restart", asked.why);
            return no("NotAlive", message);
        }
        _ => {}
    }
    let mut finished = None;
    for program in current.programs.keys() {
        let unit = facts.units.get(program);
        let last = unit.and_then(|unit| unit.last_exit.as_ref());
        let why = || last.map_or_else(|| "ended".to_owned(), ended);
        let state = unit.and_then(|unit| unit.state.as_ref());
        let Some(state) = state else {
            return match facts.trouble {
                Some(trouble) => no(&trouble.reason, trouble.message.clone()),
                None => no("Starting", format!("{program} is being started")),
            };
        };
        let detail = if state.message.is_empty() {
            why()
        } else {
            state.message.clone()
        };
        match state.activity {
            Activity::Running => {}
            Activity::Starting => return no("Starting", format!("{program} is being started")),
            Activity::Stopping => return no("Stopping", format!("{program} is being stopped")),
            Activity::Stopped => return no("Stopped", format!("{program} was stopped")),
            Activity::Waiting => {
                return no(
                    "Crashed",
                    format!("{program} {detail} and is started again after a while"),
                );
            }
            Activity::Finished => {
                let no = no(
                    "Finished",
                    format!("{program} {detail} and is not to be started again"),
                );
                if last.is_none_or(|last| last.code != Some(0)) {
                    return no;
                }
                finished = Some(no);
            }
        }
    }
    // One that did its work leaves the others theirs.
    if let Some(finished) = finished
        && phase != PodPhase::Running
    {
        return finished;
    }
    match facts.fitness {
        Fitness::Unchecked => {
            let message = "its programs run; it has no health check";
            Condition::new(condition::READY, ConditionStatus::True, "Running", message)
        }
        Fitness::Healthy { stale } => {
            let message = if *stale {
                "its health check passed before the agent started again"
            } else {
                "its health check passes"
            };
            Condition::new(condition::READY, ConditionStatus::True, "Healthy", message)
        }
        Fitness::Unknown => no("NotChecked", "its health check has not answered yet".into()),
        Fitness::Unhealthy { message } => no("Unhealthy", message.clone()),
    }
}

fn installed(facts: &Facts<'_>) -> Option<Condition> {
    let desired = facts.desired?;
    let of = |status, reason: &str, message: String| {
        Some(Condition::new(
            condition::INSTALLED,
            status,
            reason,
            message,
        ))
    };
    let record = facts.record;
    let here = record
        .current
        .iter()
        .chain(&record.next)
        .any(|it| it.digest == desired.digest);
    if facts.gone {
        return None;
    }
    if here {
        return of(
            ConditionStatus::True,
            "Installed",
            "its artifacts are on the node, verified".into(),
        );
    }
    match facts.trouble {
        Some(trouble) if trouble.step.prepares() => of(
            ConditionStatus::False,
            &trouble.reason,
            trouble.message.clone(),
        ),
        _ if facts.fetching => of(
            ConditionStatus::False,
            "Fetching",
            "its artifacts are being fetched".into(),
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use platctrl_framework::model::Digest;
    use serde_json::json;

    use super::*;
    use crate::launch::Activity;
    use crate::version::{Program, RunAs, Version};

    fn record(programs: &[&str]) -> PodRecord {
        let mut record = PodRecord::new(PodName::new("default", "hello").unwrap());
        record.uid = "u1".into();
        let program = Program {
            launchable: "web".into(),
            entry: "bin/launch".into(),
        };
        record.current = Some(Version {
            adjusted: None,
            generation: 1,
            digest: Digest::of("a"),
            spec: serde_json::from_value(json!({"launchables": {}})).unwrap(),
            run_as: RunAs {
                name: "me".into(),
                uid: 1,
                gid: 1,
                groups: Vec::new(),
            },
            ports: BTreeMap::new(),
            installs: BTreeMap::new(),
            programs: programs
                .iter()
                .map(|name| ((*name).to_owned(), program.clone()))
                .collect(),
            scripts: BTreeMap::new(),
        });
        record
    }

    fn unit(activity: Activity, code: Option<i32>) -> UnitFacts {
        let state = UnitState {
            activity,
            generation: 1,
            pid: None,
            started: None,
            restarts: 2,
            next_start_in: None,
            message: String::new(),
        };
        let last_exit = code.map(|code| UnitExit {
            number: 1,
            at: jiff::Timestamp::UNIX_EPOCH,
            code: Some(code),
            signal: None,
            message: String::new(),
            requested: false,
            unseen: false,
        });
        UnitFacts {
            state: Some(state),
            last_exit,
        }
    }

    fn report(record: &PodRecord, units: &[(&str, UnitFacts)], fitness: &Fitness) -> Report {
        let units: BTreeMap<_, _> = units
            .iter()
            .map(|(name, unit)| ((*name).to_owned(), Box::new(unit.clone())))
            .collect();
        compose(&Facts {
            record,
            desired: None,
            units: &units,
            fitness,
            fetching: false,
            trouble: None,
            hold: None,
            gone: false,
            node: "n",
            host_ip: "127.0.0.1",
        })
    }

    #[test]
    fn a_pod_is_ready_when_all_its_programs_run_and_its_check_passes() {
        let record = record(&["a", "b"]);
        let running = || unit(Activity::Running, None);
        let both = [("a", running()), ("b", running())];
        assert!(report(&record, &both, &Fitness::Unchecked).is_ready());
        assert!(report(&record, &both, &Fitness::Healthy { stale: false }).is_ready());
        assert!(!report(&record, &both, &Fitness::Unknown).is_ready());
        let one = [("a", running()), ("b", unit(Activity::Waiting, Some(3)))];
        let report = report(&record, &one, &Fitness::Healthy { stale: false });
        assert!(!report.is_ready());
        assert_eq!(
            (report.phase, report.status.restarts),
            (PodPhase::Running, 4)
        );
        assert_eq!(report.status.reason, "Crashed");
        assert!(
            report.status.message.contains("exited with code 3"),
            "{}",
            report.status.message
        );
    }

    #[test]
    fn a_program_that_did_its_work_does_not_keep_the_others_from_being_ready() {
        let record = record(&["a", "b"]);
        let finished = |code| unit(Activity::Finished, Some(code));
        let with = |a, b, fitness| report(&record, &[("a", a), ("b", b)], &fitness);
        let running = || unit(Activity::Running, None);
        assert!(with(finished(0), running(), Fitness::Unchecked).is_ready());
        assert!(!with(finished(0), running(), Fitness::Unknown).is_ready());
        let failed = with(finished(1), running(), Fitness::Unchecked);
        assert!(!failed.is_ready());
        assert_eq!(failed.status.reason, "Finished");
        assert!(!with(finished(0), finished(0), Fitness::Unchecked).is_ready());
        let crashed = unit(Activity::Waiting, Some(1));
        assert!(!with(finished(0), crashed, Fitness::Unchecked).is_ready());
    }

    #[test]
    fn a_pod_whose_programs_all_ended_has_succeeded_or_failed() {
        let record = record(&["a", "b"]);
        let finished = |code| unit(Activity::Finished, Some(code));
        let phase = |a, b| report(&record, &[("a", a), ("b", b)], &Fitness::Unchecked).phase;
        assert_eq!(phase(finished(0), finished(0)), PodPhase::Succeeded);
        assert_eq!(phase(finished(0), finished(1)), PodPhase::Failed);
        assert_eq!(
            phase(finished(1), unit(Activity::Running, None)),
            PodPhase::Running
        );
    }
    #[test]
    fn a_pod_runs_once_one_of_its_programs_does_and_none_is_still_starting() {
        use Activity::{Running, Starting, Stopping, Waiting};
        let phase = |known: &[Option<Activity>]| {
            let programs: Vec<_> = known.iter().map(|known| (*known, false)).collect();
            phase_of_programs(&programs)
        };
        assert_eq!(phase(&[Some(Running), Some(Running)]), PodPhase::Running);
        assert_eq!(phase(&[Some(Running), Some(Starting)]), PodPhase::Starting);
        assert_eq!(phase(&[Some(Running), Some(Waiting)]), PodPhase::Running);
        assert_eq!(phase(&[Some(Running), None]), PodPhase::Running);
        assert_eq!(phase(&[Some(Stopping), None]), PodPhase::Starting);
    }
}
