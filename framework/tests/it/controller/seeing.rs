//! Seeing inside: what a runtime tells of itself and of one object.

use std::io::Write;
use std::sync::Mutex;

use platctrl_framework::controller::{EventRecorder, Trigger};
use platctrl_framework::model::{
    Condition, ConditionStatus, Event, EventType, ObjectReference, Phase, Uid,
};
use platctrl_framework::observe::{Ending, KeyState, Standing};
use platctrl_framework::store::Prefix;

use super::*;

fn failing() -> Controller<Site> {
    Controller::new("sites", |_, _| async {
        Err::<Action, _>(ReconcileError::transient("the disk is full"))
    })
}

/// Reports as soon as it is told to that all is as it is wanted.
fn reporting(ready: Arc<Mutex<bool>>) -> Controller<Site> {
    let reconcile = move |site: Arc<Object<Site>>, context: Context| {
        let ready = *ready.lock().unwrap();
        async move {
            let mut status: Status<SiteStatus> = site.status.clone();
            status.phase = Phase::new("Working");
            let own = context.joined();
            status.observed_spec = own.intent.map(|intent| intent.value.spec_digest());
            status.observed_generation = Some(site.metadata.generation);
            let state = if ready {
                ConditionStatus::True
            } else {
                ConditionStatus::False
            };
            let condition = Condition::new("Ready", state, "Pages", "of all pages");
            let now = context.environment().now();
            status
                .conditions
                .set(condition, site.metadata.generation, now);
            let mut changes = context.changes();
            changes.report::<Site>(&status)?;
            changes.commit().await?;
            Ok::<_, ReconcileError>(Action::requeue_after(Duration::from_secs(7)))
        }
    };
    Controller::new("sites", reconcile).owns::<Page>()
}

