//! A run never sees less than what was written for its key before, whatever happens between.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;
use platctrl_framework::controller::Trigger;
use platctrl_framework::store::{
    self, Capabilities, CommitFault, Lease, LeaseId, ListRequest, MemoryStore, Page as ListPage,
    Prefix, Revision, Snapshot, Transaction, WatchStream,
};

use super::*;

/// A store that now and then lists what was so some time ago, as a replica that lags does.
#[derive(Debug)]
struct Lagging {
    inner: MemoryStore,
    lags: Arc<AtomicBool>,
    stale: Arc<AtomicU64>,
}

impl Store for Lagging {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn get<'a>(&'a self, keys: &'a [store::Key]) -> BoxFuture<'a, store::Result<Snapshot>> {
        self.inner.get(keys)
    }

    fn list<'a>(&'a self, request: &'a ListRequest) -> BoxFuture<'a, store::Result<ListPage>> {
        async move {
            let mut request = request.clone();
            if request.at.is_none() && self.lags.load(Ordering::SeqCst) {
                let newest = self.inner.revision();
                let old = Revision::new(newest.epoch(), newest.counter().saturating_sub(7).max(1));
                request.at = Some(old);
                self.stale.fetch_add(1, Ordering::SeqCst);
            }
            self.inner.list(&request).await
        }
        .boxed()
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, store::Result<Revision>> {
        self.inner.commit(transaction)
    }

    fn watch(&self, prefix: Prefix, after: Revision) -> WatchStream {
        self.inner.watch(prefix, after)
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, store::Result<Lease>> {
        self.inner.grant_lease(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, store::Result<()>> {
        self.inner.keep_alive(lease)
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, store::Result<()>> {
        self.inner.revoke_lease(lease)
    }
}

/// Makes a page where it sees none, and never reports.
fn one_page() -> Controller<Site> {
    Controller::new(
        "sites",
        |site: Arc<Object<Site>>, context: Context| async move {
            let pages = context
                .view()
                .list::<Page>()
                .owned_by(&site.metadata.uid)
                .keys();
            let mut changes = context.changes();
            if pages.is_empty() {
                changes.create(&page_of(&site, &context))?;
            }
            changes.commit().await?;
            Ok::<_, ReconcileError>(Action::await_change())
        },
    )
    .owns::<Page>()
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Division {
    Leader,
    Shards,
}

/// Two processes, crashes, stops, delayed and lagging views, lost and late answers: nobody ever
/// makes more `pages` for a site than it is to have.
pub(super) async fn nobody_makes_more(
    seed: u64,
    division: Division,
    pages: usize,
    controller: fn() -> Controller<Site>,
) {
    const SITES: usize = 8;
    let world = World::new().await;
    let faults = world.store.faults();
    for site in 0..SITES {
        let pages = u32::try_from(pages).unwrap();
        world.site(&format!("s{site}"), pages).await;
    }
    let (lags, stale) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
    let start = || {
        let store = Lagging {
            inner: world.store.clone(),
            lags: lags.clone(),
            stale: stale.clone(),
        };
        let runtime = Runtime::new(Arc::new(store), world.environment.clone());
        let runtime = runtime
            .controller(controller())
            .grace(Duration::from_secs(3));
        world.run(match division {
            Division::Leader => runtime.elect_leader("sites"),
            Division::Shards => runtime.shards(4),
        })
    };
    let mut all = vec![Some(start()), Some(start())];
    // Any generator will do that gives the same numbers for the same seed.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let objects = Prefix::new("o/").unwrap();
    let mut handed_over = 0;
    for _ in 0..160 {
        let process = random(2) as usize;
        match random(14) {
            0..=4 if faults.planned_commits() > 0 => {}
            0 => faults.next_commits(2, CommitFault::UnknownApplied),
            1 => faults.next_commits(1, CommitFault::UnknownLost),
            2 | 3 => faults.next_commits(1, CommitFault::UnknownDelayed),
            4 => faults.next_commits(1, CommitFault::Unavailable),
            5 => faults.hold_watches(objects.clone()),
            6 => faults.release_watches(),
            7 => drop(faults.apply_delayed()),
            8 => {
                lags.store(random(2) == 0, Ordering::SeqCst);
                faults.reset_watches();
            }
            9 => {
                if let Some(running) = all[process].take() {
                    running.crash().await;
                    handed_over += 1;
                }
            }
            10 => {
                if let Some(running) = all[process].take() {
                    running.stop().await;
                    handed_over += 1;
                }
            }
            _ => {
                let page = world.store.dump().into_iter();
                let mut page =
                    page.filter(|record| record.key.as_str().contains("/pages/default/"));
                if let Some(page) = page.nth(random((SITES * pages) as u64) as usize) {
                    drop(
                        world
                            .store
                            .commit(Transaction::new().delete(page.key))
                            .await,
                    );
                }
            }
        }
        for place in &mut all {
            if place.is_none() && random(3) == 0 {
                *place = Some(start());
            }
        }
        tokio::time::sleep(Duration::from_millis(random(2500))).await;
        let mut owners = BTreeMap::<String, usize>::new();
        for record in world.store.dump() {
            if let Some(page) = record.key.as_str().split("/pages/default/").nth(1) {
                let owner = page.split('-').next().unwrap().to_owned();
                *owners.entry(owner).or_default() += 1;
            }
        }
        let too_many = owners.values().any(|&there| there > pages);
        assert!(!too_many, "seed {seed}, {division:?}: {owners:?}");
    }
    assert!(
        faults.counts().unknown > 5 && handed_over > 3,
        "the faults happened"
    );
    assert!(stale.load(Ordering::SeqCst) > 0, "lists lagged");
    drop(faults.apply_delayed());
    faults.release_watches();
    lags.store(false, Ordering::SeqCst);
    all[0].get_or_insert_with(start);
    until("each site has its pages", || async {
        world.count("o/intent/example.dev/pages/") == SITES * pages
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn nobody_makes_two_across_changes_of_the_leader_lost_answers_and_views_that_lag() {
    for seed in 1..=8 {
        nobody_makes_more(seed, Division::Leader, 1, one_page).await;
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_makes_two_across_hand_overs_of_shards_lost_answers_and_views_that_lag() {
    for seed in 101..=108 {
        nobody_makes_more(seed, Division::Shards, 1, one_page).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_from_before_what_was_seen_is_not_taken() {
    let world = World::new().await;
    world.site("a", 1).await;
    let (lags, stale) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
    let store = Lagging {
        inner: world.store.clone(),
        lags: lags.clone(),
        stale: stale.clone(),
    };
    let trigger = Trigger::new();
    let controller = one_page().triggered_by(&trigger);
    let runtime = Runtime::new(Arc::new(store), world.environment.clone());
    let running = world.run(runtime.controller(controller));
    let pages = || world.count("o/intent/example.dev/pages/");
    until("it has its page", || async { pages() == 1 }).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    lags.store(true, Ordering::SeqCst);
    world.store.faults().reset_watches();
    until("an old list was read", || async {
        stale.load(Ordering::SeqCst) > 2
    })
    .await;
    for _ in 0..20 {
        trigger.fire(site_key("a"), "look again");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(pages(), 1, "the page is still seen");
    assert!(
        running.handle.status().unwrap().sources[0]
            .failing
            .is_some()
    );
    lags.store(false, Ordering::SeqCst);
    world.site("b", 1).await;
    until("it goes on", || async { pages() == 2 }).await;
}
