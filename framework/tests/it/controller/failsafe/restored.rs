//! Stores that are away, come back empty, older or newer, and whose chain tells another history.

use platctrl_framework::failsafe::Failsafes;
use platctrl_framework::model::identity::chain_key;

use super::*;

struct Kept {
    world: World,
    seen: Seen,
    absent: Arc<Mutex<BTreeSet<String>>>,
}

impl Kept {
    async fn new(sites: usize) -> Self {
        let world = World::new().await;
        world.sites(sites).await;
        Self {
            world,
            seen: Seen::default(),
            absent: Arc::default(),
        }
    }

    fn run(&self, failsafes: Failsafes) -> Running {
        let runtime = self
            .world
            .runtime()
            .controller(noting(&self.seen, &self.absent));
        self.world.run(runtime.failsafes(failsafes))
    }

    async fn change(&self, site: &str, pages: u32) {
        loop {
            let mut site = self
                .world
                .client
                .get::<Site>(&site_key(site))
                .await
                .unwrap();
            site.spec.pages = pages;
            match self.world.client.update(&site).await {
                Ok(_) => return,
                Err(error) => assert!(error.is_conflict(), "{error}"),
            }
        }
    }

    fn has_seen(&self, site: &str, pages: u32) -> bool {
        let seen = self.seen.lock().unwrap();
        seen.contains(&(site.to_owned(), pages))
    }
}

#[tokio::test(start_paused = true)]
async fn the_chain_grows_by_a_link_each_minute() {
    let it = Kept::new(1).await;
    let _running = it.run(failsafes().keep_chain());
    it.world.claimed(1).await;
    minutes(10).await;
    let links = it.world.count("x/chain/") - 1;
    assert!((10..=11).contains(&links), "{links}");
    assert!(it.world.store.peek(&chain_key(9)).is_some());
}

