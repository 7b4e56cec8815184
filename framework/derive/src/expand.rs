//! The code that a kind becomes.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned as _;

use crate::attributes::{Kind, Scope};

/// The kind's type and its implementation of the trait.
pub(crate) fn expand(kind: &Kind) -> TokenStream {
    let Kind {
        spec,
        visibility,
        ident,
        group,
        version,
        plural,
        singular,
        short_names,
        ..
    } = kind;
    let name = &kind.kind;
    let model = quote!(::platctrl_framework::model);

    let docs = if kind.docs.is_empty() {
        let text = format!("The kind `{name}`, whose spec is [`{spec}`].");
        quote!(#[doc = #text])
    } else {
        let docs = &kind.docs;
        quote!(#(#docs)*)
    };
    let status = kind
        .status
        .as_ref()
        .map_or_else(|| quote!(#model::NoStatus), |status| quote!(#status));
    let scope = match kind.scope {
        Scope::Cluster => quote!(Cluster),
        Scope::Namespaced => quote!(Namespaced),
        Scope::Node(_) => quote!(Node),
    };
    let columns = kind.columns.iter().map(|column| {
        let (name, path) = (&column.name, &column.path);
        if column.wide {
            quote!(#model::Column::wide(#name, #path))
        } else {
            quote!(#model::Column::new(#name, #path))
        }
    });
    let functions = functions(kind, &model);
    // The associated types are written at the spec's place, so that a missing `Deserialize` is
    // reported there.
    let spec_type = quote_spanned!(spec.span()=> type Spec = #spec;);

    quote! {
        #docs
        #[derive(Debug, Clone, Copy)]
        #visibility enum #ident {}

        #[automatically_derived]
        impl #model::Resource for #ident {
            #spec_type
            type Status = #status;

            const GROUP: &'static str = #group;
            const VERSION: &'static str = #version;
            const KIND: &'static str = #name;
            const PLURAL: &'static str = #plural;
            const SINGULAR: &'static str = #singular;
            const SHORT_NAMES: &'static [&'static str] = &[#(#short_names),*];
            const SCOPE: #model::Scope = #model::Scope::#scope;
            const COLUMNS: &'static [#model::Column] = &[#(#columns),*];

            #functions
        }
    }
}

/// The trait's functions that the attribute names.
fn functions(kind: &Kind, model: &TokenStream) -> TokenStream {
    let spec = &kind.spec;
    let errors = quote!(&mut ::std::vec::Vec<#model::FieldError>);
    let node = match &kind.scope {
        Scope::Node(function) => Some(quote! {
            fn node(spec: &#spec) -> ::core::option::Option<&str> {
                #function(spec)
            }
        }),
        Scope::Cluster | Scope::Namespaced => None,
    };
    let validate = kind.validate.as_ref().map(|function| {
        quote! {
            fn validate(spec: &#spec, errors: #errors) {
                #function(spec, errors);
            }
        }
    });
    let validate_update = kind.validate_update.as_ref().map(|function| {
        quote! {
            fn validate_update(old: &#spec, new: &#spec, errors: #errors) {
                #function(old, new, errors);
            }
        }
    });
    let deletion_policy = kind.deletion_policy.as_ref().map(|function| {
        quote! {
            fn deletion_policy(spec: &#spec) -> #model::Propagation {
                #function(spec)
            }
        }
    });
    let other_versions = (!kind.other_versions.is_empty()).then(|| {
        // Written at the other spec's place, so that a missing conversion is reported there.
        let versions = kind.other_versions.iter().map(|(version, other)| {
            quote_spanned!(other.span()=> #model::OtherVersion::of::<Self, #other>(#version))
        });
        quote! {
            fn other_versions() -> ::std::vec::Vec<#model::OtherVersion> {
                ::std::vec![#(#versions),*]
            }
        }
    });
    quote!(#node #validate #validate_update #deletion_policy #other_versions)
}
