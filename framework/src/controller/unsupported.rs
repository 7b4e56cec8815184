//! Who carries a spec out does not do so in part.
//!
//! A newer program may have written a field that this one does not know: one that narrows a
//! selector, say, without which the selector means more. Such a spec is left alone as a whole,
//! and whoever looks at the object is told.

use serde_json::{Map, Value};

use super::action::Action;
use super::builder::Outcome;
use super::context::Context;
use super::error::ReconcileError;
use crate::failsafe::Safeguard;
use crate::model::{
    Condition, ConditionStatus, EventType, Intent, Resource, Status, in_stored_version, schema,
};

/// The condition that says so.
const HELD: &str = "Held";
const REASON: &str = "Unsupported";

/// What a controller knows of its kind.
pub(super) struct Known {
    schema: Value,
}

impl Known {
    pub(super) fn of<K: Resource>() -> Self {
        let schema = crate::model::KindDefinition::of::<K>().schema;
        let spec = schema.pointer("/properties/spec");
        Self {
            schema: spec.cloned().unwrap_or(Value::Bool(true)),
        }
    }

    /// The first field of a spec that is not known.
    fn unknown<K: Resource>(&self, intent: &Intent) -> Option<String> {
        // A spec in an older version is what it is in the one of now.
        let spec = in_stored_version::<K>(&intent.api_version, &intent.spec);
        let spec = spec.as_deref().unwrap_or(&intent.spec);
        let unknown = schema::unknown_fields(spec, &self.schema, "spec");
        unknown.into_iter().next()
    }

    /// None: the run may go on. Else what it comes to.
    pub(super) async fn hold<K: Resource>(&self, context: &Context) -> Option<Outcome> {
        if !context.is_on(Safeguard::UnknownFields) {
            return None;
        }
        let joined = context.joined();
        let intent = &joined.intent.as_ref()?.value;
        let own = context.own_report(&joined);
        let status = own.map(|own| own.value.status.clone()).unwrap_or_default();
        let told = status.conditions.get(HELD).filter(|it| it.reason == REASON);
        match self.unknown::<K>(intent) {
            Some(field) => {
                let message = format!(
                    "Unsupported({field}): this program does not know the field and must not \
                     ignore it, so everything stays as it is; upgrade the program, or leave the \
                     field out"
                );
                let held = ConditionStatus::True;
                let is_news = told.is_none_or(|it| it.status != held || it.message != message);
                if is_news {
                    context.event(EventType::Warning, REASON, message.clone());
                    let written = report(context, status, held, &message).await;
                    if let Err(error) = written {
                        return Some(Err(error));
                    }
                }
                Some(Err(ReconcileError::terminal(message)))
            }
            None if told.is_some_and(|it| it.status == ConditionStatus::True) => {
                let message = "every field of the spec is known";
                let written = report(context, status, ConditionStatus::False, message).await;
                // The report makes it run again.
                Some(written.map(|()| Action::await_change()))
            }
            None => None,
        }
    }
}

/// Reports as before, but for the condition.
async fn report(
    context: &Context,
    mut status: Status<Map<String, Value>>,
    held: ConditionStatus,
    message: &str,
) -> Result<(), ReconcileError> {
    let joined = context.joined();
    let generation = joined.intent.as_ref();
    let generation = generation.map_or(0, |intent| intent.value.metadata.generation);
    let condition = Condition::new(HELD, held, REASON, message);
    let now = context.environment().now();
    status.conditions.set(condition, generation, now);
    let mut changes = context.changes();
    match context.part() {
        Some(writer) => changes.batch().report_part(&joined, writer, &status)?,
        None => changes.batch().report(&joined, status)?,
    };
    changes.commit().await?;
    Ok(())
}
