//! The framework's failsafe cases on a real server, restored as Consul does it.

use std::sync::{Arc, Mutex};

use platctrl_framework::conformance::failsafe::cases;
use platctrl_framework::conformance::{Case, Restored, Subject, Verdict};
use platctrl_framework::environment::Environment;
use platctrl_framework::store::Store;
use platctrl_store_consul::ConsulStore;

use crate::server::{Cluster, Plan, random, root};

/// Consul puts a backup back with the revisions of its records, while its own go on: that is
/// neither of the two.
const WITHOUT: &[&str] = &["failsafe_store_restored_older"];
/// These replace what the whole server holds.
const ALONE: &[&str] = &[
    "failsafe_store_restored_older",
    "failsafe_store_restored_forward",
    "failsafe_store_restored_while_nobody_looked",
];
/// Cases at once. Most of them wait.
const AT_ONCE: usize = 4;

type Shared = Arc<Mutex<Cluster>>;

fn locked(cluster: &Shared) -> std::sync::MutexGuard<'_, Cluster> {
    cluster.lock().unwrap()
}

async fn open(cluster: Shared) -> Arc<ConsulStore> {
    let (address, options) = {
        let cluster = locked(&cluster);
        (cluster.address(0, &root()), cluster.options())
    };
    let store = ConsulStore::open(&address, options, Environment::system());
    Arc::new(store.await.unwrap())
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
                locked(&saved).consul(&["snapshot", "save", &kept]);
                Box::pin(async {})
            },
            move |_: Restored| {
                locked(&cluster).consul(&["snapshot", "restore", &last]);
                let store: Arc<dyn Store> = again.clone();
                Box::pin(async move { store })
            },
        )
}

fn run() {
    let only = std::env::var("PLATCTRL_CASE").ok();
    let wanted = |case: &&Case| only.as_deref().is_none_or(|only| case.name() == only);
    let (alone, together): (Vec<&Case>, Vec<&Case>) = cases()
        .iter()
        .filter(wanted)
        .filter(|case| !WITHOUT.contains(&case.name()))
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
        let cluster: Shared = Arc::new(Mutex::new(Cluster::start(Plan::one())));
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
            let cluster: Shared = Arc::new(Mutex::new(Cluster::start(Plan::one())));
            check(&cluster, case);
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn failsafe_cases_on_consul() {
    run();
}
