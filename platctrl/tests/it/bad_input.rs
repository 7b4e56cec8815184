//! What is wrong is named, with its place and the way out, and nothing else happens.

use std::fs;

use crate::rig::Rig;

/// Applies the quickstart's manifest, changed by `edit`.
fn apply(rig: &Rig, edit: impl FnOnce(String) -> String) -> crate::rig::Said {
    rig.manifest(1, edit);
    rig.cli(&["apply", "-f", "hello.yaml"])
}

fn replaced(from: &'static str, to: &'static str) -> impl FnOnce(String) -> String {
    move |text| {
        assert!(text.contains(from), "{from:?} is not in {text}");
        text.replace(from, to)
    }
}

#[test]
fn a_wrong_manifest_is_refused_by_file_line_and_field() {
    let rig = Rig::running();
    rig.quickstart_artifact();
    let cases: [(&'static str, &'static str, &[&str]); 7] = [
        (
            "replicas:",
            "replicsa:",
            &["hello.yaml:6: spec.replicsa: unknown field; did you mean `replicas`?"],
        ),
        (
            "replicas: 1",
            "replicas: many",
            &["hello.yaml:6: spec.replicas: expected an integer"],
        ),
        (
            "stopTimeout: 5s",
            "stopTimeout: soon",
            &["hello.yaml:17: spec.template.spec.launchables.web.stopTimeout"],
        ),
        (
            "kind: ReplicationController",
            "kind: ReplicationControler",
            &[
                "hello.yaml:2: kind: there is no kind",
                "did you mean `ReplicationController`?",
            ],
        ),
        (
            "platctrl.dev/v1",
            "platctrl.dev/v2",
            &["hello.yaml:1: apiVersion:", "`platctrl.dev/v1`"],
        ),
        (
            "  nodeSelector: \"*\"\n",
            "",
            &["hello.yaml:5: spec.nodeSelector: is required"],
        ),
        (
            "nodeSelector: \"*\"",
            "nodeSelector: \"\"",
            &["hello.yaml:7: spec.nodeSelector:"],
        ),
    ];
    for (from, to, parts) in cases {
        apply(&rig, replaced(from, to)).fails(1, parts);
    }
    // All that is wrong is said at once.
    let said = apply(&rig, |text| {
        text.replace("replicas:", "replicsa:")
            .replace("greeting: hi", "greeting: hi }\n      prots: {")
    });
    said.fails(1, &["problems", "hello.yaml:6:", "prots"]);
    assert_eq!(rig.cli(&["get", "rc", "-o", "name"]).ok(), "");
}

#[test]
fn of_two_documents_of_which_one_is_wrong_none_is_applied() {
    let rig = Rig::running();
    rig.quickstart_artifact();
    let bad = |text: String| {
        let second = text
            .replace("name: hello\n", "name: other\n")
            .replace("replicas:", "replicsa:");
        format!("{text}---\n{second}")
    };
    apply(&rig, bad).fails(1, &["hello.yaml:27: spec.replicsa"]);
    assert_eq!(rig.cli(&["get", "rc", "-o", "name"]).ok(), "");
    // Also when only the server could tell, and when it is in another file.
    let good = rig.manifest(1, |text| text);
    fs::create_dir(rig.path("dir")).unwrap();
    fs::copy(rig.path("hello.tar.gz"), rig.path("dir/hello.tar.gz")).unwrap();
    fs::rename(good, rig.path("dir/a.yaml")).unwrap();
    rig.write("dir/b.yaml", "kind: [");
    rig.cli(&["apply", "-f", "dir"])
        .fails(1, &["dir/b.yaml:1: not a YAML document"]);
    assert_eq!(rig.cli(&["get", "rc", "-o", "name"]).ok(), "");
    fs::remove_file(rig.path("dir/b.yaml")).unwrap();
    let text = fs::read_to_string(rig.path("dir/a.yaml")).unwrap();
    rig.write("dir/c.yaml", &text);
    rig.cli(&["apply", "-f", "dir"]).fails(
        1,
        &["dir/c.yaml:4: metadata.name: is also that of the object at dir/a.yaml:2"],
    );
    fs::remove_file(rig.path("dir/c.yaml")).unwrap();
    assert_eq!(
        rig.cli(&["apply", "-f", "dir", "--dry-run"]).ok(),
        "replicationcontroller/hello created (dry run)\n"
    );
    assert_eq!(rig.cli(&["get", "rc", "-o", "name"]).ok(), "");
    rig.cli(&["apply", "-f", "dir"]).ok();
}

