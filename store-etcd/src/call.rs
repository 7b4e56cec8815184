//! Calls with a deadline over a link: the next member where that can help, and never twice what
//! may have happened.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use rand::RngExt;
use tokio::time::{Instant, sleep, timeout};

use crate::connection::{Connection, Trouble};
use crate::error::{Failure, Refusal, Verdict, judge};
use crate::grpc::{CallError, Method, frame};
use crate::link::Link;
use crate::shared::Token;
use crate::wire::Headed;

/// Whether a request may be sent again after it may have happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It changes nothing, or the second time does no harm.
    Freely,
    /// It must not happen twice.
    Never,
}

/// How often in one call a token is renewed.
const LOGINS: u32 = 3;

enum Step {
    /// Another member, or later.
    Next(String),
    /// With a new token.
    Login(String),
    /// The same once more: users or roles are being changed.
    Stale(String),
    Ended(Failure),
}

impl Link {
    /// Calls a method.
    pub(crate) async fn call<Q, A>(
        &self,
        method: Method,
        request: &Q,
        repeat: Repeat,
    ) -> Result<A, Failure>
    where
        Q: Message,
        A: Message + Default + Headed,
    {
        self.call_framed(method, frame(request), repeat).await
    }

    async fn call_framed<A>(
        &self,
        method: Method,
        message: Bytes,
        repeat: Repeat,
    ) -> Result<A, Failure>
    where
        A: Message + Default + Headed,
    {
        let deadline = Instant::now() + self.shared.options.deadline;
        let mut logins = 0;
        let mut stale = 0_u32;
        let mut pause = Duration::from_millis(20);
        loop {
            let token = self.shared.held_token();
            let why = match self.attempt(method, &message, repeat, deadline).await {
                Ok(answer) => {
                    if let Some(header) = A::header(&answer) {
                        self.shared.saw(header.revision);
                    }
                    return Ok(answer);
                }
                Err(Step::Ended(failure)) => return Err(failure),
                Err(Step::Login(said)) if logins >= LOGINS => {
                    let refusal = Refusal::Denied;
                    return Err(Failure::Refused { refusal, said });
                }
                Err(Step::Login(_)) => {
                    logins += 1;
                    continue;
                }
                Err(Step::Stale(why)) => {
                    // For as long as somebody enrols nodes, this happens now and then to everybody.
                    // Only what repeats itself may need another login.
                    stale += 1;
                    if stale.is_multiple_of(4) {
                        self.shared.forget(token.as_ref());
                    }
                    why
                }
                Err(Step::Next(why)) => why,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left <= pause {
                return Err(Failure::Unavailable(why));
            }
            let jitter = rand::rng().random_range(0.5..1.0);
            sleep(pause.mul_f64(jitter)).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    async fn attempt<A: Message + Default>(
        &self,
        method: Method,
        message: &Bytes,
        repeat: Repeat,
        deadline: Instant,
    ) -> Result<A, Step> {
        let left = deadline.saturating_duration_since(Instant::now());
        let connecting = timeout(left, self.connection()).await;
        let connection = match connecting {
            Err(_) => return Err(Step::Next("no connection in time".to_owned())),
            Ok(Ok(connection)) => connection,
            Ok(Err(unreachable)) => {
                return Err(match unreachable.kind {
                    Trouble::Time => Step::Next(unreachable.reason),
                    // Certificates and ports do not repair themselves within a call.
                    Trouble::Configuration => Step::Ended(Failure::Unavailable(unreachable.reason)),
                    Trouble::Rights => Step::Ended(Failure::Refused {
                        refusal: Refusal::Denied,
                        said: unreachable.reason,
                    }),
                });
            }
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let token = match timeout(left, self.shared.token(&connection)).await {
            Err(_) => return Err(Step::Next(format!("{}: no login in time", connection.name))),
            Ok(Err(error)) => return Err(self.judged(&connection, None, error, Repeat::Freely)),
            Ok(Ok(token)) => token,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let patience = match repeat {
            Repeat::Freely => left.min(self.shared.options.attempt_timeout),
            Repeat::Never => left,
        };
        let asking = connection.ask(method, message.clone(), token.as_ref());
        match timeout(patience, asking).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.judged(&connection, token.as_ref(), error, repeat)),
            Err(_) => {
                self.give_up(&connection);
                let why = format!("{}: no answer within {patience:?}", connection.name);
                Err(match repeat {
                    Repeat::Freely => Step::Next(why),
                    Repeat::Never => Step::Ended(Failure::Unknown(why)),
                })
            }
        }
    }

    fn judged(
        &self,
        connection: &Connection,
        token: Option<&Token>,
        error: CallError,
        repeat: Repeat,
    ) -> Step {
        let said = format!("{}: {error}", connection.name);
        let unclear = |said| match repeat {
            Repeat::Freely => Step::Next(said),
            Repeat::Never => Step::Ended(Failure::Unknown(said)),
        };
        match error {
            CallError::NotSent(_) => {
                self.give_up(connection);
                Step::Next(said)
            }
            CallError::Broken(_) => {
                self.give_up(connection);
                unclear(said)
            }
            CallError::TooLong(size) => Step::Ended(Failure::TooLong(size)),
            CallError::Status(status) => match judge(&status) {
                Verdict::Login => {
                    self.shared.forget(token);
                    Step::Login(said)
                }
                Verdict::Stale => Step::Stale(said),
                Verdict::Again => {
                    self.give_up(connection);
                    Step::Next(said)
                }
                Verdict::Unclear => {
                    self.give_up(connection);
                    unclear(said)
                }
                Verdict::Refused(refusal) => Step::Ended(Failure::Refused { refusal, said }),
            },
        }
    }
}
