//! Kinds: what objects there are and what their specs look like.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{GroupPlural, OtherVersion, Propagation, Scope, Status, VersionDefinition};

/// A kind of object. Derive it on the spec's type:
///
/// ```
/// use platctrl_framework::model::{Object, Resource};
/// use schemars::JsonSchema;
/// use serde::{Deserialize, Serialize};
///
/// /// A web site.
/// #[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
/// #[resource(group = "example.dev", version = "v1", kind = "Site", status = SiteStatus)]
/// pub struct SiteSpec {
///     domain: String,
/// }
///
/// /// What is so about a site.
/// #[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
/// pub struct SiteStatus {
///     #[serde(default)]
///     pages: u32,
/// }
///
/// # fn main() {
/// assert_eq!((Site::KIND, Site::PLURAL), ("Site", "sites"));
/// fn reconcile(site: Object<Site>) { println!("{} has {} pages", site.spec.domain, site.status.detail.pages) }
/// # }
/// ```
///
/// The derive makes `Site`, a type without values that stands for the kind.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a kind",
    label = "this is not a kind",
    note = "derive `Resource` on the type of its spec, and name the kind here: `Site`, not `SiteSpec`"
)]
pub trait Resource: Sized + Send + Sync + 'static {
    /// What is wanted of an object of this kind.
    type Spec: Serialize + DeserializeOwned + JsonSchema + Clone + Debug + PartialEq + Send + Sync;
    /// The kind's own part of the status.
    type Status: Serialize
        + DeserializeOwned
        + JsonSchema
        + Clone
        + Debug
        + PartialEq
        + Default
        + Send
        + Sync;

    /// The API group, as `example.dev`.
    const GROUP: &'static str;
    /// The version of the types here, as `v1`.
    const VERSION: &'static str;
    /// The kind's name, as `Site`.
    const KIND: &'static str;
    /// Its name in keys, paths and on the command line, as `sites`.
    const PLURAL: &'static str;
    /// As `site`.
    const SINGULAR: &'static str;
    /// Shorter names for the command line.
    const SHORT_NAMES: &'static [&'static str];
    /// How keys are scoped.
    const SCOPE: Scope;
    /// The columns that tables show behind the name and before the age.
    const COLUMNS: &'static [Column];

    /// The node that works on the object. Only for kinds of [`Scope::Node`].
    fn node(_spec: &Self::Spec) -> Option<&str> {
        None
    }

    /// What the types cannot say about a spec. Problems are added to `errors`.
    fn validate(_spec: &Self::Spec, _errors: &mut Vec<FieldError>) {}

    /// Which changes of a spec are refused. Problems are added to `errors`.
    fn validate_update(_old: &Self::Spec, _new: &Self::Spec, _errors: &mut Vec<FieldError>) {}

    /// What becomes of owned objects when the delete does not say.
    fn deletion_policy(_spec: &Self::Spec) -> Propagation {
        Propagation::Orphan
    }

    /// The versions that are understood beside [`VERSION`](Self::VERSION), which is the one that
    /// is stored. Objects that are stored in one of these are converted when they are read, and
    /// stored anew in the other when they are next changed.
    #[must_use]
    fn other_versions() -> Vec<OtherVersion> {
        Vec::new()
    }

    /// `group/version`.
    #[must_use]
    fn api_version() -> String {
        format!("{}/{}", Self::GROUP, Self::VERSION)
    }

    /// The kind's name in keys.
    #[must_use]
    fn group_plural() -> GroupPlural {
        GroupPlural::new(Self::GROUP, Self::PLURAL)
    }
}

/// ```
/// # use platctrl_framework::model::{FieldError, Resource};
/// # use schemars::JsonSchema;
/// # use serde::{Deserialize, Serialize};
/// /// A web site.
/// #[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
/// #[resource(
///     group = "example.dev",
///     version = "v1",
///     kind = "Site",
///     short("si"),
///     column(name = "Domain", path = ".spec.domain"),
///     validate = check_site
/// )]
/// pub struct SiteSpec {
///     domain: String,
/// }
///
/// fn check_site(spec: &SiteSpec, errors: &mut Vec<FieldError>) {
///     if !spec.domain.contains('.') {
///         errors.push(FieldError::new("spec.domain", "it has no dot: write it in full"));
///     }
/// }
/// ```
///
/// A kind whose spec had another form before names that form with `also`. Objects that are stored
/// in it are read as the new one, and the form stays there to be asked for:
///
/// ```
/// # use platctrl_framework::model::{RawObject, Resource};
/// # use schemars::JsonSchema;
/// # use serde::{Deserialize, Serialize};
/// /// A web site.
/// #[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
/// #[resource(
///     group = "example.dev",
///     version = "v1",
///     kind = "Site",
///     also(version = "v1beta1", spec = OldSiteSpec)
/// )]
/// pub struct SiteSpec {
///     domains: Vec<String>,
/// }
///
/// #[derive(Serialize, Deserialize, JsonSchema)]
/// pub struct OldSiteSpec {
///     domain: String,
/// }
///
/// impl From<OldSiteSpec> for SiteSpec {
///     fn from(old: OldSiteSpec) -> Self {
///         Self { domains: vec![old.domain] }
///     }
/// }
///
/// impl From<SiteSpec> for OldSiteSpec {
///     fn from(site: SiteSpec) -> Self {
///         Self { domain: site.domains.into_iter().next().unwrap_or_default() }
///     }
/// }
///
/// # fn main() {
/// let stored = serde_json::json!({
///     "apiVersion": "example.dev/v1beta1",
///     "kind": "Site",
///     "spec": {"domain": "example.org"},
/// });
/// let raw: RawObject = serde_json::from_value(stored).unwrap();
/// assert_eq!(raw.typed::<Site>().unwrap().spec.domains, ["example.org"]);
/// # }
/// ```
///
pub use platctrl_derive::Resource;

