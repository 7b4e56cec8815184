//! The derive macro that makes a kind of the type of its spec.
//!
//! [`Resource`] reads the `#[resource(…)]` attribute (`attributes`), checks everything that can
//! be wrong with it while compiling (`names`), and writes the kind's type and its
//! implementation of the trait (`expand`). Use it by its other name,
//! `platctrl_framework::model::Resource`, which brings the trait along.

mod attributes;
mod expand;
mod names;

use proc_macro::TokenStream;

/// Makes a kind of the type of its spec, a struct with named fields.
///
/// Beside the trait's implementation it makes the kind's own type: an enum without variants of
/// the kind's name, with the spec's visibility and documentation.
///
/// | attribute | what | without it |
/// |---|---|---|
/// | `group = "example.dev"` | the API group | required |
/// | `version = "v1"` | the version: `v1`, `v1beta2`, `v2alpha1` | required |
/// | `kind = "Site"` | the name in UpperCamelCase | required |
/// | `status = SiteStatus` | the type of the kind's own part of the status | `NoStatus` |
/// | `plural = "sites"` | the name in keys, paths and commands | the kind in lower case, in the English plural |
/// | `singular = "site"` | | the kind in lower case |
/// | `short("si", "s")` | shorter names for commands, all in one list | none |
/// | `scope = "Namespaced"` | `"Cluster"`, `"Namespaced"` or `"Node"` | `"Namespaced"` |
/// | `node = path` | `fn(&Spec) -> Option<&str>`: the node that works on the object; with the scope `"Node"` and only with it | |
/// | `column(name = "…", path = ".status.…", wide)` | a column of the kind's table, repeated; `wide`: only of wide tables | none |
/// | `also(version = "v1beta1", spec = OldSiteSpec)` | a version that is understood beside this one, which is stored; repeated; `From` both ways between the specs converts | none |
/// | `validate = path` | `fn(&Spec, &mut Vec<FieldError>)` | everything is valid |
/// | `validate_update = path` | `fn(&Spec, &Spec, &mut Vec<FieldError>)`, old and new | every change is valid |
/// | `deletion_policy = path` | `fn(&Spec) -> Propagation` | `Orphan` |
///
/// Paths and types may be written plainly or in quotes.
#[proc_macro_derive(Resource, attributes(resource))]
pub fn resource(input: TokenStream) -> TokenStream {
    let expanded = syn::parse(input)
        .map_err(Into::into)
        .and_then(|input| attributes::Kind::read(&input))
        .map(|kind| expand::expand(&kind));
    match expanded {
        Ok(tokens) => tokens.into(),
        Err(errors) => errors.write_errors().into(),
    }
}
