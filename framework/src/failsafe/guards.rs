//! What a runtime knows of its failsafes: the holds, and the questions that everything that acts
//! asks before it does.
//!
//! One [`Safeguards`] is shared by the sources, the mirror, the engines and the contexts of a
//! runtime. Its decisions are those of the pure modules beside it; here they meet the state.

mod admit;
mod memory;
mod reset;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;

pub(crate) use self::admit::Ask;
use self::admit::Episode;
use self::memory::recall;
use super::baseline::Baseline;
use super::budget::{Account, Budget};
use super::chain::Link;
use super::control::{EXPECTED_FOR, Expected, Freeze};
use super::limits::Limits;
use super::record::{Failsafe, Guard, Hold};
use super::switch::{Safeguard, Switches};
use crate::cache::View;
use crate::controller::EventRecorder;
use crate::environment::Environment;
use crate::model::{EventType, GroupPlural, Kinds, ObjectKey, ObjectReference, Resource as _, Uid};
use crate::store::{Prefix, Revision};

/// Objects named in a hold.
pub(super) const NAMED: usize = 20;
/// Holds and other waits are asked about again after this time.
const AGAIN: Duration = Duration::from_secs(30);
/// Two programs that lead in turn may have noticed one thing so far apart.
const SAME_HOLD: Duration = Duration::from_secs(120);
/// Intents that are remembered after they were lost.
const LOST: usize = 1024;
/// Owners and ends that are remembered before all are forgotten.
const MEMORIES: usize = 100_000;

/// Names the failure domain of an object.
pub(crate) type Domain = Arc<dyn Fn(&ObjectKey, &View) -> Option<String> + Send + Sync>;

/// How a runtime guards itself.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) limits: Limits,
    pub(crate) domain: Option<Domain>,
    /// The name of the object that lists the holds.
    pub(crate) holder: String,
    pub(crate) file: Option<std::path::PathBuf>,
    pub(crate) keep_chain: bool,
    pub(crate) switches: Switches,
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup")
            .field("holder", &self.holder)
            .finish_non_exhaustive()
    }
}

/// Something is held back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) why: String,
    pub(crate) retry_after: Duration,
}

/// An intent whose new state is not believed: this is the last good one.
#[derive(Clone, Debug)]
pub(super) struct Withheld {
    pub(super) was: Bytes,
    pub(super) hold: String,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Whether it was read if everything is frozen.
    told: bool,
    freeze: Option<Freeze>,
    credit: u32,
    credit_until: Duration,
    credit_nonce: String,
    pub(super) store_id: String,
    pub(super) link: Option<Link>,
    /// Why the history is taken for another one.
    pub(super) other_history: Option<String>,
    /// Grows whenever the history turns out to be another one, or the same again.
    pub(super) turns: u64,
    /// Nothing good was seen before the history was another one.
    blind: bool,
    /// Why this program is too old for the store.
    pub(super) too_new: Option<String>,
    began: Option<Duration>,
    pub(super) holds: BTreeMap<String, Hold>,
    /// By the key of the intent.
    pub(super) withheld: BTreeMap<String, Withheld>,
    /// Keys of intents whose next state is taken as it is.
    pub(super) accepted: BTreeSet<String>,
    /// Objects whose reports vanished in a mass, by hold.
    pub(super) reports: BTreeMap<String, BTreeSet<ObjectKey>>,
    /// Intents that were lost, as they were last known, by key.
    pub(super) lost: BTreeMap<String, Bytes>,
    budget: Budget,
    refused: BTreeMap<Account, u32>,
    episodes: HashMap<Uid, Episode>,
    ended: HashSet<Uid>,
    pub(super) baseline: Option<Baseline>,
    pub(super) resets: HashSet<(String, Timestamp)>,
    /// How often something was held back.
    pub(super) refusals: u64,
    /// Something was let go: what waited for it may run.
    eased: bool,
    /// The revision that the store was at before it went back.
    pub(super) older_than: Option<Revision>,
    /// The chain, too, tells that it is another history.
    pub(super) chain_tells: bool,
}

