//! What goes wrong in a run, and at which write: as data, as text that is read back, and in words.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::dice::Dice;

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// The writer is told that its write happened, and dies. When others wrote, all controllers die.
    CrashAfter,
    /// The writer dies before it is told.
    CrashBeforeAck,
    /// The write happens, and the writer is told that nobody knows.
    LoseAck,
    /// The write does not happen, and the writer is told that nobody knows.
    LoseWrite,
    /// The writer dies, and begins again on a view that does not show the write for 20 seconds.
    StaleRestart,
    /// When everything is settled the controllers begin again on the view as it was after this
    /// write, for 20 seconds.
    TravelBack,
    /// Views do not show this write and what follows before a later one has happened; then they
    /// show both at once.
    Hide,
    /// The claim's lease ends just before the write.
    LoseClaim,
    /// The claim's lease ends right after the write.
    LoseClaimAfter,
    /// Somebody touches what each of the next commits compares, before it is judged.
    Storm,
    /// Views hear nothing for two seconds, then the history they missed is gone.
    Compact,
    /// One replica does not reach the store for a while.
    Partition,
    /// One replica's wall clock jumps.
    WallClock,
    /// One replica's monotonic clock jumps on.
    Leap,
    /// The store is restored from a backup; revisions go back.
    Restore,
    /// The store is restored from a backup; revisions go on behind the newest ever given.
    RestoreAhead,
    /// A process dies; its agent starts it again.
    KillProcess,
    /// A process is not healthy for a while.
    Unhealthy,
    /// A machine is down for a while, with all its processes.
    NodeDown,
    /// A node's agent begins again; processes go on.
    AgentCrash,
}

impl FaultKind {
    pub(super) const ALL: [Self; 20] = [
        Self::CrashAfter,
        Self::CrashBeforeAck,
        Self::LoseAck,
        Self::LoseWrite,
        Self::StaleRestart,
        Self::TravelBack,
        Self::Hide,
        Self::LoseClaim,
        Self::LoseClaimAfter,
        Self::Storm,
        Self::Compact,
        Self::Partition,
        Self::WallClock,
        Self::Leap,
        Self::Restore,
        Self::RestoreAhead,
        Self::KillProcess,
        Self::Unhealthy,
        Self::NodeDown,
        Self::AgentCrash,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::CrashAfter => "crash-after",
            Self::CrashBeforeAck => "crash-before-ack",
            Self::LoseAck => "lose-ack",
            Self::LoseWrite => "lose-write",
            Self::StaleRestart => "stale-restart",
            Self::TravelBack => "travel-back",
            Self::Hide => "hide",
            Self::LoseClaim => "lose-claim",
            Self::LoseClaimAfter => "lose-claim-after",
            Self::Storm => "storm",
            Self::Compact => "compact",
            Self::Partition => "partition",
            Self::WallClock => "wall-clock",
            Self::Leap => "leap",
            Self::Restore => "restore",
            Self::RestoreAhead => "restore-ahead",
            Self::KillProcess => "kill-process",
            Self::Unhealthy => "unhealthy",
            Self::NodeDown => "node-down",
            Self::AgentCrash => "agent-crash",
        }
    }

    pub(super) fn is_restore(self) -> bool {
        matches!(self, Self::Restore | Self::RestoreAhead)
    }

    /// It happens to processes and machines, and not to the store or the controllers.
    pub(super) fn is_worlds(self) -> bool {
        matches!(
            self,
            Self::KillProcess | Self::Unhealthy | Self::NodeDown | Self::AgentCrash
        )
    }

    /// It happens before the write is judged, not after.
    pub(super) fn is_before(self) -> bool {
        matches!(self, Self::LoseWrite | Self::LoseClaim | Self::Storm)
    }

    /// It happens to the controller that writes, and to nobody else's write.
    pub(super) fn is_writers(self) -> bool {
        matches!(
            self,
            Self::LoseAck | Self::LoseWrite | Self::LoseClaim | Self::Storm
        )
    }
}

