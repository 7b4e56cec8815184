//! The framework's failsafe cases on stores in fresh directories.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use platctrl_framework::conformance::{Restored, Subject, failsafe_tests};
use platctrl_framework::environment::Environment;
use platctrl_framework::store::Store;
use platctrl_store_embedded::{EmbeddedStore, restore};

fn open(dir: &Path) -> Arc<EmbeddedStore> {
    Arc::new(EmbeddedStore::open(dir, Environment::system()).unwrap())
}

async fn fresh() -> Subject {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let next = {
        let dir = Arc::clone(&dir);
        move |what: &str| {
            let count = count.fetch_add(1, Ordering::Relaxed);
            dir.path().join(format!("{what}{count}"))
        }
    };
    let backup = dir.path().join("backup");
    let store = open(&next("store"));
    let (kept, last, others) = (Arc::downgrade(&store), backup.clone(), next.clone());
    Subject::new(store)
        .with_another(move || {
            let store: Arc<dyn Store> = open(&others("other"));
            Box::pin(async move { store })
        })
        .with_backup(
            move || {
                let store = kept.upgrade().expect("the store under test is open");
                let _ = std::fs::remove_file(&backup);
                let backup = backup.clone();
                Box::pin(async move {
                    store.backup(&backup).await.unwrap();
                })
            },
            move |how| {
                // Its revisions are those of the backup again, whatever is asked for.
                let _: Restored = how;
                let target = next("restored");
                restore(&last, &target).unwrap();
                let store: Arc<dyn Store> = open(&target);
                Box::pin(async move { store })
            },
        )
        .with_guard(dir)
}

failsafe_tests! { fresh }
