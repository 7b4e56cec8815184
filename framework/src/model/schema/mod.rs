//! Checks JSON against a kind's schema, and says all that is wrong in words that name the field
//! and the way out.
//!
//! The schemas are what `schemars` makes of a kind's types. They are read as *structural*
//! schemas, as Kubernetes calls them: an object has the fields that some applicable schema
//! names, and no others unless `additionalProperties` (or `x-kubernetes-preserve-unknown-fields`)
//! allows them. Of `oneOf` as of `anyOf` at least one alternative must fit. Integers keep to the
//! range of the type that their `format` names; other formats, `multipleOf`, `not`, `if` and
//! whatever else is not known are left to the types that decode the value.
//!
//! Values and schemas may be hostile: nesting, work and the number of reported problems are
//! bounded, and what was too much to look at is a problem itself.

mod check;
mod compatible;
mod lookup;
mod object;
mod path;
mod scalar;
mod text;
mod union;

use serde_json::Value;

use super::FieldError;
use check::{Checker, Problem};
use path::Path;

pub use compatible::compatible;
pub use lookup::{field_at, type_name};
pub use object::{check_object, metadata_schema};
pub use path::child_path;
pub(crate) use path::{Segment, parse as parse_path};

/// Checks a value against a schema. Returns all problems, up to 100; `base` is the path of the
/// value itself, as `spec`.
#[must_use]
pub fn check(value: &Value, schema: &Value, base: &str) -> Vec<FieldError> {
    let problems = Checker::new(schema).run(value, &Path::base(base));
    problems.into_iter().map(Problem::into_error).collect()
}

/// The paths of the fields that a schema does not know, for those who carry a spec out and must
/// not do so in part. What could not be looked at, because it nests too deep or is too much, is
/// among them.
///
/// ```
/// use platctrl_framework::model::schema;
/// use serde_json::json;
///
/// let known = json!({"type": "object", "properties": {"env": {"type": "string"}}});
/// let spec = json!({"env": "a", "gpu": 1});
/// assert_eq!(schema::unknown_fields(&spec, &known, "spec"), ["spec.gpu"]);
/// ```
#[must_use]
pub fn unknown_fields(value: &Value, schema: &Value, base: &str) -> Vec<String> {
    let problems = Checker::new(schema).run(value, &Path::base(base));
    let unknown = problems.into_iter().filter(|problem| problem.unknown);
    unknown.map(|problem| problem.path).collect()
}

#[cfg(test)]
mod compatible_tests;
#[cfg(test)]
mod tests;
