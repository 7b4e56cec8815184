//! Who needs which keys: the rights of each of platctrl's programs in a store, and nothing beyond.

use platctrl_framework::failsafe::Failsafe;
use platctrl_framework::model::{GroupPlural, InvalidName, Resource, Tree, check_name};
use platctrl_framework::store::{Key, Policy, Prefix, Right};
use platctrl_kinds::{Node, Pod, Role as RoleKind, RoleBinding};

/// Names that other programs record their events and holds under.
const TAKEN: [&str; 2] = ["controllers", "server"];

/// One of platctrl's programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The agent of a node.
    Agent {
        /// The node.
        node: String,
    },
    /// Controllers: platctrl's own, or somebody's.
    Controllers {
        /// The name of their runtime.
        name: String,
        /// Into how many shards their work is divided, if it is.
        shards: usize,
    },
    /// The API server, which asks who may do what by itself.
    Server,
}

/// The rights of a role in a root: the policies, and the user or token that has all of them.
#[derive(Clone, Debug)]
pub(crate) struct Rights {
    pub(crate) user: String,
    pub(crate) policies: Vec<Policy>,
}

fn key(text: &str) -> Prefix {
    Prefix::only(&Key::new(text).expect("a constant that is a valid key"))
}

fn below(text: impl AsRef<str>) -> Prefix {
    Prefix::new(text).expect("made of constants and checked names")
}

/// The record of a cluster-scoped object in a tree.
fn record<K: Resource>(tree: Tree, name: &str) -> Prefix {
    let kind: GroupPlural = K::group_plural();
    let key = Key::new(format!("{}{name}", kind.prefix(tree)));
    Prefix::only(&key.expect("made of constants and a checked name"))
}

/// What lies below a name in a tree: a node's pods, or an object's parts.
fn of<K: Resource>(tree: Tree, name: &str) -> Prefix {
    let kind: GroupPlural = K::group_plural();
    below(format!("{}{name}/", kind.prefix(tree)))
}

/// What every program reads: which store it is, in which format, whether its history is the same,
/// and what people told all of them.
fn told() -> Vec<Right> {
    [
        key("x/anchor"),
        key("x/format"),
        below("x/chain/"),
        below("x/control/"),
    ]
    .map(Right::read)
    .into()
}

/// The rights that all agents have: also who has which role, for what people ask of their nodes.
fn agents() -> Vec<Right> {
    let roles = [RoleKind::group_plural(), RoleBinding::group_plural()];
    let roles = roles.map(|kind| Right::read(kind.prefix(Tree::Intent)));
    told().into_iter().chain(roles).collect()
}

/// The rights of an agent beside those of all agents.
fn agent(node: &str) -> Vec<Right> {
    let read = [
        of::<Pod>(Tree::Intent, node),
        record::<Node>(Tree::Intent, node),
        record::<Failsafe>(Tree::Intent, node),
        of::<Pod>(Tree::Grant, node),
        // Whoever reports on an object reads the others' shares of its status with it.
        of::<Node>(Tree::Part, node),
        of::<Failsafe>(Tree::Part, node),
    ];
    let write = [
        of::<Pod>(Tree::Reality, node),
        record::<Node>(Tree::Reality, node),
        record::<Failsafe>(Tree::Reality, node),
        key(&format!("x/beat/{node}")),
        below(format!("x/event/{node}/")),
    ];
    let read = read.map(Right::read).into_iter();
    read.chain(write.map(Right::write)).collect()
}

fn controllers(name: &str, shards: usize) -> Vec<Right> {
    let write = [
        // Each owns some kinds, and the reaper ends objects of all.
        below("o/"),
        below("x/lease/"),
        below("x/chain/"),
        below("x/kinds/"),
        below(format!("x/event/{name}/")),
    ];
    let rings = (0..shards).map(|shard| below(format!("x/event/{name}.{shard:03}/")));
    let mut rights = vec![Right::read(below("x/beat/"))];
    // What is written need not be granted to read.
    let told = told().into_iter();
    rights.extend(told.filter(|right| !write.contains(&right.range)));
    rights.extend(write.map(Right::write));
    rights.extend(rings.map(Right::write));
    rights
}

impl Role {
    /// The rights in a root.
    ///
    /// # Errors
    /// A name that cannot be one, or that another program has.
    pub(crate) fn rights(&self, root: &str) -> Result<Rights, String> {
        let invalid = |error: InvalidName| error.to_string();
        Ok(match self {
            Self::Agent { node } => {
                check_name("node name", node).map_err(invalid)?;
                if TAKEN.contains(&node.as_str()) {
                    return Err(format!(
                        "a node named `{node}` would write the events and holds of the program of that name: admit it under another name"
                    ));
                }
                let user = format!("platctrl-agent-{node}@{root}");
                let shared = Policy::new(format!("platctrl-agents@{root}"), agents());
                let own = Policy::new(&user, agent(node));
                let policies = vec![shared, own];
                Rights { user, policies }
            }
            Self::Controllers { name, shards } => {
                check_name("name of controllers", name).map_err(invalid)?;
                let user = format!("platctrl-controllers-{name}@{root}");
                let policy = Policy::new(&user, controllers(name, *shards)).with_leases();
                let policies = vec![policy];
                Rights { user, policies }
            }
            Self::Server => {
                let user = format!("platctrl-server@{root}");
                let policies = vec![Policy::new(&user, [Right::write(Prefix::all())])];
                Rights { user, policies }
            }
        })
    }

