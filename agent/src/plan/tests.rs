//! What follows from what is so.

use proptest::prelude::*;

use super::Step::{
    Abandon, AfterInstall, AfterLaunch, Authorise, BeforeInstall, BeforeLaunch, BeforeUninstall,
    Configure, Disable, Discard, Drain, Enable, Fetch, Flip, Healthy, PostActivate, Prune, Remove,
    Start, Stop,
};
use super::*;
use crate::version::Tombstone;

fn digest(text: &str) -> Digest {
    Digest::of(text)
}

fn want(uid: &str, generation: u64, spec: &str) -> Desired {
    Desired {
        uid: uid.into(),
        generation,
        digest: digest(spec),
        spec: serde_json::from_value(
            serde_json::json!({"launchables": {"web": {"location": "file:/a"}}}),
        )
        .unwrap(),
        labels: std::collections::BTreeMap::new(),
        tombstone: None,
        unsupported: None,
    }
}

fn order(desired: Desired) -> Order {
    Order::Want(Box::new(desired))
}

fn tombstoned(mut desired: Desired) -> Order {
    desired.tombstone = Some(Tombstone {
        grace: None,
        by: "me".into(),
        reason: None,
    });
    order(desired)
}

/// Version `spec` of u1 runs.
fn running(spec: &str) -> Observed {
    Observed {
        uid: "u1".into(),
        seen: Some((1, digest(spec))),
        current: Some(digest(spec)),
        ..Observed::default()
    }
}

fn steps(order: &Order, observed: &Observed) -> Vec<Step> {
    plan(order, observed).steps
}

const EVERY_HOOK: HookedEvents = HookedEvents {
    before_install: true,
    after_install: true,
    before_launch: true,
    after_launch: true,
    before_uninstall: true,
};

const EVERY_SCRIPT: Scripts = Scripts {
    disable: true,
    post_activate: true,
    enable: true,
};

#[test]
fn a_new_pod_is_fetched_configured_and_started() {
    let observed = Observed {
        at_rest: true,
        ..Observed::default()
    };
    let new = order(want("u1", 1, "a"));
    let plan = plan(&new, &observed);
    assert_eq!(plan.prepare, [Authorise, Fetch]);
    assert_eq!((plan.steps.len(), plan.hold), (0, None));
    let fetched = Observed {
        next: Some(digest("a")),
        preparation: Some((digest("a"), Preparation::Fetched)),
        ..observed
    };
    assert_eq!(
        steps(&new, &fetched),
        [Configure, Flip, Start, Healthy, Prune]
    );
}

#[test]
fn the_old_version_is_stopped_only_after_the_new_one_is_fetched() {
    let newer = order(want("u1", 2, "b"));
    let plan = plan(&newer, &running("a"));
    assert_eq!((plan.prepare, plan.steps), (vec![Authorise, Fetch], vec![]));
    let all = [Configure, Drain, Stop, Flip, Start, Healthy, Prune];
    let fetched = Observed {
        next: Some(digest("b")),
        ..running("a")
    };
    assert_eq!(steps(&newer, &fetched), all);
    let drained = Observed {
        drained: true,
        position: Position::Draining,
        ..fetched
    };
    assert_eq!(
        steps(&newer, &drained),
        [Configure, Stop, Flip, Start, Healthy, Prune]
    );
    let stopped = Observed {
        at_rest: true,
        position: Position::Stopped,
        ..drained
    };
    assert_eq!(
        steps(&newer, &stopped),
        [Configure, Flip, Start, Healthy, Prune]
    );
}