/// The status of a kind that has none of its own: phase and conditions only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NoStatus {}

/// A column of a kind's table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Column {
    /// The heading.
    pub name: std::borrow::Cow<'static, str>,
    /// Where the value is: field names with dots between them, as `.status.readyReplicas`. A
    /// condition's status is `.status.conditions.Ready`.
    pub path: std::borrow::Cow<'static, str>,
    /// Shown only in wide tables.
    #[serde(default)]
    pub wide: bool,
}

impl Column {
    /// A column of every table.
    #[must_use]
    pub const fn new(name: &'static str, path: &'static str) -> Self {
        Self {
            name: std::borrow::Cow::Borrowed(name),
            path: std::borrow::Cow::Borrowed(path),
            wide: false,
        }
    }

    /// A column of wide tables.
    #[must_use]
    pub const fn wide(name: &'static str, path: &'static str) -> Self {
        Self {
            name: std::borrow::Cow::Borrowed(name),
            path: std::borrow::Cow::Borrowed(path),
            wide: true,
        }
    }
}

/// Something wrong with one field of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct FieldError {
    /// Where, as `spec.template.spec.launchables.web.digest`.
    pub path: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl FieldError {
    /// A problem at a path.
    pub fn new(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            problem: problem.into(),
        }
    }
}

/// A kind without its types, as registered in the store for servers and the command line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct KindDefinition {
    /// See [`Resource::GROUP`].
    pub group: String,
    /// See [`Resource::VERSION`].
    pub version: String,
    /// See [`Resource::KIND`].
    pub kind: String,
    /// See [`Resource::PLURAL`].
    pub plural: String,
    /// See [`Resource::SINGULAR`].
    pub singular: String,
    /// See [`Resource::SHORT_NAMES`].
    #[serde(default)]
    pub short_names: Vec<String>,
    /// See [`Resource::SCOPE`].
    pub scope: Scope,
    /// See [`Resource::COLUMNS`].
    #[serde(default)]
    pub columns: Vec<Column>,
    /// The JSON schema of the whole object; `spec` and `status` are its properties.
    pub schema: Value,
    /// See [`Resource::other_versions`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_versions: Vec<VersionDefinition>,
}

/// The JSON schema of a spec, or of another part of an object. Inline: a reader of `explain` or of
/// an OpenAPI document wants one tree per kind.
pub(super) fn spec_schema<S: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    settings
        .into_generator()
        .into_root_schema_for::<S>()
        .to_value()
}

impl KindDefinition {
    /// The definition of a kind known by its types.
    #[must_use]
    pub fn of<K: Resource>() -> Self {
        let spec = spec_schema::<K::Spec>();
        let status = spec_schema::<Status<K::Status>>();
        let schema = json!({
            "type": "object",
            "properties": {
                "apiVersion": { "type": "string" },
                "kind": { "type": "string" },
                "metadata": super::schema::metadata_schema(),
                "spec": spec,
                "status": status,
            },
            "required": ["apiVersion", "kind", "metadata", "spec"],
        });
        Self {
            group: K::GROUP.to_owned(),
            version: K::VERSION.to_owned(),
            kind: K::KIND.to_owned(),
            plural: K::PLURAL.to_owned(),
            singular: K::SINGULAR.to_owned(),
            short_names: K::SHORT_NAMES.iter().map(|&name| name.to_owned()).collect(),
            scope: K::SCOPE,
            columns: K::COLUMNS.to_vec(),
            schema,
            other_versions: K::other_versions()
                .iter()
                .map(OtherVersion::definition)
                .collect(),
        }
    }

    /// The same, made once for each kind of a program.
    pub(crate) fn shared<K: Resource>() -> Arc<Self> {
        static ALL: Mutex<BTreeMap<TypeId, Arc<KindDefinition>>> = Mutex::new(BTreeMap::new());
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.entry(TypeId::of::<K>());
        known.or_insert_with(|| Arc::new(Self::of::<K>())).clone()
    }

    /// `group/version`.
    #[must_use]
    pub fn api_version(&self) -> String {
        format!("{}/{}", self.group, self.version)
    }

    /// The kind's name in keys.
    #[must_use]
    pub fn group_plural(&self) -> GroupPlural {
        GroupPlural::new(&self.group, &self.plural)
    }
}
