//! What the agent remembers of a pod on disk: enough to go on without the store, also after a
//! boot, from wherever it was interrupted.
//!
//! The record is written whole before each step whose effects it has to explain. A damaged one is
//! set aside and the pod is known by its directories again until the store says more.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::model::{Digest, Uid};
use platctrl_kinds::{Exit, PodPhase};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::files::{self, Access, FileError};
use crate::health::HealthState;
use crate::name::PodName;
use crate::version::{Desired, Version};
use crate::worker::AskedRestart;

/// The form that is written. A reader takes any: fields it does not know are kept.
const FORMAT: u32 = 1;
/// No record is larger: an object has at most 384 KiB, and a record holds four specs.
const MAX_BYTES: u64 = 6 << 20;
/// How many ends of programs are remembered.
const EXITS: usize = 5;

/// How far an update, or an end, has come: what was done last, and is not done again.
///
/// From [`Flipped`](Self::Flipped) on it is about the version that is current, before that about
/// the one that takes over next.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[non_exhaustive]
pub enum Position {
    /// Nothing is under way, or nothing that could not be forgotten.
    #[default]
    Settled,
    /// Not ready any more, so that whoever sends work notices; programs still run.
    Draining,
    /// Its `bin/disable` was begun; programs still run.
    Disabling,
    /// Programs are being stopped. From here on there is only forward.
    Stopping,
    /// All are stopped.
    Stopped,
    /// The hooks before the launch were called.
    Readied,
    /// The hooks before the removal were called.
    Released,
    /// `current` names the new version.
    Flipped,
    /// Its `bin/post-activate` has run.
    Activated,
    /// Its programs were started, and its `bin/enable` begun.
    Started,
    /// Its `bin/enable` has run.
    Enabled,
    /// It was seen to do its work.
    Healthy,
}

impl Position {
    /// The version that is current is about to be stopped, and still runs.
    #[must_use]
    pub const fn is_leaving(self) -> bool {
        matches!(self, Self::Draining | Self::Disabling)
    }

    /// The version that is current is stopped, or being stopped.
    #[must_use]
    pub const fn is_stopping(self) -> bool {
        matches!(
            self,
            Self::Stopping | Self::Stopped | Self::Readied | Self::Released
        )
    }

    /// The version that is current was not seen to do its work yet, or not told the hooks.
    #[must_use]
    pub const fn is_launching(self) -> bool {
        matches!(
            self,
            Self::Flipped | Self::Activated | Self::Started | Self::Enabled | Self::Healthy
        )
    }
}

/// How far getting a version ready has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Preparation {
    /// It was ordered.
    #[default]
    Begun,
    /// It may run here.
    Authorised,
    /// The hooks before the installation were called.
    Hooked,
    /// It is on the node.
    Fetched,
    /// The hooks after the installation were called: it may take over.
    Ready,
}

/// Which version is got ready, and how far that has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Prepared {
    /// The digest of its spec.
    pub digest: Digest,
    /// How far.
    pub preparation: Preparation,
}

/// A version that failed to start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Quarantined {
    /// The digest of its spec.
    pub digest: Digest,
    /// Its generation.
    pub generation: u64,
    /// What it failed of, for people.
    #[serde(default)]
    pub why: String,
}

/// When something began (a drain, a launch), in time that a set clock does not move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainStart {
    boot: String,
    boot_millis: u64,
}

impl DrainStart {
    /// It begins now.
    #[must_use]
    pub fn now() -> Self {
        Self {
            boot: boot_id(),
            boot_millis: boot_millis(),
        }
    }

    /// How long ago that was; None when it was before a boot, which has drained everything.
    #[must_use]
    pub fn elapsed(&self) -> Option<Duration> {
        (self.boot == boot_id())
            .then(|| Duration::from_millis(boot_millis().saturating_sub(self.boot_millis)))
    }
}

/// The kernel's name for the current boot.
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

fn boot_millis() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let (seconds, nanos) = (
        u64::try_from(now.tv_sec).unwrap_or(0),
        u64::try_from(now.tv_nsec).unwrap_or(0),
    );
    seconds
        .saturating_mul(1000)
        .saturating_add(nanos / 1_000_000)
}

/// What was known of a pod's health, and of which processes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KnownHealth {
    /// The process of each program.
    pub pids: BTreeMap<String, u32>,
    /// What the checks said.
    pub state: HealthState,
}

