//! How many healthy pods may be taken away now: plain data in, a number out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use platctrl_framework::model::{Digest, Uid};
use serde::{Deserialize, Serialize};

/// What is done to a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "act")]
pub enum Act {
    /// It is ended.
    Delete,
    /// It gets another spec.
    Replace {
        /// The spec that it has now.
        before: Digest,
        /// The spec that it gets.
        target: Digest,
    },
    /// Its programs are restarted, because its agent asked for it.
    Restart {
        /// Which request of the agent is granted.
        request: String,
    },
}

/// Something was decided, and its effect may not be seen yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The pod.
    pub victim: Uid,
    /// What happens to it.
    #[serde(flatten)]
    pub act: Act,
    /// Who decided it, as `rollingupdate/hello-1`.
    pub by: String,
    /// When, by the clock of who decided it.
    pub at: Timestamp,
}

/// What a view shows of a pod, as far as the ledger is about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// It is recorded as ready with the spec that it has now, on a node that is heard of.
    pub healthy: bool,
    /// It has a tombstone.
    pub leaving: bool,
    /// The spec that it has now. Looked at only for pods with an open entry.
    pub spec: Option<Digest>,
    /// The restart that its agent asks for.
    pub request: Option<String>,
}

impl Member {
    pub(crate) fn counts(&self) -> bool {
        self.healthy && !self.leaving
    }
}

/// What a view shows of a workload's pods, for an [`Account`].
pub(crate) trait Members: fmt::Debug + Send + Sync {
    /// What it shows of one.
    fn get(&self, pod: &Uid) -> Option<Member>;

    /// How many are healthy, and not on their way out.
    fn healthy(&self) -> u32;

    /// How many there are.
    fn count(&self) -> u32;

    /// Those whose agents ask for a restart, in order.
    fn asking(&self) -> Vec<(Uid, Member)>;
}

/// All of them, one by one.
#[derive(Debug, Default)]
struct Listed {
    members: BTreeMap<Uid, Member>,
    /// There may be very many, and it is asked for each entry.
    healthy: u32,
}

impl Members for Listed {
    fn get(&self, pod: &Uid) -> Option<Member> {
        self.members.get(pod).cloned()
    }

    fn healthy(&self) -> u32 {
        self.healthy
    }

    fn count(&self) -> u32 {
        count(self.members.len())
    }

    fn asking(&self) -> Vec<(Uid, Member)> {
        let members = self.members.iter();
        let asking = members.filter(|(_, member)| member.request.is_some());
        asking.map(|(pod, it)| (pod.clone(), it.clone())).collect()
    }
}

/// A workload's pods and what is under way with them.
///
/// `allowed = recorded healthy − victims of open entries − floor`. Nobody closes an entry: it is
/// dropped by whoever writes the ledger next with a view that shows its effect.
#[derive(Clone, Debug)]
pub struct Account {
    members: Arc<dyn Members>,
    floor: u32,
    open: BTreeMap<Uid, Entry>,
    /// Healthy pods that something was decided about.
    going: u32,
    /// Entries were dropped or made since the record was read.
    changed: bool,
}

/// Why a pod is not taken away now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{healthy} healthy, of which {open} are being taken away, and {floor} have to stay: none can go now"
)]
pub struct Refused {
    /// Pods recorded as healthy.
    pub healthy: u32,
    /// Those of them that something was decided about.
    pub open: u32,
    /// How many have to stay healthy.
    pub floor: u32,
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

impl Account {
    /// An account of these pods, of which `floor` have to stay healthy. Entries whose effect
    /// `members` show are dropped, if `current`: what shows the pods is not older than the ledger.
    #[must_use]
    pub fn new(
        members: BTreeMap<Uid, Member>,
        floor: u32,
        entries: Vec<Entry>,
        current: bool,
    ) -> Self {
        let listed = Listed {
            healthy: count(members.values().filter(|pod| pod.counts()).count()),
            members,
        };
        Self::of(Arc::new(listed), floor, entries, current)
    }

    /// As [`Account::new`], of pods that are known otherwise than one by one.
    pub(crate) fn of(
        members: Arc<dyn Members>,
        floor: u32,
        entries: Vec<Entry>,
        current: bool,
    ) -> Self {
        let mut account = Self {
            members,
            floor,
            open: BTreeMap::new(),
            going: 0,
            changed: false,
        };
        for entry in entries {
            if current && account.shows(&entry) {
                account.changed = true;
            } else {
                account.insert(entry);
            }
        }
        account
    }

