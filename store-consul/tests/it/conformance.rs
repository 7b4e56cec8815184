//! The framework's conformance suite, plain and with TLS and access control.
//!
//! Every case has a root of its own on one server. Those that kill the server run alone, behind
//! the others.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use platctrl_framework::conformance::{Case, Subject, Verdict, cases};
use platctrl_framework::environment::Environment;
use platctrl_framework::store::Store;
use platctrl_store_consul::ConsulStore;

use crate::proxy::Proxy;
use crate::server::{Cluster, Plan, root};

/// What Consul does not promise (capabilities), and what has no hook: it keeps no history.
const WITHOUT: &[&str] = &[
    "a_pinned_list_shows_the_past",
    "a_list_at_no_revision_of_this_history_is_not_the_newest",
    "an_exact_watch_tells_every_transaction_in_order",
    "a_watch_behind_the_history_is_reset",
    "a_list_behind_the_history_is_compacted",
];
/// These kill the server.
const ALONE: &[&str] = &[
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
const AT_ONCE: usize = 6;

type Shared = Arc<Mutex<Cluster>>;

fn locked(cluster: &Shared) -> std::sync::MutexGuard<'_, Cluster> {
    cluster.lock().unwrap()
}

async fn fresh(cluster: Shared, name: &str) -> Subject {
    let root = root();
    let (mut address, options) = {
        let cluster = locked(&cluster);
        (cluster.address(0, &root), cluster.options())
    };
    let mut guard = None;
    if LOSSY.contains(&name) {
        let proxy = Proxy::start(format!("{}:{}", address.host(), address.port())).await;
        address = format!("consul://{}/{root}", proxy.address)
            .parse()
            .unwrap();
        guard = Some(LossyGuard(proxy));
    }
    let open = {
        let address = address.clone();
        move || {
            let (address, options) = (address.clone(), options.clone());
            async move {
                let store = ConsulStore::open(&address, options, Environment::system());
                Arc::new(store.await.unwrap()) as Arc<dyn Store>
            }
        }
    };
    let subject = Subject::new(open().await).with_lease_ttl(Duration::from_secs(1));
    if let Some(guard) = guard {
        let lose_next = guard.0.lose_next();
        return subject
            .with_lost_answers(move || {
                lose_next();
                Box::pin(async {})
            })
            .with_guard(guard);
    }
    if !ALONE.contains(&name) {
        return subject;
    }
    subject.with_reopening(move || {
        {
            let mut cluster = locked(&cluster);
            cluster.servers[0].kill();
            cluster.servers[0].start();
            cluster.wait_until_ready();
        }
        Box::pin(open())
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

fn run(plan: Plan) {
    let cluster: Shared = Arc::new(Mutex::new(Cluster::start(plan)));
    let only = std::env::var("PLATCTRL_CASE").ok();
    let wanted = |case: &&Case| {
        let special = LOSSY.contains(&case.name()) || ALONE.contains(&case.name());
        // The proxy reads what it carries, and a server that is killed is the same with TLS.
        only.as_deref().is_none_or(|only| case.name() == only) && !(plan.tls && special)
    };
    let (alone, together): (Vec<&Case>, Vec<&Case>) = cases()
        .iter()
        .filter(wanted)
        .partition(|case| ALONE.contains(&case.name()));
    let failures = Mutex::new(Vec::new());
    let check = |case: &Case| {
        let verdict = case.check(|| fresh(Arc::clone(&cluster), case.name()));
        let without = WITHOUT.contains(&case.name());
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
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().unwrap().next();
                    let Some(case) = next else { return };
                    check(case);
                }
            });
        }
    });
    for case in alone {
        check(case);
    }
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{}\n{}",
        failures.join("\n"),
        locked(&cluster).logs()
    );
}

#[test]
fn conformance_on_consul() {
    run(Plan::one());
}

#[test]
fn conformance_on_consul_with_tls_and_access_control() {
    run(Plan::one().with_tls().with_acl());
}
