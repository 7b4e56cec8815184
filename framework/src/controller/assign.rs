//! Which member works on which shard: a pure function of who is there and who holds what.
//!
//! Shards are spread by rendezvous hashing under a bound: no member has more than one shard more
//! than another. What a member holds it keeps as far as the bound allows, so that a member that
//! comes or goes moves as few shards as can be.

use std::collections::BTreeSet;
use std::hash::Hasher;

use super::posts::StableHash;

/// How much a member wants a shard; the highest gets it.
fn score(member: &str, shard: usize) -> u64 {
    let mut hash = StableHash::default();
    hash.write(member.as_bytes());
    hash.write(b"/");
    hash.write(&(shard as u64).to_le_bytes());
    hash.finish()
}

/// The member of each shard. `holders` are those that hold them now, members or not; without
/// members nobody gets any.
pub(crate) fn assign<'m>(
    members: &'m BTreeSet<String>,
    holders: &[Option<String>],
) -> Vec<Option<&'m str>> {
    let mut assigned: Vec<Option<&'m str>> = vec![None; holders.len()];
    if members.is_empty() {
        return assigned;
    }
    let share = holders.len() / members.len();
    let extra = holders.len() % members.len();
    let held_by = |member: &str| {
        let mine = holders.iter().enumerate();
        let mine = mine.filter(move |(_, holder)| holder.as_deref() == Some(member));
        mine.map(|(shard, _)| shard).collect::<Vec<_>>()
    };
    // One more than the share goes to those who have it already, then by hash.
    let mut places: Vec<(bool, u64, &'m str, Vec<usize>)> = members
        .iter()
        .map(|member| {
            let held = held_by(member);
            (
                held.len() <= share,
                score(member, usize::MAX),
                &**member,
                held,
            )
        })
        .collect();
    places.sort();
    let mut free: Vec<(usize, &'m str)> = Vec::new();
    for (place, (_, _, member, mut held)) in places.into_iter().enumerate() {
        let most = share + usize::from(place < extra);
        held.sort_by_key(|&shard| std::cmp::Reverse(score(member, shard)));
        held.truncate(most);
        for &shard in &held {
            assigned[shard] = Some(member);
        }
        free.push((most - held.len(), member));
    }
    for (shard, place) in assigned.iter_mut().enumerate() {
        if place.is_some() {
            continue;
        }
        let open = free.iter_mut().filter(|(room, _)| *room > 0);
        if let Some((room, member)) = open.max_by_key(|(_, member)| score(member, shard)) {
            *room -= 1;
            *place = Some(member);
        }
    }
    assigned
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn members(ids: &BTreeSet<u8>) -> BTreeSet<String> {
        ids.iter().map(|id| format!("m{id}")).collect()
    }

    fn counts(members: &BTreeSet<String>, assigned: &[Option<&str>]) -> Vec<usize> {
        let count = |member: &String| assigned.iter().flatten().filter(|a| *a == member).count();
        members.iter().map(count).collect()
    }

    /// The fewest shards that have to leave a living member: those above what balance allows.
    fn fewest_moves(members: &BTreeSet<String>, holders: &[Option<String>]) -> usize {
        let (share, mut extra) = (holders.len() / members.len(), holders.len() % members.len());
        let mut moves = 0;
        for member in members {
            let held = holders.iter().flatten().filter(|h| *h == member).count();
            if held > share {
                let one_more = usize::from(extra > 0);
                extra -= one_more;
                moves += held - share - one_more;
            }
        }
        moves
    }

    proptest! {
        #[test]
        fn shards_are_balanced_within_one_and_move_as_little_as_can_be(
            shards in 1..60usize,
            comings in prop::collection::vec(prop::collection::btree_set(0..12u8, 1..9), 1..6),
        ) {
            let mut holders: Vec<Option<String>> = vec![None; shards];
            for ids in comings {
                let members = members(&ids);
                let assigned = assign(&members, &holders);
                let counts = counts(&members, &assigned);
                let (low, high) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
                prop_assert!(high - low <= 1, "{counts:?}");
                prop_assert!(assigned.iter().all(Option::is_some));
                let moved = holders.iter().zip(&assigned).filter(|(before, after)| {
                    before.as_ref().is_some_and(|before| members.contains(before) && Some(before.as_str()) != **after)
                });
                prop_assert_eq!(moved.count(), fewest_moves(&members, &holders));
                let next: Vec<_> = assigned.iter().map(|member| member.map(ToOwned::to_owned)).collect();
                // Once everybody has what is theirs, nothing moves.
                prop_assert_eq!(&assign(&members, &next), &assigned);
                holders = next;
            }
        }

        #[test]
        fn whoever_claims_first_changes_nobody_elses_claims(
            shards in 1..40usize,
            ids in prop::collection::btree_set(0..12u8, 1..9),
            first in any::<prop::sample::Index>(),
        ) {
            let members = members(&ids);
            let mut holders: Vec<Option<String>> = vec![None; shards];
            let assigned = assign(&members, &holders);
            let first = first.index(shards);
            holders[first] = assigned[first].map(ToOwned::to_owned);
            let then = assign(&members, &holders);
            let mut sorted = (counts(&members, &assigned), counts(&members, &then));
            sorted.0.sort_unstable();
            sorted.1.sort_unstable();
            prop_assert_eq!(sorted.0, sorted.1);
            prop_assert_eq!(then[first], assigned[first]);
        }
    }

    #[test]
    fn without_members_nobody_gets_any() {
        assert_eq!(
            assign(&BTreeSet::new(), &[Some("gone".into()), None]),
            [None, None]
        );
    }

    #[test]
    fn a_member_that_leaves_moves_its_own_shards_only() {
        let three = members(&BTreeSet::from([1, 2, 3]));
        let holders: Vec<_> = assign(&three, &vec![None; 12])
            .into_iter()
            .map(|member| member.map(ToOwned::to_owned))
            .collect();
        let two = members(&BTreeSet::from([1, 3]));
        for (before, after) in holders.iter().zip(assign(&two, &holders)) {
            if before.as_deref() != Some("m2") {
                assert_eq!(before.as_deref(), after);
            }
        }
    }
}
