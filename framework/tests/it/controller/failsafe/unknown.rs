//! A spec with a field that its controller does not know is not carried out in part.

use platctrl_framework::model::ConditionStatus;

use super::*;

/// Whether a site's own report, or a part of it, says which field is not known.
fn told(joined: &Joined, writer: Option<&str>) -> Option<ConditionStatus> {
    let own = match writer {
        Some(writer) => joined.own_part(writer),
        None => joined.own_reality(),
    };
    let held = own?.value.status.conditions.get("Held")?;
    assert_eq!(held.reason, "Unsupported");
    Some(held.status)
}

/// Widens a site as a newer program would, which narrows it again by a field of its own.
async fn widen(world: &World) {
    world
        .rewrite(1, Tree::Intent, |mut intent| {
            intent["spec"] = json!({"pages": 7, "onlyIn": "east"});
            intent["metadata"]["generation"] = json!(2);
            Some(intent)
        })
        .await;
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_selector_widened_by_an_unknown_field_is_left_until_it_is_known() {
    let world = World::new().await;
    world.sites(2).await;
    let seen = Seen::default();
    let controller = noting(&seen, &Arc::default()).refuses_unknown_fields();
    let running = world.run(world.runtime().controller(controller));
    world.claimed(2).await;
    widen(&world).await;
    let key = site_key("s00");
    let has_seen = |pages| seen.lock().unwrap().contains(&("s00".to_owned(), pages));
    until("it is told", || async {
        assert!(!has_seen(7), "it was carried out in part");
        let joined = world.client.joined(&key).await.unwrap();
        told(&joined, None) == Some(ConditionStatus::True)
    })
    .await;
    minutes(60).await;
    assert!(!has_seen(7), "it was carried out in part");
    let status = running.handle.status().unwrap();
    let failing = &status.controllers[0].failing;
    assert_eq!(failing[0].key, key);
    assert!(failing[0].error.contains("Unsupported(spec.onlyIn)"));
    assert!(status.controllers[0].runs < 20, "it is not asked for ever");
    // Others are worked on, and an order to end it is carried out.
    world.site("other", 3).await;
    until("the other one is worked on", || async {
        let seen = seen.lock().unwrap();
        seen.contains(&("other".to_owned(), 3))
    })
    .await;
    world
        .rewrite(1, Tree::Intent, |mut intent| {
            intent["spec"] = json!({"pages": 8});
            intent["metadata"]["generation"] = json!(3);
            Some(intent)
        })
        .await;
    until("it is carried out", || async { has_seen(8) }).await;
    let joined = world.client.joined(&key).await.unwrap();
    assert_eq!(told(&joined, None), Some(ConditionStatus::False));
    assert!(
        running.handle.status().unwrap().controllers[0]
            .failing
            .is_empty()
    );
}

#[tokio::test(start_paused = true)]
async fn an_object_with_an_unknown_field_ends_when_it_is_ordered_to() {
    let world = World::new().await;
    world.sites(1).await;
    let controller = noting(&Seen::default(), &Arc::default()).refuses_unknown_fields();
    let _running = world.run(world.runtime().controller(controller).reap());
    world.claimed(1).await;
    widen(&world).await;
    world.delete(&site_key("s00")).await;
    until("it is gone", || async {
        world.count("o/intent/example.dev/sites/") == 0
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_writes_a_part_tells_an_unknown_field_there() {
    let world = World::new().await;
    world.sites(1).await;
    let seen = Seen::default();
    let controller = noting(&seen, &Arc::default());
    let controller = controller.writes_part("dns").refuses_unknown_fields();
    let _running = world.run(world.runtime().controller(controller));
    until("it is worked on", || async {
        !seen.lock().unwrap().is_empty()
    })
    .await;
    widen(&world).await;
    until("it is told", || async {
        let joined = world.client.joined(&site_key("s00")).await.unwrap();
        told(&joined, Some("dns")) == Some(ConditionStatus::True)
    })
    .await;
    minutes(5).await;
    let seen = seen.lock().unwrap();
    assert!(seen.iter().all(|(_, pages)| *pages == 1), "{seen:?}");
    assert_eq!(world.count("o/reality/example.dev/sites/"), 0);
}
