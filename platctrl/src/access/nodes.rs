//! Which certificate each node has: the one that it was given last, for as long as the node is the
//! one that it was given to.
//!
//! Whoever gives a node another certificate takes the one before away; so does giving the node up,
//! which raises its incarnation. Nodes cannot read these records, nor write them.

use jiff::Timestamp;
use platctrl_framework::client::{Client, ClientError};
use platctrl_framework::model::{InvalidName, Joined, ObjectKey, Resource as _, Tree, Uid};
use platctrl_framework::store::{Key, StoreError, Transaction};
use platctrl_kinds::{Node, NodeSpec};
use serde::{Deserialize, Serialize};

use crate::tls::NodeCertificate;

/// Where the records are.
pub(crate) const PREFIX: &str = "x/auth/nodes/";

/// What the store knows of a node's certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Given {
    /// The digest of the certificate.
    sha256: String,
    /// The node that it was given to.
    uid: Uid,
    /// Its incarnation at that time.
    incarnation: u64,
    given_at: Timestamp,
}

/// Why a node cannot be given a certificate, or what is known of it cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeKeyError {
    #[error("`{0}` is no node of this store: `platctrl node admit` makes its record")]
    Unknown(String),
    #[error("what the store says of node `{0}` cannot be read: {1}")]
    Unreadable(String, String),
    #[error("node `{0}` was changed meanwhile: do it again")]
    Changed(String),
    #[error(transparent)]
    Name(#[from] InvalidName),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why somebody may not hold a node's stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// It is not theirs.
    #[error("{0}")]
    Foreign(String),
    /// The node's name is not theirs, or not yet: an agent that was just started has to take it.
    #[error("{0}")]
    NotNow(String),
}

fn key(node: &str) -> Result<Key, NodeKeyError> {
    Key::new(format!("{PREFIX}{node}"))
        .map_err(|_| NodeKeyError::Unknown(node.chars().take(80).collect()))
}

/// What is known of a node.
#[derive(Clone, Debug)]
struct Known {
    uid: Uid,
    incarnation: u64,
    deleted: bool,
    /// Which run of its agent reports for it.
    instance: Option<String>,
}

impl Known {
    fn of(joined: &Joined) -> Result<Option<Self>, NodeKeyError> {
        let Some(intent) = &joined.intent else {
            return Ok(None);
        };
        let spec: NodeSpec =
            serde_json::from_value(intent.value.spec.clone()).map_err(|error| {
                NodeKeyError::Unreadable(joined.key.name().to_owned(), error.to_string())
            })?;
        let reality = joined.own_reality();
        Ok(Some(Self {
            uid: intent.value.metadata.uid.clone(),
            incarnation: spec.incarnation,
            deleted: intent.value.metadata.is_deleted(),
            instance: reality.and_then(|it| it.value.metadata.claim.clone()),
        }))
    }

    async fn read(client: &Client, node: &str) -> Result<(Joined, Option<Self>), NodeKeyError> {
        let key = ObjectKey::cluster(Node::GROUP, Node::PLURAL, node).map_err(ClientError::from)?;
        let joined = client.joined(&key).await?;
        let known = Self::of(&joined)?;
        Ok((joined, known))
    }
}

/// Writes down that a node has this certificate, and none that it had before.
pub(crate) async fn give(
    client: &Client,
    certificate: &NodeCertificate,
    now: Timestamp,
) -> Result<(), NodeKeyError> {
    let node = &certificate.node;
    let (joined, known) = Known::read(client, node).await?;
    let known = known.filter(|known| !known.deleted);
    let known = known.ok_or_else(|| NodeKeyError::Unknown(node.clone()))?;
    let given = Given {
        sha256: certificate.sha256.clone(),
        uid: known.uid,
        incarnation: known.incarnation,
        given_at: now,
    };
    let value = serde_json::to_vec(&given)
        .map_err(|error| NodeKeyError::Unreadable(node.clone(), error.to_string()))?;
    let intent = joined.intent.as_ref().map(|intent| intent.modified);
    let transaction = Transaction::new()
        // The very node that was looked at.
        .require_unchanged(joined.key.store_key(Tree::Intent), intent)
        .put(key(node)?, value);
    match client.store().commit(transaction).await {
        Ok(_) => Ok(()),
        Err(StoreError::Conflict { .. }) => Err(NodeKeyError::Changed(node.clone())),
        Err(error) => Err(error.into()),
    }
}

/// Takes a node's certificate away. Returns whether it had one.
pub(crate) async fn take(client: &Client, node: &str) -> Result<bool, NodeKeyError> {
    let key = key(node)?;
    let store = client.store();
    let held = store.get(std::slice::from_ref(&key)).await?;
    if held.records.into_iter().flatten().next().is_none() {
        return Ok(false);
    }
    store.commit(Transaction::new().delete(key)).await?;
    Ok(true)
}

/// Whether a run of a node's agent may hold its stream; else why not. `certificate` is none where
/// it asks on the server's own machine, as its root.
///
/// # Errors
/// The outer: it cannot be said now.
pub(crate) async fn may_hold(
    client: &Client,
    node: &str,
    certificate: Option<&NodeCertificate>,
    instance: &str,
) -> Result<Result<(), Refusal>, NodeKeyError> {
    let (_, known) = Known::read(client, node).await?;
    let given = match certificate {
        None => None,
        Some(_) => {
            let key = key(node)?;
            let held = client.store().get(std::slice::from_ref(&key)).await?;
            let record = held.records.into_iter().flatten().next();
            record.and_then(|record| serde_json::from_slice(&record.value).ok())
        }
    };
    let certificate = certificate.map(|it| (it, given.as_ref()));
    Ok(decide(
        node,
        known.as_ref(),
        certificate,
        instance,
        client.environment().now(),
    ))
}

