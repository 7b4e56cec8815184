//! Parsers that are not part of the library, for the fuzz targets alone.

use std::path::Path;

use serde_json::Value;

/// The documents of a manifest, or the first problem with it, which names the file `fuzz.yaml`.
///
/// # Errors
/// What a person who applies it is told.
pub fn manifest(text: &str) -> Result<Vec<Value>, String> {
    let documents = crate::manifest::parse("fuzz.yaml", Path::new("/"), text)
        .map_err(|problem| crate::output::plain(&problem))?;
    let value = |document: crate::manifest::Document| {
        // A problem anywhere has a place to point to.
        let _ = document.problem("spec.template[0].x", "is wrong");
        document.value
    };
    Ok(documents.into_iter().map(value).collect())
}
