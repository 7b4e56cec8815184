//! gpg, called: it has the keys, and knows what a signature is.
//!
//! Signing uses the person's own keyring. A check uses one made for it, with the trusted keys and
//! nothing else: neither the person's keyring nor their settings have a say.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::MAX_TEXT;
use super::judge::{self, Key};
use crate::cli::interrupt;
use crate::error::{Failure, Result};
use crate::output;

/// Names another gpg.
const VARIABLE: &str = "PLATCTRL_GPG";
/// A check takes no longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// A file of keys is no larger.
const MAX_KEYS: u64 = 16 << 20;

fn program() -> std::ffi::OsString {
    std::env::var_os(VARIABLE)
        .filter(|program| !program.is_empty())
        .unwrap_or_else(|| "gpg".into())
}

/// Runs gpg on an input. It is ended when nobody waits any longer.
async fn run(command: &mut Command, input: &[u8]) -> Result<Output> {
    let failed = |error: std::io::Error| {
        Failure::failed(format!(
            "{} cannot be run: {error}",
            program().to_string_lossy()
        ))
        .hint(format!(
            "install GnuPG (the package gnupg), or name the program with {VARIABLE}"
        ))
    };
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let stdin = child.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // It may have seen enough before it has read everything.
            let _ = stdin.write_all(input).await;
        }
    };
    let ((), ended) = tokio::join!(feed, child.wait_with_output());
    ended.map_err(failed)
}

fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines: Vec<_> = lines.collect();
    output::plain(&lines.join("; "))
}

/// A text with the signature of a key of the person's keyring.
pub(super) async fn sign(text: &str, key: Option<&str>) -> Result<String> {
    let mut command = Command::new(program());
    command.args([
        "--batch",
        "--no-greeting",
        "--armor",
        "--digest-algo",
        "SHA512",
    ]);
    if let Some(key) = key {
        command.arg("--local-user").arg(key);
    }
    command.args(["--output", "-", "--clear-sign"]);
    // It may ask for a passphrase at the terminal.
    interrupt::leave_to_another();
    let output = run(&mut command, text.as_bytes()).await?;
    if !output.status.success() {
        return Err(
            Failure::failed(format!("gpg did not sign it: {}", complaint(&output))).hint(
                "`gpg --list-secret-keys` lists the keys to sign with; --key names one of them",
            ),
        );
    }
    let signed = String::from_utf8(output.stdout)
        .map_err(|_| Failure::failed("gpg did not write a signed text"))?;
    judge::frame(&signed)
        .map_err(|why| Failure::failed(format!("gpg did not write a signed text: {why}")))?;
    Ok(signed)
}

/// What gpg tells of a signed text, the text, and the keys that are trusted.
pub(super) async fn verify(signed: &str, keys: &Path) -> Result<(String, String, Vec<Key>)> {
    let trusted = read_keys(keys)?;
    let home = tempfile::tempdir()
        .map_err(|error| Failure::failed(format!("cannot make a directory for gpg: {error}")))?;
    let work = async {
        let gpg = |more: &[&str]| {
            let mut command = Command::new(program());
            command
                .arg("--homedir")
                .arg(home.path())
                .args([
                    "--batch",
                    "--no-tty",
                    "--no-options",
                    "--no-greeting",
                    "--no-autostart",
                    "--no-auto-key-retrieve",
                    "--disable-dirmngr",
                    "--trust-model",
                    "always",
                ])
                .args(more)
                .env_remove("GNUPGHOME")
                .env("LC_ALL", "C");
            command
        };
        let imported = run(&mut gpg(&["--import"]), &trusted).await?;
        let listed = run(
            &mut gpg(&["--with-colons", "--with-subkey-fingerprint", "--list-keys"]),
            b"",
        )
        .await?;
        let found = judge::keys(&String::from_utf8_lossy(&listed.stdout));
        if found.is_empty() {
            return Err(Failure::usage(format!(
                "{} has no key that gpg can read: {}",
                keys.display(),
                complaint(&imported)
            ))
            .hint("`gpg --armor --export KEY > FILE` writes one"));
        }
        let text = home.path().join("text");
        let max = MAX_TEXT.to_string();
        let text_name = text.to_string_lossy().into_owned();
        let output = run(
            &mut gpg(&[
                "--status-fd",
                "1",
                "--max-output",
                &max,
                "--output",
                &text_name,
                "--decrypt",
            ]),
            signed.as_bytes(),
        )
        .await?;
        let status = String::from_utf8_lossy(&output.stdout).into_owned();
        let text = match std::fs::read(&text) {
            Ok(text) => String::from_utf8(text).map_err(|_| {
                Failure::failed("what was signed is no text in UTF-8")
                    .hint("artifacts (tar.gz) and manifests (YAML) are signed")
            })?,
            // What gpg tells of it says why.
            Err(_) => String::new(),
        };
        Ok((status, text, found))
    };
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(
            Failure::new(crate::error::Code::Timeout, "gpg did not come to an end").hint(format!(
                "is it gpg? {VARIABLE} names the program that is run"
            )),
        ),
    }
}

/// The file of trusted keys, if it is one that can be trusted.
fn read_keys(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let wrong = |why: &str| {
        Failure::usage(format!("the keys in {} are not used: {why}", path.display())).hint(
            "name the file of the public keys that are trusted with --keys; `gpg --armor --export KEY` writes it",
        )
    };
    let file = std::fs::File::open(path).map_err(|error| wrong(&error.to_string()))?;
    let metadata = file.metadata().map_err(|error| wrong(&error.to_string()))?;
    if !metadata.is_file() {
        return Err(wrong("it is not a file"));
    }
    if metadata.permissions().mode() & 0o002 != 0 {
        return Err(wrong("everybody may write it (`chmod o-w`)"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_KEYS + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| wrong(&error.to_string()))?;
    if bytes.is_empty() {
        return Err(wrong("it is empty"));
    }
    if bytes.len() as u64 > MAX_KEYS {
        return Err(wrong("it is too large"));
    }
    let is_private = |text: &[u8]| {
        let mark = b"PRIVATE KEY BLOCK";
        text.windows(mark.len()).any(|part| part == mark)
    };
    // A secret key's packet, old or new form, is the first of a binary file of them.
    if is_private(&bytes) || matches!(bytes[0], 0x94..=0x97 | 0xc5) {
        return Err(wrong(
            "it holds a private key, which is for nobody else to have",
        ));
    }
    Ok(bytes)
}
