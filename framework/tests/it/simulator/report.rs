//! What a failure tells, and that it can be acted upon.

use super::bites::in_two_steps;
use super::pasted;

#[test]
fn a_failure_tells_what_how_and_in_which_order_and_prints_a_test_that_compiles() {
    let failure = in_two_steps(true).exhaustive().unwrap_err();
    let text = failure.to_string();
    assert!(
        text.starts_with("the end is not that of the undisturbed run"),
        "{text}"
    );
    let [words] = failure.in_words() else {
        panic!("{text}");
    };
    assert!(
        words.contains("nobody knows") && words.contains("replica 0 reports sites/default/a"),
        "{words}"
    );
    let lines = failure.timeline();
    let at = |what: &str| lines.iter().position(|line| line.contains(what));
    let (made, died, again) = (
        at("scenario     creates sites/default/a"),
        at("!! "),
        at("begin again"),
    );
    assert!(made < died && died < again && again.is_some(), "{text}");
    assert!(
        text.contains(&format!("schedule: {}", failure.schedule())),
        "{text}"
    );
    // As it was pasted there.
    let pasted = include_str!("pasted.rs");
    assert!(pasted.contains(&failure.test()), "{}", failure.test());
    // It shows the problem again, and no longer once the bug is gone.
    let schedule = failure.schedule().to_string();
    let again = in_two_steps(true)
        .replay(&schedule)
        .unwrap_err()
        .to_string();
    assert_eq!(again.lines().next(), text.lines().next());
    pasted::simulation().replay(&schedule).unwrap();
}

#[test]
fn text_that_is_no_schedule_is_refused_by_name() {
    let error = pasted::simulation()
        .replay("seed=1 dance@3")
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("`dance@3` is not part of a schedule"),
        "{error}"
    );
}
