//! Every family of keys by every role: what may be read and written, and what is denied.

use std::fs;
use std::time::Duration;

use futures::StreamExt as _;
use platctrl_framework::environment::Environment;
use platctrl_framework::model::identity;
use platctrl_framework::store::{
    Key, ListRequest, Prefix, Store, StoreError, Transaction, WatchEvent,
};
use platctrl_store_consul::{ConsulStore, Options as ConsulOptions};

use super::{Place, ROLES, key, run};

/// Every family of keys, and what the agent of `web1`, the controllers and the server may do:
/// `w` read and write, `r` read, `-` nothing.
const FAMILIES: &str = "
    o/.anchor                                                    - w w
    o/intent/platctrl.dev/pods/.anchor                           - w w
    o/intent/platctrl.dev/pods/web1/.anchor                      r w w
    o/intent/platctrl.dev/pods/web1/default/a                    r w w
    o/intent/platctrl.dev/pods/web10/.anchor                     - w w
    o/intent/platctrl.dev/pods/web10/default/a                   - w w
    o/intent/platctrl.dev/pods/web/default/a                     - w w
    o/intent/platctrl.dev/nodes/web1                             r w w
    o/intent/platctrl.dev/nodes/web10                            - w w
    o/intent/platctrl.dev/failsafes/web1                         r w w
    o/intent/platctrl.dev/failsafes/web10                        - w w
    o/intent/platctrl.dev/failsafes/controllers                  - w w
    o/intent/platctrl.dev/replicationcontrollers/default/a       - w w
    o/intent/platctrl.dev/roles/deploy-hello                     r w w
    o/intent/platctrl.dev/rolebindings/ann                       r w w
    o/intent/example.dev/widgets/default/a                       - w w
    o/reality/platctrl.dev/pods/web1/.anchor                     w w w
    o/reality/platctrl.dev/pods/web1/default/a                   w w w
    o/reality/platctrl.dev/pods/web10/default/a                  - w w
    o/reality/platctrl.dev/nodes/web1                            w w w
    o/reality/platctrl.dev/nodes/web10                           - w w
    o/reality/platctrl.dev/failsafes/web1                        w w w
    o/reality/platctrl.dev/failsafes/web10                       - w w
    o/reality/platctrl.dev/replicationcontrollers/default/a      - w w
    o/reality/platctrl.dev/roles/deploy-hello                    - w w
    o/part/platctrl.dev/nodes/web1/dns                           r w w
    o/part/platctrl.dev/nodes/web10/dns                          - w w
    o/part/platctrl.dev/failsafes/web1/x                         r w w
    o/part/platctrl.dev/pods/web10/default/a/dns                 - w w
    o/grant/platctrl.dev/pods/web1/default/a                     r w w
    o/grant/platctrl.dev/pods/web10/default/a                    - w w
    o/ledger/platctrl.dev/replicationcontrollers/default/a       - w w
    x/anchor                                                     r r w
    x/format                                                     r r w
    x/chain/7                                                    r w w
    x/chain/head                                                 r w w
    x/control/freeze                                             r r w
    x/control/expected                                           r r w
    x/lease/controllers                                          - w w
    x/beat/web1                                                  w r w
    x/beat/web10                                                 - r w
    x/event/web1/000                                             w - w
    x/event/web10/000                                            - - w
    x/event/controllers/000                                      - w w
    x/event/server/000                                           - - w
    x/auth/tokens/a                                              - - w
    x/auth/nodes/web1                                            - - w
    x/kinds/platctrl.dev/pods                                    - w w
    x/copy                                                       - - w
    x/name/0af                                                   - - w
";

/// Ranges that only the server may read whole.
const WIDE: [&str; 6] = [
    "",
    "x/",
    "x/event/",
    "o/intent/platctrl.dev/pods/",
    "o/reality/platctrl.dev/pods/",
    "o/reality/platctrl.dev/nodes/",
];

fn families() -> Vec<(Key, [char; 3])> {
    let lines = FAMILIES
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let rights = [1, 2, 3].map(|at| words[at].chars().next().unwrap());
            (key(words[0]), rights)
        })
        .collect()
}

/// It was allowed, or denied, as it should be; nothing else may have come of it.
#[track_caller]
fn judged<T: std::fmt::Debug>(outcome: &Result<T, StoreError>, allowed: bool, what: &str) {
    match (outcome, allowed) {
        (Ok(_), true) | (Err(StoreError::Denied { .. }), false) => {}
        _ => panic!(
            "{what} should be {}: {outcome:?}",
            if allowed { "allowed" } else { "denied" }
        ),
    }
}

