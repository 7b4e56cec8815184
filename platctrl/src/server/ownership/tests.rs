use serde_json::{Value, json};

use super::*;

fn wants(name: &str) -> Wants<'_> {
    Wants {
        name,
        api_version: "platctrl.dev/v1",
        now: Timestamp::UNIX_EPOCH,
    }
}

fn spec(fields: &Value) -> Value {
    json!({"spec": fields})
}

/// Applies to nothing.
fn first(name: &str, fields: &Value) -> (Value, Owners) {
    Owners::default()
        .apply(wants(name), &json!({}), &spec(fields), false)
        .unwrap()
}

fn owned_by<'o>(owners: &'o Owners, name: &str) -> Vec<&'o Fields> {
    let owners = owners.0.iter().filter(|owner| owner.name == name);
    owners.map(|owner| &owner.fields).collect()
}

#[test]
fn an_applier_has_what_it_says_and_what_it_says_no_more_goes() {
    let (live, owners) = first("ci", &json!({"replicas": 2, "env": {"A": "1", "B": "2"}}));
    let config = spec(&json!({"replicas": 3, "env": {"A": "1"}}));
    let (live, owners) = owners.apply(wants("ci"), &live, &config, false).unwrap();
    assert_eq!(live, config);
    assert_eq!(owned_by(&owners, "ci"), [&Fields::of(&config)]);
    // Nothing is new: nothing changes, not even a time.
    let mut later = wants("ci");
    later.now = Timestamp::from_second(7).unwrap();
    let again = owners.apply(later, &live, &config, false).unwrap();
    assert_eq!(again, (live, owners));
}

#[test]
fn a_field_of_somebody_else_is_a_conflict_unless_both_say_the_same() {
    let (live, owners) = first("ci", &json!({"replicas": 2, "env": {"A": "1"}}));
    let config = spec(&json!({"replicas": 5, "env": {"A": "1", "B": "1"}}));
    let refused = owners.apply(wants("ann"), &live, &config, false);
    let conflict = Conflict {
        owner: "ci".to_owned(),
        path: ".spec.replicas".to_owned(),
    };
    assert_eq!(refused, Err(Refused::Conflicts(vec![conflict])));

    let (live, owners) = owners.apply(wants("ann"), &live, &config, true).unwrap();
    assert_eq!(live, config);
    let rest = Fields::of(&spec(&json!({"env": {"A": "1"}})));
    assert_eq!(owned_by(&owners, "ci"), [&rest]);

    // Both say A: it stays when one of them stops.
    let config = spec(&json!({"replicas": 5}));
    let (live, owners) = owners.apply(wants("ann"), &live, &config, false).unwrap();
    assert_eq!(live, spec(&json!({"replicas": 5, "env": {"A": "1"}})));
    let config = spec(&json!({}));
    let (live, _) = owners.apply(wants("ci"), &live, &config, false).unwrap();
    assert_eq!(live, spec(&json!({"replicas": 5})));
}

