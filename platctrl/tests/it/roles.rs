//! Roles over the network: who may do what, and the ways by which nobody gets more than that.

use serde_json::{Value, json};

use crate::network::{Listening, Reply};
use crate::rig::eventually;

const ROOT: &str = "/apis/platctrl.dev/v1";
const MERGE: &str = "application/merge-patch+json";

fn controller(name: &str, app: &str) -> Value {
    let location = format!("artifact:sha256:{}", "ab".repeat(32));
    json!({
        "apiVersion": "platctrl.dev/v1", "kind": "ReplicationController",
        "metadata": {"name": name},
        "spec": {"replicas": 0, "nodeSelector": "*", "template": {"spec": {
            "app": app, "launchables": {"web": {"location": location}},
        }}},
    })
}

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "platctrl.dev/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

/// A server with two teams' apps in the namespace `team`, and a deployer of one of them.
struct Teams {
    server: Listening,
    admin: String,
    ann: String,
}

impl Teams {
    fn new() -> Self {
        let server = Listening::new();
        let admin = server.admin();
        let ann = server.token("ann", "bound");
        let teams = Self { server, admin, ann };
        let role =
            json!({"grants": "deployer", "namespaces": ["team"], "apps": ["hello", "hello-*"]});
        teams.made("roles", &object("Role", "deploy-hello", &role));
        let binding = json!({"role": "deploy-hello", "subjects": ["ann"]});
        teams.made("rolebindings", &object("RoleBinding", "ann", &binding));
        teams.made(
            "namespaces/team/replicationcontrollers",
            &controller("bank", "bank"),
        );
        eventually("rights", || {
            let seen = teams.ann("GET", "namespaces/team/pods", &Value::Null);
            (seen.code == 200).then_some(())
        });
        teams
    }

    fn made(&self, path: &str, body: &Value) {
        let reply = self.admin("POST", path, body);
        assert_eq!(reply.code, 201, "{reply:?}");
    }

    fn admin(&self, method: &str, path: &str, body: &Value) -> Reply {
        let path = format!("{ROOT}/{path}");
        self.server.send(
            &self.admin,
            method,
            &path,
            "application/json",
            &body.to_string(),
        )
    }

    fn ann(&self, method: &str, path: &str, body: &Value) -> Reply {
        self.ann_with(method, path, "application/json", &body.to_string())
    }

    fn ann_with(&self, method: &str, path: &str, kind: &str, body: &str) -> Reply {
        let path = match path.starts_with('/') {
            true => path.to_owned(),
            false => format!("{ROOT}/{path}"),
        };
        self.server.send(&self.ann, method, &path, kind, body)
    }

    /// Every way to make an object this one is refused, and it stays as it is.
    #[track_caller]
    fn cannot_become(&self, collection: &str, name: &str, wanted: &Value, operations: &Value) {
        let path = format!("{collection}/{name}");
        let before = self.admin("GET", &path, &Value::Null).json;
        let text = wanted.to_string();
        for (method, path, kind, body) in [
            ("PUT", path.clone(), "application/json", &text),
            ("PATCH", path.clone(), MERGE, &text),
            (
                "PATCH",
                path.clone(),
                "application/json-patch+json",
                &operations.to_string(),
            ),
            (
                "PATCH",
                path.clone(),
                "application/vnd.platctrl.apply+json",
                &text,
            ),
            (
                "PATCH",
                format!("{path}?fieldManager=x&force=true"),
                "application/apply-patch+yaml",
                &text,
            ),
        ] {
            let reply = self.ann_with(method, &path, kind, body);
            reply.is_forbidden(&format!("{method} {path} {kind}"));
        }
        assert_eq!(self.admin("GET", &path, &Value::Null).json, before);
    }
}

