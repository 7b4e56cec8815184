//! The command line, exactly as `platctrl` is built.

fn main() -> std::process::ExitCode {
    platctrl::main()
}
