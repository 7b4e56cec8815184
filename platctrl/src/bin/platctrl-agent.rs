//! The agent of a machine, as `platctrl agent` runs it: everything is in the library.

fn main() -> std::process::ExitCode {
    platctrl::agent()
}