#[test]
fn what_was_there_before_the_first_apply_is_somebody_elses() {
    let live = spec(&json!({"replicas": 2, "nodeSelector": "*"}));
    let config = spec(&json!({"replicas": 3}));
    let refused = Owners::default().apply(wants("ci"), &live, &config, false);
    let Err(Refused::Conflicts(conflicts)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(conflicts[0].owner, "before-first-apply");
    let same = spec(&json!({"replicas": 2}));
    let (result, owners) = Owners::default()
        .apply(wants("ci"), &live, &same, false)
        .unwrap();
    assert_eq!(result, live);
    // It does not remove what it has together with others.
    let (result, _) = owners
        .apply(wants("ci"), &live, &spec(&json!({})), false)
        .unwrap();
    assert_eq!(result, live);
}

#[test]
fn what_a_tool_applied_on_its_own_side_is_its_own() {
    let said = json!({"metadata": {"annotations": {}, "name": "a"}, "spec": {"replicas": 2, "env": {"A": "1"}}});
    let note = "kubectl.kubernetes.io/last-applied-configuration";
    let live = json!({
        "metadata": {"annotations": {note: said.to_string()}},
        "spec": {"replicas": 4, "env": {"A": "1"}, "paused": true},
    });
    let none = Owners::default();
    // Somebody scaled it since.
    let config = spec(&json!({"replicas": 2, "env": {"A": "2"}}));
    let refused = none.apply(wants("kubectl"), &live, &config, false);
    let Err(Refused::Conflicts(conflicts)) = refused else {
        panic!("{refused:?}");
    };
    let paths: Vec<_> = conflicts.iter().map(|it| it.path.as_str()).collect();
    assert_eq!(paths, [".spec.replicas"]);
    let config = spec(&json!({"env": {"B": "2"}}));
    let (result, _) = none.apply(wants("kubectl"), &live, &config, false).unwrap();
    assert_eq!(
        result["spec"],
        json!({"replicas": 4, "env": {"B": "2"}, "paused": true})
    );
}

#[test]
fn who_changes_a_field_by_other_means_has_it_then() {
    let (live, mut owners) = first("ci", &json!({"replicas": 2, "env": {"A": "1"}}));
    let scaled = spec(&json!({"replicas": 9, "env": {"A": "1"}, "paused": true}));
    owners.changed(wants("ann"), &live, &scaled);
    let now = Fields::of(&spec(&json!({"replicas": 9, "paused": true})));
    assert_eq!(owned_by(&owners, "ann"), [&now]);
    let config = spec(&json!({"replicas": 2, "env": {"A": "1"}}));
    let refused = owners.apply(wants("ci"), &scaled, &config, false);
    assert!(matches!(refused, Err(Refused::Conflicts(_))), "{refused:?}");
    // It is no conflict to leave the field to who has it now; it stays.
    let config = spec(&json!({"env": {"A": "1"}}));
    let (result, _) = owners.apply(wants("ci"), &scaled, &config, false).unwrap();
    assert_eq!(result, scaled);
    // What is gone is nobody's.
    owners.changed(wants("bob"), &scaled, &spec(&json!({"replicas": 9})));
    assert!(owned_by(&owners, "ci").is_empty());
    // Where nothing is remembered nothing begins to be.
    let mut none = Owners::default();
    none.changed(wants("ann"), &live, &scaled);
    assert!(none.is_empty());
}

#[test]
fn owners_are_written_as_they_are_read_and_never_without_end() {
    let (live, mut owners) = first("ci", &json!({"env": {"A": "1"}}));
    let mut before = live;
    for count in 0..3 * MOST {
        let mut after = before.clone();
        after["spec"]["env"][format!("V{count}")] = count.into();
        owners.changed(wants(&format!("m{count}")), &before, &after);
        before = after;
    }
    assert_eq!(owners.0.len(), MOST);
    assert_eq!(owned_by(&owners, "ci").len(), 1);
    assert_eq!(owned_by(&owners, ANCIENT).len(), 1);
    let json = owners.to_json(Side::Intent);
    assert_eq!(Owners::parse(&json), Some(owners.clone()));
    let one = spec(&json!({"own": 1}));
    let refused = owners.apply(wants("one-more"), &before, &one, false);
    assert_eq!(refused, Err(Refused::TooMany));
    for (wrong, why) in [
        (json!({}), "no list"),
        (json!([{"manager": "a"}]), "no fields"),
        (
            json!([{"manager": "", "operation": "Apply", "apiVersion": "v1", "fieldsV1": {}}]),
            "no name",
        ),
        (
            json!([{"manager": "a", "operation": "Own", "apiVersion": "v1", "fieldsV1": {}}]),
            "no operation",
        ),
        (json!(vec![json[0].clone(); MOST + 1]), "too many"),
    ] {
        assert_eq!(Owners::parse(&wrong), None, "{why}");
    }
    assert_eq!(Owners::parse(&json!([{}])), Some(Owners::default()));
}

#[test]
fn an_object_that_is_empty_is_there_until_nobody_says_so() {
    let (live, owners) = first("a", &json!({"ports": {"http": {}}}));
    let config = spec(&json!({"ports": {"http": {"port": 80}}}));
    let (live, owners) = owners.apply(wants("b"), &live, &config, false).unwrap();
    assert_eq!(live, config);
    let nothing = spec(&json!({}));
    let (live, owners) = owners.apply(wants("b"), &live, &nothing, false).unwrap();
    assert_eq!(live, spec(&json!({"ports": {"http": {}}})));
    let (live, _) = owners.apply(wants("a"), &live, &nothing, false).unwrap();
    assert_eq!(live, nothing);
}
