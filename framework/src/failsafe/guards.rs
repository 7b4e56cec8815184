//! What a runtime knows of its failsafes: the holds, and the questions that everything that acts
//! asks before it does.
//!
//! One [`Safeguards`] is shared by the sources, the mirror, the engines and the contexts of a
//! runtime. Its decisions are those of the pure modules beside it; here they meet the state.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;

use super::baseline::Baseline;
use super::budget::{Account, Budget};
use super::chain::Link;
use super::control::{EXPECTED_FOR, Expected, Freeze};
use super::effect::{ends, taken_away};
use super::episode;
use super::limits::Limits;
use super::record::{Failsafe, Guard, Hold, Reset};
use super::switch::{Safeguard, Switches};
use crate::cache::View;
use crate::controller::EventRecorder;
use crate::environment::Environment;
use crate::model::{
    EventType, GroupPlural, Joined, Kinds, ObjectKey, ObjectReference, Resource as _, Uid,
};
use crate::store::{Prefix, Revision, Transaction, Write};

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

/// What an owner may do because its own spec changed.
#[derive(Clone, Copy, Debug)]
struct Episode {
    generation: u64,
    /// When it was seen, or something was last taken away for it.
    acted: Duration,
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

/// What was taken from budgets for a commit, to be given back if it does not happen.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Ticket {
    spent: Vec<(Account, u32)>,
    /// Objects whose ends are paid for with it.
    ended: Vec<Uid>,
    /// The generation of the own object that orders what is taken away, to be written beside it.
    pub(crate) declared: Option<u64>,
}

