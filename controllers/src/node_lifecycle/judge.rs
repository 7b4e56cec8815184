//! What is made of the silence of a node, from plain data.
//!
//! That many nodes fall silent at once is more likely the fault of who listens, or of the network
//! between, than of all of them: then none is given up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::failsafe::LostShare;

use super::losses::LossRate;
use super::opinion::{OpenPorts, SecondOpinion};

/// The times and shares that nodes are judged by.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Without a sign of life for so long it is not known how a node's pods are. Default 40s.
    pub unknown_after: Duration,
    /// ... and for so long the node is lost: its pods may be replaced. Default 5 minutes.
    pub lost_after: Duration,
    /// When so many of all nodes, or of those of one zone, are silent, none is given up.
    pub mass: LostShare,
    /// The label that names a node's zone. Default `zone`.
    pub zone: String,
    /// How many nodes may be given up in a while.
    pub rate: LossRate,
    /// From so many silent nodes on none is given up without a second opinion. Default 2.
    pub opinion_from: usize,
    /// Who is asked for it; by default whether pods of the node [answer](OpenPorts).
    pub second_opinion: Option<Arc<dyn SecondOpinion>>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unknown_after: Duration::from_secs(40),
            lost_after: Duration::from_secs(300),
            mass: LostShare::default(),
            zone: "zone".to_owned(),
            rate: LossRate::default(),
            opinion_from: 2,
            second_opinion: Some(Arc::new(OpenPorts)),
        }
    }
}

/// A node, as far as its silence is about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    /// For how long the observer has heard nothing.
    pub silent_for: Duration,
    /// The observer has heard it itself, and does not only remember what another one said.
    pub heard: bool,
    /// It was given up before the observer began to listen, and there was no sign of life since.
    pub given_up: bool,
    /// Where it is.
    pub zone: String,
}

impl Silence {
    /// It is silent for long enough that nobody can say how its pods are.
    pub(super) fn is_silent(&self, limits: &Limits) -> bool {
        self.given_up || self.silent_for >= limits.unknown_after
    }
}

/// All nodes of a fleet, as far as their silence is about them, and how many of each zone are
/// silent.
#[derive(Clone, Debug, Default)]
pub struct Silences {
    nodes: BTreeMap<String, Silence>,
    all: Count,
    zones: BTreeMap<String, Count>,
}

/// So many of so many are silent.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    silent: usize,
    of: usize,
}

impl Count {
    fn add(&mut self, is_silent: bool) {
        self.of += 1;
        self.silent += usize::from(is_silent);
    }
}

impl Silences {
    /// Of these nodes, by name.
    #[must_use]
    pub fn of(nodes: BTreeMap<String, Silence>, limits: &Limits) -> Self {
        let (mut all, mut zones) = (Count::default(), BTreeMap::<String, Count>::new());
        for node in nodes.values() {
            let is_silent = node.is_silent(limits);
            all.add(is_silent);
            match zones.get_mut(&node.zone) {
                Some(zone) => zone.add(is_silent),
                None => zones.entry(node.zone.clone()).or_default().add(is_silent),
            }
        }
        Self { nodes, all, zones }
    }

    /// Of one node.
    #[must_use]
    pub fn get(&self, node: &str) -> Option<&Silence> {
        self.nodes.get(node)
    }

    /// How many nodes are silent.
    #[must_use]
    pub fn silent(&self) -> usize {
        self.all.silent
    }
}

/// What is known of a node's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The observer has not listened for long enough: what was said before stands.
    Open,
    /// It was heard of.
    Alive,
    /// It is silent.
    Unknown,
    /// It is silent for so long that it would be lost, but so are many: nothing is done.
    Withheld {
        /// How many are silent.
        silent: usize,
        /// Of how many.
        of: usize,
        /// In which zone; None: of all.
        zone: Option<String>,
    },
    /// It would be lost, but so many were lately: it waits for its turn.
    Paced {
        /// How many were.
        lost: usize,
        /// In which zone; None: of all.
        zone: Option<String>,
    },
    /// It would be lost, but does its work all the same.
    Doubted {
        /// What shows that.
        seen: String,
    },
    /// It is lost.
    Lost,
}

impl Verdict {
    /// Nothing is heard of it, whatever is made of that.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        !matches!(self, Self::Open | Self::Alive)
    }
}

