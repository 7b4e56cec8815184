//! A store whose format this program does not understand.

use platctrl_framework::model::identity::{FORMAT_VERSION, format_key};

use super::*;

impl World {
    async fn format(&self, needed: u32) {
        let format = json!({"writeVersion": needed, "minReader": needed});
        self.put(&format_key(), &format).await;
    }
}

fn made(world: &World) -> usize {
    world.count("o/intent/example.dev/pages/")
}

#[tokio::test(start_paused = true)]
pub(super) async fn failsafe_format_that_is_too_new_changes_nothing_until_it_is_understood() {
    let world = World::new().await;
    world.site("a", 1).await;
    let _running = world.run(world.runtime().controller(sites()).reap());
    until("it works", || async { made(&world) == 1 }).await;
    world.format(FORMAT_VERSION + 1).await;
    minutes(2).await;
    world.site("b", 3).await;
    world.delete(&site_key("a")).await;
    minutes(60).await;
    assert_eq!(made(&world), 1);
    assert_eq!(world.count("o/intent/example.dev/sites/"), 2);
    world.format(FORMAT_VERSION).await;
    until("it goes on", || async { made(&world) == 4 }).await;
}

#[tokio::test(start_paused = true)]
async fn failsafe_format_that_is_too_new_is_found_at_the_start() {
    let world = World::new().await;
    world.site("a", 1).await;
    world.format(FORMAT_VERSION + 1).await;
    let running = world.run(world.runtime().controller(sites()));
    minutes(60).await;
    assert_eq!((made(&world), world.count("o/reality/")), (0, 0));
    let why = held(&running).too_new.unwrap();
    assert!(why.contains("needs version 2"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn failsafe_format_lost_or_not_to_be_read() {
    let world = World::new().await;
    world.site("a", 1).await;
    let _running = world.run(world.runtime().controller(sites()));
    until("it works", || async { made(&world) == 1 }).await;
    // It may say that this program is too old.
    let nonsense = Transaction::new().put(format_key(), "{");
    world.store.commit(nonsense).await.unwrap();
    minutes(2).await;
    world.site("b", 1).await;
    minutes(10).await;
    assert_eq!(made(&world), 1);
    // Without it nothing says so.
    let lose = Transaction::new().delete(format_key());
    world.store.commit(lose).await.unwrap();
    until("it goes on", || async { made(&world) == 2 }).await;
}
