//! The platctrl binary.
fn main() {}