/// Everything that a role's credential may and may not do with one key.
async fn one_key(store: &dyn Store, who: &str, key: &Key, right: char, own: &Key) {
    let (reads, writes) = (right != '-', right == 'w');
    let what = |verb: &str| format!("{who}: {verb} {key}");
    let got = store.get(std::slice::from_ref(key)).await;
    judged(&got, reads, &what("get"));
    let alone = ListRequest::new(Prefix::only(key));
    judged(&store.list(&alone).await, reads, &what("list"));
    let only_read = Transaction::new().require_absent(key.clone());
    match store.commit(only_read).await {
        Err(StoreError::Conflict { .. }) if reads => {}
        outcome => judged(&outcome.map(|_| ()), false, &what("compare")),
    }
    let held = store.get(std::slice::from_ref(key)).await;
    let held = held.ok().and_then(|mut held| held.records.remove(0));
    let value = held.map_or_else(|| "{}".into(), |held| held.value);
    let put = Transaction::new().put(key.clone(), value.clone());
    judged(&store.commit(put).await, writes, &what("put"));
    if writes && key.as_str() == "x/anchor" {
        return;
    }
    let delete = Transaction::new().delete(key.clone());
    judged(&store.commit(delete).await, writes, &what("delete"));
    if writes {
        let again = Transaction::new().put(key.clone(), value);
        judged(&store.commit(again).await, true, &what("put again"));
    } else if key != own {
        // What is allowed does not carry what is not.
        let mixed = Transaction::new()
            .put(own.clone(), "mixed")
            .put(key.clone(), "mixed");
        judged(
            &store.commit(mixed).await,
            false,
            &what("put, beside an own key,"),
        );
        let held = store
            .get(std::slice::from_ref(own))
            .await
            .unwrap()
            .records
            .remove(0);
        assert_ne!(held.unwrap().value, "mixed", "half a transaction");
    }
}