/// One thing that goes wrong at one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub(super) kind: FaultKind,
    /// Counted from 1: the write, among those to objects that happened, at which it goes wrong.
    pub(super) write: u32,
    /// `hide`: until which write. `storm`: how many commits. Restores: how many writes are lost.
    /// Elsewhere which replica, process or node, counted from 0 and around.
    pub(super) which: u32,
    /// Seconds. `hide`: from which replica, counted from 1; 0 is from all.
    pub(super) span: i32,
}

impl Fault {
    pub(super) fn new(kind: FaultKind, write: u32) -> Self {
        Self {
            kind,
            write,
            which: 0,
            span: 0,
        }
    }

    /// For the views of one replica, or of all.
    pub(super) fn hide(write: u32, until: u32, replica: Option<usize>) -> Self {
        Self {
            which: until,
            span: replica.map_or(0, |replica| replica as i32 + 1),
            ..Self::new(FaultKind::Hide, write)
        }
    }

    /// Whose views a `hide` concerns: None is everybody's.
    pub(super) fn hidden_from(&self) -> Option<usize> {
        usize::try_from(self.span).ok()?.checked_sub(1)
    }

    /// What goes wrong.
    #[must_use]
    pub fn kind(&self) -> FaultKind {
        self.kind
    }

    /// At which write, counted from 1.
    #[must_use]
    pub fn write(&self) -> u32 {
        self.write
    }

    pub(super) fn time(&self) -> Duration {
        Duration::from_secs(u64::from(self.span.unsigned_abs()))
    }

    /// One of the kinds, drawn; at one of `writes` writes or a little behind.
    pub(super) fn drawn(dice: &mut Dice, kinds: &[FaultKind], writes: u32) -> Option<Self> {
        let kind = *kinds.get(dice.below(kinds.len() as u32) as usize)?;
        let write = 1 + dice.below(writes + writes / 8 + 1);
        let (which, span) = match kind {
            FaultKind::Hide => (write + 1 + dice.below(6), 0),
            FaultKind::Storm => (1 + dice.below(8), 0),
            FaultKind::Restore | FaultKind::RestoreAhead => (1 + dice.below(5), 0),
            FaultKind::WallClock => {
                let far = [-86_400, -3_600, -5, 3_600, 86_400, 30 * 86_400];
                (dice.below(4), far[dice.below(6) as usize])
            }
            FaultKind::Leap => (dice.below(4), 1 + dice.below(60) as i32),
            FaultKind::Partition | FaultKind::NodeDown | FaultKind::Unhealthy => {
                (dice.below(64), 1 + dice.below(40) as i32)
            }
            _ => (dice.below(64), 0),
        };
        Some(Self {
            kind,
            write,
            which,
            span,
        })
    }

    /// What happens, for people. `writes` says what each write did.
    pub(super) fn in_words(&self, what: &str) -> String {
        let (n, which, span) = (self.write, self.which, self.span);
        let at = format!("write {n} ({what})");
        match self.kind {
            FaultKind::CrashAfter => format!("the controller dies right after {at}"),
            FaultKind::CrashBeforeAck => {
                format!("the controller dies after {at} has happened and before it is told so")
            }
            FaultKind::LoseAck => {
                format!("{at} happens, and its writer is told that nobody knows whether it did")
            }
            FaultKind::LoseWrite => format!(
                "{at} does not happen, and its writer is told that nobody knows whether it did"
            ),
            FaultKind::StaleRestart => format!(
                "the controller dies at {at} and begins again on a view that does not show it yet"
            ),
            FaultKind::TravelBack => format!(
                "after everything is settled, the controllers begin again on the view as it was after {at}"
            ),
            FaultKind::Hide => format!(
                "{} nothing of {at} before write {which} has happened, then both at once",
                match self.hidden_from() {
                    Some(replica) => format!("the view of replica {replica} shows"),
                    None => "views show".to_owned(),
                }
            ),
            FaultKind::LoseClaim => format!("the claim is lost just before {at}"),
            FaultKind::LoseClaimAfter => format!("the claim is lost right after {at}"),
            FaultKind::Storm => format!(
                "from {at} on, somebody else changes what a commit compares just before it, {which} times"
            ),
            FaultKind::Compact => {
                format!(
                    "views hear nothing for two seconds after {at}, and the history of that time is gone"
                )
            }
            FaultKind::Partition => {
                format!("replica {which} does not reach the store for {span} s, from {at} on")
            }
            FaultKind::WallClock => {
                format!("the wall clock of replica {which} jumps by {span} s at {at}")
            }
            FaultKind::Leap => format!(
                "the monotonic clock of replica {which} jumps on by {span} s at {at}, as when its machine slept"
            ),
            FaultKind::Restore => format!(
                "after {at} the store is restored from a backup that lacks {which} writes; revisions go back"
            ),
            FaultKind::RestoreAhead => format!(
                "after {at} the store is restored from a backup that lacks {which} writes; revisions go on"
            ),
            FaultKind::KillProcess => format!("a process dies at {at}"),
            FaultKind::Unhealthy => format!("a process is not healthy for {span} s from {at} on"),
            FaultKind::NodeDown => format!("a node is down for {span} s from {at} on"),
            FaultKind::AgentCrash => format!("a node's agent dies at {at} and begins again"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.kind.name(), self.write)?;
        if self.which != 0 || self.span != 0 {
            write!(f, ":{}", self.which)?;
        }
        if self.span != 0 {
            write!(f, ":{}", self.span)?;
        }
        Ok(())
    }
}

/// Everything that determines a run: the seed of all chance, and what goes wrong. Its text, as a
/// failure shows it, is read back by [`Simulation::replay`](super::Simulation::replay).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    pub(super) seed: u64,
    /// The store takes a drawn time for each call, instead of always the same.
    pub(super) jitter: bool,
    pub(super) faults: Vec<Fault>,
}

