//! The controllers in the simulator: whatever goes wrong at any write, they come to the same end.

use platctrl_controllers::{disruption_budget, replication_controller, testing};
use platctrl_framework::client::DeleteOptions;
use platctrl_framework::controller::Controller;
use platctrl_framework::model::{Object, ObjectKey, Propagation, Resource};
use platctrl_framework::testing::{FaultKind, Moment, Process, Replica, Simulation, World};
use platctrl_kinds::{
    Amount, DisruptionBudget, DisruptionBudgetSpec, Node, Pod, ReplicationController,
    ReplicationControllerSpec, Span, Strategy,
};

use crate::world::{controller_key, controller_spec, named};

pub(crate) fn object(replicas: u32) -> Object<ReplicationController> {
    let metadata = named("hello");
    Object::new(metadata, controller_spec(replicas))
}

async fn change(
    world: &World,
    change: impl Fn(&mut ReplicationControllerSpec),
) -> Result<(), platctrl_framework::testing::ScenarioError> {
    world
        .change::<ReplicationController>(&controller_key(), |object| change(&mut object.spec))
        .await?;
    world.settled().await
}

/// So many machines, and one controller that is led.
pub(crate) fn fleet_with<K: Resource>(
    nodes: usize,
    controller: impl Fn() -> Controller<K> + Send + Sync + 'static,
) -> Simulation {
    testing::fleet(nodes).controllers(move |replica: Replica| {
        replica
            .runtime()
            .controller(controller())
            .reap()
            .elect_leader("controllers")
    })
}

fn fleet(replicas: usize) -> Simulation {
    fleet_with(4, replication_controller::controller)
        .replicas(replicas)
        .invariant("one pod on a node", one_on_a_node)
}

/// A delete of the owner with this policy.
pub(crate) fn propagated(propagation: Propagation) -> DeleteOptions {
    let mut options = DeleteOptions::default();
    options.propagation = Some(propagation);
    options
}

/// What `maxPerNode: 1` promises, of what really runs.
pub(crate) fn one_on_a_node(now: &Moment<'_>) -> Result<(), String> {
    let mut nodes: Vec<&str> = now.processes().map(Process::node).collect();
    nodes.sort_unstable();
    match nodes.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("two on {}", pair[0])),
        None => Ok(()),
    }
}

/// Grows, and changes its template.
fn life(replicas: usize) -> Simulation {
    fleet(replicas)
        .scenario(|world| async move {
            world.create(&object(1)).await?;
            world.settled().await?;
            change(&world, |spec| spec.replicas = 2).await?;
            change(&world, |spec| {
                spec.template.spec.drain_delay = Some(Span::from_secs(1));
            })
            .await
        })
        .invariant("never more than two pods", |now| {
            now.processes().count() <= 2
        })
}

#[test]
fn a_replication_controller_lives_through_whatever_goes_wrong_at_a_write() {
    let explored = life(1).exhaustive().unwrap();
    assert!(explored.writes >= 12, "{explored:?}");
    assert_eq!(explored.runs, explored.faults);
}

#[test]
fn two_replicas_of_the_controllers_are_as_good_as_one() {
    let explored = fleet(2)
        .scenario(|world| async move {
            world.create(&object(2)).await?;
            world.settled().await?;
            change(&world, |spec| spec.replicas = 1).await
        })
        .exhaustive()
        .unwrap();
    assert_eq!(explored.runs, explored.faults);
}

#[test]
fn a_replication_controller_lives_through_what_is_drawn() {
    life(2).random(0..24).unwrap();
}

/// Pods are moved away from a node that does not match any more, whatever goes wrong at a write.
#[test]
fn a_dynamic_controller_moves_its_pods_wherever_it_is_interrupted() {
    let explored = fleet(1)
        .scenario(|world| async move {
            let mut wanted = object(2);
            wanted.spec.strategy = Strategy::Dynamic;
            world.create(&wanted).await?;
            world.settled().await?;
            let pods = world.objects::<Pod>();
            let node = pods.first().and_then(|pod| pod.spec.node_name.clone());
            let key = ObjectKey::cluster("platctrl.dev", "nodes", &node.unwrap_or_default())?;
            let away = |node: &mut Object<Node>| {
                node.metadata.labels.insert("role".into(), "db".into());
            };
            world.change::<Node>(&key, away).await?;
            world.settled().await?;
            Ok(())
        })
        .invariant("never more than one too many", |now| {
            now.processes().count() <= 3
        })
        // Nodes that were changed are not those that a world begins with.
        .history_matters()
        .exhaustive()
        .unwrap();
    assert_eq!(explored.runs, explored.faults);
}

/// What a budget says is so of the pods that are there, whatever goes wrong at a write.
#[test]
fn a_disruption_budget_says_the_same_wherever_it_is_interrupted() {
    let explored = testing::fleet(3)
        .controllers(|replica: Replica| {
            replica
                .runtime()
                .controller(replication_controller::controller())
                .controller(disruption_budget::controller())
                .reap()
                .elect_leader("controllers")
        })
        .scenario(|world| async move {
            let mut wanted = object(2);
            let labels = &mut wanted.spec.template.metadata.labels;
            labels.insert("app".into(), "hello".into());
            world.create(&wanted).await?;
            let spec = DisruptionBudgetSpec {
                pod_selector: "app=hello".into(),
                minimum_healthy: Amount::Percent(50),
            };
            let budget = Object::<DisruptionBudget>::new(named("hello"), spec);
            world.create(&budget).await?;
            world.settled().await?;
            change(&world, |spec| spec.replicas = 3).await?;
            let status = world.get::<DisruptionBudget>(&budget.key()?).await?.status;
            let detail = &status.detail;
            match (detail.workloads, detail.healthy, detail.allowed) {
                (1, 3, 1) if status.conditions.is_true("Disruptable") => Ok(()),
                _ => Err(format!("{status:?}").into()),
            }
        })
        .exhaustive()
        .unwrap();
    assert_eq!(explored.runs, explored.faults);
}

fn ended(propagation: Propagation) -> Simulation {
    fleet(1).scenario(move |world| async move {
        world.create(&object(2)).await?;
        world.settled().await?;
        let options = propagated(propagation);
        world.delete_with(&controller_key(), &options).await?;
        Ok(())
    })
}

#[test]
fn a_cascading_end_leaves_nothing_behind_wherever_it_is_interrupted() {
    ended(Propagation::Cascade).exhaustive().unwrap();
}

#[test]
fn an_orphaning_end_keeps_every_pod_wherever_it_is_interrupted() {
    ended(Propagation::Orphan)
        // Alone, nothing was ever there.
        .history_matters()
        .without(FaultKind::Restore)
        .exhaustive()
        .unwrap();
}
