//! The kinds that the programs on a store know, where every server finds them.
//!
//! A program registers its kinds when it starts. A schema under which objects of the one that is
//! registered would not be valid any more is not taken: it is named, field by field.

use crate::model::{FieldError, GroupPlural, KindDefinition, RecordError, schema};
use crate::store::{Key, ListRequest, Prefix, Store, StoreError, Transaction};

/// How often registering a kind begins again when somebody else registered it meanwhile.
const ATTEMPTS: usize = 5;

/// What registering a kind came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Registered {
    /// Nobody had registered it.
    New,
    /// It was registered in another form, of which every object stays valid.
    Updated,
    /// It was registered just so.
    Same,
    /// A newer form is registered, under which every object of this one is valid. It stays.
    Newer,
}

/// Why a kind was not registered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// Objects that are stored may not be valid any more.
    #[error(
        "the kind {kind} is registered in a form with which this one is not compatible: {}; keep \
         what there was, or give the new form a version of its own and name the old one with `also`",
        listed(.problems)
    )]
    Incompatible {
        /// Which kind.
        kind: GroupPlural,
        /// Every change that makes it so.
        problems: Vec<FieldError>,
    },
    /// Group or plural cannot be part of a key.
    #[error("the kind {kind} cannot be registered: {reason}")]
    Name {
        /// Which kind.
        kind: GroupPlural,
        /// What is wrong.
        reason: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn listed(problems: &[FieldError]) -> String {
    let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// What makes objects that are stored under `old` unreadable or invalid under `new`; nothing if
/// every one of them stays as good as it was. Every version in which objects may be stored counts.
#[must_use]
pub fn incompatibilities(old: &KindDefinition, new: &KindDefinition) -> Vec<FieldError> {
    let mut problems = Vec::new();
    if old.scope != new.scope {
        let text = format!(
            "is {:?} now, and was {:?}: objects would not be found under their keys",
            new.scope, old.scope
        );
        problems.push(FieldError::new("scope", text));
    }
    if old.kind != new.kind {
        let text = format!("is `{}` now, and was `{}`", new.kind, old.kind);
        problems.push(FieldError::new("kind", text));
    }
    let now: Vec<(&str, &serde_json::Value)> = versions(new).collect();
    for (version, before) in versions(old) {
        match now.iter().find(|(name, _)| *name == version) {
            Some((_, now)) => {
                problems.extend(schema::compatible(before, now, &format!("{version}.spec")));
            }
            None => {
                let text = "is not known any more, and objects may be stored in it";
                problems.push(FieldError::new(version, text));
            }
        }
    }
    problems
}

fn versions(kind: &KindDefinition) -> impl Iterator<Item = (&str, &serde_json::Value)> {
    let own = kind.schema.pointer("/properties/spec");
    let own = own.map(|schema| (kind.version.as_str(), schema));
    let others = kind.other_versions.iter();
    own.into_iter()
        .chain(others.map(|other| (other.version.as_str(), &other.schema)))
}

/// Registers a kind under `x/kinds/<group>/<plural>`.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use platctrl_framework::client::{Registered, register_kind};
/// use platctrl_framework::environment::Environment;
/// use platctrl_framework::model::{KindDefinition, Resource};
/// use platctrl_framework::store::MemoryStore;
/// # use schemars::JsonSchema;
/// # use serde::{Deserialize, Serialize};
///
/// /// A web site.
/// #[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
/// #[resource(group = "example.dev", version = "v1", kind = "Site")]
/// pub struct SiteSpec { pages: u32 }
///
/// let store = MemoryStore::new(Environment::system());
/// let kind = KindDefinition::of::<Site>();
/// assert_eq!(register_kind(&store, &kind).await.unwrap(), Registered::New);
/// assert_eq!(register_kind(&store, &kind).await.unwrap(), Registered::Same);
/// # });
/// ```
///
/// # Errors
/// `Incompatible` names every change of a schema that stored objects may not survive; nothing is
/// written then.
pub async fn register_kind(
    store: &dyn Store,
    kind: &KindDefinition,
) -> Result<Registered, RegisterError> {
    let name = |reason: String| RegisterError::Name {
        kind: kind.group_plural(),
        reason,
    };
    let key = Key::new(format!("x/kinds/{}/{}", kind.group, kind.plural));
    let key = key.map_err(|error| name(error.to_string()))?;
    let value = serde_json::to_vec(kind).map_err(|error| name(error.to_string()))?;
    for _ in 0..ATTEMPTS {
        let held = store.get(std::slice::from_ref(&key)).await?.records;
        let held = held.into_iter().next().flatten();
        let mut outcome = Registered::New;
        if let Some(held) = &held {
            if held.value == value {
                return Ok(Registered::Same);
            }
            // What cannot be read is replaced by what can.
            if let Ok(known) = serde_json::from_slice::<KindDefinition>(&held.value) {
                let problems = incompatibilities(&known, kind);
                if !problems.is_empty() && incompatibilities(kind, &known).is_empty() {
                    return Ok(Registered::Newer);
                }
                if !problems.is_empty() {
                    let kind = kind.group_plural();
                    return Err(RegisterError::Incompatible { kind, problems });
                }
            }
            outcome = Registered::Updated;
        }
        let modified = held.map(|held| held.modified);
        let write = Transaction::new()
            .require_unchanged(key.clone(), modified)
            .put(key.clone(), value.clone());
        match store.commit(write).await {
            Ok(_) => return Ok(outcome),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::unavailable(format!("others keep registering {key}")).into())
}

/// The kinds that are registered, and the records among them that cannot be read.
///
/// # Errors
/// The store's.
pub async fn registered_kinds(
    store: &dyn Store,
) -> Result<(Vec<KindDefinition>, Vec<RecordError>), StoreError> {
    let prefix = Prefix::new("x/kinds/").expect("a constant that is a valid prefix");
    let mut request = ListRequest::new(prefix);
    let (mut kinds, mut set_aside) = (Vec::new(), Vec::new());
    loop {
        let page = store.list(&request).await?;
        request.after = page.records.last().map(|record| record.key.clone());
        for record in page.records {
            let unreadable = |reason: String| RecordError {
                key: record.key.to_string(),
                revision: record.modified,
                reason,
            };
            match serde_json::from_slice::<KindDefinition>(&record.value) {
                Ok(kind) => {
                    let own = format!("x/kinds/{}/{}", kind.group, kind.plural);
                    if own == record.key.as_str() {
                        kinds.push(kind);
                    } else {
                        set_aside.push(unreadable("it is not the kind of its key".to_owned()));
                    }
                }
                Err(error) => set_aside.push(unreadable(error.to_string())),
            }
        }
        if !page.more || request.after.is_none() {
            return Ok((kinds, set_aside));
        }
    }
}
