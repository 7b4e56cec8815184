//! The memory store without waiting, for the simulator, which has faults of its own.

use super::{MemoryStore, Prefix, Record, Result, Revision, Transaction};

impl MemoryStore {
    /// Judges and applies a transaction at once, past every fault and delay.
    pub(crate) fn commit_now(&self, transaction: &Transaction) -> Result<Revision> {
        self.shared.options.limits.check(transaction)?;
        let mut state = self.shared.current();
        let outcome = state.data.commit(transaction);
        state.publish();
        outcome
    }

    /// Whether [`MemoryStore::commit_now`] would apply it.
    pub(crate) fn would_commit(&self, transaction: &Transaction) -> bool {
        let fits = self.shared.options.limits.check(transaction).is_ok();
        fits && self.shared.current().data.admits(transaction)
    }

    /// The records under a prefix, in key order.
    pub(crate) fn dump_under(&self, prefix: &Prefix) -> Vec<Record> {
        let state = self.shared.current();
        let newest = state.data.revision();
        let range = state.data.range(prefix, None, newest);
        range.cloned().collect()
    }
}
