//! `sign` and `verify` with the real gpg: who is trusted, and everything that is refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::rig::{Rig, Said};

/// Somebody with a keyring.
struct Person {
    home: PathBuf,
    fingerprint: String,
}

impl Person {
    /// With a new key of this kind, which signs.
    fn new(rig: &Rig, name: &str, kind: &str) -> Self {
        let home = rig.path(name);
        fs::create_dir(&home).unwrap();
        fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let mut person = Self {
            home,
            fingerprint: String::new(),
        };
        person.gpg(&["--quick-gen-key", name, kind, "sign", "never"]);
        let listed = person.gpg(&["--with-colons", "--list-keys"]);
        let line = listed
            .lines()
            .find(|line| line.starts_with("fpr:"))
            .unwrap();
        person.fingerprint = line.split(':').nth(9).unwrap().to_owned();
        person
    }

    fn gpg(&self, arguments: &[&str]) -> String {
        let said = self.try_gpg(arguments);
        assert_eq!(said.code, Some(0), "{arguments:?}: {said:#?}");
        said.out
    }

    fn try_gpg(&self, arguments: &[&str]) -> Said {
        let mut command = Command::new("gpg");
        command
            .arg("--homedir")
            .arg(&self.home)
            .args([
                "--batch",
                "--yes",
                "--pinentry-mode",
                "loopback",
                "--passphrase",
                "",
            ])
            .args(arguments)
            .stdin(Stdio::null());
        command.output().unwrap().into()
    }

    /// Writes the public key into a file.
    fn publish(&self, file: &Path) {
        self.gpg(&["--armor", "--output", file.to_str().unwrap(), "--export"]);
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        // The agent that gpg started.
        let _ = Command::new("gpgconf")
            .arg("--homedir")
            .arg(&self.home)
            .args(["--kill", "all"])
            .status();
    }
}

fn sign(rig: &Rig, person: &Person, arguments: &[&str]) -> Said {
    let mut command = rig.command(&[&["sign"], arguments].concat());
    command.env("GNUPGHOME", &person.home);
    command.output().unwrap().into()
}

fn verify(rig: &Rig, arguments: &[&str]) -> Said {
    rig.cli(&[&["verify", "--keys", "trusted.asc"], arguments].concat())
}

const MANIFEST: &str = "apiVersion: platctrl.dev/v1\nkind: ReplicationController\nmetadata:\n  name: a\nspec:\n  replicas: 1\n  nodeSelector: \"*\"\n  template:\n    spec:\n      launchables:\n        web:\n          type: hoist\n          location: https://example.org/a.tar.gz\n          digest: sha256:0000000000000000000000000000000000000000000000000000000000000000\n      # - a line that begins with a dash\n      config: { text: \"- dashed\" }\n";

