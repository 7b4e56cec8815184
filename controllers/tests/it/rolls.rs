//! Rolling updates in the simulator: whatever goes wrong at any write, the floor holds and the
//! roll comes to its end.

use platctrl_controllers::{replication_controller, rolling_update, testing};
use platctrl_framework::model::{Object, ObjectKey, Resource};
use platctrl_framework::testing::{FaultKind, Moment, Process, Replica, Simulation, World};
use platctrl_kinds::{
    Amount, OnFailure, Pod, ReplicationController, RollingUpdate, RollingUpdateSpec, Span, Step,
};

use crate::world::{controller_spec, named};

/// A version of hello, as a controller of its own.
pub(crate) fn version(name: &str, artifact: &str, replicas: u32) -> Object<ReplicationController> {
    let mut spec = controller_spec(replicas);
    spec.template.spec.app = Some("hello".into());
    let labels = &mut spec.template.metadata.labels;
    labels.insert("version".into(), name.into());
    let web = spec.template.spec.launchables.get_mut("web").unwrap();
    web.location = format!("artifact:{artifact}");
    Object::new(named(name), spec)
}

pub(crate) fn roll(
    replicas: u32,
    change: impl FnOnce(&mut RollingUpdateSpec),
) -> Object<RollingUpdate> {
    let json = serde_json::json!({
        "from": "hello-1", "to": "hello-2", "replicas": replicas, "minHealthyTime": "1s",
    });
    let mut spec = serde_json::from_value(json).unwrap();
    change(&mut spec);
    Object::new(named("hello-2"), spec)
}

pub(crate) fn roll_key() -> ObjectKey {
    let (group, plural) = (RollingUpdate::GROUP, RollingUpdate::PLURAL);
    ObjectKey::namespaced(group, plural, "default", "hello-2").unwrap()
}

fn fleet(replicas: usize) -> Simulation {
    fleet_of(4, replicas)
}

fn fleet_of(nodes: usize, replicas: usize) -> Simulation {
    testing::fleet(nodes)
        .replicas(replicas)
        .controllers(|replica: Replica| {
            replica
                .runtime()
                .controller(replication_controller::controller())
                .controller(rolling_update::controller())
                .reap()
                .elect_leader("controllers")
        })
        // Rolls change what people wrote, and say so.
        .history_matters()
        .ignoring("status.startedAt")
        .ignoring("status.finishedAt")
}

/// Two versions and a roll between them.
async fn begin(
    world: &World,
    artifact: &str,
    roll: Object<RollingUpdate>,
) -> Result<(), platctrl_framework::testing::ScenarioError> {
    world
        .create(&version("hello-1", "one", roll.spec.replicas))
        .await?;
    world.create(&version("hello-2", artifact, 0)).await?;
    world.settled().await?;
    world.create(&roll).await?;
    world.settled().await
}

async fn change(
    world: &World,
    change: impl Fn(&mut RollingUpdateSpec),
) -> Result<(), platctrl_framework::testing::ScenarioError> {
    world
        .change::<RollingUpdate>(&roll_key(), |object| change(&mut object.spec))
        .await?;
    world.settled().await
}

/// Once there is a roll, so many processes are healthy, and there are at most so many.
fn keeps(least: usize, most: usize) -> impl Fn(&Moment<'_>) -> Result<(), String> {
    move |now| {
        if now.objects::<RollingUpdate>().is_empty() {
            return Ok(());
        }
        let (healthy, all) = (
            now.healthy(),
            now.processes().filter(|p| p.exists()).count(),
        );
        match (healthy < least, all > most) {
            (true, _) => Err(format!("{healthy} are healthy, {least} have to be")),
            (_, true) => Err(format!("{all} are there, {most} may be")),
            _ => Ok(()),
        }
    }
}

fn runs(process: &Process) -> String {
    let spec = process.spec::<Pod>().unwrap();
    spec.node_name.unwrap_or_default() + " " + &spec.launchables["web"].location
}

