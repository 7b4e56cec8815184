//! What is known of a server by its version.

/// A version of etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Version {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let core = text.split(['-', '+']).next()?;
        let mut parts = core.split('.').map(|part| part.parse().ok());
        let version = Self {
            major: parts.next()??,
            minor: parts.next()??,
            patch: parts.next()??,
        };
        parts.next().is_none().then_some(version)
    }

    /// The version, or the same repair in another series.
    fn is_repaired(self, repaired: &[(u32, u32)]) -> bool {
        let newest = repaired.last().copied().unwrap_or_default();
        self.major > 3
            || (self.major, self.minor) > (3, newest.0)
            || repaired.iter().any(|(minor, patch)| {
                (self.major, self.minor) == (3, *minor) && self.patch >= *patch
            })
    }

    /// An answer to a request for progress comes behind every event up to its revision. Before,
    /// it could overtake some.
    pub(crate) fn answers_progress_in_order(self) -> bool {
        self.is_repaired(&[(4, 25), (5, 8)])
    }

    /// Access control has no known holes. Before, users without rights could compact the store,
    /// keep leases alive, and write around their ranges.
    pub(crate) fn confines_users(self) -> bool {
        self.is_repaired(&[(4, 44), (5, 30), (6, 11)])
    }

    /// A former leader does not end leases that live.
    pub(crate) fn keeps_leases(self) -> bool {
        self.is_repaired(&[(4, 31), (5, 13)])
    }
}

/// What an operator should know about a server.
pub(crate) fn warnings(text: &str) -> Vec<String> {
    let Some(version) = Version::parse(text) else {
        return vec![format!("its version `{text}` is not understood")];
    };
    let mut warnings = Vec::new();
    if version < Version::parse("3.4.0").unwrap_or(version) {
        warnings.push(format!(
            "etcd {text} is too old: 3.4 is the oldest supported"
        ));
    }
    if !version.confines_users() {
        warnings.push(format!(
            "etcd {text} does not confine its users: per-node rights are kept from 3.4.44, \
             3.5.30 and 3.6.11 on"
        ));
    }
    if !version.keeps_leases() {
        warnings.push(format!(
            "etcd {text} may end a live lease when its leader changes: repaired in 3.4.31 and \
             3.5.13"
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repairs_are_known_for_each_series() {
        for (text, in_order, confines) in [
            ("3.4.23", false, false),
            ("3.4.25", true, false),
            ("3.4.44", true, true),
            ("3.5.7", false, false),
            ("3.5.16", true, false),
            ("3.5.30", true, true),
            ("3.6.0", true, false),
            ("3.6.11", true, true),
            ("3.7.0-rc.1", true, true),
            ("4.0.0", true, true),
        ] {
            let version = Version::parse(text).unwrap();
            assert_eq!(version.answers_progress_in_order(), in_order, "{text}");
            assert_eq!(version.confines_users(), confines, "{text}");
        }
        for text in ["", "3", "3.5", "3.5.x", "3.5.1.2"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }
}
