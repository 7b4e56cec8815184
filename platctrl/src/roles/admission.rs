//! What has to be in the store before anybody works on it: the kinds, and the node.

use std::collections::BTreeMap;
use std::sync::Arc;

use platctrl_agent::watched_prefixes;
use platctrl_framework::cache::write_prefix_anchor;
use platctrl_framework::client::{Client, ClientError};
use platctrl_framework::environment::Environment;
use platctrl_framework::failsafe::{Failsafe, FailsafeSpec};
use platctrl_framework::model::{Kinds, Metadata, Object};
use platctrl_framework::store::{Key, Store, Transaction};
use platctrl_kinds::{Node, NodeSpec};

use crate::error::{Failure, Result};
use crate::output;

/// Writes the kinds that this program serves to where every server finds them.
pub(crate) async fn register(store: &dyn Store, kinds: &Kinds) -> Result<()> {
    for known in kinds.iter() {
        let definition = &known.definition;
        let key = Key::new(format!(
            "x/kinds/{}/{}",
            definition.group, definition.plural
        ));
        let key = key.map_err(Failure::failed)?;
        let value = serde_json::to_vec(definition).map_err(Failure::failed)?;
        let held = store
            .get(std::slice::from_ref(&key))
            .await
            .map_err(Failure::failed)?;
        let held = held.records.into_iter().next().flatten();
        if held.is_none_or(|held| held.value != value) {
            store
                .commit(Transaction::new().put(key, value))
                .await
                .map_err(Failure::failed)?;
        }
    }
    Ok(())
}

/// What is said of a node when it is admitted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Admitted {
    pub(crate) labels: BTreeMap<String, String>,
    /// Where its pods may be reached.
    pub(crate) addresses: Vec<String>,
}

impl Admitted {
    /// The node of a machine that has everything.
    pub(crate) fn here() -> Self {
        Self {
            addresses: vec!["127.0.0.1".to_owned()],
            ..Self::default()
        }
    }
}

/// Makes the node's record, and the anchors of what its agent watches. Returns whether the node
/// is new; one that was admitted before keeps what was said of it then.
pub(crate) async fn admit(
    store: &Arc<dyn Store>,
    environment: &Environment,
    node: &str,
    admitted: Admitted,
) -> Result<bool> {
    let client = Client::new(Arc::clone(store), environment.clone(), "platctrl");
    let spec = NodeSpec {
        addresses: admitted.addresses,
        ..NodeSpec::default()
    };
    let metadata = Metadata {
        labels: admitted.labels,
        ..Metadata::named(node)
    };
    let created = client.create(&Object::<Node>::new(metadata, spec)).await;
    let is_new = match created {
        Ok(_) => {
            tracing::info!(node, "the node was admitted");
            true
        }
        Err(ClientError::AlreadyExists { hint: "", .. }) => false,
        Err(error) => {
            return Err(Failure::failed(format!(
                "node `{node}` cannot be admitted: {}",
                output::plain(&error.to_string())
            )));
        }
    };
    // What the agent's failsafes are told is written there, and an agent may not write intents.
    let holder = Object::<Failsafe>::new(Metadata::named(node), FailsafeSpec::default());
    match client.create(&holder).await {
        Ok(_) | Err(ClientError::AlreadyExists { .. }) => {}
        Err(error) => {
            return Err(Failure::failed(format!(
                "the failsafes of node `{node}` cannot be admitted: {}",
                output::plain(&error.to_string())
            )));
        }
    }
    for prefix in watched_prefixes(node).map_err(|error| Failure::usage(error.to_string()))? {
        write_prefix_anchor(&**store, &prefix)
            .await
            .map_err(Failure::failed)?;
    }
    Ok(is_new)
}
