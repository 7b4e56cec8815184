//! The agent of a machine, exactly as `platctrl-agent` is built.

fn main() -> std::process::ExitCode {
    platctrl::agent()
}
