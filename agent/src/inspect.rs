//! What is on a node, told from its files alone: also without an agent and without a store.

use std::collections::BTreeMap;
use std::path::Path;

use platctrl_framework::model::{Digest, Uid};
use platctrl_kinds::Exit;
use platctrl_shim_lib::State;
use serde::{Deserialize, Serialize};

use crate::disk;
use crate::files::FileError;
use crate::health::Verdict;
use crate::launch::activity;
use crate::layout::{Layout, LayoutError, PodPaths};
use crate::name::PodName;
use crate::report::phase_of_programs;
use crate::state::{PodRecord, Position};
use crate::version::{Desired, RunAs, Version};
use crate::worker::AskedRestart;

/// What an agent remembers of itself is not longer.
const MAX_MEMORY: u64 = 64 << 10;

/// A node as its agent left it on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct InspectedNode {
    /// What tells this data directory from every other machine's.
    pub machine: String,
    /// The store that it takes orders from; empty before the first.
    pub store_id: String,
    /// The incarnation that its pods were started under.
    pub incarnation: u64,
    /// Bytes that are left where pods are kept.
    pub disk_free: u64,
    /// Bytes that there are in all.
    pub disk_size: u64,
}

/// A version of a pod that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct InspectedVersion {
    /// Its generation.
    pub generation: u64,
    /// The digest of its spec.
    pub digest: Digest,
    /// Whom it runs as.
    pub run_as: RunAs,
    /// The numbers of its ports.
    pub ports: BTreeMap<String, u16>,
    /// The digests of its artifacts, by launchable.
    pub artifacts: BTreeMap<String, Digest>,
}

impl From<&Version> for InspectedVersion {
    fn from(version: &Version) -> Self {
        let installs = version.installs.iter();
        Self {
            generation: version.observed_generation(),
            digest: version.digest,
            run_as: version.run_as.clone(),
            ports: version.ports.clone(),
            artifacts: installs
                .map(|(launchable, install)| (launchable.clone(), install.digest))
                .collect(),
        }
    }
}

/// A pod as its node knows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct InspectedPod {
    /// Which pod.
    pub name: PodName,
    /// Which pod of that name; empty when its record is missing or damaged.
    pub uid: Uid,
    /// The generation that was wanted last.
    pub wanted_generation: Option<u64>,
    /// The generation that runs.
    pub running_generation: Option<u64>,
    /// What was wanted last, as this node remembers it: it goes on from there without a store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intent: Option<Desired>,
    /// The version that runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running: Option<InspectedVersion>,
    /// How its programs ended last, newest last.
    pub exits: Vec<Exit>,
    /// How far a change has come.
    pub position: Position,
    /// Its end was ordered.
    pub ending: bool,
    /// Why what is wanted is not tried again: it failed to start, and what ran before runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reverted: Option<String>,
    /// Somebody on the node stopped it.
    pub stopped: bool,
    /// The restart that it asks for, or that is being done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart: Option<AskedRestart>,
    /// What its health check said last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Verdict>,
    /// What its liveness check said last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub liveness: Option<Verdict>,
    /// The phase that was reported last, or that follows from how its programs are.
    pub phase: String,
    /// What it takes of the disk.
    pub disk: InspectedDisk,
    /// Its programs.
    pub programs: Vec<InspectedProgram>,
}

/// Bytes on disk. Installs are shared with other pods and counted for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct InspectedDisk {
    /// Its own data.
    pub data: u64,
    /// What its programs wrote.
    pub logs: u64,
    /// Its artifacts, unpacked.
    pub installs: u64,
    /// There is more of the data or the logs than was counted: of very many files, or very deep
    /// directories, not all are.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub at_least: bool,
}

/// A program as its supervisor wrote it down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct InspectedProgram {
    /// The program: `web`, or `web/a`.
    pub program: String,
    /// Its supervisor's process, if that lives.
    pub supervisor: Option<u32>,
    /// What it does, as its supervisor said last.
    pub phase: &'static str,
    /// Its process.
    pub pid: Option<u32>,
    /// How often it was started again.
    pub restarts: u64,
    /// What is wrong, in words, while something is.
    pub message: String,
}

/// The node that a data directory is of. What is not known of it is left empty.
///
/// # Errors
/// When there is no such directory.
pub fn inspect_node(data_dir: &Path) -> Result<InspectedNode, LayoutError> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Remembered {
        machine: String,
        store_id: String,
        incarnation: u64,
    }
    let layout = Layout::open(data_dir)?;
    let bytes = crate::files::read(&layout.state().join("agent.json"), MAX_MEMORY)?;
    let known = bytes.and_then(|bytes| serde_json::from_slice::<Remembered>(&bytes).ok());
    let Remembered {
        machine,
        store_id,
        incarnation,
    } = known.unwrap_or_default();
    let disk = rustix::fs::statvfs(layout.data_dir());
    let disk = disk.map_err(|error| FileError::new("look at", layout.data_dir(), error))?;
    Ok(InspectedNode {
        machine,
        store_id,
        incarnation,
        disk_free: disk.f_bavail.saturating_mul(disk.f_frsize),
        disk_size: disk.f_blocks.saturating_mul(disk.f_frsize),
    })
}

