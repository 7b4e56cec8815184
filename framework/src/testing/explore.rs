//! Which runs are made, what each is compared with, and how the least failing one is found.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::dice::{Dice, mix};
use super::failure::{Failure, Problem};
use super::fault::{Fault, FaultKind, Schedule};
use super::normal::{Normal, paths};
use super::run::{Outcome, execute};
use super::simulation::{Config, Explored, Run};
use super::trace::{Actor, describe, place};
use crate::model::{Intent, ObjectKey, RawObject, Scope};
use crate::store::Key;

/// The seed of the exhaustive mode.
const SEED: u64 = 1;
/// Faults drawn for one run, at most.
const MOST_FAULTS: u32 = 6;

/// What all other runs are compared with.
struct Reference {
    outcome: Outcome,
    /// Objects whose names are the same whatever is drawn.
    given: BTreeSet<String>,
    end: Normal,
}

fn failure(
    config: &Config,
    schedule: &Schedule,
    outcome: &Outcome,
    runs: usize,
    undisturbed: Option<&Outcome>,
) -> Option<Box<Failure>> {
    let problem = outcome.problem.clone()?;
    let what = |write: u32| {
        // Up to what goes wrong both are the same; behind it, what happened here counts.
        let there = outcome.writes.len() > write as usize;
        let writes = match undisturbed {
            Some(undisturbed) if !there => &undisturbed.writes,
            _ => &outcome.writes,
        };
        let info = writes.get((write as usize).checked_sub(1)?)?;
        Some(format!(
            "{} {}",
            info.actor.name(),
            describe(&info.touched)?
        ))
    };
    let words = schedule
        .faults
        .iter()
        .map(|fault| {
            fault.in_words(&what(fault.write).unwrap_or_else(|| "if it comes to it".to_owned()))
        })
        .collect();
    Some(Box::new(Failure {
        problem,
        schedule: schedule.clone(),
        words,
        timeline: outcome.trace.timeline(),
        runs,
        built_by: config.built_by.clone(),
    }))
}

fn run_of(outcome: &Outcome) -> Run {
    Run {
        timeline: outcome.trace.timeline(),
        trace: outcome.trace.full(),
        writes: outcome.writes.len(),
        settled: outcome.settled,
    }
}

/// One run, compared with nothing.
pub(super) fn once(config: &Arc<Config>, schedule: &Schedule) -> Result<Run, Box<Failure>> {
    let outcome = execute(config, schedule);
    match failure(config, schedule, &outcome, 1, None) {
        Some(failure) => Err(failure),
        None => Ok(run_of(&outcome)),
    }
}

/// The undisturbed run, itself in order and the same each time.
fn reference(config: &Arc<Config>, seed: u64) -> Result<Reference, Box<Failure>> {
    let schedule = Schedule::undisturbed(seed);
    let mut outcome = execute(config, &schedule);
    let fail = |outcome: &Outcome| failure(config, &schedule, outcome, 1, None);
    if let Some(failure) = fail(&outcome) {
        return Err(failure);
    }
    let again = execute(config, &schedule);
    if again.trace != outcome.trace {
        let (one, other) = (outcome.trace.full(), again.trace.full());
        let differs = |(one, other): &(&str, &str)| one != other;
        let first = one.lines().zip(other.lines()).find(differs);
        let difference = first.map_or_else(Vec::new, |(one, other)| vec![one.into(), other.into()]);
        outcome.problem = Some(Problem::Chance { difference });
        if let Some(failure) = fail(&outcome) {
            return Err(failure);
        }
    }
    // Names that are the same with other random numbers were not drawn.
    let other = execute(config, &Schedule::undisturbed(mix(seed)));
    let (one, other) = (paths(&outcome.end), paths(&other.end));
    let mut given: BTreeSet<String> = one.intersection(&other).cloned().collect();
    given.extend(outcome.end.by_scenario.iter().cloned());
    let end = Normal::of(&outcome.end, &given, config);
    if !config.history_matters {
        let alone = from_scratch(config, &outcome, seed);
        if let Some(alone) = alone {
            if alone.problem.is_some() {
                let failure = failure(config, &schedule, &alone, 3, None);
                return Err(failure.expect("it has a problem"));
            }
            let alone = Normal::of(&alone.end, &given, config);
            let difference = end.difference(&alone);
            if !difference.is_empty() {
                outcome.problem = Some(Problem::HistoryShows { difference });
                if let Some(failure) = failure(config, &schedule, &outcome, 3, None) {
                    return Err(failure);
                }
            }
        }
    }
    Ok(Reference {
        outcome,
        given,
        end,
    })
}