/// Scenarios that look at what they did in between cannot be told that it was lost since.
fn without_restores(simulation: Simulation) -> Simulation {
    simulation
        .without(FaultKind::Restore)
        .without(FaultKind::RestoreAhead)
}

/// What nobody chose is not the roll's to prevent.
fn without_misfortune(mut simulation: Simulation) -> Simulation {
    for kind in [
        FaultKind::KillProcess,
        FaultKind::Unhealthy,
        FaultKind::NodeDown,
        FaultKind::AgentCrash,
    ] {
        simulation = simulation.without(kind);
    }
    simulation
}

/// As few nodes as it takes: what can go wrong is the same, and each run is shorter.
fn in_place(replicas: usize) -> Simulation {
    fleet_of(2, replicas)
        .scenario(|world| async move { begin(&world, "two", roll(2, |_| {})).await })
}

/// Everything that can go wrong at a write, but for these.
fn explored_without(kinds: &[FaultKind]) {
    let simulation = without_misfortune(in_place(1)).invariant("the floor", keeps(1, 2));
    let simulation = kinds.iter().fold(simulation, |it, kind| it.without(*kind));
    let explored = simulation.exhaustive().unwrap();
    assert!(explored.writes >= 20, "{explored:?}");
    assert_eq!(explored.runs, explored.faults);
}

const CRASHES: [FaultKind; 8] = [
    FaultKind::CrashAfter,
    FaultKind::CrashBeforeAck,
    FaultKind::LoseAck,
    FaultKind::LoseWrite,
    FaultKind::StaleRestart,
    FaultKind::TravelBack,
    FaultKind::LoseClaim,
    FaultKind::LoseClaimAfter,
];

const SIGHTS: [FaultKind; 8] = [
    FaultKind::Hide,
    FaultKind::Storm,
    FaultKind::Compact,
    FaultKind::Partition,
    FaultKind::WallClock,
    FaultKind::Leap,
    FaultKind::Restore,
    FaultKind::RestoreAhead,
];

#[test]
fn a_roll_in_place_keeps_the_floor_wherever_a_controller_dies() {
    explored_without(&SIGHTS);
}

#[test]
fn a_roll_in_place_keeps_the_floor_whatever_is_seen_late_or_lost() {
    explored_without(&CRASHES);
}

/// A roll of one pod that makes the new one first.
#[test]
fn a_roll_with_a_surge_keeps_the_only_pod_wherever_it_is_interrupted() {
    let simulation = fleet_of(2, 1).scenario(|world| async move {
        let surge = |spec: &mut RollingUpdateSpec| {
            spec.minimum_healthy = Some(Amount::Count(1));
            spec.surge = Amount::Count(1);
        };
        begin(&world, "two", roll(1, surge)).await
    });
    let simulation =
        without_restores(without_misfortune(simulation)).invariant("floor and surge", keeps(1, 2));
    let explored = simulation.exhaustive().unwrap();
    assert!(explored.writes >= 20, "{explored:?}");
    assert_eq!(explored.runs, explored.faults);
}

/// A roll of two that waits at a gate until somebody lets it pass.
#[test]
fn a_roll_passes_no_gate_by_itself_wherever_it_is_interrupted() {
    let simulation = fleet_of(2, 1).scenario(|world| async move {
        let gate = |spec: &mut RollingUpdateSpec| {
            spec.steps = vec![Step {
                up_to: Amount::Count(1),
                gate: platctrl_kinds::Gate::Manual,
            }];
        };
        begin(&world, "two", roll(2, gate)).await?;
        let moved = |world: &World| {
            let processes = world.processes();
            processes
                .iter()
                .filter(|it| runs(it).ends_with("two"))
                .count()
        };
        if moved(&world) != 1 {
            return Err(format!("{} are moved at the gate", moved(&world)).into());
        }
        change(&world, |spec| spec.promoted = 1).await?;
        if moved(&world) != 2 {
            return Err(format!("{} are moved in the end", moved(&world)).into());
        }
        Ok(())
    });
    let simulation =
        without_restores(without_misfortune(simulation)).invariant("the floor", keeps(1, 2));
    let explored = simulation.exhaustive().unwrap();
    assert_eq!(explored.runs, explored.faults);
}

