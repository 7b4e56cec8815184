//! The note of the users we made: `users.json` in the data directory.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::AuthError;
use crate::files::{self, Access};

/// More than there can be users of the system.
const LIMIT: u64 = 4 << 20;

/// A user that we made, or were about to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Made {
    /// For which app.
    pub(super) app: String,
    /// Its id. None until it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) uid: Option<u32>,
    /// Its group, as its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) gid: Option<u32>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    users: BTreeMap<String, Made>,
}

/// The file.
#[derive(Debug)]
pub(super) struct Record {
    path: PathBuf,
}

impl Record {
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The users by name. None are noted where there is no file.
    pub(super) fn read(&self) -> Result<BTreeMap<String, Made>, AuthError> {
        let Some(bytes) = files::read(&self.path, LIMIT)? else {
            return Ok(BTreeMap::new());
        };
        let content: Content =
            serde_json::from_slice(&bytes).map_err(|error| AuthError::Damaged {
                path: self.path.clone(),
                why: error.to_string(),
            })?;
        Ok(content.users)
    }

    /// Replaces the file; nothing is written where nothing is noted and there is none.
    pub(super) fn write(&self, users: &BTreeMap<String, Made>) -> Result<(), AuthError> {
        if *users == self.read()? {
            return Ok(());
        }
        let content = Content {
            users: users.clone(),
        };
        let bytes = serde_json::to_vec_pretty(&content).map_err(|error| AuthError::Damaged {
            path: self.path.clone(),
            why: error.to_string(),
        })?;
        files::write(&self.path, &bytes, Access::mode(0o600), true)?;
        Ok(())
    }
}