#[test]
fn a_deployer_deploys_their_apps_in_their_namespaces() {
    let teams = Teams::new();
    let team = "namespaces/team/replicationcontrollers";
    let hello = controller("hello", "hello");
    assert_eq!(teams.ann("POST", team, &hello).code, 201);
    let scale = json!({"spec": {"replicas": 0}});
    let path = format!("{team}/hello");
    assert_eq!(teams.ann("PUT", &format!("{path}/scale"), &scale).code, 200);
    let label = json!({"metadata": {"labels": {"a": "b"}}}).to_string();
    assert_eq!(teams.ann_with("PATCH", &path, MERGE, &label).code, 200);
    let other = controller("web", "hello-web");
    let applied = teams.ann_with(
        "PATCH",
        &format!("{team}/web?fieldManager=ci"),
        "application/apply-patch+yaml",
        &other.to_string(),
    );
    assert_eq!(applied.code, 201, "{applied:?}");
    let roll = json!({"from": "hello", "to": "web", "replicas": 0, "paused": true});
    let rolls = "namespaces/team/rollingupdates";
    let made = teams.ann("POST", rolls, &object("RollingUpdate", "web", &roll));
    assert_eq!(made.code, 201, "{made:?}");
    assert_eq!(
        teams
            .ann("DELETE", &format!("{rolls}/web"), &json!({}))
            .code,
        200
    );
    assert_eq!(teams.ann("DELETE", &path, &json!({})).code, 200);

    // They see what runs in their namespace, and upload what is to run.
    let log = teams.ann("GET", "namespaces/team/events", &Value::Null);
    assert_eq!(log.code, 200, "{log:?}");
    for path in ["/apis", "/kinds", "/openapi/v2", "/version", "/auth/self"] {
        assert_eq!(teams.ann("GET", path, &Value::Null).code, 200, "{path}");
    }
    let digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let path = format!("/artifacts/sha256/{digest}");
    let stored = teams.ann_with("PUT", &path, "application/octet-stream", "hello");
    assert!(matches!(stored.code, 200 | 201), "{stored:?}");
}

