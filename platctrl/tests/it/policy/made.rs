//! How rights are made, brought in line, renewed and taken away, and who is refused.

use std::fs;

use super::{Place, ROLES};
use crate::rig::Rig;

/// Making rights again, changed by hand, renewed and taken away.
fn comes_and_goes(
    place: &Place,
    spoil: impl FnOnce(&str, &str),
    works: impl Fn(&str, &str) -> bool,
) {
    let rig = &place.rig;
    let app = rig.app.clone();
    let role = ["--role", "agent", "--node", "web1"];
    let with = |more: &[&str]| place.policy(&[&role[..], more].concat());
    let first = rig.path("first");
    let first = first.to_str().unwrap();
    let said = with(&["--apply", "--credential", first]).ok();
    assert!(said.contains("made"), "{said}");
    let user = format!("platctrl-agent-web1@{app}");
    let secret = |file: &str| fs::read_to_string(file).unwrap().trim_end().to_owned();
    assert!(works(&user, &secret(first)));

    assert_eq!(with(&["--apply"]).ok(), "nothing to change\n");
    // Another node shares what all agents may.
    let other = rig.path("other");
    let other = other.to_str().unwrap();
    let more = [
        "--role",
        "agent",
        "--node",
        "web2",
        "--apply",
        "--credential",
        other,
    ];
    let said = place.policy(&more).ok();
    let shared = |line: &str| line.contains(" platctrl-agents") && !line.starts_with("user");
    assert!(!said.lines().any(shared), "{said}");

    // What somebody changed by hand is brought in line.
    spoil(&user, &app);
    let said = with(&["--apply"]).ok();
    assert_eq!(
        said.lines().count(),
        if place.consul { 1 } else { 2 },
        "{said}"
    );
    assert_eq!(with(&["--apply"]).ok(), "nothing to change\n");

    // A file is never written over.
    with(&["--apply", "--renew", "--credential", other]).fails(1, &["exists already"]);
    assert!(works(&user, &secret(first)) || place.consul);
    let said = with(&["--apply", "--renew", "--credential", "-"]);
    let renewed = said.ok();
    let renewed = renewed.trim_end();
    assert!(!renewed.contains(char::is_whitespace), "{renewed:?}");
    assert!(works(&user, renewed) && !works(&user, &secret(first)));

    let said = with(&["--revoke"]).ok();
    assert!(said.contains("removed"), "{said}");
    assert!(!works(&user, renewed));
    assert!(works(&format!("platctrl-agent-web2@{app}"), &secret(other)));
    assert_eq!(with(&["--revoke"]).ok(), "nothing to change\n");
}

#[test]
fn rights_in_etcd_are_made_once_brought_in_line_renewed_and_revoked() {
    let place = Place::etcd("etcd-next");
    place
        .policy(&["--role", "agent", "--node", "web1", "--apply"])
        .fails(2, &["--credential"]);
    let spoil = |role: &str, app: &str| {
        let own = format!("{app}/o/intent/platctrl.dev/nodes/web1");
        place
            .server
            .etcdctl(&["role", "revoke-permission", role, &own])
            .unwrap();
        let everything = [
            "role",
            "grant-permission",
            "--prefix=true",
            role,
            "readwrite",
            "",
        ];
        place.server.etcdctl(&everything).unwrap();
    };
    let works = |user: &str, password: &str| {
        let anchor = format!("{}/x/anchor", place.rig.app);
        place
            .server
            .etcdctl_as(&format!("{user}:{password}"), &["get", &anchor])
            .is_ok()
    };
    comes_and_goes(&place, spoil, works);
    // A user that shows a certificate has no password, and needs no file.
    let said = place.policy(&[
        "--role",
        "server",
        "--apply",
        "--certificate",
        "--user",
        "api.example",
    ]);
    assert!(
        said.ok()
            .contains("user api.example made, which shows a certificate")
    );
    let roles = place
        .server
        .etcdctl(&["user", "get", "api.example"])
        .unwrap();
    assert!(
        roles.contains(&format!("platctrl-server@{}", place.rig.app)),
        "{roles}"
    );
}

