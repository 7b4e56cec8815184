//! How many nodes may be given up in a while, of all and of one zone.
//!
//! Below the share at which losses are not believed at all, each one that is believed moves its
//! pods elsewhere: many at once would be a mass move, and what makes them silent may be over
//! soon. What was given up is remembered here, and by the nodes' own status for whoever takes
//! over.

use std::collections::BTreeMap;
use std::time::Duration;

/// Nodes that were given up lately.
#[derive(Clone, Debug, Default)]
pub struct Losses {
    /// By node: how long ago that began to count, on the observer's clock, and the node's zone.
    lost: BTreeMap<String, (Duration, String)>,
}

/// How many nodes may be given up in a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LossRate {
    /// Of all nodes. Default 30.
    pub nodes: usize,
    /// Of one zone. Default 10.
    pub in_zone: usize,
    /// In so much time. Default 5 minutes.
    pub window: Duration,
}

impl Default for LossRate {
    fn default() -> Self {
        Self {
            nodes: 30,
            in_zone: 10,
            window: Duration::from_secs(300),
        }
    }
}

/// Why a node is not given up yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooFast {
    /// So many were given up in the window.
    pub lost: usize,
    /// In which zone; None: of all.
    pub zone: Option<String>,
}

impl Losses {
    /// A node is lost since so long, whoever said so.
    pub fn remember(&mut self, node: &str, zone: &str, at: Duration) {
        let entry = (at, zone.to_owned());
        self.lost.entry(node.to_owned()).or_insert(entry);
    }

    /// Gives a node up, if the rate allows it.
    ///
    /// # Errors
    /// [`TooFast`], with what there was of it.
    pub fn give_up(
        &mut self,
        node: &str,
        zone: &str,
        now: Duration,
        rate: LossRate,
    ) -> Result<(), TooFast> {
        self.lost
            .retain(|_, (at, _)| now.saturating_sub(*at) < rate.window);
        if self.lost.contains_key(node) {
            return Ok(());
        }
        let all = self.lost.len();
        if all >= rate.nodes {
            return Err(TooFast {
                lost: all,
                zone: None,
            });
        }
        let in_zone = self.lost.values().filter(|(_, its)| its == zone).count();
        if !zone.is_empty() && in_zone >= rate.in_zone {
            return Err(TooFast {
                lost: in_zone,
                zone: Some(zone.to_owned()),
            });
        }
        self.remember(node, zone, now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn rate() -> LossRate {
        LossRate {
            nodes: 3,
            in_zone: 2,
            window: 300 * S,
        }
    }

    #[test]
    fn nodes_are_given_up_no_faster_than_the_rates_of_all_and_of_each_zone() {
        let mut losses = Losses::default();
        let mut give_up =
            |node: &str, zone: &str, at: u32| losses.give_up(node, zone, at * S, rate());
        give_up("a", "east", 1).unwrap();
        give_up("b", "east", 2).unwrap();
        let zone = Some("east".to_owned());
        assert_eq!(give_up("c", "east", 3), Err(TooFast { lost: 2, zone }));
        give_up("d", "west", 4).unwrap();
        assert_eq!(
            give_up("e", "west", 5),
            Err(TooFast {
                lost: 3,
                zone: None
            })
        );
        give_up("a", "east", 6).unwrap();
        // Time gives way.
        give_up("c", "east", 301).unwrap();
        assert!(give_up("e", "west", 301).is_err());
        give_up("e", "west", 302).unwrap();
    }

    #[test]
    fn what_another_one_gave_up_counts() {
        let mut losses = Losses::default();
        for node in ["a", "b", "c"] {
            losses.remember(node, "", 10 * S);
        }
        assert!(losses.give_up("d", "", 20 * S, rate()).is_err());
        losses.give_up("b", "", 20 * S, rate()).unwrap();
    }

    proptest! {
        #[test]
        fn no_window_has_more_than_the_rate(asked in proptest::collection::vec((0u8..40, 0u8..3, 0u32..60), 1..200)) {
            let (mut losses, mut now, mut lost) = (Losses::default(), 0, Vec::new());
            for (node, zone, passed) in asked {
                now += passed;
                let (name, zone) = (format!("n{node}"), format!("z{zone}"));
                let known = lost.iter().any(|(other, _, at)| *other == name && now - at < 300);
                if losses.give_up(&name, &zone, now * S, rate()).is_ok() && !known {
                    lost.push((name, zone, now));
                }
                let within = |since: &u32| now - since < 300;
                let recent: Vec<_> = lost.iter().filter(|(_, _, at)| within(at)).collect();
                prop_assert!(recent.len() <= 3);
                prop_assert!(["z0", "z1", "z2"].iter().all(|zone| recent.iter().filter(|it| it.1 == *zone).count() <= 2));
            }
        }
    }
}
