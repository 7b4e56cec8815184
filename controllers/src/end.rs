//! The end of an owner of pods.

use platctrl_framework::controller::{Action, Context, ReconcileError};
use platctrl_framework::model::{EventType, Object, Propagation, Resource};
use platctrl_kinds::{Pod, PodTemplate};

use crate::carry_out::{Step, Work};
use crate::template::Workload;

/// Its pods are ended too, or lose their owner and stay, as the tombstone says.
pub(crate) async fn end<K: Resource>(
    owner: &Object<K>,
    template: &PodTemplate,
    context: &Context,
) -> Result<Action, ReconcileError>
where
    K::Status: Clone + Sync,
{
    let workload = Workload::of(owner, template);
    let pods = context
        .view()
        .list::<Pod>()
        .owned_by(&owner.metadata.uid)
        .to_vec();
    if pods.is_empty() {
        let mut changes = context.changes();
        changes.report_gone()?;
        changes.commit().await?;
        return Ok(Action::await_change());
    }
    let deletion = owner.metadata.deletion.as_ref();
    let cascade = deletion.is_some_and(|it| it.propagation == Propagation::Cascade);
    let why = format!("because its {} is deleted", K::SINGULAR);
    let steps = pods
        .into_iter()
        .filter(|pod| !cascade || !pod.metadata.is_deleted())
        .map(|pod| match cascade {
            true => Step::Delete {
                pod,
                why: why.clone(),
            },
            false => Step::Orphan { pod },
        })
        .collect::<Vec<Step>>();
    if steps.is_empty() {
        return Ok(Action::await_change());
    }
    let counts = format!("{} {}", K::SINGULAR, owner.metadata.name);
    let status = |_| owner.status.clone();
    let work = Work::<K>::new(context, &workload, &status, &counts);
    work.carry_out(steps).await.map_err(|unfinished| {
        if let Some(why) = &unfinished.held {
            context.event(EventType::Warning, "Held", why.clone());
        }
        unfinished.error
    })?;
    Ok(Action::await_change())
}
