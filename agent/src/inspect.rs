//! What is on a node, told from its files alone: also without an agent and without a store.

use std::path::Path;

use platctrl_framework::model::Uid;
use serde::Serialize;

use crate::files::FileError;
use crate::layout::{Layout, LayoutError};
use crate::name::PodName;
use crate::state::{PodRecord, Position};

/// A pod as its node knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
    /// How far a change has come.
    pub position: Position,
    /// Its end was ordered.
    pub ending: bool,
    /// Its programs.
    pub programs: Vec<InspectedProgram>,
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

/// Every pod of which there is something in a data directory. Changes nothing.
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
    let programs = paths.programs()?.into_iter().map(|program| {
        let dir = paths.shim(&program);
        let state = platctrl_shim_lib::read_state(&dir)
            .ok()
            .flatten()
            .unwrap_or_default();
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
            .map(|current| current.generation),
        position: record
            .as_ref()
            .map(|record| record.position)
            .unwrap_or_default(),
        ending: last.is_some_and(|last| last.tombstone.is_some()),
        programs: programs.collect(),
        name,
    })
}
