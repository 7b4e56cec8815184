//! Which pods may be begun now: a file that has to be there, and a list of the only ones.
//!
//! Both are for machines that are not themselves yet: just booted, imaged anew, under repair. What
//! runs goes on; nothing is begun that the gate refuses, neither by an order nor from what was
//! wanted last.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use crate::situation::Gate;

/// A list is not longer than this.
const LONGEST: u64 = 1 << 20;

/// The files that say what may be begun.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootGates {
    /// Nothing is begun while this file is missing.
    pub require_file: Option<PathBuf>,
    /// While this file is there and not empty, only the pods in it are begun, one `namespace/name`
    /// a line.
    pub whitelist: Option<PathBuf>,
}

impl BootGates {
    /// Nothing is ever refused.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Looks.
    pub(super) fn look(&self) -> Gate {
        if let Some(path) = &self.require_file
            && let Err(error) = std::fs::symlink_metadata(path)
        {
            let name = path.display();
            return Gate::Shut(match error.kind() {
                io::ErrorKind::NotFound => {
                    format!("{name} is required and not there: nothing is begun before it is")
                }
                _ => format!("{name} is required and cannot be looked at: {error}"),
            });
        }
        match self.whitelist.as_deref().map(list) {
            None | Some(Ok(None)) => Gate::Open,
            Some(Ok(Some(pods))) => Gate::Only(pods),
            Some(Err(why)) => Gate::Shut(why),
        }
    }
}

/// The pods of a list; None when there is none, or nothing in it.
fn list(path: &Path) -> Result<Option<BTreeSet<String>>, String> {
    let failed = |error: io::Error| {
        let name = path.display();
        format!("the list {name} of pods that may be begun cannot be read: {error}")
    };
    let text = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
        Ok(there) if !there.is_file() || there.len() > LONGEST => {
            return Err(failed(io::Error::other("it is no list of names")));
        }
        Ok(_) => std::fs::read_to_string(path).map_err(failed)?,
    };
    let lines = text.lines().map(str::trim);
    let names = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let names: BTreeSet<String> = names
        .map(|name| match name.contains('/') {
            true => name.to_owned(),
            false => format!("{}/{name}", platctrl_kinds::DEFAULT_NAMESPACE),
        })
        .collect();
    Ok((!text.trim().is_empty()).then_some(names))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::PodName;

    fn refused(gates: &BootGates) -> [bool; 2] {
        ["one", "two"].map(|name| {
            let name = PodName::new("default", name).unwrap();
            gates.look().refuses(&name).is_some()
        })
    }

    #[test]
    fn nothing_is_begun_before_the_file_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("may-run");
        let gates = BootGates {
            require_file: Some(file.clone()),
            whitelist: None,
        };
        assert_eq!(refused(&gates), [true, true]);
        std::fs::write(&file, "").unwrap();
        assert_eq!(refused(&gates), [false, false]);
    }

    #[test]
    fn only_what_is_on_the_list_is_begun_until_it_is_removed_or_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("list");
        let gates = BootGates {
            require_file: None,
            whitelist: Some(file.clone()),
        };
        assert_eq!(refused(&gates), [false, false], "there is no list");
        for (text, expected) in [
            ("default/one\n", [false, true]),
            ("# none but\ntwo\nother/one\n", [true, false]),
            ("# nobody\n", [true, true]),
            (" \n\n", [false, false]),
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(refused(&gates), expected, "{text:?}");
        }
        // One that cannot be read lets nobody in.
        std::fs::write(&file, [0xff, 0xfe]).unwrap();
        assert_eq!(refused(&gates), [true, true]);
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert_eq!(refused(&gates), [true, true]);
    }
}