#[test]
fn a_deployer_gets_at_nothing_that_is_not_theirs() {
    let teams = Teams::new();
    let team = "namespaces/team/replicationcontrollers";
    let hello = controller("hello", "hello");
    assert_eq!(teams.ann("POST", team, &hello).code, 201);

    // Not by what would run.
    let mut as_user = controller("x", "hello");
    as_user["spec"]["template"]["spec"]["runAs"] = "bank".into();
    let mut from_elsewhere = controller("x", "hello");
    from_elsewhere["spec"]["template"]["spec"]["launchables"]["web"]["location"] =
        "https://evil.example/x.tar.gz".into();
    let mut owned = controller("x", "hello");
    owned["metadata"]["ownerReferences"] = json!([{"apiVersion": "platctrl.dev/v1", "kind": "RollingUpdate", "name": "r", "uid": "u", "controller": true}]);
    let mut adopted = controller("x", "hello");
    adopted["spec"]["template"]["metadata"]["labels"] = json!({"platctrl.dev/orphan-of": "bank"});
    for (wrong, field) in [
        (controller("x", "bank"), "spec.template.spec.app"),
        (as_user.clone(), "spec.template.spec.runAs"),
        (
            from_elsewhere,
            "spec.template.spec.launchables.web.location",
        ),
        (owned, "metadata.ownerReferences"),
        (adopted, "spec.template.metadata.labels"),
    ] {
        let reply = teams.ann("POST", team, &wrong);
        reply.is_forbidden(field);
        let causes = reply.json["details"]["causes"].to_string();
        assert!(causes.contains(field), "{field} is not in {causes}");
        let dry = teams.ann("POST", &format!("{team}?dryRun=All"), &wrong);
        dry.is_forbidden(field);
    }

    // Not by changing what is theirs into what is not, nor the other way round.
    let mut stolen = controller("hello", "bank");
    stolen["spec"]["replicas"] = 1.into();
    let app =
        |app: &str| json!([{"op": "replace", "path": "/spec/template/spec/app", "value": app}]);
    teams.cannot_become(team, "hello", &stolen, &app("bank"));
    teams.cannot_become(team, "bank", &controller("bank", "hello"), &app("hello"));
    let scale = json!({"spec": {"replicas": 0}});
    teams
        .ann("PUT", &format!("{team}/bank/scale"), &scale)
        .is_forbidden("scale");
    teams
        .ann("DELETE", &format!("{team}/bank"), &json!({}))
        .is_forbidden("delete");
    for (from, to) in [("bank", "hello"), ("hello", "bank"), ("hello", "later")] {
        let roll = json!({"from": from, "to": to, "replicas": 1});
        let roll = object("RollingUpdate", "steal", &roll);
        teams
            .ann("POST", "namespaces/team/rollingupdates", &roll)
            .is_forbidden("roll");
    }

    // Not in another namespace, whichever way it is named.
    teams
        .ann("POST", "namespaces/default/replicationcontrollers", &hello)
        .is_forbidden("default");
    teams
        .ann("POST", "replicationcontrollers", &hello)
        .is_forbidden("no namespace");
    let mut elsewhere = hello.clone();
    elsewhere["metadata"]["namespace"] = "team-b".into();
    teams
        .ann("POST", "replicationcontrollers", &elsewhere)
        .is_forbidden("in the object");
    let contradiction = teams.ann("POST", team, &elsewhere);
    assert_eq!(contradiction.code, 400, "{contradiction:?}");

    // Not through a status, and not by other kinds.
    let status = json!({"metadata": {"name": "hello"}, "status": {"replicas": 9}});
    for path in ["hello/status", "bank/status"] {
        let path = format!("{team}/{path}");
        teams.ann("PUT", &path, &status).is_forbidden("status");
        teams
            .ann_with("PATCH", &path, MERGE, &status.to_string())
            .is_forbidden("status");
    }
    let budget = json!({"podSelector": "app=bank", "minimumHealthy": 0});
    teams
        .ann(
            "POST",
            "namespaces/team/disruptionbudgets",
            &object("DisruptionBudget", "b", &budget),
        )
        .is_forbidden("budget");

    // Not by reading.
    let node = format!("nodes/{}", teams.server.rig.app);
    for path in [
        "pods",
        "replicationcontrollers",
        "replicationcontrollers?watch=1",
        "events",
        "namespaces/default/pods",
        "namespaces/default/events",
        "nodes",
        node.as_str(),
        "roles",
        "rolebindings",
        "failsafes",
        "/audit",
        "/auth/tokens",
        "/failsafe",
        "/store/backup",
    ] {
        teams.ann("GET", path, &Value::Null).is_forbidden(path);
    }
    for path in [
        "/failsafe/freeze",
        "/failsafe/thaw",
        "/failsafe/adopt",
        "/store/compact",
        "/auth/tokens",
    ] {
        teams.ann("POST", path, &json!({})).is_forbidden(path);
    }
    teams
        .ann_with("PATCH", &node, MERGE, r#"{"spec":{"drain":true}}"#)
        .is_forbidden("node");
}

#[test]
fn nobody_but_an_admin_gives_access_and_what_is_taken_away_ends_at_once() {
    let teams = Teams::new();
    let operator = teams.server.token("olga", "operator");
    let as_olga = |method: &str, path: &str, kind: &str, body: &Value| {
        let path = format!("{ROOT}/{path}");
        teams
            .server
            .send(&operator, method, &path, kind, &body.to_string())
    };
    let json_type = "application/json";
    let admin = json!({"role": "admin", "subjects": ["ann", "olga"]});
    let wider = json!({"grants": "deployer", "namespaces": ["*"], "apps": ["*"]});
    let to_admin = json!([{"op": "replace", "path": "/spec/role", "value": "admin"}]);
    for (kind, plural, name, spec) in [
        ("RoleBinding", "rolebindings", "more", &admin),
        ("RoleBinding", "rolebindings", "ann", &admin),
        ("Role", "roles", "more", &wider),
        ("Role", "roles", "deploy-hello", &wider),
    ] {
        let wanted = object(kind, name, spec);
        let path = format!("{plural}/{name}");
        let ask = |who: &str, method: &str, path: &str, media: &str, body: &Value| {
            let reply = match who {
                "olga" => as_olga(method, path, media, body),
                _ => teams.ann_with(method, path, media, &body.to_string()),
            };
            reply.is_forbidden(&format!("{who} {method} {path} {media}"));
        };
        for who in ["ann", "olga"] {
            ask(who, "POST", plural, json_type, &wanted);
            ask(who, "PUT", &path, json_type, &wanted);
            ask(who, "PUT", &format!("{path}/status"), json_type, &wanted);
            ask(who, "PATCH", &path, MERGE, &wanted);
            ask(
                who,
                "PATCH",
                &path,
                "application/json-patch+json",
                &to_admin,
            );
            ask(
                who,
                "PATCH",
                &path,
                "application/vnd.platctrl.apply+json",
                &wanted,
            );
            let forced = format!("{path}?fieldManager=x&force=1");
            ask(
                who,
                "PATCH",
                &forced,
                "application/apply-patch+yaml",
                &wanted,
            );
            ask(who, "DELETE", &path, json_type, &json!({}));
        }
    }
    let bindings = teams.admin("GET", "rolebindings", &Value::Null).json;
    assert_eq!(bindings["items"].as_array().unwrap().len(), 1);

    // Nobody is everybody, and no role is taken for another.
    let anybody = object(
        "RoleBinding",
        "all",
        &json!({"role": "admin", "subjects": ["*"]}),
    );
    assert_eq!(teams.admin("POST", "rolebindings", &anybody).code, 422);
    let admin = object("Role", "admin", &json!({"grants": "admin"}));
    assert_eq!(teams.admin("POST", "roles", &admin).code, 422);

    // A watch of somebody whose right is taken away ends.
    let path = format!("{ROOT}/namespaces/team/pods?watch=1");
    let mut watch = teams.server.open(&teams.ann, &path);
    teams.admin("DELETE", "rolebindings/ann", &json!({}));
    eventually("the end of a right", || {
        let seen = teams.ann("GET", "namespaces/team/pods", &Value::Null);
        (seen.code == 403).then_some(())
    });
    watch.ends();
}

#[test]
fn a_name_is_not_lent_and_a_secret_is_shown_in_one_place() {
    let teams = Teams::new();
    let path = format!("{ROOT}/namespaces/team/pods");
    let head = |more: &str| teams.server.exchange("GET", &path, more, "").code;
    let ann = format!("Authorization: Bearer {}\r\n", teams.ann);
    assert_eq!(head(&ann), 200);
    let admin = format!("Authorization: Bearer {}\r\n", teams.admin);
    assert_eq!(head(&format!("{admin}Impersonate-User: ann\r\n")), 403);
    assert_eq!(head(&format!("{ann}{admin}")), 401);
    assert_eq!(
        head(&format!(
            "{ann}X-Remote-User: admin\r\nX-HTTP-Method-Override: DELETE\r\n"
        )),
        200
    );
    let in_url = format!("{path}?access_token={}", teams.ann);
    assert_eq!(teams.server.exchange("GET", &in_url, "", "").code, 401);
    assert!(!teams.server.rig.log().contains(&teams.ann));
}

#[test]
fn who_asks_too_often_is_told_when_to_come_back_and_others_are_served() {
    let server = Listening::with(&["--max-rate", "1"]);
    let ann = server.token("ann", "viewer");
    let bob = server.token("bob", "viewer");
    let ask = |token: &str| server.send(token, "GET", "/version", "", "");
    // At once, so that a slow machine is not slow enough for all of them.
    let at_once = |many: usize, token: &str| -> Vec<Reply> {
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..many).map(|_| scope.spawn(|| ask(token))).collect();
            all.into_iter().map(|it| it.join().unwrap()).collect()
        })
    };
    let replies = at_once(40, &ann);
    let slower = replies.iter().find(|reply| reply.code == 429);
    let slower = slower.expect("a limit").head.to_lowercase();
    assert!(slower.contains("retry-after: "), "{slower}");
    assert_eq!(ask(&bob).code, 200);

    // Guessing is slower still.
    let replies = at_once(60, "ann.0000");
    assert!(replies.iter().all(|reply| matches!(reply.code, 401 | 429)));
    assert!(replies.iter().any(|reply| reply.code == 429));
}

