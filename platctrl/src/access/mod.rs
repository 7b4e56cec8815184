//! Who may ask a server for what.
//!
//! Whoever is at the local socket is root or the server's own user and may do everything. Over
//! the network a caller shows a token, or a certificate that the servers' own authority signed;
//! each names a person or a program, and a [`Role`]. Objects of the kind `RoleBinding` give more.

mod audit;
mod bindings;
mod deploy;
pub(crate) mod nodes;
mod rates;
mod rights;
mod tokens;

use std::fmt;
use std::str::FromStr;

use http::Method;
use serde::{Deserialize, Serialize};

pub(crate) use audit::{Audit, Deed, changes, short};
pub(crate) use bindings::{Bindings, is_built_in};
pub(crate) use deploy::{foreign_metadata, moves_between, refused};
pub(crate) use rates::Rates;
pub(crate) use rights::{Place, Rights, Writes, gives_access};
pub(crate) use tokens::{TokenError, TokenRecord, Tokens};

/// What somebody may do; each role may do all that those before it may.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Does what role bindings give, and nothing else.
    Bound,
    /// Fetches artifacts, as the agent of a machine does.
    Node,
    /// Reads objects, events and logs.
    Viewer,
    /// Changes objects and artifacts, settles failsafes, freezes and thaws.
    Operator,
    /// Saves and compacts the store, and gives and takes access.
    Admin,
}

impl Role {
    fn word(self) -> &'static str {
        match self {
            Self::Bound => "bound",
            Self::Node => "node",
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [
            Self::Bound,
            Self::Node,
            Self::Viewer,
            Self::Operator,
            Self::Admin,
        ]
        .into_iter()
        .find(|role| role.word() == text)
        .ok_or_else(|| format!("`{text}` is no role: bound, node, viewer, operator, admin"))
    }
}

/// Whom a token or certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) name: String,
    pub(crate) role: Role,
}

/// What a request needs, or nothing where anybody may ask: whether the server works, and nothing
/// that it knows.
pub(crate) fn needed(method: &Method, path: &str) -> Option<Role> {
    // Whoever opens a node's stream shows a certificate that is nobody's, which is looked at there.
    if matches!(path, "/healthz" | "/livez" | "/readyz") || path.starts_with("/stream/") {
        return None;
    }
    let reads = matches!(*method, Method::GET | Method::HEAD);
    let below = |root: &str| {
        path.strip_prefix(root)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    Some(if path == "/auth/self" {
        Role::Bound
    } else if reads && below("/artifacts") {
        Role::Node
    } else if below("/audit") {
        Role::Operator
    } else if below("/store") || below("/auth") {
        Role::Admin
    } else if reads {
        Role::Viewer
    } else {
        Role::Operator
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_needs_follows_from_its_method_and_path() {
        let pods = "/apis/platctrl.dev/v1/pods";
        for (method, path, role) in [
            (Method::GET, "/healthz", None),
            (Method::GET, "/readyz", None),
            (Method::GET, "/healthz/x", Some(Role::Viewer)),
            (Method::GET, pods, Some(Role::Viewer)),
            (Method::HEAD, "/artifacts/sha256/aa", Some(Role::Node)),
            (Method::GET, "/artifactss", Some(Role::Viewer)),
            (Method::POST, pods, Some(Role::Operator)),
            (Method::DELETE, pods, Some(Role::Operator)),
            (Method::PUT, "/artifacts/sha256/aa", Some(Role::Operator)),
            (Method::POST, "/failsafe/freeze", Some(Role::Operator)),
            (Method::GET, "/store/backup", Some(Role::Admin)),
            (Method::POST, "/store/compact", Some(Role::Admin)),
            (Method::GET, "/auth/tokens", Some(Role::Admin)),
            (Method::GET, "/auth", Some(Role::Admin)),
            (Method::GET, "/auth/self", Some(Role::Bound)),
            (Method::GET, "/audit", Some(Role::Operator)),
            (Method::GET, "/stored", Some(Role::Viewer)),
            (Method::GET, "/stream/nodes/web1", None),
            (Method::GET, "/streams", Some(Role::Viewer)),
            (Method::GET, "/top/pods", Some(Role::Viewer)),
        ] {
            assert_eq!(needed(&method, path), role, "{method} {path}");
        }
        assert!(
            Role::Bound < Role::Node
                && Role::Node < Role::Viewer
                && Role::Viewer < Role::Operator
                && Role::Operator < Role::Admin
        );
    }

    #[test]
    fn roles_are_written_as_they_are_read() {
        for role in [
            Role::Bound,
            Role::Node,
            Role::Viewer,
            Role::Operator,
            Role::Admin,
        ] {
            assert_eq!(role.to_string().parse(), Ok(role));
            assert_eq!(
                serde_json::to_value(role).unwrap(),
                serde_json::json!(role.to_string())
            );
        }
        assert!("root".parse::<Role>().unwrap_err().contains("viewer"));
    }
}
