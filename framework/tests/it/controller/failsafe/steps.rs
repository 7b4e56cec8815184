//! Masses of intents and reports that vanish, change or go back in one step.

use super::*;

struct Watched {
    world: World,
    running: Running,
    seen: Seen,
    absent: Arc<Mutex<BTreeSet<String>>>,
}

/// Ten sites that a controller works on.
async fn ten_sites() -> Watched {
    let world = World::new().await;
    world.sites(10).await;
    let (seen, absent) = (Seen::default(), Arc::default());
    let running = world.run(world.runtime().controller(noting(&seen, &absent)));
    world.claimed(10).await;
    minutes(1).await;
    seen.lock().unwrap().clear();
    Watched {
        world,
        running,
        seen,
        absent,
    }
}

impl Watched {
    fn shown(&self) -> usize {
        let view = self.running.handle.view().unwrap();
        view.list::<Site>().to_vec().len()
    }

    async fn is_held(&self, guard: Guard, count: u32) {
        until("it is held", || async { guards(&self.running) == [guard] }).await;
        until("it is written down", || async {
            self.world.written().await.held == 1
        })
        .await;
        let written = self.world.written().await;
        assert_eq!(written.holds[0].guard, guard);
        assert_eq!(written.holds[0].count, count, "{written:?}");
        assert!(written.holds[0].message.contains("sites.example.dev"));
        let events = self.world.store.dump();
        let told = events.iter().any(|record| {
            record.key.as_str().starts_with("x/event/")
                && String::from_utf8_lossy(&record.value).contains("\"Held\"")
        });
        assert!(told, "an event tells of it");
    }

