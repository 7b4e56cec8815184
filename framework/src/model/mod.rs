//! What the store holds: objects, their keys, and the kinds they belong to.
//!
//! An object of a [`Resource`] kind is an [`Intent`] record and, once somebody works on it, a
//! [`Reality`] record, each at its own [`ObjectKey`] path. [`Object`] is both joined, as a
//! reconcile and the API see it; [`RawObject`] is the same without knowing the kind's types.

mod condition;
mod digest;
mod event;
pub mod identity;
mod key;
mod kind;
mod metadata;
mod object;
mod preserve;
mod record;
mod registry;
pub mod schema;
mod selector;
mod uid;
mod version;

pub use condition::{Condition, ConditionStatus, Conditions};
pub use digest::{Digest, InvalidDigest};
pub use event::{Event, EventType, ObjectReference};
pub use key::{GroupPlural, InvalidName, MAX_NAME_BYTES, ObjectKey, Scope, Tree, check_name};
pub use kind::{Column, FieldError, KindDefinition, NoStatus, Resource};
pub use metadata::{Deletion, Metadata, OwnerReference, Propagation};
pub use object::{Object, RawObject};
pub use preserve::preserve_unknown;
pub use record::{
    Declared, Intent, Joined, Phase, Reality, RealityMetadata, RecordError, Status, Versioned,
};
pub use registry::{KindChecks, Kinds, KnownKind};
pub use selector::{MAX_SELECTOR_BYTES, Requirement, Selector, SelectorError, check_labels};
pub use uid::Uid;
pub(crate) use version::in_stored_version;
pub use version::{OtherVersion, VersionDefinition};
