//! From single answers to a verdict, and when to ask next: decisions without I/O.

use std::collections::VecDeque;
use std::time::Duration;

use platctrl_kinds::Health;

use super::Verdict;

/// The first pause after a start. Each further one is half as long again.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// A pod that became unhealthy more often than this within [`FLAPPING`] flaps: each further time
/// doubles the successes that it needs, up to [`MOST_DAMPED`] times as many.
const CALM: usize = 2;
/// How long a change is remembered against a pod.
const FLAPPING: Duration = Duration::from_secs(600);
const MOST_DAMPED: u32 = 8;
const REMEMBERED: usize = 16;
/// What a pod is unhealthy of is told again when it is something else, but not more often.
const REASON_KEPT: Duration = Duration::from_secs(60);
/// The longest pause while a start is awaited.
const LONGEST_START_PAUSE: Duration = Duration::from_millis(500);

/// Counts answers.
#[derive(Debug)]
pub(super) struct Counter {
    interval: Duration,
    grace: Duration,
    failure_threshold: u32,
    success_threshold: u32,
    verdict: Verdict,
    /// Answers of the same kind in a row.
    successes: u32,
    failures: u32,
    /// The next pause of a start. None once it was over and the interval took its place.
    haste: Option<Duration>,
    /// When it became unhealthy, after having been healthy.
    falls: VecDeque<Duration>,
    /// When the reason that is told was first seen.
    reason_at: Duration,
}

impl Counter {
    /// A counter that begins with a verdict. Without `grace` failures count from the start.
    pub(super) fn new(check: &Health, verdict: Verdict, grace: bool) -> Self {
        Self {
            interval: check.interval.duration(),
            grace: if grace {
                check.grace.duration()
            } else {
                Duration::ZERO
            },
            failure_threshold: check.failure_threshold.max(1),
            success_threshold: check.success_threshold.max(1),
            verdict,
            successes: 0,
            failures: 0,
            haste: Some(FIRST_PAUSE),
            falls: VecDeque::new(),
            reason_at: Duration::ZERO,
        }
    }

    /// How many successes in a row it takes now.
    fn needed(&mut self, age: Duration) -> u32 {
        while let Some(at) = self.falls.front()
            && age.saturating_sub(*at) > FLAPPING
        {
            self.falls.pop_front();
        }
        let surplus = u32::try_from(self.falls.len().saturating_sub(CALM)).unwrap_or(u32::MAX);
        let factor = 2_u32.saturating_pow(surplus).min(MOST_DAMPED);
        self.success_threshold.saturating_mul(factor)
    }

    /// Takes in an answer, `age` after the start. None as long as nothing can be said: what an
    /// earlier agent said is then still all there is.
    pub(super) fn count(&mut self, age: Duration, outcome: Result<(), String>) -> Option<&Verdict> {
        match outcome {
            Ok(()) => {
                self.failures = 0;
                self.successes = self.successes.saturating_add(1);
                let healthy = self.verdict == Verdict::Healthy;
                if !healthy && self.successes < self.needed(age) {
                    return None;
                }
                self.verdict = Verdict::Healthy;
            }
            Err(reason) => {
                self.successes = 0;
                // While it starts it may fail; once it was healthy it has started.
                if self.verdict == Verdict::Unknown && age < self.grace {
                    return None;
                }
                self.failures = self.failures.saturating_add(1);
                let unhealthy = matches!(self.verdict, Verdict::Unhealthy { .. });
                if !unhealthy && self.failures < self.failure_threshold {
                    return None;
                }
                if self.verdict == Verdict::Healthy {
                    // More are of no consequence.
                    if self.falls.len() == REMEMBERED {
                        self.falls.pop_front();
                    }
                    self.falls.push_back(age);
                }
                if !unhealthy || age.saturating_sub(self.reason_at) >= REASON_KEPT {
                    self.reason_at = age;
                    self.verdict = Verdict::Unhealthy { reason };
                }
            }
        }
        Some(&self.verdict)
    }

    /// How long to wait before asking again. `random` spreads pods that started together.
    pub(super) fn pause(&mut self, age: Duration, random: u64) -> Duration {
        let share = (random >> 11) as f64 / (1u64 << 53) as f64;
        // One success ends the haste: further ones are to be an interval apart.
        let starting = self.verdict == Verdict::Unknown && self.successes == 0;
        match self.haste {
            Some(pause) if starting && age < self.grace => {
                let pause = pause.min(LONGEST_START_PAUSE).min(self.interval);
                self.haste = Some(pause.mul_f64(1.5));
                pause.mul_f64(0.9 + share * 0.2)
            }
            // The first regular one comes anywhere in the interval, not too soon.
            Some(_) => {
                self.haste = None;
                self.interval.mul_f64(0.5 + share * 0.5)
            }
            None => self.interval.mul_f64(0.95 + share * 0.1),
        }
    }
}

#[cfg(test)]
mod tests {
    use platctrl_kinds::{Span, TcpCheck};

    use super::*;

    fn check(failures: u32, successes: u32) -> Health {
        Health {
            http: None,
            tcp: Some(TcpCheck {
                port: "http".into(),
            }),
            exec: None,
            interval: Span::from_secs(10),
            timeout: Span::from_secs(1),
            failure_threshold: failures,
            success_threshold: successes,
            grace: Span::from_secs(10),
        }
    }

    fn failure() -> Result<(), String> {
        Err("no".into())
    }