#[test]
fn a_file_that_is_huge_or_no_yaml_is_refused() {
    let rig = Rig::running();
    rig.write("huge.yaml", vec![b'#'; 10 << 20]);
    rig.cli(&["apply", "-f", "huge.yaml"])
        .fails(1, &["huge.yaml", "4 MiB"]);
    let large = format!(
        "kind: ConfigMap\nspec: {{ a: \"{}\" }}\n",
        "x".repeat(1 << 20)
    );
    rig.write("large.yaml", large);
    rig.cli(&["apply", "-f", "large.yaml"])
        .fails(1, &["large.yaml:1: kind: there is no kind"]);
    let config = format!("config: {{ greeting: {} }}", "x".repeat(500 << 10));
    rig.quickstart_artifact();
    apply(&rig, |text| {
        text.replace("config: { greeting: hi }", &config)
    })
    .fails(1, &["393216"]);
    rig.write("binary.yaml", [0x7f, b'E', b'L', b'F', 0xff, 0xfe]);
    rig.cli(&["apply", "-f", "binary.yaml"])
        .fails(1, &["binary.yaml", "not text in UTF-8"]);
    rig.cli_with(&["apply", "-f", "-"], b"a: b: c")
        .fails(1, &["-:1: not a YAML document"]);
    rig.cli_with(&["apply", "-f", "-"], b"")
        .fails(2, &["there is no document"]);
    rig.cli(&["apply", "-f", "missing.yaml"])
        .fails(1, &["missing.yaml"]);
}

#[test]
fn a_wrong_artifact_is_refused_before_anything_is_written() {
    let rig = Rig::running();
    let good = rig.quickstart_artifact().path("hello.tar.gz");
    let whole = fs::read(&good).unwrap();
    rig.write("cut.tar.gz", &whole[..whole.len() / 2]);
    tarball(&rig, "empty.tar.gz", &[("etc/motd", b"hello")], &[]);
    tarball(
        &rig,
        "up.tar.gz",
        &[("bin/launch", b"#!/bin/sh\n"), ("../evil", b"x")],
        &[],
    );
    tarball(
        &rig,
        "root.tar.gz",
        &[("bin/launch", b"#!/bin/sh\n"), ("/evil", b"x")],
        &[],
    );
    tarball(
        &rig,
        "link.tar.gz",
        &[("bin/launch", b"#!/bin/sh\n")],
        &[("out", "../../etc")],
    );
    let cases: [(&str, &[&str]); 7] = [
        (
            "none.tar.gz",
            &["there is no file", "none.tar.gz", "hoist build"],
        ),
        ("cut.tar.gz", &["cut.tar.gz"]),
        ("empty.tar.gz", &["bin/launch"]),
        ("up.tar.gz", &["../evil"]),
        ("root.tar.gz", &["/evil"]),
        ("link.tar.gz", &["out"]),
        ("hello.d", &["is not a file", "hoist build"]),
    ];
    for (file, parts) in cases {
        let said = apply(&rig, |text| text.replace("hello.tar.gz", file));
        let said = said.fails(
            1,
            &["hello.yaml:16: spec.template.spec.launchables.web.location:"],
        );
        for part in parts {
            assert!(said.err.contains(part), "{part} is not in {said:#?}");
        }
        // The verb that is for it says the same.
        if file.ends_with(".gz") && file != "none.tar.gz" {
            rig.cli(&["hoist", "verify", file]).fails(1, parts);
        }
    }
    let wrong = format!(
        "stopTimeout: 5s\n          digest: sha256:{}",
        "0".repeat(64)
    );
    apply(&rig, |text| text.replace("stopTimeout: 5s", &wrong)).fails(
        1,
        &["hello.yaml:18: spec.template.spec.launchables.web.digest: is not that of"],
    );
    let digest = format!("sha256:{}", "0".repeat(64));
    rig.cli(&["hoist", "verify", "hello.tar.gz", "--digest", &digest])
        .fails(1, &["sha256:000"]);
    assert_eq!(rig.cli(&["get", "rc", "-o", "name"]).ok(), "");
    // Nothing of them was uploaded either.
    let uploaded = fs::read_dir(rig.data_dir().join("artifacts")).map_or(0, |dir| {
        dir.flatten().filter(|entry| entry.path().is_file()).count()
    });
    assert_eq!(uploaded, 0);
    apply(&rig, |text| text).ok();
}

