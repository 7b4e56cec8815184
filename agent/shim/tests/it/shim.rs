//! The shim for the tests of this package.

fn main() {
    std::process::exit(platctrl_shim_lib::main());
}
