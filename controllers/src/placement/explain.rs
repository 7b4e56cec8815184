//! Why nodes take no pod: of each node, and of all in one sentence.

use std::collections::BTreeMap;
use std::fmt;

use platctrl_kinds::{Bytes, Cpu};

use super::{Fleet, NodeState, Request};

/// Why a node takes no pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no such node.
    NotThere,
    /// Its labels are not those that are wanted.
    NotSelected,
    /// It takes no new pods.
    State(NodeState),
    /// It runs as many of the owner's pods as it may.
    MaxPerNode {
        /// How many it runs.
        own: u32,
    },
    /// It runs as many pods as it may.
    Pods {
        /// How many it may run.
        most: u32,
    },
    /// Too little of its processors is left. In thousandths of one.
    Cpu {
        /// What the pod asks.
        asked: u64,
        /// What is left.
        free: u64,
        /// What there is in all.
        most: u64,
    },
    /// Too little of its memory is left. In bytes.
    Memory {
        /// What the pod asks.
        asked: u64,
        /// What is left.
        free: u64,
        /// What there is in all.
        most: u64,
    },
    /// Another pod has the port.
    Port {
        /// Its number.
        port: u16,
    },
    /// A pod of this app is there, and one of the two conflicts with the other.
    Conflict {
        /// The app.
        app: String,
    },
    /// No pod of an app is there that the pod must run beside.
    Without {
        /// The pattern for the app.
        pattern: String,
    },
}

fn cpu(millis: u64) -> Cpu {
    Cpu::from_millis(u32::try_from(millis).unwrap_or(u32::MAX))
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotThere => f.write_str("there is no such node"),
            Self::NotSelected => f.write_str("its labels do not match"),
            Self::State(NodeState::Open) => f.write_str("it is open"),
            Self::State(NodeState::ShortOfDisk) => f.write_str("its disk is nearly full"),
            Self::State(NodeState::Cordoned) => f.write_str("it is cordoned"),
            Self::State(NodeState::Silent) => f.write_str("it is not heard of"),
            Self::State(NodeState::Draining) => f.write_str("it is being drained"),
            Self::State(NodeState::Lost) => f.write_str("it is lost"),
            Self::State(NodeState::Leaving) => f.write_str("it is being retired"),
            Self::MaxPerNode { own } => write!(f, "it runs {own} of these pods (maxPerNode)"),
            Self::Pods { most } => write!(f, "it runs {most} pods, as many as it may"),
            Self::Cpu { asked, free, most } => write!(
                f,
                "{} of its {} cpu are left, {} are asked for",
                cpu(*free),
                cpu(*most),
                cpu(*asked)
            ),
            Self::Memory { asked, free, most } => write!(
                f,
                "{} of its {} memory are left, {} are asked for",
                Bytes::new(*free),
                Bytes::new(*most),
                Bytes::new(*asked)
            ),
            Self::Port { port } => write!(f, "port {port} is taken"),
            Self::Conflict { app } => write!(f, "it runs {app}, which conflicts"),
            Self::Without { pattern } => write!(f, "it does not run `{pattern}`"),
        }
    }
}

impl Refusal {
    /// The same reason for several nodes, as `2 are cordoned`.
    fn of_many(&self, count: usize) -> String {
        let (is, has, runs, does) = match count {
            1 => ("is", "has", "runs", "does"),
            _ => ("are", "have", "run", "do"),
        };
        match self {
            Self::NotThere => format!("{count} {is} not there"),
            Self::NotSelected => format!("{count} {does} not match"),
            Self::State(NodeState::Open) => format!("{count} {is} open"),
            Self::State(NodeState::ShortOfDisk) => format!("{count} {has} a disk nearly full"),
            Self::State(NodeState::Cordoned) => format!("{count} {is} cordoned"),
            Self::State(NodeState::Silent) => format!("{count} {is} not heard of"),
            Self::State(NodeState::Draining) => format!("{count} {is} being drained"),
            Self::State(NodeState::Lost) => format!("{count} {is} lost"),
            Self::State(NodeState::Leaving) => format!("{count} {is} being retired"),
            Self::MaxPerNode { .. } => {
                format!("{count} {runs} as many of these pods as maxPerNode allows")
            }
            Self::Pods { .. } => format!("{count} {runs} as many pods as they may"),
            Self::Cpu { asked, .. } => {
                format!("{count} {has} too little cpu left for {}", cpu(*asked))
            }
            Self::Memory { asked, .. } => {
                let asked = Bytes::new(*asked);
                format!("{count} {has} too little memory left for {asked}")
            }
            Self::Port { port } => format!("on {count} port {port} is taken"),
            Self::Conflict { app } => format!("{count} {runs} {app}, which conflicts"),
            Self::Without { pattern } => format!("{count} {does} not run `{pattern}`"),
        }
    }

