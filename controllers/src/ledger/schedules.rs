//! Everybody takes pods away at once: a roll, drains of three nodes, people who delete, agents that
//! ask for restarts, on views of any age; nodes are lost meanwhile. Whatever the order, each act
//! leaves the floor, by the health recorded in the view that it was decided on.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use platctrl_framework::model::{Digest, Uid};

use super::{Account, Act, Entry, Member};

const PODS: usize = 12;
const NODES: u64 = 8;
const FLOOR: u32 = 9;
/// Nodes that are drained.
const DRAINED: [u64; 3] = [0, 1, 2];

/// Numbers that follow from a seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }
}

#[derive(Clone, Debug)]
struct Pod {
    node: u64,
    spec: u64,
    deleted: bool,
    /// The spec that was reported on, and whether it was ready.
    reported: (u64, bool),
    request: Option<u64>,
    grant: Option<u64>,
    /// When its intent or grant was last written.
    written: usize,
}

impl Pod {
    fn is_healthy(&self) -> bool {
        !self.deleted && self.reported == (self.spec, true)
    }
}

#[derive(Clone, Debug, Default)]
struct Store {
    pods: BTreeMap<u64, Pod>,
    entries: Vec<Entry>,
    /// When the ledger was last written.
    ledger: usize,
}

struct Fleet {
    /// The state after each write.
    history: Vec<Store>,
    /// What was taken away: when, and what.
    taken: Vec<(usize, u64)>,
    down: BTreeSet<u64>,
    next_pod: u64,
    next_request: u64,
    compares_ledger: bool,
    refused: usize,
    conflicts: usize,
    losses: usize,
}

fn uid(pod: u64) -> Uid {
    format!("p{pod:04}").as_str().into()
}

fn digest(spec: u64) -> Digest {
    Digest::of_json(&spec.into())
}

/// What is to be done to a pod.
#[derive(Clone, Copy)]
enum Wish {
    Delete,
    Replace,
    Restart,
}

impl Fleet {
    fn new(dice: &mut Dice, compares_ledger: bool) -> Self {
        let mut store = Store::default();
        for pod in 0..PODS as u64 {
            let node = dice.below(NODES);
            store.pods.insert(
                pod,
                Pod {
                    node,
                    spec: 1,
                    deleted: false,
                    reported: (1, true),
                    request: None,
                    grant: None,
                    written: 0,
                },
            );
        }
        Self {
            history: vec![store],
            taken: Vec::new(),
            down: BTreeSet::new(),
            next_pod: PODS as u64,
            next_request: 0,
            compares_ledger,
            refused: 0,
            conflicts: 0,
            losses: 0,
        }
    }

    fn now(&self) -> &Store {
        self.history.last().expect("there is a first state")
    }

    fn write(&mut self, change: impl FnOnce(&mut Store, usize)) {
        let mut next = self.now().clone();
        change(&mut next, self.history.len());
        self.history.push(next);
    }

