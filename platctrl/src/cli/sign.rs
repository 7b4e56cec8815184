//! `sign` and `verify`: who vouches for an artifact or for manifests.
//!
//! gpg signs and checks signatures; what its answers come to is judged here, since it calls a
//! signature good whose key is revoked ([`judge`]). Of an artifact a *statement* is signed, which
//! names the app and the file's digest and size: another app's artifact, or another one of the
//! same app, does not pass for it. Of manifests the text itself is signed, and the text that was
//! signed is all that `verify` prints.

mod gpg;
mod judge;

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use platctrl_agent::hoist;
use serde::{Deserialize, Serialize};

use super::apply;
use crate::error::{Code, Failure, Result};
use crate::manifest::{self, Document};
use crate::output;
use judge::Signed;

/// What a statement says that it is.
const SCHEMA: &str = "platctrl.dev/artifact/v1";
/// The largest text that is signed.
const MAX_TEXT: usize = 4 << 20;
/// Clocks differ by so much.
const SKEW: Duration = Duration::from_secs(300);
/// Beside what is signed.
const SUFFIX: &str = ".asc";

#[derive(Debug, clap::Args)]
#[command(
    after_help = "gpg makes the signature: the key is one of its keyring, and it asks for the passphrase."
)]
pub(crate) struct SignArgs {
    /// An artifact, or a file of manifests
    file: PathBuf,
    /// The key, as gpg knows it: a fingerprint is best [default: gpg's own default]
    #[arg(short, long, value_name = "KEY")]
    key: Option<String>,
    /// What is written: FILE.asc, another file, or - for standard output
    #[arg(short, long, value_name = "FILE|-")]
    output: Option<PathBuf>,
    /// The app that the artifact is of; needed for artifacts, and for nothing else
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
    /// The artifact's version, for people
    #[arg(long, value_name = "VERSION", requires = "app")]
    version: Option<String>,
    /// How long the statement about the artifact is good [default: for ever]
    #[arg(long, value_parser = super::duration, value_name = "TIME", requires = "app")]
    lifetime: Option<Duration>,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Of manifests the text that was signed is printed, and nothing else: pipe it to `platctrl apply -f -`."
)]
pub(crate) struct VerifyArgs {
    /// An artifact, a file of manifests, or signed manifests (FILE.asc)
    file: PathBuf,
    /// The public keys that are trusted, as `gpg --export` writes them
    #[arg(long, env = "PLATCTRL_KEYS", value_name = "FILE")]
    keys: PathBuf,
    /// What was signed, if it is not FILE.asc
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
    /// Of the keys only this one, by its fingerprint; may be repeated
    #[arg(long, value_name = "FINGERPRINT")]
    signer: Vec<judge::Fingerprint>,
    /// The app that the artifact has to be of
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
}

/// What is signed of an artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Statement {
    schema: String,
    app: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    digest: hoist::Digest,
    size: u64,
    created: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<Timestamp>,
}

/// Signs a file.
pub(crate) async fn sign(args: &SignArgs) -> Result<()> {
    let text = match is_artifact(&args.file)? {
        true => statement(args).await?,
        false => manifests(args)?,
    };
    let signed = gpg::sign(&text, args.key.as_deref()).await?;
    let target = match &args.output {
        Some(to) if to.as_os_str() == "-" => return output::print(signed),
        Some(to) => to.clone(),
        None => beside(&args.file),
    };
    write_whole(&target, signed.as_bytes())?;
    output::done(format_args!(
        "{} signed: {}\n",
        args.file.display(),
        target.display()
    ));
    Ok(())
}

