//! What a test needs of the machine. A test that goes by in silence proves nothing: where something
//! is missing it fails, or somebody has said that it may be left out, and it says that it was.

/// Whether this is root, for a test, or a part of one, that needs it.
///
/// # Panics
/// Without root, unless `PLATCTRL_TEST_UNPRIVILEGED=1` says that what needs it is to be left out.
/// `scripts/test` says so for whoever is not root, and tells it.
#[must_use]
pub fn root() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(
        is_set("PLATCTRL_TEST_UNPRIVILEGED"),
        "this test needs root: run it as root, or with PLATCTRL_TEST_UNPRIVILEGED=1 without it"
    );
    left_out("root");
    false
}

/// Says that a test, or a part of one, is left out because this machine has no such thing, as a
/// controller of control groups, which even root cannot do anything about.
///
/// # Panics
/// With `PLATCTRL_TEST_COMPLETE=1`, which says that this machine has everything.
pub fn lacks(what: &str) {
    assert!(
        !is_set("PLATCTRL_TEST_COMPLETE"),
        "this machine is said to have everything, and has no {what}"
    );
    left_out(what);
}

fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| value == "1")
}

fn left_out(what: &str) {
    let test = std::thread::current();
    let test = test.name().unwrap_or("a test");
    eprintln!("LEFT OUT: {test}, or a part of it: this machine has no {what} for it");
}