    /// Somebody decides on a view and commits.
    fn act(&mut self, dice: &mut Dice, by: &str, wish: Wish, wants: impl Fn(&Pod) -> bool) {
        let newest = self.history.len() - 1;
        let age = if dice.one_in(3) { dice.below(12) } else { 0 };
        let seen_at = newest.saturating_sub(usize::try_from(age).unwrap());
        // Where kinds are watched apart, the ledger may be seen newer than the pods.
        let ledger_at = if dice.one_in(4) { newest } else { seen_at };
        let (seen, ledger) = (self.history[seen_at].clone(), &self.history[ledger_at]);
        let ledger_read_at = ledger.ledger;
        let members = seen.pods.iter().map(|(pod, it)| {
            let member = Member {
                healthy: it.is_healthy(),
                leaving: it.deleted,
                spec: Some(digest(it.spec)),
                request: it.request.map(|request| request.to_string()),
            };
            (uid(*pod), member)
        });
        let current = ledger_read_at <= seen_at;
        let mut account = Account::new(members.collect(), FLOOR, ledger.entries.clone(), current);
        let mut victims = Vec::new();
        let candidates: Vec<u64> = seen
            .pods
            .iter()
            .filter(|(_, pod)| !pod.deleted && wants(pod))
            .map(|(pod, _)| *pod)
            .collect();
        for pod in candidates {
            let it = &seen.pods[&pod];
            if victims.len() == 3 || (dice.one_in(2) && !victims.is_empty()) {
                break;
            }
            let act = match wish {
                Wish::Delete => Act::Delete,
                Wish::Replace => Act::Replace {
                    before: digest(it.spec),
                    target: digest(2),
                },
                Wish::Restart => Act::Restart {
                    request: it.request.unwrap_or_default().to_string(),
                },
            };
            // As `Ledger`: what shows the pods is never older than what is written there.
            if !current
                || account
                    .enter(&uid(pod), act, by, Timestamp::UNIX_EPOCH)
                    .is_err()
            {
                self.refused += 1;
                continue;
            }
            victims.push(pod);
        }
        if victims.is_empty() {
            return;
        }
        let unchanged = |pod: &u64| {
            let now = self.now().pods.get(pod);
            now.is_some_and(|now| now.written == seen.pods[pod].written)
        };
        let ledger_is_same = self.now().ledger == ledger_read_at;
        if !(victims.iter().all(unchanged) && (ledger_is_same || !self.compares_ledger)) {
            self.conflicts += 1;
            return;
        }
        let at = self.history.len();
        let entries: Vec<Entry> = account.open().cloned().collect();
        self.write(|store, at| {
            store.entries = entries;
            store.ledger = at;
            for victim in &victims {
                let pod = store.pods.get_mut(victim).unwrap();
                pod.written = at;
                match wish {
                    Wish::Delete => pod.deleted = true,
                    Wish::Replace => pod.spec = 2,
                    Wish::Restart => pod.grant = pod.request,
                }
            }
        });
        let takes_healthy = victims.iter().any(|pod| seen.pods[pod].is_healthy());
        self.taken.extend(victims.iter().map(|pod| (at, *pod)));
        if takes_healthy {
            self.check(&seen, seen_at);
        }
    }

    /// Of what the view showed as healthy, what nobody has taken away since is enough.
    fn check(&self, seen: &Store, seen_at: usize) {
        let healthy = seen.pods.iter().filter(|(_, pod)| pod.is_healthy());
        let stays = healthy.filter(|(pod, _)| {
            let taken = |(at, victim): &(usize, u64)| *at > seen_at && victim == *pod;
            !self.taken.iter().any(taken)
        });
        let stays = stays.count();
        assert!(
            stays >= FLOOR as usize,
            "{stays} healthy are left of what was seen at {seen_at}, at {}",
            self.history.len() - 1
        );
    }

    /// An agent does the next step for one of its pods.
    fn agent(&mut self, dice: &mut Dice) {
        let pods: Vec<u64> = self.now().pods.keys().copied().collect();
        if pods.is_empty() {
            // All were unhealthy, so that nothing kept anybody from taking the last away.
            return;
        }
        let chosen = pods[usize::try_from(dice.below(pods.len() as u64)).unwrap()];
        let pod = self.now().pods[&chosen].clone();
        if self.down.contains(&pod.node) && !pod.deleted {
            return;
        }
        if pod.deleted {
            self.write(|store, _| {
                store.pods.remove(&chosen);
            });
        } else if pod.reported.0 != pod.spec {
            self.write(|store, _| {
                let pod = store.pods.get_mut(&chosen).unwrap();
                pod.reported = (pod.spec, false);
            });
        } else if pod.request.is_some() {
            if pod.grant == pod.request {
                self.write(|store, _| {
                    store.pods.get_mut(&chosen).unwrap().request = None;
                });
            }
        } else if !pod.reported.1 {
            self.write(|store, _| {
                store.pods.get_mut(&chosen).unwrap().reported.1 = true;
            });
        }
    }

