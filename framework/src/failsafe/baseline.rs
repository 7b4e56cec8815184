//! What a program remembers of a store over a restart, and the file it may keep that in.
//!
//! A process that starts knows nothing, and a store that lost half of its records looks to it
//! like one that never had them. So a baseline is kept: in the program's own record, and, where
//! the embedder names a file, outside of the store, where a restored backup cannot reach it.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::chain::Link;
use super::limits::Limits;
use crate::store::Revision;

/// The most bytes that are read of a file.
const MAX_BYTES: u64 = 1024 * 1024;

/// What is remembered of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Baseline {
    /// The store's identity.
    #[serde(default)]
    pub store_id: String,
    /// The last link of its chain that was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "serde_json::Value")]
    pub link: Option<Link>,
    /// The highest revision that was seen.
    #[serde(default)]
    #[schemars(with = "String")]
    pub revision: Revision,
    /// How many objects of each kind there were.
    #[serde(default)]
    pub kinds: BTreeMap<String, u64>,
    /// What was taken away lately that nobody declared, as `kind` or `kind@domain`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub spent: BTreeMap<String, u32>,
}

impl Baseline {
    /// The kinds of which far fewer objects are there than remembered: kind, remembered, found.
    pub(crate) fn fewer(
        &self,
        found: &BTreeMap<String, u64>,
        limits: &Limits,
    ) -> Vec<(String, u64, u64)> {
        let mut fewer = Vec::new();
        for (kind, &remembered) in &self.kinds {
            // A kind that this program does not know any more says nothing.
            let Some(&found) = found.get(kind) else {
                continue;
            };
            let (was, lost) = (
                usize::try_from(remembered).unwrap_or(usize::MAX),
                usize::try_from(remembered.saturating_sub(found)).unwrap_or(usize::MAX),
            );
            if limits.is_mass(lost, was) {
                fewer.push((kind.clone(), remembered, found));
            }
        }
        fewer
    }

    /// Whether it says so much else than `other` that it is worth writing.
    pub(crate) fn differs_much(&self, other: &Self) -> bool {
        let kinds = self.kinds.keys().chain(other.kinds.keys());
        let moved = |kind: &String| {
            let (a, b) = (
                self.kinds.get(kind).copied().unwrap_or(0),
                other.kinds.get(kind).copied().unwrap_or(0),
            );
            a.abs_diff(b) * 10 > a.max(b)
        };
        self.store_id != other.store_id
            || self.link.is_some() != other.link.is_some()
            || self.spent != other.spent
            || kinds.into_iter().any(moved)
    }

    /// Reads a file. None when there is none; a file that is no baseline is an error, and the
    /// caller decides what a program does that has lost its memory.
    pub(crate) fn load(path: &Path) -> std::io::Result<Option<Self>> {
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes)?;
        let baseline = serde_json::from_slice(&bytes)
            .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))?;
        Ok(Some(baseline))
    }

    /// Replaces a file as a whole, durably.
    pub(crate) fn save(&self, path: &Path) -> std::io::Result<()> {
        let bytes = serde_json::to_vec(self).map_err(std::io::Error::other)?;
        let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
        let directory = directory.unwrap_or_else(|| Path::new("."));
        std::fs::create_dir_all(directory)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = directory.join(format!(".{name}.{}.new", std::process::id()));
        let written = (|| {
            let mut file = std::fs::File::create(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, path)?;
            std::fs::File::open(directory)?.sync_all()
        })();
        if written.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn baseline(kinds: &[(&str, u64)]) -> Baseline {
        Baseline {
            kinds: kinds
                .iter()
                .map(|(kind, count)| ((*kind).to_owned(), *count))
                .collect(),
            ..Baseline::default()
        }
    }

    #[test]
    fn far_fewer_than_before_is_noticed() {
        let before = baseline(&[("pods", 100), ("nodes", 4), ("old", 50)]);
        let now = |pods, nodes| BTreeMap::from([("pods".into(), pods), ("nodes".into(), nodes)]);
        let limits = Limits::default();
        assert_eq!(before.fewer(&now(71, 0), &limits), []);
        assert_eq!(
            before.fewer(&now(70, 4), &limits),
            [("pods".to_owned(), 100, 70)]
        );
        assert_eq!(before.fewer(&now(500, 4), &limits), []);
    }

    #[test]
    fn a_file_survives_and_nonsense_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/memory.json");
        assert_eq!(Baseline::load(&path).unwrap(), None);
        let kept = baseline(&[("pods", 3)]);
        kept.save(&path).unwrap();
        assert_eq!(Baseline::load(&path).unwrap(), Some(kept));
        assert_eq!(
            std::fs::read_dir(dir.path().join("a")).unwrap().count(),
            1,
            "no temporary file stays"
        );
        std::fs::write(&path, "{").unwrap();
        assert!(Baseline::load(&path).is_err());
    }
}
