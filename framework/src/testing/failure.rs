//! What a simulation found: the problem, what it took, and how it came about.

use std::error::Error;
use std::fmt;

use super::fault::Schedule;

/// What is wrong with a run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// An invariant did not hold at some moment.
    Broken {
        /// Its name.
        invariant: String,
        /// What it said.
        detail: String,
    },
    /// The run never settled.
    Restless {
        /// What was still going on.
        detail: String,
    },
    /// After everything was settled, the controllers began again and wrote.
    Moving {
        /// What they wrote.
        writes: Vec<String>,
    },
    /// The end is not that of the undisturbed run.
    OtherEnd {
        /// What is missing (`-`) and what is there instead (`+`).
        difference: Vec<String>,
    },
    /// What was reached by way of something else is not what comes from scratch.
    HistoryShows {
        /// What is missing (`-`) and what is there instead (`+`).
        difference: Vec<String>,
    },
    /// Controllers made or ended more objects than in the undisturbed run.
    WorkRepeated {
        /// The kind's plural.
        kind: String,
        /// How many were created and ended.
        done: (u64, u64),
        /// The same when undisturbed.
        undisturbed: (u64, u64),
    },
    /// Something was left behind that nobody owns.
    Orphan {
        /// What, and of whom.
        what: String,
    },
    /// Controllers panicked.
    Panicked {
        /// How often.
        times: u64,
    },
    /// A runtime ended by itself.
    Ended {
        /// How.
        how: String,
    },
    /// The scenario failed.
    Scenario {
        /// How.
        error: String,
    },
    /// Two runs from one seed were different: something follows chance that was not handed in.
    Chance {
        /// The first line that differs, in both.
        difference: Vec<String>,
    },
}

impl Problem {
    pub(super) fn restless(detail: impl Into<String>) -> Self {
        Self::Restless {
            detail: detail.into(),
        }
    }

    /// The same sort of problem, whatever its details.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Broken { invariant: one, .. },
                Self::Broken {
                    invariant: other, ..
                },
            ) => one == other,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

fn listed(f: &mut fmt::Formatter<'_>, head: &str, lines: &[String]) -> fmt::Result {
    f.write_str(head)?;
    lines.iter().try_for_each(|line| write!(f, "\n    {line}"))
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken { invariant, detail } if detail.is_empty() => {
                write!(f, "the invariant `{invariant}` does not hold")
            }
            Self::Broken { invariant, detail } => {
                write!(f, "the invariant `{invariant}` does not hold: {detail}")
            }
            Self::Restless { detail } => write!(f, "it never settles: {detail}"),
            Self::Moving { writes } => listed(
                f,
                "it does not stay: when everything was settled and the controllers began again, they wrote",
                writes,
            ),
            Self::OtherEnd { difference } => listed(
                f,
                "the end is not that of the undisturbed run (- undisturbed, + here)",
                difference,
            ),
            Self::HistoryShows { difference } => listed(
                f,
                "what was reached step by step is not what the last step alone gives (- alone, + here)",
                difference,
            ),
            Self::WorkRepeated {
                kind,
                done,
                undisturbed,
            } => write!(
                f,
                "work is done again: {} {kind} were created and {} ended, undisturbed {} and {}",
                done.0, done.1, undisturbed.0, undisturbed.1
            ),
            Self::Orphan { what } => write!(f, "something is left behind: {what}"),
            Self::Panicked { times } => write!(f, "the controllers panicked {times} times"),
            Self::Ended { how } => write!(f, "a runtime ended by itself: {how}"),
            Self::Scenario { error } => write!(f, "the scenario failed: {error}"),
            Self::Chance { difference } => listed(
                f,
                "two runs from one seed differ: something follows chance, the machine's clock, or the order of a hash map (`tokio::select!` without `biased`, `HashMap` iteration, `SystemTime`)",
                difference,
            ),
        }
    }
}

/// A run in which something was wrong. Its `Debug` is its `Display`, so that `unwrap` tells all.
#[derive(Clone, PartialEq)]
pub struct Failure {
    pub(super) problem: Problem,
    pub(super) schedule: Schedule,
    pub(super) words: Vec<String>,
    pub(super) timeline: Vec<String>,
    pub(super) runs: usize,
    pub(super) built_by: String,
}

impl Failure {
    /// What is wrong.
    #[must_use]
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// What determines the run: give it to [`Simulation::replay`](super::Simulation::replay).
    #[must_use]
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// What went wrong in the run, in words; empty when nothing did.
    #[must_use]
    pub fn in_words(&self) -> &[String] {
        &self.words
    }

    /// What happened, a line for each thing.
    #[must_use]
    pub fn timeline(&self) -> &[String] {
        &self.timeline
    }

    /// A test that shows the problem again, to be pasted beside the function that builds the
    /// simulation: see [`Simulation::built_by`](super::Simulation::built_by).
    #[must_use]
    pub fn test(&self) -> String {
        let name: String = self
            .schedule
            .to_string()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .collect();
        format!(
            "#[test]\nfn simulation_{name}() {{\n    {}.replay(\"{}\").unwrap();\n}}\n",
            self.built_by, self.schedule
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.problem)?;
        if self.words.is_empty() {
            writeln!(f, "\nnothing was made to go wrong")?;
        } else {
            writeln!(
                f,
                "\nwhat was made to go wrong (the least of {} runs):",
                self.runs
            )?;
            for words in &self.words {
                writeln!(f, "    {words}")?;
            }
        }
        writeln!(f, "\nwhat happened:")?;
        for line in &self.timeline {
            writeln!(f, "    {line}")?;
        }
        write!(
            f,
            "\nschedule: {}\nto see it again:\n\n{}",
            self.schedule,
            self.test()
        )
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{self}")
    }
}

impl Error for Failure {}
