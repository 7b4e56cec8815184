//! What an object would run, and whether a deployer may have it run.
//!
//! A deployer's right is for what runs in the end: the app, its unix user, where its artifacts come
//! from. So the object before a change and the object after it must both be theirs, whichever way
//! the change came.

use std::collections::BTreeMap;

use platctrl_framework::model::{FieldError, GroupPlural, Resource};
use platctrl_kinds::{
    DaemonSet, Pod, PodSpec, ReplicationController, RoleSpec, RollingUpdate, fits_any,
    fits_location,
};
use serde::Deserialize;
use serde_json::Value;

/// Labels by which controllers take over pods of theirs that have lost their owner.
const OWNED_BY_LABEL: &str = "platctrl.dev/";

/// Kinds whose objects run apps, or decide which of them run.
pub(crate) fn runs_apps(kind: &GroupPlural) -> bool {
    [
        Pod::group_plural(),
        ReplicationController::group_plural(),
        DaemonSet::group_plural(),
        RollingUpdate::group_plural(),
    ]
    .contains(kind)
}

/// The pods of an object, and where their spec is in it.
fn pods(kind: &GroupPlural, object: &Value) -> Option<(PodSpec, &'static str)> {
    let (pointer, path) = match *kind == Pod::group_plural() {
        true => ("/spec", "spec"),
        false => ("/spec/template/spec", "spec.template.spec"),
    };
    let spec = PodSpec::deserialize(object.pointer(pointer)?).ok()?;
    Some((spec, path))
}