fn decide(
    node: &str,
    known: Option<&Known>,
    certificate: Option<(&NodeCertificate, Option<&Given>)>,
    instance: &str,
    now: Timestamp,
) -> Result<(), Refusal> {
    let foreign = |why: String| Err(Refusal::Foreign(why));
    let known = known.filter(|known| !known.deleted);
    let Some(known) = known else {
        return foreign(format!("node {node} is not admitted"));
    };
    if let Some((shown, given)) = certificate {
        if shown.node != node {
            return foreign(format!("this is the certificate of node {}", shown.node));
        }
        if shown.until <= now {
            return foreign(format!("the certificate of node {node} is good no more"));
        }
        let again = format!("`platctrl node admit {node} --output DIR` gives one");
        let Some(given) = given else {
            return foreign(format!("node {node} has no certificate: {again}"));
        };
        if given.sha256 != shown.sha256 {
            return foreign(format!("node {node} was given another certificate since"));
        }
        if given.uid != known.uid || given.incarnation != known.incarnation {
            return foreign(format!(
                "node {node} was given up since it was given this certificate: {again}"
            ));
        }
    }
    match &known.instance {
        Some(claim) if claim == instance => Ok(()),
        Some(_) => Err(Refusal::NotNow(format!(
            "another agent works under the name of node {node}"
        ))),
        None => Err(Refusal::NotNow(format!(
            "the agent of node {node} has not begun"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use platctrl_framework::environment::Environment;
    use platctrl_framework::model::{Metadata, Object};
    use platctrl_framework::store::MemoryStore;

    use super::*;

    fn certificate(node: &str, sha256: &str) -> NodeCertificate {
        NodeCertificate {
            node: node.to_owned(),
            sha256: sha256.to_owned(),
            until: Timestamp::MAX,
        }
    }

    #[test]
    fn a_stream_is_for_the_present_agent_of_the_present_node_with_the_certificate_given_last() {
        let environment = Environment::system();
        let uid = environment.uid();
        let known = Known {
            uid: uid.clone(),
            incarnation: 2,
            deleted: false,
            instance: Some("i".to_owned()),
        };
        let given = Given {
            sha256: "aa".to_owned(),
            uid,
            incarnation: 2,
            given_at: environment.now(),
        };
        let now = environment.now();
        let ask = |known: Option<&Known>,
                   shown: &NodeCertificate,
                   given: Option<&Given>,
                   instance: &str| {
            decide("web1", known, Some((shown, given)), instance, now)
        };
        let shown = certificate("web1", "aa");
        assert_eq!(ask(Some(&known), &shown, Some(&given), "i"), Ok(()));
        assert_eq!(decide("web1", Some(&known), None, "i", now), Ok(()));

        let refused = |answer: Result<(), Refusal>, why: &str| {
            let told = answer.unwrap_err().to_string();
            assert!(told.contains(why), "{told}");
        };
        refused(ask(None, &shown, Some(&given), "i"), "not admitted");
        let deleted = Known {
            deleted: true,
            ..known.clone()
        };
        refused(
            ask(Some(&deleted), &shown, Some(&given), "i"),
            "not admitted",
        );
        let other = certificate("web2", "aa");
        refused(ask(Some(&known), &other, Some(&given), "i"), "of node web2");
        let old = NodeCertificate {
            until: now,
            ..shown.clone()
        };
        refused(ask(Some(&known), &old, Some(&given), "i"), "no more");
        refused(ask(Some(&known), &shown, None, "i"), "no certificate");
        let lost = certificate("web1", "bb");
        refused(
            ask(Some(&known), &lost, Some(&given), "i"),
            "another certificate",
        );
        let retired = Known {
            incarnation: 3,
            ..known.clone()
        };
        refused(ask(Some(&retired), &shown, Some(&given), "i"), "given up");
        let again = Known {
            uid: environment.uid(),
            ..known.clone()
        };
        refused(ask(Some(&again), &shown, Some(&given), "i"), "given up");
        refused(
            ask(Some(&known), &shown, Some(&given), "j"),
            "another agent",
        );
        refused(
            decide("web1", Some(&known), None, "j", now),
            "another agent",
        );
        let new = Known {
            instance: None,
            ..known
        };
        refused(ask(Some(&new), &shown, Some(&given), "i"), "not begun");
    }

    #[tokio::test]
    async fn a_certificate_is_given_to_a_node_that_is_there_and_taken_away() {
        let environment = Environment::system();
        let store = Arc::new(MemoryStore::new(environment.clone()));
        let client = Client::new(store, environment.clone(), "test");
        let now = environment.now();
        let given = give(&client, &certificate("web1", "aa"), now).await;
        assert!(matches!(given, Err(NodeKeyError::Unknown(_))));
        let node = Object::<Node>::new(Metadata::named("web1"), NodeSpec::default());
        client.create(&node).await.unwrap();
        let why = async |sha256: &str| {
            let shown = certificate("web1", sha256);
            may_hold(&client, "web1", Some(&shown), "i")
                .await
                .unwrap()
                .unwrap_err()
                .to_string()
        };
        assert!(why("aa").await.contains("no certificate"));
        give(&client, &certificate("web1", "aa"), now)
            .await
            .unwrap();
        assert!(why("aa").await.contains("not begun"));
        give(&client, &certificate("web1", "bb"), now)
            .await
            .unwrap();
        assert!(why("aa").await.contains("another certificate"));
        assert!(take(&client, "web1").await.unwrap());
        assert!(!take(&client, "web1").await.unwrap());
        assert!(why("bb").await.contains("no certificate"));
    }
}