/// A tar.gz that no honest tool makes.
fn tarball(rig: &Rig, name: &str, files: &[(&str, &[u8])], links: &[(&str, &str)]) {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = header(path);
        header.set_size(content.len() as u64);
        header.set_cksum();
        archive.append(&header, *content).unwrap();
    }
    for (path, target) in links {
        let mut header = header(path);
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_link_name(target).unwrap();
        header.set_size(0);
        header.set_cksum();
        archive.append(&header, std::io::empty()).unwrap();
    }
    let plain = rig.write(&format!("{name}.tar"), archive.into_inner().unwrap());
    let packed = std::process::Command::new("gzip")
        .arg("-nc")
        .arg(plain)
        .output()
        .unwrap();
    assert!(packed.status.success(), "{packed:?}");
    rig.write(name, packed.stdout);
}

/// With the path as it is: the builder's own methods would refuse it.
fn header(path: &str) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_mode(0o755);
    header
}

#[test]
fn every_verb_says_what_is_wrong_and_ends_with_its_code() {
    let rig = Rig::running();
    rig.quickstart(2);
    rig.cli(&["get", "podz"])
        .fails(2, &["there is no kind `podz`", "did you mean `pods`?"]);
    rig.cli(&["describe", "rc/helo"])
        .fails(5, &["did you mean replicationcontroller/hello?"]);
    let ambiguous = rig
        .cli(&["get", "pod/hello"])
        .fails(2, &["is the beginning of 2 names", "pod/hello-"]);
    assert_eq!(
        ambiguous.err.matches("pod/hello-").count(),
        2,
        "{ambiguous:?}"
    );
    rig.cli(&["logs", "hello"])
        .fails(2, &["is the beginning of 2 names"]);
    rig.cli(&["logs", "rc/hello"]).fails(2, &["pods do"]);
    for verb in [
        &["delete", "rc/nope"][..],
        &["scale", "rc/nope", "--replicas", "1"],
        &["label", "rc/nope", "a=b"],
        &["wait", "rc/nope", "--for", "condition=Ready"],
    ] {
        rig.cli(verb).fails(5, &["nope"]);
    }
    rig.cli(&["scale", "pod/nope", "--replicas", "1"])
        .fails(5, &[]);
    rig.cli(&["delete", "hello"]).fails(2, &["KIND/NAME"]);
    rig.cli(&["label", "rc/hello", "nothing"])
        .fails(2, &["NAME=VALUE"]);
    rig.cli(&["label", "rc/hello", "a/b/c=d"])
        .fails(1, &["a/b/c"]);
    rig.cli(&["get", "pods", "-l", "a in (b"])
        .fails(1, &["labelSelector", "found the end"]);
    rig.cli(&["wait", "rc/hello", "--for", "delete", "--timeout", "50ms"])
        .fails(7, &["is not gone yet"]);
    rig.cli(&["wait", "rc/hello", "--for", "ready"])
        .fails(2, &["condition=TYPE"]);
    rig.cli(&["nonsense"]).fails(2, &["nonsense"]);
    rig.cli(&["--server", "https://example.org", "get", "pods"])
        .fails(2, &["names no port", "https://HOST:PORT"]);
    rig.cli(&["--server", "http://example.org", "get", "pods"])
        .fails(2, &["unix:PATH", "https://HOST:PORT"]);
    rig.cli(&["--server", "unix:/nowhere/at/all", "get", "pods"])
        .fails(3, &["/nowhere/at/all", "platctrl up"]);
    rig.cli(&["store", "init", "zookeeper://localhost/a"])
        .fails(2, &["is no store", "etcd://"]);
    let other = format!("embedded:{}", rig.path("other").display());
    assert!(
        rig.cli(&["store", "init", &other])
            .ok()
            .contains("is ready")
    );
    rig.cli(&["store", "init", &other]).fails(6, &["not empty"]);
}
