//! What is let go when a person has looked.

use super::{SAME_HOLD, Safeguards};
use crate::failsafe::{Guard, Hold, Reset, Safeguard};

impl Safeguards {
    /// Lets go what a person reset. Returns the ids, and whether everything has to be read again.
    pub(in crate::failsafe) fn reset(&self, resets: &[Reset]) -> (Vec<String>, bool) {
        let mut state = self.state();
        let (mut done, mut read_again) = (Vec::new(), false);
        for reset in resets {
            let Some(hold) = state.holds.get(&reset.id).cloned() else {
                continue;
            };
            let after = hold.since.duration_since(reset.since);
            let is_it = after.is_negative() || after.unsigned_abs() <= SAME_HOLD;
            // Once: the next hold of this id is another one.
            let first = state.resets.insert((reset.id.clone(), reset.since));
            if self.is_on(Safeguard::ResetOnce) && !(is_it && first) {
                continue;
            }
            match hold.guard {
                Guard::History => {
                    let withheld = std::mem::take(&mut state.withheld);
                    state.accepted.extend(withheld.into_keys());
                    state.other_history = None;
                    state.older_than = None;
                    state.chain_tells = false;
                    state.turns += 1;
                    state.link = None;
                    state.store_id.clear();
                    state.blind = false;
                    state.began = Some(self.environment.monotonic());
                    let about = |hold: &&Hold| {
                        matches!(
                            hold.guard,
                            Guard::Vanished | Guard::Changed | Guard::WentBack
                        )
                    };
                    let others: Vec<String> = state
                        .holds
                        .values()
                        .filter(about)
                        .map(|hold| hold.id.clone())
                        .collect();
                    for id in others {
                        self.release(&mut state, &id, "the other history was accepted");
                        done.push(id);
                    }
                    read_again = true;
                }
                Guard::Vanished | Guard::Changed | Guard::WentBack => {
                    let mine: Vec<String> = state
                        .withheld
                        .iter()
                        .filter(|(_, withheld)| withheld.hold == hold.id)
                        .map(|(key, _)| key.clone())
                        .collect();
                    for key in mine {
                        state.withheld.remove(&key);
                        state.accepted.insert(key);
                    }
                    read_again = true;
                }
                Guard::Budget => {
                    let kind = self.kind_named(&hold.kind);
                    if let Some(kind) = kind {
                        let account = (kind, hold.domain.as_str().into());
                        let wanted = state.refused.remove(&account).unwrap_or(0);
                        state.budget.reset(&account, wanted);
                    }
                }
                Guard::RealityLost | Guard::Fewer => {}
            }
            self.release(&mut state, &hold.id, "a person reset it");
            done.push(hold.id);
        }
        (done, read_again)
    }
}