/// What people wanted last, applied alone to an empty world. None when that is what they did.
fn from_scratch(config: &Arc<Config>, outcome: &Outcome, seed: u64) -> Option<Outcome> {
    let mut by_scenario = outcome
        .writes
        .iter()
        .filter(|write| write.actor == Actor::Scenario);
    let changed = by_scenario.any(|write| {
        let changes = |tree| tree == Some("intent");
        write.touched.iter().any(|touched| {
            changes(place(&touched.key).map(|(tree, _)| tree)) && touched.before.is_some()
        })
    });
    if !changed {
        return None;
    }
    let wanted: Vec<(ObjectKey, RawObject)> = outcome
        .end
        .by_scenario
        .iter()
        .filter_map(|path| {
            let key = Key::new(format!("o/intent/{path}")).ok()?;
            let record = outcome
                .end
                .records
                .iter()
                .find(|record| record.key == key)?;
            let intent: Intent = serde_json::from_slice(&record.value).ok()?;
            if intent.metadata.is_deleted() {
                return None;
            }
            let scope = match path.split('/').count() {
                3 => Scope::Cluster,
                4 => Scope::Namespaced,
                _ => Scope::Node,
            };
            let (_, key, _) = ObjectKey::parse(&key, |_, _| Some(scope))?;
            let object = RawObject {
                api_version: intent.api_version,
                kind: intent.kind,
                metadata: intent.metadata,
                spec: intent.spec,
                status: crate::model::Status::default(),
            };
            Some((key, object))
        })
        .collect();
    let wanted = Arc::new(wanted);
    let mut alone = Config::clone(config);
    alone.scenario = Some(Arc::new(move |world| {
        let wanted = wanted.clone();
        Box::pin(async move {
            for (key, object) in wanted.iter() {
                world.client().create_raw(key, object.clone()).await?;
            }
            Ok(())
        })
    }));
    Some(execute(&Arc::new(alone), &Schedule::undisturbed(seed)))
}

/// A run compared with the undisturbed one.
fn judged(config: &Arc<Config>, schedule: &Schedule, reference: &Reference) -> Outcome {
    let mut outcome = execute(config, schedule);
    if outcome.problem.is_some() {
        return outcome;
    }
    let end = Normal::of(&outcome.end, &reference.given, config);
    let difference = end.difference(&reference.end);
    if !difference.is_empty() {
        outcome.problem = Some(Problem::OtherEnd { difference });
        return outcome;
    }
    if config.work_may_repeat || repeats_work(schedule) {
        return outcome;
    }
    for (kind, &done) in &outcome.work {
        let undisturbed = reference
            .outcome
            .work
            .get(kind)
            .copied()
            .unwrap_or_default();
        if done.0 > undisturbed.0 || done.1 > undisturbed.1 {
            let kind = kind.clone();
            outcome.problem = Some(Problem::WorkRepeated {
                kind,
                done,
                undisturbed,
            });
            break;
        }
    }
    outcome
}

/// What goes wrong with the world itself may make work of its own.
fn repeats_work(schedule: &Schedule) -> bool {
    schedule.has(|kind| kind.is_restore() || kind.is_worlds())
}

