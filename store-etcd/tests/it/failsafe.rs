//! The framework's failsafe cases on a real server, restored as etcd does it.

use std::sync::{Arc, Mutex};

use platctrl_framework::conformance::failsafe::cases;
use platctrl_framework::conformance::{Case, Restored, Subject, Verdict};
use platctrl_framework::store::Store;
use platctrl_store_etcd::EtcdStore;

use crate::server::{Cluster, Plan, Release, random, root};

/// These replace what the whole server holds.
const ALONE: &[&str] = &[
    "failsafe_store_restored_older",
    "failsafe_store_restored_forward",
    "failsafe_store_restored_while_nobody_looked",
];
/// Cases at once. Most of them wait.
const AT_ONCE: usize = 6;

type Shared = Arc<Mutex<Cluster>>;

fn locked(cluster: &Shared) -> std::sync::MutexGuard<'_, Cluster> {
    cluster.lock().unwrap()
}

async fn open(cluster: Shared) -> Arc<EtcdStore> {
    let (location, options) = {
        let cluster = locked(&cluster);
        (cluster.location(&root()), cluster.options())
    };
    Arc::new(EtcdStore::connect(location, options).await.unwrap())
}

async fn fresh(cluster: Shared) -> Subject {
    let store = open(Arc::clone(&cluster)).await;
    let snapshot = {
        let name = format!("snapshot{:x}", random());
        locked(&cluster).dir().join(name).display().to_string()
    };
    let (saved, kept, last) = (Arc::clone(&cluster), snapshot.clone(), snapshot);
    let (again, others) = (Arc::clone(&store), Arc::clone(&cluster));
    Subject::new(store)
        .with_another(move || {
            let cluster = Arc::clone(&others);
            Box::pin(async move { open(cluster).await as Arc<dyn Store> })
        })
        .with_backup(
            move || {
                let _ = std::fs::remove_file(&kept);
                locked(&saved).ctl(&["snapshot", "save", &kept]);
                Box::pin(async {})
            },
            move |how| {
                restore(&mut locked(&cluster), &last, how);
                let store: Arc<dyn Store> = again.clone();
                Box::pin(async move { store })
            },
        )
}

/// Replaces the only member's data by a snapshot's.
fn restore(cluster: &mut Cluster, snapshot: &str, how: Restored) {
    cluster.members[0].kill();
    let data = cluster.dir().join("m0/data");
    let before = cluster.dir().join(format!("m0/before{:x}", random()));
    std::fs::rename(&data, before).unwrap();
    let peer = format!("http://{}:2380", cluster.members[0].address);
    let (token, data) = (cluster.token.clone(), data.display().to_string());
    let mut arguments = vec![
        "snapshot".to_owned(),
        "restore".to_owned(),
        snapshot.to_owned(),
        "--name=m0".to_owned(),
        format!("--data-dir={data}"),
        format!("--initial-cluster=m0={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster-token={token}"),
    ];
    if how == Restored::Forward {
        // What etcd recommends, so that no watch and no cache goes deaf.
        arguments.push("--bump-revision=1000000".to_owned());
        arguments.push("--mark-compacted".to_owned());
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    cluster.ctl(&arguments);
    cluster.members[0].start();
    cluster.wait_until_ready();
}

fn run(release: Release) {
    let only = std::env::var("PLATCTRL_CASE").ok();
    let wanted = |case: &&Case| only.as_deref().is_none_or(|only| case.name() == only);
    let (alone, together): (Vec<&Case>, Vec<&Case>) = cases()
        .iter()
        .filter(wanted)
        .partition(|case| ALONE.contains(&case.name()));
    let failures = Mutex::new(Vec::new());
    let check = |cluster: &Shared, case: &Case| {
        let verdict = case.check(|| fresh(Arc::clone(cluster)));
        if verdict != Verdict::Passed {
            let failed = format!("{}: {verdict:?}", case.name());
            failures.lock().unwrap().push(failed);
        }
    };
    let waiting = Mutex::new(together.into_iter());
    std::thread::scope(|scope| {
        let (check, waiting) = (&check, &waiting);
        let cluster: Shared = Arc::new(Mutex::new(Cluster::start(Plan::one(release))));
        for _ in 0..AT_ONCE {
            let cluster = Arc::clone(&cluster);
            scope.spawn(move || {
                loop {
                    let next = waiting.lock().unwrap().next();
                    let Some(case) = next else { return };
                    check(&cluster, case);
                }
            });
        }
        for case in alone {
            let cluster: Shared = Arc::new(Mutex::new(Cluster::start(Plan::one(release))));
            check(&cluster, case);
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn failsafe_cases_on_etcd_3_5() {
    run(Release::V3_5);
}
