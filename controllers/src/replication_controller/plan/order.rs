//! The order in which new pods are committed, and what is left of it when it is cut off.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::placement::{Fleet, FleetNode, Request, Spread};

/// Twelve nodes, four of each zone, one zone after the other by name.
fn fleet() -> Fleet {
    Fleet::new((0..12).map(|place| FleetNode {
        labels: Arc::new([("zone".to_owned(), format!("z{}", place / 4))].into()),
        ..FleetNode::named(&format!("n{place:02}"))
    }))
}

fn request(own: &BTreeMap<String, u32>) -> Request {
    let mut request = Request::new("default/hello", "*".parse().unwrap());
    (request.per_node, request.own) = (100, own.clone());
    request.spread_over = Some("zone".into());
    request
}

fn most_and_fewest(counts: impl Iterator<Item = u32>) -> (u32, u32) {
    counts.fold((0, u32::MAX), |(most, fewest), it| {
        (most.max(it), fewest.min(it))
    })
}

#[test]
fn the_pods_of_a_node_come_together_and_the_nodes_as_they_were_chosen() {
    let chosen = ["c", "a", "b", "a", "c", "a"].map(str::to_owned);
    assert_eq!(node_by_node(&chosen), ["c", "c", "a", "a", "a", "b"]);
}

proptest! {
    #[test]
    fn pods_are_spread_evenly_however_often_a_scale_up_is_cut_off(
        pods in 1u32..300, cuts in proptest::collection::vec(1usize..120, 0..6),
    ) {
        let fleet = fleet();
        let mut own: BTreeMap<String, u32> = BTreeMap::new();
        let zones = |own: &BTreeMap<String, u32>| {
            let zone = |place: usize| -> u32 {
                let names = (0..4).map(|node| format!("n{:02}", place * 4 + node));
                names.filter_map(|name| own.get(&name)).sum()
            };
            [zone(0), zone(1), zone(2)]
        };
        for cut in cuts.into_iter().map(Some).chain([None]) {
            let is_first = own.is_empty();
            let wanted = pods - own.values().sum::<u32>();
            let chosen = node_by_node(&Spread.place(&fleet, &request(&own), wanted));
            let of_each = chosen.chunk_by(|a, b| a == b).map(<[String]>::len);
            let most_of_a_node = of_each.max().unwrap_or(0);
            for node in chosen.into_iter().take(cut.unwrap_or(usize::MAX)) {
                *own.entry(node).or_default() += 1;
            }
            // Whole nodes came in turns from all zones: none is ahead by more than a node's pods, and
            // one for each of its nodes, which do not all get as many.
            let (most, fewest) = most_and_fewest(zones(&own).into_iter());
            prop_assert!(!is_first || (most - fewest) as usize <= most_of_a_node + 4, "{own:?}");
        }
        let (most, fewest) = most_and_fewest(zones(&own).into_iter());
        prop_assert!(most - fewest <= 1, "{own:?}");
        let all = (0..12).map(|place| own.get(&format!("n{place:02}")).copied().unwrap_or(0));
        let (most, fewest) = most_and_fewest(all);
        prop_assert!(most - fewest <= 1, "{own:?}");
    }
}
