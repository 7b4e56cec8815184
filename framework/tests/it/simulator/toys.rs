//! Small controllers for sites and their pages: one that is sound, and for each class of bugs one
//! that has it and one that has not.

use std::sync::Arc;

use platctrl_framework::controller::{Action, Context, Controller, ReconcileError};
use platctrl_framework::model::{Metadata, Object, ObjectKey, Resource, Status};
use platctrl_framework::testing::{Simulation, Worker};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A site of some pages.
#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "toys.dev", version = "v1", kind = "Site", status = SiteStatus)]
pub(crate) struct SiteSpec {
    pub(crate) pages: u32,
    pub(crate) text: String,
}

/// How much of it there is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
pub(crate) struct SiteStatus {
    #[serde(default)]
    pub(crate) pages: u32,
}

/// A page of a site: a process.
#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "toys.dev", version = "v1", kind = "Page")]
pub(crate) struct PageSpec {
    pub(crate) text: String,
}

pub(crate) fn site(pages: u32, text: &str) -> Object<Site> {
    let metadata = Metadata {
        namespace: Some("default".into()),
        ..Metadata::named("a")
    };
    Object::new(
        metadata,
        SiteSpec {
            pages,
            text: text.into(),
        },
    )
}

pub(crate) fn site_key() -> ObjectKey {
    ObjectKey::namespaced("toys.dev", "sites", "default", "a").unwrap()
}

/// A page of a site, under a new name.
pub(crate) fn page_of(site: &Object<Site>, context: &Context) -> Object<Page> {
    let suffix = context.environment().suffix(10);
    let metadata = Metadata {
        namespace: site.metadata.namespace.clone(),
        owner_references: vec![site.owner_reference()],
        ..Metadata::named(format!("{}-{suffix}", site.metadata.name))
    };
    Object::new(
        metadata,
        PageSpec {
            text: site.spec.text.clone(),
        },
    )
}

pub(crate) fn pages_of(site: &Object<Site>, context: &Context) -> Vec<Arc<Object<Page>>> {
    context
        .view()
        .list::<Page>()
        .owned_by(&site.metadata.uid)
        .to_vec()
}

/// Sets the site's status to the number of pages.
pub(crate) fn status(site: &Object<Site>, pages: usize) -> Status<SiteStatus> {
    Status {
        detail: SiteStatus {
            pages: pages as u32,
        },
        ..site.status.clone()
    }
}

/// As it should be: everything decided on one view and committed together.
async fn reconcile(site: Arc<Object<Site>>, context: Context) -> Result<Action, ReconcileError> {
    let all = pages_of(&site, &context);
    let live: Vec<_> = all
        .iter()
        .filter(|page| !page.metadata.is_deleted())
        .collect();
    let mut changes = context.changes();
    let wanted = site.spec.pages as usize;
    for _ in live.len()..wanted {
        changes.create(&page_of(&site, &context))?;
    }
    for page in live.iter().skip(wanted) {
        changes.delete(&page.key()?, &Default::default())?;
    }
    for page in live.iter().take(wanted) {
        let mut page = Object::clone(page);
        page.spec.text.clone_from(&site.spec.text);
        changes.update(&page)?;
    }
    changes.report::<Site>(&status(&site, live.len()))?;
    changes.commit().await?;
    Ok(Action::await_change())
}

/// Ends the pages, then the site.
async fn end(site: Arc<Object<Site>>, context: Context) -> Result<Action, ReconcileError> {
    let pages = pages_of(&site, &context);
    let mut changes = context.changes();
    for page in pages.iter().filter(|page| !page.metadata.is_deleted()) {
        changes.delete(&page.key()?, &Default::default())?;
    }
    if pages.is_empty() {
        changes.report_gone()?;
    }
    changes.commit().await?;
    Ok(Action::await_change())
}

pub(crate) fn sound_controller() -> Controller<Site> {
    Controller::new("sites", reconcile)
        .on_delete(end)
        .owns::<Page>()
}

/// A world with pages as processes, and a scenario that grows, changes and shrinks a site.
pub(crate) fn sound() -> Simulation {
    Simulation::new()
        .worker(Worker::<Page>::new())
        .quiet(std::time::Duration::from_secs(45))
        .controllers(|replica| {
            replica
                .runtime()
                .controller(sound_controller())
                .reap()
                .elect_leader("sites")
        })
        .scenario(|world| async move {
            world.create(&site(2, "hello")).await?;
            world.settled().await?;
            world
                .change::<Site>(&site_key(), |site| site.spec.pages = 3)
                .await?;
            world.settled().await?;
            world
                .change::<Site>(&site_key(), |site| site.spec.text = "bye".into())
                .await?;
            world.settled().await?;
            world
                .change::<Site>(&site_key(), |site| site.spec.pages = 1)
                .await?;
            Ok(())
        })
        .invariant("never more than three pages", |now| {
            now.processes().count() <= 3
        })
}
