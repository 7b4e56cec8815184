//! What one look at the beats shows of all nodes, made once for all that are judged by it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use platctrl_framework::cache::View;
use platctrl_framework::model::Object;
use platctrl_kinds::Node;

use super::LOST;
use super::beats::{Heard, Listened};
use super::judge::{Limits, Silence, Silences};

/// All nodes, as a look at the beats shows them.
#[derive(Debug)]
pub(super) struct Look {
    /// When the observer began to listen, and when it looked.
    of: (Duration, Duration),
    pub(super) fleet: Silences,
    /// The nodes that are given up, their zones, and since when.
    pub(super) lost: Vec<(String, String, Timestamp)>,
}

impl Look {
    pub(super) fn new(view: &View, listened: &Listened, limits: &Limits) -> Self {
        let (mut nodes, mut lost) = (BTreeMap::new(), Vec::new());
        for node in view.list::<Node>() {
            let name = &node.metadata.name;
            let zone = node.metadata.labels.get(&limits.zone).cloned();
            let zone = zone.unwrap_or_default();
            if let Some(said) = node.status.conditions.get(LOST)
                && node.status.conditions.is_true(LOST)
            {
                let since = said.last_transition_time.unwrap_or_default();
                lost.push((name.clone(), zone.clone(), since));
            }
            let heard = listened.heard.get(name);
            let since = heard.map_or(listened.began, |it| it.since);
            let (is_lost, since_then) = given_up(&node, heard);
            let is_heard = since_then || heard.is_some_and(|it| it.changed);
            let silence = Silence {
                silent_for: listened.at.saturating_sub(since),
                heard: is_heard,
                given_up: is_lost && !is_heard,
                zone,
            };
            nodes.insert(name.clone(), silence);
        }
        Self {
            of: (listened.began, listened.at),
            fleet: Silences::of(nodes, limits),
            lost,
        }
    }

    /// It is what this shows.
    pub(super) fn is_of(&self, listened: &Listened) -> bool {
        self.of == (listened.began, listened.at)
    }
}

/// Whether somebody gave the node up, and whether the last beat is another one than that which it
/// was judged by: then there was a sign of life since.
fn given_up(node: &Object<Node>, heard: Option<&Heard>) -> (bool, bool) {
    let is_lost = node.status.conditions.is_true(LOST);
    let judged_by = node.status.detail.lost_after_beat.filter(|_| is_lost);
    let both = judged_by.zip(heard.map(Heard::digest));
    (is_lost, both.is_some_and(|(then, now)| then != now))
}