/// The replication controllers that a rolling update moves pods between.
pub(crate) fn moves_between(kind: &GroupPlural, object: &Value) -> Option<[String; 2]> {
    if *kind != RollingUpdate::group_plural() {
        return None;
    }
    let name = |field: &str| {
        let name = object.pointer(&format!("/spec/{field}"));
        name.and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    Some([name("from"), name("to")])
}

/// What in an object none of a deployer's roles allows to run. An object that cannot be read is
/// nobody's.
pub(crate) fn refused(roles: &[&RoleSpec], kind: &GroupPlural, object: &Value) -> Vec<FieldError> {
    let Some((spec, path)) = pods(kind, object) else {
        return vec![FieldError::new("spec", "what it would run cannot be read")];
    };
    let name = object.pointer("/metadata/name").and_then(Value::as_str);
    let name = name.unwrap_or_default();
    let app = spec.app.as_deref().unwrap_or(name);
    let for_app: Vec<_> = roles
        .iter()
        .copied()
        .filter(|role| fits_any(&role.apps, app))
        .collect();
    if for_app.is_empty() {
        let problem = format!("no role of yours is for the app `{app}` in this namespace");
        return vec![FieldError::new(format!("{path}.app"), problem)];
    }
    // One role has to allow all of it: two that each allow a half do not add up.
    let problems = for_app.iter().map(|role| beyond(role, name, &spec, path));
    problems.min_by_key(Vec::len).unwrap_or_default()
}

/// What a role for the app does not allow.
fn beyond(role: &RoleSpec, name: &str, spec: &PodSpec, path: &str) -> Vec<FieldError> {
    let mut problems = Vec::new();
    if !role.names.is_empty() && !fits_any(&role.names, name) {
        let problem = "no role of yours allows this name";
        problems.push(FieldError::new("metadata.name", problem));
    }
    if let Some(user) = &spec.run_as
        && !fits_any(&role.run_as, user)
    {
        let problem = format!(
            "no role of yours allows the user `{user}`: leave it out for the app's own user"
        );
        problems.push(FieldError::new(format!("{path}.runAs"), problem));
    }
    for (name, launchable) in &spec.launchables {
        if !fits_location(&role.locations, &launchable.location) {
            problems.push(FieldError::new(
                format!("{path}.launchables.{name}.location"),
                "no role of yours allows artifacts from there",
            ));
        }
    }
    for (secret, source) in &spec.secrets {
        if !fits_any(&role.secrets, &source.file) {
            problems.push(FieldError::new(
                format!("{path}.secrets.{secret}"),
                format!("no role of yours allows the secret file `{}`", source.file),
            ));
        }
    }
    problems
}

/// Metadata that only operators set: it would make an object count as somebody else's.
pub(crate) fn foreign_metadata(before: Option<&Value>, after: &Value) -> Vec<FieldError> {
    let mut problems = Vec::new();
    let at = |object: &Value, path: &str| object.pointer(path).cloned().unwrap_or(Value::Null);
    let of = |path: &str| {
        let before = before.map_or(Value::Null, |before| at(before, path));
        (before, at(after, path))
    };
    let is_none = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    let (old, new) = of("/metadata/ownerReferences");
    if old != new && !(is_none(&old) && is_none(&new)) {
        problems.push(FieldError::new(
            "metadata.ownerReferences",
            "is for controllers and operators to say",
        ));
    }
    for path in ["/metadata/labels", "/spec/template/metadata/labels"] {
        let (old, new) = of(path);
        let ours = |labels: &Value| -> BTreeMap<String, Value> {
            let labels = labels.as_object().into_iter().flatten();
            labels
                .filter(|(name, _)| name.starts_with(OWNED_BY_LABEL))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect()
        };
        if ours(&old) != ours(&new) {
            problems.push(FieldError::new(
                path.trim_start_matches('/').replace('/', "."),
                "labels that begin with `platctrl.dev/` are for controllers and operators to set",
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn role(more: &Value) -> RoleSpec {
        let mut role =
            json!({"grants": "deployer", "namespaces": ["*"], "apps": ["hello", "hello-*"]});
        for (name, value) in more.as_object().unwrap() {
            role[name] = value.clone();
        }
        serde_json::from_value(role).unwrap()
    }

    fn controller(app: Option<&str>, location: &str) -> Value {
        let mut spec = json!({"launchables": {"web": {"location": location}}});
        if let Some(app) = app {
            spec["app"] = app.into();
        }
        json!({"metadata": {"name": "hello"}, "spec": {"replicas": 1, "template": {"spec": spec}}})
    }

    fn fields(roles: &[RoleSpec], object: &Value) -> Vec<String> {
        fields_of(&ReplicationController::group_plural(), roles, object)
    }

    fn fields_of(kind: &GroupPlural, roles: &[RoleSpec], object: &Value) -> Vec<String> {
        let roles: Vec<_> = roles.iter().collect();
        let problems = refused(&roles, kind, object).into_iter();
        problems.map(|problem| problem.path).collect()
    }

    const OWN: &str = "artifact:sha256:ab";

    #[test]
    fn the_app_counts_by_what_it_will_be() {
        let roles = [role(&json!({}))];
        assert!(fields(&roles, &controller(Some("hello-web"), OWN)).is_empty());
        // Without a name of its own it is called as the object is.
        assert!(fields(&roles, &controller(None, OWN)).is_empty());
        for app in ["bank", "hell", "hellos", ""] {
            let wrong = fields(&roles, &controller(Some(app), OWN));
            assert_eq!(wrong, ["spec.template.spec.app"], "{app}");
        }
        let pods = Pod::group_plural();
        let mut pod =
            json!({"metadata": {"name": "bank"}, "spec": {"nodeName": "web1", "launchables": {}}});
        assert_eq!(fields_of(&pods, &roles, &pod), ["spec.app"]);
        // What a pod has no use for does not speak for it.
        pod["spec"]["template"] = controller(Some("hello"), OWN)["spec"]["template"].clone();
        assert_eq!(fields_of(&pods, &roles, &pod), ["spec.app"]);
        let broken = json!({"spec": {"template": {"spec": {"launchables": 1}}}});
        assert_eq!(fields(&roles, &broken), ["spec"]);
        let named = [role(&json!({"names": ["hello-*"]}))];
        assert_eq!(
            fields(&named, &controller(Some("hello"), OWN)),
            ["metadata.name"]
        );
    }

    #[test]
    fn a_secret_that_no_role_names_is_refused() {
        let mut object = controller(Some("hello"), OWN);
        object["spec"]["template"]["spec"]["secrets"] =
            json!({"DB": {"file": "hello-db"}, "KEY": {"file": "bank-key"}});
        let (db, key) = (
            "spec.template.spec.secrets.DB",
            "spec.template.spec.secrets.KEY",
        );
        assert_eq!(fields(&[role(&json!({}))], &object), [db, key]);
        let own = [role(&json!({"secrets": ["hello-*"]}))];
        assert_eq!(fields(&own, &object), [key]);
        let all = [role(&json!({"secrets": ["*"]}))];
        assert!(fields(&all, &object).is_empty());
    }

    #[test]
    fn a_user_or_a_place_that_no_role_names_is_refused() {
        let mut object = controller(Some("hello"), OWN);
        object["spec"]["template"]["spec"]["runAs"] = "bank".into();
        let roles = [role(&json!({"runAs": ["web"]}))];
        assert_eq!(fields(&roles, &object), ["spec.template.spec.runAs"]);
        object["spec"]["template"]["spec"]["runAs"] = "web".into();
        assert!(fields(&roles, &object).is_empty());

        let there = "https://artifacts.example/hello/";
        let roles = [role(&json!({"locations": [format!("{there}*")]}))];
        assert!(
            fields(
                &roles,
                &controller(Some("hello"), &format!("{there}1.tar.gz"))
            )
            .is_empty()
        );
        for elsewhere in [
            OWN,
            "https://artifacts.example/bank/1.tar.gz",
            "https://artifacts.example/hello/../bank/1.tar.gz",
            "https://artifacts.example/hello/%2e%2E/bank/1.tar.gz",
            "https://artifacts.example/hello/%2e./bank/1.tar.gz",
            "https://artifacts.example/hello/..%2fbank/1.tar.gz",
            "https://artifacts.example/hello/..\\bank/1.tar.gz",
            "file:/etc/shadow",
        ] {
            let wrong = fields(&roles, &controller(Some("hello"), elsewhere));
            let field = "spec.template.spec.launchables.web.location";
            assert_eq!(wrong, [field], "{elsewhere}");
        }
    }

    #[test]
    fn halves_of_two_roles_do_not_add_up() {
        let roles = [
            role(&json!({"apps": ["hello"]})),
            role(&json!({"apps": ["bank"], "runAs": ["bank"]})),
        ];
        let mut object = controller(Some("hello"), OWN);
        object["spec"]["template"]["spec"]["runAs"] = "bank".into();
        assert_eq!(fields(&roles, &object), ["spec.template.spec.runAs"]);
    }

    #[test]
    fn an_object_cannot_be_made_to_count_as_somebody_elses() {
        let plain = controller(Some("hello"), OWN);
        assert!(foreign_metadata(None, &plain).is_empty());
        let mut owned = plain.clone();
        owned["metadata"]["ownerReferences"] = json!([{"uid": "x"}]);
        let wrong = foreign_metadata(Some(&plain), &owned);
        assert_eq!(wrong[0].path, "metadata.ownerReferences");
        // What a controller wrote stays.
        assert!(foreign_metadata(Some(&owned), &owned).is_empty());
        assert_eq!(foreign_metadata(Some(&owned), &plain).len(), 1);
        let mut adopted = plain.clone();
        adopted["spec"]["template"]["metadata"]["labels"] =
            json!({"app": "hello", "platctrl.dev/orphan-of": "bank"});
        let wrong = foreign_metadata(Some(&plain), &adopted);
        assert_eq!(wrong[0].path, "spec.template.metadata.labels");
    }
}