/// Everything that can go wrong at the writes of an undisturbed run.
fn perturbations(config: &Config, reference: &Outcome) -> Vec<Fault> {
    let writes = &reference.writes;
    // Those of the last restart are no part of the story.
    let mut faults = Vec::new();
    for (index, write) in writes.iter().enumerate() {
        let number = index as u32 + 1;
        faults.push(Fault::new(FaultKind::CrashAfter, number));
        faults.push(Fault::new(FaultKind::StaleRestart, number));
        faults.push(Fault::new(FaultKind::LoseClaimAfter, number));
        if number < writes.len() as u32 {
            faults.push(Fault::new(FaultKind::TravelBack, number));
        }
        if matches!(write.actor, Actor::Replica(..)) {
            for kind in [
                FaultKind::CrashBeforeAck,
                FaultKind::LoseAck,
                FaultKind::LoseClaim,
            ] {
                faults.push(Fault::new(kind, number));
            }
        }
        for until in cancelled_by(reference, index) {
            faults.push(Fault::hide(number, until, None));
            if config.replicas > 1 {
                let each = 0..config.replicas;
                faults.extend(each.map(|replica| Fault::hide(number, until, Some(replica))));
            }
        }
    }
    faults.retain(|fault| !config.without.contains(&fault.kind));
    faults
}

/// The later writes with which a state in between is over: the next one to the same record, and
/// the one that removes it or asks for its end.
fn cancelled_by(reference: &Outcome, index: usize) -> Vec<u32> {
    let mut until = BTreeSet::new();
    let Some(write) = reference.writes.get(index) else {
        return Vec::new();
    };
    for touched in &write.touched {
        let later = reference.writes.iter().enumerate().skip(index + 1);
        let mut same = later.filter_map(|(later, write)| {
            let touched = write
                .touched
                .iter()
                .find(|other| other.key == touched.key)?;
            Some((later as u32 + 1, touched.after.is_none()))
        });
        until.extend(same.next().map(|(number, _)| number));
        until.extend(same.find(|(_, removes)| *removes).map(|(number, _)| number));
    }
    until.into_iter().collect()
}

/// Runs schedules on all cores; the results are in their order.
fn all(schedules: &[Schedule], run: impl Fn(&Schedule) -> Outcome + Sync) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<Outcome>>> = Mutex::new(schedules.iter().map(|_| None).collect());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores.min(schedules.len()) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(schedule) = schedules.get(index) else {
                        return;
                    };
                    let mut outcome = run(schedule);
                    if outcome.problem.is_none() {
                        // Only counts are asked of those without a problem.
                        outcome.trace.lines = Vec::new();
                        outcome.end.records = Vec::new();
                        outcome.writes = Vec::new();
                    }
                    let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                    results[index] = Some(outcome);
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.into_iter().flatten().collect()
}

/// See [`Simulation::exhaustive`](super::Simulation::exhaustive).
pub(super) fn exhaustive(config: &Arc<Config>) -> Result<Explored, Box<Failure>> {
    let reference = reference(config, SEED)?;
    let faults = perturbations(config, &reference.outcome);
    let undisturbed = Schedule::undisturbed(SEED);
    let schedules: Vec<Schedule> = faults
        .iter()
        .map(|fault| undisturbed.with(vec![*fault]))
        .collect();
    let outcomes = all(&schedules, |schedule| judged(config, schedule, &reference));
    let runs = schedules.len();
    let failed = schedules
        .iter()
        .zip(&outcomes)
        .filter(|(_, outcome)| outcome.problem.is_some());
    if let Some((schedule, outcome)) =
        failed.min_by_key(|(_, outcome)| outcome.trace.timeline().len())
        && let Some(failure) = failure(config, schedule, outcome, runs, Some(&reference.outcome))
    {
        return Err(failure);
    }
    let unmet: usize = outcomes.iter().map(|outcome| outcome.unmet).sum();
    Ok(Explored {
        runs,
        writes: reference.outcome.writes.len(),
        faults: runs - unmet,
    })
}