    async fn is_over(&self) {
        until("it is over", || async { guards(&self.running).is_empty() }).await;
        until("that is written down", || async {
            self.world.written().await.held == 0
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_intent_all_vanish_in_one_revision() {
    let it = ten_sites().await;
    it.world.rewrite(10, Tree::Intent, |_| None).await;
    it.is_held(Guard::Vanished, 10).await;
    minutes(60).await;
    assert_eq!(it.shown(), 10, "the last good ones stay in view");
    assert!(it.absent.lock().unwrap().is_empty());
    assert_eq!(held(&it.running).withheld, 10);
    it.world.reset().await;
    until("they are taken for lost", || async {
        it.absent.lock().unwrap().len() == 10
    })
    .await;
    assert_eq!(it.shown(), 0);
    it.is_over().await;
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_reset_counts_once_and_for_the_hold_that_was_seen() {
    let it = ten_sites().await;
    it.world.rewrite(10, Tree::Intent, |_| None).await;
    it.is_held(Guard::Vanished, 10).await;
    it.world.reset().await;
    until("they are taken for lost", || async {
        it.absent.lock().unwrap().len() == 10
    })
    .await;
    it.is_over().await;
    // The reset still stands in the record when it happens again.
    let object = it.world.client.get::<Failsafe>(&holder()).await.unwrap();
    assert_eq!(object.spec.reset.len(), 1);
    it.world
        .rewrite(10, Tree::Reality, |mut reality| {
            reality["status"]["phase"] = json!("Gone");
            Some(reality)
        })
        .await;
    minutes(5).await;
    let mut back = Transaction::new();
    for site in 0..10 {
        let key = site_key(&format!("s{site:02}"));
        back = back.delete(key.store_key(Tree::Reality));
    }
    it.world.store.commit(back).await.unwrap();
    it.world.sites(10).await;
    it.world.claimed(10).await;
    minutes(1).await;
    it.absent.lock().unwrap().clear();
    it.world.rewrite(10, Tree::Intent, |_| None).await;
    it.is_held(Guard::Vanished, 10).await;
    minutes(10).await;
    assert!(it.absent.lock().unwrap().is_empty());
    assert_eq!(guards(&it.running), [Guard::Vanished]);
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_intent_all_vanish_in_a_gap() {
    let it = ten_sites().await;
    let faults = it.world.store.faults();
    faults.hold_watches(platctrl_framework::store::Prefix::all());
    it.world.rewrite(10, Tree::Intent, |_| None).await;
    faults.compact(it.world.store.revision());
    faults.reset_watches();
    faults.release_watches();
    it.is_held(Guard::Vanished, 10).await;
    assert_eq!(it.shown(), 10);
    assert!(it.absent.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_root_all_vanish_with_their_reports() {
    let it = ten_sites().await;
    let mut wipe = Transaction::new();
    for record in it.world.store.dump() {
        let key = record.key.as_str();
        if key.starts_with("o/") && key != "o/.anchor" {
            wipe = wipe.delete(record.key);
        }
    }
    it.world.store.commit(wipe).await.unwrap();
    until("it is held", || async {
        guards(&it.running).contains(&Guard::Vanished)
    })
    .await;
    minutes(5).await;
    assert_eq!(it.shown(), 10);
    assert!(it.absent.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_intent_few_lost_are_unexplained_and_nothing_is_held() {
    let it = ten_sites().await;
    it.world.rewrite(4, Tree::Intent, |_| None).await;
    until("they are taken for lost", || async {
        it.absent.lock().unwrap().len() == 4
    })
    .await;
    assert_eq!((it.shown(), guards(&it.running)), (6, Vec::new()));
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_intent_all_change_at_once() {
    let it = ten_sites().await;
    let change = |mut intent: Value| {
        intent["spec"]["pages"] = json!(9);
        Some(intent)
    };
    it.world.rewrite(10, Tree::Intent, change).await;
    it.is_held(Guard::Changed, 10).await;
    minutes(60).await;
    let is_new = |(_, pages): &(String, u32)| *pages == 9;
    assert!(!it.seen.lock().unwrap().iter().any(is_new));
    it.world.reset().await;
    until("all are worked on as they are now", || async {
        it.seen
            .lock()
            .unwrap()
            .iter()
            .filter(|it| is_new(it))
            .count()
            >= 10
    })
    .await;
    it.is_over().await;
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_intent_all_become_unreadable() {
    let it = ten_sites().await;
    it.world
        .rewrite(10, Tree::Intent, |_| Some(json!("nothing")))
        .await;
    it.is_held(Guard::Changed, 10).await;
    assert_eq!(it.shown(), 10);
    let view = it.running.handle.view().unwrap();
    assert_eq!(view.set_aside().len(), 0);
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_intent_all_go_back() {
    let it = ten_sites().await;
    for site in 0..10 {
        let key = site_key(&format!("s{site:02}"));
        let mut site = it.world.client.get::<Site>(&key).await.unwrap();
        site.spec.pages = 5;
        it.world.client.update(&site).await.unwrap();
    }
    until("all are worked on", || async {
        it.seen.lock().unwrap().len() >= 10
    })
    .await;
    it.seen.lock().unwrap().clear();
    let back = |mut intent: Value| {
        intent["metadata"]["generation"] = json!(1);
        intent["spec"]["pages"] = json!(1);
        Some(intent)
    };
    it.world.rewrite(10, Tree::Intent, back).await;
    it.is_held(Guard::WentBack, 10).await;
    minutes(60).await;
    let went_back = |(_, pages): &(String, u32)| *pages == 1;
    assert!(!it.seen.lock().unwrap().iter().any(went_back));
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_intent_all_change_by_order_is_no_alarm() {
    let it = ten_sites().await;
    let mut batch = Batch::new();
    for site in 0..10 {
        let key = site_key(&format!("s{site:02}"));
        let joined: Joined = it.world.client.joined(&key).await.unwrap();
        let mut site = it.world.client.get::<Site>(&key).await.unwrap();
        site.spec.pages = 9;
        site.metadata.resource_version = None;
        batch.update_typed(&joined, &site).unwrap();
    }
    it.world.client.commit(batch).await.unwrap();
    until("all are worked on as they are now", || async {
        it.seen
            .lock()
            .unwrap()
            .iter()
            .filter(|it| it.1 == 9)
            .count()
            >= 10
    })
    .await;
    assert_eq!(guards(&it.running), []);
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_intent_vanished_and_back_ends_the_hold_by_itself() {
    let it = ten_sites().await;
    let before: Vec<Value> = (0..10)
        .map(|site| it.world.intent(&format!("s{site:02}")))
        .collect();
    it.world.rewrite(10, Tree::Intent, |_| None).await;
    it.is_held(Guard::Vanished, 10).await;
    for (site, intent) in before.iter().enumerate() {
        let key = site_key(&format!("s{site:02}")).store_key(Tree::Intent);
        it.world.put(&key, intent).await;
    }
    it.is_over().await;
    assert!(it.absent.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_intent_held_is_worked_on_again_once_it_is_ordered_anew() {
    let it = ten_sites().await;
    let change = |mut intent: Value| {
        intent["spec"]["pages"] = json!(9);
        Some(intent)
    };
    it.world.rewrite(10, Tree::Intent, change).await;
    it.is_held(Guard::Changed, 10).await;
    let mut site = it.world.client.get::<Site>(&site_key("s03")).await.unwrap();
    site.spec.pages = 77;
    it.world.client.update(&site).await.unwrap();
    until("that one is worked on", || async {
        it.seen.lock().unwrap().contains(&("s03".to_owned(), 77))
    })
    .await;
    assert_eq!(held(&it.running).withheld, 9);
    // Others of the kind are worked on all the time.
    it.world.site("another", 5).await;
    until("the new one is worked on", || async {
        let seen = it.seen.lock().unwrap();
        seen.contains(&("another".to_owned(), 5))
    })
    .await;
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_intent_vanish_that_somebody_said_to_expect() {
    let it = ten_sites().await;
    let (store, environment) = (&it.world.store, &it.world.environment);
    platctrl_framework::failsafe::expect_changes(store, environment, "ann", 10)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    it.world.rewrite(10, Tree::Intent, |_| None).await;
    until("they are taken for lost", || async {
        it.absent.lock().unwrap().len() == 10
    })
    .await;
    assert_eq!(guards(&it.running), []);
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_intent_adopt_writes_what_was_lost_again() {
    let it = ten_sites().await;
    let before = it.world.intent("s00");
    it.world.rewrite(2, Tree::Intent, |_| None).await;
    until("they are listed", || async {
        minutes(1).await;
        it.world.written().await.unexplained.len() == 2
    })
    .await;
    let order = |site: &str| platctrl_framework::failsafe::Recall {
        key: site_key(site).store_key(Tree::Intent).to_string(),
        at: it.world.environment.now(),
        by: "ann".to_owned(),
    };
    let mut object = it.world.client.get::<Failsafe>(&holder()).await.unwrap();
    object.spec.adopt = vec![order("s00")];
    object.spec.remove = vec![order("s01")];
    it.world.client.update(&object).await.unwrap();
    ring(&it.world.store, &it.world.environment).await.unwrap();
    until("one is there again", || async {
        it.world.count("o/intent/example.dev/sites/default/s00") == 1
    })
    .await;
    assert_eq!(it.world.intent("s00"), before);
    until("the other is to end", || async {
        it.world.count("o/intent/example.dev/sites/default/s01") == 1
    })
    .await;
    assert_eq!(it.world.intent("s01")["metadata"]["deletion"]["by"], "ann");
    // The orders were carried out: they do not count again.
    it.world.rewrite(1, Tree::Intent, |_| None).await;
    minutes(30).await;
    assert_eq!(it.world.count("o/intent/example.dev/sites/default/s00"), 0);
}

/// A controller that ends the pages of its site whenever somebody asks for it from outside, and
/// reports which generation it has seen.
fn eager(trigger: &platctrl_framework::controller::Trigger) -> Controller<Site> {
    Controller::new(
        "sites",
        |site: Arc<Object<Site>>, context: Context| async move {
            let mut changes = context.changes();
            let asked = context
                .causes()
                .iter()
                .any(|cause| matches!(cause, platctrl_framework::controller::Cause::Triggered(_)));
            if asked || context.attempt() > 0 {
                for key in context.view().list::<Page>().keys() {
                    changes.delete(&key, &DeleteOptions::default())?;
                }
            }
            changes.report::<Site>(&Status {
                observed_generation: Some(site.metadata.generation),
                ..site.status.clone()
            })?;
            changes.commit().await?;
            Ok::<_, ReconcileError>(Action::await_change())
        },
    )
    .watches::<Page>(|_, _| Vec::new())
    .triggered_by(trigger)
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_reality_all_vanish_takes_nothing_away_until_it_is_reported_again() {
    let world = World::new().await;
    world.site("a", 0).await;
    let report = |page: &Object<Page>| {
        json!({"apiVersion": "example.dev/v1", "kind": "Page", "status": {"phase": "Running"},
            "metadata": {"name": page.metadata.name, "namespace": "default", "uid": page.metadata.uid}})
    };
    let mut pages = Vec::new();
    for page in 0..8 {
        let text = "x".to_owned();
        let page = Object::<Page>::new(named(&format!("p{page}")), PageSpec { text });
        let page = world.client.create(&page).await.unwrap();
        let key = page.key().unwrap().store_key(Tree::Reality);
        world.put(&key, &report(&page)).await;
        pages.push((key, report(&page)));
    }
    let trigger = platctrl_framework::controller::Trigger::new();
    let running = world.run(world.runtime().controller(eager(&trigger)));
    minutes(2).await;
    let lose = pages
        .iter()
        .fold(Transaction::new(), |all, (key, _)| all.delete(key.clone()));
    world.store.commit(lose).await.unwrap();
    until("it is held", || async {
        guards(&running) == [Guard::RealityLost]
    })
    .await;
    trigger.fire(site_key("a"), "end them all");
    minutes(10).await;
    assert_eq!(world.count("o/intent/example.dev/pages/"), 8);
    assert!(held(&running).refusals > 0, "it was tried");
    for (key, report) in &pages {
        world.put(key, report).await;
    }
    until("it is over", || async { guards(&running).is_empty() }).await;
    until("they end", || async {
        world
            .store
            .dump()
            .iter()
            .filter(|record| {
                record
                    .key
                    .as_str()
                    .starts_with("o/intent/example.dev/pages/")
            })
            .all(|record| String::from_utf8_lossy(&record.value).contains("deletion"))
    })
    .await;
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_kind_held_holds_what_its_controllers_would_take_away_and_nothing_else()
{
    let world = World::new().await;
    world.sites(6).await;
    for page in 0..3 {
        let text = "x".to_owned();
        let page = Object::<Page>::new(named(&format!("p{page}")), PageSpec { text });
        world.client.create(&page).await.unwrap();
    }
    let trigger = platctrl_framework::controller::Trigger::new();
    let running = world.run(world.runtime().controller(eager(&trigger)));
    world.claimed(6).await;
    minutes(2).await;
    let change = |mut intent: Value| {
        intent["spec"]["pages"] = json!(9);
        Some(intent)
    };
    world.rewrite(6, Tree::Intent, change).await;
    until("it is held", || async {
        guards(&running) == [Guard::Changed]
    })
    .await;
    trigger.fire(site_key("s00"), "end them all");
    minutes(10).await;
    assert_eq!(world.count("o/intent/example.dev/pages/"), 3);
    assert!(held(&running).refusals > 0, "it was tried");
    // What takes nothing away goes on.
    world.site("new", 0).await;
    world.claimed(7).await;
    until("it is written down", || async {
        world.written().await.held == 1
    })
    .await;
    world.reset().await;
    until("what was held back is done", || async {
        world.count("o/intent/example.dev/pages/") == 0
    })
    .await;
}