/// What is remembered of a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRecord {
    /// The form it was written in.
    pub format: u32,
    /// Which pod.
    pub name: PodName,
    /// Which pod of that name: the one whose programs and files are here. Empty when only its
    /// directories are known.
    #[serde(default)]
    pub uid: Uid,
    /// What was wanted last.
    #[serde(default)]
    pub last: Option<Desired>,
    /// The version that `current` names and whose programs run.
    #[serde(default)]
    pub current: Option<Version>,
    /// A version that is fetched and verified, and takes over next.
    #[serde(default)]
    pub next: Option<Version>,
    /// How far the change from `current` to `next`, or to nothing, has come.
    #[serde(default)]
    pub position: Position,
    /// When draining began.
    #[serde(default)]
    pub draining: Option<DrainStart>,
    /// Which version is being got ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prepared: Option<Prepared>,
    /// The version that did its work before `current` took over; from its start on it is what can
    /// be gone back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Version>,
    /// `current` was not seen to do its work yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unproven: bool,
    /// `next` is the version that ran before, which is gone back to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reverting: bool,
    /// When `current` was first to be started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launched: Option<DrainStart>,
    /// A version that failed to start, and is not tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantined: Option<Quarantined>,
    /// What was known of its health last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<KnownHealth>,
    /// What was known last of whether it lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness: Option<KnownHealth>,
    /// A restart that was asked for and is not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<AskedRestart>,
    /// The generation that somebody on the node stopped: it is not started until somebody there
    /// wants it, or another generation takes over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<u64>,
    /// How the last few programs ended, newest last.
    #[serde(default)]
    pub exits: Vec<Exit>,
    /// The number of the last end seen of each program.
    #[serde(default)]
    pub seen_exits: BTreeMap<String, u64>,
    /// The phase that was reported last.
    #[serde(default)]
    pub phase: String,
    /// Fields of newer agents, kept.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// How a record was found.
#[derive(Debug, PartialEq)]
pub enum Found {
    /// There is none, and nothing else of the pod.
    Nothing,
    /// It is whole.
    Whole(Box<PodRecord>),
    /// It cannot be read. What can be told from the directories is in the record; the file was
    /// set aside.
    Damaged {
        /// What is left.
        record: Box<PodRecord>,
        /// What is wrong with the file.
        reason: String,
    },
}

impl PodRecord {
    /// A pod of which nothing is known yet.
    #[must_use]
    pub fn new(name: PodName) -> Self {
        Self {
            format: FORMAT,
            name,
            uid: Uid::default(),
            last: None,
            current: None,
            next: None,
            position: Position::Settled,
            draining: None,
            prepared: None,
            previous: None,
            unproven: false,
            reverting: false,
            launched: None,
            quarantined: None,
            health: None,
            liveness: None,
            restart: None,
            stopped: None,
            exits: Vec::new(),
            seen_exits: BTreeMap::new(),
            phase: String::new(),
            other: Map::new(),
        }
    }

