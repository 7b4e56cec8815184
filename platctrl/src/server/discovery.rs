//! What the server says about itself and its kinds.

use platctrl_framework::model::{KnownKind, Scope};
use serde_json::{Map, Value, json};

use super::status::{Failure, Result};
use super::target::{Served, has_scale};

/// `/api`: there is no core group.
pub(super) fn core() -> Value {
    json!({"kind": "APIVersions", "apiVersion": "v1", "versions": [], "serverAddressByClientCIDRs": []})
}

/// `/apis`.
pub(super) fn groups(served: &Served) -> Value {
    let mut groups: Vec<&str> = served
        .iter()
        .map(|kind| kind.definition.group.as_str())
        .collect();
    groups.sort_unstable();
    groups.dedup();
    let groups: Vec<_> = groups
        .into_iter()
        .map(|name| describe(served, name))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/<group>`.
pub(super) fn group(served: &Served, name: &str) -> Result<Value> {
    if !served.iter().any(|kind| kind.definition.group == name) {
        return Err(Failure::not_found(
            "there is no such group; /apis lists them",
        ));
    }
    let mut group = describe(served, name);
    group["kind"] = "APIGroup".into();
    group["apiVersion"] = "v1".into();
    Ok(group)
}

fn describe(served: &Served, name: &str) -> Value {
    let of_group = served.iter().filter(|kind| kind.definition.group == name);
    let mut versions: Vec<&str> = of_group
        .map(|kind| kind.definition.version.as_str())
        .collect();
    versions.sort_unstable();
    versions.dedup();
    let versions: Vec<_> = versions
        .into_iter()
        .map(|version| json!({"groupVersion": format!("{name}/{version}"), "version": version}))
        .collect();
    json!({"name": name, "versions": versions, "preferredVersion": versions.first()})
}

/// `/apis/<group>/<version>`.
pub(super) fn resources(served: &Served, group: &str, version: &str) -> Result<Value> {
    let here =
        |kind: &&KnownKind| kind.definition.group == group && kind.definition.version == version;
    let resources: Vec<_> = served
        .iter()
        .filter(here)
        .flat_map(|kind| of_kind(served, kind))
        .collect();
    if resources.is_empty() {
        return Err(Failure::not_found(
            "there is no such group and version; /apis lists them",
        ));
    }
    Ok(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": format!("{group}/{version}"),
        "resources": resources,
    }))
}

fn of_kind(served: &Served, known: &KnownKind) -> Vec<Value> {
    let definition = &known.definition;
    let namespaced = definition.scope != Scope::Cluster;
    let resource = |name: &str, kind: &str, verbs: &[&str]| {
        let mut fields = Map::new();
        fields.insert("name".into(), name.into());
        fields.insert("singularName".into(), "".into());
        fields.insert("namespaced".into(), namespaced.into());
        fields.insert("kind".into(), kind.into());
        fields.insert("verbs".into(), json!(verbs));
        fields
    };
    let plural = &definition.plural;
    let verbs: &[&str] = if served.is_events(known) {
        &["get", "list", "watch"]
    } else {
        &[
            "create", "delete", "get", "list", "patch", "update", "watch",
        ]
    };
    let mut whole = resource(plural, &definition.kind, verbs);
    whole.insert("singularName".into(), definition.singular.clone().into());
    whole.insert("shortNames".into(), json!(definition.short_names));
    let mut resources = vec![whole];
    if !served.is_events(known) {
        let verbs = ["get", "patch", "update"];
        resources.push(resource(
            &format!("{plural}/status"),
            &definition.kind,
            &verbs,
        ));
        if has_scale(known) {
            let mut scale = resource(&format!("{plural}/scale"), "Scale", &verbs);
            scale.insert("group".into(), "autoscaling".into());
            scale.insert("version".into(), "v1".into());
            resources.push(scale);
        }
        if plural == "pods" {
            resources.push(resource("pods/log", &definition.kind, &["get"]));
        }
    }
    resources.into_iter().map(Value::Object).collect()
}

/// `/kinds`: the definitions, for tables, short names and `explain`.
pub(super) fn kinds(served: &Served) -> Result<Value> {
    let definitions: Vec<_> = served.stored().map(|known| &known.definition).collect();
    serde_json::to_value(definitions).map_err(|error| Failure::internal(error.to_string()))
}

/// `/version`.
pub(super) fn version(version: &str) -> Value {
    let mut numbers = version.split('.');
    json!({
        "major": numbers.next().unwrap_or_default(),
        "minor": numbers.next().unwrap_or_default(),
        "gitVersion": format!("v{version}"),
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    })
}
