//! On whose behalf something is asked of a node, and whether they may have it.
//!
//! A server says who asks and what their token or certificate says; what roles give them, the node
//! reads by itself. The server has decided before; the node decides again, on the pod that it
//! really is.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue};
use platctrl_framework::model::Resource as _;
use platctrl_kinds::Pod;
use serde::{Deserialize, Serialize};

use super::super::status::{Failure, Result};
use crate::access::{Place, Rights, Role, Writes};

/// The header that says who asks.
const HEADER: &str = "platctrl-on-behalf-of";
/// More than a name, an address and a program take.
const LONGEST: usize = 4_096;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Behalf {
    pub(crate) name: String,
    /// What their token or certificate says.
    pub(crate) role: Role,
    /// From where: an address, or `local`.
    pub(crate) from: String,
}

impl Behalf {
    /// As the header's value.
    pub(crate) fn put(&self, headers: &mut HeaderMap) {
        let text = serde_json::to_vec(self).expect("texts are JSON");
        let value = HeaderValue::from_str(&URL_SAFE_NO_PAD.encode(text));
        headers.insert(HEADER, value.expect("base64 can be a header"));
    }

    pub(super) fn of(headers: &HeaderMap) -> Result<Self> {
        let refuse = || Failure::unauthorized("nobody says on whose behalf this is asked");
        let mut all = headers.get_all(HEADER).iter();
        let (Some(value), None) = (all.next(), all.next()) else {
            return Err(refuse());
        };
        if value.len() > LONGEST {
            return Err(refuse());
        }
        let text = URL_SAFE_NO_PAD.decode(value).map_err(|_| refuse())?;
        serde_json::from_slice(&text).map_err(|_| refuse())
    }

    /// Whether they may; else what they are told.
    pub(crate) fn may(&self, rights: &Rights, what: What, place: Place<'_>) -> Result<()> {
        if what.is_allowed(rights, place) {
            return Ok(());
        }
        let where_ = match place {
            Place::Everywhere => String::new(),
            Place::Namespace(namespace) => format!(" in namespace {namespace}"),
        };
        Err(Failure::forbidden(format!(
            "{} may not do this{where_}: {} takes the role {}",
            self.name,
            what.words(),
            what.needs()
        )))
    }
}

/// What can be asked of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// What a pod's programs wrote.
    Log,
    /// To run a command beside a program of a pod.
    Exec,
    /// What pods use.
    Usage,
}

impl What {
    /// Whether somebody with these rights may have it there.
    ///
    /// A command runs whatever somebody likes as the pod's user. So it takes the right to change
    /// every pod there: that of a deployer, which is bound to artifacts, is not enough.
    pub(crate) fn is_allowed(self, rights: &Rights, place: Place<'_>) -> bool {
        match self {
            Self::Log | Self::Usage => rights.reads(place),
            Self::Exec => rights.writes(&Pod::group_plural(), place) == Writes::All,
        }
    }

    fn needs(self) -> Role {
        match self {
            Self::Log | Self::Usage => Role::Viewer,
            Self::Exec => Role::Operator,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Log => "reading logs",
            Self::Exec => "running commands in pods",
            Self::Usage => "seeing what is used",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rights(base: Role, roles: &[serde_json::Value]) -> Rights {
        let roles = roles
            .iter()
            .map(|role| serde_json::from_value(role.clone()).unwrap());
        Rights {
            base,
            roles: roles.collect(),
        }
    }

    #[test]
    fn who_asks_is_read_as_it_was_said_or_not_at_all() {
        let ann = Behalf {
            name: "änn".to_owned(),
            role: Role::Viewer,
            from: "10.0.0.1".to_owned(),
        };
        let mut headers = HeaderMap::new();
        assert!(Behalf::of(&headers).unwrap_err().is_unauthorized());
        ann.put(&mut headers);
        assert_eq!(Behalf::of(&headers).unwrap(), ann);
        headers.append(HEADER, headers[HEADER].clone());
        Behalf::of(&headers).unwrap_err();
        for wrong in ["", "%", "e30", &"a".repeat(LONGEST + 1)] {
            headers.insert(HEADER, HeaderValue::from_str(wrong).unwrap());
            Behalf::of(&headers).unwrap_err();
        }
    }

    #[test]
    fn a_command_takes_more_than_a_log() {
        let team = Place::Namespace("team-a");
        let deployer = json!({"grants": "deployer", "namespaces": ["team-a"], "apps": ["*"]});
        let operator = json!({"grants": "operator", "namespaces": ["team-a"]});
        let elsewhere = Place::Namespace("team-b");
        for (who, log, exec, other) in [
            (rights(Role::Bound, &[]), false, false, false),
            (rights(Role::Node, &[]), false, false, false),
            (rights(Role::Viewer, &[]), true, false, true),
            (rights(Role::Bound, &[deployer]), true, false, false),
            (rights(Role::Bound, &[operator]), true, true, false),
            (rights(Role::Operator, &[]), true, true, true),
            (rights(Role::Admin, &[]), true, true, true),
        ] {
            assert_eq!(What::Log.is_allowed(&who, team), log, "{who:?}");
            assert_eq!(What::Usage.is_allowed(&who, team), log, "{who:?}");
            assert_eq!(What::Exec.is_allowed(&who, team), exec, "{who:?}");
            assert_eq!(What::Log.is_allowed(&who, elsewhere), other, "{who:?}");
        }
    }
}
