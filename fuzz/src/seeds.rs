//! The kept inputs of each target.

use std::path::PathBuf;

/// Where the inputs of a target are kept.
#[must_use]
pub fn directory(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("seeds")
        .join(target)
}

/// The kept inputs of a target with the names of their files, in the order of those.
///
/// # Errors
/// When the directory or a file in it cannot be read.
pub fn seeds(target: &str) -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut seeds = Vec::new();
    for entry in std::fs::read_dir(directory(target))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        seeds.push((name.to_string_lossy().into_owned(), std::fs::read(&path)?));
    }
    seeds.sort();
    Ok(seeds)
}