#[test]
fn an_artifact_is_signed_for_one_app_and_passes_for_no_other_file() {
    let rig = Rig::new();
    rig.script_artifact("hello", "#!/bin/sh\n");
    rig.script_artifact("other", "#!/bin/sh\necho other\n");
    let (ann, eve) = (
        Person::new(&rig, "ann", "ed25519"),
        Person::new(&rig, "eve", "ed25519"),
    );
    ann.publish(&rig.path("trusted.asc"));

    sign(&rig, &ann, &["hello.tar.gz"]).fails(2, &["--app"]);
    sign(&rig, &ann, &["hello.tar.gz", "--app", "A/b"]).fails(2, &["name of an app"]);
    verify(&rig, &["hello.tar.gz"]).fails(1, &["nobody signed it", "hello.tar.gz.asc", "hint:"]);
    let said = sign(
        &rig,
        &ann,
        &["hello.tar.gz", "--app", "hello", "--version", "1.2.0"],
    );
    assert_eq!(said.ok(), "hello.tar.gz signed: hello.tar.gz.asc\n");
    let good = verify(&rig, &["hello.tar.gz", "--app", "hello"]);
    assert!(
        good.err.contains(&format!("signed by {}", ann.fingerprint)),
        "{good:#?}"
    );
    let out = good.ok();
    assert!(
        out.starts_with("sha256:") && out.ends_with("hello.tar.gz: hello 1.2.0\n"),
        "{out}"
    );
    // The signature is what gpg itself calls one.
    ann.gpg(&["--verify", rig.path("hello.tar.gz.asc").to_str().unwrap()]);

    verify(&rig, &["hello.tar.gz", "--app", "bye"]).fails(1, &["of the app `hello`, not of `bye`"]);
    verify(&rig, &["other.tar.gz", "--signature", "hello.tar.gz.asc"])
        .fails(1, &["not the file that was signed"]);
    let mut longer = fs::read(rig.path("hello.tar.gz")).unwrap();
    longer.push(0);
    rig.write("longer.tar.gz", longer);
    verify(&rig, &["longer.tar.gz", "--signature", "hello.tar.gz.asc"])
        .fails(1, &["not the file that was signed"]);

    // Another's signature, and one that was changed.
    let signed = fs::read_to_string(rig.path("hello.tar.gz.asc")).unwrap();
    sign(
        &rig,
        &eve,
        &["hello.tar.gz", "--app", "hello", "-o", "eve.asc"],
    )
    .ok();
    verify(&rig, &["hello.tar.gz", "--signature", "eve.asc"])
        .fails(1, &["not among those that are trusted", "hint:"]);
    rig.write("changed.asc", signed.replace("1.2.0", "1.3.0"));
    verify(&rig, &["hello.tar.gz", "--signature", "changed.asc"])
        .fails(1, &["changed after it was signed"]);
    // Of several that are trusted, the one that was asked for.
    let both = format!(
        "{}{}",
        ann.gpg(&["--armor", "--export"]),
        eve.gpg(&["--armor", "--export"])
    );
    rig.write("trusted.asc", both);
    verify(&rig, &["hello.tar.gz", "--signature", "eve.asc"]).ok();
    verify(
        &rig,
        &[
            "hello.tar.gz",
            "--signature",
            "eve.asc",
            "--signer",
            &ann.fingerprint,
        ],
    )
    .fails(1, &["nobody who was asked for"]);
    verify(&rig, &["hello.tar.gz", "--signer", &ann.fingerprint]).ok();
    verify(&rig, &["hello.tar.gz", "--signer", &ann.fingerprint[24..]])
        .fails(2, &["whole fingerprint"]);

    // A statement that is good no more.
    sign(
        &rig,
        &ann,
        &[
            "hello.tar.gz",
            "--app",
            "hello",
            "--lifetime",
            "1ms",
            "-o",
            "short.asc",
        ],
    )
    .ok();
    verify(&rig, &["hello.tar.gz", "--signature", "short.asc"]).fails(1, &["was good until"]);
    // A text that says nothing about an artifact.
    rig.write("a.yaml", MANIFEST);
    sign(&rig, &ann, &["a.yaml"]).ok();
    verify(&rig, &["hello.tar.gz", "--signature", "a.yaml.asc"]).fails(1, &["is no statement"]);
    // What no agent would take is not signed.
    rig.write(
        "cut.tar.gz",
        &fs::read(rig.path("hello.tar.gz")).unwrap()[..40],
    );
    sign(&rig, &ann, &["cut.tar.gz", "--app", "hello"])
        .fails(1, &["cut.tar.gz", "no agent would take it"]);
    assert!(!rig.path("cut.tar.gz.asc").exists());
}

#[test]
fn of_signed_manifests_only_what_was_signed_is_printed() {
    let rig = Rig::new();
    let ann = Person::new(&rig, "ann", "rsa3072");
    ann.publish(&rig.path("trusted.asc"));
    rig.write("a.yaml", MANIFEST);
    sign(&rig, &ann, &["a.yaml"]).ok();
    let signed = fs::read_to_string(rig.path("a.yaml.asc")).unwrap();
    // Beside its signature, and out of it.
    for file in ["a.yaml", "a.yaml.asc"] {
        let said = verify(&rig, &[file]);
        assert!(said.err.contains(&ann.fingerprint), "{said:#?}");
        assert_eq!(said.ok(), MANIFEST, "{file}");
    }
    assert_eq!(
        sign(&rig, &ann, &["a.yaml", "-o", "-"]).ok().lines().next(),
        signed.lines().next()
    );
    sign(&rig, &ann, &["a.yaml.asc"]).fails(2, &["signed already"]);
    sign(&rig, &ann, &["a.yaml", "--key", "nobody@nowhere"])
        .fails(1, &["gpg did not sign it", "--list-secret-keys"]);

    rig.write("a.yaml", MANIFEST.replace("replicas: 1", "replicas: 2"));
    verify(&rig, &["a.yaml"]).fails(1, &["not the text that was signed"]);
    for (what, text, part) in [
        (
            "before",
            format!("replicas: 9\n{signed}"),
            "something stands before it",
        ),
        ("behind", format!("{signed}replicas: 9\n"), "stands behind"),
        ("twice", format!("{signed}{signed}"), "exactly one"),
        (
            "changed",
            signed.replace("replicas: 1", "replicas: 2"),
            "changed after",
        ),
        ("cut", signed[..signed.len() - 30].to_owned(), "exactly one"),
    ] {
        let file = format!("{what}.asc");
        rig.write(&file, &text);
        let said = verify(&rig, &[&file]);
        assert_eq!(
            (said.code, said.out.as_str()),
            (Some(1), ""),
            "{what}: {said:#?}"
        );
        assert!(
            said.err.contains(part) && said.err.contains("hint:"),
            "{what}: {said:#?}"
        );
    }
    // What a signature does not cover may be changed, and comes to nothing: what is printed is the
    // text that was signed.
    for text in [
        signed.replace("replicas: 1", "replicas: 1  "),
        signed.replace("replicas: 1\n", "replicas: 1\r\n"),
    ] {
        rig.write("blanks.asc", &text);
        let said = verify(&rig, &["blanks.asc"]);
        let is_as_signed = said.code == Some(0) && said.out == MANIFEST;
        let is_refused = said.code == Some(1) && said.out.is_empty();
        assert!(is_as_signed || is_refused, "{said:#?}");
    }
    // What does not say all that will run, or could be changed unseen, is not signed.
    for (text, part) in [
        (
            MANIFEST.replace("          digest:", "          # digest:"),
            "launchables.web.digest: is missing",
        ),
        (
            MANIFEST.replace("replicas: 1", "replicas: 1 "),
            "ends with blanks",
        ),
        ("a: [".to_owned(), "not a YAML document"),
    ] {
        rig.write("b.yaml", &text);
        sign(&rig, &ann, &["b.yaml"]).fails(1, &[part, "hint:"]);
    }
    assert!(!rig.path("b.yaml.asc").exists());
}