#[test]
fn a_roll_lives_through_what_is_drawn_with_two_replicas_of_the_controllers() {
    let simulation = in_place(2).invariant("no more than wanted", keeps(0, 2));
    simulation.random(0..10).unwrap();
}

#[test]
fn a_roll_with_a_surge_never_goes_below_what_is_wanted() {
    let simulation = fleet(1).scenario(|world| async move {
        let surge = |spec: &mut RollingUpdateSpec| {
            spec.minimum_healthy = Some(Amount::Count(2));
            spec.surge = Amount::Count(1);
        };
        begin(&world, "two", roll(2, surge)).await?;
        let all: Vec<String> = world.processes().iter().map(runs).collect();
        assert!(
            all.len() == 2 && all.iter().all(|it| it.ends_with("two")),
            "{all:?}"
        );
        Ok(())
    });
    let simulation =
        without_restores(without_misfortune(simulation)).invariant("floor and surge", keeps(2, 3));
    simulation.random(0..16).unwrap();
}

/// Stops at a gate, goes back, changes its mind, and goes to the end.
#[test]
fn a_roll_stops_at_gates_goes_back_and_forward_again() {
    let simulation = fleet(1).scenario(|world| async move {
        let gate = |spec: &mut RollingUpdateSpec| {
            spec.steps = vec![Step {
                up_to: Amount::Count(1),
                gate: platctrl_kinds::Gate::Manual,
            }];
        };
        begin(&world, "two", roll(3, gate)).await?;
        let moved = || {
            let processes = world.processes();
            let moved = processes.iter().filter(|it| runs(it).ends_with("two"));
            moved.count()
        };
        assert_eq!(moved(), 1);
        change(&world, |spec| spec.rollback = true).await?;
        // It is at its end now: whoever wants to go forward again begins another one.
        let back = world.get::<RollingUpdate>(&roll_key()).await?;
        assert_eq!((moved(), back.status.phase.as_str()), (0, "RolledBack"));
        let mut again = roll(3, |_| {});
        again.metadata.name = "again".into();
        world.create(&again).await?;
        world.settled().await?;
        assert_eq!(moved(), 3);
        Ok(())
    });
    let simulation =
        without_restores(without_misfortune(simulation)).invariant("the floor", keeps(2, 3));
    simulation.random(0..12).unwrap();
}

#[test]
fn a_version_that_does_not_work_is_rolled_back_wherever_it_is_interrupted() {
    let simulation = fleet(1).scenario(|world| async move {
        let careful = |spec: &mut RollingUpdateSpec| {
            spec.failure_budget = Some(Amount::Count(0));
            spec.on_failure = OnFailure::Rollback;
            spec.min_healthy_time = Span::from_millis(500);
        };
        begin(&world, "broken", roll(2, careful)).await?;
        let all: Vec<String> = world.processes().iter().map(runs).collect();
        assert!(
            all.len() == 2 && all.iter().all(|it| it.ends_with("one")),
            "{all:?}"
        );
        Ok(())
    });
    let simulation =
        without_restores(without_misfortune(simulation)).invariant("the floor", keeps(1, 2));
    simulation.random(0..16).unwrap();
}

#[test]
fn a_roll_that_is_deleted_half_way_leaves_everything_where_it_is() {
    let simulation = fleet(1).scenario(|world| async move {
        let gate = |spec: &mut RollingUpdateSpec| {
            spec.steps = vec![Step {
                up_to: Amount::Count(1),
                gate: platctrl_kinds::Gate::Manual,
            }];
        };
        begin(&world, "two", roll(2, gate)).await?;
        world.delete(&roll_key()).await?;
        world.settled().await?;
        let controllers = world.objects::<ReplicationController>();
        for controller in controllers {
            assert_eq!(
                (controller.spec.replicas, controller.spec.claimed_by),
                (1, None)
            );
        }
        Ok(())
    });
    let simulation =
        without_restores(without_misfortune(simulation)).invariant("no more", keeps(0, 2));
    simulation.random(0..12).unwrap();
}
