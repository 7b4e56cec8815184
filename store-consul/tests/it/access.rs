//! Consul's access control: a credential that may not read sees nothing, without an error, and
//! nothing here may take that for an empty fleet.

use std::time::Duration;

use platctrl_framework::environment::Environment;
use platctrl_framework::model::identity;
use platctrl_framework::store::{Key, Prefix, Store, StoreError, Transaction, WatchEvent};
use platctrl_store_consul::{ConsulStore, OpenError, Options};

use crate::helpers::{key, list, next_news, prefix, put, run, value};
use crate::server::{Cluster, Plan, Token, root};

const WEB1: &str = "o/intent/platctrl.dev/pods/web1/";

async fn with_token(cluster: &Cluster, root: &str, token: &Token) -> ConsulStore {
    let mut options = cluster.options();
    options.token_file = Some(cluster.token_file(&token.secret));
    let environment = Environment::system();
    ConsulStore::open(&cluster.address(0, root), options, environment)
        .await
        .unwrap()
}

/// A fleet of two nodes with a pod each.
async fn fleet(store: &dyn Store) {
    identity::initialise(store, &Environment::system())
        .await
        .unwrap();
    for node in ["web1", "web2"] {
        for name in [".anchor", "default/hello"] {
            put(
                store,
                &format!("o/intent/platctrl.dev/pods/{node}/{name}"),
                "{}",
            )
            .await;
        }
        put(store, &format!("o/intent/platctrl.dev/nodes/{node}"), "{}").await;
    }
}

fn all_rights(root: &str, but: &str) -> String {
    format!(
        "key_prefix \"{root}/\" {{ policy = \"write\" }}\n\
         session_prefix \"\" {{ policy = \"write\" }}\n{but}"
    )
}

fn denied(text: &str) -> String {
    format!("key_prefix \"{text}\" {{ policy = \"deny\" }}\n")
}

#[test]
fn a_policy_edited_under_a_live_token_is_denied_and_never_an_empty_fleet() {
    let cluster = Cluster::start(Plan::one().with_acl());
    run(async {
        let root = root();
        let owner = cluster.store(&root).await;
        fleet(&owner).await;
        let token = cluster.token(&all_rights(&root, ""));
        let store = with_token(&cluster, &root, &token).await;
        for lost in [
            format!("{root}/o/"),
            format!("{root}/{WEB1}"),
            format!("{root}/o/intent/platctrl.dev/nodes/web1"),
        ] {
            token.change(&cluster, &all_rights(&root, ""));
            let (before, revision) = list(&store, "o/").await.unwrap();
            assert_eq!(before.len(), 7, "{before:?}");
            let mut wide = store.watch(prefix("o/"), revision);
            let mut node = store.watch(prefix(WEB1), revision);

            token.change(&cluster, &all_rights(&root, &denied(&lost)));
            // The fault happened: to Consul what may not be read is not there.
            let path = format!("/v1/kv/{lost}?recurse");
            let (status, body) = cluster
                .any()
                .ask_as(&token.secret, "GET", &path, "")
                .unwrap();
            assert_eq!((status, body.as_str()), (404, ""), "{lost}");

            let listed = list(&store, "o/").await;
            assert!(
                matches!(listed, Err(StoreError::Denied { .. })),
                "{lost}: {listed:?}"
            );
            let pod = [
                key("o/intent/platctrl.dev/pods/web1/default/hello"),
                key("o/intent/platctrl.dev/nodes/web1"),
            ];
            let got = store.get(&pod).await;
            assert!(
                matches!(got, Err(StoreError::Denied { .. })),
                "{lost}: {got:?}"
            );
            // Something changes there, so that watchers look.
            put(&owner, "o/intent/platctrl.dev/nodes/web1", &lost).await;
            put(&owner, &format!("{WEB1}default/hello"), &lost).await;
            let event = next_news(&mut wide).await;
            assert!(
                matches!(event, Some(Err(StoreError::Denied { .. }))),
                "{lost}: the watch told {event:?}"
            );
            // Watches end together, at worst; none tells of a delete.
            let event = next_news(&mut node).await;
            assert!(
                matches!(&event, Some(Err(_)) | Some(Ok(WatchEvent::Reset { .. }))),
                "{lost}: the node's watch told {event:?}"
            );
        }
    });
}

#[test]
fn a_token_that_is_revoked_and_replaced_needs_no_restart() {
    let cluster = Cluster::start(Plan::one().with_acl());
    run(async {
        let root = root();
        let owner = cluster.store(&root).await;
        fleet(&owner).await;
        let (old, new) = (
            cluster.token(&all_rights(&root, "")),
            cluster.token(&all_rights(&root, "")),
        );
        let file = cluster.token_file(&old.secret);
        let mut options = cluster.options();
        options.token_file = Some(file.clone());
        let address = cluster.address(0, &root);
        let store = ConsulStore::open(&address, options, Environment::system())
            .await
            .unwrap();
        let revision = put(&store, "o/a", "1").await;
        let mut watch = store.watch(Prefix::all(), revision);

        old.delete(&cluster);
        let path = format!("/v1/kv/{root}/o/a");
        let (status, _) = cluster.any().ask_as(&old.secret, "GET", &path, "").unwrap();
        assert_eq!(status, 403, "the token is gone");
        let outcome = store.commit(Transaction::new().put(key("o/a"), "2")).await;
        match &outcome {
            Err(error @ StoreError::Denied { what }) => {
                assert!(
                    what.contains("http://") && what.contains("ACL not found"),
                    "{what}"
                );
                assert!(!error.is_transient());
            }
            other => panic!("{other:?}"),
        }
        put(&owner, "o/a", "3").await;
        let event = next_news(&mut watch).await;
        assert!(
            matches!(event, Some(Err(StoreError::Denied { .. }))),
            "{event:?}"
        );

        std::fs::write(&file, &new.secret).unwrap();
        put(&store, "o/a", "4").await;
        assert_eq!(value(&store, "o/a").await.as_deref(), Some("4"));
    });
}

