//! The quickstart program.
fn main() {}