/// A commit that a controller wants to make.
#[derive(Debug)]
pub(crate) struct Ask<'a> {
    /// The kinds that the controller declared.
    pub(crate) declared_kinds: &'a Kinds,
    pub(crate) view: &'a View,
    pub(crate) own: &'a Joined,
    pub(crate) transaction: &'a Transaction,
    /// Reports pass a freeze.
    pub(crate) reports_while_frozen: bool,
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

    /// Everything was read once: from here the grace time counts, and what is remembered of
    /// before is compared.
    pub(crate) fn synced(&self, view: &View) {
        let mut state = self.state();
        if state.began.is_some() {
            return;
        }
        state.began = Some(self.environment.monotonic());
        let Some(baseline) = state.baseline.clone() else {
            return;
        };
        let found = self.counts(view);
        for (kind, remembered, found) in baseline.fewer(&found, self.limits()) {
            let kind = self.kind_named(&kind);
            let Some(kind) = kind.filter(|_| self.is_on(Safeguard::Fewer)) else {
                continue;
            };
            let lost = usize::try_from(remembered - found).unwrap_or(usize::MAX);
            if self.is_expected(&mut state, lost) {
                continue;
            }
            let message = format!(
                "{found} {} are there; there were {remembered} when this program last looked",
                name_of(&kind)
            );
            self.raise(&mut state, Guard::Fewer, Some(&kind), "", &[], message);
        }
    }

    /// How many objects of each kind a view has.
    pub(super) fn counts(&self, view: &View) -> BTreeMap<String, u64> {
        let kinds = self.kinds();
        let kinds = kinds.iter().map(|known| known.definition.group_plural());
        kinds
            .map(|kind| (name_of(&kind), view.keys_of(&kind).len() as u64))
            .collect()
    }

    pub(super) fn see(state: &mut State) {
        state.blind = false;
    }

    fn refuse(state: &mut State, why: String, retry_after: Duration) -> Held {
        state.refusals += 1;
        Held { why, retry_after }
    }

    /// What forbids whatever takes something away, declared or not.
    fn nothing_goes(&self, state: &mut State) -> Option<Held> {
        let why = self.stopped(state).or_else(|| {
            let orders = self.is_on(Safeguard::HistoryOrders);
            let other = state.other_history.as_ref().filter(|_| orders)?;
            Some(format!("the store shows another history: {other}"))
        })?;
        Some(Self::refuse(state, why, AGAIN))
    }

    /// What forbids taking something away that nobody declared.
    fn nothing_undeclared_goes(&self, state: &mut State, kinds: &Kinds) -> Option<Held> {
        let mut holds = state.holds.values();
        let about = |hold: &&Hold| {
            !matches!(hold.guard, Guard::Budget | Guard::History)
                && self.is_on(Safeguard::KindHeld)
                && kinds
                    .iter()
                    .any(|known| name_of(&known.definition.group_plural()) == hold.kind)
        };
        if let Some(hold) = holds.find(about) {
            let why = format!("held by {}: {}", hold.id, hold.message);
            return Some(Self::refuse(state, why, AGAIN));
        }
        let left = match state.began {
            Some(began) => {
                (began + self.limits().grace).saturating_sub(self.environment.monotonic())
            }
            None => self.limits().grace,
        };
        if left.is_zero() || !self.is_on(Safeguard::ColdStart) {
            return None;
        }
        let why = format!("this program began a moment ago: it takes nothing away for {left:?}");
        Some(Self::refuse(state, why, left))
    }

    fn domain(&self, key: &ObjectKey, view: &View) -> Arc<str> {
        let domain = self.setup.domain.as_ref();
        domain
            .filter(|_| self.is_on(Safeguard::Domains))
            .and_then(|domain| domain(key, view))
            .unwrap_or_default()
            .into()
    }

    /// Takes from budgets, from all or from none.
    fn spend(
        &self,
        state: &mut State,
        view: &View,
        victims: &BTreeMap<Account, Vec<ObjectKey>>,
    ) -> Result<Ticket, Held> {
        let now = self.environment.monotonic();
        let window = self.limits().window;
        let mut ticket = Ticket::default();
        if !self.is_on(Safeguard::Budget) {
            return Ok(ticket);
        }
        for (account, objects) in victims {
            let asked = u32::try_from(objects.len()).unwrap_or(u32::MAX);
            let held = state.holds.values().find(|hold| {
                hold.guard == Guard::Budget
                    && hold.kind == name_of(&account.0)
                    && *hold.domain == *account.1
            });
            let held = held.map(|hold| format!("held by {}: {}", hold.id, hold.message));
            let spent = state.budget.spent(account, now, window);
            let mut limit = self.limits().budget_least;
            if spent.saturating_add(asked) > limit {
                let in_domain = |key: &Arc<ObjectKey>| {
                    self.setup.domain.is_none() || self.domain(key, view) == account.1
                };
                let known = view.keys_of(&account.0);
                limit = self
                    .limits()
                    .budget(known.iter().filter(|key| in_domain(key)).count());
            }
            let outcome = match &held {
                Some(_) => Err(super::budget::Overspent {
                    spent,
                    limit,
                    asked,
                }),
                None => state.budget.spend(account, now, window, asked, limit),
            };
            let Err(over) = outcome else {
                ticket.spent.push((account.clone(), asked));
                continue;
            };
            if self.is_expected(state, objects.len()) {
                continue;
            }
            let wanted = state.refused.entry(account.clone()).or_default();
            *wanted = asked.max(*wanted);
            let message = format!(
                "{} more of {} were to be taken away, after {} in the last {:?}; the budget is {}",
                over.asked,
                name_of(&account.0),
                over.spent,
                window,
                over.limit
            );
            self.raise(
                state,
                Guard::Budget,
                Some(&account.0),
                &account.1,
                objects,
                message.clone(),
            );
            for (account, count) in ticket.spent {
                state.budget.refund(&account, count);
            }
            let why = held.unwrap_or(message);
            return Err(Self::refuse(state, why, AGAIN));
        }
        Ok(ticket)
    }

    /// Decides whether a commit may be made now.
    pub(crate) fn admit(&self, ask: &Ask<'_>) -> Result<Ticket, Held> {
        // Parsed without the lock.
        let effects = taken_away(ask.transaction, ask.view, &self.kinds(), &ask.own.key);
        let mut state = self.state();
        let is_report = |write: &Write| {
            let key = write.key().as_str();
            key.starts_with("o/reality/") || key.starts_with("o/part/")
        };
        let passes = ask.reports_while_frozen
            && state.is_frozen()
            && ask.transaction.writes.iter().all(is_report);
        let stopped = match passes {
            true => self.unsure(&state),
            false => self.stopped(&state),
        };
        if let Some(why) = stopped {
            return Err(Self::refuse(&mut state, why, AGAIN));
        }
        let declared = self.declares(&mut state, ask.own, !effects.is_empty());
        if effects.is_empty() {
            return Ok(Ticket::default());
        }
        if let Some(held) = self.nothing_goes(&mut state) {
            return Err(held);
        }
        if declared {
            let metadata = ask.own.intent.as_ref().map(|own| &own.value.metadata);
            let declared = metadata.filter(|own| !own.is_deleted());
            return Ok(Ticket {
                declared: declared.map(|own| own.generation),
                ..Ticket::default()
            });
        }
        if let Some(held) = self.nothing_undeclared_goes(&mut state, ask.declared_kinds) {
            return Err(held);
        }
        let mut victims = BTreeMap::<Account, Vec<ObjectKey>>::new();
        for key in effects {
            let account = (key.kind().clone(), self.domain(&key, ask.view));
            victims.entry(account).or_default().push(key);
        }
        let mut ticket = self.spend(&mut state, ask.view, &victims)?;
        // Who carries the end out here does not pay for it again.
        for uid in ends(ask.transaction) {
            if Self::remember_end(&mut state, &uid) {
                ticket.ended.push(uid);
            }
        }
        Ok(ticket)
    }

    /// False when it was remembered already.
    fn remember_end(state: &mut State, uid: &Uid) -> bool {
        if state.ended.len() > MEMORIES {
            state.ended.clear();
        }
        state.ended.insert(uid.clone())
    }

    /// Only a freeze, or another history, stops this.
    pub(crate) fn admit_bare(&self) -> Result<(), Held> {
        self.nothing_goes(&mut self.state()).map_or(Ok(()), Err)
    }

    /// Gives back what a commit that did not happen had taken.
    pub(crate) fn give_back(&self, ticket: Ticket) {
        let mut state = self.state();
        for (account, count) in ticket.spent {
            state.budget.refund(&account, count);
        }
        for uid in ticket.ended {
            state.ended.remove(&uid);
        }
    }

    /// Decides whether what was made for an object that has a tombstone may be taken away now.
    pub(crate) fn admit_end(&self, own: &Joined, view: &View) -> Result<(), Held> {
        let mut state = self.state();
        if let Some(held) = self.nothing_goes(&mut state) {
            return Err(held);
        }
        let Some(intent) = &own.intent else {
            return Ok(());
        };
        let metadata = &intent.value.metadata;
        let declared = metadata.deletion.as_ref().is_some_and(|it| it.declared);
        if declared || state.ended.contains(&metadata.uid) || !self.is_on(Safeguard::Ends) {
            return Ok(());
        }
        let kind = own.key.kind();
        let mut kinds = Kinds::new();
        if let Some(known) = self.kinds().get(kind) {
            kinds.define(known.definition.clone());
        }
        if let Some(held) = self.nothing_undeclared_goes(&mut state, &kinds) {
            return Err(held);
        }
        let account = (kind.clone(), self.domain(&own.key, view));
        let victims = BTreeMap::from([(account, vec![own.key.clone()])]);
        // What was begun is finished, and not counted twice.
        let Ticket { .. } = self.spend(&mut state, view, &victims)?;
        Self::remember_end(&mut state, &metadata.uid);
        Ok(())
    }

    /// Whether what is done for an object follows from an order: its own tombstone, or a newer
    /// generation of its own spec, for as long as the work on that goes on.
    pub(crate) fn is_declared(&self, own: &Joined) -> bool {
        self.declares(&mut self.state(), own, false)
    }

    /// As [`Safeguards::is_declared`]. `acts`: something is taken away now.
    fn declares(&self, state: &mut State, own: &Joined, acts: bool) -> bool {
        let Some(intent) = &own.intent else {
            return false;
        };
        let metadata = &intent.value.metadata;
        if let Some(deletion) = &metadata.deletion
            && deletion.uid == metadata.uid
        {
            return deletion.declared;
        }
        let (now, generation) = (self.environment.monotonic(), metadata.generation);
        let lasts = self.limits().window * 2;
        let mut acted = now;
        match state.episodes.get_mut(&metadata.uid) {
            Some(episode) if episode.generation == generation => {
                let goes_on = now.saturating_sub(episode.acted) < lasts;
                if !goes_on {
                    state.episodes.remove(&metadata.uid);
                } else if acts {
                    episode.acted = now;
                }
                return goes_on;
            }
            Some(episode) if episode.generation > generation => return false,
            Some(_) => {}
            None => match own.own_reality() {
                // Never worked on: all that is done for it follows from its creation.
                None if !acts => return true,
                None => {}
                Some(reality) => {
                    let seen = reality.value.status.observed_generation;
                    if seen.is_none_or(|seen| seen >= generation) {
                        // Another process was at it.
                        let wall = self.environment.now();
                        let Some(ago) = episode::recalled(reality, generation, wall, lasts) else {
                            return false;
                        };
                        acted = if acts { now } else { now.saturating_sub(ago) };
                    }
                }
            },
        }
        if state.episodes.len() > MEMORIES {
            let goes_on = |episode: &Episode| now.saturating_sub(episode.acted) < lasts;
            state.episodes.retain(|_, episode| goes_on(episode));
        }
        let episode = Episode { generation, acted };
        state.episodes.insert(metadata.uid.clone(), episode);
        true
    }

    /// Lets go what a person reset. Returns the ids, and whether everything has to be read again.
    pub(super) fn reset(&self, resets: &[Reset]) -> (Vec<String>, bool) {
        let mut state = self.state();
        let (mut done, mut read_again) = (Vec::new(), false);
        for reset in resets {
            let Some(hold) = state.holds.get(&reset.id).cloned() else {
                continue;
            };
            let after = hold.since.duration_since(reset.since);
            let is_it = after.is_negative() || after.unsigned_abs() <= SAME_HOLD;
            // Once: the next hold of this id is another one.
            let first = state.resets.insert((reset.id.clone(), reset.since));
            if self.is_on(Safeguard::ResetOnce) && !(is_it && first) {
                continue;
            }
            match hold.guard {
                Guard::History => {
                    let withheld = std::mem::take(&mut state.withheld);
                    state.accepted.extend(withheld.into_keys());
                    state.other_history = None;
                    state.older_than = None;
                    state.chain_tells = false;
                    state.turns += 1;
                    state.link = None;
                    state.store_id.clear();
                    state.blind = false;
                    state.began = Some(self.environment.monotonic());
                    let about = |hold: &&Hold| {
                        matches!(
                            hold.guard,
                            Guard::Vanished | Guard::Changed | Guard::WentBack
                        )
                    };
                    let others: Vec<String> = state
                        .holds
                        .values()
                        .filter(about)
                        .map(|hold| hold.id.clone())
                        .collect();
                    for id in others {
                        self.release(&mut state, &id, "the other history was accepted");
                        done.push(id);
                    }
                    read_again = true;
                }
                Guard::Vanished | Guard::Changed | Guard::WentBack => {
                    let mine: Vec<String> = state
                        .withheld
                        .iter()
                        .filter(|(_, withheld)| withheld.hold == hold.id)
                        .map(|(key, _)| key.clone())
                        .collect();
                    for key in mine {
                        state.withheld.remove(&key);
                        state.accepted.insert(key);
                    }
                    read_again = true;
                }
                Guard::Budget => {
                    let kind = self.kind_named(&hold.kind);
                    if let Some(kind) = kind {
                        let account = (kind, Arc::from(hold.domain.as_str()));
                        let wanted = state.refused.remove(&account).unwrap_or(0);
                        state.budget.reset(&account, wanted);
                    }
                }
                Guard::RealityLost | Guard::Fewer => {}
            }
            self.release(&mut state, &hold.id, "a person reset it");
            done.push(hold.id);
        }
        (done, read_again)
    }

    /// Remembers an intent that was lost, so that it can be written again.
    pub(super) fn remember_lost(state: &mut State, key: String, was: Bytes) {
        if state.lost.len() >= LOST {
            state.lost.pop_first();
        }
        state.lost.insert(key, was);
    }

    /// What there is to remember over a restart; None while something is held that it would
    /// contradict.
    pub(super) fn to_remember(&self, view: &View) -> Option<Baseline> {
        let counts = self.counts(view);
        let now = self.environment.monotonic();
        let mut state = self.state();
        let unsound = |hold: &Hold| !matches!(hold.guard, Guard::Budget | Guard::RealityLost);
        if state.began.is_none() || state.holds.values().any(unsound) {
            return None;
        }
        let spent = state.budget.all(now, self.limits().window);
        let spent = spent.into_iter().map(|((kind, domain), count)| {
            let mut name = name_of(&kind);
            if !domain.is_empty() {
                name = format!("{name}@{domain}");
            }
            (name, count)
        });
        let baseline = Baseline {
            store_id: state.store_id.clone(),
            link: state.link.clone(),
            revision: view.revision(),
            kinds: counts,
            spent: spent.collect(),
        };
        state.baseline = Some(baseline.clone());
        Some(baseline)
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

    /// Takes over what the program's own record remembers, where nothing better is known.
    pub(super) fn recall_stored(&self, baseline: Baseline) {
        let mut state = self.state();
        if state.baseline.is_none() && state.began.is_none() {
            recall(
                &mut state,
                baseline,
                self.environment.monotonic(),
                &self.setup.switches,
            );
        }
    }
}

fn recall(state: &mut State, baseline: Baseline, now: Duration, switches: &Switches) {
    state.link.clone_from(&baseline.link);
    state.store_id.clone_from(&baseline.store_id);
    let spent = switches.is_on(Safeguard::BudgetMemory);
    for (name, &count) in baseline.spent.iter().filter(|_| spent) {
        let (kind, domain) = name.split_once('@').unwrap_or((name, ""));
        if let Some((plural, group)) = kind.split_once('.') {
            let account = (GroupPlural::new(group, plural), Arc::from(domain));
            // As if it had been just now: later than it was, and so on the safe side.
            let _ = state
                .budget
                .spend(&account, now, Duration::MAX, count, u32::MAX);
        }
    }
    state.baseline = Some(baseline);
}

/// A kind as people name it: `pods.platctrl.dev`.
pub(super) fn name_of(kind: &GroupPlural) -> String {
    format!("{}.{}", kind.plural, kind.group)
}
