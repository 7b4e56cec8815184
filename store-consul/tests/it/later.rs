//! A store that is made while Consul is away.

use std::time::Duration;

use platctrl_framework::environment::Environment;
use platctrl_framework::model::identity;
use platctrl_framework::store::Store;
use platctrl_framework::store::{Prefix, StoreError, Transaction, WatchEvent};
use platctrl_store_consul::ConsulStore;

use crate::helpers::{key, list, next, next_news, put, run, value};
use crate::server::{Cluster, Plan, root};

#[test]
fn a_store_made_while_consul_is_away_works_once_it_is_there() {
    let mut cluster = Cluster::start(Plan::one());
    run(async {
        let root = root();
        let first = cluster.store(&root).await;
        identity::initialise(&first, &Environment::system())
            .await
            .unwrap();
        put(&first, "o/a", "1").await;
        drop(first);
        cluster.servers[0].kill();

        let mut options = cluster.options();
        options.timeout = Duration::from_secs(3);
        let address = cluster.address(0, &root);
        let refused = ConsulStore::open(&address, options.clone(), Environment::system()).await;
        assert!(refused.is_err(), "it is away");
        let store = ConsulStore::open_later(&address, options, Environment::system()).unwrap();
        for outcome in [
            store.get(&[key("o/a")]).await.map(drop),
            store
                .commit(Transaction::new().put(key("o/a"), "2"))
                .await
                .map(drop),
            store.grant_lease(Duration::from_secs(10)).await.map(drop),
            list(&store, "o/").await.map(drop),
        ] {
            match outcome {
                Err(StoreError::Unavailable { reason, .. }) => {
                    assert!(reason.contains(&cluster.servers[0].address), "{reason}");
                }
                other => panic!("{other:?}"),
            }
        }
        let mut early = store.watch(Prefix::all(), platctrl_framework::store::Revision::ZERO);

        cluster.servers[0].start();
        cluster.wait_until_ready();
        // The first call is the first that reads the anchor.
        let held = store
            .commit(
                Transaction::new()
                    .require_absent(key("o/b"))
                    .put(key("o/b"), "1"),
            )
            .await
            .unwrap();
        assert_eq!(value(&store, "o/a").await.as_deref(), Some("1"));
        identity::open(&store).await.unwrap();
        // A watch that was begun before tells of it, or has ended by then.
        match next(&mut early).await {
            Some(Ok(WatchEvent::Changes { revision, .. })) => assert!(revision <= held),
            Some(Ok(WatchEvent::Reset { .. } | WatchEvent::Progress(_)) | Err(_)) => {}
            None => panic!("it ended without a word"),
        }
        let mut watch = store.watch(Prefix::all(), held);
        let last = put(&store, "o/c", "1").await;
        match next_news(&mut watch).await {
            Some(Ok(WatchEvent::Changes { revision, .. })) => assert_eq!(revision, last),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_store_made_without_the_right_to_read_the_anchor_says_so_and_shows_nothing() {
    let cluster = Cluster::start(Plan::one().with_acl());
    run(async {
        let root = root();
        let owner = cluster.store(&root).await;
        identity::initialise(&owner, &Environment::system())
            .await
            .unwrap();
        put(&owner, "o/a", "1").await;
        let rules = format!(
            "key_prefix \"{root}/\" {{ policy = \"write\" }}\n\
             key \"{root}/x/anchor\" {{ policy = \"deny\" }}\n"
        );
        let token = cluster.token(&rules);
        let mut options = cluster.options();
        options.token_file = Some(cluster.token_file(&token.secret));
        let address = cluster.address(0, &root);
        let store = ConsulStore::open_later(&address, options, Environment::system()).unwrap();
        for outcome in [
            store.get(&[key("o/a")]).await.map(drop),
            list(&store, "o/").await.map(drop),
            store
                .commit(Transaction::new().put(key("o/a"), "2"))
                .await
                .map(drop),
        ] {
            assert!(
                matches!(&outcome, Err(StoreError::Denied { what }) if what.contains("x/anchor")),
                "{outcome:?}"
            );
        }
    });
}
