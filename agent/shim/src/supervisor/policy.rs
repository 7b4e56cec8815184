//! The decisions, as pure functions: what follows an end, and what a new shim does first.

use std::time::Duration;

use crate::exits::{ExitRecord, ExitStatus};
use crate::spec::{Restart, RestartPolicy};
use crate::state::{Phase, State};

/// What follows a run that ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Start it again after this wait.
    StartAfter(Duration),
    /// Its policy lets it rest.
    Finish,
}

/// Decides what follows a run, and returns the new count of failures in a row with it.
///
/// `jitter` is in 0..1 and shortens a wait by up to a fifth, so that what failed together does
/// not come back together.
pub(super) fn after_exit(
    restart: &Restart,
    status: &ExitStatus,
    uptime: Duration,
    failures: u32,
    jitter: f64,
) -> (Next, u32) {
    let rests = match restart.policy {
        RestartPolicy::Always => false,
        RestartPolicy::OnFailure => status.success(),
        RestartPolicy::Never => true,
    };
    if rests {
        return (Next::Finish, 0);
    }
    let mut failures = if uptime >= restart.reset_after {
        0
    } else {
        failures
    };
    if matches!(status, ExitStatus::NotStarted { .. }) {
        // What could not be executed cannot be a moment later either: no restart at once.
        failures = failures.max(1);
    }
    let wait = match failures {
        0 => Duration::ZERO,
        n => {
            let doubled = 2_u32
                .checked_pow(n - 1)
                .and_then(|by| restart.initial.checked_mul(by));
            doubled.unwrap_or(restart.max).min(restart.max)
        }
    };
    let wait = wait.mul_f64(1.0 - 0.2 * jitter.clamp(0.0, 1.0));
    (Next::StartAfter(wait), failures.saturating_add(1))
}

/// What a new shim does first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// Start the launchable; `fresh` forgets counts and backoff.
    Start { fresh: bool },
    /// Start it at this time on the boot clock.
    StartAt(u64),
    /// Leave it as it is, in this phase.
    Stay(Phase),
    /// A run was cut off (or its end was recorded and no more): decide by its record.
    Ended,
}

impl Begin {
    /// The same for a launchable that is not to be started, now or later. What finished stays so.
    pub(super) fn without_a_start(self) -> Self {
        match self {
            Self::Stay(phase) => Self::Stay(phase),
            Self::Start { .. } | Self::StartAt(_) | Self::Ended => Self::Stay(Phase::Stopped),
        }
    }
}