#[test]
fn rights_in_consul_are_made_once_brought_in_line_renewed_and_revoked() {
    let place = Place::consul();
    let ask = |method: &str, path: &str, body: &str| {
        let token = fs::read_to_string(place.server.hush()).unwrap();
        place.server.ask(&token, method, path, body).unwrap()
    };
    let spoil = |_: &str, app: &str| {
        let (_, listed) = ask("GET", "/v1/acl/policies", "");
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
        let begin = format!("platctrl-agent-web1_{app}-");
        let named = |it: &&serde_json::Value| it["Name"].as_str().unwrap().starts_with(&begin);
        let found = listed.as_array().unwrap().iter().find(named).unwrap();
        let wide = serde_json::json!({
            "ID": found["ID"], "Name": found["Name"],
            "Rules": "key_prefix \"\" { policy = \"write\" }",
        });
        let path = format!("/v1/acl/policy/{}", found["ID"].as_str().unwrap());
        assert_eq!(ask("PUT", &path, &wide.to_string()).0, 200);
    };
    let works = |_: &str, token: &str| {
        let path = "/v1/acl/token/self";
        place.server.ask(token, "GET", path, "").unwrap().0 == 200
    };
    comes_and_goes(&place, spoil, works);
}

#[test]
fn what_is_printed_is_what_a_person_runs() {
    // etcdctl takes the lines as they are.
    let place = Place::etcd("etcd-3.5");
    for role in ROLES {
        let said = place
            .rig
            .cli(&[&["store", "policy", &place.url, "--certificate"][..], role].concat());
        for line in said.ok().lines().filter(|line| !line.starts_with('#')) {
            let words: Vec<&str> = line.split(' ').collect();
            assert_eq!(words[0], "etcdctl");
            place.server.etcdctl(&words[1..]).unwrap();
        }
        // Then nothing is left to do.
        let more = ["--apply", "--certificate"];
        assert_eq!(
            place.policy(&[role, &more].concat()).ok(),
            "nothing to change\n"
        );
    }
    // Consul's program runs in a shell, because of the rules.
    let place = Place::consul();
    for role in ROLES {
        let said = place
            .rig
            .cli(&[&["store", "policy", &place.url][..], role].concat());
        place.server.consul_shell(&said.ok());
        assert_eq!(
            place.policy(&[role, &["--apply"]].concat()).ok(),
            "nothing to change\n"
        );
    }
}

#[test]
fn wrong_questions_about_rights_are_refused_before_anything_is_done() {
    let rig = Rig::new();
    let etcd = "etcd://127.0.0.1:1/fleet";
    for (arguments, said) in [
        (
            &["embedded:/nowhere", "--role", "server"][..],
            "has no users",
        ),
        (&[etcd, "--role", "agent"], "--node"),
        (&[etcd, "--role", "agent", "--node", "Web1"], "node name"),
        (
            &[etcd, "--role", "agent", "--node", "controllers"],
            "another name",
        ),
        (&[etcd, "--role", "server", "--user", "root"], "`root`"),
        (&[etcd, "--role", "server", "--user", "a b"], "`a b`"),
        (&[etcd, "--role", "server", "--credential", "f"], "--apply"),
        (&[etcd, "--role", "nobody"], "nobody"),
        (
            &[
                "consul://127.0.0.1:1/fleet",
                "--role",
                "server",
                "--certificate",
            ],
            "tokens",
        ),
    ] {
        rig.cli(&[&["store", "policy"], arguments].concat())
            .fails(2, &[said]);
    }
    rig.cli(&[
        "store",
        "policy",
        etcd,
        "--role",
        "server",
        "--apply",
        "--certificate",
    ])
    .fails(3, &["127.0.0.1:1"]);
}

#[test]
fn who_may_not_give_rights_is_told_who_may() {
    for place in [Place::etcd("etcd-3.5"), Place::consul()] {
        let (user, file) = place.credential(ROLES[2], "server");
        let flags = place.flags(&user, &file);
        let mut args = vec!["store"];
        args.extend(flags.iter().map(String::as_str));
        args.extend(["policy", &place.url, "--role", "server", "--apply"]);
        let said = place.rig.cli(&args).fails(4, &["hint:"]);
        assert!(
            said.err.contains("root") && said.err.contains("acl"),
            "{said:?}"
        );
    }
}
