//! How the programs of a pod are started, what of their output is kept, and what follows when a
//! new version does not start.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Bytes, Launchable, Span};

/// More entry points than anybody has in one artifact.
const MAX_ENTRY_POINTS: usize = 32;

/// How much of a program's output is kept: in files, each closed when it is full or old.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogLimits {
    /// The size at which a file is closed. Default 10Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size: Option<Bytes>,
    /// The age at which a file is closed. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Span>,
    /// How many files are kept, the one that is written included. Default 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_files: Option<u32>,
}

impl LogLimits {
    /// Nothing is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What an update does when the new version fails to start: a required hook, a script, a program
/// that cannot be executed or ends again and again, or a health check that does not pass in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnFailedStart {
    /// The version that ran before is started again; the new one is not tried again until the
    /// spec changes.
    #[default]
    Revert,
    /// The new version stays, and is tried again and again.
    Stay,
}

impl OnFailedStart {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Launchable {
    /// Tells what is wrong with how it is started: the field, below the pod's spec, and the problem.
    pub(crate) fn validate_start(&self, name: &str, wrong: &mut impl FnMut(String, String)) {
        entry_points(name, &self.entry_points, wrong);
        let LogLimits {
            max_size,
            max_age,
            max_files,
        } = self.logs;
        let mut log = |field: &str, problem: &str| {
            wrong(
                format!("launchables.{name}.logs.{field}"),
                problem.to_owned(),
            );
        };
        if max_size.is_some_and(|size| size.get() < 4096) {
            log("maxSize", "is below 4Ki");
        }
        if max_age.is_some_and(|age| age < Span::from_secs(1)) {
            log("maxAge", "is below 1s");
        }
        if max_files.is_some_and(|files| !(1..=1000).contains(&files)) {
            log("maxFiles", "is not between 1 and 1000");
        }
    }
}

/// Entry points become parts of paths and names of programs.
fn entry_points(launchable: &str, entries: &[String], wrong: &mut impl FnMut(String, String)) {
    let mut names = BTreeSet::new();
    if entries.len() > MAX_ENTRY_POINTS {
        wrong(
            format!("launchables.{launchable}.entryPoints"),
            format!("has more than {MAX_ENTRY_POINTS} entries"),
        );
    }
    for (index, entry) in entries.iter().enumerate() {
        let field = format!("launchables.{launchable}.entryPoints[{index}]");
        let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        if !entry.split('/').all(plain) || entry.contains('\0') || entry.len() > 255 {
            wrong(
                field,
                "is not a path inside the artifact: write it as `bin/launch`".into(),
            );
        } else if let Some(name) = entry.rsplit('/').next()
            && !names.insert(name)
        {
            wrong(
                field,
                format!(
                    "ends in `{name}` as another one does: its programs could not be told apart"
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::PodSpec;

    fn problems(launchable: &Value) -> Vec<String> {
        let mut launchable = launchable.clone();
        launchable["location"] = "file:/a".into();
        let spec = json!({"launchables": {"web": launchable}});
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        let mut errors = Vec::new();
        spec.validate("spec", &mut errors);
        errors.iter().map(|error| error.path.clone()).collect()
    }

    #[test]
    fn what_cannot_be_started_is_refused_by_its_field() {
        for entries in [
            json!(["/bin/launch"]),
            json!(["bin/../../x"]),
            json!([""]),
            json!(["bin//x"]),
            json!(["."]),
            json!(["a\0"]),
        ] {
            assert_eq!(
                problems(&json!({"entryPoints": entries})),
                ["spec.launchables.web.entryPoints[0]"],
                "{entries}"
            );
        }
        assert_eq!(
            problems(&json!({"entryPoints": ["bin/a", "jobs/a"]})),
            ["spec.launchables.web.entryPoints[1]"]
        );
        let logs = json!({"logs": {"maxSize": "1Ki", "maxAge": "10ms", "maxFiles": 0}});
        assert_eq!(problems(&logs).len(), 3);
        let fine = json!({
            "entryPoints": ["bin/launch", "bin/worker"], "noHaltOnUpdate": true,
            "logs": {"maxSize": "1Mi", "maxAge": "1h", "maxFiles": 3},
        });
        assert_eq!(problems(&fine), [""; 0]);
    }

    #[test]
    fn what_is_left_out_does_not_change_the_digest_of_older_specs() {
        let spec = json!({"launchables": {"web": {"type": "hoist", "location": "file:/a", "restart": {"policy": "Always"}}}});
        let read: PodSpec = serde_json::from_value(spec.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), spec);
    }
}
