//! What was done over the API: who, from where, and what changed.
//!
//! A record is written in the transaction of the change that it tells of, so that there is neither
//! without the other. Records are never overwritten; the oldest go when there are more than
//! [`MOST`]. Values of configuration, environments and annotations are not told: they may be
//! secrets.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use jiff::Timestamp;
use platctrl_framework::environment::Environment;
use platctrl_framework::store::{Key, ListRequest, Prefix, Store, StoreError, Transaction};
use serde::{Deserialize, Serialize};
use serde_json::Value;

const PREFIX: &str = "x/audit/";
/// Records that are kept.
pub(crate) const MOST: usize = 8_192;
/// Records between two looks at how many there are.
const LOOK: u64 = 64;
/// Records that are removed in one transaction.
const AT_ONCE: usize = 48;
/// Changes that are told of one record.
const CHANGES: usize = 20;
/// Characters of a value, and of other text.
const VALUE: usize = 60;
const TEXT: usize = 200;
/// Fields whose values are not told.
const HIDDEN: [&str; 3] = ["config", "env", "annotations"];
/// Parts of the metadata that are told of.
const METADATA: [&str; 3] = ["labels", "annotations", "ownerReferences"];

/// Something that was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Deed {
    pub(crate) at: Timestamp,
    /// The name of the token or certificate, or of the user at the local socket.
    pub(crate) by: String,
    /// An address, or `local`.
    pub(crate) from: String,
    /// The program, as it names itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) with: String,
    /// `create`, `update`, `delete`, …
    pub(crate) verb: String,
    /// What it was done to, as `replicationcontrollers/default/hello`.
    pub(crate) to: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) uid: String,
    /// What is different, as `spec.replicas: 2 → 3`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) changes: Vec<String>,
}

/// Foreign text, short and without what a terminal would obey.
pub(crate) fn short(text: &str, most: usize) -> String {
    let mut shown: String = text
        .chars()
        .take(most)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    if text.chars().nth(most).is_some() {
        shown.push('…');
    }
    shown
}

/// What is different between two objects as they are shown.
pub(crate) fn changes(before: &Value, after: &Value) -> Vec<String> {
    let mut told = Vec::new();
    let mut more = 0;
    let mut tell = |line: String| {
        if told.len() < CHANGES {
            told.push(line);
        } else {
            more += 1;
        }
    };
    for field in METADATA {
        let of = |object: &Value| object["metadata"][field].clone();
        compare(
            &format!("metadata.{field}"),
            field,
            &of(before),
            &of(after),
            &mut tell,
        );
    }
    for field in ["spec", "status"] {
        compare(field, field, &before[field], &after[field], &mut tell);
    }
    if more > 0 {
        told.push(format!("and {more} more"));
    }
    told
}

fn compare(path: &str, name: &str, before: &Value, after: &Value, tell: &mut dyn FnMut(String)) {
    if before == after {
        return;
    }
    if HIDDEN.contains(&name) {
        return tell(short(&format!("{path}: changed"), TEXT));
    }
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            for (name, value) in new {
                let old = old.get(name).unwrap_or(&Value::Null);
                compare(&format!("{path}.{name}"), name, old, value, tell);
            }
            for (name, value) in old.iter().filter(|(name, _)| !new.contains_key(*name)) {
                compare(&format!("{path}.{name}"), name, value, &Value::Null, tell);
            }
        }
        (before, after) => {
            let line = format!("{path}: {} → {}", told(before), told(after));
            tell(short(&line, TEXT));
        }
    }
}

fn told(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Object(fields) if fields.is_empty() => "{}".to_owned(),
        Value::Object(_) => "{…}".to_owned(),
        Value::Array(items) => format!("{} items", items.len()),
        Value::String(text) => short(text, VALUE),
        other => other.to_string(),
    }
}

/// The records of a store.
#[derive(Debug)]
pub(crate) struct Audit {
    store: Arc<dyn Store>,
    environment: Environment,
    /// Tells this server's records from others' of the same moment.
    server: String,
    count: AtomicU64,
    pruning: AtomicBool,
}

impl Audit {
    pub(crate) fn new(store: Arc<dyn Store>, environment: Environment) -> Self {
        Self {
            server: environment.suffix(8),
            store,
            environment,
            count: AtomicU64::new(0),
            pruning: AtomicBool::new(false),
        }
    }

    /// The record to be written with a change. It is also a line of the log.
    pub(crate) fn record(&self, deed: &Deed) -> Option<(Key, Bytes)> {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        tracing::info!(
            target: "audit",
            by = deed.by, from = deed.from, verb = deed.verb, to = deed.to,
            changes = ?deed.changes,
        );
        // Zero-padded, so that the order of keys is that of time.
        let at = deed.at.as_millisecond().max(0);
        let key = format!("{PREFIX}{at:015}.{}.{count:010}", self.server);
        let key = Key::new(key).ok()?;
        Some((key, serde_json::to_vec(deed).ok()?.into()))
    }