#[test]
fn with_hooks_and_scripts_an_update_is_the_table_and_goes_on_from_each_position() {
    let newer = order(want("u1", 2, "b"));
    let before = Observed {
        hooked: EVERY_HOOK,
        current_scripts: EVERY_SCRIPT,
        ..running("a")
    };
    let mut table: Vec<_> = UPDATE.iter().map(|row| row.step).collect();
    table.retain(|step| !matches!(step, Step::Verify | Step::Unpack));
    let (prepare, rest) = table.split_at(4);
    assert_eq!(plan(&newer, &before).prepare, prepare);
    let preparing = |preparation, next: Option<&str>| Observed {
        next: next.map(digest),
        preparation: Some((digest("b"), preparation)),
        next_scripts: EVERY_SCRIPT,
        ..before.clone()
    };
    for (preparation, next, left) in [
        (Preparation::Begun, None, 4),
        (Preparation::Authorised, None, 3),
        (Preparation::Hooked, None, 2),
        (Preparation::Fetched, Some("b"), 1),
    ] {
        let plan = plan(&newer, &preparing(preparation, next));
        assert_eq!(plan.prepare, prepare[4 - left..], "{preparation:?}");
        assert_eq!(plan.steps, [], "{preparation:?}");
    }
    let ready = preparing(Preparation::Ready, Some("b"));
    assert_eq!(steps(&newer, &ready), rest);
    let from = |position| {
        let stopped = position > Position::Stopping;
        let observed = Observed {
            position,
            drained: true,
            at_rest: stopped,
            ..ready.clone()
        };
        steps(&newer, &observed)
    };
    let without = |gone: &[Step]| {
        let mut left = rest.to_vec();
        left.retain(|step| !gone.contains(step));
        left
    };
    assert_eq!(from(Position::Draining), without(&[Drain]));
    assert_eq!(from(Position::Disabling), without(&[Drain]));
    assert_eq!(from(Position::Stopping), without(&[Drain, Disable]));
    assert_eq!(from(Position::Stopped), without(&[Drain, Disable, Stop]));
    let readied = without(&[Drain, Disable, Stop, BeforeLaunch]);
    assert_eq!(from(Position::Readied), readied);
    // From the flip on it is about the version that is current.
    let launching = |position| {
        let observed = Observed {
            current: Some(digest("b")),
            next: None,
            preparation: None,
            position,
            missing: position != Position::Settled,
            ..ready.clone()
        };
        steps(&newer, &observed)
    };
    let all = [PostActivate, Start, Enable, Healthy, AfterLaunch, Prune];
    assert_eq!(launching(Position::Flipped), all);
    assert_eq!(launching(Position::Activated), all[1..]);
    assert_eq!(launching(Position::Started), all[1..]);
    assert_eq!(
        launching(Position::Enabled),
        [Start, Healthy, AfterLaunch, Prune]
    );
    assert_eq!(launching(Position::Healthy), [Start, AfterLaunch, Prune]);
    assert_eq!(launching(Position::Settled), []);
    let gone = tombstoned(want("u1", 2, "b"));
    assert_eq!(
        steps(&gone, &before),
        [Drain, Disable, Stop, BeforeUninstall, Remove]
    );
    let told = Observed {
        position: Position::Released,
        at_rest: true,
        ..before.clone()
    };
    assert_eq!(steps(&gone, &told), [Remove]);
    assert_eq!(prepare, [Authorise, BeforeInstall, Fetch, AfterInstall]);
}

#[test]
fn a_version_that_is_still_being_started_is_looked_after_while_a_newer_one_is_got_ready() {
    let flipped = Observed {
        position: Position::Flipped,
        missing: true,
        current_scripts: EVERY_SCRIPT,
        ..running("a")
    };
    let plan = plan(&order(want("u1", 2, "b")), &flipped);
    assert_eq!(plan.prepare, [Authorise, Fetch]);
    assert_eq!(plan.steps, [PostActivate, Start, Enable, Healthy]);
}

#[test]
fn a_version_whose_predecessor_is_stopped_is_finished_first() {
    let stopped = Observed {
        next: Some(digest("b")),
        at_rest: true,
        position: Position::Stopped,
        ..running("a")
    };
    for order in [order(want("u1", 3, "c")), Order::Missing, Order::Unknown] {
        assert_eq!(
            steps(&order, &stopped),
            [Configure, Flip, Start, Healthy, Prune],
            "{order:?}"
        );
    }
    // Unless it cannot be finished: then a newer order ends it, and only that.
    let failed = Observed {
        failed: true,
        ..stopped
    };
    assert_eq!(steps(&order(want("u1", 3, "c")), &failed), [Abandon]);
    for order in [order(want("u1", 2, "b")), Order::Missing, Order::Unknown] {
        assert_eq!(steps(&order, &failed)[0], Configure, "{order:?}");
    }
}

#[test]
fn a_version_that_failed_to_start_is_not_tried_again_until_the_spec_changes() {
    let failed = || Some((digest("b"), "it did not start".to_owned()));
    let reverting = Observed {
        next: Some(digest("a")),
        quarantined: failed(),
        reverting: true,
        position: Position::Enabled,
        current_scripts: EVERY_SCRIPT,
        next_scripts: EVERY_SCRIPT,
        hooked: EVERY_HOOK,
        ..running("b")
    };
    let same = order(want("u1", 2, "b"));
    let back = [
        Configure,
        Disable,
        Stop,
        Flip,
        PostActivate,
        Start,
        Enable,
        Healthy,
        AfterLaunch,
        Prune,
    ];
    let decided = plan(&same, &reverting);
    assert_eq!(decided.steps, back, "no required hook can keep it from it");
    assert_eq!(decided.hold.as_ref().map(Hold::reason), Some("Reverted"));
    for order in [Order::Unknown, order(want("u1", 3, "c"))] {
        assert_eq!(steps(&order, &reverting), back, "{order:?}");
    }
    let reverted = Observed {
        quarantined: failed(),
        ..running("a")
    };
    let held = plan(&same, &reverted);
    assert_eq!((held.prepare.len(), held.steps.len()), (0, 0));
    assert!(held.hold.unwrap().message().contains("it did not start"));
    let newer = plan(&order(want("u1", 3, "c")), &reverted);
    assert_eq!((newer.prepare, newer.hold), (vec![Authorise, Fetch], None));
}

