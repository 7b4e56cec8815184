//! Stores that are copied in every direction, with the credentials of both sides.

use std::process::{Command, Stdio};

use platctrl_framework::environment::Environment;
use platctrl_framework::model::identity;
use platctrl_framework::store::{Key, Store, Transaction};
use platctrl_store_embedded::EmbeddedStore;

use crate::rig::{Rig, eventually, kill};
use crate::servers::Server;

const SIGKILL: i32 = 9;
/// Enough that a copy of them can be killed in the middle.
const KEYS: usize = 12_000;

/// Servers that ask who anybody is, and flags that show what may do everything on each.
pub(crate) struct Places {
    pub(crate) rig: Rig,
    pub(crate) etcd: Server,
    pub(crate) consul: Server,
    flags: Vec<String>,
}

impl Places {
    pub(crate) fn new() -> Self {
        let (rig, etcd, consul) = (Rig::new(), Server::etcd("etcd-3.5"), Server::consul());
        let file = |server: &Server| server.hush().to_str().unwrap().to_owned();
        let flags = vec![
            "--store-user".to_owned(),
            "root".to_owned(),
            "--store-password-file".to_owned(),
            file(&etcd),
            "--store-token-file".to_owned(),
            file(&consul),
        ];
        Self {
            rig,
            etcd,
            consul,
            flags,
        }
    }

    pub(crate) fn etcd(&self, root: &str) -> String {
        format!("etcd://{}/{root}", self.etcd.at)
    }

    pub(crate) fn consul(&self, root: &str) -> String {
        format!("consul://{}/{root}", self.consul.at)
    }

    pub(crate) fn embedded(&self, name: &str) -> String {
        format!("embedded:{}", self.rig.path(name).display())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut all = vec!["store"];
        all.extend(self.flags.iter().map(String::as_str));
        all.extend(arguments);
        self.rig.command(&all)
    }

    pub(crate) fn store(&self, arguments: &[&str]) -> crate::rig::Said {
        self.command(arguments).output().unwrap().into()
    }

    /// An embedded store with so many records, one of them of the largest size.
    fn filled(&self, name: &str, keys: usize) -> String {
        let url = self.embedded(name);
        self.store(&["init", &url]).ok();
        let dir = self.rig.path(name);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let store = EmbeddedStore::open(dir, Environment::system()).unwrap();
            identity::open(&store).await.unwrap();
            let all: Vec<usize> = (0..keys).collect();
            for some in all.chunks(500) {
                let mut transaction = Transaction::new();
                for n in some {
                    let size = if *n == 7 { 384 * 1024 } else { 100 };
                    let value = format!(r#"{{"n":{n},"text":"{}"}}"#, "x".repeat(size - 40));
                    transaction = transaction.put(key(*n), value);
                }
                store.commit(transaction).await.unwrap();
            }
        });
        url
    }
}

fn key(n: usize) -> Key {
    Key::new(format!(
        "o/intent/example.dev/widgets/team-{}/w{n:05}",
        n % 50
    ))
    .unwrap()
}