    fn insert(&mut self, entry: Entry) {
        let healthy = self.is_healthy(&entry.victim);
        if self.open.insert(entry.victim.clone(), entry).is_none() {
            self.going += u32::from(healthy);
        }
    }

    /// The effect of an entry is seen.
    fn shows(&self, entry: &Entry) -> bool {
        let Some(member) = self.members.get(&entry.victim) else {
            return true;
        };
        member.leaving
            || match &entry.act {
                Act::Delete => false,
                // From here on its health is that of another spec.
                Act::Replace { before, .. } => {
                    member.spec.as_ref().is_some_and(|spec| spec != before)
                }
                Act::Restart { request } => member.request.as_ref() != Some(request),
            }
    }

    /// The entries whose effect is not seen.
    pub fn open(&self) -> impl Iterator<Item = &Entry> {
        self.open.values()
    }

    /// Something was decided about this pod, and its effect is not seen yet.
    #[must_use]
    pub fn is_open(&self, pod: &Uid) -> bool {
        self.open.contains_key(pod)
    }

    /// This pod is recorded as healthy, and not on its way out.
    #[must_use]
    pub fn is_healthy(&self, pod: &Uid) -> bool {
        self.members.get(pod).is_some_and(|pod| pod.counts())
    }

    /// The pods recorded as healthy.
    #[must_use]
    pub fn healthy(&self) -> u32 {
        self.members.healthy()
    }

    /// The pods that have to stay healthy.
    #[must_use]
    pub fn floor(&self) -> u32 {
        self.floor
    }

    /// Healthy pods that something was decided about.
    #[must_use]
    pub fn going(&self) -> u32 {
        self.going
    }

    /// How many healthy pods may be taken away now.
    #[must_use]
    pub fn allowed(&self) -> u32 {
        self.healthy()
            .saturating_sub(self.going())
            .saturating_sub(self.floor)
    }

    /// The record is to be written, because entries were made or dropped.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        self.changed
    }

    /// Takes a pod from what may be taken away. A pod that is not healthy costs nothing, but
    /// restarts are counted too: see [`Account::restarts_allowed`].
    ///
    /// # Errors
    /// [`Refused`] when it is healthy and none may go.
    pub fn enter(&mut self, pod: &Uid, act: Act, by: &str, at: Timestamp) -> Result<(), Refused> {
        let costs = self.is_healthy(pod) && !self.is_open(pod);
        let refused = Refused {
            healthy: self.healthy(),
            open: self.going(),
            floor: self.floor,
        };
        let is_restart = matches!(act, Act::Restart { .. });
        if is_restart && !self.is_open(pod) && self.restarts_allowed() == 0 {
            return Err(refused);
        }
        if costs && self.allowed() == 0 {
            return Err(refused);
        }
        if costs || is_restart || self.is_open(pod) {
            let entry = Entry {
                victim: pod.clone(),
                act,
                by: by.to_owned(),
                at,
            };
            self.insert(entry);
            self.changed = true;
        }
        Ok(())
    }

    /// How many restarts may be granted now. Pods that ask for one are not healthy, so that it
    /// costs no health; but what makes all of them fail at once is seldom healed by restarting
    /// all of them at once: as many at a time as may be missing, and at least one.
    #[must_use]
    pub fn restarts_allowed(&self) -> u32 {
        let most = (self.members.count()).saturating_sub(self.floor).max(1);
        let under_way = self.open.values();
        let under_way = under_way.filter(|entry| matches!(entry.act, Act::Restart { .. }));
        most.saturating_sub(count(under_way.count()))
    }

