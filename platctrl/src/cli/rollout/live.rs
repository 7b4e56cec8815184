//! A roll while it goes on: drawn in place on a terminal, a line for each change elsewhere.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use serde_json::Value;
use tokio::time::Instant;

use super::line::Line;
use super::view::{self, Moved, Stage};
use super::{line_of, outcome, text, title};
use crate::api::{Api, Catalog, Collection, Query};
use crate::cli::changes::{Change, changes};
use crate::cli::{failsafe, find};
use crate::error::{Code, Failure, Result};
use crate::output::screen::Screen;
use crate::output::{self, Table};

/// Drawing more often shows nobody more.
const DRAW: Duration = Duration::from_millis(100);

/// Shows a roll until nothing more happens to it by itself.
pub(super) async fn follow(
    api: &Api,
    catalog: &Catalog,
    line: &Line,
    name: &str,
    timeout: Duration,
) -> Result<()> {
    let deadline = Instant::now() + timeout;
    let work = Live::new(name).follow(api, catalog, line);
    match tokio::time::timeout_at(deadline, work).await {
        Ok(ended) => ended,
        Err(_) => Err(match failsafe::held(api).await {
            Some(held) => held,
            None => late(name, timeout),
        }),
    }
}

fn late(name: &str, timeout: Duration) -> Failure {
    let message = format!(
        "rollingupdate/{} is not done after {} s",
        output::plain(name),
        timeout.as_secs()
    );
    Failure::new(Code::Timeout, message).hint(format!(
        "it goes on; `platctrl describe ru/{}` says what it waits for",
        output::plain(name)
    ))
}

/// What is known of a roll.
struct Live {
    name: String,
    roll: Option<Value>,
    /// Its pods as they are, by their uid.
    pods: BTreeMap<String, Value>,
    seen: Seen,
    screen: Option<Screen>,
    /// The line of the roll that was printed last.
    last: String,
    /// What was printed of each pod.
    told: BTreeMap<String, Moved>,
}

/// What was heard of so far: nothing is told by halves.
#[derive(Default)]
struct Seen {
    roll: bool,
    pods: bool,
}

/// One of the two collections that are looked at.
enum News {
    Roll(Result<Change>),
    Pods(Result<Change>),
}

impl Live {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            roll: None,
            pods: BTreeMap::new(),
            seen: Seen::default(),
            screen: Screen::new(),
            last: String::new(),
            told: BTreeMap::new(),
        }
    }

    async fn follow(mut self, api: &Api, catalog: &Catalog, line: &Line) -> Result<()> {
        let only = Query::default().with("fieldSelector", &format!("metadata.name={}", self.name));
        let rolls = changes(api, line.rolls.clone(), only).map(News::Roll);
        let pods = Collection::new(&catalog.named("pods")?, Some(&line.namespace));
        let changed = changes(api, pods.clone(), Query::default()).map(News::Pods);
        let mut news = stream::select(rolls, changed);
        let mut due = None;
        loop {
            let heard = async {
                match due {
                    Some(at) => tokio::time::timeout_at(at, news.next()).await.ok(),
                    None => Some(news.next().await),
                }
            };
            match heard.await {
                None => {
                    due = None;
                    self.draw()?;
                    continue;
                }
                // Both go on without an end.
                Some(None) => {
                    return Err(Failure::new(
                        Code::Unreachable,
                        "the server ended the watch",
                    ));
                }
                Some(Some(News::Roll(change))) => self.take_roll(change?)?,
                Some(Some(News::Pods(change))) => self.take_pods(change?),
            }
            if !self.seen.roll || !self.seen.pods {
                continue;
            }
            let ended = self.roll.as_ref().and_then(outcome);
            if ended.is_some() {
                // Each watch is as late as it is: the last view is of pods as they are by then.
                let (items, _) = find::list(api, &pods, &Query::default()).await?;
                self.take_pods(Change::All(items));
            }
            match &self.screen {
                None => self.tell()?,
                Some(_) if ended.is_some() => self.draw()?,
                Some(_) => due = due.or_else(|| Some(Instant::now() + DRAW)),
            }
            if let Some(ended) = ended {
                return ended;
            }
        }
    }

    fn take_roll(&mut self, change: Change) -> Result<()> {
        let roll = match change {
            Change::All(mut items) => items.pop(),
            Change::Is(roll) => Some(roll),
            Change::Gone(_) => None,
        };
        self.seen.roll = true;
        match roll {
            Some(roll) => self.roll = Some(roll),
            None => {
                let message = format!("rollingupdate/{} was deleted", output::plain(&self.name));
                return Err(Failure::new(Code::NotFound, message).hint(
                    "every pod stays where it is; `platctrl rollout history` lists the versions",
                ));
            }
        }
        Ok(())
    }

    fn take_pods(&mut self, change: Change) {
        let uid = |pod: &Value| text(pod, "/metadata/uid").to_owned();
        match change {
            Change::All(items) => {
                self.pods = items.into_iter().map(|pod| (uid(&pod), pod)).collect();
            }
            Change::Is(pod) => {
                self.pods.insert(uid(&pod), pod);
            }
            Change::Gone(pod) => {
                self.pods.remove(&uid(&pod));
            }
        }
        self.seen.pods = true;
    }

    /// The pods of the roll, by their uid.
    fn moved(&self, roll: &Value) -> BTreeMap<String, Moved> {
        let pods = self.pods.iter();
        let pods = pods.filter_map(|(uid, pod)| Some((uid.clone(), view::moved(roll, pod)?)));
        pods.collect()
    }

    /// Prints what changed since the last time, a line each.
    fn tell(&mut self) -> Result<()> {
        let Some(roll) = &self.roll else {
            return Ok(());
        };
        let (line, now) = (line_of(roll), self.moved(roll));
        let is_first = self.last.is_empty();
        let mut text = String::new();
        for (uid, pod) in &now {
            let before = self.told.get(uid);
            // What is as it was before the roll is no change.
            let is_news = match before {
                Some(before) => before != pod,
                None => !(is_first && matches!(pod.stage, Stage::Old | Stage::Healthy)),
            };
            if is_news {
                text.push_str(&told(pod));
            }
        }
        for gone in self.told.iter().filter(|(uid, _)| !now.contains_key(*uid)) {
            text.push_str(&format!(
                "node/{}: pod/{} is gone\n",
                gone.1.node, gone.1.name
            ));
        }
        if line != self.last {
            text.push_str(&line);
            text.push('\n');
        }
        (self.last, self.told) = (line, now);
        if text.is_empty() {
            return Ok(());
        }
        output::print(text)
    }

    /// Draws everything anew.
    fn draw(&mut self) -> Result<()> {
        let (Some(roll), Some(screen)) = (&self.roll, &self.screen) else {
            return Ok(());
        };
        let pods: Vec<Moved> = self.moved(roll).into_values().collect();
        let lines = lines(roll, &pods, screen.rows());
        match &mut self.screen {
            Some(screen) => screen.draw(&lines),
            None => Ok(()),
        }
    }
}

