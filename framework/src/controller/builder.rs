//! Declaring a controller: its kind, its functions, and what else makes it run.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;

use super::action::Action;
use super::context::Context;
use super::error::ReconcileError;
use super::unsupported::Known;
use crate::cache::{Entry, EntryChange, Head, View};
use crate::model::{
    EventType, GroupPlural, Kinds, Object, ObjectKey, Reality, Resource, Versioned,
};

/// An object whose intent is missing. That is never an order to take anything away: only a
/// tombstone is.
#[derive(Debug)]
#[non_exhaustive]
pub struct Absent<K: Resource> {
    /// Which object.
    pub key: ObjectKey,
    /// What is still reported on it. None when all its records are gone.
    pub reality: Option<Versioned<Reality>>,
    /// The object as this process last knew it.
    pub last: Option<Arc<Object<K>>>,
}

pub(crate) type Outcome = Result<Action, ReconcileError>;
type Handler<T> = Arc<dyn Fn(T, Context) -> BoxFuture<'static, Outcome> + Send + Sync>;

/// Calls `emit` with each key that a change makes run.
pub(crate) type Map =
    Box<dyn Fn(&EntryChange, &View, &mut dyn FnMut(Arc<ObjectKey>)) + Send + Sync>;

/// Looks at the objects of a kind, and says what is wrong if so many of them cannot be read that
/// no plan may count on the kind.
pub(crate) type Check = fn(&View) -> Option<String>;

/// A controller without its types.
pub(crate) struct Registered {
    pub(crate) name: Arc<str>,
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) group_plural: GroupPlural,
    pub(crate) kinds: Kinds,
    pub(crate) checks: Vec<Check>,
    pub(crate) maps: Vec<Map>,
    pub(crate) run: Box<dyn Fn(Context) -> BoxFuture<'static, Outcome> + Send + Sync>,
    pub(crate) concurrency: Option<usize>,
    pub(crate) timeout: Duration,
    pub(crate) writes_per_second: Option<u32>,
    pub(crate) triggers: Vec<Trigger>,
    pub(crate) reports_while_frozen: bool,
    pub(crate) part: Option<Arc<str>>,
}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered")
            .field("name", &self.name)
            .field("kind", &self.group_plural)
            .finish_non_exhaustive()
    }
}

/// Makes keys run for reasons outside of the store: a process that ended, a timer of a device.
/// Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Trigger {
    state: Arc<Mutex<TriggerState>>,
}

/// Takes a key and the reason why it has to run.
pub(crate) type Target = Arc<dyn Fn(Arc<ObjectKey>, Arc<str>) + Send + Sync>;

#[derive(Default)]
struct TriggerState {
    /// What was fired before the runtime began.
    early: BTreeMap<ObjectKey, Arc<str>>,
    target: Option<Target>,
}

impl fmt::Debug for TriggerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TriggerState").finish_non_exhaustive()
    }
}

impl Trigger {
    /// A trigger, to be given to [`Controller::triggered_by`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes `key` run. `reason` is shown among the run's causes.
    pub fn fire(&self, key: ObjectKey, reason: impl Into<Arc<str>>) {
        let reason = reason.into();
        let target = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(target) = state.target.clone() else {
                state.early.insert(key, reason);
                return;
            };
            target
        };
        target(Arc::new(key), reason);
    }

    pub(crate) fn connect(&self, target: &Target) {
        let early = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.target = Some(target.clone());
            std::mem::take(&mut state.early)
        };
        for (key, reason) in early {
            target(Arc::new(key), reason);
        }
    }
}

/// Keeps objects of the kind `K` as they are wanted.
pub struct Controller<K: Resource> {
    name: Arc<str>,
    reconcile: Handler<Arc<Object<K>>>,
    on_delete: Option<Handler<Arc<Object<K>>>>,
    on_absent: Option<Handler<Absent<K>>>,
    kinds: Kinds,
    checks: Vec<Check>,
    maps: Vec<Map>,
    concurrency: Option<usize>,
    timeout: Duration,
    writes_per_second: Option<u32>,
    triggers: Vec<Trigger>,
    reports_while_frozen: bool,
    refuses_unknown_fields: bool,
    part: Option<Arc<str>>,
    kind: PhantomData<fn() -> K>,
}