/// Decides what a new shim does, from what the one before left. `ended` is the record of the run
/// that was under way, when there was one.
pub(super) fn begin(
    before: Option<&State>,
    ended: Option<&ExitRecord>,
    generation: u64,
    same_boot: bool,
) -> Begin {
    let Some(before) = before else {
        return Begin::Start { fresh: true };
    };
    if before.generation != generation {
        return Begin::Start { fresh: true };
    }
    match before.phase {
        Phase::Exited => Begin::Stay(Phase::Exited),
        _ if !before.wanted => Begin::Stay(Phase::Stopped),
        Phase::Stopped => Begin::Start { fresh: false },
        Phase::Backoff => match before.next_start_boot_ms {
            Some(next) if same_boot => Begin::StartAt(next),
            _ => Begin::Start { fresh: false },
        },
        Phase::Starting | Phase::Running | Phase::Stopping => match ended {
            // A restart that was asked for goes on.
            Some(ended) if !ended.requested => Begin::Ended,
            _ => Begin::Start { fresh: false },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: ExitStatus = ExitStatus::Code(1);

    fn waits(status: &ExitStatus, jitter: f64) -> Vec<u128> {
        let mut failures = 0;
        (0..12)
            .map(|_| {
                let (next, count) = after_exit(
                    &Restart::default(),
                    status,
                    Duration::ZERO,
                    failures,
                    jitter,
                );
                failures = count;
                match next {
                    Next::StartAfter(wait) => wait.as_millis(),
                    Next::Finish => panic!("it rests"),
                }
            })
            .collect()
    }

    #[test]
    fn the_first_restart_is_at_once_then_waits_double_up_to_five_minutes() {
        assert_eq!(
            waits(&FAILED, 0.0),
            [
                0, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000, 128_000, 256_000, 300_000,
                300_000
            ]
        );
        assert_eq!(waits(&FAILED, 1.0)[..3], [0, 800, 1600]);
    }

    #[test]
    fn what_could_not_be_executed_is_never_restarted_at_once() {
        let status = ExitStatus::NotStarted {
            errno: 2,
            message: String::new(),
        };
        assert_eq!(waits(&status, 0.0)[..3], [1000, 2000, 4000]);
    }

    #[test]
    fn ten_minutes_up_reset_the_backoff_and_no_count_overflows() {
        let restart = Restart::default();
        let long = Duration::from_secs(600);
        assert_eq!(
            after_exit(&restart, &FAILED, long, 8, 0.0),
            (Next::StartAfter(Duration::ZERO), 1)
        );
        let (next, failures) = after_exit(&restart, &FAILED, Duration::ZERO, u32::MAX, 0.0);
        assert_eq!(next, Next::StartAfter(Duration::from_secs(300)));
        assert_eq!(failures, u32::MAX);
    }

    #[test]
    fn policies_rest_after_the_right_ends() {
        let ends = [ExitStatus::Code(0), FAILED, ExitStatus::Unknown];
        let rests = |policy| {
            let restart = Restart {
                policy,
                ..Restart::default()
            };
            ends.clone()
                .map(|end| after_exit(&restart, &end, Duration::ZERO, 0, 0.0).0 == Next::Finish)
        };
        assert_eq!(rests(RestartPolicy::Always), [false, false, false]);
        assert_eq!(rests(RestartPolicy::OnFailure), [true, false, false]);
        assert_eq!(rests(RestartPolicy::Never), [true, true, true]);
    }

    #[test]
    fn a_new_shim_continues_where_the_last_one_was() {
        let state = |phase, wanted| State {
            phase,
            wanted,
            generation: 1,
            next_start_boot_ms: Some(77),
            ..State::default()
        };
        let begin_in =
            |phase, wanted, same_boot| begin(Some(&state(phase, wanted)), None, 1, same_boot);
        assert_eq!(begin(None, None, 1, false), Begin::Start { fresh: true });
        assert_eq!(
            begin_in(Phase::Stopped, false, true),
            Begin::Stay(Phase::Stopped)
        );
        assert_eq!(
            begin_in(Phase::Stopped, true, true),
            Begin::Start { fresh: false }
        );
        assert_eq!(
            begin_in(Phase::Exited, true, true),
            Begin::Stay(Phase::Exited)
        );
        assert_eq!(begin_in(Phase::Backoff, true, true), Begin::StartAt(77));
        assert_eq!(
            begin_in(Phase::Backoff, true, false),
            Begin::Start { fresh: false }
        );
        assert_eq!(
            begin_in(Phase::Stopping, false, true),
            Begin::Stay(Phase::Stopped)
        );
        let newer = begin(Some(&state(Phase::Exited, false)), None, 2, true);
        assert_eq!(newer, Begin::Start { fresh: true });
    }

    #[test]
    fn one_that_is_to_be_down_starts_nothing_and_leaves_what_finished() {
        let starts = [
            Begin::Start { fresh: true },
            Begin::StartAt(77),
            Begin::Ended,
            Begin::Stay(Phase::Stopped),
        ];
        for begin in starts {
            assert_eq!(begin.without_a_start(), Begin::Stay(Phase::Stopped));
        }
        let finished = Begin::Stay(Phase::Exited);
        assert_eq!(finished.clone().without_a_start(), finished);
    }
}