#[test]
fn going_back_to_what_runs_stops_nothing() {
    let fetched = Observed {
        next: Some(digest("b")),
        seen: Some((2, digest("b"))),
        ..running("a")
    };
    assert_eq!(steps(&order(want("u1", 3, "a")), &fetched), [Discard]);
}

#[test]
fn what_is_wanted_and_runs_is_left_alone_and_started_again_when_its_supervisor_is_lost() {
    let same = order(want("u1", 1, "a"));
    assert_eq!(steps(&same, &running("a")), []);
    let lost = Observed {
        missing: true,
        ..running("a")
    };
    for order in [same, Order::Missing, Order::Unknown] {
        assert_eq!(steps(&order, &lost), [Start], "{order:?}");
    }
}

#[test]
fn a_pod_that_never_runs_twice_is_started_only_while_it_is_known_to_be_wanted() {
    let stopped = Observed {
        missing: true,
        singleton: true,
        ..running("a")
    };
    for order in [Order::Unknown, Order::Missing] {
        assert_eq!(plan(&order, &stopped).steps, []);
        let other = Observed {
            singleton: false,
            ..stopped.clone()
        };
        assert_eq!(plan(&order, &other).steps, [Start], "others are");
    }
    let wanted = Order::Want(Box::new(want("u1", 1, "a")));
    assert_eq!(plan(&wanted, &stopped).steps, [Start]);
}

#[test]
fn only_a_tombstone_ends_a_pod() {
    let gone = tombstoned(want("u1", 1, "a"));
    assert_eq!(steps(&gone, &running("a")), [Drain, Stop, Remove]);
    let at_rest = Observed {
        at_rest: true,
        ..running("a")
    };
    assert_eq!(steps(&gone, &at_rest), [Remove]);
    // Also of a pod that never ran, and of one whose record was lost.
    assert_eq!(
        steps(
            &gone,
            &Observed {
                at_rest: true,
                ..Observed::default()
            }
        ),
        [Remove]
    );
    let unidentified = Observed {
        unidentified: true,
        ..Observed::default()
    };
    assert_eq!(steps(&gone, &unidentified), [Drain, Stop, Remove]);
}

#[test]
fn orders_that_do_not_follow_are_held() {
    let observed = Observed {
        seen: Some((5, digest("a"))),
        ..running("a")
    };
    let cases = [
        (Order::Missing, "Unexplained"),
        (order(want("u2", 9, "b")), "UidChanged"),
        (tombstoned(want("u2", 9, "b")), "UidChanged"),
        (order(want("u1", 4, "b")), "GenerationWentBack"),
        (order(want("u1", 5, "b")), "GenerationRewritten"),
        (
            order(Desired {
                unsupported: Some("spec.x".into()),
                ..want("u1", 6, "b")
            }),
            "Unsupported",
        ),
    ];
    for (order, reason) in cases {
        let plan = plan(&order, &observed);
        assert_eq!(
            (&plan.prepare[..], &plan.steps[..]),
            (&[][..], &[][..]),
            "{order:?}"
        );
        assert_eq!(plan.hold.as_ref().map(Hold::reason), Some(reason));
        assert!(!plan.hold.unwrap().message().is_empty());
    }
}

#[test]
fn names_that_would_leave_the_pods_directories_are_refused() {
    for name in ["../../etc", "a/b", "..", ""] {
        let mut desired = want("u1", 1, "a");
        let spec = std::sync::Arc::make_mut(&mut desired.spec);
        let launchable = spec.launchables.remove("web").unwrap();
        spec.launchables.insert(name.into(), launchable);
        let plan = plan(
            &order(desired),
            &Observed {
                at_rest: true,
                ..Observed::default()
            },
        );
        assert_eq!(
            (
                plan.prepare.len() + plan.steps.len(),
                plan.hold.unwrap().reason()
            ),
            (0, "Invalid"),
            "{name}"
        );
    }
}

