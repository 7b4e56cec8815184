//! The output of a pod's programs: where it is, and what of it somebody asks for.

mod ranges;
mod read;

use std::fs;
use std::path::{Path, PathBuf};

use crate::files::FileError;
use crate::layout::{Layout, LayoutError, PodPaths};
use crate::name::PodName;
pub use read::{LogError, LogQuery, LogReader};

/// The output of one program: its files, oldest first. The last is being written; when it is full
/// it is renamed and a new one of its name begun.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogFiles {
    /// The program: `web`, or `web/a`.
    pub program: String,
    /// The file that is being written.
    pub current: PathBuf,
    /// All files that are there, oldest first.
    pub files: Vec<PathBuf>,
}

/// The output of each program of a pod on this node, by program. Nothing when the pod is not here.
///
/// The directory belongs to the agent's user alone, so its files can be opened by path.
///
/// # Errors
/// When the directory cannot be read.
pub fn logs(data_dir: &Path, pod: &PodName) -> Result<Vec<LogFiles>, LayoutError> {
    let dir = Layout::open(data_dir)?.pod(pod).log();
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(FileError::new("read", &dir, error).into()),
    };
    let mut found: std::collections::BTreeMap<String, Vec<(u64, PathBuf)>> = Default::default();
    for entry in entries.flatten() {
        let Some((program, age)) = entry.file_name().to_str().and_then(parse) else {
            continue;
        };
        found.entry(program).or_default().push((age, entry.path()));
    }
    let logs = found.into_iter().map(|(program, mut files)| {
        files.sort_by_key(|(age, _)| std::cmp::Reverse(*age));
        let current = dir.join(format!("{}.log", PodPaths::log_name(&program)));
        LogFiles {
            program,
            current,
            files: files.into_iter().map(|(_, path)| path).collect(),
        }
    });
    Ok(logs.collect())
}

/// The program and the age of a file: `web.log` is 0, `web.log.1` the one before it.
fn parse(name: &str) -> Option<(String, u64)> {
    let (stem, age) = match name.strip_suffix(".log") {
        Some(stem) => (stem, 0),
        None => {
            let (rest, age) = name.rsplit_once('.')?;
            (rest.strip_suffix(".log")?, age.parse().ok()?)
        }
    };
    (!stem.is_empty()).then(|| (stem.replace(':', "/"), age))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_listed_by_program_oldest_first() {
        let dir = tempfile::tempdir().unwrap();
        let pod = PodName::new("default", "hello").unwrap();
        assert_eq!(logs(dir.path(), &pod).unwrap(), []);
        let log = Layout::open(dir.path()).unwrap().pod(&pod).log();
        fs::create_dir_all(&log).unwrap();
        for name in [
            "web:a.log",
            "web:a.log.1",
            "web:a.log.10",
            "web:a.log.2",
            "b.log",
            "x",
            ".log",
        ] {
            fs::write(log.join(name), "").unwrap();
        }
        let found = logs(dir.path(), &pod).unwrap();
        let names = |index: usize| -> Vec<String> {
            let files = found[index].files.iter();
            files
                .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
                .collect()
        };
        assert_eq!(
            (found[0].program.as_str(), names(0)),
            ("b", vec!["b.log".to_owned()])
        );
        assert_eq!(found[1].program, "web/a");
        assert_eq!(
            names(1),
            ["web:a.log.10", "web:a.log.2", "web:a.log.1", "web:a.log"]
        );
    }
}
