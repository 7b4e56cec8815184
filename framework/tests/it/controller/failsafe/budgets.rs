//! Budgets, the time after a start, and what is remembered over one.

use std::collections::BTreeMap;

use futures::future::BoxFuture;
use jiff::Timestamp;
use platctrl_framework::controller::Trigger;
use platctrl_framework::environment::Clock;
use platctrl_framework::failsafe::expect_changes;

use super::*;

/// Changes that one commit has room for.
const ROOM: usize = 40;

/// How many pages a controller keeps, where it has made up its mind about that by itself.
#[derive(Clone, Default)]
struct Whim {
    wanted: Arc<Mutex<BTreeMap<String, usize>>>,
    trigger: Trigger,
}

impl Whim {
    fn have(&self, site: &str, wanted: usize) {
        self.wanted.lock().unwrap().insert(site.to_owned(), wanted);
        self.trigger.fire(site_key(site), "a whim");
    }
}

/// A controller that keeps as many pages as its site wants, or as it comes to its mind.
fn keeper(whim: &Whim) -> Controller<Site> {
    slow_keeper(whim, Duration::ZERO)
}

/// The same, which has more to do after each commit.
fn slow_keeper(whim: &Whim, takes: Duration) -> Controller<Site> {
    let wanted = whim.wanted.clone();
    let reconcile = move |site: Arc<Object<Site>>, context: Context| {
        let whim = wanted.lock().unwrap().get(&site.metadata.name).copied();
        async move {
            let pages = context.view().list::<Page>();
            let mut pages = pages.owned_by(&site.metadata.uid).to_vec();
            let wanted = whim.unwrap_or(site.spec.pages as usize);
            let short = wanted.saturating_sub(pages.len());
            let surplus = pages.len().saturating_sub(wanted);
            let mut changes = context.changes();
            for _ in 0..short.min(ROOM) {
                changes.create(&page_of(&site, &context))?;
            }
            for page in pages.drain(..surplus.min(ROOM)) {
                changes.delete(&page.key()?, &DeleteOptions::default())?;
            }
            changes.report::<Site>(&Status {
                observed_generation: Some(site.metadata.generation),
                ..site.status.clone()
            })?;
            changes.commit().await?;
            tokio::time::sleep(takes).await;
            Ok::<_, ReconcileError>(match short.max(surplus) > ROOM {
                true => Action::requeue_after(Duration::from_secs(1)),
                false => Action::await_change(),
            })
        }
    };
    Controller::new("sites", reconcile)
        .watches::<Page>(|_, _| Vec::new())
        .triggered_by(&whim.trigger)
}

fn pages(world: &World) -> usize {
    world.count("o/intent/example.dev/pages/")
}

/// A wall clock that goes with tokio's time.
struct Virtual(tokio::time::Instant);