#[test]
fn names_that_would_leave_the_pods_directories_are_refused_also_where_only_limits_change() {
    let mut desired = want("u1", 2, "b");
    let spec = std::sync::Arc::make_mut(&mut desired.spec);
    let launchable = spec.launchables.remove("web").unwrap();
    spec.launchables.insert("../../etc".into(), launchable);
    let observed = Observed {
        adjustable: true,
        ..running("a")
    };
    let plan = plan(&order(desired), &observed);
    assert!(!plan.steps.contains(&Step::Adjust), "{plan:?}");
    assert_eq!(plan.hold.unwrap().reason(), "Invalid");
}

#[test]
fn a_new_pod_takes_the_name_of_one_that_left_nothing() {
    let leftover = Observed {
        current: None,
        at_rest: true,
        ..running("a")
    };
    let plan = plan(&order(want("u2", 1, "b")), &leftover);
    assert_eq!(plan.prepare, [Authorise, Fetch]);
}

fn positions() -> impl Strategy<Value = Position> {
    prop_oneof![
        Just(Position::Settled),
        Just(Position::Draining),
        Just(Position::Disabling),
        Just(Position::Stopping),
        Just(Position::Stopped),
        Just(Position::Readied),
        Just(Position::Released),
        Just(Position::Flipped),
        Just(Position::Activated),
        Just(Position::Started),
        Just(Position::Enabled),
        Just(Position::Healthy)
    ]
}

#[test]
fn what_needs_no_other_process_is_changed_while_programs_run() {
    let adjustable = Observed {
        adjustable: true,
        ..running("one")
    };
    let wanted = order(want("u1", 2, "two"));
    assert_eq!(steps(&wanted, &adjustable), [Step::Adjust]);
    // What was being got ready is not wanted any more.
    let changing = Observed {
        next: Some(digest("other")),
        ..adjustable.clone()
    };
    assert_eq!(steps(&wanted, &changing), [Discard]);
    // One that died meanwhile is looked after, with the new limits.
    let missing = Observed {
        missing: true,
        ..adjustable.clone()
    };
    assert_eq!(steps(&wanted, &missing), [Step::Adjust, Start]);
    // What is half stopped takes over first.
    let stopping = Observed {
        position: Position::Stopped,
        at_rest: true,
        next: Some(digest("other")),
        ..adjustable
    };
    assert!(!steps(&wanted, &stopping).contains(&Step::Adjust));
}

prop_compose! {
    fn any_observed()(
        uid in 0..3, seen in proptest::option::of((1..4u64, 0..3)),
        current in proptest::option::of(0..3), next in proptest::option::of(0..3),
        position in positions(),
        flags in any::<[bool; 6]>(), more in any::<[bool; 5]>(),
    ) -> Observed {
        let version = |n: i32| digest(&n.to_string());
        let uid = if uid == 0 { Uid::default() } else { format!("u{uid}").as_str().into() };
        Observed {
            uid,
            seen: seen.map(|(generation, spec)| (generation, version(spec))),
            current: current.map(version),
            next: next.map(version),
            position,
            drained: flags[0], at_rest: flags[1], missing: flags[2],
            stale: flags[3], unidentified: flags[4], adjustable: flags[5],
            failed: more[0], reverting: more[1],
            hooked: if more[2] { EVERY_HOOK } else { HookedEvents::default() },
            current_scripts: if more[3] { EVERY_SCRIPT } else { Scripts::default() },
            next_scripts: if more[3] { EVERY_SCRIPT } else { Scripts::default() },
            singleton: more[4],
            quarantined: None,
            preparation: None,
        }
    }
}

proptest! {
    #[test]
    fn nothing_is_stopped_without_an_order(observed in any_observed()) {
        for order in [Order::Missing, Order::Unknown] {
            let steps = steps(&order, &observed);
            prop_assert!(!steps.contains(&Remove));
            // What was being stopped for a version that is ready goes on to that version; so does
            // going back to the version before, which the last order wanted.
            let begun = observed.position.is_stopping() || observed.reverting;
            let committed = begun && observed.next.is_some();
            let stops = [Drain, Disable, Stop].iter().any(|step| steps.contains(step));
            prop_assert!(!stops || committed);
            prop_assert!(!steps.contains(&Drain));
        }
    }

    #[test]
    fn a_running_version_is_never_stopped_before_the_next_is_there(
        observed in any_observed(), generation in 1..5u64, spec in 0..3_i32,
    ) {
        let desired = want("u1", generation, &spec.to_string());
        let steps = steps(&order(desired), &observed);
        let at = |step| steps.iter().position(|s| *s == step);
        for stops in [Disable, Stop] {
            if let Some(stop) = at(stops) {
                prop_assert!(observed.next.is_some());
                prop_assert!(at(Flip).is_some_and(|flip| flip > stop));
            }
        }
        prop_assert!(!steps.contains(&Remove));
        prop_assert!(steps.is_sorted(), "the order of the table: {steps:?}");
    }
}