    /// Adds the record of a deed to a transaction.
    pub(crate) fn beside(&self, deed: &Deed, transaction: Transaction) -> Transaction {
        match self.record(deed) {
            Some((key, value)) => transaction.put(key, value),
            None => transaction,
        }
    }

    /// Writes a record of what was done elsewhere.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn write(&self, deed: &Deed) -> Result<(), StoreError> {
        let transaction = self.beside(deed, Transaction::new());
        self.store.commit(transaction).await?;
        Ok(())
    }

    /// Looks now and then how many records there are, and removes the oldest.
    pub(crate) fn tidy(self: &Arc<Self>) {
        let count = self.count.load(Ordering::Relaxed);
        if count % LOOK != 1 || self.pruning.swap(true, Ordering::AcqRel) {
            return;
        }
        let audit = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = audit.prune(MOST).await {
                tracing::warn!(%error, "old audit records stay");
            }
            audit.pruning.store(false, Ordering::Release);
        });
    }

    async fn prune(&self, most: usize) -> Result<(), StoreError> {
        let mut keys = VecDeque::new();
        self.each(|key, _| {
            keys.push_back(key.clone());
        })
        .await?;
        while keys.len() > most {
            let over = (keys.len() - most).min(AT_ONCE);
            let removed = keys.drain(..over);
            let transaction = removed.fold(Transaction::new(), Transaction::delete);
            self.store.commit(transaction).await?;
        }
        Ok(())
    }

    async fn each(&self, mut tell: impl FnMut(&Key, &Bytes)) -> Result<(), StoreError> {
        let prefix = Prefix::new(PREFIX).expect("a literal prefix is valid");
        let mut request = ListRequest::new(prefix);
        loop {
            let page = self.store.list(&request).await?;
            request.at = Some(page.revision).filter(|_| self.store.capabilities().pinned_reads);
            request.after = page.records.last().map(|record| record.key.clone());
            for record in &page.records {
                tell(&record.key, &record.value);
            }
            if !page.more || request.after.is_none() {
                return Ok(());
            }
        }
    }

    /// The newest records that are wanted, oldest first.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn list(
        &self,
        most: usize,
        wanted: impl Fn(&Deed) -> bool,
    ) -> Result<Vec<Deed>, StoreError> {
        let mut deeds = VecDeque::new();
        self.each(|key, value| match serde_json::from_slice::<Deed>(value) {
            Ok(deed) if wanted(&deed) => {
                deeds.push_back(deed);
                if deeds.len() > most {
                    deeds.pop_front();
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%key, %error, "not an audit record"),
        })
        .await?;
        Ok(deeds.into())
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.environment.now()
    }
}

#[cfg(test)]
mod tests {
    use platctrl_framework::store::MemoryStore;
    use serde_json::json;

    use super::*;

    fn deed(number: i64) -> Deed {
        Deed {
            at: Timestamp::from_second(number).unwrap(),
            by: "ann".to_owned(),
            from: "local".to_owned(),
            with: String::new(),
            verb: "update".to_owned(),
            to: format!("pods/default/{number}"),
            uid: String::new(),
            changes: Vec::new(),
        }
    }

    #[test]
    fn changes_are_told_by_field_and_secrets_are_not() {
        let before = json!({"metadata": {"labels": {"a": "1"}, "generation": 1},
            "spec": {"replicas": 2, "env": {"KEY": "old-secret"}, "list": [1]}});
        let after = json!({"metadata": {"generation": 2},
            "spec": {"replicas": 3, "env": {"KEY": "new-secret"}, "list": [1, 2], "map": {"x": 1}}});
        assert_eq!(
            changes(&before, &after),
            [
                "metadata.labels: {…} → nothing",
                "spec.env: changed",
                "spec.list: 1 items → 2 items",
                "spec.map: nothing → {…}",
                "spec.replicas: 2 → 3",
            ]
        );
        assert!(changes(&before, &before).is_empty());
        let many: serde_json::Map<_, _> = (0..100)
            .map(|at| (format!("f{at}"), json!("x\u{1b}[31m".repeat(1000))))
            .collect();
        let told = changes(&json!({"spec": {}}), &json!({ "spec": many }));
        assert_eq!(told.len(), CHANGES + 1);
        assert_eq!(told[CHANGES], "and 80 more");
        assert!(
            told.iter()
                .all(|line| line.len() < 300 && !line.contains('\u{1b}'))
        );
    }

    #[tokio::test]
    async fn records_are_kept_in_order_and_the_oldest_go() {
        let environment = Environment::system();
        let store = MemoryStore::new(environment.clone());
        let audit = Audit::new(Arc::new(store.clone()), environment.clone());
        let other = Audit::new(Arc::new(store), environment);
        for number in 0..100 {
            let audit = if number % 2 == 0 { &audit } else { &other };
            audit.write(&deed(number)).await.unwrap();
        }
        audit.prune(10).await.unwrap();
        let all = audit.list(100, |_| true).await.unwrap();
        assert_eq!(all, (90..100).map(deed).collect::<Vec<_>>());
        let some = audit.list(2, |deed| deed.to.ends_with('1')).await.unwrap();
        assert_eq!(some, [deed(91)]);
    }
}
