//! What is written in `#[resource(…)]`, read and checked.

use darling::util::Flag;
use darling::{Error, FromDeriveInput, FromMeta};
use quote::format_ident;
use syn::{Attribute, Data, DeriveInput, Fields, Ident, LitStr, Path, Type, Visibility};

use crate::names;

/// The attribute as it is written.
#[derive(FromDeriveInput)]
#[darling(attributes(resource))]
struct Written {
    group: Option<LitStr>,
    version: Option<LitStr>,
    kind: Option<LitStr>,
    status: Option<Type>,
    plural: Option<LitStr>,
    singular: Option<LitStr>,
    short: Option<Vec<LitStr>>,
    scope: Option<LitStr>,
    node: Option<Path>,
    #[darling(multiple, rename = "column")]
    columns: Vec<WrittenColumn>,
    #[darling(multiple, rename = "also")]
    other_versions: Vec<WrittenVersion>,
    validate: Option<Path>,
    validate_update: Option<Path>,
    deletion_policy: Option<Path>,
}

#[derive(FromMeta)]
struct WrittenVersion {
    version: Option<LitStr>,
    spec: Option<Type>,
}

#[derive(FromMeta)]
struct WrittenColumn {
    name: Option<LitStr>,
    path: Option<LitStr>,
    wide: Flag,
}

/// A kind, checked.
pub(crate) struct Kind {
    pub(crate) spec: Ident,
    pub(crate) visibility: Visibility,
    pub(crate) docs: Vec<Attribute>,
    pub(crate) ident: Ident,
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) status: Option<Type>,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) short_names: Vec<String>,
    pub(crate) scope: Scope,
    pub(crate) columns: Vec<Column>,
    pub(crate) other_versions: Vec<(String, Type)>,
    pub(crate) validate: Option<Path>,
    pub(crate) validate_update: Option<Path>,
    pub(crate) deletion_policy: Option<Path>,
}

pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) wide: bool,
}

pub(crate) enum Scope {
    Cluster,
    Namespaced,
    /// With the function that tells an object's node.
    Node(Path),
}

impl Kind {
    /// Reads the attribute of a spec's type; the errors are all of them, each at its place.
    pub(crate) fn read(input: &DeriveInput) -> Result<Self, Error> {
        check_spec(input)?;
        let written = Written::from_derive_input(input).map_err(say_what_is_known)?;
        let mut errors = Error::accumulator();
        let spec = &input.ident;

        let group = required(&mut errors, spec, written.group, "group", "example.dev");
        let version = required(&mut errors, spec, written.version, "version", "v1");
        let example = spec.to_string();
        let example = example.strip_suffix("Spec").unwrap_or("Site");
        let kind = required(&mut errors, spec, written.kind, "kind", example);

        check(&mut errors, "API group", group.as_ref(), names::check_group);
        check(
            &mut errors,
            "version",
            version.as_ref(),
            names::check_version,
        );
        check(&mut errors, "kind", kind.as_ref(), names::check_kind);
        let ident = kind
            .as_ref()
            .filter(|kind| names::check_kind(&kind.value()).is_ok())
            .and_then(|kind| errors.handle(kind_ident(kind, spec)));

        let words = [
            ("plural", written.plural.as_ref()),
            ("singular", written.singular.as_ref()),
        ];
        for (what, word) in words {
            check(&mut errors, what, word, names::check_word);
        }
        let kind_name = kind.as_ref().map(LitStr::value).unwrap_or_default();
        let singular = written
            .singular
            .map_or_else(|| kind_name.to_ascii_lowercase(), |name| name.value());
        let plural = written.plural.as_ref().map_or_else(
            || names::plural(&kind_name.to_ascii_lowercase()),
            LitStr::value,
        );
        // A kind of 63 letters has no room for its plural.
        if let (None, Some(ident), Err(reason)) =
            (&written.plural, &ident, names::check_word(&plural))
        {
            let text =
                format!("`{plural}` is not a valid plural: {reason}; write `plural = \"…\"`");
            errors.push(Error::custom(text).with_span(ident));
        }

        let mut short_names: Vec<String> = Vec::new();
        for name in written.short.iter().flatten() {
            check(&mut errors, "short name", Some(name), names::check_word);
            let text = name.value();
            if text == plural || text == singular || short_names.contains(&text) {
                let text = format!("`{text}` is a name of this kind already: remove it here");
                errors.push(Error::custom(text).with_span(name));
            }
            short_names.push(text);
        }

        let scope = errors.handle(scope(spec, written.scope.as_ref(), written.node));
        let columns = columns(&mut errors, spec, written.columns);
        let own = version.as_ref().map(LitStr::value);
        let other_versions = other_versions(&mut errors, spec, own, written.other_versions);
        errors.finish()?;

        // Whatever is None below was pushed as an error, with which `finish` returned.
        let missing = || Error::custom("this attribute cannot be read").with_span(spec);
        Ok(Self {
            spec: spec.clone(),
            visibility: input.vis.clone(),
            docs: input
                .attrs
                .iter()
                .filter(|attribute| attribute.path().is_ident("doc"))
                .cloned()
                .collect(),
            ident: ident.ok_or_else(missing)?,
            group: group.ok_or_else(missing)?.value(),
            version: version.ok_or_else(missing)?.value(),
            kind: kind_name,
            status: written.status,
            plural,
            singular,
            short_names,
            scope: scope.ok_or_else(missing)?,
            columns,
            other_versions,
            validate: written.validate,
            validate_update: written.validate_update,
            deletion_policy: written.deletion_policy,
        })
    }
}