    /// The same for all nodes that are counted together.
    fn class(&self) -> Self {
        let mut class = self.clone();
        match &mut class {
            Self::MaxPerNode { own } => *own = 0,
            Self::Pods { most } => *most = 0,
            Self::Cpu { free, most, .. } | Self::Memory { free, most, .. } => {
                (*free, *most) = (0, 0);
            }
            _ => {}
        }
        class
    }
}

/// What each node says to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// By the names of nodes; None: it takes a pod.
    pub nodes: BTreeMap<String, Option<Refusal>>,
    /// The selector that nodes have to match.
    pub selector: String,
    /// What the pod needs is more than any of the nodes has that match, were they empty.
    pub never_fits: bool,
}

/// Nodes that are named beside a reason.
const NAMED: usize = 3;

impl Fleet {
    /// Says of each node whether it takes a pod of a request, and if not why.
    #[must_use]
    pub fn explain(&self, request: &Request) -> Explanation {
        let mut matching = 0;
        let mut too_small = 0;
        let mut nodes = BTreeMap::new();
        let own = self.own(request);
        for (place, node) in self.nodes().iter().enumerate() {
            let refusal = self.refusal_at(place, request, own[place], 0);
            if request.selector.matches(&node.labels) {
                matching += 1;
                let room = node.room;
                let needs = request.needs.amounts;
                let small = room.cpu.is_some_and(|most| needs.cpu > most)
                    || room.memory.is_some_and(|most| needs.memory > most);
                too_small += usize::from(small);
            }
            nodes.insert(node.name.to_string(), refusal);
        }
        Explanation {
            nodes,
            selector: request.selector.to_string(),
            never_fits: matching > 0 && matching == too_small,
        }
    }
}

