//! The supervisor of one launchable.
fn main() {}
