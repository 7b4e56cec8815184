//! The words spoken on a shim's socket: one line each, in both directions.
//!
//! The shim greets with [`GREETING`]. A request is a word and perhaps a number; its answer is
//! `ok` or `err <why>`, in the order of the requests, with state and exit records before it where
//! it asked for them. A subscriber gets further records at any time between answers. Both sides
//! ignore what they do not know: a shim ignores further words of a request, a client ignores
//! lines of an unknown kind.

use std::time::Duration;

use crate::codec;
use crate::exits::ExitRecord;
use crate::state::State;

/// The first line a shim sends, without its newline.
pub const GREETING: &str = "platctrl-shim 1";

/// What can be asked of a shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// Send the state.
    Status,
    /// Send the exit records numbered above this one, the state, and from then on every new one.
    Subscribe {
        /// The last exit record already seen; 0 for none.
        after_exit: u64,
    },
    /// Want it up: starts a stopped launchable. One that runs, waits for its next start, or
    /// finished by its restart policy is left alone, so it can be asked again and again.
    Start,
    /// Want it down: SIGTERM to its process group, then, after the timeout (default: the spec's),
    /// SIGKILL to everything it started. A shorter timeout than one running shortens that one.
    Stop {
        /// How long it may take.
        timeout: Option<Duration>,
    },
    /// Stop it if it runs, then start it at once, with its backoff forgotten; also when finished.
    Restart {
        /// How long the stop may take.
        timeout: Option<Duration>,
    },
    /// Send a signal to the launchable's process alone.
    Signal(i32),
    /// Read the spec file again; it is used from the next start on.
    Respec,
    /// End the shim. Refused unless the launchable is at rest.
    Quit,
}

impl Request {
    /// The request's line, with its newline.
    pub fn encode(self) -> String {
        let timed = |word, timeout: Option<Duration>| match timeout {
            Some(timeout) => format!("{word} {}\n", timeout.as_millis()),
            None => format!("{word}\n"),
        };
        match self {
            Self::Status => "status\n".to_owned(),
            Self::Subscribe { after_exit } => format!("subscribe {after_exit}\n"),
            Self::Start => "start\n".to_owned(),
            Self::Stop { timeout } => timed("stop", timeout),
            Self::Restart { timeout } => timed("restart", timeout),
            Self::Signal(signal) => format!("signal {signal}\n"),
            Self::Respec => "respec\n".to_owned(),
            Self::Quit => "quit\n".to_owned(),
        }
    }

    /// Reads a request's line without its newline.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(line: &[u8]) -> Result<Self, &'static str> {
        fn number<T: std::str::FromStr>(word: &str) -> Result<T, &'static str> {
            word.parse()
                .map_err(|_| "the request's number is not one, or too large")
        }
        let line = std::str::from_utf8(line).map_err(|_| "the request is not text")?;
        let mut words = line.split_ascii_whitespace();
        let request = words.next().ok_or("the request is empty")?;
        let argument = words.next();
        let timeout = || {
            argument
                .map(|word| number(word).map(Duration::from_millis))
                .transpose()
        };
        Ok(match request {
            "status" => Self::Status,
            "subscribe" => Self::Subscribe {
                after_exit: number(argument.unwrap_or("0"))?,
            },
            "start" => Self::Start,
            "stop" => Self::Stop {
                timeout: timeout()?,
            },
            "restart" => Self::Restart {
                timeout: timeout()?,
            },
            "signal" => {
                let signal = number(argument.ok_or("signal needs a number")?)?;
                if !(1..=64).contains(&signal) {
                    return Err("there is no such signal");
                }
                Self::Signal(signal)
            }
            "respec" => Self::Respec,
            "quit" => Self::Quit,
            _ => return Err("this shim does not know that request"),
        })
    }
}

/// What a shim says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// The request is accepted (for `stop` and `restart`: it has begun).
    Ok,
    /// The request is refused.
    Refused(String),
    /// The state, now.
    State(State),
    /// A run that ended.
    Exit(ExitRecord),
}

impl Reply {
    /// The reply's line, with its newline.
    pub fn encode(&self) -> String {
        match self {
            Self::Ok => "ok\n".to_owned(),
            Self::Refused(why) => {
                let mut line = "err ".to_owned();
                codec::escape(&mut line, why.as_bytes());
                line.push('\n');
                line
            }
            Self::State(state) => state.encode(),
            Self::Exit(exit) => exit.encode(),
        }
    }

    /// Reads a reply's line without its newline; `None` for a kind this client does not know.
    pub fn decode(line: &[u8]) -> Option<Self> {
        if line == b"ok" {
            return Some(Self::Ok);
        }
        if let Some(why) = line.strip_prefix(b"err ") {
            let why = codec::unescape(why).unwrap_or_default();
            return Some(Self::Refused(String::from_utf8_lossy(&why).into_owned()));
        }
        State::decode(line)
            .map(Self::State)
            .or_else(|| ExitRecord::decode(line).map(Self::Exit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_read_back_and_more_words_are_ignored() {
        let timeout = Some(Duration::from_millis(1500));
        for request in [
            Request::Status,
            Request::Subscribe { after_exit: 7 },
            Request::Start,
            Request::Stop { timeout },
            Request::Stop { timeout: None },
            Request::Restart { timeout },
            Request::Signal(15),
            Request::Respec,
            Request::Quit,
        ] {
            let line = request.encode();
            assert_eq!(Request::decode(line.trim_end().as_bytes()), Ok(request));
        }
        let newer = Request::decode(b"stop 1500 gently");
        assert_eq!(newer, Ok(Request::Stop { timeout }));
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            &b""[..],
            b"\xff",
            b"dance",
            b"signal",
            b"signal 0",
            b"signal 65",
            b"stop -1",
        ] {
            assert!(Request::decode(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn a_refusal_is_one_line() {
        let reply = Reply::Refused("no:\nit\\ runs".into());
        let line = reply.encode();
        assert_eq!(line.matches('\n').count(), 1);
        assert_eq!(Reply::decode(line.trim_end().as_bytes()), Some(reply));
        assert_eq!(Reply::decode(b"weather sunny"), None);
    }
}