impl Explanation {
    /// In one sentence without an end: of 5 nodes 3 do not match `role=web`, 2 are cordoned
    /// (n4, n5).
    #[must_use]
    pub fn summary(&self) -> String {
        if self.nodes.is_empty() {
            return "there are no nodes".to_owned();
        }
        let mut by_class: BTreeMap<Option<Refusal>, Vec<&str>> = BTreeMap::new();
        for (node, refusal) in &self.nodes {
            let class = refusal.as_ref().map(Refusal::class);
            by_class.entry(class).or_default().push(node);
        }
        let mut parts = Vec::new();
        for (class, nodes) in by_class {
            let Some(class) = class else {
                let takes = if nodes.len() == 1 { "takes" } else { "take" };
                parts.push(format!("{} {takes} one", nodes.len()));
                continue;
            };
            let mut part = class.of_many(nodes.len());
            if class == Refusal::NotSelected {
                part = format!("{part} `{}`", self.selector);
            } else {
                let mut named: Vec<String> = nodes
                    .iter()
                    .take(NAMED)
                    .map(|node| match self.nodes.get(*node) {
                        Some(Some(Refusal::Cpu { free, .. })) => {
                            format!("{node}: {} free", cpu(*free))
                        }
                        Some(Some(Refusal::Memory { free, .. })) => {
                            format!("{node}: {} free", Bytes::new(*free))
                        }
                        _ => (*node).to_owned(),
                    })
                    .collect();
                if nodes.len() > NAMED {
                    named.push("…".to_owned());
                }
                part = format!("{part} ({})", named.join(", "));
            }
            parts.push(part);
        }
        let count = self.nodes.len();
        let nodes = if count == 1 { "node" } else { "nodes" };
        format!("of {count} {nodes} {}", parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FleetNode, PodNeeds, Room};
    use super::*;

    #[test]
    fn every_reason_is_said_of_one_node_and_of_several() {
        let state = Refusal::State;
        let (asked, free, most) = (1500, 250, 2000);
        let cases = [
            (
                state(NodeState::Cordoned),
                "it is cordoned",
                "2 are cordoned",
            ),
            (
                state(NodeState::Silent),
                "it is not heard of",
                "2 are not heard of",
            ),
            (state(NodeState::Lost), "it is lost", "2 are lost"),
            (
                state(NodeState::Draining),
                "it is being drained",
                "2 are being drained",
            ),
            (
                state(NodeState::Leaving),
                "it is being retired",
                "2 are being retired",
            ),
            (
                state(NodeState::ShortOfDisk),
                "its disk is nearly full",
                "2 have a disk nearly full",
            ),
            (
                Refusal::NotThere,
                "there is no such node",
                "2 are not there",
            ),
            (
                Refusal::NotSelected,
                "its labels do not match",
                "2 do not match",
            ),
            (
                Refusal::MaxPerNode { own: 3 },
                "it runs 3 of these pods (maxPerNode)",
                "2 run as many of these pods as maxPerNode allows",
            ),
            (
                Refusal::Pods { most: 9 },
                "it runs 9 pods, as many as it may",
                "2 run as many pods as they may",
            ),
            (
                Refusal::Cpu { asked, free, most },
                "250m of its 2 cpu are left, 1500m are asked for",
                "2 have too little cpu left for 1500m",
            ),
            (
                Refusal::Memory {
                    asked: 1 << 30,
                    free: 1 << 20,
                    most: 1 << 29,
                },
                "1Mi of its 512Mi memory are left, 1Gi are asked for",
                "2 have too little memory left for 1Gi",
            ),
            (
                Refusal::Port { port: 80 },
                "port 80 is taken",
                "on 2 port 80 is taken",
            ),
            (
                Refusal::Conflict { app: "db".into() },
                "it runs db, which conflicts",
                "2 run db, which conflicts",
            ),
            (
                Refusal::Without {
                    pattern: "db-*".into(),
                },
                "it does not run `db-*`",
                "2 do not run `db-*`",
            ),
        ];
        for (refusal, of_one, of_two) in cases {
            assert_eq!(refusal.to_string(), of_one);
            assert_eq!(refusal.of_many(2), of_two);
        }
    }

    #[test]
    fn each_node_says_why_not_and_all_together_in_one_sentence() {
        let with = |name: &str, state, memory| FleetNode {
            state,
            room: Room {
                memory: Some(memory),
                ..Room::default()
            },
            ..FleetNode::named(name)
        };
        let fleet = Fleet::new([
            with("a", NodeState::Cordoned, 1 << 30),
            with("b", NodeState::Open, 64 << 20),
            with("c", NodeState::Open, 32 << 20),
            with("d", NodeState::Lost, 1 << 30),
        ]);
        let mut request = Request::new("default/hello", "*".parse().unwrap());
        request.needs = PodNeeds::default();
        request.needs.amounts.memory = 128 << 20;
        let explanation = fleet.explain(&request);
        assert_eq!(
            explanation.nodes["a"],
            Some(Refusal::State(NodeState::Cordoned))
        );
        assert_eq!(
            explanation.nodes["b"].as_ref().unwrap().to_string(),
            "64Mi of its 64Mi memory are left, 128Mi are asked for"
        );
        assert!(!explanation.never_fits);
        assert_eq!(
            explanation.summary(),
            "of 4 nodes 1 is cordoned (a), 1 is lost (d), \
             2 have too little memory left for 128Mi (b: 64Mi free, c: 32Mi free)"
        );
        request.needs.amounts.memory = 1 << 40;
        assert!(fleet.explain(&request).never_fits);
    }
}