/// The schedule that a seed stands for.
fn drawn(config: &Config, seed: u64, writes: usize) -> Schedule {
    let mut dice = Dice::new(seed);
    // Half of the runs leave the world itself alone: only they show that no work is done twice.
    let world = dice.below(2) == 1;
    let kinds: Vec<FaultKind> = FaultKind::ALL
        .into_iter()
        .filter(|kind| !config.without.contains(kind))
        .filter(|kind| *kind != FaultKind::TravelBack)
        .filter(|kind| world || !(kind.is_restore() || kind.is_worlds()))
        .filter(|kind| !kind.is_worlds() || !config.workers.is_empty())
        .collect();
    let count = 1 + dice.below(MOST_FAULTS);
    let writes = u32::try_from(writes).unwrap_or(u32::MAX);
    let mut faults: Vec<Fault> = (0..count)
        .filter_map(|_| Fault::drawn(&mut dice, &kinds, writes))
        .collect();
    faults.sort_by_key(|fault| fault.write);
    Schedule {
        seed,
        jitter: dice.below(2) == 1,
        faults,
    }
}

/// See [`Simulation::random`](super::Simulation::random).
pub(super) fn random(config: &Arc<Config>, seeds: &[u64]) -> Result<Explored, Box<Failure>> {
    let reference = reference(config, SEED)?;
    let writes = reference.outcome.writes.len();
    let schedules: Vec<Schedule> = seeds
        .iter()
        .map(|seed| drawn(config, *seed, writes))
        .collect();
    let outcomes = all(&schedules, |schedule| judged(config, schedule, &reference));
    let met = |(schedule, outcome): (&Schedule, &Outcome)| schedule.faults.len() - outcome.unmet;
    let faults = schedules.iter().zip(&outcomes).map(met).sum();
    let failed = schedules
        .iter()
        .zip(outcomes)
        .find(|(_, outcome)| outcome.problem.is_some());
    if let Some((schedule, outcome)) = failed {
        let (schedule, outcome, more) = shrunk(config, schedule.clone(), outcome, &reference);
        let runs = seeds.len() + more;
        if let Some(failure) = failure(config, &schedule, &outcome, runs, Some(&reference.outcome))
        {
            return Err(failure);
        }
    }
    Ok(Explored {
        runs: seeds.len(),
        writes,
        faults,
    })
}

/// The least of a failing schedule that shows the same sort of problem, and how many runs it took
/// to find it.
fn shrunk(
    config: &Arc<Config>,
    mut schedule: Schedule,
    mut outcome: Outcome,
    reference: &Reference,
) -> (Schedule, Outcome, usize) {
    let mut runs = 0;
    loop {
        let mut smaller = Vec::new();
        for left_out in 0..schedule.faults.len() {
            let mut faults = schedule.faults.clone();
            faults.remove(left_out);
            smaller.push(schedule.with(faults));
        }
        if schedule.jitter {
            smaller.push(Schedule {
                jitter: false,
                ..schedule.clone()
            });
        }
        for (index, fault) in schedule.faults.iter().enumerate() {
            for less in lesser(fault) {
                let mut faults = schedule.faults.clone();
                faults[index] = less;
                smaller.push(schedule.with(faults));
            }
        }
        let found = smaller.into_iter().find_map(|candidate| {
            runs += 1;
            let tried = judged(config, &candidate, reference);
            let (one, other) = (tried.problem.as_ref()?, outcome.problem.as_ref()?);
            one.is_like(other).then_some((candidate, tried))
        });
        match found {
            Some((candidate, tried)) => (schedule, outcome) = (candidate, tried),
            None => return (schedule, outcome, runs),
        }
    }
}

/// The same fault, a little less of it.
fn lesser(fault: &Fault) -> Vec<Fault> {
    let mut less = Vec::new();
    if fault.span.abs() > 1 {
        less.push(Fault {
            span: fault.span / 2,
            ..*fault
        });
    }
    let counts = matches!(
        fault.kind,
        FaultKind::Storm | FaultKind::Restore | FaultKind::RestoreAhead
    );
    if counts && fault.which > 1 {
        less.push(Fault {
            which: fault.which / 2,
            ..*fault
        });
    }
    less
}

/// See [`Simulation::replay`](super::Simulation::replay).
pub(super) fn replay(config: &Arc<Config>, schedule: &Schedule) -> Result<Run, Box<Failure>> {
    let reference = reference(config, SEED)?;
    let outcome = judged(config, schedule, &reference);
    match failure(config, schedule, &outcome, 1, Some(&reference.outcome)) {
        Some(failure) => Err(failure),
        None => Ok(run_of(&outcome)),
    }
}
