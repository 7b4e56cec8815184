//! Why an object is where it is: what is known of it, who works on it, what that waits for.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::journal::Finished;
use super::runs::Ending;
use crate::controller::Cause;
use crate::model::{Condition, ConditionStatus, Joined, Phase, RecordError};
use crate::store::Revision;

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

/// Why an object is where it is, as one process knows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Explanation {
    /// Which object, as `pods/web1/default/hello`.
    pub key: String,
    /// What the records say.
    pub object: ObjectFacts,
    /// The controllers of this process that work on it.
    pub controllers: Vec<KeyStory>,
}

/// What the records of an object say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ObjectFacts {
    /// In a few words, what it is waiting for or that it is as it should be.
    pub summary: String,
    /// The highest revision of its records.
    pub revision: Revision,
    /// Everything up to here is known.
    pub known_to: Revision,
    /// The spec that is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// The spec that was worked on last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<u64>,
    /// Where in its life it is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// Conditions that are not as they should be: type, status, reason and message.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<String>,
    /// Who has begun to work on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
}

/// What one controller does about an object.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct KeyStory {
    /// The controller.
    pub controller: String,
    /// What it does now.
    pub state: KeyState,
    /// Why it does not work, or not on this object.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub obstacles: Vec<String>,
    /// Failures in a row.
    pub failures: u32,
    /// The last runs that are remembered, oldest first.
    pub runs: Vec<Run>,
}

/// What a queue does with a key.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", tag = "is")]
#[non_exhaustive]
pub enum KeyState {
    /// Nothing asks for a run.
    Idle,
    /// It runs as soon as there is a worker.
    Ready {
        /// Seconds since it is.
        #[serde(serialize_with = "seconds", rename = "forSeconds")]
        since: Duration,
    },
    /// It runs when its time has come.
    Waiting {
        /// Seconds until then.
        #[serde(serialize_with = "seconds", rename = "inSeconds")]
        left: Duration,
        /// Because the last run failed.
        after_failure: bool,
    },
    /// It waits for the view to show what its last run wrote.
    Parked {
        /// The source that lags.
        source: String,
        /// What it has to show.
        revision: Revision,
        /// Seconds since.
        #[serde(serialize_with = "seconds", rename = "forSeconds")]
        since: Duration,
    },
    /// It runs.
    Running {
        /// Seconds since it does.
        #[serde(serialize_with = "seconds", rename = "forSeconds")]
        since: Duration,
    },
}

/// A run that has ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Run {
    /// The name of the run in logs and spans.
    pub id: u64,
    /// Seconds since it ended.
    #[serde(serialize_with = "seconds", rename = "secondsAgo")]
    pub ago: Duration,
    /// Seconds that it took.
    #[serde(serialize_with = "seconds", rename = "tookSeconds")]
    pub took: Duration,
    /// Seconds that the key was ready before.
    #[serde(serialize_with = "seconds", rename = "waitedSeconds")]
    pub waited: Duration,
    /// Why it ran.
    pub causes: Vec<String>,
    /// Causes beyond those.
    #[serde(skip_serializing_if = "is_zero")]
    pub more_causes: u32,
    /// The last revision that it wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wrote: Option<Revision>,
    /// How it ended.
    pub ending: Ending,
    /// What was wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A cause in words.
pub(crate) fn cause_text(cause: &Cause) -> String {
    match cause {
        Cause::InitialSync => "everything was looked at".to_owned(),
        Cause::Changed { revision } => format!("it changed at revision {revision}"),
        Cause::Related { key, revision } => format!("{key} changed at revision {revision}"),
        Cause::Requeued => "the last run asked for it".to_owned(),
        Cause::Failed => "the last run failed".to_owned(),
        Cause::Slowed => "it was slowed, because it does not come to rest".to_owned(),
        Cause::Conflict => "the last run was decided on what had changed".to_owned(),
        Cause::Triggered(reason) => format!("from outside: {reason}"),
    }
}

impl Run {
    pub(crate) fn of(run: &Finished, now: Duration) -> Self {
        Self {
            id: run.id,
            ago: now.saturating_sub(run.begun + run.took),
            took: run.took,
            waited: run.waited,
            causes: run.causes.as_slice().iter().map(cause_text).collect(),
            more_causes: run.more_causes,
            wrote: run.wrote,
            ending: run.ending,
            error: run.error.as_deref().map(ToOwned::to_owned),
        }
    }
}

impl ObjectFacts {
    /// What is known of an object whose intent cannot be read.
    pub(crate) fn unreadable(error: &RecordError, known_to: Revision) -> Self {
        Self {
            summary: format!("nothing is done about it: {error}"),
            revision: error.revision,
            known_to,
            ..Self::default()
        }
    }

