//! The numbers that guards decide by.

use std::time::Duration;

/// The numbers that guards decide by. The defaults suit a fleet; a test or a very small store
/// may want others.
///
/// ```
/// use platctrl_framework::failsafe::Limits;
///
/// let limits = Limits::default();
/// assert_eq!(limits.budget(30), 20);
/// assert_eq!(limits.budget(1_000), 200);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Limits {
    /// A step (one read of everything, or one revision) that makes this share of a kind's objects
    /// vanish, change or go back without an order is held.
    pub step_share: f64,
    /// ... from this many objects on.
    pub step_least: usize,
    /// Removals, replacements and restarts that nobody declared, for each kind and failure domain
    /// in each [`window`](Self::window): at least this many.
    pub budget_least: u32,
    /// ... or this share of the kind's objects in the failure domain, whichever is larger.
    pub budget_share: f64,
    /// The time that a budget is for.
    pub window: Duration,
    /// After its first full view a process waits this long before it takes anything away that
    /// nobody declared.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            step_share: 0.30,
            step_least: 5,
            budget_least: 20,
            budget_share: 0.20,
            window: Duration::from_secs(300),
            grace: Duration::from_secs(30),
        }
    }
}

impl Limits {
    /// How many of `known` objects may be taken away in a window.
    #[must_use]
    pub fn budget(&self, known: usize) -> u32 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a count of objects in memory, rounded up"
        )]
        let share = (known as f64 * self.budget_share).ceil() as u32;
        share.max(self.budget_least)
    }

    /// So many of `known` objects in one step are more than happens without an order.
    #[must_use]
    pub fn is_mass(&self, affected: usize, known: usize) -> bool {
        #[expect(
            clippy::cast_precision_loss,
            reason = "counts of objects in memory are far below 2^52"
        )]
        let share = affected as f64 >= known as f64 * self.step_share;
        affected >= self.step_least && share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mass_is_a_share_and_a_least_number() {
        let limits = Limits::default();
        assert!(!limits.is_mass(4, 4), "four objects are never a mass");
        assert!(limits.is_mass(5, 5));
        assert!(limits.is_mass(30, 100));
        assert!(!limits.is_mass(29, 100));
        assert!(!limits.is_mass(0, 0));
    }
}
