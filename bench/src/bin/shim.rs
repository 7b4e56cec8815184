//! The supervisor of one launchable, exactly as `platctrl-shim` is built.

fn main() {
    std::process::exit(platctrl_shim_lib::main());
}