/// `node/web1: pod/a-1 installing: Fetching: 12 of 40 MiB`
fn told(pod: &Moved) -> String {
    let why = match pod.why.is_empty() {
        true => String::new(),
        false => format!(": {}", pod.why),
    };
    format!(
        "node/{}: pod/{} {}{why}\n",
        pod.node,
        pod.name,
        pod.stage.as_str()
    )
}

/// All that fits: what the roll does and waits for, then the nodes.
fn lines(roll: &Value, pods: &[Moved], rows: usize) -> Vec<String> {
    let (wanted, left) = view::sides(roll);
    let next = match text(roll, "/status/next") {
        "" => "not begun yet",
        next => next,
    };
    let mut lines = vec![
        output::plain(&format!("{}: {left} to {wanted}", title(roll))),
        view::bar(roll),
        output::plain(next).replace(['\n', '\t'], " "),
    ];
    let nodes = view::nodes(pods);
    if nodes.is_empty() {
        return lines;
    }
    lines.push(String::new());
    // The heading, and a line for those that do not fit.
    let room = rows.saturating_sub(lines.len() + 1);
    let shown = match nodes.len() > room {
        true => room.saturating_sub(1),
        false => nodes.len(),
    };
    let heading = ["NODE", "STATE", "WHY"].map(str::to_owned).to_vec();
    let table: Vec<_> = std::iter::once(heading)
        .chain(nodes[..shown].iter().cloned())
        .collect();
    let table = Table::default().render(&table);
    lines.extend(table.lines().map(str::to_owned));
    if shown < nodes.len() {
        let hidden = nodes.len() - shown;
        let all = view::counts(&pods.iter().map(|pod| pod.stage));
        lines.push(format!("and {hidden} nodes more; of all pods {all}"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_does_not_fit_is_counted() {
        let roll = json!({
            "metadata": {"name": "a-2"}, "spec": {"from": "a", "to": "a-2", "replicas": 9},
            "status": {"next": "waits\nfor health"},
        });
        let pod = |at: usize| Moved {
            node: format!("n{at}"),
            name: format!("p{at}"),
            stage: if at == 7 { Stage::Failed } else { Stage::Old },
            why: String::new(),
        };
        let pods: Vec<_> = (0..9).map(pod).collect();
        let all = lines(&roll, &pods, 40);
        assert_eq!(all.len(), 4 + 1 + 9, "{all:#?}");
        assert_eq!(all[2], "waits for health");
        let few = lines(&roll, &pods, 8);
        assert_eq!(few.len(), 8, "{few:#?}");
        assert!(few[5].starts_with("n7"), "{few:#?}");
        assert_eq!(few[7], "and 7 nodes more; of all pods 1 failed, 8 old");
        // However small a terminal is.
        assert!(lines(&roll, &pods, 0).len() >= 3);
    }

    #[test]
    fn changes_are_told_one_a_line() {
        let pod = Moved {
            node: "n".into(),
            name: "p".into(),
            stage: Stage::Failed,
            why: "Crashed".into(),
        };
        assert_eq!(told(&pod), "node/n: pod/p failed: Crashed\n");
    }
}