/// A spec is written as an object in manifests, so its type has named fields.
fn check_spec(input: &DeriveInput) -> Result<(), Error> {
    let what = match &input.data {
        Data::Struct(data) if matches!(data.fields, Fields::Named(_)) => {
            if input.generics.params.is_empty() {
                return Ok(());
            }
            let text =
                "a kind has one spec: its type cannot have type, lifetime or const parameters";
            return Err(Error::custom(text).with_span(&input.generics));
        }
        Data::Struct(_) => "a struct without named fields",
        Data::Enum(_) => "an enum",
        Data::Union(_) => "a union",
    };
    let name = &input.ident;
    let text = format!(
        "`Resource` cannot be derived on {what}: a spec is an object with fields, write `struct {name} {{ … }}`"
    );
    Err(Error::custom(text).with_span(name))
}

/// Where no known attribute is similar to an unknown one, the error says which there are.
fn say_what_is_known(errors: Error) -> Error {
    let complete = |error: Error| {
        let text = error.to_string();
        if !text.starts_with("Unknown field") || text.contains("Did you mean") {
            return error;
        }
        let text = format!(
            "{text}. `resource` takes group, version, kind, status, plural, singular, short, scope, \
             node, column, also, validate, validate_update and deletion_policy; `column` takes name, \
             path and wide; `also` takes version and spec"
        );
        Error::custom(text).with_span(&error.span())
    };
    Error::multiple(errors.into_iter().map(complete).collect())
}

fn required(
    errors: &mut darling::error::Accumulator,
    spec: &Ident,
    value: Option<LitStr>,
    name: &str,
    example: &str,
) -> Option<LitStr> {
    if value.is_none() {
        let text = format!("`{name}` is missing: write `#[resource({name} = \"{example}\", …)]`");
        errors.push(Error::custom(text).with_span(spec));
    }
    value
}

fn check(
    errors: &mut darling::error::Accumulator,
    what: &str,
    name: Option<&LitStr>,
    rule: fn(&str) -> Result<(), &'static str>,
) {
    let Some(name) = name else { return };
    if let Err(reason) = rule(&name.value()) {
        let text = format!("`{}` is not a valid {what}: {reason}", name.value());
        errors.push(Error::custom(text).with_span(name));
    }
}