    /// Something that nobody chose.
    fn misfortune(&mut self, dice: &mut Dice) {
        let request = self.next_request;
        self.next_request += 1;
        let healthy: Vec<u64> = self
            .now()
            .pods
            .iter()
            .filter(|(_, pod)| pod.is_healthy())
            .map(|(pod, _)| *pod)
            .collect();
        if healthy.is_empty() {
            return;
        }
        let chosen = healthy[usize::try_from(dice.below(healthy.len() as u64)).unwrap()];
        self.losses += 1;
        if dice.one_in(4) {
            // A node goes, with all its pods.
            let node = self.now().pods[&chosen].node;
            self.down.insert(node);
            self.write(|store, _| {
                for pod in store.pods.values_mut().filter(|pod| pod.node == node) {
                    pod.reported.1 = false;
                }
            });
        } else {
            self.write(|store, _| {
                let pod = store.pods.get_mut(&chosen).unwrap();
                pod.reported.1 = false;
                pod.request = Some(request);
            });
        }
    }

    /// Missing pods are made, on nodes that take them.
    fn replenish(&mut self, dice: &mut Dice) {
        let live = self.now().pods.values().filter(|pod| !pod.deleted);
        if live.count() >= PODS {
            return;
        }
        let name = self.next_pod;
        self.next_pod += 1;
        let node = 3 + dice.below(NODES - 3);
        self.write(|store, at| {
            let pod = Pod {
                node,
                spec: 2,
                deleted: false,
                reported: (0, false),
                request: None,
                grant: None,
                written: at,
            };
            store.pods.insert(name, pod);
        });
    }

    fn is_done(&self) -> bool {
        let pods = &self.now().pods;
        let done = |pod: &Pod| pod.is_healthy() && pod.spec == 2 && !DRAINED.contains(&pod.node);
        pods.len() == PODS && pods.values().all(done)
    }

    fn step(&mut self, dice: &mut Dice, calm: bool) {
        match dice.below(16) {
            0..=2 => self.act(dice, "roll", Wish::Replace, |pod| pod.spec == 1),
            3 | 4 => {
                let node = DRAINED[usize::try_from(dice.below(3)).unwrap()];
                self.act(dice, "drain", Wish::Delete, |pod| pod.node == node);
            }
            5 => self.act(dice, "grants", Wish::Restart, |pod| pod.request.is_some()),
            6 if !calm => {
                let odd = dice.below(3);
                self.act(dice, "person", Wish::Delete, |pod| pod.node % 3 == odd);
            }
            7 if !calm && dice.one_in(6) => self.misfortune(dice),
            8 => {
                let up = self.down.iter().next().copied();
                if let Some(node) = up.filter(|_| calm || dice.one_in(10)) {
                    self.down.remove(&node);
                }
            }
            9 => self.replenish(dice),
            _ => self.agent(dice),
        }
    }
}

/// Refusals, conflicts and losses of one schedule.
fn schedule(seed: u64, compares_ledger: bool) -> (usize, usize, usize) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut fleet = Fleet::new(&mut dice, compares_ledger);
    for _ in 0..400 {
        fleet.step(&mut dice, false);
    }
    let mut left = 20_000;
    while !fleet.is_done() {
        fleet.step(&mut dice, true);
        left -= 1;
        assert!(
            left > 0,
            "seed {seed} does not come to its end: {:?}",
            fleet.now()
        );
    }
    (fleet.refused, fleet.conflicts, fleet.losses)
}

#[test]
fn the_floor_holds_whoever_takes_pods_away_at_once() {
    let soak = std::env::var("PLATCTRL_TEST_SCALE").as_deref() == Ok("full");
    let schedules = if soak { 5_000 } else { 400 };
    let (mut refused, mut conflicts, mut losses) = (0, 0, 0);
    for seed in 1..=schedules {
        let (a, b, c) = schedule(seed, true);
        refused += a;
        conflicts += b;
        losses += c;
    }
    // They did get into each other's way.
    let most = usize::try_from(schedules).unwrap();
    println!("{schedules} schedules: {refused} refused, {conflicts} conflicts, {losses} losses");
    assert!(refused > 10 * most && conflicts > most && losses > most);
}

#[test]
fn without_comparing_the_ledger_the_floor_breaks() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let broken = (1..=100).any(|seed| std::panic::catch_unwind(|| schedule(seed, false)).is_err());
    std::panic::set_hook(hook);
    assert!(broken, "the schedules do not find what they look for");
}
