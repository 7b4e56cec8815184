//! The end of an owner of pods.

use std::time::Duration;

use jiff::Timestamp;
use platctrl_framework::controller::{Action, Context, ReconcileError};
use platctrl_framework::model::{
    Condition, ConditionStatus, Deletion, EventType, Object, Propagation, Resource,
};
use platctrl_kinds::{Pod, PodTemplate, Span};

use crate::carry_out::{Step, Work, require_same_intent};
use crate::template::Workload;

/// The reason in the tombstones of pods that end with their owner, of the kind `singular`.
#[must_use]
pub fn ended_with_owner(singular: &str, name: &str) -> String {
    format!("{singular} {name}: {}", why(singular))
}

fn why(singular: &str) -> String {
    format!("because its {singular} is deleted")
}

/// How long a delete still waits before it takes effect: `own` is what the object's spec says.
fn grace_left(deletion: &Deletion, own: Option<Span>, now: Timestamp) -> Option<Duration> {
    let asked = deletion.grace_seconds;
    let asked = asked.map(|seconds| Duration::from_secs(seconds.into()));
    let grace = asked.or(own.map(Span::duration))?;
    // A clock that is behind makes it no longer than it is.
    let passed = Duration::try_from(now.duration_since(deletion.at)).unwrap_or_default();
    let left = grace.checked_sub(passed)?;
    (!left.is_zero()).then_some(left)
}

/// Its pods are ended too, or lose their owner and stay, as the tombstone says. Before its grace
/// is over nothing happens to them, so that it can be taken back.
pub(crate) async fn end<K: Resource>(
    owner: &Object<K>,
    template: &PodTemplate,
    grace: Option<Span>,
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
    let deletion = owner.metadata.deletion.as_ref();
    let cascade = deletion.is_some_and(|it| it.propagation == Propagation::Cascade);
    let now = context.environment().now();
    if let Some(deletion) = deletion
        && let Some(left) = grace_left(deletion, grace, now)
    {
        wait(owner, context, deletion.at, pods.len(), cascade).await?;
        // A moment later, so that it is over by then.
        return Ok(Action::requeue_after(left + Duration::from_millis(10)));
    }
    if pods.is_empty() {
        let mut changes = context.changes();
        // Its end was not taken back meanwhile.
        require_same_intent(context, &mut changes);
        changes.report_gone()?;
        changes.commit().await?;
        return Ok(Action::await_change());
    }
    let why = why(K::SINGULAR);
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
    let work = Work::<K>::new(context, &workload, &status, &counts).while_intent_is_the_same();
    work.carry_out(steps).await.map_err(|unfinished| {
        if let Some(why) = &unfinished.held {
            context.event(EventType::Warning, "Held", why.clone());
        }
        unfinished.error
    })?;
    Ok(Action::await_change())
}

/// Says that the end waits, and how it is taken back.
async fn wait<K: Resource>(
    owner: &Object<K>,
    context: &Context,
    since: Timestamp,
    pods: usize,
    cascade: bool,
) -> Result<(), ReconcileError>
where
    K::Status: Clone,
{
    let what = match cascade {
        true => "are ended",
        false => "lose their owner",
    };
    let message = format!(
        "deleted at {since:.0}: its {pods} pods {what} when the grace is over; until then `platctrl undelete {}/{}` takes it back",
        K::SINGULAR,
        owner.metadata.name
    );
    let (now, generation) = (context.environment().now(), owner.metadata.generation);
    let mut status = owner.status.clone();
    let is_news = (status.conditions.get("Progressing")).is_none_or(|it| it.reason != "Ending");
    let condition = Condition::new(
        "Progressing",
        ConditionStatus::True,
        "Ending",
        message.clone(),
    );
    status.conditions.set(condition, generation, now);
    let mut changes = context.changes();
    changes.report::<K>(&status)?;
    changes.commit().await?;
    if is_news {
        context.event(EventType::Normal, "Ending", message);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grace_of_a_delete_is_what_it_says_or_else_what_the_object_says() {
        let deletion = |grace: Option<u32>| Deletion {
            uid: "u".into(),
            at: "2026-01-01T00:00:10Z".parse().unwrap(),
            by: "ann".into(),
            propagation: Propagation::Cascade,
            grace_seconds: grace,
            reason: None,
            declared: true,
        };
        let left = |grace, own: Option<u64>, now: &str| {
            let own = own.map(Span::from_secs);
            grace_left(&deletion(grace), own, now.parse().unwrap()).map(|left| left.as_secs())
        };
        assert_eq!(left(None, None, "2026-01-01T00:00:10Z"), None);
        assert_eq!(left(None, Some(60), "2026-01-01T00:00:20Z"), Some(50));
        assert_eq!(
            left(Some(0), Some(60), "2026-01-01T00:00:20Z"),
            None,
            "at once"
        );
        assert_eq!(left(Some(30), Some(60), "2026-01-01T00:00:20Z"), Some(20));
        assert_eq!(left(Some(30), None, "2026-01-01T00:00:40Z"), None, "over");
        // A clock that is behind.
        assert_eq!(left(Some(30), None, "2025-01-01T00:00:00Z"), Some(30));
    }
}