#[tokio::test(start_paused = true)]
async fn of_two_programs_only_the_one_that_leads_appends_to_the_chain() {
    let world = World::new().await;
    let run = || {
        let runtime = world.runtime().controller(sites()).elect_leader("sites");
        world.run(runtime.failsafes(failsafes().keep_chain()))
    };
    let (_first, _second) = (run(), run());
    minutes(10).await;
    let links = world.count("x/chain/") - 1;
    assert!((10..=11).contains(&links), "{links}");
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_store_restored_with_older_revisions_takes_nothing_until_a_person_looked()
 {
    let it = Kept::new(3).await;
    let running = it.run(failsafes().keep_chain());
    it.world.claimed(3).await;
    minutes(5).await;
    let backup = it.world.store.snapshot();
    it.change("s00", 5).await;
    it.world.site("young", 1).await;
    until("both are worked on", || async {
        it.has_seen("s00", 5) && it.has_seen("young", 1)
    })
    .await;
    minutes(5).await;
    it.seen.lock().unwrap().clear();
    it.world.store.faults().come_back_older(&backup);
    until("it is held", || async {
        guards(&running).contains(&Guard::History)
    })
    .await;
    minutes(10).await;
    let view = running.handle.view().unwrap();
    let shown = view.get::<Site>(&site_key("s00")).unwrap();
    assert_eq!(shown.spec.pages, 5, "nothing is taken from it");
    assert!(it.absent.lock().unwrap().is_empty());
    assert!(!it.has_seen("s00", 1));
    // The other history is not made to look like the one before.
    assert!(it.world.count("x/chain/") <= 7);
    it.world.reset().await;
    until("it is taken as it is", || async {
        guards(&running).is_empty() && it.has_seen("s00", 1)
    })
    .await;
    until("work goes on", || async {
        it.change("s01", 9).await;
        it.has_seen("s01", 9)
    })
    .await;
    it.world.site("later", 1).await;
    until("on new ones too", || async { it.has_seen("later", 1) }).await;
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_store_restored_with_newer_revisions_is_found_by_its_chain() {
    let it = Kept::new(3).await;
    let running = it.run(failsafes().keep_chain());
    it.world.claimed(3).await;
    minutes(5).await;
    let backup = it.world.store.snapshot();
    it.change("s00", 5).await;
    it.world.site("young", 1).await;
    until("both are worked on", || async {
        it.has_seen("s00", 5) && it.has_seen("young", 1)
    })
    .await;
    minutes(5).await;
    it.seen.lock().unwrap().clear();
    // What a restore is recommended to do: revisions go on behind the newest.
    it.world.store.faults().come_back_newer(&backup, 1_000);
    until("it is held", || async {
        guards(&running).contains(&Guard::History)
    })
    .await;
    minutes(30).await;
    let view = running.handle.view().unwrap();
    assert_eq!(view.get::<Site>(&site_key("s00")).unwrap().spec.pages, 5);
    assert_eq!(view.list::<Site>().to_vec().len(), 4);
    assert!(it.absent.lock().unwrap().is_empty());
    assert!(!it.has_seen("s00", 1));
    // What is new takes nothing away.
    it.world.site("later", 1).await;
    until("a new one is worked on", || async {
        it.has_seen("later", 1)
    })
    .await;
    until("it is written down", || async {
        it.world.written().await.held > 0
    })
    .await;
    it.world.reset().await;
    until("it is taken as it is", || async {
        guards(&running).is_empty() && it.has_seen("s00", 1)
    })
    .await;
    let absent = it.absent.lock().unwrap().clone();
    assert_eq!(absent, BTreeSet::from(["young".to_owned()]));
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_store_restored_and_gone_on_without_this_program_is_found_by_another_link()
 {
    let it = Kept::new(3).await;
    let running = it.run(failsafes().keep_chain());
    it.world.claimed(3).await;
    minutes(5).await;
    let backup = it.world.store.snapshot();
    minutes(5).await;
    let faults = it.world.store.faults();
    faults.set_away(true);
    faults.come_back_newer(&backup, 1_000);
    faults.set_away(false);
    // Another program was faster, and every link that this one could remember is there again.
    let mut links = Transaction::new();
    for number in 0..30 {
        let link = json!({"nonce": format!("other{number}"), "at": "2026-01-01T00:00:00Z"});
        links = links.put(chain_key(number), link.to_string());
    }
    let head = json!({"number": 29, "nonce": "other29"});
    links = links.put(Key::new("x/chain/head").unwrap(), head.to_string());
    it.world.store.commit(links).await.unwrap();
    until("it is held", || async {
        guards(&running) == [Guard::History]
    })
    .await;
    assert!(
        held(&running).holds[0]
            .message
            .contains("another one than before")
    );
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_store_older_without_a_chain_is_held_and_can_be_accepted() {
    let it = Kept::new(3).await;
    let running = it.run(failsafes());
    it.world.claimed(3).await;
    minutes(2).await;
    let backup = it.world.store.snapshot();
    it.change("s00", 5).await;
    until("it is worked on", || async { it.has_seen("s00", 5) }).await;
    it.seen.lock().unwrap().clear();
    it.world.store.faults().come_back_older(&backup);
    until("it is held", || async {
        guards(&running) == [Guard::History]
    })
    .await;
    minutes(10).await;
    assert!(!it.has_seen("s00", 1));
    assert!(held(&running).holds[0].message.contains("at revision"));
    it.world.reset().await;
    until("it is taken as it is", || async {
        guards(&running).is_empty() && it.has_seen("s00", 1)
    })
    .await;
    it.change("s01", 7).await;
    until("work goes on", || async { it.has_seen("s01", 7) }).await;
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_store_restored_carries_out_no_tombstone_until_a_person_looked() {
    let it = Kept::new(2).await;
    let running = it.run(failsafes().keep_chain());
    it.world.claimed(2).await;
    minutes(5).await;
    let backup = it.world.store.snapshot();
    minutes(5).await;
    it.world.store.faults().come_back_newer(&backup, 1_000);
    until("it is held", || async {
        guards(&running) == [Guard::History]
    })
    .await;
    it.world.delete(&site_key("s00")).await;
    minutes(30).await;
    assert_eq!(it.world.count("o/intent/example.dev/sites/"), 2);
    let joined = it.world.client.joined(&site_key("s00")).await.unwrap();
    assert!(!joined.is_finished());
    until("it is written down", || async {
        it.world.written().await.held > 0
    })
    .await;
    it.world.reset().await;
    until("it is carried out", || async {
        let joined = it.world.client.joined(&site_key("s00")).await.unwrap();
        joined.is_finished()
    })
    .await;
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_store_that_comes_back_right_ends_the_hold_by_itself() {
    let it = Kept::new(3).await;
    let running = it.run(failsafes().keep_chain());
    it.world.claimed(3).await;
    minutes(5).await;
    let old = it.world.store.snapshot();
    minutes(5).await;
    let right = it.world.store.snapshot();
    it.world.store.faults().come_back_older(&old);
    until("it is held", || async {
        guards(&running) == [Guard::History]
    })
    .await;
    it.world.store.faults().come_back_newer(&right, 10);
    until("it is over", || async { guards(&running).is_empty() }).await;
    it.world.site("later", 1).await;
    until("work goes on", || async { it.has_seen("later", 1) }).await;
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_store_restored_while_nobody_looked_stops_everything_until_a_person_did()
 {
    let it = Kept::new(3).await;
    let dir = tempfile::tempdir().unwrap();
    let failsafes = || {
        let file = dir.path().join("memory.json");
        failsafes().keep_chain().remember_in(file)
    };
    let running = it.run(failsafes());
    it.world.claimed(3).await;
    minutes(5).await;
    let backup = it.world.store.snapshot();
    minutes(5).await;
    running.crash().await;
    it.world.store.faults().come_back_newer(&backup, 1_000);
    it.seen.lock().unwrap().clear();
    let running = it.run(failsafes());
    until("it is held", || async {
        guards(&running) == [Guard::History]
    })
    .await;
    minutes(30).await;
    assert!(it.seen.lock().unwrap().is_empty(), "nothing runs");
    until("it is written down", || async {
        it.world.written().await.held > 0
    })
    .await;
    it.world.reset().await;
    until("it works", || async { it.has_seen("s00", 1) }).await;
    minutes(5).await;
    // What was accepted is remembered from here on.
    running.crash().await;
    let running = it.run(failsafes());
    minutes(5).await;
    assert_eq!(guards(&running), []);
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_store_that_comes_back_empty_is_no_empty_fleet() {
    let it = Kept::new(3).await;
    let running = it.run(failsafes().keep_chain());
    it.world.claimed(3).await;
    minutes(5).await;
    let right = it.world.store.snapshot();
    it.world.store.faults().come_back_empty();
    minutes(60).await;
    let view = running.handle.view().unwrap();
    assert_eq!(view.list::<Site>().to_vec().len(), 3);
    assert!(it.absent.lock().unwrap().is_empty());
    assert_eq!(it.world.count("o/"), 0, "nothing is written into it");
    it.world.store.faults().come_back_newer(&right, 10);
    it.world.site("later", 1).await;
    until("work goes on", || async { it.has_seen("later", 1) }).await;
    until("nothing is held", || async { guards(&running).is_empty() }).await;
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_store_another_one_under_the_same_address_is_refused_also_after_a_restart()
 {
    let it = Kept::new(3).await;
    let dir = tempfile::tempdir().unwrap();
    let failsafes = || failsafes().remember_in(dir.path().join("memory.json"));
    let running = it.run(failsafes());
    it.world.claimed(3).await;
    minutes(5).await;
    running.crash().await;
    let other = Kept::new(3).await;
    let runtime = other
        .world
        .runtime()
        .controller(noting(&other.seen, &other.absent));
    let running = other.world.run(runtime.failsafes(failsafes()));
    until("it is refused", || async {
        guards(&running) == [Guard::History]
    })
    .await;
    minutes(10).await;
    assert!(other.seen.lock().unwrap().is_empty(), "nothing runs");
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_store_that_is_a_clone_under_another_identity_is_refused_after_a_restart()
 {
    let it = Kept::new(3).await;
    let dir = tempfile::tempdir().unwrap();
    let failsafes = || failsafes().remember_in(dir.path().join("memory.json"));
    let running = it.run(failsafes());
    it.world.claimed(3).await;
    minutes(5).await;
    running.crash().await;
    // Its chain goes on from the same links.
    for key in ["x/anchor", "o/.anchor"] {
        let key = Key::new(key).unwrap();
        let anchor = it.world.store.peek(&key).unwrap();
        let mut anchor: Value = serde_json::from_slice(&anchor.value).unwrap();
        anchor["storeId"] = json!("a-clone");
        it.world.put(&key, &anchor).await;
    }
    it.seen.lock().unwrap().clear();
    let running = it.run(failsafes());
    until("it is refused", || async {
        guards(&running) == [Guard::History]
    })
    .await;
    assert!(held(&running).holds[0].message.contains("a-clone"));
    minutes(10).await;
    assert!(it.seen.lock().unwrap().is_empty(), "nothing runs");
}

#[tokio::test(start_paused = true)]
async fn a_memory_that_cannot_be_read_is_begun_anew() {
    let it = Kept::new(1).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("memory.json");
    std::fs::write(&file, "{{{{").unwrap();
    let _running = it.run(failsafes().remember_in(&file));
    it.world.claimed(1).await;
    minutes(3).await;
    let kept: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(kept["kinds"]["sites.example.dev"], 1);
}
