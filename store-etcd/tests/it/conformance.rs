//! The framework's conformance suite, on each release, plain and with TLS and users.
//!
//! Every case has a root of its own on one server. Those that compact the whole history or kill
//! the server run on another one, one behind the other.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use platctrl_framework::conformance::{Case, Subject, Verdict, cases};
use platctrl_framework::store::{Pipeline, Store};
use platctrl_store_etcd::EtcdStore;

use crate::proxy::Proxy;
use crate::server::{Cluster, Plan, Release, root};

/// etcd's limits of compares and writes add up to that of operations.
const WITHOUT: &[&str] = &["operations_up_to_the_limit_are_taken"];
/// These compact the history of the whole server, or kill it.
const ALONE: &[&str] = &[
    "a_watch_behind_the_history_is_reset",
    "a_list_behind_the_history_is_compacted",
    "acknowledged_commits_survive_reopening",
    "revisions_go_on_after_reopening",
    "a_watch_after_reopening_misses_nothing",
];
/// These lose answers.
const LOSSY: &[&str] = &[
    "a_lost_answer_is_unknown_and_never_a_refusal",
    "lost_answers_leave_the_history_linearizable",
];
/// Cases at once. Most of them wait.
const AT_ONCE: usize = 12;

type Shared = Arc<Mutex<Cluster>>;

fn locked(cluster: &Shared) -> std::sync::MutexGuard<'_, Cluster> {
    cluster.lock().unwrap()
}

async fn fresh(cluster: Shared, name: &str) -> Subject {
    let root = root();
    let (location, mut options) = {
        let cluster = locked(&cluster);
        (cluster.location(&root), cluster.options())
    };
    if LOSSY.contains(&name) {
        let endpoint = locked(&cluster).members[0].endpoint();
        let proxy = Proxy::start(endpoint).await;
        let location = format!("etcd://{}/{root}", proxy.address).parse().unwrap();
        if let Some(tls) = &mut options.tls {
            tls.server_name = Some("etcd.test".to_owned());
        }
        let store = EtcdStore::connect(location, options).await.unwrap();
        let lose_next = proxy.lose_next();
        return subject(Arc::new(store))
            .with_lost_answers(move || {
                lose_next();
                Box::pin(async {})
            })
            .with_guard(LossyGuard(proxy));
    }
    let store = EtcdStore::connect(location.clone(), options.clone());
    let subject = subject(Arc::new(store.await.unwrap()));
    if !ALONE.contains(&name) {
        return subject;
    }
    let compacting = Arc::clone(&cluster);
    subject
        .with_compaction(move |revision| {
            let revision = revision.counter().to_string();
            locked(&compacting).ctl(&["compact", &revision]);
            Box::pin(async {})
        })
        .with_reopening(move || {
            {
                let mut cluster = locked(&cluster);
                cluster.members[0].kill();
                cluster.members[0].start();
            }
            let store = EtcdStore::connect(location.clone(), options.clone());
            Box::pin(async move { Arc::new(store.await.unwrap()) as Arc<dyn Store> })
        })
}

/// Holds the proxy, and that it has lost answers, against a suite that asks for none.
struct LossyGuard(Proxy);

impl Drop for LossyGuard {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.0.lost() > 0, "no answer was lost");
        }
    }
}

fn subject(store: Arc<dyn Store>) -> Subject {
    // The shortest that etcd grants, with the elections set below.
    Subject::new(store).with_lease_ttl(Duration::from_secs(1))
}

fn run(plan: Plan) {
    run_wrapped(plan, WITHOUT, |store| store);
}

fn run_wrapped(plan: Plan, without: &[&str], wrap: fn(Arc<dyn Store>) -> Arc<dyn Store>) {
    // A short election makes for short leases and quick restarts.
    let plan = plan.with_arguments(&["--heartbeat-interval=50", "--election-timeout=250"]);
    let only = std::env::var("PLATCTRL_CASE").ok();
    let wanted = |case: &&Case| only.as_deref().is_none_or(|only| case.name() == only);
    let (alone, mut together): (Vec<&Case>, Vec<&Case>) = cases()
        .iter()
        .filter(wanted)
        .partition(|case| ALONE.contains(&case.name()));
    // Those that wait for leases to end take longest.
    together.sort_by_key(|case| !case.name().contains("lease"));
    let failures = Mutex::new(Vec::new());
    let check = |cluster: &Shared, case: &Case| {
        let verdict =
            case.check(|| async { fresh(Arc::clone(cluster), case.name()).await.wrap(wrap) });
        let without = without.contains(&case.name());
        match verdict {
            Verdict::Passed if !without => {}
            Verdict::DoesNotApply(_) if without => {}
            verdict => failures
                .lock()
                .unwrap()
                .push(format!("{}: {verdict:?}", case.name())),
        }
    };
    let waiting = Mutex::new(together.into_iter());
    std::thread::scope(|scope| {
        let (check, waiting) = (&check, &waiting);
        let cluster: Shared = Arc::new(Mutex::new(Cluster::start(plan)));
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
        let cluster: Shared = Arc::new(Mutex::new(Cluster::start(plan)));
        for case in alone {
            check(&cluster, case);
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn conformance_on_etcd_3_5() {
    run(Plan::one(Release::V3_5));
}

/// What the other runs have in pieces: each release runs whole in some, each variant too.
fn only_in_a_soak(plan: Plan) {
    if std::env::var_os("SOAK_MINUTES").is_some() {
        run(plan);
    } else {
        println!("skipped: runs in a soak");
    }
}

#[test]
fn conformance_on_etcd_3_4() {
    only_in_a_soak(Plan::one(Release::V3_4));
}

#[test]
fn conformance_on_etcd_3_5_with_tls_and_users() {
    only_in_a_soak(Plan::one(Release::V3_5).with_tls().with_auth());
}

#[test]
fn conformance_on_etcd_3_4_with_tls_and_users() {
    run(Plan::one(Release::V3_4).with_tls().with_auth());
}

#[test]
fn conformance_on_an_etcd_that_confines_its_users() {
    run(Plan::one(Release::Next).with_tls().with_auth());
}

#[test]
fn conformance_on_etcd_3_5_behind_the_pipeline() {
    // Commits that go together have one revision.
    let without = [WITHOUT, &["concurrent_commits_have_revisions_of_their_own"]].concat();
    run_wrapped(Plan::one(Release::V3_5), &without, |store| {
        Arc::new(Pipeline::new(store))
    });
}