    /// What it is, for people.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Agent { node } => format!("the agent of node {node}"),
            Self::Controllers { name, .. } => format!("the controllers named {name}"),
            Self::Server => "the API server".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use platctrl_agent::watched_prefixes;
    use platctrl_framework::store::Access;

    use super::*;

    fn allows(role: &Role, access: Access, text: &str) -> bool {
        let rights = role.rights("prod").unwrap();
        let key = Key::new(text).unwrap();
        let mut policies = rights.policies.iter();
        policies.any(|policy| policy.allows(access, &key))
    }

    fn web1() -> Role {
        Role::Agent {
            node: "web1".to_owned(),
        }
    }

    #[test]
    fn an_agent_reads_what_it_watches_and_writes_its_own_reports() {
        for prefix in watched_prefixes("web1").unwrap() {
            let anchor = format!("{prefix}.anchor");
            assert!(allows(&web1(), Access::Read, &anchor), "{anchor}");
        }
        for own in [
            "o/reality/platctrl.dev/pods/web1/default/a",
            "o/reality/platctrl.dev/nodes/web1",
            "o/reality/platctrl.dev/failsafes/web1",
            "x/beat/web1",
            "x/event/web1/007",
        ] {
            assert!(allows(&web1(), Access::Write, own), "{own}");
        }
        for read in [
            "o/intent/platctrl.dev/pods/web1/default/a",
            "o/intent/platctrl.dev/nodes/web1",
            "o/grant/platctrl.dev/pods/web1/default/a",
            "x/anchor",
            "x/format",
            "x/chain/7",
            "x/control/freeze",
            "o/intent/platctrl.dev/roles/deploy-hello",
            "o/intent/platctrl.dev/rolebindings/ann",
        ] {
            assert!(allows(&web1(), Access::Read, read), "{read}");
            assert!(!allows(&web1(), Access::Write, read), "{read}");
        }
    }

    #[test]
    fn an_agent_has_nothing_of_another_node_and_of_nobody_else() {
        for foreign in [
            "o/intent/platctrl.dev/pods/web10/default/a",
            "o/reality/platctrl.dev/pods/web10/default/a",
            "o/reality/platctrl.dev/nodes/web10",
            "o/intent/platctrl.dev/nodes/web10",
            "o/intent/platctrl.dev/replicationcontrollers/default/a",
            "o/ledger/platctrl.dev/replicationcontrollers/default/a",
            "o/.anchor",
            "x/beat/web10",
            "x/event/web10/000",
            "x/lease/controllers",
            "x/kinds/platctrl.dev/pods",
            "x/auth/tokens/a",
            "x/auth/nodes/web1",
            "o/reality/platctrl.dev/roles/deploy-hello",
        ] {
            assert!(!allows(&web1(), Access::Read, foreign), "{foreign}");
        }
    }

    #[test]
    fn controllers_write_objects_but_neither_identity_nor_what_people_said() {
        let role = Role::Controllers {
            name: "mine".to_owned(),
            shards: 2,
        };
        for own in [
            "o/intent/a/b/c",
            "x/lease/mine",
            "x/chain/head",
            "x/event/mine.001/000",
        ] {
            assert!(allows(&role, Access::Write, own), "{own}");
        }
        for read in ["x/anchor", "x/format", "x/control/freeze", "x/beat/web1"] {
            assert!(allows(&role, Access::Read, read), "{read}");
            assert!(!allows(&role, Access::Write, read), "{read}");
        }
        for none in [
            "x/auth/a",
            "x/event/web1/000",
            "x/event/mine.002/000",
            "x/copy",
        ] {
            assert!(!allows(&role, Access::Read, none), "{none}");
        }
    }

    #[test]
    fn names_of_roles_cannot_be_taken_for_each_other() {
        let names: Vec<String> = [
            web1(),
            Role::Agent {
                node: "s".to_owned(),
            },
            Role::Controllers {
                name: "server".to_owned(),
                shards: 0,
            },
            Role::Server,
        ]
        .iter()
        .flat_map(|role| role.rights("a/server").unwrap().policies)
        .map(|policy| policy.name)
        .collect();
        let mut unlike = names.clone();
        unlike.sort();
        unlike.dedup();
        // All agents share one.
        assert_eq!(unlike.len(), names.len() - 1, "{names:?}");
        for node in ["controllers", "server", "Web1", "a/b", ""] {
            let role = Role::Agent {
                node: node.to_owned(),
            };
            role.rights("prod").unwrap_err();
        }
    }
}