#[test]
fn a_store_moves_in_every_direction_with_the_credentials_of_both_sides() {
    let places = Places::new();
    let first = places.filled("first", 300);
    let stations = [
        first,
        places.etcd("one"),
        places.consul("one"),
        places.etcd("two"),
        places.etcd("three"),
        places.embedded("second"),
        places.embedded("third"),
        places.consul("two"),
        places.consul("three"),
        places.embedded("last"),
    ];
    let mut digest = None;
    for (n, step) in stations.windows(2).enumerate() {
        let what = format!("{} to {}", step[0], step[1]);
        let said = places.store(&["copy", &step[0], &step[1]]);
        assert!(said.err.contains("is sealed"), "{what}: {}", said.err);
        let told = said.ok();
        assert!(
            told.contains(&format!("in epoch {}: ", n + 1)),
            "{what}: {told}"
        );
        // Whatever lies between, the content is what it was, but for the marks of the copies.
        let found = told
            .split("sha256:")
            .nth(1)
            .map(str::trim)
            .map(str::to_owned);
        assert!(found.is_some(), "{what}: {told}");
        assert_eq!(*digest.get_or_insert(found.clone()), found, "{what}");
        let about = places.store(&["info", &step[0]]).ok();
        assert!(about.contains("sealed"), "{what}: {about}");
        places
            .store(&["copy", &step[0], &step[1]])
            .fails(6, &["not empty"]);
    }
    // Without the credential of one side nothing is begun.
    let rig = &places.rig;
    let token_only = ["store", "--store-token-file", &places.flags[5]];
    let with_token = |arguments: &[&str]| rig.cli(&[&token_only[..], arguments].concat());
    with_token(&["unseal", &stations[8]]).ok();
    let target = places.etcd("four");
    let refused = with_token(&["copy", &stations[8], &target]);
    assert_eq!(refused.code, Some(4), "{refused:?}");
    assert!(refused.err.contains(&places.etcd.at), "{}", refused.err);
    let about = places.store(&["info", &stations[8]]).ok();
    assert!(about.contains("active"), "the source is as it was: {about}");
}

#[test]
fn a_copy_to_consul_that_is_killed_goes_on_where_it_was_and_shows_how_far_it_is() {
    let places = Places::new();
    let (source, target) = (places.filled("source", KEYS), places.consul("copy"));
    let keys = || -> Vec<String> {
        let listed = places.consul.ask(
            &std::fs::read_to_string(places.consul.hush()).unwrap(),
            "GET",
            "/v1/kv/copy/o/intent/?keys",
            "",
        );
        match listed {
            Some((200, body)) => serde_json::from_str(&body).unwrap(),
            _ => Vec::new(),
        }
    };
    let mut copy = places
        .command(&["copy", &source, &target])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let first = eventually("something is copied", || keys().into_iter().next());
    kill(copy.id(), SIGKILL);
    copy.wait().unwrap();
    let there = keys().len();
    assert!(
        (1..KEYS).contains(&there),
        "it was killed in the middle: {there}"
    );
    // Nobody takes half of it for a store.
    places.store(&["info", &target]).fails(3, &["no anchor"]);
    let index = || {
        let hush = std::fs::read_to_string(places.consul.hush()).unwrap();
        let path = format!("/v1/kv/{first}");
        let (_, body) = places.consul.ask(&hush, "GET", &path, "").unwrap();
        let found: serde_json::Value = serde_json::from_str(&body).unwrap();
        found[0]["ModifyIndex"].as_u64().unwrap()
    };
    let before = index();

    // Another source's copy is not finished with this one.
    let other = places.filled("other", 10);
    places
        .store(&["copy", &other, &target])
        .fails(6, &["not empty"]);

    // On a terminal, a line grows.
    let command = places.command(&["copy", &source, &target]);
    let words: Vec<&str> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_str().unwrap())
        .collect();
    assert!(words.iter().all(|word| !word.contains([' ', '\''])));
    let seen = Command::new("script")
        .args(["-qec", &words.join(" "), "/dev/null"])
        .current_dir(places.rig.path(""))
        .env("PLATCTRL_DATA_DIR", places.rig.data_dir())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(seen.contains("in epoch 1"), "{seen}");
    let bars: Vec<&str> = seen
        .split('\r')
        .filter(|line| line.starts_with('['))
        .collect();
    assert!(bars.len() > 10, "{seen}");
    let last = bars.last().unwrap();
    assert!(
        last.contains("100 %") && last.starts_with(&format!("[{}]", "#".repeat(30))),
        "{last}"
    );
    // What was there was not written again.
    assert_eq!(index(), before);
    let written: u64 = last
        .split(" keys, ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .and_then(|number| number.parse().ok())
        .unwrap();
    assert!(written < KEYS as u64, "{last}");
    assert_eq!(keys().len(), KEYS);
}
