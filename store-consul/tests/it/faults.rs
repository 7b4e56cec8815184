//! Faults of real servers. Each test first makes sure that its fault happened.

use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::environment::Environment;
use platctrl_framework::model::identity::{self, ChainLink, chain_key};
use platctrl_framework::store::{
    Change, Compare, LeaseId, Revision, Store, StoreError, Transaction, WatchEvent,
};
use platctrl_store_consul::ConsulStore;
use rustix::process::Signal;

use crate::helpers::{key, next_news, prefix, put, run, until, value};
use crate::relay::Relay;
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
fn an_index_that_goes_backwards_is_waited_for_from_the_start_and_hides_nothing() {
    let cluster = Cluster::start(Plan::one());
    run(async {
        let root = root();
        let direct = cluster.store(&root).await;
        put(&direct, "o/a/b/c/d/gone", "1").await;
        let begin = put(&direct, "o/a/b/c/d/kept", "1").await;
        let relay = Relay::start(format!("{}:8500", cluster.any().address)).await;
        let address = format!("consul://{}/{root}", relay.address);
        let address = address.parse().unwrap();
        let store = ConsulStore::open(&address, cluster.options(), Environment::system());
        let store = store.await.unwrap();
        let mut watch = store.watch(prefix("o/"), begin);
        let clock = "/x/gen1/now";
        // It waits for what comes next.
        let now = begin.counter();
        until("it waits", || async { relay.last_wait(clock) == Some(now) }).await;

        for (lie, n) in [(now - 1, 1), (1, 2), (0, 3)] {
            let before = relay.waits(clock).len();
            relay.lie(clock, lie);
            let delete = Transaction::new()
                .delete(key("o/a/b/c/d/gone"))
                .put(key("o/a/b/c/d/kept"), n.to_string());
            let last = direct.commit(delete).await.unwrap();
            let mut told = Vec::new();
            while told.last() != Some(&("o/a/b/c/d/kept".to_owned(), last)) {
                let event = next_news(&mut watch).await;
                let Some(Ok(WatchEvent::Changes { revision, changes })) = event else {
                    panic!("{lie}: {event:?}");
                };
                let keys = changes.iter().map(|change| change.key().to_string());
                told.extend(keys.map(|key| (key, revision)));
            }
            assert!(
                told.iter().any(|(key, _)| key == "o/a/b/c/d/gone"),
                "{lie}: {told:?}"
            );
            // After the lie it begins anew: at one, because zero would not wait.
            until("it waits again", || async {
                relay.last_wait(clock) == Some(last.counter())
            })
            .await;
            let waits = relay.waits(clock).split_off(before);
            assert_eq!(waits.first(), Some(&1), "{lie}: {waits:?}");
            assert!(!waits.contains(&0), "{lie}: {waits:?}");
            put(&direct, "o/a/b/c/d/gone", "1").await;
            next_news(&mut watch).await.unwrap().unwrap();
            let newest = direct.get(&[]).await.unwrap().revision.counter();
            until("it waits on", || async {
                relay.last_wait(clock) == Some(newest)
            })
            .await;
        }
    });
}

#[test]
fn disks_that_sync_slowly_make_commits_slow_and_lose_nothing() {
    let cluster = Cluster::start(Plan::three());
    run(async {
        let store = Arc::new(cluster.store(&root()).await);
        let work = Work::begin(&store);
        work.more(10).await;
        let delay = Duration::from_millis(200);
        // A majority is as fast as its slower half: all disks are slow.
        let servers = cluster.servers.iter();
        let disks: Vec<_> = servers.map(|server| server.slow_disk(delay)).collect();
        wait_until(
            Duration::from_secs(60),
            "slow writes of all servers",
            || disks.iter().all(|disk| disk.count() > 2),
        );
        // The first may have been under way before.
        work.more(1).await;
        let began = std::time::Instant::now();
        work.more(5).await;
        assert!(began.elapsed() >= delay, "{:?}", began.elapsed());
        drop(disks);
        work.more(40).await;
        work.check(&store).await;
    });
}

/// A claim that is held under a lease: the commit that wins it, what compares it, and the lease.
async fn win(store: &ConsulStore, who: &'static str) -> (Revision, Compare, LeaseId) {
    let lease = store.grant_lease(Duration::from_secs(600)).await.unwrap();
    let claim = key("x/lease/controllers");
    let win = Transaction::new()
        .require_absent(claim.clone())
        .put_with_lease(claim.clone(), who, lease.id);
    let epoch = store.commit(win).await.unwrap();
    let held = Compare::ClaimHeld {
        key: claim,
        epoch,
        lease: lease.id,
    };
    (epoch, held, lease.id)
}

#[test]
fn a_session_that_somebody_destroys_or_invalidates_takes_its_claim_along() {
    let cluster = Cluster::start(Plan::one());
    run(async {
        let root = root();
        // Sessions are on the node of the agent that was asked for them.
        let agent = cluster.start_agent();
        let at_agent = format!("consul://{}:8500/{root}", agent.address);
        let at_agent = at_agent.parse().unwrap();
        let store = ConsulStore::open(&at_agent, cluster.options(), Environment::system());
        let store = store.await.unwrap();
        let claim = key("x/lease/controllers");
        let sessions = || {
            let listed = cluster.any().must("GET", "/v1/session/list", "");
            serde_json::from_str::<Vec<serde_json::Value>>(&listed).unwrap()
        };
        let mut last = Revision::ZERO;
        for way in ["destroyed", "its node is taken away"] {
            let (epoch, held, lease) = win(&store, way).await;
            // No lock delay holds the next one up.
            assert!(epoch > last, "{way}");
            last = epoch;
            let guarded = Transaction::new().require(held).put(key("o/a"), "1");
            let revision = store.commit(guarded.clone()).await.unwrap();
            let mut watch = store.watch(prefix("x/lease/"), revision);

            let session = sessions().remove(0);
            let node = session["Node"].as_str().unwrap();
            assert!(node.starts_with(&agent.name), "{node}");
            if way == "destroyed" {
                let id = session["ID"].as_str().unwrap();
                let path = format!("/v1/session/destroy/{id}");
                cluster.any().must("PUT", &path, "");
            } else {
                let node = format!(r#"{{"Node": "{node}"}}"#);
                cluster.any().must("PUT", "/v1/catalog/deregister", &node);
            }
            assert!(sessions().is_empty(), "{way}");

            let outcome = store.commit(guarded).await;
            assert!(
                outcome.as_ref().is_err_and(StoreError::is_conflict),
                "{way}: {outcome:?}"
            );
            let outcome = store.keep_alive(lease).await;
            assert!(
                matches!(outcome, Err(StoreError::LeaseNotFound { .. })),
                "{way}: {outcome:?}"
            );
            let event = next_news(&mut watch).await;
            let Some(Ok(WatchEvent::Changes { changes, .. })) = event else {
                panic!("{way}: {event:?}");
            };
            assert!(
                matches!(&changes[..], [Change::Delete { key, .. }] if *key == claim),
                "{way}: {changes:?}"
            );
        }
        // The agent's node comes back by itself, at some time; others win at once.
        let other = cluster.store(&root).await;
        assert!(win(&other, "next").await.0 > last);
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
