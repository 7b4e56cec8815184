//! How many versions of a program are kept to go back to.
//!
//! Each version is a replication controller of a line; a roll that is complete leaves the one
//! before without pods. The oldest of these go when there are more than the present version
//! says, and with them the rolls that nobody needs any more to tell where a version came from.
//! The first version stays: its name is the line's, and a manifest of that name that is applied
//! again must find it claimed.

use std::collections::BTreeSet;
use std::sync::Arc;

use platctrl_framework::client::DeleteOptions;
use platctrl_framework::controller::{Action, Context};
use platctrl_framework::model::{EventType, Object, Propagation, Resource};
use platctrl_kinds::{Pod, ReplicationController, RollPhase, RollingUpdate, line};

use super::RunResult;
use crate::ledger::{replication_controller_key, roll_key};

/// Records that one commit removes, at most.
const BATCH: usize = 8;

/// A version, as far as it is about how long it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Version {
    /// The replication controller.
    pub name: String,
    /// Which version of its line it is.
    pub revision: u64,
    /// It has pods, or is to have some.
    pub in_use: bool,
    /// The roll that claims it.
    pub claimed_by: Option<String>,
    /// How many earlier ones it wants to be kept.
    pub limit: u32,
}

/// A roll between versions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roll {
    /// Its name.
    pub name: String,
    /// Where pods come from.
    pub from: String,
    /// Where they go.
    pub to: String,
    /// Nothing more comes of it.
    pub is_final: bool,
    /// When it was created, as a number that grows.
    pub created: i64,
}

/// What is not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surplus {
    /// Replication controllers, the oldest first.
    pub versions: Vec<String>,
    /// Rolls, the oldest first.
    pub rolls: Vec<String>,
}

/// Decides which versions of a line are not kept, and which rolls.
#[must_use]
pub fn surplus(line: &str, versions: &[Version], rolls: &[Roll]) -> Surplus {
    let mut sorted: Vec<&Version> = versions.iter().collect();
    sorted.sort_by_key(|version| (version.revision, version.name.clone()));
    // The one that runs: of several the newest.
    let Some(current) = sorted.iter().rev().find(|version| version.in_use) else {
        return Surplus::default();
    };
    let under_way = |name: &str| {
        let mut open = rolls.iter().filter(|roll| !roll.is_final);
        open.any(|roll| roll.from == name || roll.to == name)
    };
    let earlier: Vec<&&Version> = (sorted.iter())
        .filter(|version| version.name != current.name && version.name != line)
        .collect();
    let too_many = earlier.len().saturating_sub(current.limit as usize);
    let removable = earlier
        .iter()
        .take(too_many)
        .filter(|version| !version.in_use && !under_way(&version.name))
        // One that no roll took the pods from is still being made.
        .filter(|version| version.claimed_by.is_some());
    let versions: Vec<String> = removable.map(|version| version.name.clone()).collect();
    let is_kept = |name: &str| {
        let mut there = sorted
            .iter()
            .filter(|version| !versions.contains(&version.name));
        there.any(|version| version.name == name)
    };
    let mut newest_first: Vec<&Roll> = rolls.iter().filter(|roll| roll.is_final).collect();
    newest_first.sort_by_key(|roll| std::cmp::Reverse((roll.created, roll.name.clone())));
    let mut told = BTreeSet::new();
    let mut gone: Vec<String> = newest_first
        .into_iter()
        // How the newest came about is told of each version that is there.
        .filter(|roll| !(is_kept(&roll.to) && told.insert(roll.to.clone())))
        // A claim of a roll that is no more would be no claim.
        .filter(|roll| {
            let claims = |version: &&Version| version.claimed_by.as_ref() == Some(&roll.name);
            !sorted.iter().any(claims)
        })
        .map(|roll| roll.name.clone())
        .collect();
    gone.reverse();
    Surplus {
        versions,
        rolls: gone,
    }
}

fn line_of<K: Resource>(object: &Object<K>) -> Option<&String> {
    object.metadata.labels.get(line::LINE)
}