impl Clock for Virtual {
    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH + self.monotonic()
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// One site with so many pages, settled for long.
async fn settled(count: u32) -> (World, Running, Whim) {
    settled_in(World::new().await, count).await
}

async fn settled_in(world: World, count: u32) -> (World, Running, Whim) {
    world.site("a", count).await;
    let whim = Whim::default();
    let running = world.run(world.runtime().controller(keeper(&whim)));
    until("all pages are made", || async {
        pages(&world) == count as usize
    })
    .await;
    minutes(30).await;
    (world, running, whim)
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_budget_removals_that_nobody_declared_are_held_beyond_twenty() {
    let (world, running, whim) = settled(40).await;
    whim.have("a", 22);
    until("eighteen are ended", || async { pages(&world) == 22 }).await;
    assert_eq!(guards(&running), []);
    whim.have("a", 19);
    until("the rest is held", || async {
        guards(&running) == [Guard::Budget]
    })
    .await;
    // Time alone lets nothing go.
    minutes(30).await;
    assert_eq!(pages(&world), 22);
    until("it is written down", || async {
        world.written().await.held == 1
    })
    .await;
    let hold = world.written().await.holds[0].clone();
    assert!(hold.message.contains("the budget is 20"), "{hold:?}");
    world.reset().await;
    until("it is let go", || async { guards(&running).is_empty() }).await;
    until("what was held is done", || async { pages(&world) == 19 }).await;
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_budget_does_not_count_what_a_newer_spec_orders() {
    let (world, running, _) = settled(100).await;
    let mut site = world.client.get::<Site>(&site_key("a")).await.unwrap();
    site.spec.pages = 10;
    world.client.update(&site).await.unwrap();
    until("ninety are ended", || async { pages(&world) == 10 }).await;
    assert_eq!(guards(&running), []);
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_budget_does_not_count_an_order_that_another_process_goes_on_with() {
    let mut world = World::new().await;
    // An order is remembered by the wall: the next process has no other clock in common.
    let clock = Virtual(tokio::time::Instant::now());
    world.environment = Environment::seeded(Arc::new(clock), 7);
    world.client = Client::new(world.store(), world.environment.clone(), "test");
    let (world, running, whim) = settled_in(world, 100).await;
    running.stop().await;
    let slow = slow_keeper(&whim, Duration::from_secs(1));
    let running = world.run(world.runtime().controller(slow));
    minutes(2).await;
    let mut site = world.client.get::<Site>(&site_key("a")).await.unwrap();
    site.spec.pages = 10;
    world.client.update(&site).await.unwrap();
    // The next commit of it is a second away.
    until("it has begun", || async { pages(&world) < 100 }).await;
    running.crash().await;
    let left = pages(&world);
    assert!(left > 10 + 20, "{left}: more than the budget is left to do");
    let running = world.run(world.runtime().controller(keeper(&whim)));
    until("the rest is ended, too", || async { pages(&world) == 10 }).await;
    assert_eq!(guards(&running), []);
    // A whim is none, though an order was under way before.
    whim.have("a", 40);
    until("some are made", || async { pages(&world) == 40 }).await;
    minutes(30).await;
    running.crash().await;
    let running = world.run(world.runtime().controller(keeper(&whim)));
    minutes(2).await;
    whim.have("a", 10);
    until("that is held", || async {
        guards(&running) == [Guard::Budget]
    })
    .await;
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_budget_has_a_share_of_a_large_kind() {
    let (world, running, whim) = settled(110).await;
    whim.have("a", 88);
    until("twenty in a hundred are ended", || async {
        pages(&world) == 88
    })
    .await;
    assert_eq!(guards(&running), []);
    whim.have("a", 87);
    until("one more is held", || async {
        guards(&running) == [Guard::Budget]
    })
    .await;
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_budget_lets_pass_what_somebody_said_to_expect() {
    let (world, running, whim) = settled(40).await;
    expect_changes(&world.store, &world.environment, "ann", 35)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    whim.have("a", 5);
    until("they are ended", || async { pages(&world) == 5 }).await;
    assert_eq!(guards(&running), []);
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_budget_of_each_failure_domain_is_its_own() {
    let world = World::new().await;
    for site in ["a", "b"] {
        world.site(site, 25).await;
    }
    let whim = Whim::default();
    let domain = |key: &ObjectKey, _: &platctrl_framework::cache::View| {
        key.name().split('-').next().map(str::to_owned)
    };
    let runtime = world.runtime().controller(keeper(&whim));
    let running = world.run(runtime.failsafes(failsafes().failure_domain(domain)));
    until("all pages are made", || async { pages(&world) == 50 }).await;
    minutes(30).await;
    whim.have("a", 5);
    whim.have("b", 5);
    until("twenty of each are ended", || async { pages(&world) == 10 }).await;
    assert_eq!(guards(&running), []);
    whim.have("a", 1);
    until("more of one are held", || async {
        guards(&running) == [Guard::Budget]
    })
    .await;
    assert_eq!(held(&running).holds[0].domain, "a");
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_budget_commits_that_fail_cost_nothing() {
    let (world, running, whim) = settled(25).await;
    let faults = world.store.faults();
    faults.next_commits(5, platctrl_framework::store::CommitFault::Unavailable);
    whim.have("a", 10);
    until("they did fail", || async { faults.planned_commits() == 0 }).await;
    until("they are ended", || async { pages(&world) == 10 }).await;
    assert_eq!(guards(&running), []);
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_cold_start_takes_nothing_away_for_a_while() {
    let (world, running, whim) = settled(6).await;
    running.crash().await;
    whim.have("a", 3);
    let begun = world.environment.monotonic();
    let running = world.run(world.runtime().controller(keeper(&whim)));
    until("it was tried", || async { held(&running).refusals > 0 }).await;
    assert_eq!(pages(&world), 6);
    until("the time is over", || async {
        held(&running).grace_left == Some(Duration::ZERO)
    })
    .await;
    assert!(world.environment.monotonic() - begun >= Duration::from_secs(30));
    until("it is done", || async { pages(&world) == 3 }).await;
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_cold_start_does_not_delay_what_a_person_orders() {
    let (world, running, _) = settled(6).await;
    running.crash().await;
    let mut site = world.client.get::<Site>(&site_key("a")).await.unwrap();
    site.spec.pages = 2;
    world.client.update(&site).await.unwrap();
    let begun = world.environment.monotonic();
    let _running = world.run(world.runtime().controller(keeper(&Whim::default())));
    until("it is done", || async { pages(&world) == 2 }).await;
    assert!(world.environment.monotonic() - begun < Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_cold_start_finds_far_fewer_objects_than_there_were() {
    for in_file in [true, false] {
        let world = World::new().await;
        world.site("a", 20).await;
        let dir = tempfile::tempdir().unwrap();
        let failsafes = match in_file {
            true => failsafes().remember_in(dir.path().join("memory.json")),
            false => failsafes().keep_chain(),
        };
        let whim = Whim::default();
        let run = || {
            let runtime = world.runtime().controller(keeper(&whim));
            world.run(runtime.failsafes(failsafes.clone()))
        };
        let running = run();
        until("all pages are made", || async { pages(&world) == 20 }).await;
        minutes(3).await;
        running.crash().await;
        // While nobody looks, half of the records are lost.
        let lose = world.store.dump();
        let lose = lose
            .iter()
            .filter(|record| record.key.as_str().contains("/pages/"))
            .take(10)
            .fold(Transaction::new(), |all, record| {
                all.delete(record.key.clone())
            });
        world.store.commit(lose).await.unwrap();
        let running = run();
        until("it is noticed", || async {
            guards(&running) == [Guard::Fewer]
        })
        .await;
        assert!(held(&running).holds[0].message.contains("there were 20"));
        minutes(2).await;
        whim.have("a", 1);
        minutes(2).await;
        assert!(pages(&world) >= 10, "nothing more is taken away");
        until("it is written down", || async {
            world.written().await.held == 1
        })
        .await;
        world.reset().await;
        until("it is let go", || async { guards(&running).is_empty() }).await;
    }
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_cold_start_counts_what_was_taken_away_before_it() {
    let world = World::new().await;
    world.site("a", 40).await;
    let dir = tempfile::tempdir().unwrap();
    let whim = Whim::default();
    let run = || {
        let runtime = world.runtime().controller(keeper(&whim));
        let file = dir.path().join("memory.json");
        world.run(runtime.failsafes(failsafes().remember_in(file)))
    };
    let running = run();
    until("all pages are made", || async { pages(&world) == 40 }).await;
    minutes(30).await;
    whim.have("a", 22);
    until("eighteen are ended", || async { pages(&world) == 22 }).await;
    minutes(2).await;
    running.crash().await;
    let running = run();
    minutes(1).await;
    whim.have("a", 17);
    until("five more are held", || async {
        guards(&running) == [Guard::Budget]
    })
    .await;
    assert_eq!(pages(&world), 22);
}

/// A page with a tombstone that a worker has to carry out.
fn page(name: &str, deletion: Option<Value>) -> (Key, Value) {
    let key = ObjectKey::namespaced("example.dev", "pages", "default", name).unwrap();
    let uid = format!("uid-of-{name}");
    let mut intent = json!({
        "apiVersion": "example.dev/v1", "kind": "Page", "spec": {"text": "x"},
        "metadata": {"name": name, "namespace": "default", "uid": uid, "generation": 1},
    });
    if let Some(mut deletion) = deletion {
        deletion["uid"] = json!(uid);
        intent["metadata"]["deletion"] = deletion;
    }
    (key.store_key(Tree::Intent), intent)
}

async fn ended_of_thirty(declared: bool) -> (World, Running, Arc<Mutex<BTreeSet<String>>>) {
    let world = World::new().await;
    for name in 0..30 {
        let (key, intent) = page(&format!("p{name:02}"), None);
        world.put(&key, &intent).await;
    }
    let ended = Arc::<Mutex<BTreeSet<String>>>::default();
    let taken = ended.clone();
    let controller = Controller::<Page>::new("pages", |_, context: Context| async move {
        context.claim().await?;
        Ok::<_, ReconcileError>(Action::await_change())
    })
    .on_delete(move |page, context| {
        let taken = taken.clone();
        async move {
            taken.lock().unwrap().insert(page.metadata.name.clone());
            let mut changes = context.changes();
            changes.report_gone()?;
            changes.commit().await?;
            Ok::<_, ReconcileError>(Action::await_change())
        }
    });
    let running = world.run(world.runtime().controller(controller));
    until("all are worked on", || async {
        world.count("o/reality/example.dev/pages/") == 30
    })
    .await;
    minutes(1).await;
    let mut bulk = Transaction::new();
    for name in 0..30 {
        let mut deletion =
            json!({"at": "2026-01-01T00:00:00Z", "by": "a script", "propagation": "Orphan"});
        if declared {
            deletion["declared"] = json!(true);
        }
        let (key, intent) = page(&format!("p{name:02}"), Some(deletion));
        bulk = bulk.put(key, intent.to_string());
    }
    world.store.commit(bulk).await.unwrap();
    minutes(20).await;
    (world, running, ended)
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_tombstones_in_bulk_that_nobody_declared_are_held_beyond_the_budget() {
    let (world, running, ended) = ended_of_thirty(false).await;
    assert_eq!(ended.lock().unwrap().len(), 20);
    assert_eq!(guards(&running), [Guard::Budget]);
    world.reset().await;
    until("the rest ends", || async {
        ended.lock().unwrap().len() == 30
    })
    .await;
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_tombstones_in_bulk_that_a_person_ordered_are_carried_out() {
    let (_world, running, ended) = ended_of_thirty(true).await;
    assert_eq!(ended.lock().unwrap().len(), 30);
    assert_eq!(guards(&running), []);
}
