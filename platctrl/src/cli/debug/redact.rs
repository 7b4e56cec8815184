//! Takes secrets out: those that this command knows, and whatever looks like one.
//!
//! Of objects, what people put into environments and configurations of their programs goes as a
//! whole: nobody can tell which of it is a secret.

use std::ffi::OsString;

use platctrl_framework::client::LAST_APPLIED;
use serde_json::Value;

use crate::cli::Setting;
use crate::place;

/// What stands in the place of a secret.
const REMOVED: &str = "(removed)";
/// Nothing shorter is looked for in texts: it would be found everywhere.
const SHORTEST: usize = 6;
/// The secret of a token has so many hexadecimal digits, or more.
const TOKEN_DIGITS: usize = 32;

/// Fields whose values are people's own.
const PRIVATE: [&str; 5] = ["env", "config", "args", "arguments", LAST_APPLIED];
/// What names of secrets have in them.
const SUSPECT: [&str; 8] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "credential",
    "authorization",
    "privatekey",
];

/// The secrets that this command knows.
#[derive(Default)]
pub(super) struct Secrets(Vec<String>);

impl Secrets {
    /// Those of the environment, and of the files that are named by it and by flags.
    pub(super) fn gather(setting: &Setting) -> Self {
        let mut secrets = Self::default();
        for (name, value) in std::env::vars() {
            if is_suspect(&name) {
                // It may be a secret, or the name of a file that has one.
                if let Ok(text) = std::fs::read_to_string(&value) {
                    secrets.add(&text);
                }
                secrets.add(&value);
            }
        }
        let files = [
            setting.data_dir().ok().map(|dir| place::token(&dir)),
            setting.token_file().map(ToOwned::to_owned),
        ];
        for file in files.into_iter().flatten() {
            if let Ok(text) = std::fs::read_to_string(file) {
                secrets.add(&text);
            }
        }
        if let Ok(Some(remote)) = setting.remote()
            && let Some(token) = remote.token
        {
            secrets.add(token.reveal());
        }
        secrets
    }

    fn add(&mut self, secret: &str) {
        let secret = secret.trim();
        // What is the name of a file is no secret itself.
        if secret.len() >= SHORTEST && !secret.starts_with('/') {
            self.0.push(secret.to_owned());
        }
    }

    /// A text without them.
    pub(super) fn clean(&self, text: &str) -> String {
        let mut clean = text.to_owned();
        for secret in &self.0 {
            clean = clean.replace(secret.as_str(), REMOVED);
        }
        without_keys(&clean)
            .split_inclusive('\n')
            .map(line)
            .collect()
    }
}

/// A text without private keys, whole or cut off.
fn without_keys(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut inside = false;
    for line in text.split_inclusive('\n') {
        if line.contains("-----BEGIN") && line.contains("PRIVATE KEY") {
            inside = !(line.contains("-----END"));
            clean.push_str(REMOVED);
            clean.push('\n');
            continue;
        }
        if inside {
            inside = !line.contains("-----END");
            continue;
        }
        clean.push_str(line);
    }
    clean
}

/// A line without what looks like a secret: after `Bearer`, in a URL, or after the name of one.
fn line(line: &str) -> String {
    let mut clean = String::with_capacity(line.len());
    // What stands before the next word asks for it to be removed.
    let mut next_is_secret = false;
    for word in line.split_inclusive([' ', '\t', '\n', '"', '\'', ',', ';', '&']) {
        let end = word.trim_end_matches([' ', '\t', '\n', '"', '\'', ',', ';', '&']);
        let separator = &word[end.len()..];
        let shown = match end {
            "" => String::new(),
            _ if next_is_secret => REMOVED.to_owned(),
            word => self::word(word),
        };
        clean.push_str(&shown);
        clean.push_str(separator);
        if !end.is_empty() {
            let lower = end.to_ascii_lowercase();
            next_is_secret = matches!(
                lower.trim_start_matches(['(', '[', '{', '=', ':']),
                "bearer" | "basic"
            ) || lower.ends_with("=bearer")
                || lower.ends_with(":bearer");
        }
    }
    clean
}

fn word(word: &str) -> String {
    if is_token(word) {
        return REMOVED.to_owned();
    }
    // NAME=VALUE and NAME:VALUE, as programs write them.
    for sign in ['=', ':'] {
        if let Some((name, value)) = word.split_once(sign)
            && is_suspect(name)
            && !value.is_empty()
            && !value.starts_with("//")
        {
            return format!("{name}{sign}{REMOVED}");
        }
        if let Some((name, value)) = word.split_once(sign)
            && is_token(value)
        {
            return format!("{name}{sign}{REMOVED}");
        }
    }
    without_user(word)
}

/// A URL without the user and the password in it.
fn without_user(word: &str) -> String {
    let Some((scheme, rest)) = word.split_once("://") else {
        return word.to_owned();
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => format!("{scheme}://{REMOVED}{}", &rest[at..]),
        None => word.to_owned(),
    }
}