    /// Nothing was done for it yet that would have to be undone.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.current.is_none() && self.next.is_none() && self.position == Position::Settled
    }

    /// The phase that was reported last.
    #[must_use]
    pub fn last_phase(&self) -> Option<PodPhase> {
        PodPhase::of(&serde_json::from_value(Value::String(self.phase.clone())).ok()?)
    }

    /// Remembers how a program ended. False when it is known already.
    pub fn note_exit(&mut self, program: &str, number: u64, exit: Exit) -> bool {
        let seen = self.seen_exits.entry(program.to_owned()).or_default();
        if number <= *seen {
            return false;
        }
        *seen = number;
        self.exits.push(exit);
        self.exits.sort_by_key(|exit| exit.at);
        let surplus = self.exits.len().saturating_sub(EXITS);
        self.exits.drain(..surplus);
        true
    }

    /// Writes the record; it is on disk when this returns if it is to be `durable`, else soon.
    ///
    /// # Errors
    /// When it is not: the step that it was to explain must not begin.
    pub fn write(&self, path: &Path, durable: bool) -> Result<(), FileError> {
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| FileError::new("write", path, std::io::Error::other(error)))?;
        files::write(path, &bytes, Access::mode(0o600), durable)
    }

    /// What is wanted and what runs is mostly the same.
    fn share_specs(&mut self) {
        let Some(last) = &self.last else { return };
        let versions = [&mut self.current, &mut self.next, &mut self.previous];
        for version in versions.into_iter().flatten() {
            if version.digest == last.digest && version.spec == last.spec {
                version.spec = Arc::clone(&last.spec);
            }
        }
    }

    /// The record at `path`, if there is a whole one. Changes nothing.
    #[must_use]
    pub fn look(path: &Path) -> Option<Self> {
        serde_json::from_slice(&files::read(path, MAX_BYTES).ok()??).ok()
    }

    /// Reads the record of `name` at `path`. `programs` are those of which there is a supervisor's
    /// directory.
    ///
    /// # Errors
    /// When the file system does not answer.
    pub fn read(name: &PodName, path: &Path, programs: &[String]) -> Result<Found, FileError> {
        let reason = match files::read(path, MAX_BYTES) {
            Ok(Some(bytes)) => match serde_json::from_slice::<Self>(&bytes) {
                Ok(mut record) if record.name == *name => {
                    record.share_specs();
                    return Ok(Found::Whole(Box::new(record)));
                }
                Ok(record) => format!("it says it is {}", record.name),
                Err(error) => error.to_string(),
            },
            Ok(None) if programs.is_empty() => return Ok(Found::Nothing),
            Ok(None) => "it is missing".to_owned(),
            Err(error) if error.source.kind() == std::io::ErrorKind::InvalidData => {
                error.to_string()
            }
            Err(error) => return Err(error),
        };
        let aside = path.with_extension("json.damaged");
        match std::fs::rename(path, &aside) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(FileError::new("set aside", path, error)),
        }
        Ok(Found::Damaged {
            record: Box::new(Self::new(name.clone())),
            reason,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    fn name() -> PodName {
        PodName::new("default", "hello").unwrap()
    }

    fn exit(second: i64) -> Exit {
        let json = json!({"launchable": "web", "at": jiff::Timestamp::from_second(second).unwrap(), "code": 1});
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_record_is_read_back_with_what_a_newer_agent_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod.json");
        let mut record = PodRecord::new(name());
        record.position = Position::Stopping;
        record.other.insert("novel".into(), json!({"x": 1}));
        record.write(&path, true).unwrap();
        let found = PodRecord::read(&name(), &path, &[]).unwrap();
        assert_eq!(found, Found::Whole(Box::new(record)));
    }

    #[test]
    fn a_record_that_is_read_holds_each_spec_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod.json");
        let current = crate::launch::version();
        let mut previous = current.clone();
        previous.digest = Digest::of("another");
        let last = Desired {
            uid: "u1".into(),
            generation: current.generation,
            digest: current.digest,
            spec: Arc::clone(&current.spec),
            labels: BTreeMap::new(),
            tombstone: None,
            unsupported: None,
        };
        let record = PodRecord {
            last: Some(last),
            current: Some(current),
            previous: Some(previous),
            ..PodRecord::new(name())
        };
        record.write(&path, false).unwrap();
        let Found::Whole(read) = PodRecord::read(&name(), &path, &[]).unwrap() else {
            panic!("it is whole");
        };
        assert_eq!(*read, record);
        let spec = &read.last.as_ref().unwrap().spec;
        let is_shared = |version: &Option<Version>| {
            let version = version.as_ref().unwrap();
            Arc::ptr_eq(&version.spec, spec)
        };
        assert!(is_shared(&read.current));
        assert!(
            !is_shared(&read.previous),
            "what has another digest is another"
        );
    }

    #[test]
    fn a_damaged_record_is_set_aside_and_never_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod.json");
        let other = serde_json::to_vec(&PodRecord::new(PodName::new("a", "b").unwrap())).unwrap();
        for bytes in [b"".as_slice(), b"{", b"[]", b"\xff\xfe", &other] {
            std::fs::write(&path, bytes).unwrap();
            let found = PodRecord::read(&name(), &path, &[]).unwrap();
            assert!(
                matches!(found, Found::Damaged { .. }),
                "{bytes:?} {found:?}"
            );
            assert!(!path.exists() && path.with_extension("json.damaged").exists());
        }
        assert_eq!(
            PodRecord::read(&name(), &path, &[]).unwrap(),
            Found::Nothing
        );
        let found = PodRecord::read(&name(), &path, &["web".into()]).unwrap();
        assert!(
            matches!(found, Found::Damaged { .. }),
            "its programs are there: {found:?}"
        );
    }

    #[test]
    fn ends_are_remembered_once_and_only_the_last_few() {
        let mut record = PodRecord::new(name());
        for number in 1..=9 {
            assert!(record.note_exit("web", number, exit(number.cast_signed())));
            assert!(!record.note_exit("web", number, exit(99)));
        }
        let at: Vec<_> = record
            .exits
            .iter()
            .map(|exit| exit.at.as_second())
            .collect();
        assert_eq!(at, [5, 6, 7, 8, 9]);
    }

    #[test]
    fn a_drain_of_another_boot_is_over() {
        let start = DrainStart::now();
        assert!(start.elapsed().is_some());
        assert_eq!(
            DrainStart {
                boot: "other".into(),
                ..start
            }
            .elapsed(),
            None
        );
    }
}