/// The number behind a line of metrics.
fn metric(text: &str, line: &str) -> f64 {
    let found = text
        .lines()
        .find_map(|it| it.strip_prefix(line)?.strip_prefix(' '));
    let found = found.unwrap_or_else(|| panic!("no {line} in\n{text}"));
    found.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_object_that_fails_is_explained_by_its_last_runs_and_the_next_one() {
    let world = World::new().await;
    let running = world.run(world.runtime().controller(failing()));
    until("it is read", || async { running.handle.view().is_some() }).await;
    world.site("a", 1).await;
    let revision = world.store.revision();
    until("three runs failed", || async {
        let told = running.handle.explain(&site_key("a")).unwrap();
        told.controllers[0].failures >= 3
    })
    .await;
    let told = running.handle.explain(&site_key("a")).unwrap();
    assert_eq!(told.object.summary, "nobody has reported on it yet");
    assert_eq!(told.object.known_to, revision);
    let [story] = &told.controllers[..] else {
        panic!("{told:?}");
    };
    assert!(
        matches!(story.state, KeyState::Waiting { after_failure: true, left } if left > Duration::ZERO),
        "{story:?}"
    );
    assert_eq!(story.controller, "sites");
    let endings: Vec<_> = story.runs.iter().map(|run| run.ending).collect();
    assert_eq!(endings, [Ending::Error; 3]);
    assert_eq!(
        story.runs[0].causes,
        [format!("it changed at revision {revision}")]
    );
    assert_eq!(story.runs[1].causes, ["the last run failed"]);
    assert!(story.runs[0].id < story.runs[1].id && story.runs[0].ago > story.runs[1].ago);
    assert_eq!(story.runs[2].error.as_deref(), Some("the disk is full"));
    let text = told.to_string();
    assert!(text.contains("after 3 failures in a row"), "{text}");
    assert!(text.contains("error: the disk is full (because"), "{text}");
    let json = serde_json::to_value(&told).unwrap();
    assert_eq!(json["controllers"][0]["state"]["is"], "waiting");
    // An object that nobody knows is explained too.
    let none = running.handle.explain(&site_key("none")).unwrap();
    assert_eq!(none.object.summary, "there is no such object");
    assert_eq!(none.controllers[0].state, KeyState::Idle);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_waits_for_its_own_writes_is_explained_by_the_source_that_lags() {
    let world = World::new().await;
    world.store.faults().hold_watches(Prefix::all());
    let running = world.run(world.runtime().controller(sites()));
    until("it is read", || async { running.handle.view().is_some() }).await;
    // Seen by a read alone: the watch is held.
    world.site("a", 1).await;
    world.store.faults().reset_watches();
    until("it waits", || async {
        let told = running.handle.explain(&site_key("a")).unwrap();
        let state = &told.controllers[0].state;
        let waits = matches!(state, KeyState::Parked { source, .. } if source == "o/");
        waits || matches!(state, KeyState::Idle) && !told.controllers[0].runs.is_empty()
    })
    .await;
    let told = running.handle.explain(&site_key("a")).unwrap();
    assert!(told.controllers[0].runs[0].wrote.is_some(), "{told}");
}

#[tokio::test(start_paused = true)]
async fn who_stands_by_says_that_another_works() {
    let world = World::new().await;
    let first = world.run(world.runtime().controller(sites()).elect_leader("c"));
    world.site("a", 1).await;
    until("it leads", || async {
        world.count("o/intent/example.dev/pages/") == 1
    })
    .await;
    let second = world.run(world.runtime().controller(sites()).elect_leader("c"));
    until("it is read", || async { second.handle.view().is_some() }).await;
    let told = second.handle.explain(&site_key("a")).unwrap();
    assert!(
        told.controllers[0].obstacles[0].contains("not this process's"),
        "{told}"
    );
    let told = first.handle.explain(&site_key("a")).unwrap();
    assert!(told.controllers[0].obstacles.is_empty(), "{told}");
    let tree = second.handle.status().unwrap().tree();
    assert_eq!(tree.standing, Standing::Waiting);
    assert!(tree.reason.contains("another process leads"), "{tree}");
    let leads = |running: &Running| {
        let text = running.handle.metrics().text();
        metric(
            &text,
            r#"leader_election_master_status{name="controllers"}"#,
        )
    };
    assert_eq!((leads(&first), leads(&second)), (1.0, 0.0));
}

#[tokio::test(start_paused = true)]
async fn metrics_count_runs_and_time_from_the_wish_to_its_fulfilment() {
    let world = World::new().await;
    let ready = Arc::new(Mutex::new(false));
    let running = world.run(world.runtime().controller(reporting(ready.clone())));
    until("it is read", || async { running.handle.view().is_some() }).await;
    let labels = r#"controller="sites",runtime="controllers""#;
    let text = running.handle.metrics().text();
    for result in ["success", "requeue", "requeue_after", "error"] {
        let line = format!(r#"controller_runtime_reconcile_total{{{labels},result="{result}"}}"#);
        assert_eq!(metric(&text, &line), 0.0);
    }
    world.site("a", 1).await;
    let converging = format!("platctrl_converging_objects{{{labels}}}");
    let open = || metric(&running.handle.metrics().text(), &converging);
    until("it is not as it is wanted", || async { open() == 1.0 }).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(open(), 1.0);
    *ready.lock().unwrap() = true;
    until("it is as it is wanted", || async { open() == 0.0 }).await;
    let text = running.handle.metrics().text();
    assert_eq!(
        metric(
            &text,
            &format!("platctrl_convergence_seconds_count{{{labels}}}")
        ),
        1.0
    );
    let took = metric(
        &text,
        &format!("platctrl_convergence_seconds_sum{{{labels}}}"),
    );
    assert!((60.0..75.0).contains(&took), "{took}");
    let runs = format!(r#"controller_runtime_reconcile_total{{{labels},result="requeue_after"}}"#);
    assert!(metric(&text, &runs) >= 8.0, "{text}");
    let commits =
        r#"platctrl_store_requests_total{client="controllers",operation="commit",outcome="ok"}"#;
    assert!(metric(&text, commits) >= 2.0, "{text}");
    assert_eq!(
        metric(
            &text,
            r#"platctrl_cache_lag_revisions{source="o/",runtime="controllers"}"#
        ),
        0.0
    );
    assert_eq!(
        metric(&text, r#"platctrl_cache_objects{runtime="controllers"}"#),
        1.0
    );
    assert!(
        metric(
            &text,
            &format!("platctrl_reconcile_seconds_since_success{{{labels}}}")
        ) < 7.5
    );
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_tree_says_what_is_wrong_and_where() {
    let world = World::new().await;
    let running = world.run(world.runtime().controller(failing()));
    world.site("a", 1).await;
    until("it failed", || async {
        let status = running.handle.status();
        status.is_some_and(|status| status.controllers[0].errors > 1)
    })
    .await;
    world.store.faults().set_away(true);
    world.store.faults().break_watches();
    until("the source is in trouble", || async {
        running.handle.status().unwrap().sources[0]
            .failing
            .is_some()
    })
    .await;
    let status = running.handle.status().unwrap();
    let tree = status.tree();
    assert_eq!(
        (tree.standing, tree.worst()),
        (Standing::Well, Standing::Troubled)
    );
    let text = status.to_string();
    assert!(text.contains("BAD    source o/: "), "{text}");
    assert!(text.contains("ok     controller sites: "), "{text}");
    assert!(text.contains("BAD      sites/default/a: "), "{text}");
    assert!(text.contains("the disk is full"), "{text}");
    let json = serde_json::to_value(&tree).unwrap();
    assert_eq!(json["parts"][0]["facts"]["lag"], 0);
    assert_eq!(json["name"], "runtime controllers");
    assert_eq!(json["parts"][0]["standing"], "troubled");
}

#[tokio::test(start_paused = true)]
async fn the_tree_tells_by_how_many_revisions_a_view_lags_behind() {
    let world = World::new().await;
    let (ready, trigger) = (Arc::<Mutex<bool>>::default(), Trigger::new());
    let controller = reporting(ready.clone()).triggered_by(&trigger);
    let running = world.run(world.runtime().controller(controller));
    world.site("first", 0).await;
    until("it is worked on", || async {
        world.count("o/reality/example.dev/sites/") == 1
    })
    .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let everything = Prefix::new("o/").unwrap();
    world.store.faults().hold_watches(everything);
    for site in ["a", "b", "c"] {
        world.site(site, 0).await;
    }
    // The program itself writes, and so learns how far the store is.
    *ready.lock().unwrap() = true;
    trigger.fire(site_key("first"), "it is ready");
    let lag = || {
        let status = running.handle.status().unwrap();
        status.lag(&status.sources[0]).unwrap()
    };
    until("it is known to lag", || async { lag() >= 3 }).await;
    let tree = serde_json::to_value(running.handle.status().unwrap().tree()).unwrap();
    let source = &tree["parts"][0];
    assert_eq!(source["name"], "source o/");
    assert_eq!(source["facts"]["lag"].as_u64(), Some(lag()));
    world.store.faults().release_watches();
    until("it has caught up", || async { lag() == 0 }).await;
}

/// Collects what a subscriber writes.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn the_span_around_a_run_has_its_id_causes_and_outcome() {
    let written = Written::default();
    let writer = written.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::CLOSE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let world = World::new().await;
    let running = world.run(world.runtime().controller(failing()));
    until("it is read", || async { running.handle.view().is_some() }).await;
    world.site("a", 1).await;
    let text = || String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
    until("a span was closed", || async {
        text().contains("outcome=\"error\"")
    })
    .await;
    let text = text();
    let span = text.lines().find(|line| line.contains("close")).unwrap();
    for field in [
        "reconcile{",
        "controller=\"sites\"",
        "key=sites/default/a",
        "id=0",
        "causes=[Changed",
    ] {
        assert!(span.contains(field), "no {field} in {span}");
    }
    // A line from inside a run is in its span.
    let failed = text
        .lines()
        .find(|line| line.contains("the disk is full"))
        .unwrap();
    assert!(failed.contains("reconcile{"), "{failed}");
}

#[tokio::test(start_paused = true)]
async fn who_records_ever_new_messages_for_one_reason_does_not_flood_the_ring() {
    let world = World::new().await;
    let recorder =
        EventRecorder::new(world.store(), "test", "test", world.environment.clone()).unwrap();
    let object = |name: &str| ObjectReference {
        api_version: "example.dev/v1".to_owned(),
        kind: "Site".to_owned(),
        namespace: Some("default".to_owned()),
        name: name.to_owned(),
        uid: Uid::from_bits(0, 1),
    };
    recorder.record(object("quiet"), EventType::Normal, "Made", "once");
    for number in 0..500 {
        let message = format!("attempt {number} failed");
        recorder.record(object("loud"), EventType::Warning, "Failed", message);
        recorder.flush().await;
    }
    let records = world.store.dump();
    let events = records
        .iter()
        .filter(|record| record.key.as_str().starts_with("x/event/test/"));
    let events: Vec<Event> = events
        .map(|record| serde_json::from_slice(&record.value).unwrap())
        .collect();
    let loud: Vec<_> = events
        .iter()
        .filter(|event| event.involved_object.name == "loud")
        .collect();
    assert_eq!((events.len(), loud.len()), (9, 8));
    let all: u64 = loud.iter().map(|event| event.count).sum();
    assert_eq!(all, 500);
    let newest = loud.iter().max_by_key(|event| event.sequence).unwrap();
    assert_eq!(newest.message, "attempt 499 failed");
}
