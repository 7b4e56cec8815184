//! The failsafe cases on the memory store, and that each notices when its safeguard is off.

use std::sync::Arc;

use platctrl_framework::conformance::{Restored, Subject, Verdict, failsafe, failsafe_tests};
use platctrl_framework::environment::Environment;
use platctrl_framework::failsafe::Safeguard;
use platctrl_framework::store::{MemoryStore, Store};

use super::subject_of;

async fn fresh() -> Subject {
    let store = MemoryStore::new(Environment::system());
    let (kept, restored) = (store.clone(), store.clone());
    let backup = Arc::new(std::sync::Mutex::new(store.snapshot()));
    let last = backup.clone();
    subject_of(store)
        .with_another(|| {
            let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Environment::system()));
            Box::pin(async { store })
        })
        .with_backup(
            move || {
                *backup.lock().unwrap() = kept.snapshot();
                Box::pin(async {})
            },
            move |how| {
                let backup = last.lock().unwrap().clone();
                match how {
                    Restored::Older => restored.faults().come_back_older(&backup),
                    _ => restored.faults().come_back_newer(&backup, 1_000),
                }
                let store: Arc<dyn Store> = Arc::new(restored.clone());
                Box::pin(async { store })
            },
        )
}

failsafe_tests! { fresh }

fn is_caught(case: &str, safeguard: Safeguard) {
    let case = failsafe::case(case).expect("a case of this name");
    let verdict = case.check(async || fresh().await.without_safeguard(safeguard));
    assert!(
        matches!(verdict, Verdict::Failed(_)),
        "{case:?} passes without {safeguard:?}: {verdict:?}"
    );
    println!("{case:?} without {safeguard:?}: {verdict:.300?}");
}

macro_rules! bites {
    ($($case:ident: $($safeguard:ident),+;)*) => {
        mod failsafe_bites {
            use super::*;

            $(
                #[test]
                fn $case() {
                    $(is_caught(stringify!($case), Safeguard::$safeguard);)+
                }
            )*
        }
    };
}

bites! {
    failsafe_intent_all_vanish: Vanished;
    failsafe_intent_all_change: Changed;
    failsafe_intent_all_become_unreadable: Changed;
    failsafe_intent_all_go_back: WentBack;
    failsafe_reality_all_vanish: RealityLost;
    failsafe_root_all_vanish: Vanished;
    failsafe_tombstones_in_bulk: Ends;
    failsafe_budget: Budget;
    failsafe_cold_start: ColdStart;
    failsafe_anchor_lost: Anchor;
    failsafe_format_too_new: Format;
    failsafe_frozen: Freeze;
    failsafe_chain_lost: ChainMissing;
    failsafe_chain_of_another_history: ChainOther;
    failsafe_store_restored_forward: ChainMissing, HistorySteps;
    failsafe_store_restored_while_nobody_looked: HistoryBlind;
    failsafe_selector_widened_by_an_unknown_field: UnknownFields;
}
