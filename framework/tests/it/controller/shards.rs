//! Several processes that share the work by shards.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use platctrl_framework::controller::ShardStatus;
use platctrl_framework::store::Key;

use super::*;

const SHARDS: usize = 8;

fn shards(running: &Running) -> ShardStatus {
    let status = running.handle.status();
    status.and_then(|status| status.shards).unwrap_or_default()
}

fn held(all: &[&Running]) -> Vec<usize> {
    let mut held: Vec<_> = all
        .iter()
        .flat_map(|running| shards(running).held)
        .collect();
    held.sort_unstable();
    held
}

fn counts(all: &[&Running]) -> Vec<usize> {
    let mut counts: Vec<_> = all
        .iter()
        .map(|running| shards(running).held.len())
        .collect();
    counts.sort_unstable();
    counts
}

fn join(world: &World, controller: Controller<Site>) -> Running {
    world.run(world.runtime().controller(controller).shards(SHARDS))
}

/// Who ran which site last, and how often.
type Ran = Arc<Mutex<BTreeMap<String, (&'static str, u32)>>>;

/// A controller that notes its runs and finds out if two run one site at once.
fn noting(
    who: &'static str,
    ran: &Ran,
    busy: &Arc<Mutex<BTreeSet<String>>>,
    takes: Duration,
) -> Controller<Site> {
    let (ran, busy) = (ran.clone(), busy.clone());
    Controller::new("sites", move |site: Arc<Object<Site>>, _: Context| {
        let (ran, busy) = (ran.clone(), busy.clone());
        async move {
            let name = site.metadata.name.clone();
            assert!(
                busy.lock().unwrap().insert(name.clone()),
                "{name} is worked on twice"
            );
            tokio::time::sleep(takes).await;
            busy.lock().unwrap().remove(&name);
            let mut ran = ran.lock().unwrap();
            let (last, count) = ran.entry(name).or_insert((who, 0));
            (*last, *count) = (who, *count + 1);
            Ok::<_, ReconcileError>(Action::await_change())
        }
    })
}

#[tokio::test(start_paused = true)]
async fn shards_are_balanced_as_processes_come_and_go_and_few_of_them_move() {
    let world = World::new().await;
    let all: Vec<usize> = (0..SHARDS).collect();
    let first = join(&world, sites());
    until("the first has all", || async { held(&[&first]) == all }).await;
    let second = join(&world, sites());
    until("each has half", || async {
        counts(&[&first, &second]) == [4, 4] && held(&[&first, &second]) == all
    })
    .await;
    let kept: [BTreeSet<usize>; 2] =
        [&first, &second].map(|running| shards(running).held.into_iter().collect());
    let third = join(&world, sites());
    until("three share", || async {
        let three = [&first, &second, &third];
        counts(&three) == [2, 3, 3] && held(&three) == all
    })
    .await;
    for (running, before) in [&first, &second].into_iter().zip(&kept) {
        let now: BTreeSet<usize> = shards(running).held.into_iter().collect();
        assert!(
            now.is_subset(before),
            "nothing moves between those who stay"
        );
    }
    assert_eq!(shards(&first).members, 3);
    third.stop().await;
    until("two share again", || async {
        counts(&[&first, &second]) == [4, 4] && held(&[&first, &second]) == all
    })
    .await;
    assert_eq!(world.count("x/lease/controllers/member-"), 2);
}

#[tokio::test(start_paused = true)]
async fn each_object_is_worked_on_by_one_process_and_by_another_after_a_kill_within_the_time_to_live()
 {
    let world = World::new().await;
    for site in 0..40 {
        world.site(&format!("s{site}"), 0).await;
    }
    let (ran, busy) = (Ran::default(), Arc::default());
    let takes = Duration::from_millis(20);
    let first = join(&world, noting("first", &ran, &busy, takes));
    let second = join(&world, noting("second", &ran, &busy, takes));
    until("they share", || async {
        counts(&[&first, &second]) == [4, 4] && ran.lock().unwrap().len() == 40
    })
    .await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let of = |who: &str| {
        let ran = ran.lock().unwrap();
        ran.values().filter(|(last, _)| *last == who).count()
    };
    assert!(of("first") > 5 && of("second") > 5, "both work");
    let runs: u32 = ran.lock().unwrap().values().map(|(_, count)| count).sum();
    let orphaned = of("first");
    busy.lock().unwrap().clear();
    first.crash().await;
    let begun = world.environment.monotonic();
    until("the second has all", || async { of("second") == 40 }).await;
    let took = world.environment.monotonic() - begun;
    assert!(took <= Duration::from_secs(11), "{took:?}");
    let after: u32 = ran.lock().unwrap().values().map(|(_, count)| count).sum();
    assert_eq!(
        after - runs,
        orphaned as u32,
        "only what was the first's is looked at again"
    );
}

#[tokio::test(start_paused = true)]
async fn a_stop_hands_each_shard_over_at_once_and_no_sooner_than_its_runs_end() {
    let world = World::new().await;
    for site in 0..16 {
        world.site(&format!("s{site}"), 0).await;
    }
    let (ran, busy) = (Ran::default(), Arc::<Mutex<BTreeSet<String>>>::default());
    let slow = Duration::from_secs(3);
    let first = join(&world, noting("first", &ran, &busy, slow).concurrency(2));
    until("two are worked on", || async {
        busy.lock().unwrap().len() == 2
    })
    .await;
    let second = join(&world, noting("second", &ran, &busy, Duration::ZERO));
    until("the second is there", || async {
        shards(&second).members == 2
    })
    .await;
    let begun = world.environment.monotonic();
    let stopping = tokio::spawn(first.stop());
    until("all but what is under way is the second's", || async {
        shards(&second).held.len() >= SHARDS - 2
    })
    .await;
    let took = world.environment.monotonic() - begun;
    assert!(took <= Duration::from_millis(100), "{took:?}");
    assert!(!stopping.is_finished(), "runs that have begun are finished");
    stopping.await.unwrap();
    let begun = world.environment.monotonic();
    until("everything is the second's", || async {
        shards(&second).held.len() == SHARDS
    })
    .await;
    let took = world.environment.monotonic() - begun;
    assert!(took <= Duration::from_millis(100), "{took:?}");
    until("all were worked on", || async {
        let ran = ran.lock().unwrap();
        ran.len() == 16 && ran.values().all(|(last, _)| *last == "second")
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn commits_are_fenced_by_their_own_shards_claim() {
    let world = World::new().await;
    let fences: Arc<Mutex<BTreeMap<String, String>>> = Arc::default();
    let seen = fences.clone();
    let controller =
        Controller::<Site>::new("sites", move |site: Arc<Object<Site>>, context: Context| {
            let seen = seen.clone();
            async move {
                let fence = context.fence().cloned().unwrap();
                assert_eq!(context.claim().await?.epoch(), Some(fence.epoch()));
                let name = site.metadata.name.clone();
                seen.lock().unwrap().insert(name, fence.name().to_owned());
                Ok::<_, ReconcileError>(Action::await_change())
            }
        });
    for site in 0..12 {
        world.site(&format!("s{site}"), 0).await;
    }
    let running = join(&world, controller);
    until("all ran", || async { fences.lock().unwrap().len() == 12 }).await;
    let names: BTreeSet<String> = fences.lock().unwrap().values().cloned().collect();
    assert!(names.len() > 3, "{names:?}");
    // One shard's claim is taken away behind the holder's back: it alone is worked on anew.
    let shard = names.iter().next().unwrap();
    let key = Key::new(format!("x/lease/{shard}")).unwrap();
    let before = world.store.peek(&key).unwrap().created;
    let delete = platctrl_framework::store::Transaction::new().delete(key.clone());
    world.store.commit(delete).await.unwrap();
    until("it is claimed anew", || async {
        world
            .store
            .peek(&key)
            .is_some_and(|record| record.created > before)
            && held(&[&running]) == (0..SHARDS).collect::<Vec<_>>()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_further_process_stands_by_warm_and_works_once_there_is_something_for_it() {
    let world = World::new().await;
    world.site("a", 1).await;
    let run = || world.run(world.runtime().controller(sites()).shards(2));
    let (first, second) = (run(), run());
    until("two share", || async {
        counts(&[&first, &second]) == [1, 1]
    })
    .await;
    let third = run();
    until("the third is there", || async {
        shards(&third).members == 3
    })
    .await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(counts(&[&first, &second, &third]), [0, 1, 1]);
    let view = third.handle.view().unwrap();
    assert_eq!(
        view.list::<Site>().keys().len(),
        1,
        "its view is up to date"
    );
    let begun = world.environment.monotonic();
    first.stop().await;
    until("the third works", || async {
        counts(&[&second, &third]) == [1, 1]
    })
    .await;
    let took = world.environment.monotonic() - begun;
    assert!(took <= Duration::from_millis(100), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_goes_by_another_number_of_shards_waits_for_the_others() {
    let world = World::new().await;
    world.site("a", 1).await;
    let eight = join(&world, sites());
    until("it works", || async { shards(&eight).held.len() == 8 }).await;
    let four = world.run(world.runtime().controller(sites()).shards(4));
    until("it waits", || async { shards(&four).waits_for_others }).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(shards(&four).held, [0; 0]);
    assert_eq!(shards(&eight).held.len(), 8);
    eight.stop().await;
    until("it works by its own number", || async {
        shards(&four).held.len() == 4
    })
    .await;
    assert!(!shards(&four).waits_for_others);
}

#[tokio::test(start_paused = true)]
async fn a_number_of_shards_that_cannot_be_is_refused() {
    let world = World::new().await;
    for count in [0, 257] {
        let refused = world
            .runtime()
            .controller(sites())
            .shards(count)
            .run()
            .await;
        assert!(
            matches!(refused, Err(RunError::Shards { .. })),
            "{refused:?}"
        );
    }
}