/// Checks who signed a file.
pub(crate) async fn verify(args: &VerifyArgs) -> Result<()> {
    if is_artifact(&args.file)? {
        return verify_artifact(args).await;
    }
    if args.app.is_some() {
        return Err(Failure::usage(
            "--app is for artifacts: manifests name their apps themselves",
        ));
    }
    let own = read(&args.file)?;
    let (signed, text) = match judge::is_signed(&own) {
        true => (own.as_str().to_owned(), None),
        false => (read(&signature(args)?)?, Some(own)),
    };
    let good = check(args, &signed).await?;
    if let Some(text) = text
        && text.trim_end_matches('\n') != good.text.trim_end_matches('\n')
    {
        return Err(refused(args, "it is not the text that was signed"));
    }
    // What is no manifest is nothing that anybody would apply.
    manifest::parse(&args.file.display().to_string(), Path::new(""), &good.text)
        .map_err(|problem| refused(args, &problem))?;
    tell(args, &good);
    output::print(good.text)
}

async fn verify_artifact(args: &VerifyArgs) -> Result<()> {
    let good = check(args, &read(&signature(args)?)?).await?;
    let statement: Statement = serde_json::from_str(&good.text)
        .map_err(|error| refused(args, &format!("what was signed is no statement: {error}")))?;
    let (digest, size) = digest(&args.file)?;
    let now = Timestamp::now();
    if let Err(why) = holds(&statement, &digest, size, args.app.as_deref(), now) {
        return Err(refused(args, &why));
    }
    tell(args, &good);
    output::print(output::plain(&format!(
        "{digest} {}: {}{}\n",
        args.file.display(),
        statement.app,
        statement
            .version
            .map(|version| format!(" {version}"))
            .unwrap_or_default()
    )))
}

/// Whether a statement is about this artifact, now.
fn holds(
    statement: &Statement,
    digest: &hoist::Digest,
    size: u64,
    app: Option<&str>,
    now: Timestamp,
) -> Result<(), String> {
    if statement.schema != SCHEMA {
        return Err(format!(
            "it was signed as `{}`, not as {SCHEMA}",
            statement.schema
        ));
    }
    if statement.digest != *digest || statement.size != size {
        return Err(format!(
            "it is not the file that was signed, which has {} and {} bytes",
            statement.digest, statement.size
        ));
    }
    if let Some(app) = app.filter(|app| *app != statement.app) {
        return Err(format!(
            "it was signed as an artifact of the app `{}`, not of `{app}`",
            statement.app
        ));
    }
    let soon = now.checked_add(SKEW).unwrap_or(Timestamp::MAX);
    if statement.created > soon {
        return Err(format!(
            "it was signed at {}, which is yet to come: is the clock right?",
            statement.created
        ));
    }
    match statement.expires {
        Some(end) if end <= now => Err(format!("the statement was good until {end}")),
        _ => Ok(()),
    }
}

async fn check(args: &VerifyArgs, signed: &str) -> Result<Signed> {
    judge::frame(signed).map_err(|why| refused(args, why))?;
    let (status, text, keys) = gpg::verify(signed, &args.keys).await?;
    let now = Timestamp::now();
    let signers = judge::judge(&status, &keys, &args.signer, now).map_err(|why| {
        refused(args, &why).hint(
            "ask whoever made it to sign it with a key that is trusted, or look at the keys that are: `gpg --show-keys FILE`",
        )
    })?;
    judge::text(&text).map_err(|why| refused(args, why))?;
    Ok(Signed { signers, text })
}

fn tell(args: &VerifyArgs, good: &Signed) {
    for signer in &good.signers {
        output::note(format_args!("{}: signed by {signer}", args.file.display()));
    }
}

fn refused(args: &VerifyArgs, why: &str) -> Failure {
    Failure::failed(output::plain(&format!(
        "{} is not to be trusted: {why}",
        args.file.display()
    )))
    .hint("get the file and what was signed anew from whoever made it")
}

/// Where what was signed of a file is.
fn signature(args: &VerifyArgs) -> Result<PathBuf> {
    let path = match &args.signature {
        Some(path) => path.clone(),
        None => beside(&args.file),
    };
    if !path.exists() {
        return Err(Failure::failed(format!(
            "{} is not to be trusted: nobody signed it, there is no {}",
            args.file.display(),
            path.display()
        ))
        .hint("`platctrl sign` makes it; --signature FILE says where else it is"));
    }
    Ok(path)
}