/// `NAME.SECRET`, as platctrl makes them.
fn is_token(word: &str) -> bool {
    let word = word.trim_matches(['(', ')', '[', ']', '{', '}', '<', '>', '`']);
    word.rsplit_once('.').is_some_and(|(name, secret)| {
        !name.is_empty()
            && secret.len() >= TOKEN_DIGITS
            && secret.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// Whether something of this name is likely to be a secret.
fn is_suspect(name: &str) -> bool {
    let name: String = name
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect::<String>()
        .to_ascii_lowercase();
    // The name of a file is none.
    !name.ends_with("file") && SUSPECT.iter().any(|part| name.contains(part))
        || name.ends_with("apikey")
        || name.ends_with("accesskey")
}

/// Takes secrets out of a value, whatever kind of object it is.
pub(super) fn value(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(self::value),
        Value::Object(fields) => {
            for (name, inner) in fields {
                let is_schema = inner.get("type").is_some() || inner.get("properties").is_some();
                let is_private = PRIVATE.contains(&name.as_str()) || is_suspect(name);
                if is_private && !is_schema {
                    remove(inner);
                } else {
                    self::value(inner);
                }
            }
        }
        _ => {}
    }
}

/// Leaves the names, so that one can see what there was.
fn remove(value: &mut Value) {
    match value {
        Value::Null => {}
        Value::Array(items) => items.iter_mut().for_each(remove),
        Value::Object(fields) => fields.values_mut().for_each(remove),
        other => *other = REMOVED.into(),
    }
}

/// The variables that have a say in what platctrl does; of those that may be secrets, only that
/// they are set.
pub(super) fn environment(variables: impl Iterator<Item = (OsString, OsString)>) -> String {
    const TOLD: [&str; 7] = ["PATH", "HOME", "USER", "LANG", "TERM", "EDITOR", "VISUAL"];
    let mut lines: Vec<String> = variables
        .filter_map(|(name, value)| {
            let name = name.to_str()?.to_owned();
            let ours = name.starts_with("PLATCTRL_") || name.starts_with("XDG_");
            if !ours && !TOLD.contains(&name.as_str()) {
                return None;
            }
            Some(match is_suspect(&name) {
                true => format!("{name} is set, and not shown\n"),
                false => format!("{name}={}\n", value.to_string_lossy()),
            })
        })
        .collect();
    lines.sort();
    lines.concat()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn hex() -> String {
        "0123456789abcdef".repeat(4)
    }

    #[test]
    fn known_secrets_and_what_looks_like_one_are_taken_out_of_texts() {
        let mut secrets = Secrets::default();
        secrets.add("hunter2-hunter2\n");
        secrets.add("/etc/platctrl/token");
        secrets.add("abc");
        let token = format!("ann.{}", hex());
        for text in [
            "it is hunter2-hunter2.".to_owned(),
            format!("authorization: Bearer {}", "x".repeat(20)),
            format!("header=\"Bearer {}\"", hex()),
            format!("token {token} refused"),
            format!("x={token},y"),
            "GET https://ann:hunter@h:1/a?b".to_owned(),
            "consul token=abcdefgh ok".to_owned(),
            "DB_PASSWORD=abcdefgh".to_owned(),
            format!(
                "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----",
                hex()
            ),
            format!("-----BEGIN EC PRIVATE KEY-----\n{}\n", hex()),
        ] {
            let clean = secrets.clean(&text);
            assert!(clean.contains(REMOVED), "{clean}");
            for secret in ["hunter", &hex(), "xxxxx", "abcdefgh"] {
                assert!(!clean.contains(secret), "{secret} is in {clean}");
            }
        }
        // What is none stays: a digest, an address, a file.
        for text in [
            format!("sha256:{}", hex()),
            "https://h:1/a@b".to_owned(),
            "read /etc/platctrl/token".to_owned(),
            "--token-file=/a/b\n\tabc  d\n".to_owned(),
            "a.tar.gz 1.2.3".to_owned(),
        ] {
            assert_eq!(secrets.clean(&text), text);
        }
    }

    #[test]
    fn what_people_configure_is_taken_out_of_objects_and_schemas_stay() {
        let mut object = json!({
            "metadata": {"annotations": {LAST_APPLIED: "{\"env\":{\"A\":\"s3cret\"}}", "team": "web"}},
            "spec": {"template": {"spec": {
                "launchables": {"web": {"env": {"DB": "s3cret"}, "digest": "sha256:00"}},
                "config": {"a": {"b": ["s3cret", 7]}},
                "secrets": {"db": {"file": "s3cret"}},
            }}},
            "items": [{"apiToken": "s3cret", "n": 1}],
            "schema": {"properties": {"env": {"type": "object", "description": "kept"}}},
        });
        value(&mut object);
        let text = object.to_string();
        assert!(!text.contains("s3cret"), "{text}");
        for kept in ["sha256:00", "team", "web", "kept", "\"DB\"", "\"n\":1"] {
            assert!(text.contains(kept), "{kept} is not in {text}");
        }
    }

    #[test]
    fn of_the_environment_only_what_matters_is_told() {
        let variables = [
            ("PLATCTRL_TOKEN", "s3cret"),
            ("PLATCTRL_SERVER", "unix:/a"),
            ("AWS_SECRET_ACCESS_KEY", "s3cret"),
            ("OTHER", "s3cret"),
        ];
        let told = environment(
            variables
                .into_iter()
                .map(|(name, value)| (name.into(), value.into())),
        );
        assert_eq!(
            told,
            "PLATCTRL_SERVER=unix:/a\nPLATCTRL_TOKEN is set, and not shown\n"
        );
    }
}