    const EARLY: Duration = Duration::from_secs(1);
    const LATE: Duration = Duration::from_secs(11);
    const HEALTHY: Option<&Verdict> = Some(&Verdict::Healthy);

    fn unhealthy() -> Verdict {
        Verdict::Unhealthy {
            reason: "no".into(),
        }
    }

    #[test]
    fn failures_count_only_after_the_grace_and_only_in_a_row() {
        let mut counter = Counter::new(&check(2, 1), Verdict::Unknown, true);
        for _ in 0..20 {
            assert_eq!(counter.count(EARLY, failure()), None);
        }
        assert_eq!(
            counter.count(LATE, failure()),
            None,
            "the first that counts"
        );
        assert_eq!(counter.count(LATE, failure()), Some(&unhealthy()));
        assert_eq!(counter.count(LATE, Ok(())), HEALTHY);
        assert_eq!(counter.count(LATE, failure()), None);
        assert_eq!(counter.count(LATE, Ok(())), HEALTHY);
        assert_eq!(counter.count(LATE, failure()), None);
        assert_eq!(counter.count(LATE, failure()), Some(&unhealthy()));
    }

    #[test]
    fn one_that_was_healthy_has_no_grace_left() {
        let mut counter = Counter::new(&check(1, 1), Verdict::Unknown, true);
        assert_eq!(counter.count(EARLY, Ok(())), HEALTHY);
        assert_eq!(counter.count(EARLY, failure()), Some(&unhealthy()));
    }

    #[test]
    fn successes_have_to_come_in_a_row_and_an_interval_apart() {
        let mut counter = Counter::new(&check(1, 2), Verdict::Unknown, true);
        assert_eq!(counter.count(EARLY, Ok(())), None);
        assert!(counter.pause(EARLY, 0) >= Duration::from_secs(5));
        assert_eq!(counter.count(EARLY, failure()), None);
        assert_eq!(counter.count(EARLY, Ok(())), None);
        assert_eq!(counter.count(EARLY, Ok(())), HEALTHY);
    }

    #[test]
    fn what_was_known_before_stands_until_enough_is_known_now() {
        let mut counter = Counter::new(&check(2, 1), Verdict::Healthy, false);
        assert_eq!(counter.count(Duration::ZERO, failure()), None);
        assert_eq!(counter.count(Duration::ZERO, failure()), Some(&unhealthy()));
        let mut counter = Counter::new(&check(2, 1), Verdict::Healthy, false);
        assert_eq!(counter.count(Duration::ZERO, Ok(())), HEALTHY);
    }

    #[test]
    fn one_that_changes_again_and_again_has_to_be_well_for_longer() {
        let mut counter = Counter::new(&check(1, 1), Verdict::Healthy, false);
        let second = Duration::from_secs(1);
        let mut age = LATE;
        let mut needed = Vec::new();
        for _ in 0..8 {
            age += second;
            assert!(counter.count(age, failure()).is_some());
            let mut successes = 0;
            loop {
                age += second;
                successes += 1;
                if counter.count(age, Ok(())) == HEALTHY {
                    break;
                }
            }
            needed.push(successes);
        }
        assert_eq!(needed, [1, 1, 2, 4, 8, 8, 8, 8]);
        // What is long ago does not count any more.
        age += FLAPPING + second;
        assert!(counter.count(age, failure()).is_some());
        assert_eq!(counter.count(age + second, Ok(())), HEALTHY);
    }

    #[test]
    fn a_reason_that_changes_with_each_answer_is_told_once_a_minute() {
        let mut counter = Counter::new(&check(1, 1), Verdict::Healthy, false);
        let mut told = Vec::new();
        for second in 0..150_u64 {
            let reason = Err(format!("it is {second}"));
            let age = LATE + Duration::from_secs(second);
            let verdict = counter.count(age, reason).cloned();
            if told.last() != Some(&verdict) {
                told.push(verdict);
            }
        }
        assert_eq!(told.len(), 3, "{told:?}");
    }

    #[test]
    fn a_start_is_asked_for_quickly_and_ever_less_so() {
        let mut counter = Counter::new(&check(3, 1), Verdict::Unknown, true);
        let (mut age, mut asked) = (Duration::ZERO, 0);
        let mut last = Duration::ZERO;
        while age < Duration::from_secs(10) {
            let _ = counter.count(age, failure());
            last = counter.pause(age, u64::MAX / 2);
            assert!(last <= LONGEST_START_PAUSE, "{last:?}");
            age += last;
            asked += 1;
        }
        assert!((20..40).contains(&asked), "{asked}");
        assert!(last > Duration::from_millis(400));
        assert!(
            counter.pause(LATE, 0) >= Duration::from_secs(5),
            "and then by the interval"
        );
    }

    #[test]
    fn pauses_stay_within_the_interval_and_are_spread() {
        let mut counter = Counter::new(&check(3, 1), Verdict::Unknown, true);
        let _ = counter.count(EARLY, Ok(()));
        let seconds = Duration::from_secs;
        assert_eq!(counter.pause(EARLY, 0), seconds(5));
        for random in [0, u64::MAX / 3, u64::MAX] {
            let pause = counter.pause(EARLY, random);
            assert!(pause >= seconds(9) && pause <= seconds(11), "{pause:?}");
        }
        let [a, b] = [0, u64::MAX].map(|random| {
            let mut counter = Counter::new(&check(3, 1), Verdict::Healthy, false);
            counter.pause(EARLY, random)
        });
        assert!(
            b - a >= seconds(4),
            "two pods that started together part: {a:?}, {b:?}"
        );
    }
}