/// The failsafes of a runtime.
pub(crate) struct Safeguards {
    pub(super) setup: Setup,
    pub(super) environment: Environment,
    kinds: RwLock<Arc<Kinds>>,
    pub(super) prefixes: Box<[Prefix]>,
    recorder: EventRecorder,
    state: Mutex<State>,
    /// Whether a change of the view has to be looked at even if it is small.
    pub(super) attentive: AtomicBool,
    moved: watch::Sender<u64>,
    pub(super) prepared: tokio::sync::OnceCell<()>,
}

impl fmt::Debug for Safeguards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Safeguards")
            .field("setup", &self.setup)
            .finish_non_exhaustive()
    }
}

/// What a runtime holds back at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FailsafeView {
    /// Everything is frozen, by whom and why.
    pub frozen: Option<Freeze>,
    /// Why this program is too old for the store's format; nothing is changed meanwhile.
    pub too_new: Option<String>,
    /// What is held.
    pub holds: Vec<Hold>,
    /// How long it takes until something that nobody declared may be taken away; None before
    /// everything was read once.
    pub grace_left: Option<Duration>,
    /// Intents that are shown as they last were, because what is there now is not believed.
    pub withheld: usize,
    /// How often a commit or an end was held back.
    pub refusals: u64,
}

impl State {
    fn is_frozen(&self) -> bool {
        self.freeze.as_ref().is_some_and(|freeze| freeze.frozen)
    }
}

impl Safeguards {
    pub(crate) fn is_frozen(&self) -> bool {
        self.state().is_frozen()
    }

