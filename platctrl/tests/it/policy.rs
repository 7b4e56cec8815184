//! Rights in the store, made by `store policy`: each program's credential reads and writes what
//! it needs, and every other access is denied. Real servers, real programs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use platctrl_framework::environment::Environment;
use platctrl_framework::model::identity;
use platctrl_framework::store::{
    Key, ListRequest, Prefix, Store, StoreError, Transaction, WatchEvent,
};
use platctrl_store_consul::{ConsulStore, Options as ConsulOptions};
use platctrl_store_etcd::{Credentials, EtcdStore, Options as EtcdOptions};

use crate::fleet::{self, SIGKILL};
use crate::rig::{Rig, eventually, is_alive};
use crate::servers::Server;

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
    o/intent/example.dev/widgets/default/a                       - w w
    o/reality/platctrl.dev/pods/web1/.anchor                     w w w
    o/reality/platctrl.dev/pods/web1/default/a                   w w w
    o/reality/platctrl.dev/pods/web10/default/a                  - w w
    o/reality/platctrl.dev/nodes/web1                            w w w
    o/reality/platctrl.dev/nodes/web10                           - w w
    o/reality/platctrl.dev/failsafes/web1                        w w w
    o/reality/platctrl.dev/failsafes/web10                       - w w
    o/reality/platctrl.dev/replicationcontrollers/default/a      - w w
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
    x/kinds/platctrl.dev/pods                                    - w w
    x/copy                                                       - - w
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

const ROLES: [&[&str]; 3] = [
    &["--role", "agent", "--node", "web1"],
    &["--role", "controllers"],
    &["--role", "server"],
];

/// A store with access control, and the means to work with it.
pub(crate) struct Place {
    pub(crate) rig: Rig,
    pub(crate) server: Server,
    pub(crate) url: String,
    pub(crate) consul: bool,
}

impl Place {
    pub(crate) fn etcd(release: &str) -> Self {
        let (rig, server) = (Rig::new(), Server::etcd(release));
        let url = format!("etcd://{}/{}", server.at, rig.app);
        Self {
            rig,
            server,
            url,
            consul: false,
        }
    }

    pub(crate) fn consul() -> Self {
        let (rig, server) = (Rig::new(), Server::consul());
        let url = format!("consul://{}/{}", server.at, rig.app);
        Self {
            rig,
            server,
            url,
            consul: true,
        }
    }

    /// Flags that show a credential.
    fn flags(&self, user: &str, file: &Path) -> Vec<String> {
        let file = file.to_str().unwrap().to_owned();
        match self.consul {
            true => vec!["--store-token-file".to_owned(), file],
            false => vec![
                "--store-user".to_owned(),
                user.to_owned(),
                "--store-password-file".to_owned(),
                file,
            ],
        }
    }

    /// `platctrl store`, with every right.
    pub(crate) fn store(&self, arguments: &[&str]) -> crate::rig::Said {
        let flags = self.flags("root", &self.server.hush());
        let mut all = vec!["store"];
        all.extend(flags.iter().map(String::as_str));
        all.extend(arguments);
        self.rig.cli(&all)
    }

    fn policy(&self, arguments: &[&str]) -> crate::rig::Said {
        self.store(&[&["policy", &self.url][..], arguments].concat())
    }

    /// Makes a role's credential: its user, and the file with its secret.
    fn credential(&self, role: &[&str], name: &str) -> (String, PathBuf) {
        let file = self.rig.path(name);
        let more = [
            "--apply",
            "--credential",
            file.to_str().unwrap(),
            "-o",
            "json",
        ];
        let said = self.policy(&[role, &more].concat()).ok();
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert!(said.get("credential").is_none(), "{said}");
        let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let user = said["user"].as_str().unwrap_or_default().to_owned();
        (user, file)
    }

    /// The store below a root, with a credential.
    async fn open(&self, root: &str, user: &str, file: &Path) -> Arc<dyn Store> {
        if self.consul {
            let mut options = ConsulOptions::default();
            options.token_file = Some(file.to_owned());
            let address = format!("consul://{}/{root}", self.server.at)
                .parse()
                .unwrap();
            let opened = ConsulStore::open(&address, options, Environment::system()).await;
            return Arc::new(opened.unwrap());
        }
        let mut options = EtcdOptions::default();
        let password = fs::read_to_string(file).unwrap();
        options.credentials = Some(Credentials::new(user, password.trim_end()));
        let location = format!("etcd://{}/{root}", self.server.at).parse().unwrap();
        Arc::new(EtcdStore::connect(location, options).await.unwrap())
    }

