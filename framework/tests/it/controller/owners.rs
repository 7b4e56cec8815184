//! What is remembered of owners is what a look at every object finds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use platctrl_framework::cache::{Owners, Tally, View};
use platctrl_framework::model::{Tree, Uid};
use platctrl_framework::store::Transaction;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

use super::*;

const PAGES: usize = 6;
const SITES: usize = 3;

/// What becomes of a page.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// It is owned by these sites, one bit each; made, if it was not there.
    Owned(u8),
    /// Its spec cannot be read any more.
    Unreadable,
    /// It is no more.
    Gone,
}

fn change() -> impl Strategy<Value = (usize, Change)> {
    let change = prop_oneof![
        6 => (0u8..1 << SITES).prop_map(Change::Owned),
        1 => Just(Change::Unreadable),
        2 => Just(Change::Gone),
    ];
    (0..PAGES, change)
}

struct Pages {
    world: World,
    running: Running,
    sites: Vec<Object<Site>>,
}

impl Pages {
    async fn new() -> Self {
        let world = World::new().await;
        let mut sites = Vec::new();
        for site in 0..SITES {
            sites.push(world.site(&format!("s{site}"), 1).await);
        }
        let running = world.run(world.runtime().kind::<Page>());
        Self {
            world,
            running,
            sites,
        }
    }

    async fn apply(&self, page: usize, change: Change) {
        let name = format!("p{page}");
        let key = ObjectKey::namespaced("example.dev", "pages", "default", &name).unwrap();
        let record = key.store_key(Tree::Intent);
        let there = self.world.store.peek(&record);
        let intent = there.map(|it| serde_json::from_slice::<Value>(&it.value).unwrap());
        let changed = match (change, intent) {
            (Change::Owned(owners), None) => {
                let mut metadata = named(&name);
                metadata.owner_references = self.owners(owners);
                let text = "hello".to_owned();
                let page = Object::<Page>::new(metadata, PageSpec { text });
                self.world.client.create(&page).await.unwrap();
                return;
            }
            (Change::Owned(owners), Some(mut intent)) => {
                let owners = serde_json::to_value(self.owners(owners)).unwrap();
                intent["metadata"]["ownerReferences"] = owners;
                intent["spec"]["text"] = json!("other");
                Transaction::new().put(record, intent.to_string())
            }
            (Change::Unreadable, Some(mut intent)) => {
                intent["spec"]["text"] = json!(1);
                Transaction::new().put(record, intent.to_string())
            }
            (Change::Gone, Some(_)) => Transaction::new().delete(record),
            (Change::Unreadable | Change::Gone, None) => return,
        };
        self.world.store.commit(changed).await.unwrap();
    }

    fn owners(&self, bits: u8) -> Vec<platctrl_framework::model::OwnerReference> {
        let chosen = self.sites.iter().enumerate();
        let chosen = chosen.filter(|(site, _)| bits & 1 << site != 0);
        chosen.map(|(_, site)| site.owner_reference()).collect()
    }

    async fn view(&self) -> View {
        until("the view shows it", || async {
            let view = self.running.handle.view();
            view.is_some_and(|view| view.revision() >= self.world.store.revision())
        })
        .await;
        self.running.handle.view().unwrap()
    }
}

/// All that there is to each page, by path.
#[derive(Default)]
struct Told(BTreeMap<String, String>);

impl Tally<Page> for Told {
    fn put(&mut self, key: &Arc<ObjectKey>, page: Option<&Object<Page>>) {
        let path = key.path().to_owned();
        match page {
            Some(page) => drop(self.0.insert(path, format!("{page:?}"))),
            None => drop(self.0.remove(&path)),
        }
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Asks about the views in this order.
fn check(views: &[View], owners: &[Uid], order: &[Index]) -> Result<(), TestCaseError> {
    let remembered = Owners::<Page, Told>::new();
    for (asked, index) in order.iter().enumerate() {
        let view = index.get(views);
        for owner in owners {
            let looked = view.list::<Page>().owned_by(owner).to_vec();
            let looked: Vec<String> = looked.iter().map(|page| format!("{page:?}")).collect();
            let kept = remembered.of(view, owner, |told| told.0.values().cloned().collect());
            let kept: Vec<String> = kept;
            prop_assert_eq!(kept, looked);
        }
        if asked % 5 == 4 {
            remembered.forget();
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_is_remembered_of_owners_is_what_a_look_at_every_object_finds(
        changes in proptest::collection::vec(change(), 1..16),
        // Newer and older views in turn, as several runs at once ask about them.
        order in proptest::collection::vec(any::<Index>(), 12),
    ) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let pages = Pages::new().await;
            let mut views = vec![pages.view().await];
            for (page, change) in changes {
                pages.apply(page, change).await;
                views.push(pages.view().await);
            }
            let uids = pages.sites.iter().map(|site| site.metadata.uid.clone());
            let uids: Vec<Uid> = uids.chain(["nobody".into()]).collect();
            check(&views, &uids, &order)
        })?;
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_what_an_owner_has_commits_nothing_while_one_of_them_cannot_be_read() {
    let pages = Pages::new().await;
    for page in 0..2 {
        pages.apply(page, Change::Owned(1)).await;
    }
    pages.apply(1, Change::Unreadable).await;
    let (remembered, runs) = (Owners::<Page, Told>::new(), Arc::new(AtomicU32::new(0)));
    let counted = runs.clone();
    let reconcile = move |site: Arc<Object<Site>>, context: Context| {
        let (remembered, runs) = (remembered.clone(), counted.clone());
        async move {
            let uid = &site.metadata.uid;
            let owned = remembered.of(context.view(), uid, |told| told.0.len());
            runs.fetch_add(1, Ordering::SeqCst);
            let mut changes = context.changes();
            let mut status = site.status.clone();
            status.observed_generation = Some(site.metadata.generation);
            status.detail.pages = u32::try_from(owned).unwrap();
            changes.report::<Site>(&status)?;
            changes.commit().await?;
            Ok::<_, ReconcileError>(Action::await_change())
        }
    };
    let controller = Controller::new("sites", reconcile).owns::<Page>();
    let _running = pages
        .world
        .run(pages.world.runtime().controller(controller));
    let reported = async |site: &str| {
        let site = pages.world.client.get::<Site>(&site_key(site)).await;
        let status = site.unwrap().status;
        status.observed_generation.map(|_| status.detail.pages)
    };
    until("the others are reported on", || async {
        reported("s1").await == Some(0) && reported("s2").await == Some(0)
    })
    .await;
    until("it has been run, too", || async {
        runs.load(Ordering::SeqCst) > 3
    })
    .await;
    assert_eq!(reported("s0").await, None, "one of two is not all");
    pages.apply(1, Change::Gone).await;
    until("it is told of what is there", || async {
        reported("s0").await == Some(1)
    })
    .await;
}
