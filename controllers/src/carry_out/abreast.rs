//! Very many new pods: commits that are under way together.
//!
//! Commits that follow one another wait for each other's answers, though they are about different
//! nodes. Here the first of them says that more are coming, several of these are under way at any
//! time, and the last one says that they are over and how many pods there are. That each is made
//! at most once, and none when the next run decides, is [`Abreast`]'s doing.

use std::collections::HashSet;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use platctrl_framework::controller::{Abreast, ReconcileError};
use platctrl_framework::model::{EventType, Resource};

use super::{
    Carried, Done, Draft, Outcome, ROUNDS, Step, Unfinished, Work, conflict, moved,
    require_same_intent, take_some,
};
use crate::placement::Guard;

/// Commits under way at once.
const AT_ONCE: usize = 8;
/// Commits from which on it is worth it: one before these, and one behind them.
const FROM: usize = 4;
/// How long a plan is carried out. Longer than where commits follow one another: all that is
/// decided is that there are more pods, and a run that goes on takes in all of those first.
const LASTS: Duration = Duration::from_secs(5);

/// New pods whose commit was answered.
struct Answer {
    steps: Vec<Step>,
    outcome: Result<Outcome, Unfinished>,
}

impl<K: Resource> Work<'_, K> {
    /// All of these are new pods, in many commits, and nodes can be compared.
    pub(super) fn goes_abreast(&self, steps: &[Step], most: usize) -> bool {
        self.abreast
            && self.context.capabilities().group_compare
            && steps.len() > (FROM - 1) * most
            && steps.iter().all(Step::is_new)
    }

    pub(super) async fn carry_out_abreast(
        &self,
        steps: &[Step],
        room: (usize, usize),
        mut guard: Guard,
    ) -> Result<Carried, Unfinished> {
        let context = self.context;
        let clock = context.environment();
        let until = clock.monotonic() + LASTS;
        let mut rest = steps;
        let mut done = Done::default();
        let mut lost = false;
        // What is not of the nodes that changed since they were seen goes again.
        let mut again: Vec<Vec<Step>> = Vec::new();
        let mut next = take_some(&mut rest, room, &guard);
        let abreast = loop {
            match self.begin(&next, &guard, &mut done).await? {
                Ok(abreast) => break abreast,
                Err(nodes) => {
                    lost = true;
                    next.retain(|step| !nodes.iter().any(|node| node == step.touches()));
                }
            }
            if next.is_empty() {
                next = take_some(&mut rest, room, &guard);
            }
            if next.is_empty() {
                return Err(conflict(context).into());
            }
        };
        guard.put(nodes_of(&next), abreast.revision());
        let mut commits = 1;
        let mut busy: HashSet<String> = HashSet::new();
        let mut failed = None;
        let mut under_way = FuturesUnordered::new();
        loop {
            while failed.is_none() && under_way.len() < AT_ONCE {
                let next = match again.pop() {
                    Some(steps) => steps,
                    None if commits >= ROUNDS && clock.monotonic() >= until => break,
                    None => {
                        let mut left = rest;
                        let next = take_some(&mut left, room, &guard);
                        // A node's pods are compared with what the last commit made of them.
                        if next.is_empty() || next.iter().any(|it| busy.contains(it.touches())) {
                            break;
                        }
                        rest = left;
                        busy.extend(nodes_of(&next).map(str::to_owned));
                        next
                    }
                };
                commits += 1;
                match self.draft(&next, &guard) {
                    Ok(draft) => under_way.push(self.send(&abreast, draft, next)),
                    Err(error) => failed = Some(error),
                }
            }
            let Some(Answer { mut steps, outcome }) = under_way.next().await else {
                break;
            };
            let mut free = |steps: &[Step]| {
                for node in nodes_of(steps) {
                    busy.remove(node);
                }
            };
            match outcome {
                Ok(Outcome::Done(revision)) => {
                    free(&steps);
                    steps.iter().for_each(|step| done.count(step));
                    guard.put(nodes_of(&steps), revision);
                }
                Ok(Outcome::Moved(nodes)) => {
                    lost = true;
                    free(&steps);
                    steps.retain(|step| !nodes.iter().any(|node| node == step.touches()));
                    if !steps.is_empty() {
                        busy.extend(nodes_of(&steps).map(str::to_owned));
                        again.push(steps);
                    }
                }
                // Whatever it is, the next run decides anew.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        drop(under_way);
        if let Some(failed) = failed {
            return Err(failed);
        }
        self.end(done, commits).await?;
        match lost {
            true => Err(conflict(context).into()),
            false => Ok(Carried::default()),
        }
    }

    /// The first commit; the nodes that were changed since they were seen if it is refused for
    /// them.
    async fn begin(
        &self,
        steps: &[Step],
        guard: &Guard,
        done: &mut Done,
    ) -> Result<Result<Abreast<'_>, Vec<String>>, Unfinished> {
        let Draft {
            mut changes,
            notes,
            made,
        } = self.draft(steps, guard)?;
        let mut after = *done;
        steps.iter().for_each(|step| after.count(step));
        (changes.report::<K>(&(self.status)(after))).map_err(ReconcileError::from)?;
        let abreast = match changes.commit_abreast().await {
            Ok(abreast) => abreast,
            Err(error) => {
                return match moved(error)? {
                    Outcome::Moved(nodes) => Ok(Err(nodes)),
                    Outcome::Done(_) => Ok(Err(Vec::new())),
                };
            }
        };
        *done = after;
        self.tell_made(made, abreast.revision());
        for (reason, message) in notes {
            let message = format!("{message}: {}", self.counts);
            self.context.event(EventType::Normal, reason, message);
        }
        Ok(Ok(abreast))
    }

    async fn send(&self, abreast: &Abreast<'_>, draft: Draft<'_>, steps: Vec<Step>) -> Answer {
        let Draft {
            mut changes, made, ..
        } = draft;
        // The view is not as new as the last commit: whoever changed their mind is heard.
        require_same_intent(self.context, &mut changes);
        let outcome = match abreast.commit(changes).await {
            Ok(revision) => {
                self.tell_made(made, revision);
                Ok(Outcome::Done(revision))
            }
            Err(error) => moved(error),
        };
        Answer { steps, outcome }
    }

    /// Says that they are over, and what came of all of them.
    async fn end(&self, done: Done, commits: usize) -> Result<(), Unfinished> {
        let context = self.context;
        let mut changes = context.changes();
        require_same_intent(context, &mut changes);
        let own = context.joined();
        let status = (self.status)(done);
        (changes.report::<K>(&status)).map_err(ReconcileError::from)?;
        // Also where the status is the same.
        (changes.batch().bump(&own)).map_err(ReconcileError::from)?;
        if let Err(error) = changes.commit().await {
            moved(error)?;
            return Err(conflict(context).into());
        }
        let message = format!(
            "{} pods in {commits} commits so far: {}",
            done.all(),
            self.counts
        );
        context.event(EventType::Normal, "Continued", message);
        Ok(())
    }
}

/// The nodes that steps are about, those that follow one another once.
fn nodes_of(steps: &[Step]) -> impl Iterator<Item = &str> {
    let chunks = steps.chunk_by(|one, other| one.touches() == other.touches());
    chunks.filter_map(|some| some.first().map(Step::touches))
}
