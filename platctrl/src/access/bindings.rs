//! Who has which roles, as the store says it.

use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::environment::Environment;
use platctrl_framework::model::{Intent, ObjectKey, RecordError, Resource, Scope, Tree, Versioned};
use platctrl_framework::store::{ListRequest, Store, StoreError};
use platctrl_kinds::{Grants, Role as RoleKind, RoleBinding, RoleBindingSpec, RoleSpec};
use tokio::sync::Mutex;

/// How long an answer of the store is good: what was taken away works no longer than that.
const FRESH: Duration = Duration::from_secs(2);

/// Everybody's roles, as they were read.
#[derive(Debug, Default)]
struct Read {
    /// What each binding gives, and to whom.
    given: Vec<(RoleSpec, Vec<String>)>,
}

/// Who has which roles.
#[derive(Debug)]
pub(crate) struct Bindings {
    store: Arc<dyn Store>,
    environment: Environment,
    /// One reads for all who ask meanwhile.
    seen: Mutex<Option<(Duration, Arc<Read>)>>,
}

/// A role that is there without being created.
fn built_in(name: &str) -> Option<RoleSpec> {
    let grants = match name {
        "viewer" => Grants::Viewer,
        "operator" => Grants::Operator,
        "admin" => Grants::Admin,
        _ => return None,
    };
    let everywhere = match grants {
        Grants::Admin => Vec::new(),
        _ => vec!["*".to_owned()],
    };
    Some(RoleSpec {
        grants,
        namespaces: everywhere,
        apps: Vec::new(),
        names: Vec::new(),
        run_as: Vec::new(),
        locations: Vec::new(),
        secrets: Vec::new(),
    })
}

/// Whether a role of this name would never be looked at.
pub(crate) fn is_built_in(name: &str) -> bool {
    built_in(name).is_some()
}

impl Bindings {
    pub(crate) fn new(store: Arc<dyn Store>, environment: Environment) -> Self {
        Self {
            store,
            environment,
            seen: Mutex::default(),
        }
    }

    /// The roles that were given to somebody.
    ///
    /// # Errors
    /// The store's: who cannot be looked up has nothing.
    pub(crate) async fn of(&self, name: &str) -> Result<Vec<RoleSpec>, StoreError> {
        let read = {
            let mut seen = self.seen.lock().await;
            let now = self.environment.monotonic();
            match &*seen {
                Some((at, read)) if now.saturating_sub(*at) < FRESH => read.clone(),
                _ => {
                    let read = Arc::new(self.read().await?);
                    *seen = Some((now, read.clone()));
                    read
                }
            }
        };
        let given = read.given.iter();
        let given = given.filter(|(_, subjects)| subjects.iter().any(|subject| subject == name));
        Ok(given.map(|(role, _)| role.clone()).collect())
    }

    async fn read(&self) -> Result<Read, StoreError> {
        let roles = self.list::<RoleKind, RoleSpec>().await?;
        let bindings = self.list::<RoleBinding, RoleBindingSpec>().await?;
        let given = bindings.into_iter().filter_map(|(_, binding)| {
            let found = built_in(&binding.role).or_else(|| {
                let role = roles.iter().find(|(name, _)| *name == binding.role);
                role.map(|(_, role)| role.clone())
            });
            Some((found?, binding.subjects))
        });
        Ok(Read {
            given: given.collect(),
        })
    }

    /// All of a kind that are not being deleted; what cannot be read gives nobody anything.
    async fn list<K: Resource<Spec = S>, S>(&self) -> Result<Vec<(String, S)>, StoreError>
    where
        S: serde::de::DeserializeOwned,
    {
        let mut request = ListRequest::new(K::group_plural().prefix(Tree::Intent));
        let mut found = Vec::new();
        loop {
            let page = self.store.list(&request).await?;
            request.at = Some(page.revision).filter(|_| self.store.capabilities().pinned_reads);
            request.after = page.records.last().map(|record| record.key.clone());
            for record in &page.records {
                let parsed = ObjectKey::parse(&record.key, |_, _| Some(Scope::Cluster));
                let Some((_, key, _)) = parsed else { continue };
                let unreadable = |error: RecordError| {
                    tracing::warn!(%error, "it gives nobody any right");
                };
                let Ok(intent) = Versioned::<Intent>::from_record(&key, record).map_err(unreadable)
                else {
                    continue;
                };
                if intent.value.metadata.is_deleted() {
                    continue;
                }
                match serde_json::from_value(intent.value.spec) {
                    Ok(spec) => found.push((key.name().to_owned(), spec)),
                    Err(error) => {
                        tracing::warn!(key = %record.key, %error, "it gives nobody any right");
                    }
                }
            }
            if !page.more || request.after.is_none() {
                return Ok(found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use platctrl_framework::client::Client;
    use platctrl_framework::model::{Metadata, Object};
    use platctrl_framework::store::{Key, MemoryStore, Transaction};

    use super::*;

    async fn bind(client: &Client, name: &str, role: &str, subjects: &[&str]) {
        let spec = RoleBindingSpec {
            role: role.to_owned(),
            subjects: subjects.iter().map(|&it| it.to_owned()).collect(),
        };
        let binding = Object::<RoleBinding>::new(Metadata::named(name), spec);
        client.create(&binding).await.unwrap();
    }

    #[tokio::test]
    async fn a_binding_gives_a_role_that_there_is_to_those_it_names() {
        let environment = Environment::system();
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(environment.clone()));
        let client = Client::new(store.clone(), environment.clone(), "test");
        let read = |name: &'static str| {
            let bindings = Bindings::new(store.clone(), environment.clone());
            async move { bindings.of(name).await.unwrap() }
        };
        bind(&client, "a", "operator", &["ann"]).await;
        bind(&client, "b", "nowhere", &["ann", "bob"]).await;
        assert_eq!(read("ann").await, [built_in("operator").unwrap()]);
        assert!(read("bob").await.is_empty());
        assert!(read("*").await.is_empty());
        // What cannot be read gives nothing, and takes nothing from others.
        let broken = Key::new("o/intent/platctrl.dev/rolebindings/c").unwrap();
        let put = Transaction::new().put(broken, "{");
        store.commit(put).await.unwrap();
        assert_eq!(read("ann").await.len(), 1);
    }
}
