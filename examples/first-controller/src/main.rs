//! A first controller: it looks at every site and reports that it has seen it.

use std::sync::Arc;

use platctrl_framework::controller::{
    Action, Context, Controller, ReconcileError, Runtime, end_signal,
};
use platctrl_framework::environment::Environment;
use platctrl_framework::model::{Object, Phase, Resource, identity};
use platctrl_store_embedded::EmbeddedStore;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// So many pages.
#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "example.dev", version = "v1", kind = "Site")]
struct SiteSpec {
    pages: u32,
}

async fn reconcile(site: Arc<Object<Site>>, ctx: Context) -> Result<Action, ReconcileError> {
    println!("{} wants {} pages", site.metadata.name, site.spec.pages);
    let mut status = site.status.clone();
    status.phase = Phase::new("Seen");
    let mut changes = ctx.changes();
    changes.report::<Site>(&status)?;
    changes.commit().await?;
    Ok(Action::await_change())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let environment = Environment::system();
    let store = EmbeddedStore::open("sites", environment.clone())?;
    identity::open_or_initialise(&store, &environment).await?;
    let controller = Controller::new("sites", reconcile);
    let runtime = Runtime::new(Arc::new(store), environment).controller(controller);
    Ok(runtime.shutdown_on(end_signal()).run().await?)
}
