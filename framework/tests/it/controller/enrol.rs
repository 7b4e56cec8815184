//! A runtime registers its kinds by itself.

use platctrl_framework::client::{register_kind, registered_kinds};
use platctrl_framework::failsafe::{freeze, thaw};
use platctrl_framework::model::{KindDefinition, Scope};
use platctrl_framework::store::{Key, Prefix};

use super::*;

async fn registered(world: &World) -> Vec<String> {
    let (kinds, unreadable) = registered_kinds(&world.store).await.unwrap();
    assert!(unreadable.is_empty());
    kinds.into_iter().map(|kind| kind.plural).collect()
}

async fn works(world: &World, site: &str) {
    world.site(site, 1).await;
    until("it works", || async {
        let prefix = format!("o/reality/example.dev/sites/default/{site}");
        world.count(&prefix) == 1
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_runtime_registers_the_kinds_of_its_controllers_once() {
    let world = World::new().await;
    let running = world.run(world.runtime().controller(sites()));
    until("both kinds are registered", || async {
        registered(&world).await == ["pages", "sites"]
    })
    .await;
    running.stop().await;
    let key = Key::new("x/kinds/example.dev/sites").unwrap();
    let before = world.store.peek(&key).unwrap().modified;
    let running = world.run(world.runtime().controller(sites()));
    works(&world, "a").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.store.peek(&key).unwrap().modified, before);
    assert!(running.handle.status().unwrap().unregistered.is_empty());
}

#[tokio::test(start_paused = true)]
async fn kinds_that_come_later_are_registered_when_they_come() {
    let world = World::new().await;
    let running = world.run(world.runtime());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(registered(&world).await, Vec::<String>::new());
    running.handle.add_kind::<Page>().await.unwrap();
    until("the kind is registered", || async {
        registered(&world).await == ["pages"]
    })
    .await;
    running.handle.add_controller(sites()).await.unwrap();
    until("that of the controller is, too", || async {
        registered(&world).await == ["pages", "sites"]
    })
    .await;
    running.handle.remove_controller("sites").await.unwrap();
    running.handle.add_controller(sites()).await.unwrap();
    works(&world, "a").await;
    assert_eq!(registered(&world).await, ["pages", "sites"]);
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_may_not_register_says_so_and_works() {
    let world = World::new().await;
    let faults = world.store.faults();
    faults.deny_writes(Prefix::new("x/kinds/").unwrap());
    let running = world.run(world.runtime().controller(sites()));
    works(&world, "a").await;
    until("it is told", || async {
        running.handle.status().unwrap().unregistered.len() == 2
    })
    .await;
    let status = running.handle.status().unwrap();
    let why = &status.unregistered["sites.example.dev"];
    assert!(why.contains("x/kinds/example.dev/sites"), "{why}");
    assert!(status.to_string().contains("it is not registered"));
    assert_eq!(registered(&world).await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_is_registered_in_another_form_is_named_and_left() {
    let world = World::new().await;
    let mut other = KindDefinition::of::<Site>();
    other.scope = Scope::Cluster;
    register_kind(&world.store, &other).await.unwrap();
    let running = world.run(world.runtime().controller(sites()));
    works(&world, "a").await;
    until("it is told", || async {
        running.handle.status().unwrap().unregistered.len() == 1
    })
    .await;
    let status = running.handle.status().unwrap();
    let why = &status.unregistered["sites.example.dev"];
    assert!(why.contains("scope"), "{why}");
    assert_eq!(registered(&world).await, ["pages", "sites"]);
}

#[tokio::test(start_paused = true)]
async fn kinds_are_registered_once_the_store_is_there_and_nothing_is_frozen() {
    let world = World::new().await;
    let faults = world.store.faults();
    faults.set_away(true);
    let _running = world.run(world.runtime().controller(sites()));
    tokio::time::sleep(Duration::from_secs(60)).await;
    faults.set_away(false);
    freeze(&world.store, &world.environment, "ann", None)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(registered(&world).await, Vec::<String>::new());
    thaw(&world.store, &world.environment, "ann", None)
        .await
        .unwrap();
    until("both kinds are registered", || async {
        registered(&world).await.len() == 2
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_is_told_not_to_registers_nothing() {
    let world = World::new().await;
    let runtime = world.runtime().without_registration();
    let _running = world.run(runtime.controller(sites()));
    works(&world, "a").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(registered(&world).await, Vec::<String>::new());
}