fn beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(SUFFIX);
    name.into()
}

fn unreadable(file: &Path, error: &std::io::Error) -> Failure {
    let code = match error.kind() {
        std::io::ErrorKind::NotFound => Code::NotFound,
        _ => Code::Failed,
    };
    Failure::new(code, format!("cannot read {}: {error}", file.display()))
        .hint("name a file that is there and may be read")
}

fn open(file: &Path) -> Result<std::fs::File> {
    let opened = std::fs::File::open(file).and_then(|opened| match opened.metadata()?.is_file() {
        true => Ok(opened),
        false => Err(std::io::Error::other("it is not a file")),
    });
    opened.map_err(|error| unreadable(file, &error))
}

/// Whether a file is an artifact, by how it begins.
fn is_artifact(file: &Path) -> Result<bool> {
    let mut begin = Vec::new();
    open(file)?
        .take(2)
        .read_to_end(&mut begin)
        .map_err(|error| unreadable(file, &error))?;
    Ok(begin == [0x1f, 0x8b])
}

/// A text, whole.
fn read(file: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    open(file)?
        .take(MAX_TEXT as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| unreadable(file, &error))?;
    if bytes.len() > MAX_TEXT {
        return Err(Failure::failed(format!(
            "{} is larger than {} MiB",
            file.display(),
            MAX_TEXT >> 20
        ))
        .hint("split it: manifests are signed one file after the other"));
    }
    String::from_utf8(bytes).map_err(|_| {
        Failure::failed(format!("{} is no text in UTF-8", file.display()))
            .hint("artifacts (tar.gz) and manifests (YAML) are signed")
    })
}

fn digest(file: &Path) -> Result<(hoist::Digest, u64)> {
    hoist::Digest::of_reader(open(file)?).map_err(|error| unreadable(file, &error))
}

/// The statement about an artifact that an agent would take.
async fn statement(args: &SignArgs) -> Result<String> {
    let Some(app) = &args.app else {
        return Err(
            Failure::usage("it is not said which app the artifact is of")
                .hint("say --app NAME: an artifact of one app is then never taken for another's"),
        );
    };
    platctrl_framework::model::check_name("the name of an app", app)
        .map_err(|error| Failure::usage(error.to_string()))?;
    let file = args.file.clone();
    let checked = tokio::task::spawn_blocking(move || {
        hoist::verify(&file, None).map_err(|error| super::hoist::problem(&file, &error))
    });
    let checked = checked.await.map_err(Failure::failed)?;
    let checked = checked.map_err(|problem| {
        Failure::failed(output::plain(&problem)).hint("no agent would take it, so it is not signed")
    })?;
    let (digest, size) = digest(&args.file)?;
    if checked.digest != digest {
        return Err(Failure::failed(format!(
            "{} changed while it was looked at",
            args.file.display()
        )));
    }
    let created = Timestamp::now();
    let statement = Statement {
        schema: SCHEMA.to_owned(),
        app: app.clone(),
        version: args.version.clone(),
        digest,
        size,
        created,
        expires: args
            .lifetime
            .and_then(|lifetime| created.checked_add(lifetime).ok()),
    };
    let text = serde_json::to_string_pretty(&statement).map_err(Failure::failed)?;
    Ok(text + "\n")
}

