//! Real users with random names, removed whatever happens.

use platctrl_test_support::needs;

use super::*;

struct Real {
    dir: tempfile::TempDir,
    app: String,
}

impl Real {
    /// None without root, which is said.
    fn new() -> Option<Self> {
        // Only root makes users.
        if !needs::root() {
            return None;
        }
        let app = format!("pct{:016x}", rand::random::<u64>());
        Some(Self {
            dir: tempfile::tempdir().unwrap(),
            app,
        })
    }

    fn users(&self) -> Users {
        Users::open(self.dir.path(), UserPolicy::default())
    }

    fn name(&self) -> String {
        user_name(&self.app)
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("users.json")
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = accounts::delete(&self.name());
        if accounts::local_group(&self.name()).ok().flatten().is_some() {
            let _ = accounts::delete_group(&self.name());
        }
    }
}

fn text<T: std::fmt::Debug>(result: Result<T, AuthError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn an_app_gets_a_user_of_its_own_once_and_only_that_is_removed() {
    let Some(real) = Real::new() else { return };
    let users = real.users();
    let made = users.resolve(None, &real.app).unwrap();
    assert_eq!(made.name, format!("pc-{}", real.app));
    assert!((1..1000).contains(&made.uid), "{made:?}");
    assert_eq!(made.groups, Vec::<u32>::new());
    let note = std::fs::read_to_string(real.path()).unwrap();
    let note: serde_json::Value = serde_json::from_str(&note).unwrap();
    assert_eq!(
        note["users"][&made.name]["uid"], made.uid,
        "for when it is deleted"
    );
    assert_eq!(users.resolve(None, &real.app).unwrap(), made);
    assert_eq!(
        real.users().resolve(None, &real.app).unwrap(),
        made,
        "after a restart"
    );

    // Another agent on the machine uses it too, and leaves it alone.
    let other = tempfile::tempdir().unwrap();
    let others = Users::open(other.path(), UserPolicy::default());
    assert_eq!(others.resolve(None, &real.app).unwrap(), made);
    assert_eq!(others.remove_created().unwrap(), Vec::<String>::new());
    assert!(accounts::local(&made.name).unwrap().is_some());

    assert_eq!(
        users.remove_created().unwrap(),
        std::slice::from_ref(&made.name)
    );
    assert_eq!(accounts::local(&made.name).unwrap(), None);
    assert_eq!(accounts::local_group(&made.name).unwrap(), None);
    assert_eq!(users.remove_created().unwrap(), Vec::<String>::new());
}

#[test]
fn pods_that_start_at_once_share_one_user() {
    let Some(real) = Real::new() else { return };
    // The agents of two data directories.
    let dir = tempfile::tempdir().unwrap();
    let (users, other) = (real.users(), Users::open(dir.path(), UserPolicy::default()));
    let resolve = |users: &Users| users.resolve(None, &real.app).unwrap();
    let (users, other) = (&users, &other);
    let all: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = [users, users, other, other]
            .map(|users| scope.spawn(move || resolve(users)))
            .into_iter()
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(all.iter().all(|identity| *identity == all[0]), "{all:?}");
    let removed = [users, other].map(|users| users.remove_created().unwrap());
    assert_eq!(removed.concat(), [real.name()], "one of the two made it");
}

#[test]
fn a_user_that_somebody_deleted_comes_back_with_its_number() {
    let Some(real) = Real::new() else { return };
    // A number that nobody is given unasked, so that it is still free.
    let uid = 40_000
        + real
            .app
            .bytes()
            .fold(0, |sum, byte| (sum * 31 + u32::from(byte)) % 10_000);
    let note = format!(
        r#"{{"users":{{"{}":{{"app":"{}","uid":{uid}}}}}}}"#,
        real.name(),
        real.app
    );
    std::fs::write(real.path(), note).unwrap();
    assert_eq!(accounts::local(&real.name()).unwrap(), None);
    assert_eq!(real.users().resolve(None, &real.app).unwrap().uid, uid);
    accounts::delete(&real.name()).unwrap();
    assert_eq!(accounts::local(&real.name()).unwrap(), None);
    assert_eq!(real.users().resolve(None, &real.app).unwrap().uid, uid);
}

#[test]
fn a_user_of_that_name_that_is_not_ours_is_neither_used_nor_removed() {
    let Some(real) = Real::new() else { return };
    accounts::add(&real.name(), "somebody", None, None).unwrap();
    let users = real.users();
    let error = text(users.resolve(None, &real.app));
    assert!(
        error.contains(&real.name()) && error.contains("runAs"),
        "{error}"
    );
    assert_eq!(users.remove_created().unwrap(), Vec::<String>::new());

    // Nor when a note claims it with another number, or for another name.
    let note = format!(
        r#"{{"users":{{"{}":{{"app":"{}","uid":4242,"gid":{}}},"root":{{"app":"x","uid":0}}}}}}"#,
        real.name(),
        real.app,
        accounts::local_group(&real.name()).unwrap().unwrap()
    );
    std::fs::write(real.path(), note).unwrap();
    assert_eq!(users.remove_created().unwrap(), Vec::<String>::new());
    assert!(accounts::local(&real.name()).unwrap().is_some());
    assert!(accounts::local("root").unwrap().is_some());
}

#[test]
fn a_group_of_that_name_that_is_not_ours_is_neither_used_nor_removed() {
    let Some(real) = Real::new() else { return };
    let made = std::process::Command::new("groupadd")
        .arg(real.name())
        .status();
    assert!(made.unwrap().success());
    let users = real.users();
    let error = text(users.resolve(None, &real.app));
    assert!(
        error.contains(&real.name()) && error.contains("runAs"),
        "{error}"
    );
    assert_eq!(
        accounts::local(&real.name()).unwrap(),
        None,
        "no user of it"
    );
    assert_eq!(users.remove_created().unwrap(), Vec::<String>::new());
    assert!(accounts::local_group(&real.name()).unwrap().is_some());
}

#[test]
fn a_number_that_somebody_else_has_by_now_is_not_given_again() {
    let Some(real) = Real::new() else { return };
    let other = Real::new().unwrap();
    let taken = other.users().resolve(None, &other.app).unwrap().uid;
    let note = format!(
        r#"{{"users":{{"{}":{{"app":"{}","uid":{taken}}}}}}}"#,
        real.name(),
        real.app
    );
    std::fs::write(real.path(), note).unwrap();
    let made = real.users().resolve(None, &real.app).unwrap();
    assert_ne!(made.uid, taken);
    assert_eq!(made.name, real.name());
}

#[test]
fn the_number_of_a_deleted_user_becomes_no_other_apps() {
    let Some(real) = Real::new() else { return };
    let other = Real::new().unwrap();
    // The number that the next user is given, and the user it belongs to is gone.
    let uid = other.users().resolve(None, &other.app).unwrap().uid;
    accounts::delete(&other.name()).unwrap();
    let note = format!(
        r#"{{"users":{{"{}":{{"app":"{}","uid":{uid}}}}}}}"#,
        other.name(),
        other.app
    );
    std::fs::write(real.path(), note).unwrap();
    assert_ne!(real.users().resolve(None, &real.app).unwrap().uid, uid);
}

#[test]
fn a_crash_between_note_and_user_leaves_nothing_that_is_not_removed() {
    let Some(real) = Real::new() else { return };
    // As it was when the power went after useradd.
    let note = format!(
        r#"{{"users":{{"{}":{{"app":"{}"}}}}}}"#,
        real.name(),
        real.app
    );
    std::fs::write(real.path(), note).unwrap();
    accounts::add(&real.name(), &comment(&real.app), None, None).unwrap();
    let users = real.users();
    users.resolve(None, &real.app).unwrap();
    assert_eq!(users.remove_created().unwrap(), [real.name()]);
}

#[test]
fn a_user_that_a_process_still_runs_as_stays_noted_until_it_can_go() {
    use std::os::unix::process::CommandExt as _;
    let Some(real) = Real::new() else { return };
    let users = real.users();
    let made = users.resolve(None, &real.app).unwrap();
    let mut child = std::process::Command::new("sleep")
        .arg("1000")
        .uid(made.uid)
        .spawn()
        .unwrap();
    let error = users.remove_created();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(text(error).contains("used by process"));
    assert_eq!(users.remove_created().unwrap(), [made.name]);
}

#[test]
fn a_damaged_note_is_named_and_kept() {
    let Some(real) = Real::new() else { return };
    std::fs::write(real.path(), "{").unwrap();
    let error = text(real.users().resolve(None, &real.app));
    assert!(error.contains("users.json is damaged"), "{error}");
    assert_eq!(std::fs::read_to_string(real.path()).unwrap(), "{");
    assert_eq!(accounts::local(&real.name()).unwrap(), None);
}

#[test]
fn run_as_names_a_user_that_exists_and_that_the_node_allows() {
    let Some(real) = Real::new() else { return };
    let users = real.users();
    assert!(text(users.resolve(Some(&real.app), "x")).contains("no user"));
    assert!(text(users.resolve(Some("root"), "x")).contains("it is root"));
    assert!(text(users.resolve(Some("daemon"), "x")).contains("user of the system"));
    for name in ["", "0", "-h", "a\nb:0:0"] {
        assert!(text(users.resolve(Some(name), "x")).contains("not the name of a user"));
    }
    assert!(users.resolve(None, "../x").is_err());
    let lax = UserPolicy {
        allow_system: true,
        ..UserPolicy::default()
    };
    let daemon = Users::open(real.dir.path(), lax)
        .resolve(Some("daemon"), "x")
        .unwrap();
    assert_eq!(
        Some(daemon.uid),
        accounts::local("daemon")
            .unwrap()
            .map(|account| account.uid)
    );
    assert!(!real.path().exists(), "nothing was made");
}

#[test]
fn without_root_everything_is_the_current_user() {
    let dir = tempfile::tempdir().unwrap();
    let mut users = Users::open(dir.path(), UserPolicy::default());
    users.root = false;
    let current = Identity::current();
    assert_eq!(users.resolve(None, "hello").unwrap(), current);
    assert_eq!(
        users.resolve(Some(&current.name), "hello").unwrap(),
        current
    );
    let error = text(users.resolve(Some("somebody-else"), "hello"));
    assert!(
        error.contains("not root") && error.contains(&current.name),
        "{error}"
    );
    assert_eq!(users.remove_created().unwrap(), Vec::<String>::new());
}

#[test]
fn no_two_apps_share_a_user() {
    assert_eq!(user_name("hello"), "pc-hello");
    let exactly = "a".repeat(29);
    assert_eq!(user_name(&exactly), format!("pc-{exactly}"));
    let (long, longer) = ("a".repeat(30), "a".repeat(63));
    assert_ne!(user_name(&long), user_name(&longer));
    for app in [long, longer] {
        let name = user_name(&app);
        assert_eq!(name.len(), LONGEST_NAME);
        assert!(!name.starts_with("pc-"), "no short name is like it");
    }
}
