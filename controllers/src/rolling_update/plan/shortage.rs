//! Plans where pods are missing, too many are wanted, or both at once: whatever is seen, a
//! controller is never told to have fewer pods than are left to it.

use proptest::prelude::*;

use super::*;

/// A pod: healthy, confirmed, leaving, decided about, may stay on its node, not heard of.
type Drawn = (bool, bool, bool, bool, bool, bool);

fn side(name: &str, drawn: &[Drawn], more: i32) -> Side {
    let pods = drawn.iter().enumerate().map(|(index, pod)| {
        let (healthy, confirmed, leaving, open, fits, silent) = *pod;
        PodFacts {
            uid: format!("{name}{index}").as_str().into(),
            name: format!("{name}{index}"),
            healthy: healthy && !leaving && !silent,
            unconfirmed: Duration::from_secs(u64::from(!confirmed)),
            leaving,
            open,
            fits,
            silent,
        }
    });
    let pods: Vec<PodFacts> = pods.collect();
    let live = pods.iter().filter(|pod| !pod.leaving).count();
    Side {
        replicas: count(live).saturating_add_signed(more),
        pods,
        ..Side::default()
    }
}

fn healthy(pods: usize) -> Vec<Drawn> {
    vec![(true, true, false, false, true, false); pods]
}

#[test]
fn what_is_missing_is_counted_once_where_there_are_also_too_many() {
    // Four are wanted of the old version and two are there; two of the new one: one too many.
    let view = Observed {
        replicas: 5,
        limit: 5,
        goal: 5,
        allowed: 1,
        batch: BATCH,
        source: side("old", &healthy(2), 2),
        target: side("new", &healthy(2), 0),
        ..Observed::default()
    };
    let next = plan(&view);
    // One of the missing is not wanted, the other is made new, and one pod goes over.
    assert_eq!(next.moves, [Move::InPlace("old0".into())]);
    assert_eq!((next.source, next.target), (1, 4), "{next:?}");
}

prop_compose! {
    fn some_side(name: &'static str)(
        pods in proptest::collection::vec(any::<Drawn>(), 0..9),
        more in -3i32..6,
    ) -> Side {
        side(name, &pods, more)
    }
}

proptest! {
    #[test]
    fn no_controller_is_told_to_have_fewer_pods_than_are_left_to_it(
        source in some_side("old"),
        target in some_side("new"),
        replicas in 0u32..16,
        limit in 0u32..16,
        surge in 0u32..4,
        allowed in 0u32..6,
    ) {
        let view = Observed {
            replicas,
            limit: limit.min(replicas),
            goal: replicas,
            surge,
            allowed,
            batch: BATCH,
            source,
            target,
            ..Observed::default()
        };
        let next = plan(&view);
        let (mut from_source, mut from_target, mut to_target, mut taken) = (0, 0, 0, 0);
        let mut seen = std::collections::BTreeSet::new();
        for it in &next.moves {
            let (Move::InPlace(uid) | Move::Elsewhere(uid) | Move::Remove(uid)) = it;
            prop_assert!(seen.insert(uid.clone()), "{uid} twice");
            let is = |pod: &&PodFacts| pod.uid == *uid;
            let old = view.source.pods.iter().find(is);
            let pod = old.or_else(|| view.target.pods.iter().find(is)).unwrap();
            prop_assert!(!pod.leaving && !pod.open);
            taken += u32::from(pod.healthy);
            match old {
                Some(_) => from_source += 1,
                None => from_target += 1,
            }
            to_target += u32::from(matches!(it, Move::InPlace(_)));
        }
        let young = count(view.target.young().count());
        prop_assert!(taken <= allowed.saturating_sub(young), "{next:?}");
        for (side, left, told) in [
            (&view.source, view.source.count() - from_source, next.source),
            (&view.target, view.target.count() - from_target + to_target, next.target),
        ] {
            // Those that it had too many before are its own to take away.
            let own = side.count().saturating_sub(side.replicas);
            prop_assert!(told + own >= left, "{told} of {left}: {view:?} {next:?}");
        }
        let (before, after) = (
            view.source.replicas + view.target.replicas,
            next.source + next.target,
        );
        prop_assert!(after <= before.max(replicas + surge), "{view:?} {next:?}");
        prop_assert!(next.target <= view.target.replicas.max(view.limit), "{view:?} {next:?}");
    }
}
