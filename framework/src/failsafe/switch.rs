//! Which safeguards are on: all of them, in every program.
//!
//! A test can switch one off to prove that it is this one that keeps the harm away, and that the
//! test about it would notice if it were lost. The feature `conformance` has what it takes;
//! without it there is nothing to switch.

/// One thing that keeps harm away, to be switched off by a test that proves that it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[cfg_attr(
    not(feature = "conformance"),
    expect(unreachable_pub, reason = "public where there is something to switch")
)]
pub enum Safeguard {
    /// A mass of intents that vanish in one step is held.
    Vanished,
    /// A mass of intents that change in one step without an order is held.
    Changed,
    /// A mass of intents that go back in one step is held.
    WentBack,
    /// Nothing is taken away after a mass of reports vanished.
    RealityLost,
    /// A mass that is missing after a restart is held.
    Fewer,
    /// What nobody declared is counted, and held beyond the budget.
    Budget,
    /// Each failure domain has a budget of its own.
    Domains,
    /// What was spent before a restart is counted after it.
    BudgetMemory,
    /// Ends that nobody declared are counted where they are carried out.
    Ends,
    /// A process that has just begun takes nothing away that nobody declared.
    ColdStart,
    /// What a held kind's controllers would take away is held too.
    KindHeld,
    /// An answer without its anchor is an error.
    Anchor,
    /// Another store that answers is an error.
    Identity,
    /// ... also after a restart.
    IdentityMemory,
    /// A revision lower than one that was seen is another history.
    OlderRevision,
    /// A link of the chain that is missing is another history.
    ChainMissing,
    /// A link of the chain with another nonce is another history.
    ChainOther,
    /// In another history no order is carried out.
    HistoryOrders,
    /// In another history no step is taken that nobody ordered, however small.
    HistorySteps,
    /// Nothing runs where a process finds another history before it has seen anything good.
    HistoryBlind,
    /// No link is appended to another history.
    HistoryLinks,
    /// A person's reset counts once, and for the hold that they saw.
    ResetOnce,
    /// Nothing changes while everything is frozen.
    Freeze,
    /// Nothing changes in a store whose format is too new for this program.
    Format,
    /// A spec with a field that its controller does not know is not carried out.
    UnknownFields,
}

#[cfg(any(test, feature = "conformance"))]
impl Safeguard {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Vanished,
        Self::Changed,
        Self::WentBack,
        Self::RealityLost,
        Self::Fewer,
        Self::Budget,
        Self::Domains,
        Self::BudgetMemory,
        Self::Ends,
        Self::ColdStart,
        Self::KindHeld,
        Self::Anchor,
        Self::Identity,
        Self::IdentityMemory,
        Self::OlderRevision,
        Self::ChainMissing,
        Self::ChainOther,
        Self::HistoryOrders,
        Self::HistorySteps,
        Self::HistoryBlind,
        Self::HistoryLinks,
        Self::ResetOnce,
        Self::Freeze,
        Self::Format,
        Self::UnknownFields,
    ];
}

/// The safeguards that are off: none, but in tests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Switches {
    #[cfg(any(test, feature = "conformance"))]
    pub(crate) off: std::collections::BTreeSet<Safeguard>,
}

impl Switches {
    #[cfg_attr(
        not(any(test, feature = "conformance")),
        expect(clippy::unused_self, reason = "there is nothing to switch")
    )]
    pub(crate) fn is_on(&self, safeguard: Safeguard) -> bool {
        #[cfg(any(test, feature = "conformance"))]
        return !self.off.contains(&safeguard);
        #[cfg(not(any(test, feature = "conformance")))]
        {
            let _ = safeguard;
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_listed_once() {
        let mut all = Safeguard::ALL.to_vec();
        all.dedup();
        assert_eq!(all, Safeguard::ALL);
        // Those who add one behind the last are told to list it.
        assert_eq!(Safeguard::ALL.len(), Safeguard::UnknownFields as usize + 1);
    }
}
