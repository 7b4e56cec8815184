//! Failsafes through a real runtime and store: what is held when the records themselves are wrong.

mod bites;
mod budgets;
mod format;
mod frozen;
mod restored;
mod steps;
mod unknown;

use std::collections::BTreeSet;
use std::sync::Mutex;

use platctrl_framework::client::Batch;
use platctrl_framework::failsafe::{Failsafe, FailsafeStatus, FailsafeView, Guard, Reset, ring};
use platctrl_framework::model::{Joined, Tree};
use platctrl_framework::store::{Key, Transaction};
use serde_json::{Value, json};

use super::*;

/// What a controller was called with: the names it was given, and how many pages were wanted.
type Seen = Arc<Mutex<Vec<(String, u32)>>>;

/// A controller that claims each site and notes what it is asked for.
fn noting(seen: &Seen, absent: &Arc<Mutex<BTreeSet<String>>>) -> Controller<Site> {
    let (seen, absent) = (seen.clone(), absent.clone());
    Controller::new("sites", move |site: Arc<Object<Site>>, context: Context| {
        let seen = seen.clone();
        async move {
            let name = site.metadata.name.clone();
            seen.lock().unwrap().push((name, site.spec.pages));
            context.claim().await?;
            Ok::<_, ReconcileError>(Action::await_change())
        }
    })
    .on_delete(|_, context: Context| async move {
        let mut changes = context.changes();
        changes.report_gone()?;
        changes.commit().await?;
        Ok::<_, ReconcileError>(Action::await_change())
    })
    .on_absent(move |object, _| {
        let name = object.key.name().to_owned();
        absent.lock().unwrap().insert(name);
        async { Ok::<_, ReconcileError>(Action::await_change()) }
    })
}

fn held(running: &Running) -> FailsafeView {
    running
        .handle
        .status()
        .map(|status| status.failsafe)
        .unwrap_or_default()
}

fn guards(running: &Running) -> Vec<Guard> {
    held(running).holds.iter().map(|hold| hold.guard).collect()
}

fn holder() -> ObjectKey {
    ObjectKey::cluster("platctrl.dev", "failsafes", "controllers").unwrap()
}

impl World {
    async fn sites(&self, count: usize) {
        for site in 0..count {
            self.site(&format!("s{site:02}"), 1).await;
        }
    }

    async fn put(&self, key: &Key, value: &Value) {
        let put = Transaction::new().put(key.clone(), value.to_string());
        self.store.commit(put).await.unwrap();
    }

    fn intent(&self, site: &str) -> Value {
        let key = site_key(site).store_key(Tree::Intent);
        serde_json::from_slice(&self.store.peek(&key).unwrap().value).unwrap()
    }

    /// Rewrites records of the first `count` sites in one transaction, as a script might.
    async fn rewrite(&self, count: usize, tree: Tree, change: impl Fn(Value) -> Option<Value>) {
        let mut transaction = Transaction::new();
        for site in 0..count {
            let key = site_key(&format!("s{site:02}")).store_key(tree);
            let Some(record) = self.store.peek(&key) else {
                continue;
            };
            let record = serde_json::from_slice(&record.value).unwrap();
            transaction = match change(record) {
                Some(value) => transaction.put(key, value.to_string()),
                None => transaction.delete(key),
            };
        }
        self.store.commit(transaction).await.unwrap();
    }

    /// What the program has written down about its holds.
    async fn written(&self) -> FailsafeStatus {
        let object = self.client.get::<Failsafe>(&holder()).await;
        object.map(|it| it.status.detail).unwrap_or_default()
    }

    /// Resets what is written down, as a person does.
    async fn reset(&self) {
        let mut object = self.client.get::<Failsafe>(&holder()).await.unwrap();
        let holds = object.status.detail.holds.iter();
        object.spec.reset = holds
            .map(|hold| Reset {
                id: hold.id.clone(),
                since: hold.since,
            })
            .collect();
        self.client.update(&object).await.unwrap();
        ring(&self.store, &self.environment).await.unwrap();
    }

    async fn claimed(&self, count: usize) {
        until("all are worked on", || async {
            self.count("o/reality/example.dev/sites/") == count
        })
        .await;
    }
}

async fn minutes(count: u64) {
    tokio::time::sleep(Duration::from_secs(60 * count)).await;
}
