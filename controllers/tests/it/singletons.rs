//! Pods that never run twice, on nodes that fall silent, are retired and come back.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use platctrl_controllers::node_lifecycle::{self, Limits};
use platctrl_controllers::{replication_controller, testing};
use platctrl_framework::model::{ConditionStatus, Object, ObjectKey};
use platctrl_framework::store::{Key, Transaction};
use platctrl_framework::testing::{FaultKind, Process, Replica, ScenarioError, Simulation, World};
use platctrl_kinds::{Node, Pod, ReplicationController, Strategy};

use crate::simulation::object;
use crate::world::{controller_key, named};

type Beating = Arc<Mutex<BTreeSet<String>>>;

/// Agents that beat, but for those that are taken out of the set.
fn beat(world: &World) -> Beating {
    let all: BTreeSet<String> = world.nodes().iter().cloned().collect();
    let beating = Arc::new(Mutex::new(all));
    let (world, alive) = (world.clone(), beating.clone());
    tokio::spawn(async move {
        for count in 0_u64.. {
            let now: Vec<String> = alive.lock().unwrap().iter().cloned().collect();
            for node in now {
                let key = Key::new(format!("x/beat/{node}")).unwrap();
                let beat = Transaction::new().put(key, format!("{{\"count\":{count}}}"));
                // Who is cut off beats later.
                let _ = world.client().store().commit(beat).await;
            }
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
    });
    beating
}

fn node_key(name: &str) -> ObjectKey {
    ObjectKey::cluster("platctrl.dev", "nodes", name).unwrap()
}

/// Waits for something. Whoever takes over listens anew, so it may take long, and in between
/// nothing happens at all.
struct Patience {
    what: &'static str,
    seconds: u32,
}

impl Patience {
    fn until(what: &'static str) -> Self {
        Self {
            what,
            seconds: 2_000,
        }
    }

    async fn lasts(&mut self, world: &World) -> Result<(), ScenarioError> {
        if self.seconds == 0 {
            return Err(format!("never: {}; {:?} run", self.what, running(world)).into());
        }
        self.seconds -= 1;
        world.sleep(Duration::from_secs(1)).await;
        Ok(())
    }
}

/// A condition of a node holds.
async fn says(world: &World, node: &str, kind: &str) -> Result<bool, ScenarioError> {
    let status = world.get::<Node>(&node_key(node)).await?.status;
    let condition = status.conditions.get(kind);
    Ok(condition.is_some_and(|it| it.status == ConditionStatus::True))
}

/// The controller says that it waits for a person to give the node up.
async fn awaits_retirement(world: &World) -> Result<bool, ScenarioError> {
    let key = controller_key();
    let controller = world.get::<ReplicationController>(&key).await?;
    let stalled = controller.status.conditions.get("Stalled").cloned();
    Ok(stalled.is_some_and(|it| it.reason == "AwaitsRetirement"))
}

fn running(world: &World) -> Vec<String> {
    let there = world.processes().into_iter().filter(Process::exists);
    there.map(|process| process.node().to_owned()).collect()
}

/// One pod that never runs twice, whose node is cut off while the pod runs on.
fn life(singleton: bool) -> Simulation {
    testing::fleet(3)
        .controllers(|replica: Replica| {
            let (store, environment) = (replica.store(), replica.environment());
            let lifecycle = node_lifecycle::controller(store, environment, Limits::default());
            replica
                .runtime()
                .controller(replication_controller::controller())
                .controller(lifecycle)
                .reap()
                .elect_leader("controllers")
        })
        .scenario(move |world| async move {
            let beating = beat(&world);
            let mut wanted = object(1);
            wanted.spec.strategy = Strategy::Dynamic;
            wanted.spec.template.spec.singleton = singleton;
            world.create(&wanted).await?;
            world.settled().await?;
            let there = running(&world);
            let node = there.first().cloned().ok_or("there is no pod")?;

            // Cut off from the store: its agent is silent, its pod serves.
            beating.lock().unwrap().remove(&node);
            let mut patience = Patience::until("the node is lost");
            while !says(&world, &node, "Lost").await? {
                patience.lasts(&world).await?;
            }
            world.settled().await?;
            if running(&world) != [node.clone()] {
                return Err(format!("{:?} run", running(&world)).into());
            }
            let mut patience = Patience::until("it is said what it waits for");
            while !awaits_retirement(&world).await? {
                patience.lasts(&world).await?;
            }

            // A person looks: the machine is dead. It is given up.
            world.stop_node(&node);
            let retire = |node: &mut Object<Node>| {
                (node.spec.incarnation, node.spec.unschedulable) = (1, true);
            };
            world.change::<Node>(&node_key(&node), retire).await?;
            let elsewhere = |there: Vec<String>| there.len() == 1 && there[0] != node;
            let mut patience = Patience::until("another one runs");
            while !elsewhere(running(&world)) {
                patience.lasts(&world).await?;
            }
            world.settled().await?;
            let there = running(&world);

            // And comes back.
            world.start_node(&node);
            beating.lock().unwrap().insert(node.clone());
            world.settled().await?;
            let after = running(&world);
            if after != there {
                return Err(format!("{after:?} run after {node} came back").into());
            }
            Ok(())
        })
        .invariant("never twice", |now| {
            let there = now.processes().filter(|process| process.exists()).count();
            match there {
                0 | 1 => Ok(()),
                _ => Err(format!("{there} run at once")),
            }
        })
        .history_matters()
        // What ends with a node's retirement is the agent's to clear away, which is played here
        // as far as it looks at pods.
        .orphans_may_stay()
        .without(FaultKind::Restore)
        .without(FaultKind::RestoreAhead)
        .without(FaultKind::NodeDown)
}

#[test]
fn a_singleton_never_runs_twice_though_its_node_is_lost_retired_and_back() {
    life(true).run(1).unwrap();
    life(true).random(0..6).unwrap();
}

/// A pod that nobody keeps, whose node dies, is retired and comes back.
fn retirement() -> Simulation {
    testing::fleet(1)
        .controllers(|replica: Replica| {
            let (store, environment) = (replica.store(), replica.environment());
            let lifecycle = node_lifecycle::controller(store, environment, Limits::default());
            replica
                .runtime()
                .controller(lifecycle)
                .kind::<ReplicationController>()
                .reap()
                .elect_leader("controllers")
        })
        .scenario(|world| async move {
            let beating = beat(&world);
            let node = world.nodes().first().cloned().ok_or("there is no node")?;
            let mut spec = object(1).spec.template.spec;
            spec.node_name = Some(node.clone());
            let pod = Object::<Pod>::new(named("bare"), spec);
            world.create(&pod).await?;
            world.settled().await?;
            beating.lock().unwrap().clear();
            world.stop_node(&node);
            let retire = |node: &mut Object<Node>| {
                (node.spec.incarnation, node.spec.unschedulable) = (1, true);
            };
            world.change::<Node>(&node_key(&node), retire).await?;
            let mut patience = Patience::until("its pod is given up");
            while !world.objects::<Pod>().is_empty() {
                patience.lasts(&world).await?;
            }
            world.start_node(&node);
            beating.lock().unwrap().insert(node.clone());
            world.settled().await
        })
        .history_matters()
        .orphans_may_stay()
        .without(FaultKind::Restore)
        .without(FaultKind::RestoreAhead)
        .without(FaultKind::NodeDown)
}

#[test]
fn a_retirement_goes_through_whatever_goes_wrong_at_a_write() {
    let explored = retirement().exhaustive().unwrap();
    assert_eq!(explored.runs, explored.faults);
}

/// The same world finds it out when a pod may be replaced as others are.
#[test]
fn a_pod_that_is_no_singleton_runs_twice_in_that_world() {
    let failure = life(false).run(1).unwrap_err();
    assert!(failure.to_string().contains("never twice"), "{failure}");
}
