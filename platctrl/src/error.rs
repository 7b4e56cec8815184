//! How a command fails: what happened, the way out, and the exit code that scripts rely on.

use std::fmt;
use std::process::ExitCode;

/// Exit codes, as the contract lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// It was not done.
    Failed = 1,
    /// The command is wrong, or says too little to know what is meant.
    Usage = 2,
    /// Nobody answers, or there is nothing yet that could.
    Unreachable = 3,
    /// It is not allowed.
    Denied = 4,
    /// There is no such thing.
    NotFound = 5,
    /// It is not what the command assumed.
    Conflict = 6,
    /// It did not happen in time.
    Timeout = 7,
    /// A failsafe holds it.
    Held = 8,
}

impl Code {
    /// What helps with failures of its kind, for those that say nothing better themselves.
    const fn way_out(self) -> &'static str {
        match self {
            Self::Failed => "`platctrl doctor` looks at this machine, the server and the store",
            Self::Usage => "`--help` behind the verb shows how it is written",
            Self::Unreachable => {
                "`platctrl config show` says which server is asked, `platctrl doctor` whether it answers"
            }
            Self::Denied => {
                "`platctrl config show` says whose token was shown; whoever is admin gives another"
            }
            Self::NotFound => "`platctrl get KIND` lists what there is",
            Self::Conflict => "look at it as it is now, and try again",
            Self::Timeout => {
                "`platctrl describe` says what it waits for; trying again does no harm"
            }
            Self::Held => "`platctrl failsafe list` says what is held, and what settles it",
        }
    }
}

/// Interrupted by a person, as shells count it.
pub(crate) const INTERRUPTED: u8 = 130;

/// Why a command ended without its result.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    /// What is wrong with single fields, as the server said: field and problem.
    pub(crate) fields: Vec<(String, String)>,
    /// Nothing is to be said: the exit code is the answer, or whoever read the output has gone.
    pub(crate) silent: Option<u8>,
}

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
            fields: Vec::new(),
            silent: None,
        }
    }

    pub(crate) fn failed(message: impl fmt::Display) -> Self {
        Self::new(Code::Failed, message.to_string())
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Code::Usage, message)
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// All that is to be told is on standard output; the exit code says what it means.
    pub(crate) fn silent(code: u8) -> Self {
        Self {
            silent: Some(code),
            ..Self::failed("")
        }
    }

    /// Writing the result failed.
    pub(crate) fn output(error: &std::io::Error) -> Self {
        let gone = error.kind() == std::io::ErrorKind::BrokenPipe;
        Self {
            silent: gone.then_some(0),
            ..Self::failed(format!("cannot write the output: {error}"))
        }
    }

    /// A signal ended it. Of what changes nothing there is nothing to tell.
    pub(crate) fn interrupted(changes: bool) -> Self {
        if changes {
            crate::output::note(
                "interrupted\nhint: what was said to be done is done, the rest is not; it may be repeated",
            );
        }
        Self::silent(INTERRUPTED)
    }

    /// What to do about it.
    pub(crate) fn way_out(&self) -> &str {
        self.hint.as_deref().unwrap_or(self.code.way_out())
    }

    /// Says it on standard error; the exit code is what is left to do.
    pub(crate) fn report(&self) -> ExitCode {
        if let Some(code) = self.silent {
            return ExitCode::from(code);
        }
        crate::output::note(format_args!(
            "error: {}\nhint: {}",
            self.message,
            self.way_out()
        ));
        ExitCode::from(self.code as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