#[test]
fn who_may_only_read_reads_and_watches_and_is_denied_the_rest() {
    let cluster = Cluster::start(Plan::one().with_acl());
    run(async {
        let root = root();
        let owner = cluster.store(&root).await;
        fleet(&owner).await;
        // What an agent of web1 needs, but for its own writes.
        let rules: String = [
            "x/anchor",
            "x/format",
            "x/chain/",
            "x/gen/",
            "x/gen1/",
            WEB1,
            "o/intent/platctrl.dev/nodes/web1",
        ]
        .iter()
        .map(|text| format!("key_prefix \"{root}/{text}\" {{ policy = \"read\" }}\n"))
        .collect();
        let own = "o/reality/platctrl.dev/pods/web1/";
        let own_scope = "o/reality/platctrl.dev/pods/web1";
        let rules = format!("{rules}key_prefix \"{root}/{own}\" {{ policy = \"write\" }}\n");
        let token = cluster.token(&rules);
        let store = with_token(&cluster, &root, &token).await;
        identity::open(&store).await.unwrap();
        let (records, revision) = list(&store, WEB1).await.unwrap();
        assert_eq!(records.len(), 2);
        let mut watch = store.watch(prefix(WEB1), revision);
        put(&owner, &format!("{WEB1}default/hello"), "changed").await;
        let event = next_news(&mut watch).await;
        assert!(
            matches!(event, Some(Ok(WatchEvent::Changes { .. }))),
            "{event:?}"
        );
        let node = Prefix::only(&key("o/intent/platctrl.dev/nodes/web1"));
        let page = store
            .list(&platctrl_framework::store::ListRequest::new(node))
            .await
            .unwrap();
        assert_eq!(page.records.len(), 1);

        for text in [
            "o/",
            "",
            "o/intent/platctrl.dev/pods/",
            "o/intent/platctrl.dev/pods/web2/",
        ] {
            let outcome = list(&store, text).await;
            assert!(
                matches!(outcome, Err(StoreError::Denied { .. })),
                "{text}: {outcome:?}"
            );
        }
        for name in [
            &format!("{WEB1}default/hello")[..],
            "o/reality/platctrl.dev/pods/web2/default/hello",
            "x/anchor",
        ] {
            for transaction in [
                Transaction::new().put(key(name), "stolen"),
                Transaction::new().delete(key(name)),
            ] {
                let outcome = store.commit(transaction).await;
                assert!(
                    matches!(outcome, Err(StoreError::Denied { .. })),
                    "{name}: {outcome:?}"
                );
            }
        }
        let lease = store.grant_lease(Duration::from_secs(20)).await;
        assert!(matches!(lease, Err(StoreError::Denied { .. })), "{lease:?}");
        // With its share of the generations it also writes, its own only.
        let generations = format!(
            "{rules}key_prefix \"{root}/x/gen1/\" {{ policy = \"write\" }}\n{}",
            (0..256)
                .map(|n| format!(
                    "key \"{root}/x/gen/{n:02x}/{own_scope}/-\" {{ policy = \"write\" }}\n"
                ))
                .collect::<String>()
        );
        token.change(&cluster, &generations);
        put(&store, &format!("{own}default/hello"), "mine").await;
        let theirs = Key::new("o/reality/platctrl.dev/pods/web2/default/hello").unwrap();
        let outcome = store.commit(Transaction::new().put(theirs, "stolen")).await;
        assert!(
            matches!(outcome, Err(StoreError::Denied { .. })),
            "{outcome:?}"
        );
    });
}

#[test]
fn a_wrong_token_or_token_file_is_named_at_once() {
    let cluster = Cluster::start(Plan::one().with_acl());
    run(async {
        let address = cluster.address(0, &root());
        let open = |options: Options| {
            let address = address.clone();
            async move {
                ConsulStore::open(&address, options, Environment::system())
                    .await
                    .unwrap_err()
            }
        };
        let mut options = cluster.options();
        options.token_file = Some(cluster.token_file("11111111-2222-3333-4444-555555555555"));
        let error = open(options).await;
        assert!(
            matches!(error.store_error(), Some(StoreError::Denied { .. })),
            "{error}"
        );
        let text = error.to_string();
        assert!(
            text.contains(&address.to_string()) && text.contains("ACL not found"),
            "{text}"
        );
        let mut options = cluster.options();
        options.token_file = None;
        let error = open(options).await;
        assert!(
            matches!(error.store_error(), Some(StoreError::Denied { .. })),
            "{error}"
        );
        for (content, wanted) in [
            (Some(""), "holds no token"),
            (Some("a b"), "holds no token"),
            (None, "No such file"),
        ] {
            let path = cluster.dir().join("missing-token");
            let _ = std::fs::remove_file(&path);
            if let Some(content) = content {
                std::fs::write(&path, content).unwrap();
            }
            let mut options = cluster.options();
            options.token_file = Some(path);
            let error = open(options).await;
            assert!(matches!(error, OpenError::Options { .. }), "{error}");
            assert!(error.to_string().contains(wanted), "{error}");
        }
    });
}