#[test]
fn what_was_done_is_written_down_with_who_from_where_and_what_changed() {
    let teams = Teams::new();
    let team = "namespaces/team/replicationcontrollers";
    let mut hello = controller("hello", "hello");
    hello["spec"]["template"]["spec"]["launchables"]["web"]["env"] = json!({"KEY": "s3cret-value"});
    assert_eq!(teams.ann("POST", team, &hello).code, 201);
    let patch = json!({"spec": {"maxPerNode": 3, "template": {"spec": {"launchables": {"web": {"env": {"KEY": "s3cret-next"}}}}}}});
    let path = format!("{team}/hello");
    assert_eq!(
        teams
            .ann_with("PATCH", &path, MERGE, &patch.to_string())
            .code,
        200
    );
    // Neither what was refused, nor tried, nor changed nothing.
    teams
        .ann("DELETE", &format!("{team}/bank"), &json!({}))
        .is_forbidden("bank");
    assert_eq!(
        teams
            .ann("DELETE", &format!("{path}?dryRun=All"), &json!({}))
            .code,
        200
    );
    assert_eq!(
        teams
            .ann_with("PATCH", &path, MERGE, &patch.to_string())
            .code,
        200
    );

    let to = "replicationcontrollers/team/hello";
    let told = teams.server.rig.json(&["audit", "--to", to]);
    let told = told["items"].as_array().unwrap();
    let verbs: Vec<_> = told.iter().map(|it| it["verb"].as_str().unwrap()).collect();
    assert_eq!(verbs, ["create", "patch"], "{told:?}");
    assert_eq!(
        (&told[1]["by"], &told[1]["from"]),
        (&json!("ann"), &json!("127.0.0.1"))
    );
    let changes = told[1]["changes"].to_string();
    assert!(
        changes.contains("spec.maxPerNode: nothing → 3"),
        "{changes}"
    );
    assert!(
        changes.contains("env: changed") && !changes.contains("s3cret"),
        "{changes}"
    );
    assert!(!teams.server.rig.log().contains("s3cret"));

    let text = teams.server.rig.cli(&["audit"]).ok();
    for part in [
        "tokens/ann",
        "roles/deploy-hello",
        "rolebindings/ann",
        "local",
        "create",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let by = teams.server.rig.cli(&["audit", "--by", "ann"]).ok();
    assert!(by.contains(to) && !by.contains("tokens/"), "{by}");
    teams
        .server
        .rig
        .cli(&["audit", "--since", "soon"])
        .fails(2, &["--since"]);
}
