//! The targets, and what holds for every input of each.

mod agent_state;
mod artifact;
mod http;
mod manifest;
mod object;
mod shim;
mod store_file;
mod text;

/// A function that has to come back from every input.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Target {
    /// Its name, and that of the directory of its seeds.
    pub name: &'static str,
    /// Takes one input; panics when something is wrong.
    pub run: fn(&[u8]),
    /// The longest input that is worth the time.
    pub longest: usize,
    /// Words that lead a blind mutation somewhere.
    pub words: &'static [&'static str],
}

/// All targets.
pub const TARGETS: &[Target] = &[
    text::SELECTOR,
    text::LABELS,
    text::KEY,
    text::REVISION,
    text::DIGEST,
    text::QUANTITY,
    text::LOCATION,
    object::RECORD,
    object::MANIFEST_OBJECT,
    manifest::MANIFEST,
    artifact::ARTIFACT,
    artifact::ARCHIVE,
    shim::PROTOCOL,
    shim::SPEC,
    agent_state::POD_RECORD,
    http::HTTP,
    store_file::STORE_FILE,
];

/// The target of this name.
#[must_use]
pub fn find(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}

/// Runs the target of this name on one input.
///
/// # Panics
/// When something is wrong, or there is no such target.
pub fn run(name: &str, input: &[u8]) {
    let target = find(name).expect("the harness names a target");
    if input.len() <= target.longest {
        (target.run)(input);
    }
}
