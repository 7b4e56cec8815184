//! Faults of members and networks. Each test first sees that the fault happened; the workload
//! sees that nothing was lost, told twice or out of order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use platctrl_framework::store::{
    Key, ListRequest, Prefix, Store, StoreError, Transaction, WatchEvent,
};
use platctrl_store_etcd::{EtcdStore, Tls};
use rustix::process::Signal;

use futures::StreamExt;

use platctrl_test_support::certificates::Authority;
use platctrl_test_support::network::Network;

use crate::proxy::Proxy;
use crate::server::{Cluster, Plan, Release, wait_until};
use crate::workload::{Workload, brisk};

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn put(name: &str, value: impl Into<bytes::Bytes>) -> Transaction {
    Transaction::new().put(key(name), value)
}

async fn store(cluster: &Cluster) -> Arc<EtcdStore> {
    let store = EtcdStore::connect(cluster.location("r"), brisk(cluster.options())).await;
    Arc::new(store.unwrap())
}

/// The position of the member that a store uses.
fn used(cluster: &Cluster, store: &EtcdStore) -> Option<usize> {
    let used = store.member()?;
    let position = |member: &crate::server::Member| member.endpoint() == used;
    cluster.members.iter().position(position)
}

fn another_leader(cluster: &Cluster, than: usize) {
    wait_until(Duration::from_secs(20), "another leader", || {
        let others = (0..cluster.members.len()).filter(|other| *other != than);
        others.into_iter().any(|other| cluster.leads(other))
    });
}

