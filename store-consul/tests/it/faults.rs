//! Faults of real servers. Each test first makes sure that its fault happened.

use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::environment::Environment;
use platctrl_framework::model::identity::{self, ChainLink, chain_key};
use platctrl_framework::store::{
    Change, Compare, Revision, Store, StoreError, Transaction, WatchEvent,
};
use platctrl_store_consul::ConsulStore;
use rustix::process::Signal;

use crate::helpers::{key, next_news, prefix, put, run, until, value};
use crate::server::{Cluster, Plan, root, wait_until};
use crate::work::Work;

#[test]
fn killed_servers_lose_no_acknowledged_commit_and_no_event() {
    let mut cluster = Cluster::start(Plan::three());
    run(async {
        let leader = cluster.leader().expect("a leader");
        // The client is connected to a follower that stays.
        let (client, other) = ((leader + 1) % 3, (leader + 2) % 3);
        let store = Arc::new(cluster.store_at(client, &root()).await);
        let work = Work::begin(&store);
        work.more(20).await;

        cluster.servers[other].kill();
        assert!(
            cluster.servers[other]
                .ask("GET", "/v1/status/leader", "")
                .is_err()
        );
        work.more(20).await;
        cluster.servers[other].start();
        cluster.wait_until_ready();

        cluster.servers[leader].kill();
        wait_until(Duration::from_secs(30), "another leader", || {
            cluster.leader().is_some_and(|now| now != leader)
        });
        work.more(20).await;
        cluster.servers[leader].start();
        cluster.wait_until_ready();

        for server in &mut cluster.servers {
            server.kill();
        }
        assert!(
            cluster.servers[client]
                .ask("GET", "/v1/status/leader", "")
                .is_err()
        );
        let refused = store.commit(Transaction::new().put(key("x/a"), "1")).await;
        assert!(
            matches!(&refused, Err(error @ StoreError::Unavailable { .. }) if error.to_string().contains(&cluster.servers[client].address)),
            "{refused:?}"
        );
        for server in &mut cluster.servers {
            server.start();
        }
        cluster.wait_until_ready();
        work.more(20).await;
        let written = work.check(&store).await;
        assert!(!written.refused.is_empty(), "nobody noticed: {written:?}");
    });
}

#[test]
fn nothing_that_a_stopped_leader_was_told_lands_after_it_goes_on() {
    let cluster = Cluster::start(Plan::three());
    run(async {
        let root = root();
        let leader = cluster.leader().expect("a leader");
        let follower = (leader + 1) % 3;
        let old = Arc::new(cluster.store_at(leader, &root).await);
        let new = Arc::new(cluster.store_at(follower, &root).await);
        let lease = old.grant_lease(Duration::from_secs(1)).await.unwrap();
        let claim = key("x/lease/controllers");
        let win = Transaction::new()
            .require_absent(claim.clone())
            .put_with_lease(claim.clone(), "old", lease.id);
        let epoch = old.commit(win).await.unwrap();
        let held = Compare::ClaimHeld {
            key: claim.clone(),
            epoch,
            lease: lease.id,
        };
        let work = Work::begin(&new);
        work.more(10).await;

        cluster.servers[leader].signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", cluster.servers[leader].pid());
        wait_until(Duration::from_secs(10), "it is stopped", || {
            std::fs::read_to_string(&stat).unwrap().contains(") T ")
        });
        // What the old holder sends now lies in the stopped server's sockets.
        let late = tokio::spawn({
            let (old, held) = (Arc::clone(&old), held.clone());
            async move {
                let write = Transaction::new().require(held).put(key("o/late"), "late");
                old.commit(write).await
            }
        });
        work.more(10).await;
        let taken = wait_for_claim(&new).await;
        assert!(taken > epoch);
        cluster.servers[leader].signal(Signal::CONT);

        let outcome = late.await.unwrap();
        assert!(
            matches!(
                outcome,
                Err(StoreError::Unknown { .. }
                    | StoreError::Conflict { .. }
                    | StoreError::Unavailable { .. })
            ),
            "{outcome:?}"
        );
        let write = Transaction::new().require(held).put(key("o/late"), "later");
        until("the old leader follows again", || async {
            let outcome = old.commit(write.clone()).await;
            assert!(outcome.is_err(), "the claim was lost: {outcome:?}");
            outcome.unwrap_err().is_conflict()
        })
        .await;
        assert_eq!(value(new.as_ref(), "o/late").await, None);
        let record = new.get(&[claim]).await.unwrap().records.remove(0).unwrap();
        assert_eq!(record.created, taken);
        work.check(&new).await;
    });
}

/// Wins the claim once its holder's lease has ended.
async fn wait_for_claim(store: &ConsulStore) -> Revision {
    let claim = key("x/lease/controllers");
    let mut won = None;
    let lease = store.grant_lease(Duration::from_secs(60)).await.unwrap();
    until("the claim is free", || async {
        // Reading buries what hung on an ended lease.
        let records = store.get(std::slice::from_ref(&claim)).await;
        records.is_ok_and(|snapshot| snapshot.records[0].is_none())
    })
    .await;
    while won.is_none() {
        let win = Transaction::new()
            .require_absent(claim.clone())
            .put_with_lease(claim.clone(), "new", lease.id);
        won = store.commit(win).await.ok();
    }
    won.unwrap()
}

