//! A pod's name on its node, and the name of its directories.

use std::fmt;
use std::str::FromStr;

use platctrl_framework::model::{InvalidName, check_name};
use serde::{Deserialize, Serialize};

/// A pod of this node. Both parts are checked names, so they can be parts of paths.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PodName {
    namespace: String,
    name: String,
}

impl PodName {
    /// Checks both parts.
    ///
    /// # Errors
    /// [`InvalidName`] says which is wrong and why.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Result<Self, InvalidName> {
        let (namespace, name) = (namespace.into(), name.into());
        check_name("namespace", &namespace)?;
        check_name("name", &name)?;
        Ok(Self { namespace, name })
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of its directories, `<namespace>.<name>`. Dots of the namespace are doubled, so
    /// that `a.b`/`c` and `a`/`b.c` do not meet.
    ///
    /// ```
    /// use platctrl_agent::PodName;
    ///
    /// assert_eq!(PodName::new("default", "hello.1")?.directory(), "default.hello.1");
    /// assert_eq!(PodName::new("team.eu", "hello")?.directory(), "team..eu.hello");
    /// # Ok::<(), platctrl_framework::model::InvalidName>(())
    /// ```
    #[must_use]
    pub fn directory(&self) -> String {
        format!("{}.{}", self.namespace.replace('.', ".."), self.name)
    }

    /// The inverse of [`PodName::directory`]. None for a name that it never returns.
    #[must_use]
    pub fn from_directory(directory: &str) -> Option<Self> {
        let bytes = directory.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            let run = bytes[at..].iter().take_while(|&&byte| byte == b'.').count();
            if run % 2 == 1 {
                // Names begin and end with a letter or digit: only the separator stands alone.
                let (namespace, name) = (&directory[..at], &directory[at + 1..]);
                let pod = Self::new(namespace.replace("..", "."), name).ok()?;
                return (run == 1 && pod.directory() == directory).then_some(pod);
            }
            at += run.max(1);
        }
        None
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<PodName> for String {
    fn from(name: PodName) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for PodName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for PodName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) = text
            .split_once('/')
            .ok_or_else(|| format!("`{text}` is not NAMESPACE/NAME"))?;
        Self::new(namespace, name).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_pod_is_found_again_by_its_directory(
            namespace in "[a-z0-9]([a-z0-9._-]{0,12}[a-z0-9])?",
            name in "[a-z0-9]([a-z0-9._-]{0,12}[a-z0-9])?",
        ) {
            let pod = PodName::new(namespace, name).unwrap();
            prop_assert_eq!(PodName::from_directory(&pod.directory()), Some(pod));
        }
    }

    #[test]
    fn directories_that_are_no_pods_are_none() {
        for name in [
            "",
            ".",
            "..",
            "a",
            "a.",
            ".a",
            "a...b",
            "A.b",
            "a..b",
            "lost+found",
        ] {
            assert_eq!(PodName::from_directory(name), None, "{name}");
        }
    }

    #[test]
    fn two_pods_never_share_a_directory() {
        let pods = [
            ("a.b", "c"),
            ("a", "b.c"),
            ("a..b", "c"),
            ("a", "b..c"),
            ("a.b.c", "d"),
        ];
        let all: std::collections::BTreeSet<_> = pods
            .iter()
            .map(|(a, b)| PodName::new(*a, *b).unwrap().directory())
            .collect();
        assert_eq!(all.len(), pods.len());
    }
}