    /// The pods whose agents ask for a restart that nobody granted yet, in order.
    #[must_use]
    pub fn asking(&self) -> BTreeSet<(Uid, String)> {
        let asks = |(pod, member): (Uid, Member)| {
            let request = member.request.filter(|_| !member.leaving)?;
            (!self.is_open(&pod)).then_some((pod, request))
        };
        self.members.asking().into_iter().filter_map(asks).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(name: &str) -> Uid {
        name.into()
    }

    fn digest(text: &str) -> Digest {
        Digest::of_json(&serde_json::Value::from(text))
    }

    fn member(healthy: bool) -> Member {
        Member {
            healthy,
            leaving: false,
            spec: Some(digest("one")),
            request: None,
        }
    }

    fn members(healthy: usize, unhealthy: usize) -> BTreeMap<Uid, Member> {
        let members = 0..healthy + unhealthy;
        let member = |i| (uid(&format!("p{i:02}")), member(i < healthy));
        members.map(member).collect()
    }

    fn account(healthy: usize, unhealthy: usize, floor: u32, entries: Vec<Entry>) -> Account {
        Account::new(members(healthy, unhealthy), floor, entries, true)
    }

    fn entry(victim: &str, act: Act) -> Entry {
        Entry {
            victim: uid(victim),
            act,
            by: "test".into(),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    fn enter(account: &mut Account, pod: &str) -> Result<(), Refused> {
        account.enter(&uid(pod), Act::Delete, "test", Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn what_was_decided_counts_until_it_is_seen() {
        let mut account = account(10, 1, 8, vec![]);
        assert_eq!(account.allowed(), 2);
        enter(&mut account, "p00").unwrap();
        enter(&mut account, "p01").unwrap();
        let refused = enter(&mut account, "p02").unwrap_err();
        assert_eq!((refused.healthy, refused.open, refused.floor), (10, 2, 8));
        // Once more about the same pod, or one that is not healthy, costs nothing.
        enter(&mut account, "p01").unwrap();
        enter(&mut account, "p10").unwrap();
        assert_eq!(account.open().count(), 2);

        // A later view: p00 is gone, and something else is healthy in its place.
        let mut members = members(10, 1);
        members.remove(&uid("p00"));
        members.insert(uid("q"), member(true));
        let entries: Vec<_> = account.open().cloned().collect();
        let seen = Account::new(members.clone(), 8, entries.clone(), true);
        assert_eq!((seen.going(), seen.allowed()), (1, 1));
        assert!(seen.has_changed());
        let stale = Account::new(members, 8, entries, false);
        assert_eq!(stale.open().count(), 2, "an old view drops nothing");
    }

    #[test]
    fn a_replaced_pod_counts_again_once_its_new_spec_is_seen() {
        let act = Act::Replace {
            before: digest("one"),
            target: digest("two"),
        };
        let open = account(3, 0, 2, vec![entry("p00", act.clone())]);
        assert_eq!(open.allowed(), 0);
        let mut members = members(3, 0);
        members.get_mut(&uid("p00")).unwrap().spec = Some(digest("two"));
        let seen = Account::new(members, 2, vec![entry("p00", act)], true);
        assert_eq!((seen.open().count(), seen.allowed()), (0, 1));
    }

    #[test]
    fn restarts_are_granted_as_many_at_a_time_as_may_be_missing() {
        let mut members = members(0, 5);
        for (pod, member) in &mut members {
            member.request = Some(format!("r-{pod}"));
        }
        let mut account = Account::new(members.clone(), 3, vec![], true);
        let asking = account.asking();
        assert_eq!(asking.len(), 5);
        let granted = asking.iter().filter(|(pod, request)| {
            let act = Act::Restart {
                request: request.clone(),
            };
            account
                .enter(pod, act, "test", Timestamp::UNIX_EPOCH)
                .is_ok()
        });
        assert_eq!(granted.count(), 2);
        assert_eq!(account.asking().len(), 3);
        // Restarted, or healthy again without: the request is gone either way.
        let entries: Vec<_> = account.open().cloned().collect();
        members.get_mut(&entries[0].victim).unwrap().request = None;
        assert_eq!(
            Account::new(members, 3, entries, true).restarts_allowed(),
            1
        );
    }

    #[test]
    fn an_entry_is_written_so_that_people_can_read_it() {
        let entry = entry(
            "p00",
            Act::Restart {
                request: "7".into(),
            },
        );
        let json = serde_json::to_value(&entry).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"victim": "p00", "act": "restart", "request": "7", "by": "test", "at": "1970-01-01T00:00:00Z"})
        );
        assert_eq!(serde_json::from_value::<Entry>(json).unwrap(), entry);
    }
}