/// Judges one node of a fleet.
///
/// Each observer listens for as long as it takes itself, whatever another one's clock said. That a
/// node was given up is no matter of clocks: it was silent for all of that time, and it is still
/// the same silence as long as no other beat is seen.
#[must_use]
pub fn judge(fleet: &Silences, node: &str, limits: &Limits) -> Verdict {
    let Some(silence) = fleet.get(node) else {
        return Verdict::Open;
    };
    if !silence.is_silent(limits) {
        return if silence.heard {
            Verdict::Alive
        } else {
            Verdict::Open
        };
    }
    if !silence.given_up && silence.silent_for < limits.lost_after {
        return Verdict::Unknown;
    }
    let zone = Some(&silence.zone).filter(|zone| !zone.is_empty());
    let of_zone = zone.and_then(|zone| Some((Some(zone), *fleet.zones.get(zone)?)));
    for (zone, Count { silent, of }) in [(None, fleet.all)].into_iter().chain(of_zone) {
        // So many are not believed.
        if !limits.mass.believes(silent, of) {
            return Verdict::Withheld {
                silent,
                of,
                zone: zone.cloned(),
            };
        }
    }
    Verdict::Lost
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fleet(nodes: &[(u64, &str)]) -> BTreeMap<String, Silence> {
        let node = |(i, (silent_for, zone)): (usize, &(u64, &str))| {
            let silence = Silence {
                silent_for: Duration::from_secs(*silent_for),
                heard: true,
                given_up: false,
                zone: (*zone).to_owned(),
            };
            (format!("n{i}"), silence)
        };
        nodes.iter().enumerate().map(node).collect()
    }

    fn judge_among(nodes: &BTreeMap<String, Silence>, node: &str) -> Verdict {
        let limits = Limits::default();
        judge(&Silences::of(nodes.clone(), &limits), node, &limits)
    }

    fn verdict(nodes: &[(u64, &str)]) -> Verdict {
        judge_among(&fleet(nodes), "n0")
    }

    #[test]
    fn silence_is_unknown_first_and_lost_after_the_grace() {
        assert_eq!(verdict(&[(39, ""), (0, "")]), Verdict::Alive);
        assert_eq!(verdict(&[(40, ""), (0, "")]), Verdict::Unknown);
        assert_eq!(verdict(&[(299, ""), (0, "")]), Verdict::Unknown);
        assert_eq!(verdict(&[(300, ""), (0, "")]), Verdict::Lost);
        let mut new = fleet(&[(10, "")]);
        new.get_mut("n0").unwrap().heard = false;
        assert_eq!(judge_among(&new, "n0"), Verdict::Open);
    }

    #[test]
    fn one_that_was_given_up_stays_lost_for_who_takes_over_until_it_is_heard_of() {
        let mut nodes = fleet(&[(3, ""), (0, ""), (0, ""), (0, "")]);
        let lost = nodes.get_mut("n0").unwrap();
        (lost.heard, lost.given_up) = (false, true);
        assert_eq!(judge_among(&nodes, "n0"), Verdict::Lost);
        // It is one of the silent ones when others fall silent, too.
        for node in ["n1", "n2"] {
            nodes.get_mut(node).unwrap().silent_for = Duration::from_secs(50);
        }
        let many = Verdict::Withheld {
            silent: 3,
            of: 4,
            zone: None,
        };
        assert_eq!(judge_among(&nodes, "n0"), many);
        // Nobody's time is shortened by it.
        assert_eq!(judge_among(&nodes, "n1"), Verdict::Unknown);
        let lost = nodes.get_mut("n0").unwrap();
        (lost.heard, lost.given_up) = (true, false);
        assert_eq!(judge_among(&nodes, "n0"), Verdict::Alive);
    }

    #[test]
    fn failsafe_node_heartbeat_lost_many() {
        let mut nodes = vec![(400, ""); 2];
        nodes.extend([(0, ""); 8]);
        assert_eq!(verdict(&nodes), Verdict::Lost, "two of ten may be");
        nodes[2].0 = 50;
        let many = Verdict::Withheld {
            silent: 3,
            of: 10,
            zone: None,
        };
        assert_eq!(verdict(&nodes), many, "of three of ten none is");
        // A zone of its own, of a fleet in which it is few.
        let mut nodes = vec![(400, "east"); 3];
        nodes.extend([(0, "west"); 40]);
        let zone = Verdict::Withheld {
            silent: 3,
            of: 3,
            zone: Some("east".into()),
        };
        assert_eq!(verdict(&nodes), zone);
    }

    proptest! {
        #[test]
        fn when_a_fifth_and_three_are_silent_none_is_given_up(silences in proptest::collection::vec((0u64..600, 0u8..3), 1..40)) {
            let zones = ["a", "b", "c"];
            let nodes: Vec<_> = silences.iter().map(|(s, z)| (*s, zones[usize::from(*z)])).collect();
            let fleet = fleet(&nodes);
            let silent = nodes.iter().filter(|(s, _)| *s >= 40).count();
            for node in fleet.keys() {
                let verdict = judge_among(&fleet, node);
                if silent >= 3 && silent * 5 >= nodes.len() {
                    prop_assert!(verdict != Verdict::Lost);
                }
            }
        }
    }
}