fn kind_ident(kind: &LitStr, spec: &Ident) -> Result<Ident, Error> {
    let text = kind.value();
    if *spec == text {
        let text = format!(
            "the derive makes a type `{text}` for the kind: give its spec another name, as `{text}Spec`"
        );
        return Err(Error::custom(text).with_span(kind));
    }
    // The only word of Rust that begins with a capital letter.
    if text == "Self" {
        return Err(Error::custom("`Self` is a word of Rust: choose another name").with_span(kind));
    }
    Ok(format_ident!("{text}", span = kind.span()))
}

fn scope(spec: &Ident, written: Option<&LitStr>, node: Option<Path>) -> Result<Scope, Error> {
    let text = written.map(LitStr::value);
    let scope = match (text.as_deref(), node) {
        (Some("Node"), Some(node)) => return Ok(Scope::Node(node)),
        (Some("Node"), None) => {
            let text = "objects of the scope `Node` must tell their node: \
                        write `node = path::to::function`, a `fn(&Spec) -> Option<&str>`";
            return Err(
                Error::custom(text.replace("&Spec", &format!("&{spec}"))).with_span(&written)
            );
        }
        (Some("Cluster"), None) => return Ok(Scope::Cluster),
        (Some("Namespaced") | None, None) => return Ok(Scope::Namespaced),
        (Some("Cluster" | "Namespaced") | None, Some(node)) => {
            let text = "only objects of the scope `Node` have a node: write `scope = \"Node\"`, or remove `node`";
            return Err(Error::custom(text).with_span(&node));
        }
        (Some(other), _) => other,
    };
    let text = format!("`{scope}` is not a scope: write \"Cluster\", \"Namespaced\" or \"Node\"");
    Err(Error::custom(text).with_span(&written))
}

fn columns(
    errors: &mut darling::error::Accumulator,
    spec: &Ident,
    written: Vec<WrittenColumn>,
) -> Vec<Column> {
    let mut columns: Vec<Column> = Vec::new();
    for column in written {
        let (Some(name), Some(path)) = (&column.name, &column.path) else {
            let span = column.name.as_ref().or(column.path.as_ref());
            let span = span.map_or_else(|| spec.span(), LitStr::span);
            let text = "a column has a heading and a path: \
                        write `column(name = \"Ready\", path = \".status.readyReplicas\")`";
            errors.push(Error::custom(text).with_span(&span));
            continue;
        };
        check(errors, "column path", Some(path), names::check_column_path);
        let heading = name.value();
        if heading.trim().is_empty() || heading.chars().any(char::is_control) {
            let text = "a column needs a heading: write `name = \"Ready\"`";
            errors.push(Error::custom(text).with_span(name));
        }
        if columns
            .iter()
            .any(|other| other.name.eq_ignore_ascii_case(&heading))
        {
            let text = format!("there is a column `{heading}` already");
            errors.push(Error::custom(text).with_span(name));
        }
        columns.push(Column {
            name: heading,
            path: path.value(),
            wide: column.wide.is_present(),
        });
    }
    columns
}

/// The versions that are understood beside the kind's own.
fn other_versions(
    errors: &mut darling::error::Accumulator,
    spec: &Ident,
    own: Option<String>,
    written: Vec<WrittenVersion>,
) -> Vec<(String, Type)> {
    let mut known: Vec<String> = own.into_iter().collect();
    let mut others = Vec::new();
    for other in written {
        let (Some(version), Some(other_spec)) = (&other.version, other.spec) else {
            let span = other
                .version
                .as_ref()
                .map_or_else(|| spec.span(), LitStr::span);
            let text = format!(
                "another version has a name and the type of its spec: \
                 write `also(version = \"v1beta1\", spec = Old{spec})`"
            );
            errors.push(Error::custom(text).with_span(&span));
            continue;
        };
        check(errors, "version", Some(version), names::check_version);
        let text = version.value();
        if known.contains(&text) {
            let text = format!("`{text}` is a version of this kind already: each is written once");
            errors.push(Error::custom(text).with_span(version));
        }
        known.push(text.clone());
        others.push((text, other_spec));
    }
    others
}