/// Every pod of which there is something in a data directory. Changes nothing, and blocks while it
/// reads files.
///
/// ```no_run
/// let pods = platctrl_agent::inspect("/var/lib/platctrl".as_ref())?;
/// for pod in &pods {
///     println!("{}: {}, generation {:?}", pod.name, pod.phase, pod.running_generation);
/// }
/// # Ok::<(), platctrl_agent::LayoutError>(())
/// ```
///
/// # Errors
/// When the data directory cannot be read. A damaged record only leaves its own fields empty.
pub fn inspect(data_dir: &Path) -> Result<Vec<InspectedPod>, LayoutError> {
    let layout = Layout::open(data_dir)?;
    let pods = layout
        .pods()?
        .into_iter()
        .map(|name| inspect_pod(&layout, name));
    Ok(pods.collect::<Result<_, FileError>>()?)
}

fn inspect_pod(layout: &Layout, name: PodName) -> Result<InspectedPod, FileError> {
    let paths = layout.pod(&name);
    let record = PodRecord::look(&paths.record());
    let last = record.as_ref().and_then(|record| record.last.as_ref());
    let states: BTreeMap<String, State> = paths
        .programs()?
        .into_iter()
        .map(|program| {
            let state = platctrl_shim_lib::read_state(&paths.shim(&program));
            (program, state.ok().flatten().unwrap_or_default())
        })
        .collect();
    let phase = record
        .as_ref()
        .map(|record| phase(record, &states))
        .unwrap_or_default();
    let programs = states.into_iter().map(|(program, state)| {
        let alive = platctrl_shim_lib::is_alive(&state);
        InspectedProgram {
            program,
            supervisor: state.shim.filter(|_| alive).map(|shim| shim.pid),
            phase: state.phase.name(),
            pid: state.child.map(|child| child.pid),
            restarts: state.restarts,
            message: state.message,
        }
    });
    Ok(InspectedPod {
        uid: record
            .as_ref()
            .map(|record| record.uid.clone())
            .unwrap_or_default(),
        wanted_generation: last.map(|last| last.generation),
        running_generation: record
            .as_ref()
            .and_then(|record| record.current.as_ref())
            .map(Version::observed_generation),
        intent: last.cloned(),
        running: record
            .as_ref()
            .and_then(|record| record.current.as_ref())
            .map(InspectedVersion::from),
        exits: record
            .as_ref()
            .map(|record| record.exits.clone())
            .unwrap_or_default(),
        position: record
            .as_ref()
            .map(|record| record.position)
            .unwrap_or_default(),
        ending: last.is_some_and(|last| last.tombstone.is_some()),
        reverted: record.as_ref().and_then(|it| {
            let failed = it.quarantined.as_ref()?;
            (last.map(|last| last.digest) == Some(failed.digest)).then(|| failed.why.clone())
        }),
        stopped: record.as_ref().is_some_and(|it| {
            it.stopped.is_some() && it.stopped == it.current.as_ref().map(|it| it.generation)
        }),
        restart: record.as_ref().and_then(|it| it.restart.clone()),
        health: record
            .as_ref()
            .and_then(|it| it.health.clone())
            .map(|it| it.state.verdict),
        liveness: record
            .as_ref()
            .and_then(|it| it.liveness.clone())
            .map(|it| it.state.verdict),
        phase,
        disk: disk(&paths),
        programs: programs.collect(),
        name,
    })
}

fn disk(paths: &PodPaths) -> InspectedDisk {
    let (data, logs) = (disk::taken(&paths.data()), disk::taken(&paths.log()));
    InspectedDisk {
        data: data.bytes,
        logs: logs.bytes,
        installs: installs(paths),
        at_least: data.at_least || logs.at_least,
    }
}

/// Where in its life a pod is. The record has what was reported last when it was written, which is
/// not whenever a program starts or ends.
fn phase(record: &PodRecord, states: &BTreeMap<String, State>) -> String {
    let stays = !record.position.is_leaving() && !record.position.is_stopping();
    let ends = record
        .last
        .as_ref()
        .is_some_and(|last| last.tombstone.is_some());
    let Some(current) = record.current.as_ref().filter(|_| stays && !ends) else {
        return record.phase.clone();
    };
    let programs = current.programs.keys().map(|program| {
        let mut exits = record.exits.iter().rev();
        let exit = exits.find(|exit| exit.launchable == *program);
        let ended_well = exit.is_some_and(|exit| exit.code == Some(0));
        let state = states.get(program);
        (state.map(|state| activity(state.phase)), ended_well)
    });
    let phase = phase_of_programs(&programs.collect::<Vec<_>>());
    phase.as_str().to_owned()
}

fn installs(paths: &PodPaths) -> u64 {
    let links = std::fs::read_dir(paths.home().join("installs"));
    let targets = links.into_iter().flatten().flatten();
    // The links are the agent's own.
    let targets = targets.filter_map(|link| std::fs::canonicalize(link.path()).ok());
    targets.map(|target| disk::taken(&target).bytes).sum()
}