/// Removes what is too much of the line of a roll that is at its end.
pub(super) async fn keep(roll: &Arc<Object<RollingUpdate>>, context: &Context) -> RunResult {
    let Some(name) = line_of(&**roll) else {
        return Ok(Action::await_change());
    };
    let view = context.view();
    let namespace = roll.metadata.namespace.as_deref().unwrap_or_default();
    let known = view.list::<RollingUpdate>().in_namespace(namespace);
    let rolls: Vec<Roll> = known
        .into_iter()
        .filter(|roll| line_of(&**roll) == Some(name) && !roll.metadata.is_deleted())
        .map(|roll| Roll {
            name: roll.metadata.name.clone(),
            from: roll.spec.from.clone(),
            to: roll.spec.to.clone(),
            is_final: RollPhase::is_final(&roll.status.phase),
            created: crate::template::created_at(&roll.metadata),
        })
        .collect();
    // One of them is enough to look.
    let newest = rolls.iter().max_by_key(|it| (it.created, &it.name));
    if newest.is_none_or(|newest| newest.name != roll.metadata.name) {
        return Ok(Action::await_change());
    }
    let controllers = view.list::<ReplicationController>().in_namespace(namespace);
    let versions: Vec<Version> = controllers
        .into_iter()
        .filter(|it| line_of(&**it) == Some(name) || it.metadata.name == *name)
        .filter(|it| !it.metadata.is_deleted())
        .map(|it| {
            let pods = view.list::<Pod>().owned_by(&it.metadata.uid);
            let revision = it.metadata.annotations.get(line::REVISION);
            Version {
                name: it.metadata.name.clone(),
                revision: revision.and_then(|it| it.parse().ok()).unwrap_or(1),
                in_use: it.spec.replicas > 0 || pods.into_iter().next().is_some(),
                claimed_by: it.spec.claimed_by.clone(),
                limit: it.spec.history_limit(),
            }
        })
        .collect();
    let surplus = surplus(name, &versions, &rolls);
    let versions = surplus.versions.iter().map(|name| {
        let key = replication_controller_key(namespace, name);
        (ReplicationController::SINGULAR, name, key)
    });
    let rolls = surplus
        .rolls
        .iter()
        .map(|name| (RollingUpdate::SINGULAR, name, roll_key(namespace, name)));
    let mut changes = context.changes();
    let mut removed = Vec::new();
    for (kind, name, key) in versions.chain(rolls).take(BATCH) {
        let Some(key) = key else { continue };
        let mut options = DeleteOptions::default();
        options.propagation = Some(Propagation::Orphan);
        options.reason = Some("it is older than what spec.revisionHistoryLimit keeps".to_owned());
        changes.delete(&key, &options)?;
        removed.push(format!("{kind}/{name}"));
    }
    if removed.is_empty() {
        return Ok(Action::await_change());
    }
    changes.commit().await?;
    let message = format!(
        "removed {}: older than what is kept (spec.revisionHistoryLimit)",
        removed.join(", ")
    );
    context.event(EventType::Normal, "HistoryTrimmed", message);
    Ok(Action::await_change())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Versions 1 to `count` of hello, of which the last runs.
    fn line(count: u64, limit: u32) -> (Vec<Version>, Vec<Roll>) {
        let name = |number: u64| match number {
            1 => "hello".to_owned(),
            _ => format!("hello-{number}"),
        };
        let version = |number: u64| Version {
            name: name(number),
            revision: number,
            in_use: number == count,
            claimed_by: (number < count).then(|| name(number + 1)),
            limit,
        };
        let roll = |number: u64| Roll {
            name: name(number),
            from: name(number - 1),
            to: name(number),
            is_final: true,
            created: i64::try_from(number).unwrap(),
        };
        (
            (1..=count).map(version).collect(),
            (2..=count).map(roll).collect(),
        )
    }

    #[test]
    fn the_oldest_versions_go_and_the_first_one_stays() {
        let (versions, rolls) = line(6, 2);
        let first = surplus("hello", &versions, &rolls);
        assert_eq!(first.versions, ["hello-2", "hello-3"]);
        assert!(
            first.rolls.is_empty(),
            "they are claims, as long as there are what they claim"
        );
        // When these are gone, the rolls that nobody is claimed by any more go as well.
        let left: Vec<Version> = (versions.into_iter())
            .filter(|it| !first.versions.contains(&it.name))
            .collect();
        let then = surplus("hello", &left, &rolls);
        assert_eq!(then.versions, Vec::<String>::new());
        assert_eq!(then.rolls, ["hello-3"], "hello is claimed by hello-2");
    }

    #[test]
    fn nothing_goes_that_is_in_use_or_on_its_way() {
        let (mut versions, mut rolls) = line(6, 0);
        versions[1].in_use = true;
        rolls.push(Roll {
            name: "undo".into(),
            from: "hello-6".into(),
            to: "hello-3".into(),
            is_final: false,
            created: 9,
        });
        let found = surplus("hello", &versions, &rolls);
        assert_eq!(found.versions, ["hello-4", "hello-5"]);
        // A version that has no pods yet.
        versions.push(Version {
            name: "hello-7".into(),
            revision: 7,
            ..Version::default()
        });
        assert_eq!(surplus("hello", &versions, &rolls).versions, found.versions);
        versions
            .iter_mut()
            .for_each(|version| version.in_use = false);
        assert_eq!(surplus("hello", &versions, &rolls), Surplus::default());
    }

    #[test]
    fn going_back_and_forth_keeps_one_roll_to_each_version() {
        let (versions, mut rolls) = line(2, 10);
        for again in 0..50 {
            let (from, to) = match again % 2 {
                0 => ("hello-2", "hello"),
                _ => ("hello", "hello-2"),
            };
            rolls.push(Roll {
                name: format!("back-{again:02}"),
                from: from.into(),
                to: to.into(),
                is_final: true,
                created: 100 + again,
            });
        }
        let found = surplus("hello", &versions, &rolls);
        assert_eq!(
            found.rolls.len(),
            rolls.len() - 3,
            "and the one that claims hello"
        );
        assert!(!found.rolls.contains(&"back-49".to_owned()));
        assert!(!found.rolls.contains(&"hello-2".to_owned()));
    }
}
