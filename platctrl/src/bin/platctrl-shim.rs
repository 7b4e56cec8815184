//! The supervisor of one launchable: `platctrl-shim DIRECTORY`. Started by the agent.

fn main() {
    std::process::exit(platctrl_shim_lib::main());
}
