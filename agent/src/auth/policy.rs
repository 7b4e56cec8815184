//! Which users pods may run as: a pure decision over an identity.

use std::fmt;

use super::Identity;

/// Below this, users belong to the system.
const FIRST_PERSON: u32 = 1_000;
/// Who owns what has no owner: `nobody`, and what network file systems show in its place.
const NOBODY: u32 = 65_534;
/// 65534's neighbour is -1 for calls with 16 bits, which takes no effect.
const NO_ID_16: u32 = 65_535;
/// From here on numbers are negative to some tools.
const LAST: u32 = i32::MAX as u32;

/// What pods may run as beyond the users made for their apps and those of people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UserPolicy {
    /// Root, and members of root's group.
    pub allow_root: bool,
    /// Users of the system: ids below 1000.
    pub allow_system: bool,
    /// `nobody`: whatever else runs as it can read and kill what the pod has.
    pub allow_nobody: bool,
}

/// What is against a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum Refusal {
    /// It is root.
    Root,
    /// It is in root's group.
    RootGroup,
    /// It is one of the system's.
    System,
    /// It is `nobody`.
    Nobody,
    /// Its id, or that of one of its groups, means something else to some tools.
    Unusable(u32),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("it is root, which this node does not allow"),
            Self::RootGroup => {
                f.write_str("it is a member of root's group, which this node does not allow")
            }
            Self::System => f.write_str(
                "it is a user of the system (its id is below 1000), which this node does not allow",
            ),
            Self::Nobody => f.write_str("other software shares it, which this node does not allow"),
            Self::Unusable(id) => write!(f, "the id {id} means something else to some tools"),
        }
    }
}

impl UserPolicy {
    /// What is against a user, if anything. `ours` was made for an app.
    pub(super) fn refusal(self, identity: &Identity, ours: bool) -> Option<Refusal> {
        let uid = identity.uid;
        let groups = || identity.groups.iter().copied().chain([identity.gid]);
        let unusable = |id: &u32| *id > LAST || *id == NO_ID_16;
        if let Some(id) = groups().chain([uid]).find(unusable) {
            Some(Refusal::Unusable(id))
        } else if uid == 0 {
            (!self.allow_root).then_some(Refusal::Root)
        } else if groups().any(|gid| gid == 0) && !self.allow_root {
            Some(Refusal::RootGroup)
        } else if uid == NOBODY {
            (!self.allow_nobody).then_some(Refusal::Nobody)
        } else {
            (uid < FIRST_PERSON && !ours && !self.allow_system).then_some(Refusal::System)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(
        policy: UserPolicy,
        uid: u32,
        gid: u32,
        groups: &[u32],
        ours: bool,
    ) -> Option<Refusal> {
        let groups = groups.iter().copied();
        let identity = Identity::new("x".into(), uid, gid, groups, "/".into());
        policy.refusal(&identity, ours)
    }

    #[test]
    fn users_are_allowed_and_refused_as_the_table_says() {
        let strict = UserPolicy::default();
        let lax = UserPolicy {
            allow_root: true,
            allow_system: true,
            allow_nobody: true,
        };
        let cases = [
            // uid, gid, groups, ours, strict, lax
            (1000, 1000, &[][..], false, None, None),
            (999, 999, &[], false, Some(Refusal::System), None),
            (999, 999, &[], true, None, None),
            (0, 0, &[], false, Some(Refusal::Root), None),
            (0, 1000, &[], true, Some(Refusal::Root), None),
            (1000, 0, &[], false, Some(Refusal::RootGroup), None),
            (1000, 1000, &[7, 0], true, Some(Refusal::RootGroup), None),
            (65_534, 65_534, &[], false, Some(Refusal::Nobody), None),
            (
                65_535,
                1000,
                &[],
                false,
                Some(Refusal::Unusable(65_535)),
                Some(Refusal::Unusable(65_535)),
            ),
            (
                1 << 31,
                5,
                &[],
                false,
                Some(Refusal::Unusable(1 << 31)),
                Some(Refusal::Unusable(1 << 31)),
            ),
            (
                1000,
                u32::MAX,
                &[],
                false,
                Some(Refusal::Unusable(u32::MAX)),
                Some(Refusal::Unusable(u32::MAX)),
            ),
            (i32::MAX as u32, 1000, &[], false, None, None),
        ];
        for (uid, gid, groups, ours, by_strict, by_lax) in cases {
            assert_eq!(
                refusal(strict, uid, gid, groups, ours),
                by_strict,
                "{uid}:{gid}"
            );
            assert_eq!(refusal(lax, uid, gid, groups, ours), by_lax, "{uid}:{gid}");
        }
    }
}
