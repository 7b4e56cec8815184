//! Named places where a test can make a process die, fail or wait.
//!
//! `failpoint!("agent.unpack.rename")` does nothing unless the environment variable
//! `PLATCTRL_FAILPOINTS` names it, as in `agent.unpack.rename=abort;x=sleep:50`. The variable is
//! read once per process, so that a run without it pays one atomic load per place. Actions:
//! `abort` (die at once, as by `kill -9`), `exit:N`, `sleep:MILLISECONDS`, `hold:FILE` (the first time,
//! makes that file and waits until somebody removes it), and `after:N:ACTION`, which lets N passages through
//! first.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[derive(Debug)]
enum Action {
    Abort,
    Exit(i32),
    Sleep(Duration),
    Hold(PathBuf),
}

#[derive(Debug)]
struct Place {
    skip: u64,
    passed: AtomicU64,
    action: Action,
}

static PLACES: OnceLock<HashMap<String, Place>> = OnceLock::new();

fn parse(text: &str) -> HashMap<String, Place> {
    text.split(';')
        .filter_map(|entry| {
            let (name, mut action) = entry.trim().split_once('=')?;
            let mut skip = 0;
            if let Some(rest) = action.strip_prefix("after:") {
                let (count, rest) = rest.split_once(':')?;
                skip = count.parse().ok()?;
                action = rest;
            }
            let action = match action.split_once(':') {
                None if action == "abort" => Action::Abort,
                Some(("exit", code)) => Action::Exit(code.parse().ok()?),
                Some(("hold", file)) => Action::Hold(file.into()),
                Some(("sleep", ms)) => Action::Sleep(Duration::from_millis(ms.parse().ok()?)),
                _ => return None,
            };
            Some((
                name.to_owned(),
                Place {
                    skip,
                    passed: AtomicU64::new(0),
                    action,
                },
            ))
        })
        .collect()
}

/// Acts as the process environment asks for the place `name`. Use [`failpoint!`](crate::failpoint!).
#[doc(hidden)]
pub fn pass(name: &str) {
    let places = PLACES.get_or_init(|| {
        std::env::var("PLATCTRL_FAILPOINTS")
            .map(|text| parse(&text))
            .unwrap_or_default()
    });
    if places.is_empty() {
        return;
    }
    let Some(place) = places.get(name) else {
        return;
    };
    let passed = place.passed.fetch_add(1, Ordering::Relaxed);
    if passed < place.skip {
        return;
    }
    match &place.action {
        Action::Abort => std::process::abort(),
        Action::Exit(code) => std::process::exit(*code),
        Action::Sleep(duration) => std::thread::sleep(*duration),
        Action::Hold(file) => {
            // One that cannot be made holds nobody, and whoever waits for it will say so.
            let made = passed == place.skip && std::fs::write(file, "").is_ok();
            while made && file.exists() {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

/// Marks a place where tests can interrupt this process; see [the module](mod@crate::failpoint).
#[macro_export]
macro_rules! failpoint {
    ($name:expr) => {
        $crate::failpoint::pass($name)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_are_read_and_nonsense_is_left_out() {
        let places = parse("a=abort; b=after:3:sleep:20;c=exit:7;d=dance;e;f=hold:/a/b");
        assert_eq!(places.len(), 4);
        assert!(matches!(places["a"].action, Action::Abort));
        assert!(
            matches!(places["b"], Place { skip: 3, action: Action::Sleep(d), .. } if d.as_millis() == 20)
        );
        assert!(matches!(places["c"].action, Action::Exit(7)));
        assert!(matches!(&places["f"].action, Action::Hold(file) if file.ends_with("a/b")));
    }

    #[test]
    fn a_place_nobody_named_does_nothing() {
        failpoint!("framework.test.nobody");
    }
}
