//! What the book shows.

use std::sync::Arc;

use platctrl_framework::controller::{Action, Context, Controller, ReconcileError};
use platctrl_framework::model::Object;
use platctrl_framework::testing::{Simulation, Worker};

use super::toys::{Page, Site, page_of, pages_of, site, site_key};

async fn reconcile(site: Arc<Object<Site>>, context: Context) -> Result<Action, ReconcileError> {
    let pages = pages_of(&site, &context).len();
    let mut changes = context.changes();
    for _ in pages..site.spec.pages as usize {
        changes.create(&page_of(&site, &context))?;
    }
    changes.commit().await?;
    Ok(Action::await_change())
}

// ANCHOR: simulation
fn simulation() -> Simulation {
    Simulation::new()
        // Each page is a process.
        .worker(Worker::<Page>::new())
        .replicas(2)
        .controllers(|replica| {
            let sites = Controller::new("sites", reconcile).owns::<Page>();
            replica.runtime().controller(sites).elect_leader("sites")
        })
        .scenario(|world| async move {
            world.create(&site(1, "hello")).await?;
            world.settled().await?;
            world
                .change::<Site>(&site_key(), |site| site.spec.pages = 2)
                .await?;
            Ok(())
        })
        .invariant("never more than two pages", |now| {
            now.processes().count() <= 2
        })
}

#[test]
fn sites_have_their_pages_whatever_goes_wrong() {
    simulation().exhaustive().unwrap();
    simulation().random(0..10).unwrap();
}
// ANCHOR_END: simulation
