//! What somebody may do to objects: what their token or certificate says, and what roles add.
//!
//! All of it is decided on plain data. Nobody but an admin may write roles and who has them, so
//! that no right can be used to get another one.

use platctrl_framework::model::{GroupPlural, Resource};
use platctrl_kinds::{Grants, Role as RoleKind, RoleBinding, RoleSpec, fits_any};

use super::Role;

/// The rights of a caller.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rights {
    /// What the token or certificate says, for everything.
    pub(crate) base: Role,
    /// What roles add.
    pub(crate) roles: Vec<RoleSpec>,
}

/// What a caller may write.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Writes<'r> {
    /// Everything that is asked about.
    All,
    /// What runs the apps of one of these roles.
    Apps(Vec<&'r RoleSpec>),
    Nothing,
}

/// Where an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    /// In no namespace, or in all of them.
    Everywhere,
    Namespace(&'a str),
}

fn covers(role: &RoleSpec, place: Place<'_>) -> bool {
    role.grants == Grants::Admin
        || match place {
            Place::Everywhere => role.namespaces.iter().any(|pattern| pattern == "*"),
            Place::Namespace(namespace) => fits_any(&role.namespaces, namespace),
        }
}

/// Kinds that say who may do what.
pub(crate) fn gives_access(kind: &GroupPlural) -> bool {
    *kind == RoleKind::group_plural() || *kind == RoleBinding::group_plural()
}

impl Rights {
    /// Only what a token or certificate says.
    pub(crate) fn of(base: Role) -> Self {
        Self {
            base,
            roles: Vec::new(),
        }
    }

    /// The highest that is granted in a place. A deployer counts as a viewer.
    pub(crate) fn level(&self, place: Place<'_>) -> Role {
        let granted = self.roles.iter().filter(|role| covers(role, place));
        let granted = granted.map(|role| match role.grants {
            Grants::Viewer | Grants::Deployer => Role::Viewer,
            Grants::Operator => Role::Operator,
            Grants::Admin => Role::Admin,
        });
        granted.fold(self.base, Role::max)
    }

    /// Whether objects in a place may be read.
    pub(crate) fn reads(&self, place: Place<'_>) -> bool {
        self.level(place) >= Role::Viewer
    }

    /// What of a kind may be written in a place.
    pub(crate) fn writes(&self, kind: &GroupPlural, place: Place<'_>) -> Writes<'_> {
        let level = self.level(place);
        let needed = if gives_access(kind) {
            Role::Admin
        } else {
            Role::Operator
        };
        if level >= needed {
            return Writes::All;
        }
        if !super::deploy::runs_apps(kind) {
            return Writes::Nothing;
        }
        let deployers = self
            .roles
            .iter()
            .filter(|role| role.grants == Grants::Deployer && covers(role, place));
        let deployers: Vec<_> = deployers.collect();
        if deployers.is_empty() {
            return Writes::Nothing;
        }
        Writes::Apps(deployers)
    }

    /// Artifacts may be uploaded by whoever may have them run.
    pub(crate) fn uploads(&self) -> bool {
        let deploys = |role: &RoleSpec| role.grants >= Grants::Deployer;
        self.base >= Role::Operator || self.roles.iter().any(deploys)
    }

    /// Somebody gave them something: they may ask what kinds there are.
    pub(crate) fn is_somebody(&self) -> bool {
        self.base >= Role::Viewer || !self.roles.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use platctrl_kinds::{Node, Pod, ReplicationController};
    use serde_json::{Value, json};

    use super::*;

    fn rights(base: Role, roles: &[Value]) -> Rights {
        let roles = roles
            .iter()
            .map(|role| serde_json::from_value(role.clone()).unwrap());
        Rights {
            base,
            roles: roles.collect(),
        }
    }

    const TEAM: Place<'_> = Place::Namespace("team-a");

    #[test]
    fn a_role_counts_where_it_is_for() {
        let role = json!({"grants": "operator", "namespaces": ["team-*"]});
        let ann = rights(Role::Bound, &[role]);
        let controllers = ReplicationController::group_plural();
        assert!(ann.reads(TEAM));
        assert_eq!(ann.writes(&controllers, TEAM), Writes::All);
        for elsewhere in [
            Place::Everywhere,
            Place::Namespace("default"),
            Place::Namespace("team"),
        ] {
            assert!(!ann.reads(elsewhere), "{elsewhere:?}");
            assert_eq!(ann.writes(&controllers, elsewhere), Writes::Nothing);
        }
        let everywhere = json!({"grants": "viewer", "namespaces": ["a", "*"]});
        assert!(rights(Role::Bound, &[everywhere]).reads(Place::Everywhere));
        assert!(!rights(Role::Node, &[]).reads(TEAM));
    }

    #[test]
    fn a_deployer_writes_what_runs_apps_and_nothing_else() {
        let role = json!({"grants": "deployer", "namespaces": ["*"], "apps": ["*"]});
        let ann = rights(Role::Viewer, &[role]);
        assert!(matches!(
            ann.writes(&Pod::group_plural(), TEAM),
            Writes::Apps(_)
        ));
        for kind in [
            Node::group_plural(),
            RoleKind::group_plural(),
            RoleBinding::group_plural(),
            GroupPlural::new("platctrl.dev", "failsafes"),
            GroupPlural::new("platctrl.dev", "disruptionbudgets"),
            GroupPlural::new("example.dev", "pods"),
        ] {
            for place in [TEAM, Place::Everywhere] {
                assert_eq!(ann.writes(&kind, place), Writes::Nothing, "{kind}");
            }
        }
        assert!(ann.uploads());
        assert!(!rights(Role::Viewer, &[]).uploads());
    }

    #[test]
    fn only_an_admin_gives_access() {
        let operator = json!({"grants": "operator", "namespaces": ["*"]});
        let admin = json!({"grants": "admin"});
        for kind in [RoleKind::group_plural(), RoleBinding::group_plural()] {
            let writes = |rights: &Rights| rights.writes(&kind, Place::Everywhere) == Writes::All;
            assert!(!writes(&rights(Role::Operator, &[])));
            assert!(!writes(&rights(
                Role::Bound,
                std::slice::from_ref(&operator)
            )));
            assert!(writes(&rights(Role::Bound, std::slice::from_ref(&admin))));
            assert!(writes(&rights(Role::Admin, &[])));
        }
    }
}
