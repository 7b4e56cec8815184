//! Derive macro for platctrl kinds.
use proc_macro::TokenStream;
/// Placeholder doc.
#[proc_macro_derive(Resource, attributes(resource))]
pub fn resource(_: TokenStream) -> TokenStream {
    TokenStream::new()
}
