//! One stream of watches with one member.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::watcher::Live;
use crate::connection::{Connection, Trouble, Unreachable, methods};
use crate::error::{Refusal, Verdict, judge};
use crate::grpc::{CallError, Messages, frame};
use crate::link::Link;
use crate::shared::Token;
use crate::wire::{WatchAsk, WatchCancel, WatchCreate, WatchProgress, WatchRequest, WatchResponse};

/// Requests for progress that may be unanswered at once.
const UNANSWERED: usize = 8;
/// A request for progress that is not answered by then never is: the server leaves those out
/// that come while a watch catches up.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

/// A stream, and which watches it carries.
pub(crate) struct Session {
    pub(crate) connection: Arc<Connection>,
    /// What it was opened with; the server goes by it for as long as the stream lasts.
    pub(crate) token: Option<Token>,
    questions: UnboundedSender<Bytes>,
    pub(crate) answers: Messages<WatchResponse>,
    pub(crate) opened: Instant,
    next_wire: i64,
    /// The watch behind each number.
    pub(crate) watches: HashMap<i64, u64>,
    /// Numbers that are not confirmed yet, in the order they were asked for.
    pending: VecDeque<i64>,
    /// How many watches have been confirmed.
    confirmed: u64,
    /// When progress was asked for, and how many watches had been confirmed then.
    asked: VecDeque<(Instant, u64)>,
}

impl Session {
    /// Opens a stream. That it is refused shows with its first answer.
    pub(crate) async fn open(link: Arc<Link>) -> Result<Self, Unreachable> {
        let connection = link.connection().await?;
        let token = link.shared.token(&connection).await;
        let token = token.map_err(|error| {
            link.give_up(&connection);
            refused(&connection, &error)
        })?;
        let (questions, receiver) = unbounded_channel();
        let answers = connection.converse(methods::WATCH, receiver, token.as_ref());
        Ok(Self {
            connection,
            token,
            questions,
            answers,
            opened: Instant::now(),
            next_wire: 1,
            watches: HashMap::new(),
            pending: VecDeque::new(),
            confirmed: 0,
            asked: VecDeque::new(),
        })
    }

    fn send(&self, question: WatchAsk) {
        // When the stream has ended, its answers say so.
        let _ = self.questions.send(ask(question));
    }

    /// Asks for a watch and returns its number.
    pub(crate) fn create(&mut self, id: u64, key: Bytes, range_end: Bytes, start: i64) -> i64 {
        let wire = self.next_wire;
        self.next_wire += 1;
        self.watches.insert(wire, id);
        self.pending.push_back(wire);
        self.send(WatchAsk::Create(WatchCreate {
            key,
            range_end,
            start_revision: start,
            watch_id: wire,
            fragment: true,
        }));
        wire
    }

    /// Ends a watch; what still comes of it is left out.
    pub(crate) fn cancel(&mut self, wire: i64) {
        if self.watches.remove(&wire).is_some() {
            self.send(WatchAsk::Cancel(WatchCancel { watch_id: wire }));
        }
    }

    /// The number that an answer which confirms or refuses a watch is about. A refusal may come
    /// without one.
    pub(crate) fn confirm(&mut self, answer: &WatchResponse) -> Option<Live> {
        let wire = match self.pending.front() {
            Some(first) if answer.watch_id != *first && answer.watch_id > 0 => {
                self.pending.retain(|wire| *wire != answer.watch_id);
                answer.watch_id
            }
            _ => self.pending.pop_front()?,
        };
        self.confirmed += 1;
        Some(Live {
            wire,
            confirmed: self.confirmed,
            at: answer.header.as_ref().map_or(0, |header| header.revision),
        })
    }

    pub(crate) fn ask_progress(&mut self) {
        self.asked
            .retain(|(when, _)| when.elapsed() < ANSWERED_WITHIN);
        if self.asked.len() < UNANSWERED {
            self.asked.push_back((Instant::now(), self.confirmed));
        }
        self.send(WatchAsk::Progress(WatchProgress {}));
    }

    /// Takes an answer to a request for progress, and returns a judgement of which watches it is
    /// about: the server does not say which request it answers, so it may be the oldest.
    pub(crate) fn progress(&mut self, revision: i64) -> impl Fn(Live) -> bool + use<> {
        let asked = self.asked.pop_front().map(|(_, confirmed)| confirmed);
        // A revision beyond the one at which a watch was confirmed is of a later answer.
        move |live| live.at < revision || asked.is_some_and(|asked| live.confirmed <= asked)
    }
}

fn ask(question: WatchAsk) -> Bytes {
    frame(&WatchRequest {
        ask: Some(question),
    })
}

/// What a refusal of a stream, or of the login before, means.
pub(crate) fn refused(connection: &Connection, error: &CallError) -> Unreachable {
    let kind = match error {
        CallError::Status(status) if judge(status) == Verdict::Refused(Refusal::Denied) => {
            Trouble::Rights
        }
        _ => Trouble::Time,
    };
    Unreachable {
        kind,
        reason: format!("{}: {}", connection.name, connection.explain(error.clone())),
    }
}
