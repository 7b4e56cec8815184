//! What a cache keeps, what it finds objects by, and that nothing of it goes stale unseen.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use platctrl_framework::cache::{Cached, Index, Keep};
use platctrl_framework::model::Selector;
use platctrl_framework::store::{Key, Prefix, Transaction};

use super::*;

static BY_TEXT: Index<Page> = Index::new("text", |page| vec![page.spec.text.clone()]);

async fn page(world: &World, name: &str, text: &str, tier: Option<&str>) -> Object<Page> {
    let mut metadata = named(name);
    let labels = tier.map(|tier| ("tier".to_owned(), tier.to_owned()));
    metadata.labels = labels.into_iter().collect();
    let text = text.to_owned();
    let page = Object::<Page>::new(metadata, PageSpec { text });
    world.client.create(&page).await.unwrap()
}

fn names(pages: &[Arc<Object<Page>>]) -> Vec<String> {
    pages
        .iter()
        .map(|page| page.metadata.name.clone())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn indexes_find_what_a_look_at_every_object_finds() {
    let world = World::new().await;
    for (name, text, tier) in [
        ("a", "one", Some("front")),
        ("b", "two", Some("back")),
        ("c", "one", Some("back")),
        ("d", "two", None),
    ] {
        page(&world, name, text, tier).await;
    }
    let plain = world.run(world.runtime().kind::<Page>());
    let cached = Cached::<Page>::new().label("tier").index(&BY_TEXT);
    let indexed = world.run(world.runtime().cached(cached.keep(Keep::Bytes)));
    let all = [&plain, &indexed];
    for round in 0..2 {
        for running in all {
            until("all is read", || async {
                let view = running.handle.view();
                view.is_some_and(|view| view.revision() >= world.store.revision())
            })
            .await;
        }
        for selector in [
            "tier=back",
            "tier in (front,back)",
            "tier!=back",
            "tier",
            "*",
        ] {
            let selector: Selector = selector.parse().unwrap();
            let [one, other] = all.map(|running| {
                let view = running.handle.view().unwrap();
                names(&view.list::<Page>().matching(&selector).to_vec())
            });
            assert_eq!(one, other, "{selector}");
            let expected = match (round, selector.to_string().as_str()) {
                (0, "tier=back") => Some(vec!["b", "c"]),
                (1, "tier=back") => Some(vec!["a", "c"]),
                _ => None,
            };
            assert!(expected.is_none_or(|expected| one == expected), "{one:?}");
        }
        for text in ["one", "two", "three"] {
            let [one, other] = all.map(|running| {
                let view = running.handle.view().unwrap();
                let back: Selector = "tier=back".parse().unwrap();
                let found = view.list::<Page>().indexed(&BY_TEXT, text).to_vec();
                let both = view.list::<Page>().matching(&back).indexed(&BY_TEXT, text);
                (names(&found), names(&both.to_vec()))
            });
            assert_eq!(one, other, "{text}");
        }
        if round == 0 {
            // One changes its labels, one its text, one ends.
            let change = |name: &str, tier: &str, text: &str| {
                let key = ObjectKey::namespaced("example.dev", "pages", "default", name).unwrap();
                let (tier, text, client) = (tier.to_owned(), text.to_owned(), &world.client);
                async move {
                    let mut page = client.get::<Page>(&key).await.unwrap();
                    page.metadata.labels = BTreeMap::from([("tier".to_owned(), tier)]);
                    page.spec.text = text;
                    client.update(&page).await.unwrap();
                }
            };
            change("a", "back", "three").await;
            let gone = Key::new("o/intent/example.dev/pages/default/b").unwrap();
            let gone = Transaction::new().delete(gone);
            world.store.commit(gone).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_projected_kind_is_read_and_written_by_nobody() {
    /// Sites as far as counting their pages goes.
    #[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
    #[resource(
        group = "example.dev",
        version = "v1",
        kind = "Count",
        plural = "sites"
    )]
    struct CountSpec {
        pages: u32,
    }

    let world = World::new().await;
    let site = world.site("a", 3).await;
    let text = format!(
        r#"{{"apiVersion":"example.dev/v1","kind":"Site","metadata":{{"name":"a","namespace":"default","uid":"{}","annotations":{{"long":"story"}}}},"spec":{{"pages":4,"new":"{}"}}}}"#,
        site.metadata.uid,
        "x".repeat(1000),
    );
    let key = Key::new("o/intent/example.dev/sites/default/a").unwrap();
    let write = Transaction::new().put(key, text);
    world.store.commit(write).await.unwrap();
    let cached = Cached::<Count>::new().projected();
    let running = world.run(world.runtime().cached(cached));
    until("all is read", || async { running.handle.view().is_some() }).await;
    let view = running.handle.view().unwrap();
    let count = view.get::<Count>(&site_key("a")).unwrap();
    assert_eq!(count.spec.pages, 4);
    let (kept, _) = view
        .record(&site_key("a"), platctrl_framework::model::Tree::Intent)
        .unwrap();
    assert!(kept.len() < 300, "{} bytes are kept", kept.len());
    let refused = view.joined(&site_key("a")).unwrap_err();
    assert!(
        refused.reason.contains("only some of its fields"),
        "{refused}"
    );
    // A controller could not write what it does not know.
    let cached = Cached::<Site>::new().projected();
    let outcome = world.runtime().cached(cached).controller(sites()).run();
    let refused = outcome.await.unwrap_err();
    assert!(matches!(refused, RunError::Projected { .. }), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_change_that_no_watch_told_is_found_when_all_is_read_again() {
    let world = World::new().await;
    world.site("a", 0).await;
    let runs = Arc::new(AtomicU32::new(0));
    let seen = runs.clone();
    let controller = Controller::new("sites", move |site: Arc<Object<Site>>, _| {
        if site.metadata.name == "lost" {
            seen.fetch_add(1, Ordering::Relaxed);
        }
        async { Ok::<_, ReconcileError>(Action::await_change()) }
    });
    let running = world.run(world.runtime().controller(controller));
    until("all is read", || async { running.handle.view().is_some() }).await;
    // The watch leaves one change out and goes on telling others.
    let hidden = Key::new("o/intent/example.dev/sites/default/lost").unwrap();
    world.store.faults().hide(Prefix::only(&hidden));
    let lost = r#"{"apiVersion":"example.dev/v1","kind":"Site","metadata":{"name":"lost","namespace":"default","uid":"u"},"spec":{"pages":0}}"#;
    let write = Transaction::new().put(hidden, lost);
    world.store.commit(write).await.unwrap();
    world.site("b", 0).await;
    until("the next change is seen", || async {
        let view = running.handle.view().unwrap();
        view.revision() >= world.store.revision() && view.get::<Site>(&site_key("b")).is_some()
    })
    .await;
    world.store.faults().allow_all();
    let missing = |running: &Running| {
        let view = running.handle.view().unwrap();
        view.get::<Site>(&site_key("lost")).is_none()
    };
    assert!(missing(&running), "the fault happened");
    for minute in 0..31 {
        world.site(&format!("minute-{minute}"), 0).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    assert!(!missing(&running));
    assert_eq!(runs.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn an_object_made_again_in_a_gap_is_another_one_to_those_who_own_it() {
    let world = World::new().await;
    let (old, new) = (world.site("old", 0).await, world.site("new", 0).await);
    let record = |owner: &Object<Site>, uid: &str| {
        let metadata = serde_json::json!({"name": "p", "namespace": "default", "uid": uid, "ownerReferences": [owner.owner_reference()]});
        let page = serde_json::json!({"apiVersion": "example.dev/v1", "kind": "Page", "metadata": metadata, "spec": {"text": ""}});
        let key = Key::new("o/intent/example.dev/pages/default/p").unwrap();
        Transaction::new().put(key, page.to_string())
    };
    world.store.commit(record(&old, "u1")).await.unwrap();
    let runs: Arc<std::sync::Mutex<BTreeMap<String, usize>>> = Arc::default();
    let noted = runs.clone();
    let controller = Controller::new("sites", move |site: Arc<Object<Site>>, context: Context| {
        let pages = context.view().list::<Page>();
        let pages = pages.owned_by(&site.metadata.uid).keys().len();
        noted
            .lock()
            .unwrap()
            .insert(site.metadata.name.clone(), pages);
        async { Ok::<_, ReconcileError>(Action::await_change()) }
    });
    let _running = world.run(world.runtime().controller(controller.owns::<Page>()));
    let owned = |old: usize, new: usize| {
        let expected = BTreeMap::from([("old".to_owned(), old), ("new".to_owned(), new)]);
        let runs = runs.clone();
        move || {
            let same = *runs.lock().unwrap() == expected;
            async move { same }
        }
    };
    until("the page is the old site's", owned(1, 0)).await;
    world.store.faults().set_away(true);
    world.store.faults().break_watches();
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.store.faults().set_away(false);
    let gone = Key::new("o/intent/example.dev/pages/default/p").unwrap();
    let gone = Transaction::new().delete(gone);
    world.store.commit(gone).await.unwrap();
    world.store.commit(record(&new, "u2")).await.unwrap();
    until("it is the new site's, and both know", owned(0, 1)).await;
}
