//! What a program is held to beyond processor, memory and processes: its disk, what the kernel
//! limits of each process, the modes of its files; and the secrets that its node gives it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Bytes, Launchable, PodSpec};

/// Reading from and writing to the disk that the node keeps its pods on, each second. What is left
/// out is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Io {
    /// Bytes read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes: Option<Bytes>,
    /// Bytes written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_bytes: Option<Bytes>,
    /// Reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_operations: Option<u64>,
    /// Writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_operations: Option<u64>,
}

impl Io {
    /// Nothing is limited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What the kernel limits of each process, as `ulimit` does. What is left out has a default that
/// does not depend on how the node's agent was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rlimits {
    /// Files open at once. Default 1024, which a process may raise to 524288.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u64>,
    /// Bytes of a core dump. Default 0: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core_bytes: Option<Bytes>,
    /// Bytes of a file that it writes. Default: not limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<Bytes>,
    /// Bytes kept from being swapped out. Default 8Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked_bytes: Option<Bytes>,
    /// Bytes of a stack. Default 8Mi, which a process may raise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack_bytes: Option<Bytes>,
}

impl Rlimits {
    /// Nothing is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Where a secret comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretSource {
    /// The name of a file in the node's directory of secrets for the pod's namespace.
    pub file: String,
}

const MAX_SECRETS: usize = 64;

/// The bits that an octal mask as `027` takes away; None when it is none.
#[must_use]
pub fn umask(text: &str) -> Option<u32> {
    let plain = (1..=4).contains(&text.len()) && text.bytes().all(|it| matches!(it, b'0'..=b'7'));
    let mask = plain.then(|| u32::from_str_radix(text, 8).ok()).flatten()?;
    (mask <= 0o777).then_some(mask)
}

impl Launchable {
    /// Tells what is wrong with what it is held to.
    pub(crate) fn validate_confinement(&self, name: &str, wrong: &mut impl FnMut(String, String)) {
        let mut wrong = |field: &str, problem: &str| {
            wrong(format!("launchables.{name}.{field}"), problem.to_owned());
        };
        if self.umask.as_deref().is_some_and(|it| umask(it).is_none()) {
            wrong(
                "umask",
                "is not an octal number from 0 to 777: write \"027\"",
            );
        }
        let Io {
            read_bytes,
            write_bytes,
            read_operations,
            write_operations,
        } = self.resources.io;
        for (field, zero) in [
            ("readBytes", read_bytes.is_some_and(|it| it.get() == 0)),
            ("writeBytes", write_bytes.is_some_and(|it| it.get() == 0)),
            ("readOperations", read_operations == Some(0)),
            ("writeOperations", write_operations == Some(0)),
        ] {
            if zero {
                wrong(
                    &format!("resources.io.{field}"),
                    "is 0: nothing gets on with that",
                );
            }
        }
        if self.rlimits.open_files.is_some_and(|files| files < 16) {
            wrong(
                "rlimits.openFiles",
                "is below 16: no program starts with that",
            );
        }
        let small = |bytes: Option<Bytes>| bytes.is_some_and(|it| it.get() < 64 << 10);
        if small(self.rlimits.stack_bytes) {
            wrong(
                "rlimits.stackBytes",
                "is below 64Ki: no program starts with that",
            );
        }
    }
}