async fn kills(release: Release) {
    let mut cluster = Cluster::start(Plan::three(release));
    let store = store(&cluster).await;
    let workload = Workload::start(store.clone());
    workload.commits(20).await;

    // A follower, the one in use where that is one.
    let leader = cluster.leader().unwrap();
    let used = used(&cluster, &store).unwrap();
    let follower = if used == leader {
        (leader + 1) % 3
    } else {
        used
    };
    cluster.members[follower].kill();
    let endpoint = cluster.members[follower].endpoint();
    assert!(cluster.try_ctl_at(&endpoint, &["get", "x"]).is_err());
    workload.commits(40).await;
    cluster.members[follower].start();

    // The leader.
    let leader = cluster.leader().unwrap();
    cluster.members[leader].kill();
    another_leader(&cluster, leader);
    workload.commits(40).await;
    cluster.members[leader].start();

    // All.
    for member in &mut cluster.members {
        member.kill();
    }
    workload.failure().await;
    for member in &mut cluster.members {
        member.start();
    }
    workload.commits(40).await;
    let report = workload.finish().await;
    assert_eq!((report.resets, report.watch_errors), (0, 0), "{report:?}");
    assert!(report.recorded.answered > 20, "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn killing_a_follower_the_leader_and_all_members_loses_nothing_on_3_5() {
    kills(Release::V3_5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn killing_a_follower_the_leader_and_all_members_loses_nothing_on_3_4() {
    kills(Release::V3_4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_that_is_stopped_and_goes_on_changes_nothing() {
    let cluster = Cluster::start(Plan::three(Release::V3_5));
    let store = store(&cluster).await;
    let workload = Workload::start(store.clone());
    workload.commits(20).await;
    let leader = cluster.leader().unwrap();
    cluster.members[leader].signal(Signal::STOP);
    let stopped = Instant::now();
    another_leader(&cluster, leader);
    workload.commits(40).await;
    assert_ne!(used(&cluster, &store), Some(leader));
    // Half a minute where there is time: leases and elections of the others have passed then.
    let soak = std::env::var_os("SOAK_MINUTES").is_some();
    let pause = Duration::from_secs(if soak { 30 } else { 4 });
    tokio::time::sleep(pause.saturating_sub(stopped.elapsed())).await;
    cluster.members[leader].signal(Signal::CONT);
    workload.commits(40).await;
    let report = workload.finish().await;
    assert_eq!((report.resets, report.watch_errors), (0, 0), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_client_cut_off_from_the_leader_alone_goes_on() {
    let cluster = Cluster::start(Plan::three(Release::V3_5));
    let mut proxies = Vec::new();
    for member in &cluster.members {
        proxies.push(Proxy::start(member.endpoint()).await);
    }
    let addresses: Vec<&str> = proxies.iter().map(|proxy| proxy.address.as_str()).collect();
    let location = format!("etcd://{}/r", addresses.join(","));
    let leader = cluster.leader().unwrap();
    // One that uses the leader.
    let store = loop {
        let store = EtcdStore::connect(location.parse().unwrap(), brisk(cluster.options()));
        let store = store.await.unwrap();
        if store.member().as_deref() == Some(addresses[leader]) {
            break Arc::new(store);
        }
    };
    let workload = Workload::start(store.clone());
    workload.commits(20).await;
    proxies[leader].hold(true);
    let held = cluster.try_ctl_at(addresses[leader], &["get", "x"]);
    assert!(held.is_err(), "{held:?}");
    workload.commits(40).await;
    assert_ne!(store.member().as_deref(), Some(addresses[leader]));
    assert!(
        cluster.leads(leader),
        "for its members nothing has happened"
    );
    proxies[leader].hold(false);
    workload.commits(20).await;
    let report = workload.finish().await;
    assert_eq!((report.resets, report.watch_errors), (0, 0), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_client_inside_a_minority_leaves_it_or_says_that_it_cannot() {
    let Some(network) = Network::new(3) else {
        return;
    };
    let cluster = Cluster::start_at(Plan::three(Release::V3_5), network.places());
    // The leader is alone: it goes on leading until it notices.
    let alone = cluster.leader().unwrap();
    let endpoint = cluster.members[alone].endpoint();
    let store = loop {
        let store = store(&cluster).await;
        if store.member().as_deref() == Some(endpoint.as_str()) {
            break store;
        }
    };
    let location = format!("etcd://{endpoint}/r").parse().unwrap();
    let inside = EtcdStore::connect(location, brisk(cluster.options())).await;
    let inside = inside.unwrap();
    let workload = Workload::start(store.clone());
    workload.commits(20).await;
    network.isolate(alone, 2380);
    another_leader(&cluster, alone);
    assert!(cluster.try_ctl_at(&endpoint, &["get", "x"]).is_err());
    workload.commits(40).await;
    assert_ne!(store.member(), Some(endpoint));
    let read = inside.get(&[key("o/seq/01")]).await.unwrap_err();
    assert!(matches!(read, StoreError::Unavailable { .. }), "{read}");
    let commit = inside.commit(put("o/inside", "1")).await.unwrap_err();
    assert!(commit.is_transient(), "{commit}");
    network.rejoin(alone);
    workload.commits(20).await;
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Err(error) = inside.commit(put("o/inside", "2")).await {
        assert!(error.is_transient(), "{error}");
        assert!(Instant::now() < deadline, "{error}");
    }
    let report = workload.finish().await;
    assert_eq!((report.resets, report.watch_errors), (0, 0), "{report:?}");
    drop((inside, cluster));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn compaction_while_watching_resets_only_who_is_behind() {
    let cluster = Cluster::start(Plan::one(Release::V3_5));
    let direct = store(&cluster).await;
    let proxy = Proxy::start(cluster.members[0].endpoint()).await;
    let location = format!("etcd://{}/r", proxy.address).parse().unwrap();
    let behind = EtcdStore::connect(location, brisk(cluster.options())).await;
    let behind = Workload::start(Arc::new(behind.unwrap()));
    let current = Workload::start(cluster_store(&cluster, "other").await);
    behind.commits(10).await;
    current.commits(10).await;
    proxy.hold(true);
    let mut last = None;
    for n in 0..100 {
        last = Some(
            direct
                .commit(put(&format!("o/seq/{:02}", n % 40), "later"))
                .await
                .unwrap(),
        );
    }
    // Everything that the one behind has not been told is gone; the current one has been.
    current.commits(5).await;
    let at = last.unwrap().counter().to_string();
    cluster.ctl(&["compact", &at]);
    behind.failure().await;
    proxy.hold(false);
    behind.commits(10).await;
    current.commits(10).await;
    let report = behind.finish().await;
    assert!(report.resets > 0, "{report:?}");
    let report = current.finish().await;
    assert_eq!((report.resets, report.watch_errors), (0, 0), "{report:?}");
}

async fn cluster_store(cluster: &Cluster, root: &str) -> Arc<EtcdStore> {
    let store = EtcdStore::connect(cluster.location(root), brisk(cluster.options())).await;
    Arc::new(store.unwrap())
}

#[tokio::test]
async fn a_full_quota_refuses_puts_says_why_and_ends() {
    let plan = Plan::one(Release::V3_5).with_arguments(&["--quota-backend-bytes=8388608"]);
    let cluster = Cluster::start(plan);
    let store = store(&cluster).await;
    let start = store.commit(put("o/a", "1")).await.unwrap();
    let mut watch = store.watch(Prefix::new("o/small/").unwrap(), start);
    let lease = store.grant_lease(Duration::from_secs(60)).await.unwrap();
    let fill = || put("o/filler", vec![b'x'; 500_000]);
    let error = loop {
        if let Err(error) = store.commit(fill()).await {
            break error;
        }
    };
    let alarms = cluster.ctl(&["alarm", "list"]);
    assert!(alarms.contains("NOSPACE"), "{alarms}");
    assert!(
        matches!(
            error,
            StoreError::Unavailable {
                retry_after: Some(_),
                ..
            }
        ),
        "{error}"
    );
    assert!(
        error.to_string().contains("database space exceeded"),
        "{error}"
    );
    assert!(
        error.to_string().contains(&cluster.members[0].endpoint()),
        "{error}"
    );
    // What takes no room works.
    assert!(store.get(&[key("o/a")]).await.unwrap().records[0].is_some());
    store.keep_alive(lease.id).await.unwrap();
    let last = store
        .commit(Transaction::new().delete(key("o/filler")))
        .await
        .unwrap();
    cluster.ctl(&["compact", &last.counter().to_string()]);
    cluster.ctl(&["defrag"]);
    cluster.ctl(&["alarm", "disarm"]);
    let last = store.commit(put("o/small/a", "1")).await.unwrap();
    let told = async {
        loop {
            match watch.next().await.unwrap().unwrap() {
                WatchEvent::Changes { revision, .. } if revision == last => return,
                _ => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), told)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_token_that_expires_is_renewed() {
    let plan = Plan::one(Release::V3_5)
        .with_auth()
        .with_arguments(&["--auth-token-ttl=1", "--log-level=debug"]);
    let cluster = Cluster::start(plan);
    let store = store(&cluster).await;
    let start = store.commit(put("o/a", "1")).await.unwrap();
    let mut early = store.watch(Prefix::new("o/").unwrap(), start);
    // It expires because nobody uses it.
    let deleted = |logs: &str| logs.matches("deleted a simple token").count();
    // etcdctl's own tokens expire as well: the store's is the last to be used.
    let mut quiet = 0;
    wait_until(Duration::from_secs(20), "the token expires", || {
        std::thread::sleep(Duration::from_millis(500));
        let now = deleted(&cluster.logs());
        let still = std::mem::replace(&mut quiet, now) == now;
        still && now > 0
    });
    let second = store.commit(put("o/a", "2")).await.unwrap();
    let mut late = store.watch(Prefix::new("o/").unwrap(), second);
    let last = store.commit(put("o/b", "1")).await.unwrap();
    for watch in [&mut early, &mut late] {
        let told = async {
            loop {
                match watch.next().await.unwrap().unwrap() {
                    WatchEvent::Changes { revision, .. } if revision == last => return,
                    WatchEvent::Reset { reason } => panic!("{reason}"),
                    _ => {}
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), told)
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn certificates_are_rotated_under_a_running_store() {
    let mut cluster = Cluster::start(Plan::one(Release::V3_5).with_tls());
    let proxy = Proxy::start(cluster.members[0].endpoint()).await;
    let own = tempfile::tempdir().unwrap();
    let names = || vec!["client.test".to_owned()];
    let ca = cluster.authority.write(own.path());
    let (certificate, client_key) = cluster
        .authority
        .issue("", names())
        .write(own.path(), "own");
    let tls = Tls::new(&ca)
        .with_client_certificate(certificate, client_key)
        .with_server_name("etcd.test");
    let mut options = brisk(cluster.options());
    options.tls = Some(tls);
    options.reload_interval = Duration::from_millis(100);
    let location = format!("etcd://{}/r", proxy.address).parse().unwrap();
    let store = Arc::new(EtcdStore::connect(location, options).await.unwrap());
    let workload = Workload::start(store);
    workload.commits(10).await;

    // Half a change is not used, and what works goes on.
    let before = proxy.accepted();
    std::fs::write(own.path().join("own.pem"), "half").unwrap();
    workload.commits(20).await;
    assert_eq!(proxy.accepted(), before);

    // A new certificate of the client: connections are made with it, and nothing is noticed.
    cluster
        .authority
        .issue("", names())
        .write(own.path(), "own");
    wait_until(Duration::from_secs(20), "new connections", || {
        proxy.accepted() >= before + 2
    });
    workload.commits(10).await;

    // A new authority for both sides, which the server takes when it is started again.
    let next = Authority::new("the next authority");
    let both = cluster.authority.pem() + &next.pem();
    std::fs::write(&ca, &both).unwrap();
    let server = cluster.dir().join("m0");
    let address = cluster.members[0].address.clone();
    next.issue("server", vec![address, "etcd.test".to_owned()])
        .write(&server, "server");
    std::fs::write(server.join("ca.pem"), next.pem()).unwrap();
    next.issue("", names()).write(own.path(), "own");
    cluster.members[0].kill();
    workload.failure().await;
    cluster.members[0].start();
    workload.commits(20).await;
    let report = workload.finish().await;
    assert_eq!((report.resets, report.watch_errors), (0, 0), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_halts_again_and_again_is_slow_and_loses_nothing() {
    let cluster = Cluster::start(Plan::three(Release::V3_5));
    let store = store(&cluster).await;
    let workload = Workload::start(store);
    workload.commits(10).await;
    let leader = cluster.leader().unwrap();
    let mut slowest = Duration::ZERO;
    for _ in 0..12 {
        cluster.members[leader].signal(Signal::STOP);
        let began = Instant::now();
        tokio::time::sleep(Duration::from_millis(300)).await;
        cluster.members[leader].signal(Signal::CONT);
        workload.commits(1).await;
        slowest = slowest.max(began.elapsed());
    }
    assert!(slowest >= Duration::from_millis(300));
    let report = workload.finish().await;
    assert_eq!((report.resets, report.watch_errors), (0, 0), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn disks_that_sync_slowly_make_commits_slow_and_lose_nothing() {
    let cluster = Cluster::start(Plan::three(Release::V3_5));
    let store = store(&cluster).await;
    let workload = Workload::start(store);
    workload.commits(10).await;
    let delay = Duration::from_millis(200);
    // A majority is as fast as its slower half: all disks are slow.
    let members = cluster.members.iter();
    let disks: Vec<_> = members.map(|member| member.slow_disk(delay)).collect();
    wait_until(
        Duration::from_secs(30),
        "slow writes of all members",
        || disks.iter().all(|disk| disk.count() > 2),
    );
    // The first may have been under way before.
    workload.commits(1).await;
    let began = Instant::now();
    workload.commits(5).await;
    assert!(began.elapsed() >= delay, "{:?}", began.elapsed());
    drop(disks);
    workload.commits(40).await;
    let report = workload.finish().await;
    assert_eq!((report.resets, report.watch_errors), (0, 0), "{report:?}");
}

#[tokio::test]
async fn a_thousand_watchers_share_one_stream() {
    let cluster = Cluster::start(Plan::one(Release::V3_5));
    let proxy = Proxy::start(cluster.members[0].endpoint()).await;
    let location = format!("etcd://{}/r", proxy.address).parse().unwrap();
    let store = EtcdStore::connect(location, brisk(cluster.options())).await;
    let store = store.unwrap();
    let start = store.commit(put("o/0/a", "1")).await.unwrap();
    let prefix = |n: usize| Prefix::new(format!("o/{n}/")).unwrap();
    let mut watches: Vec<_> = (0..1000).map(|n| store.watch(prefix(n), start)).collect();
    for n in [0, 500, 999] {
        let last = store.commit(put(&format!("o/{n}/b"), "1")).await.unwrap();
        let told = async {
            loop {
                match watches[n].next().await.unwrap().unwrap() {
                    WatchEvent::Changes { revision, changes } => {
                        assert_eq!((revision, changes.len()), (last, 1));
                        return;
                    }
                    WatchEvent::Progress(_) => {}
                    WatchEvent::Reset { reason } => panic!("{reason}"),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), told)
            .await
            .unwrap();
    }
    // One connection for reads, one for the stream.
    assert_eq!(proxy.accepted(), 2);
    let page = store.list(&ListRequest::new(Prefix::all())).await.unwrap();
    assert_eq!(page.records.len(), 4);
}