#[test]
fn a_restarted_agent_interrupts_no_watch() {
    let cluster = Cluster::start(Plan::one());
    run(async {
        let root = root();
        let mut agent = cluster.start_agent();
        let address = format!("consul://{}:8500/{root}", agent.address)
            .parse()
            .unwrap();
        let store = ConsulStore::open(&address, cluster.options(), Environment::system());
        let store = store.await.unwrap();
        let direct = cluster.store(&root).await;
        put(&direct, "o/a/b/c/d/gone", "1").await;
        let revision = put(&direct, "o/a/b/c/d/kept", "1").await;
        let mut watch = store.watch(prefix("o/"), revision);
        let second = put(&store, "o/a/b/c/d/kept", "2").await;
        let event = next_news(&mut watch).await;
        assert!(
            matches!(event, Some(Ok(WatchEvent::Changes { revision, .. })) if revision == second),
            "{event:?}"
        );

        agent.kill();
        let outcome = store.get(&[key("o/a")]).await;
        assert!(
            matches!(outcome, Err(StoreError::Unavailable { .. })),
            "it is gone: {outcome:?}"
        );
        let deletion = Transaction::new().delete(key("o/a/b/c/d/gone"));
        direct.commit(deletion).await.unwrap();
        put(&direct, "o/a/b/c/d/kept", "3").await;
        agent.start();
        let event = next_news(&mut watch).await;
        let Some(Ok(WatchEvent::Changes { changes, .. })) = event else {
            panic!("{event:?}");
        };
        let told: Vec<_> = changes
            .iter()
            .map(|change| {
                (
                    change.key().as_str(),
                    matches!(change, Change::Delete { .. }),
                )
            })
            .collect();
        assert_eq!(told, [("o/a/b/c/d/gone", true), ("o/a/b/c/d/kept", false)]);
    });
}

#[test]
fn a_session_that_somebody_destroys_takes_its_claim_along() {
    let cluster = Cluster::start(Plan::one());
    run(async {
        let store = cluster.store(&root()).await;
        let lease = store.grant_lease(Duration::from_secs(600)).await.unwrap();
        let claim = key("x/lease/controllers");
        let win = Transaction::new()
            .require_absent(claim.clone())
            .put_with_lease(claim.clone(), "me", lease.id);
        let epoch = store.commit(win).await.unwrap();
        let held = Compare::ClaimHeld {
            key: claim.clone(),
            epoch,
            lease: lease.id,
        };
        let guarded = Transaction::new().require(held).put(key("o/a"), "1");
        let revision = store.commit(guarded.clone()).await.unwrap();
        let mut watch = store.watch(prefix("x/lease/"), revision);

        let sessions = cluster.any().must("GET", "/v1/session/list", "");
        let sessions: serde_json::Value = serde_json::from_str(&sessions).unwrap();
        let session = sessions[0]["ID"].as_str().unwrap();
        cluster
            .any()
            .must("PUT", &format!("/v1/session/destroy/{session}"), "");
        assert_eq!(cluster.any().must("GET", "/v1/session/list", ""), "[]");

        let outcome = store.commit(guarded).await;
        assert!(
            outcome.as_ref().is_err_and(StoreError::is_conflict),
            "{outcome:?}"
        );
        let outcome = store.keep_alive(lease.id).await;
        assert!(
            matches!(outcome, Err(StoreError::LeaseNotFound { .. })),
            "{outcome:?}"
        );
        let event = next_news(&mut watch).await;
        let Some(Ok(WatchEvent::Changes { changes, .. })) = event else {
            panic!("{event:?}");
        };
        assert!(
            matches!(&changes[..], [Change::Delete { key, .. }] if *key == claim),
            "{changes:?}"
        );
        // No lock delay holds the next one up.
        let lease = store.grant_lease(Duration::from_secs(600)).await.unwrap();
        let win = Transaction::new()
            .require_absent(claim.clone())
            .put_with_lease(claim, "next", lease.id);
        assert!(store.commit(win).await.unwrap() > epoch);
    });
}

#[test]
fn a_restored_snapshot_is_noticed_whether_revisions_go_back_or_forward() {
    let cluster = Cluster::start(Plan::one());
    run(async {
        let root = root();
        let store = cluster.store(&root).await;
        let environment = Environment::system();
        identity::initialise(&store, &environment).await.unwrap();
        put(&store, "o/a/b/c/d/old", "1").await;
        let snapshot = cluster.dir().join("snapshot");
        cluster.consul(&["snapshot", "save", snapshot.to_str().unwrap()]);
        let link = serde_json::to_string(&ChainLink::new(&environment)).unwrap();
        put(&store, chain_key(1).as_str(), &link).await;
        for n in 0..20 {
            put(&store, "o/a/b/c/d/new", &n.to_string()).await;
        }
        let before = put(&store, "o/a/b/c/d/old", "2").await;
        let mut watch = store.watch(prefix("o/"), before);
        put(&store, "o/a/b/c/d/old", "3").await;
        next_news(&mut watch).await.unwrap().unwrap();

        cluster.consul(&["snapshot", "restore", snapshot.to_str().unwrap()]);
        assert_eq!(
            value(&store, "o/a/b/c/d/new").await,
            None,
            "it was restored"
        );
        let now = store.get(&[]).await.unwrap().revision;
        assert!(now < before, "back: {now} after {before}");
        // Absence is no delete: whoever watched has to look at everything again.
        let event = next_news(&mut watch).await;
        assert!(
            matches!(event, Some(Ok(WatchEvent::Reset { .. }) | Err(_))),
            "{event:?}"
        );
        let mut late = store.watch(prefix("o/"), before);
        let event = next_news(&mut late).await;
        assert!(
            matches!(event, Some(Ok(WatchEvent::Reset { .. }))),
            "{event:?}"
        );

        // Forward, beyond what was: then only the chain tells.
        let mut now = now;
        for n in 0.. {
            now = put(&store, "o/a/b/c/d/forward", &n.to_string()).await;
            if now > before {
                break;
            }
        }
        assert!(now > before);
        let seen = value(&store, chain_key(1).as_str()).await;
        assert_ne!(
            seen,
            Some(link),
            "the link that was seen is not in this history"
        );
    });
}