    async fn open_all(&self, root: &str) -> Arc<dyn Store> {
        self.open(root, "root", &self.server.hush()).await
    }
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

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

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.unwrap().block_on(future)
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

impl Place {
    /// Starts one of platctrl's programs with a credential of its own.
    pub(crate) fn start(
        &self,
        role: &str,
        credential: &(String, PathBuf),
        more: &[&str],
    ) -> fleet::Process {
        let flags = self.flags(&credential.0, &credential.1);
        let mut args: Vec<&str> = flags.iter().map(String::as_str).collect();
        args.extend(more);
        fleet::start(&self.rig, &self.url, role, &args)
    }
}

/// Server, controllers and agent, each with its own credential and no other.
fn programs_work(place: &Place) {
    let (rig, node) = (&place.rig, place.rig.app.clone());
    place.store(&["init", &place.url]).ok();
    let flags = place.flags("root", &place.server.hush());
    let mut admit = vec!["node", "admit", &node, "--store", &place.url];
    admit.extend(flags.iter().map(String::as_str));
    rig.cli(&admit).ok();
    let agent = place.credential(&["--role", "agent", "--node", &node], "agent");
    let controllers = place.credential(&["--role", "controllers"], "controllers");
    let server = place.credential(&["--role", "server"], "server");

    let _server = place.start("server", &server, &[]);
    eventually("an answer of the server", || {
        (rig.cli(&["get", "nodes"]).code == Some(0)).then_some(())
    });
    let leader = place.start("controllers", &controllers, &[]);
    let _agent = place.start("agent", &agent, &["--node", &node]);
    let pod = rig.quickstart(1).remove(0);
    pod.answer().unwrap();
    // The node's own record, its signs of life and its events are written, too.
    eventually("a node that is ready", || {
        let node = rig.json(&["get", "node", &node]);
        let conditions = node["status"]["conditions"].as_array()?;
        let ready = |it: &serde_json::Value| it["type"] == "Ready" && it["status"] == "True";
        conditions.iter().any(ready).then_some(())
    });
    eventually("an event of the agent", || {
        let said = rig.cli(&["events"]);
        said.out
            .contains(&format!("pod/{}", pod.name))
            .then_some(())
    });
    let admin = run(place.open_all(&node));
    let beat = key(&format!("x/beat/{node}"));
    let beats = || {
        run(admin.get(std::slice::from_ref(&beat)))
            .unwrap()
            .records
            .remove(0)
    };
    assert!(beats().is_some(), "the agent does not beat");

    // A leader that is killed leaves its lease behind; the agent may not clear it away, and
    // goes on hearing.
    leader.end(SIGKILL);
    let _next = place.start("controllers", &controllers, &[]);
    rig.cli(&["scale", "rc/hello", "--replicas", "2"]).ok();
    rig.ready(2);

    // An agent hears a freeze ...
    rig.cli(&["freeze", "--reason", "a test"]).ok();
    let holder = key(&format!("o/reality/platctrl.dev/failsafes/{node}"));
    let told = |text: &str| {
        let held = run(admin.get(std::slice::from_ref(&holder)))
            .unwrap()
            .records
            .remove(0);
        held.filter(|held| String::from_utf8_lossy(&held.value).contains(text))
            .map(|_| ())
    };
    eventually("the agent's word that it is frozen", || {
        told("\"frozen\":true")
    });
    rig.cli(&["thaw"]).ok();
    eventually("the agent's word that it is not", || {
        told("\"frozen\":false")
    });
    // ... and says which order is lost. What runs goes on.
    let intent = key(&format!(
        "o/intent/platctrl.dev/pods/{node}/default/{}",
        pod.name
    ));
    let lost = run(admin.get(std::slice::from_ref(&intent)))
        .unwrap()
        .records
        .remove(0)
        .unwrap();
    run(admin.commit(Transaction::new().delete(intent.clone()))).unwrap();
    eventually("the agent's word of what is missing", || {
        told(intent.as_str())
    });
    assert!(is_alive(pod.pid));
    run(admin.commit(Transaction::new().put(intent, lost.value))).unwrap();
    rig.ready(2);

    rig.cli(&["scale", "rc/hello", "--replicas", "0"]).ok();
    eventually("the pods' end", || rig.pods().is_empty().then_some(()));
    assert!(!is_alive(pod.pid));

    // Given up, the node's agent may do nothing any more, whoever has its credential.
    let anchor = |who: &(String, PathBuf)| {
        let flags = place.flags(&who.0, &who.1);
        let mut all = vec!["store"];
        all.extend(flags.iter().map(String::as_str));
        all.extend(["info", &place.url]);
        rig.cli(&all).code
    };
    assert_eq!(anchor(&agent), Some(0));
    let mut retire = vec![
        "node",
        "retire",
        &node,
        "--force",
        "--revoke-in",
        &place.url,
    ];
    retire.extend(flags.iter().map(String::as_str));
    let said = rig.cli(&retire).ok();
    assert!(
        said.contains("removed") && said.contains("retired: incarnation 1 begins"),
        "{said}"
    );
    eventually("the credential is good for nothing", || {
        anchor(&agent).is_some_and(|code| code != 0).then_some(())
    });
    assert_eq!(anchor(&controllers), Some(0), "others have theirs");

    let log = fs::read_to_string(rig.path("up.log")).unwrap();
    let secret = fs::read_to_string(&agent.1).unwrap();
    assert!(!log.contains(secret.trim_end()), "a credential is in a log");
}

#[test]
fn programs_work_with_their_own_credentials_on_etcd() {
    programs_work(&Place::etcd("etcd-next"));
}

#[test]
fn programs_work_with_their_own_credentials_on_consul() {
    programs_work(&Place::consul());
}

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
