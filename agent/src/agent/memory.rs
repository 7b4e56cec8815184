//! What an agent remembers between its runs: which machine this is, which store it belongs to,
//! and under which incarnation it works.

use std::collections::BTreeSet;
use std::path::PathBuf;

use platctrl_framework::environment::Environment;
use platctrl_framework::model::Uid;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::files::{self, Access, FileError};
use crate::host::Host;

const MAX_BYTES: u64 = 64 << 10;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Remembered {
    /// Random; tells this data directory from every other machine's.
    pub(super) machine: String,
    /// The store that orders came from. Empty before the first.
    pub(super) store_id: String,
    /// The incarnation that the pods here were started under.
    pub(super) incarnation: u64,
    /// The newest incarnation that was an order to end what is here; above `incarnation` while
    /// that is being done.
    pub(super) retiring: u64,
    /// What that order ended: others may have taken its place, so it is never begun again.
    pub(super) retired: BTreeSet<Uid>,
    /// Fields of newer agents, kept.
    #[serde(flatten)]
    pub(super) other: Map<String, Value>,
}

#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
    known: Remembered,
}

impl Memory {
    /// Reads it, or makes it. What is damaged is made anew, except that then nothing is known of
    /// the store: the first that answers is believed.
    pub(super) fn open(host: &Host) -> Result<Self, FileError> {
        let path = host.layout.state().join("agent.json");
        let bytes = files::read(&path, MAX_BYTES)?;
        let known = bytes.and_then(|bytes| match serde_json::from_slice::<Remembered>(&bytes) {
            Ok(known) => Some(known),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the agent's memory was damaged and is made anew");
                None
            }
        });
        let mut memory = Self {
            path,
            known: known.unwrap_or_default(),
        };
        if memory.known.machine.is_empty() {
            let machine = random(&host.environment);
            memory.change(|known| known.machine = machine)?;
        }
        Ok(memory)
    }

    pub(super) fn known(&self) -> &Remembered {
        &self.known
    }

    /// Notes what a newer incarnation orders to be ended, before it is. An agent that died over it
    /// adds what is left.
    pub(super) fn note_retired(
        &mut self,
        incarnation: u64,
        pods: impl IntoIterator<Item = Uid>,
    ) -> Result<(), FileError> {
        self.change(|known| {
            if known.retiring != incarnation {
                known.retiring = incarnation;
                known.retired.clear();
            }
            known.retired.extend(pods);
        })
    }

    /// Changes it, on disk first.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Remembered)) -> Result<(), FileError> {
        let mut known = self.known.clone();
        change(&mut known);
        if known == self.known {
            return Ok(());
        }
        let bytes = serde_json::to_vec_pretty(&known)
            .map_err(|error| FileError::new("write", &self.path, std::io::Error::other(error)))?;
        files::write(&self.path, &bytes, Access::mode(0o600), true)?;
        self.known = known;
        Ok(())
    }
}

/// 128 random bits as text.
pub(super) fn random(environment: &Environment) -> String {
    format!(
        "{:016x}{:016x}",
        environment.random_u64(),
        environment.random_u64()
    )
}