impl<K: Resource> fmt::Debug for Controller<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller")
            .field("name", &self.name)
            .field("kind", &K::KIND)
            .finish_non_exhaustive()
    }
}

fn handler<T, F, Fut, E>(function: F) -> Handler<T>
where
    T: 'static,
    F: Fn(T, Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Action, E>> + Send + 'static,
    E: Into<ReconcileError>,
{
    Arc::new(move |target, context| {
        let run = function(target, context);
        Box::pin(async move { run.await.map_err(Into::into) })
    })
}

impl<K: Resource> Controller<K> {
    /// A controller that calls `reconcile` for each object that is wanted, whenever the object or
    /// something the controller declares changes, and again after an error. The name, unique in a
    /// runtime, stands in events, tombstones and claims.
    ///
    /// A reconcile compares what is wanted with what its view shows, acts, and reports. It is
    /// never called twice at once for one object, and never on a view older than what it wrote
    /// for that object before.
    pub fn new<F, Fut, E>(name: &str, reconcile: F) -> Self
    where
        F: Fn(Arc<Object<K>>, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Action, E>> + Send + 'static,
        E: Into<ReconcileError>,
    {
        Self {
            name: name.into(),
            reconcile: handler(reconcile),
            on_delete: None,
            on_absent: None,
            kinds: Kinds::new().with::<K>(),
            checks: vec![View::check::<K>],
            maps: Vec::new(),
            concurrency: None,
            timeout: Duration::from_secs(300),
            writes_per_second: None,
            triggers: Vec::new(),
            reports_while_frozen: false,
            refuses_unknown_fields: false,
            part: None,
            kind: PhantomData,
        }
    }

    /// Called instead of the reconcile for an object that has a tombstone: takes away what was
    /// made for it, then commits [`report_gone`](super::Changes::report_gone). Without this
    /// function, an object that this controller reported on counts as gone at once.
    #[must_use]
    pub fn on_delete<F, Fut, E>(mut self, function: F) -> Self
    where
        F: Fn(Arc<Object<K>>, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Action, E>> + Send + 'static,
        E: Into<ReconcileError>,
    {
        self.on_delete = Some(handler(function));
        self
    }

    /// Called for an object without an intent: somebody still reports on it though nobody
    /// ordered its end, or all its records are gone. Without this function the former is
    /// recorded as an event, and nothing else happens.
    #[must_use]
    pub fn on_absent<F, Fut, E>(mut self, function: F) -> Self
    where
        F: Fn(Absent<K>, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Action, E>> + Send + 'static,
        E: Into<ReconcileError>,
    {
        self.on_absent = Some(handler(function));
        self
    }

    /// Objects of the kind `T` are made by this controller: a change of one makes its owner run.
    #[must_use]
    pub fn owns<T: Resource>(self) -> Self {
        self.maps::<T>(|entry, _, emit| {
            for owner in entry.owners() {
                if *owner.group == *K::GROUP && *owner.kind == *K::KIND {
                    let owner = ObjectKey::of_scope(
                        &K::group_plural(),
                        K::SCOPE,
                        entry.key.node(),
                        entry.key.namespace(),
                        &owner.name,
                    );
                    if let Ok(owner) = owner {
                        emit(owner);
                    }
                }
            }
        })
    }

    /// A change of an object of the kind `T` makes those objects run that `map` names. It is
    /// called with the object as it was and as it is.
    #[must_use]
    pub fn watches<T: Resource>(
        self,
        map: impl Fn(&Object<T>, &View) -> Vec<ObjectKey> + Send + Sync + 'static,
    ) -> Self {
        self.maps::<T>(move |entry, view, emit| {
            if let Some(Ok(object)) = view.typed::<T>(entry) {
                map(&object, view).into_iter().for_each(emit);
            }
        })
    }

    /// As [`Controller::watches`], for a map that needs no more of the object than its
    /// [`Head`]: nothing is decoded for it, which counts where very many objects change.
    #[must_use]
    pub fn watches_heads<T: Resource>(
        self,
        map: impl Fn(&Head<'_>, &View) -> Vec<ObjectKey> + Send + Sync + 'static,
    ) -> Self {
        self.maps::<T>(move |entry, view, emit| {
            if entry.has_intent() {
                map(&Head::of(entry), view).into_iter().for_each(emit);
            }
        })
    }

    /// `map` is called with each object of the kind `T` that changes, as it was and as it is.
    fn maps<T: Resource>(
        mut self,
        map: impl Fn(&Arc<Entry>, &View, &mut dyn FnMut(ObjectKey)) + Send + Sync + 'static,
    ) -> Self {
        self.kinds = self.kinds.with::<T>();
        self.checks.push(View::check::<T>);
        let kind = T::group_plural();
        self.maps.push(Box::new(move |change, view, emit| {
            for entry in [&change.before, &change.after].into_iter().flatten() {
                if *entry.key.kind() != kind {
                    return;
                }
                map(entry, view, &mut |key| emit(Arc::new(key)));
            }
        }));
        self
    }

    /// Keys can also be made to run from outside of the store.
    #[must_use]
    pub fn triggered_by(mut self, trigger: &Trigger) -> Self {
        self.triggers.push(trigger.clone());
        self
    }

    /// At most this many runs at once; four for each core unless set.
    #[must_use]
    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.concurrency = Some(concurrency.max(1));
        self
    }

    /// A run that takes longer is dropped where it waits and counts as failed; five minutes
    /// unless set.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs also while [everything is frozen](crate::failsafe::freeze), to report what is so:
    /// [`Context::is_frozen`] tells, and only reports are committed. For who watches things that
    /// change by themselves, as processes.
    #[must_use]
    pub fn reports_while_frozen(mut self) -> Self {
        self.reports_while_frozen = true;
        self
    }

    /// This controller carries specs out and must not do so in part: an object whose spec has a
    /// field that `K` does not know, because a newer program wrote it, is left as it is, and says
    /// so by the condition `Held` with the reason `Unsupported`. For who places, moves or ends
    /// things by what a spec selects: a field that is overlooked may be the one that narrows it.
    #[must_use]
    pub fn refuses_unknown_fields(mut self) -> Self {
        self.refuses_unknown_fields = true;
        self
    }

    /// This controller works beside the object's own worker, and keeps its share of the status in
    /// a part named `writer`: a syncer of names beside a balancer, say. Its claim, its reports
    /// ([`Changes::report_part`](super::Changes::report_part)) and its word that all is undone go
    /// there; readers are shown one status, and the object's end waits for both.
    #[must_use]
    pub fn writes_part(mut self, writer: &str) -> Self {
        self.part = Some(writer.into());
        self
    }

    /// At most this many writes a second on average, of which a second's worth can be saved up;
    /// without a bound unless set. Over it, runs wait to begin: nothing fails, and
    /// [`ControllerStatus::over_budget`](super::ControllerStatus::over_budget) shows it.
    #[must_use]
    pub fn write_budget(mut self, writes_per_second: u32) -> Self {
        self.writes_per_second = Some(writes_per_second);
        self
    }

    pub(crate) fn register(self) -> Registered {
        let Self {
            name,
            reconcile,
            on_delete,
            on_absent,
            kinds,
            checks,
            mut maps,
            concurrency,
            timeout,
            writes_per_second,
            triggers,
            reports_while_frozen,
            refuses_unknown_fields,
            part,
            ..
        } = self;
        let known = refuses_unknown_fields.then(|| Arc::new(Known::of::<K>()));
        let kind = K::group_plural();
        // What objects were before their intents went missing, until they were told so.
        let last: Arc<Mutex<HashMap<Arc<ObjectKey>, Arc<Entry>>>> = Arc::default();
        let keep_last = on_absent.is_some().then(|| last.clone());
        let of_kind = kind.clone();
        maps.push(Box::new(move |change, _, emit| {
            let Some(entry) = change.after.as_ref().or(change.before.as_ref()) else {
                return;
            };
            if *entry.key.kind() != of_kind {
                return;
            }
            if let (Some(last), Some(before)) = (&keep_last, &change.before)
                && before.has_intent()
                && !change
                    .after
                    .as_ref()
                    .is_some_and(|after| after.has_intent())
            {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                last.insert(before.key.clone(), before.clone());
            }
            emit(entry.key.clone());
        }));
        let own_name = name.clone();
        let run = move |context: Context| -> BoxFuture<'static, Outcome> {
            let view = context.view();
            let found = view
                .entry(context.key())
                .and_then(|entry| view.typed_once::<K>(entry));
            match found {
                Some(Ok(object)) => {
                    let metadata = &object.metadata;
                    let tombstone = metadata.deletion.as_ref();
                    if tombstone.is_none_or(|deletion| deletion.uid != metadata.uid) {
                        let Some(known) = known.clone() else {
                            return reconcile(object, context);
                        };
                        let reconcile = reconcile.clone();
                        return Box::pin(async move {
                            match known.hold::<K>(&context).await {
                                Some(outcome) => outcome,
                                None => reconcile(object, context).await,
                            }
                        });
                    }
                    match &on_delete {
                        Some(on_delete) => match context.admit_end() {
                            Ok(()) => on_delete(object, context),
                            Err(held) => Box::pin(async move { Err(held.into()) }),
                        },
                        None => Box::pin(nothing_to_undo(own_name.clone(), context)),
                    }
                }
                // Set aside, where the view shows it, until it changes.
                Some(Err(error)) => Box::pin(async move {
                    context.event(
                        EventType::Warning,
                        "Unreadable",
                        format!("the object is left as it is: {error}"),
                    );
                    Ok(Action::await_change())
                }),
                None => {
                    let Some(on_absent) = &on_absent else {
                        return Box::pin(hold(context));
                    };
                    let known = last.lock().unwrap_or_else(PoisonError::into_inner);
                    let before = known.get(context.key()).cloned();
                    drop(known);
                    let absent = Absent {
                        key: context.key().clone(),
                        reality: context.joined().reality,
                        last: before.and_then(|entry| view.typed::<K>(&entry)?.ok()),
                    };
                    let (key, last) = (context.key().clone(), last.clone());
                    let run = on_absent(absent, context);
                    Box::pin(async move {
                        let outcome = run.await;
                        if outcome.is_ok() {
                            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                            last.remove(&key);
                        }
                        outcome
                    })
                }
            }
        };
        Registered {
            name,
            api_version: K::api_version(),
            kind: K::KIND.to_owned(),
            group_plural: kind,
            kinds,
            checks,
            maps,
            run: Box::new(run),
            concurrency,
            timeout,
            writes_per_second,
            triggers,
            reports_while_frozen,
            part,
        }
    }
}

/// The end of an object for which this controller made nothing outside of the store.
async fn nothing_to_undo(controller: Arc<str>, context: Context) -> Outcome {
    let joined = context.joined();
    let mine = context
        .own_report(&joined)
        .is_some_and(|reality| reality.value.metadata.claim.as_deref() == Some(&*controller));
    if mine {
        let mut changes = context.changes();
        changes.report_gone()?;
        changes.commit().await?;
    }
    Ok(Action::await_change())
}

/// An intent is missing: nothing is done, and people are told.
async fn hold(context: Context) -> Outcome {
    if context.joined().is_unexplained() {
        context.event(
            EventType::Warning,
            "Unexplained",
            "the intent is missing though nobody asked for the object's end: everything stays as it is",
        );
    }
    Ok(Action::await_change())
}