    /// The failsafes of a runtime, with what its file remembers.
    pub(crate) async fn open(
        setup: Setup,
        environment: Environment,
        kinds: Kinds,
        prefixes: &[Prefix],
        recorder: EventRecorder,
    ) -> Arc<Self> {
        let mut state = State::default();
        if let Some(file) = setup.file.clone() {
            let loaded = tokio::task::spawn_blocking(move || Baseline::load(&file)).await;
            match loaded.map_err(std::io::Error::other).flatten() {
                Ok(Some(baseline)) => recall(
                    &mut state,
                    baseline,
                    environment.monotonic(),
                    &setup.switches,
                ),
                Ok(None) => {}
                Err(error) => {
                    let file = setup.file.as_deref();
                    tracing::error!(?file, %error, "what was remembered of the store cannot be read: begun anew");
                }
            }
        }
        Arc::new(Self {
            setup,
            environment,
            kinds: RwLock::new(Arc::new(kinds)),
            prefixes: prefixes.into(),
            recorder,
            state: Mutex::new(state),
            attentive: AtomicBool::new(false),
            moved: watch::Sender::new(0),
            prepared: tokio::sync::OnceCell::new(),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kinds that are mirrored.
    pub(super) fn kinds(&self) -> Arc<Kinds> {
        let kinds = self.kinds.read().unwrap_or_else(PoisonError::into_inner);
        kinds.clone()
    }

    pub(crate) fn set_kinds(&self, kinds: Arc<Kinds>) {
        let mut place = self.kinds.write().unwrap_or_else(PoisonError::into_inner);
        *place = kinds;
    }

    /// The kind of a name as [`name_of`] makes it.
    fn kind_named(&self, name: &str) -> Option<GroupPlural> {
        let kinds = self.kinds();
        let mut kinds = kinds.iter().map(|known| known.definition.group_plural());
        kinds.find(|kind| name_of(kind) == name)
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.setup.limits
    }

    /// Told whenever holds or the freeze change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }

    pub(super) fn announce(&self) {
        self.moved.send_modify(|count| *count += 1);
    }

    pub(crate) fn view(&self) -> FailsafeView {
        let now = self.environment.monotonic();
        let state = self.state();
        FailsafeView {
            frozen: state.freeze.clone().filter(|freeze| freeze.frozen),
            too_new: state.too_new.clone(),
            holds: state.holds.values().cloned().collect(),
            grace_left: state
                .began
                .map(|began| (began + self.limits().grace).saturating_sub(now)),
            withheld: state.withheld.len(),
            refusals: state.refusals,
        }
    }

    fn says(&self, event_type: EventType, reason: &str, message: String) {
        let object = ObjectReference {
            api_version: Failsafe::api_version(),
            kind: Failsafe::KIND.to_owned(),
            namespace: None,
            name: self.setup.holder.clone(),
            uid: Uid::default(),
        };
        self.recorder.record(object, event_type, reason, message);
    }

    /// Holds, or adds to what is held already.
    pub(super) fn raise(
        &self,
        state: &mut State,
        guard: Guard,
        kind: Option<&GroupPlural>,
        domain: &str,
        objects: &[ObjectKey],
        message: String,
    ) -> String {
        let kind = kind.map(name_of).unwrap_or_default();
        let mut id = guard.as_str().to_owned();
        for (mark, text) in [("-", kind.as_str()), ("@", domain)] {
            if !text.is_empty() {
                id.push_str(mark);
                id.push_str(text);
            }
        }
        let count = u32::try_from(objects.len()).unwrap_or(u32::MAX);
        let named = objects.iter().map(ToString::to_string);
        match state.holds.get_mut(&id) {
            Some(hold) if guard == Guard::Budget => {
                // Asked again and again: that is no news.
                hold.count = hold.count.max(count);
            }
            Some(hold) => {
                hold.count = hold.count.saturating_add(count);
                hold.message = message;
                let room = NAMED.saturating_sub(hold.objects.len());
                hold.objects.extend(named.take(room));
                self.announce();
            }
            None => {
                tracing::error!(hold = id, "held by a failsafe: {message}");
                self.says(EventType::Warning, "Held", format!("{id}: {message}"));
                let hold = Hold {
                    id: id.clone(),
                    guard,
                    kind,
                    domain: domain.to_owned(),
                    since: self.environment.now(),
                    message,
                    count,
                    objects: named.take(NAMED).collect(),
                };
                state.holds.insert(id.clone(), hold);
                self.announce();
            }
        }
        self.attentive.store(true, Ordering::Release);
        id
    }

    /// Ends a hold.
    pub(super) fn release(&self, state: &mut State, id: &str, why: &str) {
        if let Some(hold) = state.holds.remove(id) {
            tracing::warn!(hold = hold.id, "released: {why}");
            self.says(EventType::Normal, "Released", format!("{id}: {why}"));
            state.reports.remove(id);
            state.eased = true;
            self.announce();
        }
        self.attend(state);
    }

    pub(super) fn attend(&self, state: &State) {
        let attentive = state.other_history.is_some()
            || !state.withheld.is_empty()
            || !state.accepted.is_empty()
            || !state.reports.is_empty();
        self.attentive.store(attentive, Ordering::Release);
    }

    /// Takes so many from what a person said to expect. Whole or not at all.
    pub(super) fn is_expected(&self, state: &mut State, changes: usize) -> bool {
        let changes = u32::try_from(changes).unwrap_or(u32::MAX);
        let counts = self.environment.monotonic() < state.credit_until;
        if !counts || changes > state.credit {
            return false;
        }
        state.credit -= changes;
        true
    }

    /// Takes note of what a person told everybody.
    pub(super) fn hear(&self, freeze: Option<Freeze>, expected: Option<Expected>) {
        let mut state = self.state();
        let frozen = |freeze: &Option<Freeze>| freeze.as_ref().is_some_and(|it| it.frozen);
        let (was, is) = (frozen(&state.freeze), frozen(&freeze));
        if !state.told || was != is {
            if is {
                let freeze = freeze.as_ref();
                let by = freeze.map_or("", |freeze| freeze.by.as_str());
                tracing::warn!(by, "frozen: nothing is changed");
            } else if was {
                tracing::warn!("thawed");
                // Who only reported looks again at what is wanted.
                state.eased = true;
            }
        }
        state.told = true;
        state.freeze = freeze;
        if let Some(expected) = expected
            && expected.nonce != state.credit_nonce
        {
            let age = self.environment.now().duration_since(expected.at);
            let age = age.unsigned_abs();
            if age < EXPECTED_FOR {
                state.credit = expected.changes;
                state.credit_until = self.environment.monotonic() + (EXPECTED_FOR - age);
            }
            state.credit_nonce = expected.nonce;
        }
        drop(state);
        self.announce();
    }

    /// Nothing can be learned of a freeze: the credential may not read it.
    pub(super) fn hear_nothing(&self) {
        let mut state = self.state();
        if !std::mem::replace(&mut state.told, true) {
            drop(state);
            self.announce();
        }
    }

    /// Why nothing runs, while nothing does.
    fn stopped(&self, state: &State) -> Option<String> {
        if !state.told {
            return Some("it is not known yet whether everything is frozen".to_owned());
        }
        let frozen = |freeze: &&Freeze| freeze.frozen && self.is_on(Safeguard::Freeze);
        if let Some(freeze) = state.freeze.as_ref().filter(frozen) {
            let reason = freeze.reason.as_deref().unwrap_or("no reason was given");
            return Some(format!("frozen by {}: {reason}", freeze.by));
        }
        self.unsure(state)
    }

    /// All are, but in tests that prove what one is good for.
    pub(crate) fn is_on(&self, safeguard: Safeguard) -> bool {
        self.setup.switches.is_on(safeguard)
    }

    /// Why not even reports are written, though it is known whether everything is frozen.
    fn unsure(&self, state: &State) -> Option<String> {
        if let Some(why) = &state.too_new {
            return Some(why.clone());
        }
        let blind = state.blind && self.is_on(Safeguard::HistoryBlind);
        let other = state.other_history.as_ref().filter(|_| blind);
        other.map(|why| format!("the store shows another history: {why}"))
    }

    /// Waits until something that was held was let go.
    pub(crate) async fn eased(&self) {
        let mut moved = self.subscribe();
        while !std::mem::take(&mut self.state().eased) {
            if moved.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Controllers may run now. `reports`: a freeze alone does not stop it.
    pub(crate) fn are_runs_allowed(&self, reports: bool) -> bool {
        let state = self.state();
        let stopped = match reports && state.is_frozen() {
            true => self.unsure(&state),
            false => self.stopped(&state),
        };
        stopped.is_none()
    }

    /// Waits until controllers may run.
    pub(crate) async fn runs_allowed(&self, reports: bool) {
        let mut moved = self.subscribe();
        while !self.are_runs_allowed(reports) {
            if moved.changed().await.is_err() {
                // Cannot happen while `self` lives; waiting is right either way.
                std::future::pending::<()>().await;
            }
        }
    }

    pub(super) fn see(state: &mut State) {
        state.blind = false;
    }

    /// The store is older than it was.
    pub(crate) fn went_back(&self, had: Revision, found: Revision) {
        let why = format!("it is at revision {found} and was at {had}");
        let mut state = self.state();
        state.older_than = Some(had);
        self.turn(&mut state, why);
    }

    /// From here on the history is taken for another one.
    pub(super) fn turn(&self, state: &mut State, why: String) {
        if state.other_history.is_some() {
            return;
        }
        state.turns += 1;
        state.blind = state.began.is_none();
        let message = format!(
            "{why}: the store was restored from a backup or replaced, and nothing is taken away until a person has looked"
        );
        state.other_history = Some(why);
        self.raise(state, Guard::History, None, "", &[], message);
    }
}

/// A kind as people name it: `pods.platctrl.dev`.
pub(super) fn name_of(kind: &GroupPlural) -> String {
    format!("{}.{}", kind.plural, kind.group)
}
