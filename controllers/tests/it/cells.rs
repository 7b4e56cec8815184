//! The cells that run on any store, on the memory store and virtual time.

use std::sync::Arc;

use platctrl_controllers::testing::failsafe::cells;
use platctrl_framework::environment::Environment;
use platctrl_framework::store::MemoryStore;

#[tokio::test(start_paused = true)]
async fn failsafe_cells_of_replication_controllers_hold_on_the_memory_store() {
    for cell in cells() {
        let environment = Environment::system();
        let store = Arc::new(MemoryStore::new(environment.clone()));
        cell.check(store, environment).await.unwrap();
    }
}