/// Opens a watch and says whether it is allowed: a change arrives, or a denial.
async fn watches(store: &dyn Store, admin: &dyn Store, prefix: Prefix, below: &Key) -> bool {
    let after = admin
        .commit(Transaction::new().put(key("x/auth/clock"), "1"))
        .await
        .unwrap();
    let mut stream = store.watch(prefix, after);
    let held = admin
        .get(std::slice::from_ref(below))
        .await
        .unwrap()
        .records
        .remove(0)
        .unwrap();
    let put = Transaction::new().put(below.clone(), held.value);
    admin.commit(put).await.unwrap();
    let heard = async {
        loop {
            match stream.next().await {
                Some(Ok(WatchEvent::Changes { .. })) => return true,
                Some(Ok(WatchEvent::Progress(_))) => {}
                Some(Err(StoreError::Denied { .. })) => return false,
                // It is asked for again, as a cache does.
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), heard)
        .await
        .expect("a change or a denial")
}

async fn matrix(place: &Place) {
    let root = place.rig.app.clone();
    let admin = place.open_all(&root).await;
    identity::initialise(&*admin, &Environment::system())
        .await
        .unwrap();
    let families = families();
    for (key, _) in &families {
        if !key.as_str().starts_with("x/anchor") && !key.as_str().starts_with("x/format") {
            admin
                .commit(Transaction::new().put(key.clone(), "{}"))
                .await
                .unwrap();
        }
    }
    let own = [
        key("x/beat/web1"),
        key("x/lease/controllers"),
        key("x/copy"),
    ];
    let neighbour = format!("{root}0");
    let other = place.open_all(&neighbour).await;
    identity::initialise(&*other, &Environment::system())
        .await
        .unwrap();
    for (at, role) in ROLES.iter().enumerate() {
        let who = role[1];
        let (user, file) = place.credential(role, who);
        let store = place.open(&root, &user, &file).await;
        for (key, rights) in &families {
            one_key(&*store, who, key, rights[at], &own[at]).await;
        }
        for wide in WIDE {
            let allowed = who == "server" || (who == "controllers" && wide.starts_with("o/"));
            let request = ListRequest::new(Prefix::new(wide).unwrap());
            judged(
                &store.list(&request).await,
                allowed,
                &format!("{who}: list {wide:?}"),
            );
        }
        for prefix in [
            "o/intent/platctrl.dev/pods/web1/",
            "o/intent/platctrl.dev/pods/web10/",
        ] {
            let allowed = who != "agent" || prefix.ends_with("web1/");
            let below = key(&format!("{prefix}default/a"));
            let heard = watches(&*store, &*admin, Prefix::new(prefix).unwrap(), &below).await;
            assert_eq!(heard, allowed, "{who}: watch {prefix}");
        }
        if who != "server" {
            let leased = store.grant_lease(Duration::from_secs(20)).await;
            // To etcd a lease without keys is nobody's; on Consul it is a right.
            let allowed = who == "controllers" || !place.consul;
            judged(&leased.map(|_| ()), allowed, &format!("{who}: a lease"));
        }
        // Another root is as foreign as can be, also one whose name only begins alike.
        if place.consul {
            let mut options = ConsulOptions::default();
            options.token_file = Some(file.clone());
            let address = format!("consul://{}/{neighbour}", place.server.at)
                .parse()
                .unwrap();
            let opened = ConsulStore::open(&address, options, Environment::system()).await;
            let error = opened.expect_err("another root");
            assert!(
                matches!(error.store_error(), Some(StoreError::Denied { .. })),
                "{error}"
            );
        } else {
            let elsewhere = place.open(&neighbour, &user, &file).await;
            judged(
                &elsewhere.get(&[key("x/anchor")]).await,
                false,
                "another root",
            );
            let put = Transaction::new().put(key("x/beat/web1"), "{}");
            judged(&elsewhere.commit(put).await, false, "another root");
        }
    }
}

/// The rights of access control itself, and what lies beside the keys, in etcd.
fn beside_the_keys_of_etcd(place: &Place, repaired: bool) {
    let password = fs::read_to_string(place.rig.path("agent")).unwrap();
    let app = &place.rig.app;
    let user = format!("platctrl-agent-web1@{app}:{}", password.trim_end());
    let server = &place.server;
    let mut denied = vec![
        vec!["user", "add", "mallory:x"],
        vec!["role", "grant-permission", "root", "readwrite", "a"],
        vec!["auth", "disable"],
        vec!["get", "--prefix", ""],
        vec!["del", "--prefix", app],
    ];
    if repaired {
        denied.push(vec!["compact", "1"]);
    }
    for command in denied {
        let said = server
            .etcdctl_as(&user, &command)
            .expect_err(&format!("{command:?}"));
        assert!(said.contains("permission denied"), "{command:?}: {said}");
    }
    for command in [&["lease", "list"][..], &["lease", "grant", "5"]] {
        let nobody = server.etcdctl_as("", command);
        assert_eq!(nobody.is_err(), repaired, "{command:?}: {nobody:?}");
    }
}

#[test]
fn credentials_do_what_their_role_needs_and_nothing_else_on_etcd() {
    let place = Place::etcd("etcd-next");
    run(matrix(&place));
    beside_the_keys_of_etcd(&place, true);
    // This server confines its users, so nothing is to be warned of.
    let said = place.policy(&["--role", "server", "--apply"]);
    assert!(!said.err.contains("warning"), "{said:?}");
}

#[test]
fn credentials_do_what_their_role_needs_and_nothing_else_on_an_older_etcd() {
    let place = Place::etcd("etcd-3.5");
    run(matrix(&place));
    beside_the_keys_of_etcd(&place, false);
    // But what is known of its holes is said.
    let said = place.policy(&["--role", "server", "--apply"]);
    assert!(said.err.contains("3.5.30"), "{said:?}");
}

#[test]
fn credentials_do_what_their_role_needs_and_nothing_else_on_consul() {
    let place = Place::consul();
    run(matrix(&place));
    // The store's own keys beside them: whoever writes a lease's key ends the lease.
    let token = fs::read_to_string(place.rig.path("agent")).unwrap();
    let (token, app) = (token.trim_end(), &place.rig.app);
    for (method, path) in [
        ("PUT", format!("/v1/kv/{app}/x/gen1/lease-00000001")),
        ("DELETE", format!("/v1/kv/{app}/x/gen1/lease-00000001")),
        ("PUT", format!("/v1/kv/{app}/x/gen1/zz")),
        (
            "PUT",
            format!("/v1/kv/{app}/x/gen/00/o/intent/platctrl.dev/pods/web10/-"),
        ),
        (
            "PUT",
            format!("/v1/kv/{app}/o/intent/platctrl.dev/pods/web1/.gone"),
        ),
        ("DELETE", format!("/v1/kv/{app}/?recurse")),
        ("DELETE", format!("/v1/kv/{app}/o/?recurse")),
        ("PUT", "/v1/session/create".to_owned()),
        ("PUT", "/v1/acl/token".to_owned()),
        ("PUT", "/v1/acl/policy".to_owned()),
        ("GET", "/v1/acl/tokens".to_owned()),
        ("PUT", "/v1/agent/leave".to_owned()),
    ] {
        let (status, body) = place.server.ask(token, method, &path, "{}").unwrap();
        assert_eq!(status, 403, "{method} {path}: {body}");
    }
}