    /// What the records say, as of a view that shows everything up to `known_to`.
    pub(crate) fn of(joined: &Joined, known_to: Revision) -> Self {
        let mut facts = Self {
            revision: joined.resource_version(),
            known_to,
            ..Self::default()
        };
        let reality = joined.reality.as_ref().map(|reality| &reality.value);
        facts.claim = reality.and_then(|reality| reality.metadata.claim.clone());
        let Some(intent) = joined.intent.as_ref().map(|intent| &intent.value) else {
            facts.summary = match reality {
                None => "there is no such object".to_owned(),
                Some(_) if joined.is_unexplained() => "its intent is missing though nobody ordered its end: everything stays as it is until `failsafe adopt` or `failsafe remove`".to_owned(),
                Some(_) => "it has ended".to_owned(),
            };
            return facts;
        };
        facts.generation = Some(intent.metadata.generation);
        let own = joined.own_reality().map(|reality| &reality.value.status);
        if let Some(status) = own {
            facts.observed_generation = status.observed_generation;
            facts.phase = status.phase.as_str().to_owned();
        }
        if let Some(shown) = joined.object() {
            // All but `Held` say what is well.
            let wrong = |condition: &&Condition| {
                (condition.status == ConditionStatus::True) == (condition.kind == "Held")
            };
            let conditions = shown.status.conditions.iter().filter(wrong);
            facts.conditions = conditions
                .map(|condition| {
                    let Condition {
                        kind,
                        status,
                        reason,
                        message,
                        ..
                    } = condition;
                    format!("{kind}={status:?} {reason}: {message}")
                })
                .collect();
        }
        let observed = facts.observed_generation;
        facts.summary = if let Some(deletion) = &intent.metadata.deletion {
            let left = joined.parts.iter().filter(|(_, part)| {
                let mine = part.value.metadata.uid == intent.metadata.uid;
                mine && part.value.status.phase != Phase::GONE
            });
            let mut left: Vec<_> = left.map(|(writer, _)| writer.clone()).collect();
            if own.is_some_and(|status| status.phase != Phase::GONE) {
                left.insert(
                    0,
                    facts.claim.clone().unwrap_or_else(|| "its worker".into()),
                );
            }
            let by = &deletion.by;
            if left.is_empty() {
                format!("{by} asked for its end, everything is undone, and its records go next")
            } else {
                format!("{by} asked for its end; not done yet: {}", left.join(", "))
            }
        } else if own.is_none() {
            "nobody has reported on it yet".to_owned()
        } else if observed.is_some_and(|observed| observed < intent.metadata.generation) {
            format!(
                "generation {} is wanted, and the last report is about {}",
                intent.metadata.generation,
                observed.unwrap_or_default()
            )
        } else if let Some(ready) = facts
            .conditions
            .iter()
            .find(|text| text.starts_with("Ready="))
        {
            ready.clone()
        } else {
            "it is as it is wanted".to_owned()
        };
        facts
    }
}

/// A time for people: `12 ms`, `3.4 s`, `5 min`.
pub(crate) fn shown(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 0.001 {
        format!("{:.0} µs", seconds * 1e6)
    } else if seconds < 1.0 {
        format!("{:.0} ms", seconds * 1e3)
    } else if seconds < 120.0 {
        format!("{seconds:.1} s")
    } else if seconds < 7200.0 {
        format!("{:.0} min", seconds / 60.0)
    } else {
        format!("{:.0} h", seconds / 3600.0)
    }
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => f.write_str("nothing asks for a run"),
            Self::Ready { since } => write!(f, "ready for {}, waits for a worker", shown(*since)),
            Self::Waiting {
                left,
                after_failure: true,
            } => write!(f, "tries again in {}", shown(*left)),
            Self::Waiting { left, .. } => write!(f, "looks again in {}", shown(*left)),
            Self::Parked {
                source,
                revision,
                since,
            } => write!(
                f,
                "waits for {source} to show revision {revision}, which its last run wrote, for {}",
                shown(*since)
            ),
            Self::Running { since } => write!(f, "runs for {}", shown(*since)),
        }
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
            ago,
            took,
            ending,
            ..
        } = self;
        let ending = ending.as_str();
        write!(
            f,
            "run {id}, {} ago, took {}: {ending}",
            shown(*ago),
            shown(*took)
        )?;
        if let Some(revision) = self.wrote {
            write!(f, ", wrote revision {revision}")?;
        }
        if let Some(error) = &self.error {
            write!(f, ": {error}")?;
        }
        if !self.causes.is_empty() {
            write!(f, " (because {}", self.causes.join("; "))?;
            if self.more_causes > 0 {
                write!(f, "; and {} more", self.more_causes)?;
            }
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.key, self.object.summary)?;
        for condition in &self.object.conditions {
            writeln!(f, "  {condition}")?;
        }
        for story in &self.controllers {
            write!(f, "  controller {}: {}", story.controller, story.state)?;
            if story.failures > 0 {
                write!(f, " after {} failures in a row", story.failures)?;
            }
            writeln!(f)?;
            for obstacle in &story.obstacles {
                writeln!(f, "    held: {obstacle}")?;
            }
            for run in &story.runs {
                writeln!(f, "    {run}")?;
            }
        }
        Ok(())
    }
}