/// Manifests that say all there is to say about what will run.
fn manifests(args: &SignArgs) -> Result<String> {
    if args.app.is_some() {
        return Err(Failure::usage(
            "--app is for artifacts: manifests name their apps themselves",
        ));
    }
    let text = read(&args.file)?;
    if judge::is_signed(&text) {
        return Err(
            Failure::usage(format!("{} is signed already", args.file.display()))
                .hint("sign the file that it was made of"),
        );
    }
    judge::text(&text).map_err(|why| {
        Failure::failed(format!("{} cannot be signed: {why}", args.file.display()))
            .hint("a signature does not cover blanks at the end of lines; take them out")
    })?;
    let name = args.file.display().to_string();
    let documents = manifest::parse(&name, Path::new(""), &text)
        .map_err(|problem| manifest::problems(&[output::plain(&problem)]))?;
    if documents.is_empty() {
        return Err(Failure::usage(format!("there is no document in {name}")));
    }
    let open: Vec<String> = documents.iter().flat_map(without_digest).collect();
    if !open.is_empty() {
        return Err(Failure::failed(format!(
            "{name} does not say what will run, so it is not signed\n  {}",
            open.join("\n  ")
        ))
        .hint("`platctrl hoist inspect FILE` prints an artifact's digest"));
    }
    Ok(text)
}

/// Programs whose artifact could be another one tomorrow.
fn without_digest(document: &Document) -> Vec<String> {
    let mut found = Vec::new();
    for (pointer, field) in apply::POD_SPECS {
        let launchables = document.value.pointer(pointer);
        let launchables = launchables.and_then(serde_json::Value::as_object);
        for (name, launchable) in launchables.into_iter().flatten() {
            if launchable["digest"].as_str().is_none() {
                let field = platctrl_framework::model::schema::child_path(field, name);
                found.push(document.problem(&format!("{field}.digest"), "is missing"));
            }
        }
    }
    found
}

/// Writes a file whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let write = || -> std::io::Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(bytes)?;
        // What is signed is for everybody to read.
        let open = std::fs::Permissions::from_mode(0o644);
        file.as_file().set_permissions(open)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(|error| {
        Failure::failed(format!("cannot write {}: {error}", path.display()))
            .hint("choose another place with -o FILE")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(text: &str) -> Statement {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_statement_is_about_one_file_of_one_app_for_a_time() {
        let digest = |of: &str| hoist::Digest::of_reader(of.as_bytes()).unwrap().0;
        let good = Statement {
            schema: SCHEMA.into(),
            app: "hello".into(),
            version: None,
            digest: digest("a"),
            size: 1,
            created: "2026-01-01T00:00:00Z".parse().unwrap(),
            expires: Some("2026-02-01T00:00:00Z".parse().unwrap()),
        };
        let text = serde_json::to_string_pretty(&good).unwrap();
        assert_eq!(statement(&text), good);
        let now: Timestamp = "2026-01-15T00:00:00Z".parse().unwrap();
        let (own, size) = (digest("a"), 1);
        assert_eq!(holds(&good, &own, size, Some("hello"), now), Ok(()));
        assert_eq!(holds(&good, &own, size, None, now), Ok(()));
        let wrong = |change: fn(&mut Statement)| {
            let mut wrong = good.clone();
            change(&mut wrong);
            holds(&wrong, &own, size, Some("hello"), now).unwrap_err()
        };
        for (why, part) in [
            (wrong(|it| it.schema = "other".into()), "`other`"),
            (wrong(|it| it.size = 2), "not the file"),
            (wrong(|it| it.app = "bye".into()), "of the app `bye`"),
            (
                wrong(|it| it.created = "2026-01-16T00:00:00Z".parse().unwrap()),
                "yet to come",
            ),
            (
                wrong(|it| it.expires = Some("2026-01-14T00:00:00Z".parse().unwrap())),
                "good until",
            ),
        ] {
            assert!(why.contains(part), "{part:?} is not in {why}");
        }
        let other = holds(&good, &digest("b"), size, None, now).unwrap_err();
        assert!(other.contains("not the file that was signed"), "{other}");
        assert!(serde_json::from_str::<Statement>(&text.replace("\"app\"", "\"apps\"")).is_err());
        let twice = text.replacen('{', "{\"size\": 7,", 1);
        assert!(
            serde_json::from_str::<Statement>(&twice).is_err(),
            "two sizes"
        );
    }
}
