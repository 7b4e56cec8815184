//! What a credential may do: ranges of keys, each to read or to write.
//!
//! Backends with access control turn a [`Policy`] into their own terms: roles and users of etcd,
//! policies and tokens of Consul.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Key, Prefix};

/// What may be done with the keys of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Read, list, watch and compare them.
    Read,
    /// The same, and put and delete them.
    Write,
}

/// One range of keys, and what may be done with it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Right {
    /// The keys.
    pub range: Prefix,
    /// What may be done with them.
    pub access: Access,
}

impl Right {
    /// To read a range.
    #[must_use]
    pub fn read(range: Prefix) -> Self {
        let access = Access::Read;
        Self { range, access }
    }

    /// To read and write a range.
    #[must_use]
    pub fn write(range: Prefix) -> Self {
        let access = Access::Write;
        Self { range, access }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.access {
            Access::Read => "read",
            Access::Write => "write",
        };
        write!(f, "{verb} {}", self.range)
    }
}

/// Rights under a name, to be given to one or several users.
///
/// ```
/// use platctrl_framework::store::{Access, Key, Policy, Prefix, Right};
///
/// let own = Prefix::new("o/reality/platctrl.dev/pods/web1/").unwrap();
/// let policy = Policy::new("web1", [Right::write(own)]);
/// let key = |node: &str| Key::new(format!("o/reality/platctrl.dev/pods/{node}/default/a")).unwrap();
/// assert!(policy.allows(Access::Write, &key("web1")));
/// assert!(!policy.allows(Access::Read, &key("web10")));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Policy {
    /// What it is called on the server.
    pub name: String,
    /// What may be done.
    pub rights: Vec<Right>,
    /// Leases may be made, which on Consul is a right of its own.
    pub leases: bool,
}

impl Policy {
    /// A policy that knows no leases.
    pub fn new(name: impl Into<String>, rights: impl IntoIterator<Item = Right>) -> Self {
        Self {
            name: name.into(),
            rights: rights.into_iter().collect(),
            leases: false,
        }
    }

    /// With leases.
    #[must_use]
    pub fn with_leases(self) -> Self {
        Self {
            leases: true,
            ..self
        }
    }

    /// Whether a key may be read, or written.
    #[must_use]
    pub fn allows(&self, access: Access, key: &Key) -> bool {
        let mut rights = self.rights.iter();
        rights.any(|right| right.access >= access && key.is_under(&right.range))
    }
}