#[test]
fn keys_and_digests_that_are_good_no_more_are_refused_though_gpg_calls_them_good() {
    let rig = Rig::new();
    rig.write("a.yaml", MANIFEST);
    let signed_by = |person: &Person, more: &[&str], file: &str| {
        let arguments = [more, &["--output", file, "--clearsign", "a.yaml"]].concat();
        let arguments: Vec<String> = arguments
            .iter()
            .map(|word| match *word {
                "a.yaml" => rig.path(word).display().to_string(),
                word if word == file => rig.path(word).display().to_string(),
                word => word.to_owned(),
            })
            .collect();
        person.gpg(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    };
    let trusted = rig.path("trusted.asc");

    // Revoked: the certificate is made with the key.
    let ann = Person::new(&rig, "ann", "ed25519");
    signed_by(&ann, &[], "ann.asc");
    ann.publish(&trusted);
    verify(&rig, &["ann.asc"]).ok();
    let revocation = ann
        .home
        .join(format!("openpgp-revocs.d/{}.rev", ann.fingerprint));
    let text = fs::read_to_string(&revocation)
        .unwrap()
        .replace(":-----BEGIN", "-----BEGIN");
    fs::write(&revocation, text).unwrap();
    ann.gpg(&["--import", revocation.to_str().unwrap()]);
    ann.publish(&trusted);
    // gpg ends well with such a signature, which is why its word is not enough.
    let gpg = ann.try_gpg(&["--verify", rig.path("ann.asc").to_str().unwrap()]);
    assert_eq!(gpg.code, Some(0), "{gpg:#?}");
    verify(&rig, &["ann.asc"]).fails(1, &["key that signed it is revoked"]);

    // Expired: signed at a time that is over, by a key that was good then.
    let bob = Person::new(&rig, "bob", "ed25519");
    signed_by(&bob, &[], "bob.asc");
    bob.gpg(&["--quick-set-expire", &bob.fingerprint, "seconds=1"]);
    bob.publish(&trusted);
    crate::rig::eventually("the key's end", || {
        let said = verify(&rig, &["bob.asc"]);
        said.err
            .contains("key that signed it is expired")
            .then_some(())
    });

    // Weak: a digest that is broken, and a key that is short.
    let eve = Person::new(&rig, "eve", "rsa3072");
    signed_by(&eve, &["--digest-algo", "SHA1"], "sha1.asc");
    eve.publish(&trusted);
    verify(&rig, &["sha1.asc"]).fails(1, &["too weak"]);
    let weak = Person::new(&rig, "weak", "rsa1024");
    signed_by(&weak, &[], "weak.asc");
    weak.publish(&trusted);
    verify(&rig, &["weak.asc"]).fails(1, &["has 1024 bits, and needs 3072"]);

    // Files of keys that are none.
    let keys = |file: &str, part: &str| {
        let said = rig.cli(&["verify", "weak.asc", "--keys", file]);
        said.fails(2, &[part, "hint:"]);
    };
    rig.write("empty.asc", "");
    keys("empty.asc", "it is empty");
    rig.write("odd.asc", "hello\n");
    keys("odd.asc", "no key that gpg can read");
    keys("none.asc", "No such file");
    keys(rig.path("").to_str().unwrap(), "not a file");
    rig.write("private.asc", eve.gpg(&["--armor", "--export-secret-keys"]));
    keys("private.asc", "private key");
    fs::set_permissions(
        &trusted,
        std::os::unix::fs::PermissionsExt::from_mode(0o666),
    )
    .unwrap();
    keys("trusted.asc", "everybody may write it");
    // Without gpg it is said what to install.
    let mut command = rig.command(&["verify", "weak.asc", "--keys", "odd.asc"]);
    command.env("PLATCTRL_GPG", "/nowhere/gpg");
    Said::from(command.output().unwrap()).fails(1, &["/nowhere/gpg", "install GnuPG"]);
}
