//! What a path below `/apis/` names.

use platctrl_framework::model::{GroupPlural, Kinds, KnownKind, Scope, check_name};

use serde_json::Value;

use super::events;
use super::openapi::Documents;
use super::status::{Failure, Result};
use super::version::{Shown, face};

/// A kind's collection, one of its objects, or a part of one.
#[derive(Clone, Debug)]
pub(super) struct Target<'k> {
    pub(super) kind: &'k KnownKind,
    /// The kind as it is in the version that the path names: the same one, or another version's.
    pub(super) face: &'k KnownKind,
    /// None: all namespaces, or a kind without.
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) part: Part,
}

impl Target<'_> {
    /// How its objects are shown.
    pub(super) fn shown(&self) -> Shown {
        Shown::new(self.kind, &self.face.definition.version)
    }

    /// Objects of the path's version are stored in another.
    pub(super) fn is_converted(&self) -> bool {
        !std::ptr::eq(self.kind, self.face)
    }
}

/// Which part of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    Status,
    Scale,
    Log,
    Undelete,
}

/// The kinds of the API: those of the store, and events, which are no objects there.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) kinds: Kinds,
    pub(super) events: KnownKind,
    /// Other versions of the kinds whose types are here to convert them.
    faces: Vec<KnownKind>,
    documents: Documents,
}

impl Served {
    pub(super) fn new(kinds: Kinds) -> Self {
        let converted = kinds.iter().filter(|kind| kind.checks.is_some());
        let faces = converted.flat_map(|kind| {
            let others = kind.definition.other_versions.iter();
            others.map(|other| face(kind, other))
        });
        Self {
            faces: faces.collect(),
            kinds,
            events: events::kind(),
            documents: Documents::default(),
        }
    }

    /// The kinds in OpenAPI 2.
    pub(super) fn second(&self) -> &Value {
        self.documents.second(self)
    }

    /// The same as a protocol buffer.
    pub(super) fn message(&self) -> &[u8] {
        self.documents.message(self)
    }

    /// The kinds in all their versions.
    pub(super) fn iter(&self) -> impl Iterator<Item = &KnownKind> {
        self.stored().chain(&self.faces)
    }

    /// The kinds in the versions that are stored.
    pub(super) fn stored(&self) -> impl Iterator<Item = &KnownKind> {
        self.kinds.iter().chain([&self.events])
    }

    pub(super) fn is_events(&self, kind: &KnownKind) -> bool {
        std::ptr::eq(kind, &raw const self.events)
    }

    /// A kind, and how it is in a version.
    fn get(&self, group: &str, version: &str, plural: &str) -> Result<(&KnownKind, &KnownKind)> {
        let events = &self.events.definition;
        let known = if group == events.group && plural == events.plural {
            Some(&self.events)
        } else {
            self.kinds.get(&GroupPlural::new(group, plural))
        };
        let face = known.and_then(|known| {
            if known.definition.version == version {
                return Some(known);
            }
            self.faces.iter().find(|face| {
                let face = &face.definition;
                face.group == group && face.plural == plural && face.version == version
            })
        });
        known.zip(face).ok_or_else(|| {
            Failure::not_found(format!(
                "there is no kind `{plural}` in {group}/{version}; /kinds lists what this server serves"
            ))
        })
    }

    /// Reads a path behind `/apis/<group>/<version>/`.
    pub(super) fn target(&self, group: &str, version: &str, rest: &str) -> Result<Target<'_>> {
        let segments: Vec<_> = rest.split('/').collect();
        let (namespace, plural, name, part) = match segments[..] {
            ["namespaces", namespace, plural] => (Some(namespace), plural, None, None),
            ["namespaces", namespace, plural, name] => (Some(namespace), plural, Some(name), None),
            ["namespaces", namespace, plural, name, part] => {
                (Some(namespace), plural, Some(name), Some(part))
            }
            [plural] => (None, plural, None, None),
            [plural, name] => (None, plural, Some(name), None),
            [plural, name, part] => (None, plural, Some(name), Some(part)),
            _ => return Err(Failure::not_found("there is nothing at this path")),
        };
        let (kind, face) = self.get(group, version, plural)?;
        let definition = &kind.definition;
        match (definition.scope, namespace, name) {
            (Scope::Cluster, Some(_), _) => {
                return Err(Failure::not_found(format!(
                    "{plural} are in no namespace: leave it out of the path"
                )));
            }
            (Scope::Namespaced | Scope::Node, None, Some(_)) => {
                return Err(Failure::not_found(format!(
                    "{plural} are in namespaces: the path is /apis/{group}/{version}/namespaces/NAMESPACE/{plural}/NAME"
                )));
            }
            _ => {}
        }
        for (what, segment) in [("namespace", namespace), ("name", name)] {
            // Events have longer names: those of what they are about, and where they are kept.
            if let Some(segment) = segment.filter(|_| !(what == "name" && self.is_events(kind))) {
                check_name(what, segment)
                    .map_err(|error| Failure::bad_request(error.to_string()))?;
            }
        }
        let part = match part {
            None => Part::Whole,
            Some("status") if !self.is_events(kind) => Part::Status,
            Some("scale") if has_scale(kind) => Part::Scale,
            Some("undelete") if !self.is_events(kind) => Part::Undelete,
            Some("log") if definition.plural == "pods" => Part::Log,
            Some(other) => {
                let other: String = other
                    .chars()
                    .take(40)
                    .flat_map(char::escape_default)
                    .collect();
                return Err(Failure::not_found(format!("{plural} have no `{other}`")));
            }
        };
        Ok(Target {
            kind,
            face,
            namespace: namespace.map(ToOwned::to_owned),
            name: name.map(ToOwned::to_owned),
            part,
        })
    }
}

/// Objects of this kind say in `spec.replicas` how many they want.
pub(super) fn has_scale(kind: &KnownKind) -> bool {
    let replicas = kind
        .definition
        .schema
        .pointer("/properties/spec/properties/replicas/type");
    replicas.is_some_and(|kind| kind == "integer")
}

#[cfg(test)]
mod tests {
    use platctrl_kinds::{Node, Pod, ReplicationController};

    use super::*;

    fn served() -> Served {
        let kinds = Kinds::new().with::<Node>().with::<Pod>();
        Served::new(kinds.with::<ReplicationController>())
    }

    #[test]
    fn paths_name_what_they_say() {
        let served = served();
        let pod = served
            .target("platctrl.dev", "v1", "namespaces/default/pods/a/status")
            .unwrap();
        assert_eq!(pod.kind.definition.kind, "Pod");
        assert_eq!(pod.namespace.as_deref(), Some("default"));
        assert_eq!((pod.name.as_deref(), pod.part), (Some("a"), Part::Status));
        let nodes = served.target("platctrl.dev", "v1", "nodes").unwrap();
        assert_eq!((nodes.name, nodes.part), (None, Part::Whole));
    }

    #[test]
    fn paths_that_name_nothing_are_refused() {
        let served = served();
        for rest in [
            "",
            "/",
            "podz",
            "pods/a",
            "namespaces/default/nodes",
            "namespaces/default/pods/a/scale",
            "namespaces/default/pods/a/b/c",
            "namespaces/Default/pods",
            "namespaces/default/pods/../a",
            "namespaces/default/pods/",
            "namespaces//pods",
        ] {
            assert!(served.target("platctrl.dev", "v1", rest).is_err(), "{rest}");
        }
        assert!(served.target("platctrl.dev", "v2", "nodes").is_err());
    }
}
