//! It bites: for each class of bugs a controller that has it is caught, by what is meant to catch
//! it, and the same controller without it passes.

use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::client::Batch;
use platctrl_framework::controller::{Action, Context, Controller, ReconcileError};
use platctrl_framework::model::{Object, Resource};
use platctrl_framework::store::StoreError;
use platctrl_framework::testing::{
    Failure, FaultKind, Problem, Process, Replica, Simulation, Worker,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::toys::{
    Page, PageSpec, Site, page_of, pages_of, site, site_key, sound_controller, status,
};

/// A shelf that a page stands on.
#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "toys.dev", version = "v1", kind = "Shelf")]
struct ShelfSpec {}

type Outcome = Result<Action, ReconcileError>;

/// A world with one site of so many pages after the other.
fn world(pages: &'static [u32]) -> Simulation {
    Simulation::new()
        .worker(Worker::<Page>::new())
        .quiet(Duration::from_secs(45))
        .scenario(move |world| async move {
            world.create(&site(pages[0], "hello")).await?;
            for pages in &pages[1..] {
                world.settled().await?;
                world
                    .change::<Site>(&site_key(), |site| site.spec.pages = *pages)
                    .await?;
            }
            Ok(())
        })
}

fn caught(simulation: Simulation) -> Failure {
    *simulation.exhaustive().unwrap_err()
}

#[track_caller]
fn by(failure: &Failure, kinds: &[FaultKind]) {
    let [fault] = failure.schedule().faults() else {
        panic!("not exactly one fault: {failure}");
    };
    assert!(kinds.contains(&fault.kind()), "{failure}");
}

/// Intermediate state: what was done is written down before it is done.
pub(super) fn in_two_steps(bug: bool) -> Simulation {
    world(&[2]).controllers(move |replica| {
        let reconcile = move |site: Arc<Object<Site>>, context: Context| async move {
            let wanted = site.spec.pages as usize;
            let there = pages_of(&site, &context).len();
            if bug && site.status.detail.pages as usize == wanted {
                return Outcome::Ok(Action::await_change());
            }
            let mut first = context.changes();
            first.report::<Site>(&status(&site, wanted))?;
            first.commit().await?;
            let mut second = context.changes();
            for _ in there..wanted {
                second.create(&page_of(&site, &context))?;
            }
            second.commit().await?;
            Ok(Action::await_change())
        };
        let sites = Controller::new("sites", reconcile).owns::<Page>();
        replica.runtime().controller(sites).elect_leader("sites")
    })
}

#[test]
fn a_crash_between_two_writes_that_nobody_repairs_is_found() {
    let failure = caught(in_two_steps(true));
    assert!(
        matches!(failure.problem(), Problem::OtherEnd { .. }),
        "{failure}"
    );
    by(
        &failure,
        &[
            FaultKind::CrashAfter,
            FaultKind::CrashBeforeAck,
            FaultKind::LoseAck,
            FaultKind::LoseClaimAfter,
            FaultKind::StaleRestart,
        ],
    );
    in_two_steps(false).exhaustive().unwrap();
}

/// Stale state: pages have names that come again, and the view's word is enough to end one.
fn by_name(bug: bool) -> Simulation {
    world(&[2, 1, 2]).controllers(move |replica| {
        let client = replica.client("sites");
        let reconcile = move |site: Arc<Object<Site>>, context: Context| {
            let client = client.clone();
            async move {
                let pages = pages_of(&site, &context);
                let mut changes = context.changes();
                for number in 0..site.spec.pages.max(pages.len() as u32) {
                    let name = format!("a-{number}");
                    let page = pages.iter().find(|page| page.metadata.name == name);
                    match page {
                        None if number < site.spec.pages => {
                            let mut page = page_of(&site, &context);
                            page.metadata.name = name;
                            changes.create(&page)?;
                        }
                        Some(page) if number >= site.spec.pages && !page.metadata.is_deleted() => {
                            if bug {
                                client.delete(&page.key()?, &Default::default()).await?;
                            } else {
                                changes.delete(&page.key()?, &Default::default())?;
                            }
                        }
                        _ => {}
                    }
                }
                changes.commit().await?;
                Outcome::Ok(Action::await_change())
            }
        };
        let sites = Controller::new("sites", reconcile).owns::<Page>();
        replica.runtime().controller(sites).reap()
    })
}

#[test]
fn what_is_ended_on_the_word_of_a_stale_view_is_found() {
    let failure = caught(by_name(true));
    assert!(
        matches!(failure.problem(), Problem::WorkRepeated { .. }),
        "{failure}"
    );
    by(&failure, &[FaultKind::TravelBack]);
    by_name(false).exhaustive().unwrap();
}

/// Unobserved state: a page's shelf is taken away when the page is seen on its way out.
fn shelves(bug: bool) -> Simulation {
    world(&[2, 1]).replicas(2).controllers(move |replica| {
        if replica.index() == 1 {
            return replica.runtime().kind::<Page>().kind::<Shelf>().reap();
        }
        let reconcile = move |site: Arc<Object<Site>>, context: Context| async move {
            let pages = pages_of(&site, &context);
            let live: Vec<_> = pages
                .iter()
                .filter(|page| !page.metadata.is_deleted())
                .collect();
            let shelves = context
                .view()
                .list::<Shelf>()
                .owned_by(&site.metadata.uid)
                .to_vec();
            let mut changes = context.changes();
            for _ in live.len()..site.spec.pages as usize {
                let page = page_of(&site, &context);
                changes.create(&page)?;
                changes.create(&Object::<Shelf>::new(page.metadata, ShelfSpec {}))?;
            }
            for page in live.iter().skip(site.spec.pages as usize) {
                changes.delete(&page.key()?, &Default::default())?;
            }
            for shelf in shelves.iter().filter(|shelf| !shelf.metadata.is_deleted()) {
                let page = pages
                    .iter()
                    .find(|page| page.metadata.name == shelf.metadata.name);
                let leaving = page.is_some_and(|page| page.metadata.is_deleted());
                if leaving || (!bug && page.is_none()) {
                    changes.delete(&shelf.key()?, &Default::default())?;
                }
            }
            changes.commit().await?;
            Outcome::Ok(Action::await_change())
        };
        let sites = Controller::new("sites", reconcile)
            .owns::<Page>()
            .owns::<Shelf>();
        replica.runtime().controller(sites).elect_leader("sites")
    })
}

#[test]
fn a_state_that_is_relied_on_to_be_seen_is_found() {
    let failure = caught(shelves(true));
    assert!(
        matches!(failure.problem(), Problem::OtherEnd { .. }),
        "{failure}"
    );
    by(
        &failure,
        &[
            FaultKind::Hide,
            FaultKind::CrashAfter,
            FaultKind::StaleRestart,
            FaultKind::CrashBeforeAck,
            FaultKind::LoseClaimAfter,
        ],
    );
    // Also with nothing else going wrong.
    let hidden = shelves(true)
        .without(FaultKind::CrashAfter)
        .without(FaultKind::StaleRestart);
    let hidden = hidden
        .without(FaultKind::CrashBeforeAck)
        .without(FaultKind::LoseClaimAfter);
    let hidden = hidden.without(FaultKind::LoseClaim);
    by(&caught(hidden), &[FaultKind::Hide]);
    shelves(false).exhaustive().unwrap();
}

/// What was not confirmed is done again at once, under another name.
fn again(bug: bool) -> Simulation {
    world(&[2]).controllers(move |replica| {
        let store = replica.store();
        let reconcile = move |site: Arc<Object<Site>>, context: Context| {
            let store = store.clone();
            async move {
                let wanted = site.spec.pages as usize;
                for _ in pages_of(&site, &context).len()..wanted {
                    if !bug {
                        let mut changes = context.changes();
                        changes.create(&page_of(&site, &context))?;
                        changes.commit().await?;
                        continue;
                    }
                    loop {
                        let mut batch = Batch::new();
                        batch.create_typed(context.environment(), &page_of(&site, &context))?;
                        match store.commit(batch.into_transaction()).await {
                            Ok(_) => break,
                            Err(StoreError::Unknown { .. }) => {}
                            Err(error) => return Err(error.into()),
                        }
                    }
                }
                // The next run sees at least this, and with it what was made.
                let mut changes = context.changes();
                changes.report::<Site>(&status(&site, wanted))?;
                changes.commit().await?;
                Outcome::Ok(Action::await_change())
            }
        };
        let sites = Controller::new("sites", reconcile).owns::<Page>();
        replica.runtime().controller(sites).elect_leader("sites")
    })
}

#[test]
fn what_is_done_twice_for_want_of_an_answer_is_found() {
    let failure = caught(again(true).invariant("two pages", |now| now.processes().count() <= 2));
    by(&failure, &[FaultKind::LoseAck]);
    let Problem::Broken { invariant, .. } = failure.problem() else {
        panic!("{failure}");
    };
    assert_eq!(invariant, "two pages");
    again(false)
        .invariant("two pages", |now| now.processes().count() <= 2)
        .exhaustive()
        .unwrap();
}

/// A holder that lost its claim while it was busy writes all the same.
fn unfenced(bug: bool) -> Simulation {
    world(&[2])
        .replicas(2)
        .controllers(move |replica: Replica| {
            let client = replica.client("sites");
            let reconcile = move |site: Arc<Object<Site>>, context: Context| {
                let client = client.clone();
                async move {
                    let there = pages_of(&site, &context).len();
                    for _ in there..site.spec.pages as usize {
                        // Something that takes time.
                        context.environment().sleep(Duration::from_secs(2)).await;
                        let page = page_of(&site, &context);
                        if bug {
                            client.create(&page).await?;
                        } else {
                            let mut changes = context.changes();
                            changes.create(&page)?;
                            changes.commit().await?;
                        }
                    }
                    let mut changes = context.changes();
                    changes.report::<Site>(&status(&site, site.spec.pages as usize))?;
                    changes.commit().await?;
                    Outcome::Ok(Action::await_change())
                }
            };
            let sites = Controller::new("sites", reconcile).owns::<Page>();
            replica.runtime().controller(sites).elect_leader("sites")
        })
}

#[test]
fn a_write_behind_a_lost_claim_is_found() {
    let failure = caught(unfenced(true));
    assert!(
        matches!(failure.problem(), Problem::OtherEnd { .. }),
        "{failure}"
    );
    by(&failure, &[FaultKind::LoseClaim, FaultKind::LoseClaimAfter]);
    unfenced(false).exhaustive().unwrap();
}

/// The end of a site is reported before its pages are ended.
fn ended(bug: bool) -> Simulation {
    Simulation::new()
        .worker(Worker::<Page>::new())
        .controllers(move |replica| {
            let mut sites = sound_controller();
            if bug {
                sites = sites.on_delete(|site: Arc<Object<Site>>, context: Context| async move {
                    let mut changes = context.changes();
                    changes.report_gone()?;
                    changes.commit().await?;
                    let mut changes = context.changes();
                    for page in pages_of(&site, &context) {
                        changes.delete(&page.key()?, &Default::default())?;
                    }
                    changes.commit().await?;
                    Outcome::Ok(Action::await_change())
                });
            }
            replica
                .runtime()
                .controller(sites)
                .reap()
                .elect_leader("sites")
        })
        .scenario(|world| async move {
            world.create(&site(2, "hello")).await?;
            world.settled().await?;
            world.delete(&site_key()).await?;
            Ok(())
        })
}

#[test]
fn what_is_left_behind_is_found() {
    let failure = caught(ended(true));
    assert!(
        matches!(failure.problem(), Problem::Orphan { .. }),
        "{failure}"
    );
    ended(false).exhaustive().unwrap();
}

#[test]
fn a_controller_that_never_comes_to_rest_is_found() {
    let restless = world(&[1]).at_most_writes(300).controllers(|replica| {
        let reconcile = |site: Arc<Object<Site>>, context: Context| async move {
            let mut changes = context.changes();
            changes.report::<Site>(&status(&site, site.status.detail.pages as usize + 1))?;
            changes.commit().await?;
            Outcome::Ok(Action::await_change())
        };
        replica
            .runtime()
            .controller(Controller::<Site>::new("sites", reconcile))
    });
    let failure = restless.run(1).unwrap_err();
    assert!(
        matches!(failure.problem(), Problem::Restless { .. }),
        "{failure}"
    );
}

#[test]
fn a_controller_that_acts_whenever_it_begins_is_found() {
    let moving = world(&[1]).controllers(|replica| {
        let begun = replica.environment().now().to_string();
        let reconcile = move |site: Arc<Object<Site>>, context: Context| {
            let begun = begun.clone();
            async move {
                let mut site = Object::clone(&site);
                site.metadata.annotations.insert("begun".into(), begun);
                let mut changes = context.changes();
                changes.update(&site)?;
                changes.commit().await?;
                Outcome::Ok(Action::await_change())
            }
        };
        replica
            .runtime()
            .controller(Controller::<Site>::new("sites", reconcile))
    });
    let failure = moving.run(1).unwrap_err();
    assert!(
        matches!(failure.problem(), Problem::Moving { .. }),
        "{failure}"
    );
}

#[test]
fn a_change_that_reaches_only_what_is_new_is_found() {
    let simulation = |bug: bool| {
        Simulation::new()
            .worker(Worker::<Page>::new())
            .controllers(move |replica| {
                let reconcile = |site: Arc<Object<Site>>, context: Context| async move {
                    let there = pages_of(&site, &context).len();
                    let mut changes = context.changes();
                    for _ in there..site.spec.pages as usize {
                        changes.create(&page_of(&site, &context))?;
                    }
                    changes.commit().await?;
                    Outcome::Ok(Action::await_change())
                };
                let sites = match bug {
                    true => Controller::new("sites", reconcile).owns::<Page>(),
                    false => sound_controller(),
                };
                replica.runtime().controller(sites).elect_leader("sites")
            })
            .scenario(|world| async move {
                world.create(&site(1, "hello")).await?;
                world.settled().await?;
                world
                    .change::<Site>(&site_key(), |site| site.spec.text = "bye".into())
                    .await?;
                Ok(())
            })
    };
    let failure = caught(simulation(true));
    assert!(
        matches!(failure.problem(), Problem::HistoryShows { .. }),
        "{failure}"
    );
    simulation(true).history_matters().exhaustive().unwrap();
    simulation(false).exhaustive().unwrap();
}

#[test]
fn a_panic_over_an_answer_that_nobody_expects_is_found() {
    let panics = world(&[1]).controllers(|replica| {
        let reconcile = |site: Arc<Object<Site>>, context: Context| async move {
            let there = pages_of(&site, &context).len();
            let mut changes = context.changes();
            for _ in there..site.spec.pages as usize {
                changes.create(&page_of(&site, &context))?;
            }
            changes.commit().await.expect("commits always work");
            Outcome::Ok(Action::await_change())
        };
        let sites = Controller::new("sites", reconcile).owns::<Page>();
        replica.runtime().controller(sites).elect_leader("sites")
    });
    let failure = caught(panics);
    assert!(
        matches!(failure.problem(), Problem::Panicked { .. }),
        "{failure}"
    );
}

#[test]
fn chance_that_was_not_handed_in_is_found() {
    use std::sync::atomic::{AtomicU32, Ordering};
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let chance = world(&[1]).controllers(|replica| {
        let reconcile = |site: Arc<Object<Site>>, context: Context| async move {
            let mut site = Object::clone(&site);
            let run = RUNS.fetch_add(1, Ordering::Relaxed).to_string();
            site.metadata.annotations.entry("run".into()).or_insert(run);
            let mut changes = context.changes();
            changes.update(&site)?;
            changes.commit().await?;
            Outcome::Ok(Action::await_change())
        };
        replica
            .runtime()
            .controller(Controller::<Site>::new("sites", reconcile))
    });
    let failure = caught(chance);
    assert!(
        matches!(failure.problem(), Problem::Chance { .. }),
        "{failure}"
    );
}

/// An error is as good as none: nothing comes again.
fn swallowed(bug: bool) -> Simulation {
    world(&[1, 2])
        .controllers(move |replica| {
            let reconcile = move |site: Arc<Object<Site>>, context: Context| async move {
                let there = pages_of(&site, &context).len();
                let mut changes = context.changes();
                for _ in there..site.spec.pages as usize {
                    changes.create(&page_of(&site, &context))?;
                }
                let done = changes.commit().await;
                if !bug {
                    done?;
                }
                Outcome::Ok(Action::await_change())
            };
            let sites = Controller::new("sites", reconcile).owns::<Page>();
            replica.runtime().controller(sites)
        })
        .without(FaultKind::Restore)
        .without(FaultKind::RestoreAhead)
}

#[test]
fn random_mode_finds_a_swallowed_error_and_shrinks_to_what_it_takes() {
    // Once it is lost, a restart would mend it; so the run must not have one.
    let failure = swallowed(true)
        .work_may_repeat()
        .random(0..120)
        .unwrap_err();
    let faults = failure.schedule().faults();
    assert_eq!(faults.len(), 1, "{failure}");
    assert_eq!(faults[0].kind(), FaultKind::LoseWrite, "{failure}");
    swallowed(false).random(0..20).unwrap();
}

/// What is old by the wall clock is made anew.
fn by_the_clock(bug: bool) -> Simulation {
    world(&[1]).controllers(move |replica| {
        let reconcile = move |site: Arc<Object<Site>>, context: Context| async move {
            let pages = pages_of(&site, &context);
            let now = context.environment().now();
            let mut changes = context.changes();
            let live: Vec<_> = pages
                .iter()
                .filter(|page| !page.metadata.is_deleted())
                .collect();
            for page in &live {
                let created = page.metadata.creation_timestamp.unwrap_or(now);
                if bug && now.duration_since(created).as_hours() >= 1 {
                    changes.delete(&page.key()?, &Default::default())?;
                }
            }
            for _ in live.len()..site.spec.pages as usize {
                changes.create(&page_of(&site, &context))?;
            }
            changes.commit().await?;
            Outcome::Ok(Action::await_change())
        };
        let sites = Controller::new("sites", reconcile).owns::<Page>();
        replica.runtime().controller(sites).reap()
    })
}

#[test]
fn random_mode_finds_who_trusts_the_wall_clock() {
    let failure = by_the_clock(true).random(0..200).unwrap_err();
    by(&failure, &[FaultKind::WallClock]);
    by_the_clock(false).random(0..20).unwrap();
}

/// More than the world can take, for a moment, undisturbed.
#[test]
fn an_invariant_is_checked_on_what_runs_and_not_on_what_is_said() {
    let surge = Simulation::new()
        .worker(Worker::<Page>::new())
        .controllers(|replica| {
            let reconcile = |site: Arc<Object<Site>>, context: Context| async move {
                let all = pages_of(&site, &context);
                let live: Vec<_> = all
                    .iter()
                    .filter(|page| !page.metadata.is_deleted())
                    .collect();
                let (new, old): (Vec<&&Arc<Object<Page>>>, Vec<_>) = live
                    .iter()
                    .partition(|page| page.spec.text == site.spec.text);
                let mut changes = context.changes();
                for _ in new.len()..site.spec.pages as usize {
                    changes.create(&page_of(&site, &context))?;
                }
                for page in old {
                    changes.delete(&page.key()?, &Default::default())?;
                }
                changes.report::<Site>(&status(&site, site.spec.pages as usize))?;
                changes.commit().await?;
                Outcome::Ok(Action::await_change())
            };
            let sites = Controller::new("sites", reconcile).owns::<Page>();
            replica.runtime().controller(sites).reap()
        })
        .scenario(|world| async move {
            world.create(&site(2, "hello")).await?;
            world.settled().await?;
            world
                .change::<Site>(&site_key(), |site| site.spec.text = "bye".into())
                .await?;
            Ok(())
        })
        .invariant("at most two pages run", |now| {
            let texts: Vec<String> = now
                .processes()
                .filter_map(Process::spec::<Page>)
                .map(|spec: PageSpec| spec.text)
                .collect();
            if texts.len() <= 2 {
                Ok(())
            } else {
                Err(format!("there are {texts:?}"))
            }
        });
    let failure = surge.run(1).unwrap_err();
    let Problem::Broken { detail, .. } = failure.problem() else {
        panic!("{failure}");
    };
    assert!(
        detail.contains("hello") && detail.contains("bye"),
        "{detail}"
    );
}
