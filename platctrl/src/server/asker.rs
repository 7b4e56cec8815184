//! Who asks, from where, and what they may do: what every handler is given.

use jiff::Timestamp;
use platctrl_framework::model::{FieldError, KnownKind, ObjectKey, Resource as _, Scope};
use platctrl_kinds::{ReplicationController, RollingUpdate};
use serde_json::Value;

use super::status::{Failure, Result};
use crate::access::{Deed, Place, Rights, Role, Writes, foreign_metadata, gives_access, refused};

/// Whoever sent a request.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    pub(super) name: String,
    /// An address, or `local`.
    pub(super) from: String,
    /// The program, as it names itself.
    pub(super) with: String,
    pub(super) rights: Rights,
}

/// Where the objects of a kind are, as far as rights go.
pub(super) fn place<'a>(kind: &KnownKind, namespace: Option<&'a str>) -> Place<'a> {
    match namespace {
        Some(namespace) if kind.definition.scope != Scope::Cluster => Place::Namespace(namespace),
        _ => Place::Everywhere,
    }
}

impl Asker {
    pub(super) fn denied(&self, place: Place<'_>, what: &str, needed: Role) -> Failure {
        let where_ = match place {
            Place::Everywhere => String::new(),
            Place::Namespace(namespace) => format!(" in namespace {namespace}"),
        };
        let may = match self.rights.level(place) {
            Role::Bound => "has no role".to_owned(),
            level => format!("may do what a {level} may"),
        };
        Failure::forbidden(format!(
            "{} {may}{where_}; {what} takes the role {needed}",
            self.name
        ))
    }

    /// Whether objects of a kind may be read, in a namespace or in all.
    pub(super) fn read(&self, kind: &KnownKind, namespace: Option<&str>) -> Result<()> {
        let place = place(kind, namespace);
        if self.rights.reads(place) {
            return Ok(());
        }
        let what = format!("reading {}", kind.definition.plural);
        Err(self.denied(place, &what, Role::Viewer))
    }

    fn writes(&self, kind: &KnownKind, namespace: Option<&str>) -> Result<Writes<'_>> {
        let place = place(kind, namespace);
        let definition = &kind.definition;
        let writes = self.rights.writes(&definition.group_plural(), place);
        if writes != Writes::Nothing {
            return Ok(writes);
        }
        let needed = if gives_access(&definition.group_plural()) {
            Role::Admin
        } else {
            Role::Operator
        };
        let what = format!("changing {}", definition.plural);
        Err(self.denied(place, &what, needed))
    }

    /// Whether anything of a kind may be written there at all; what it may be is decided once it
    /// is known.
    pub(super) fn write(&self, kind: &KnownKind, namespace: Option<&str>) -> Result<()> {
        self.writes(kind, namespace).map(|_| ())
    }

    /// Whether a status may be written: only by those who may write everything.
    pub(super) fn report(&self, kind: &KnownKind, namespace: Option<&str>) -> Result<()> {
        match self.writes(kind, namespace)? {
            Writes::All => Ok(()),
            _ => {
                let place = place(kind, namespace);
                Err(self.denied(place, "writing a status", Role::Operator))
            }
        }
    }

    /// Whether an object may become another one, or come to be, or end.
    pub(super) fn change(
        &self,
        kind: &KnownKind,
        namespace: Option<&str>,
        before: Option<&Value>,
        after: Option<&Value>,
    ) -> Result<()> {
        let Writes::Apps(roles) = self.writes(kind, namespace)? else {
            return Ok(());
        };
        let mut problems = Vec::new();
        // What a rolling update moves has an app; it has none of its own.
        let group_plural = kind.definition.group_plural();
        if group_plural != RollingUpdate::group_plural() {
            for object in before.into_iter().chain(after) {
                problems.extend(refused(&roles, &group_plural, object));
            }
        }
        if let Some(after) = after {
            problems.extend(foreign_metadata(before, after));
        }
        self.refuse(problems)
    }

    /// Whether what a rolling update moves may be moved: its replication controllers have to be
    /// theirs, and those that it did not name before have to be there.
    pub(super) fn moves(
        &self,
        kind: &KnownKind,
        namespace: Option<&str>,
        controllers: &[(Option<Value>, bool)],
    ) -> Result<()> {
        let Writes::Apps(roles) = self.writes(kind, namespace)? else {
            return Ok(());
        };
        let group_plural = ReplicationController::group_plural();
        let mut problems = Vec::new();
        for (controller, is_new) in controllers {
            match controller {
                Some(controller) => problems.extend(refused(&roles, &group_plural, controller)),
                None if *is_new => problems.push(FieldError::new(
                    "spec",
                    "a deployer's rolling update is between replication controllers that are there",
                )),
                None => {}
            }
        }
        self.refuse(problems)
    }

    /// Whether only some apps may be written there.
    pub(super) fn is_deployer(&self, kind: &KnownKind, namespace: Option<&str>) -> bool {
        matches!(self.writes(kind, namespace), Ok(Writes::Apps(_)))
    }

    fn refuse(&self, mut problems: Vec<FieldError>) -> Result<()> {
        if problems.is_empty() {
            return Ok(());
        }
        problems.dedup();
        let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
        let message = format!("{} may not do this: {}", self.name, texts.join("; "));
        Err(Failure::forbidden(message).with_causes(problems))
    }

    /// What is to be remembered of something that they did.
    pub(super) fn deed(&self, at: Timestamp, verb: &str, to: impl Into<String>) -> Deed {
        Deed {
            at,
            by: self.name.clone(),
            from: self.from.clone(),
            with: self.with.clone(),
            verb: verb.to_owned(),
            to: to.into(),
            uid: String::new(),
            changes: Vec::new(),
        }
    }
}

/// How an audit record names an object: `replicationcontrollers/default/hello`.
pub(super) fn path(key: &ObjectKey) -> String {
    let plural = &key.kind().plural;
    match key.namespace() {
        Some(namespace) => format!("{plural}/{namespace}/{}", key.name()),
        None => format!("{plural}/{}", key.name()),
    }
}