impl Schedule {
    /// A run in which nothing goes wrong.
    #[must_use]
    pub fn undisturbed(seed: u64) -> Self {
        Self {
            seed,
            jitter: false,
            faults: Vec::new(),
        }
    }

    /// What goes wrong.
    #[must_use]
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    pub(super) fn with(&self, faults: Vec<Fault>) -> Self {
        Self {
            faults,
            ..self.clone()
        }
    }

    pub(super) fn has(&self, is: impl Fn(FaultKind) -> bool) -> bool {
        self.faults.iter().any(|fault| is(fault.kind))
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed={}", self.seed)?;
        if self.jitter {
            f.write_str(" jitter")?;
        }
        for fault in &self.faults {
            write!(f, " {fault}")?;
        }
        Ok(())
    }
}

/// Text that is no schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{word}` is not part of a schedule: write it as a failed simulation showed it, as in `seed=7 crash-after@3`"
)]
pub struct ParseScheduleError {
    word: String,
}

impl FromStr for Schedule {
    type Err = ParseScheduleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut schedule = Self::default();
        for word in text.split_whitespace() {
            let wrong = || ParseScheduleError {
                word: word.chars().take(80).collect(),
            };
            if let Some(seed) = word.strip_prefix("seed=") {
                schedule.seed = seed.parse().map_err(|_| wrong())?;
            } else if word == "jitter" {
                schedule.jitter = true;
            } else {
                schedule.faults.push(parse_fault(word).ok_or_else(wrong)?);
            }
        }
        Ok(schedule)
    }
}

fn parse_fault(word: &str) -> Option<Fault> {
    let (name, rest) = word.split_once('@')?;
    let kind = FaultKind::ALL
        .into_iter()
        .find(|kind| kind.name() == name)?;
    let mut numbers = rest.split(':');
    let write = numbers.next()?.parse().ok()?;
    let which = numbers.next().map_or(Ok(0), str::parse).ok()?;
    let span = numbers.next().map_or(Ok(0), str::parse).ok()?;
    numbers.next().is_none().then_some(Fault {
        kind,
        write,
        which,
        span,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_read_back_from_its_text() {
        let mut dice = Dice::new(1);
        for seed in 0..200 {
            let draw = |_| Fault::drawn(&mut dice, &FaultKind::ALL, 30);
            let schedule = Schedule {
                seed,
                jitter: seed % 2 == 0,
                faults: (0..5).filter_map(draw).collect(),
            };
            assert_eq!(schedule.to_string().parse(), Ok(schedule));
        }
        for text in [
            "seed=x",
            "dance@3",
            "crash-after",
            "crash-after@x",
            "hide@1:2:3:4",
        ] {
            assert!(text.parse::<Schedule>().is_err(), "{text}");
        }
    }
}