impl PodSpec {
    /// Tells what is wrong with its secrets.
    pub(crate) fn validate_secrets(&self, wrong: &mut impl FnMut(String, String)) {
        if self.secrets.len() > MAX_SECRETS {
            wrong(
                "secrets".into(),
                format!("has more than {MAX_SECRETS} secrets"),
            );
        }
        for (name, source) in &self.secrets {
            if !crate::pod::is_variable(name) {
                let problem =
                    "is not a name for a variable: use letters, digits and `_`, no digit first";
                wrong(format!("secrets.{name}"), problem.into());
            }
            let file = &source.file;
            let plain = file.bytes().all(
                |it| matches!(it, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-'),
            );
            if file.is_empty() || file.len() > 128 || file.starts_with('.') || !plain {
                let problem = "is not the name of a file: use letters, digits, `.`, `_` and `-`, and do not begin with `.`";
                wrong(format!("secrets.{name}.file"), problem.into());
            }
        }
    }

    /// Whether `new` differs from it in nothing but what can be changed while its programs run:
    /// their processor, memory, processes and disk, how the pod ends, and where it may be.
    #[must_use]
    pub fn differs_only_while_running(&self, new: &Self) -> bool {
        let still = |spec: &Self| {
            let mut spec = spec.clone();
            for launchable in spec.launchables.values_mut() {
                launchable.resources = crate::Resources::default();
            }
            spec.termination_grace_period = None;
            spec.drain_delay = None;
            spec.keep_data = false;
            spec.placement = crate::PodPlacement::default();
            spec
        };
        self != new && still(self) == still(new)
    }
}

/// The secrets of a pod, by the names its programs know them under.
pub(crate) type Secrets = BTreeMap<String, SecretSource>;

#[cfg(test)]
mod tests {
    use platctrl_framework::model::FieldError;
    use serde_json::{Value, json};

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "a literal at each call")]
    fn spec(launchable: Value, secrets: Value) -> PodSpec {
        let mut spec = json!({"launchables": {"web": {"location": "file:/a"}}, "secrets": secrets});
        for (field, value) in launchable.as_object().unwrap() {
            spec["launchables"]["web"][field] = value.clone();
        }
        serde_json::from_value(spec).unwrap()
    }

    fn problems(spec: &PodSpec) -> Vec<String> {
        let mut errors: Vec<FieldError> = Vec::new();
        spec.validate("spec", &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_field() {
        for (launchable, secrets, field) in [
            (
                json!({"umask": "9"}),
                json!({}),
                "spec.launchables.web.umask",
            ),
            (
                json!({"umask": "1000"}),
                json!({}),
                "spec.launchables.web.umask",
            ),
            (
                json!({"umask": ""}),
                json!({}),
                "spec.launchables.web.umask",
            ),
            (
                json!({"resources": {"io": {"readBytes": 0}}}),
                json!({}),
                "spec.launchables.web.resources.io.readBytes",
            ),
            (
                json!({"rlimits": {"openFiles": 3}}),
                json!({}),
                "spec.launchables.web.rlimits.openFiles",
            ),
            (json!({}), json!({"a b": {"file": "x"}}), "spec.secrets.a b"),
            (
                json!({}),
                json!({"DB": {"file": "../x"}}),
                "spec.secrets.DB.file",
            ),
            (
                json!({}),
                json!({"DB": {"file": "/etc/shadow"}}),
                "spec.secrets.DB.file",
            ),
            (
                json!({}),
                json!({"DB": {"file": ""}}),
                "spec.secrets.DB.file",
            ),
            (
                json!({}),
                json!({"DB": {"file": ".x"}}),
                "spec.secrets.DB.file",
            ),
        ] {
            let found = problems(&spec(launchable, secrets));
            assert!(
                found.len() == 1 && found[0].contains(field),
                "{field}: {found:?}"
            );
        }
        let good = spec(
            json!({"umask": "0027", "rlimits": {"openFiles": 65536, "coreBytes": "1Gi"},
                "resources": {"io": {"writeBytes": "10Mi", "writeOperations": 100}}}),
            json!({"DB": {"file": "db-password.txt"}}),
        );
        assert_eq!(problems(&good), [] as [&str; 0]);
        assert_eq!((umask("0027"), umask("777")), (Some(0o027), Some(0o777)));
    }

    #[test]
    fn limits_and_the_manner_of_its_end_can_change_while_a_pod_runs_and_nothing_else() {
        let old = spec(json!({"resources": {"cpu": "500m"}}), json!({}));
        assert!(!old.differs_only_while_running(&old));
        let mut new = spec(json!({"resources": {"memory": "64Mi"}}), json!({}));
        new.keep_data = true;
        new.drain_delay = Some(crate::Span::from_secs(1));
        assert!(old.differs_only_while_running(&new));
        for other in [
            spec(
                json!({"resources": {"memory": "64Mi"}, "env": {"A": "b"}}),
                json!({}),
            ),
            spec(json!({"umask": "027"}), json!({})),
            spec(json!({}), json!({"DB": {"file": "x"}})),
            spec(json!({"location": "file:/b"}), json!({})),
        ] {
            assert!(!old.differs_only_while_running(&other), "{other:?}");
        }
    }
}
