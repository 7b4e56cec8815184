//! `debug bundle`: everything that helps is in it, and nothing that is a secret.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;

use crate::network::Listening;
use crate::rig::{Rig, eventually};

/// What is in a bundle, by its name below the bundle's directory.
fn parts(packed: &[u8]) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(packed));
    let mut parts = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_str().unwrap().to_owned();
        let (dir, name) = path.split_once('/').unwrap();
        assert!(dir.starts_with("platctrl-debug-"), "{path}");
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        parts.insert(name.to_owned(), text);
    }
    parts
}

#[test]
fn a_bundle_has_what_helps_and_no_secret() {
    let mut server = Listening::with(&["-v"]);
    let node = server.rig.app.clone();
    let operator = server.token("oper", "operator");
    // Secrets in every place that they may come from.
    server.rig.quickstart_artifact().manifest(1, |text| {
        text.replace("greeting: hi", "greeting: hi, password: of-a-config-1")
            .replace(
                "          stopTimeout: 5s",
                "          stopTimeout: 5s\n          env: { DATABASE: \"postgres://app:of-an-env-2@db/x\" }",
            )
    });
    server.rig.cli(&["apply", "-f", "hello.yaml"]).ok();
    server.rig.ready(1);
    let log = server.rig.data_dir().join("log/up.log");
    let written = fs::read_to_string(&log).unwrap();
    assert!(written.contains("up begins"), "{written}");
    let leaked = format!(
        "{written}GET https://ann:of-a-url-3@h/ authorization: Bearer of-a-header-4\ntoken {operator} was shown\n-----BEGIN PRIVATE KEY-----\nof-a-key-5\n-----END PRIVATE KEY-----\nlast words\n"
    );
    fs::write(&log, leaked).unwrap();

    let rig = &server.rig;
    let store_token = rig.write("store-token", "of-a-file-6\n");
    let mut command = rig.command(&["debug", "bundle", "-o", "out.tar.gz"]);
    command
        .env("PLATCTRL_TOKEN", "ann.of-an-environment-7")
        .env("PLATCTRL_STORE_TOKEN_FILE", &store_token)
        .env("CONSUL_HTTP_TOKEN", "of-consul-8");
    let said = crate::rig::Said::from(command.output().unwrap());
    assert_eq!(said.ok(), "out.tar.gz\n");
    let file = rig.path("out.tar.gz");
    let mode = fs::metadata(&file).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&mode) & 0o777, 0o600);
    let parts = parts(&fs::read(&file).unwrap());

    let data = rig.data_dir();
    let mut secrets: Vec<String> = [
        "of-a-config-1",
        "of-an-env-2",
        "of-a-url-3",
        "of-a-header-4",
        "of-a-key-5",
        "of-a-file-6",
        "of-an-environment-7",
        "of-consul-8",
    ]
    .map(str::to_owned)
    .into();
    secrets.push(operator.split_once('.').unwrap().1.to_owned());
    secrets.push(server.admin().split_once('.').unwrap().1.to_owned());
    let key = fs::read_to_string(data.join("tls/ca.key")).unwrap();
    secrets.push(key.lines().nth(1).unwrap().to_owned());
    for (name, text) in &parts {
        for secret in &secrets {
            assert!(
                !text.contains(secret.as_str()),
                "{secret} is in {name}: {text}"
            );
        }
    }

    for (name, part) in [
        ("about.json", env!("CARGO_PKG_VERSION")),
        ("config.txt", "data dir"),
        ("environment.txt", "PLATCTRL_TOKEN is set, and not shown"),
        ("doctor.json", "control groups"),
        ("log/up.log", "last words"),
        ("log/up.log", "https://(removed)@h/"),
        ("machine/memory.txt", "MemTotal"),
        ("machine/data-directory.txt", "/store"),
        ("server/version.json", env!("CARGO_PKG_VERSION")),
        ("server/healthz.txt", "ok"),
        ("server/metrics.txt", "platctrl_http_requests_total"),
        ("server/statusz.txt", "runtime"),
        ("server/failsafe.json", "holds"),
        ("objects/nodes.platctrl.dev.json", node.as_str()),
        ("objects/pods.platctrl.dev.json", "\"DATABASE\""),
        ("objects/pods.platctrl.dev.json", "(removed)"),
        ("objects/events.platctrl.dev.json", "\"reason\""),
    ] {
        let text = parts
            .get(name)
            .unwrap_or_else(|| panic!("{name} is not in {:?}", parts.keys()));
        assert!(text.contains(part), "{part:?} is not in {name}: {text}");
    }
    for (name, text) in parts.iter().filter(|(name, _)| name.ends_with(".json")) {
        serde_json::from_str::<serde_json::Value>(text)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    assert_eq!(parts["problems.txt"], "");

    rig.cli(&["debug", "bundle", "-o", "out.tar.gz"])
        .fails(1, &["exists already", "hint:"]);
    rig.cli(&["debug", "bundle", "-o", "nowhere/out.tar.gz"])
        .fails(1, &["nowhere/out.tar.gz", "hint:"]);

    // Where nothing runs any more it is needed most.
    server.rig.end_up(9);
    let rig = &server.rig;
    let dead = rig
        .command(&["debug", "bundle", "-o", "-"])
        .output()
        .unwrap();
    assert_eq!(dead.status.code(), Some(0), "{dead:?}");
    let parts = self::parts(&dead.stdout);
    assert!(
        parts["problems.txt"].contains("no platctrl runs at"),
        "{}",
        parts["problems.txt"]
    );
    assert!(parts["log/up.log"].contains("last words"));
    assert!(
        parts["doctor.json"].contains("is gone or does not answer")
            || parts["doctor.json"].contains("no platctrl runs")
    );
}

#[test]
fn what_processes_say_is_kept_for_later_and_taken_away_with_everything() {
    let rig = Rig::running();
    let log = rig.data_dir().join("log/up.log");
    eventually("what up says of itself", || {
        fs::read_to_string(&log)
            .ok()?
            .contains("up begins")
            .then_some(())
    });
    let dir = fs::metadata(log.parent().unwrap()).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&dir) & 0o777, 0o700);
    // A directory in its place stops nothing.
    let mut other = Rig::new();
    fs::create_dir_all(other.data_dir().join("log/up.log")).unwrap();
    fs::set_permissions(
        other.data_dir(),
        std::os::unix::fs::PermissionsExt::from_mode(0o711),
    )
    .unwrap();
    other.up();
    other.cli(&["get", "nodes"]).ok();
}
