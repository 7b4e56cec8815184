//! Commits of one run that are under way together: each happens at most once, and none behind
//! what the next run decides.

use std::sync::atomic::{AtomicU32, Ordering};

use futures::future::join_all;
use platctrl_framework::controller::Changes;
use platctrl_framework::model::Tree;
use platctrl_framework::store::CommitFault;

use super::fresh::{Division, nobody_makes_more};
use super::*;

fn with_a_page<'c>(
    site: &Object<Site>,
    context: &'c Context,
) -> Result<Changes<'c>, ReconcileError> {
    let mut changes = context.changes();
    changes.create(&page_of(site, context))?;
    Ok(changes)
}

/// Makes the pages that a site is short of, a commit for each, all but the first at once.
async fn make_pages_abreast(
    site: Arc<Object<Site>>,
    context: Context,
    before_the_others: impl FnOnce(),
) -> Result<Action, ReconcileError> {
    let pages = context.view().list::<Page>();
    let there = pages.owned_by(&site.metadata.uid).keys().len();
    let missing = (site.spec.pages as usize).saturating_sub(there);
    if missing == 0 {
        return Ok(Action::await_change());
    }
    let abreast = with_a_page(&site, &context)?.commit_abreast().await?;
    before_the_others();
    let others = (1..missing).map(|_| with_a_page(&site, &context));
    let others = others.collect::<Result<Vec<_>, _>>()?;
    let answers = join_all(others.into_iter().map(|changes| abreast.commit(changes))).await;
    for answer in answers {
        answer?;
    }
    let mut last = context.changes();
    last.batch().bump(&context.joined())?;
    last.commit().await?;
    Ok(Action::await_change())
}

fn abreast() -> Controller<Site> {
    Controller::new("sites", |site, context| {
        make_pages_abreast(site, context, || {})
    })
    .owns::<Page>()
}

#[tokio::test(start_paused = true)]
async fn with_commits_abreast_nobody_makes_more_across_changes_of_the_leader_and_lost_answers() {
    for seed in 201..=208 {
        nobody_makes_more(seed, Division::Leader, 4, abreast).await;
    }
}

#[tokio::test(start_paused = true)]
async fn with_commits_abreast_nobody_makes_more_across_hand_overs_of_shards_and_lost_answers() {
    for seed in 301..=308 {
        nobody_makes_more(seed, Division::Shards, 4, abreast).await;
    }
}

/// Commits are under way, as the site's report says.
fn says_abreast(world: &World, site: &str) -> bool {
    let report = world.store.peek(&site_key(site).store_key(Tree::Reality));
    report.is_some_and(|report| {
        let report: serde_json::Value = serde_json::from_slice(&report.value).unwrap();
        report["metadata"]["abreast"] == true
    })
}

const PAGES: &str = "o/intent/example.dev/pages/";

#[tokio::test(start_paused = true)]
async fn commits_abreast_all_happen_and_the_report_says_so_as_long_as_they_may() {
    let world = World::new().await;
    let said = Arc::new(AtomicU32::new(0));
    let (seen, of) = (said.clone(), world.clone());
    let controller = Controller::new("sites", move |site, context| {
        let (seen, of) = (seen.clone(), of.clone());
        make_pages_abreast(site, context, move || {
            seen.fetch_add(u32::from(says_abreast(&of, "a")), Ordering::SeqCst);
        })
    });
    let _running = world.run(world.runtime().controller(controller.owns::<Page>()));
    world.site("a", 6).await;
    until("all are there", || async { world.count(PAGES) == 6 }).await;
    until("it is over", || async { !says_abreast(&world, "a") }).await;
    assert_eq!(said.load(Ordering::SeqCst), 1, "it was said once");
}

/// Of the commits that a first run has under way one is answered by nobody, and happens when the
/// next run has begun: behind the view that this decides on, and before its own commit.
#[tokio::test(start_paused = true)]
async fn a_commit_that_happens_behind_the_next_runs_view_is_seen_before_it_decides() {
    let world = World::new().await;
    let runs = Arc::new(AtomicU32::new(0));
    let (counted, of) = (runs.clone(), world.clone());
    let controller = Controller::new("sites", move |site, context| {
        let run = counted.fetch_add(1, Ordering::SeqCst);
        let faults = of.store.faults();
        if run == 1 {
            let late = faults.apply_delayed();
            assert!(matches!(late.as_slice(), [Ok(_)]), "it happens: {late:?}");
        }
        make_pages_abreast(site, context, move || {
            if run == 0 {
                faults.next_commits(1, CommitFault::UnknownDelayed);
            }
        })
    });
    let running = world.run(world.runtime().controller(controller.owns::<Page>()));
    world.site("a", 6).await;
    until("another run has begun", || async {
        runs.load(Ordering::SeqCst) > 1
    })
    .await;
    until("it is over", || async { !says_abreast(&world, "a") }).await;
    until("the view shows all", || async {
        let view = running.handle.view();
        view.is_some_and(|view| view.revision() >= world.store.revision())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.store.faults().counts().unknown, 1, "it got lost");
    assert_eq!(world.count(PAGES), 6);
}

#[tokio::test(start_paused = true)]
async fn what_a_process_that_died_had_under_way_ends_with_the_first_commit_of_the_next() {
    let world = World::new().await;
    let (of, stopped) = (world.clone(), Arc::new(AtomicU32::new(0)));
    let seen = stopped.clone();
    let controller = Controller::new("sites", move |site, context| {
        let (of, seen) = (of.clone(), seen.clone());
        make_pages_abreast(site, context, move || {
            // What comes behind the first of them is not answered before the process dies.
            of.store.faults().set_latency(Duration::from_secs(3600));
            seen.fetch_add(1, Ordering::SeqCst);
        })
    });
    let running = world.run(world.runtime().controller(controller.owns::<Page>()));
    world.site("a", 6).await;
    until("they are under way", || async {
        stopped.load(Ordering::SeqCst) == 1
    })
    .await;
    running.crash().await;
    assert!(says_abreast(&world, "a"), "nobody said that they are over");
    world.store.faults().set_latency(Duration::ZERO);
    let _running = world.run(world.runtime().controller(abreast()));
    until("all are there", || async { world.count(PAGES) == 6 }).await;
    until("it is over", || async { !says_abreast(&world, "a") }).await;
}
