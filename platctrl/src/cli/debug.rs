//! `debug bundle`: one file for whoever is to find out what is wrong.
//!
//! It holds versions, settings, what `doctor` finds, the logs of this machine's platctrl, and what
//! the server and the controllers tell of themselves and of their objects. Nothing in it is a
//! secret: [`redact`] takes out what is known to be one and what looks like one.

mod machine;
mod redact;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Setting, config, doctor, find, version};
use crate::api::{Api, Catalog, Collection, Query};
use crate::error::{Failure, Result};
use crate::store::StoreAccess;
use crate::{output, place};
use redact::Secrets;

/// No part is larger: of what grows, the end counts.
const MAX_PART: usize = 8 << 20;
/// Of a kind, so many objects.
const MAX_OBJECTS: usize = 2_000;

#[derive(Debug, Subcommand)]
pub(crate) enum DebugVerb {
    /// Write versions, settings, logs and the state of this machine, of the server and of a store into a tar.gz; secrets are taken out
    Bundle(Box<BundleArgs>),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "It is written also where no server answers: what could not be had is listed in problems.txt."
)]
pub(crate) struct BundleArgs {
    /// What is written: a file that does not exist, or - for standard output [default: platctrl-debug-TIME.tar.gz]
    #[arg(short, long, value_name = "FILE|-")]
    output: Option<PathBuf>,
    /// Also look at this store: embedded:DIR, etcd://HOST:PORT,…/ROOT or consul://HOST:PORT/ROOT
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    #[command(flatten)]
    access: StoreAccess,
}

pub(crate) async fn run(verb: &DebugVerb, setting: &Setting) -> Result<()> {
    let DebugVerb::Bundle(args) = verb;
    let now = Timestamp::now();
    let name = format!("platctrl-debug-{}", now.strftime("%Y%m%dT%H%M%SZ"));
    let target = match &args.output {
        Some(to) => to.clone(),
        None => format!("{name}.tar.gz").into(),
    };
    let is_stdout = target.as_os_str() == "-";
    if !is_stdout && target.exists() {
        return Err(exists(&target));
    }
    let mut bundle = Bundle::new(Secrets::gather(setting));
    bundle.gather(args, setting, now).await;
    let packed = bundle
        .pack(&name, now)
        .map_err(|error| Failure::failed(format!("the bundle cannot be packed: {error}")))?;
    for problem in &bundle.problems {
        output::note(format_args!("not in it: {problem}"));
    }
    if is_stdout {
        return output::print_bytes(&packed);
    }
    write_new(&target, &packed)?;
    output::note(
        "hint: look into it before you give it away; names of machines, objects and people are in it",
    );
    output::print(format_args!("{}\n", target.display()))
}

fn exists(target: &Path) -> Failure {
    Failure::failed(format!("{} exists already", target.display()))
        .hint("choose another name with -o: nothing is written over")
}

/// Writes a file that nobody else can read, whole or not at all.
fn write_new(target: &Path, bytes: &[u8]) -> Result<()> {
    let dir = match target.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let failed = |error: &std::io::Error| {
        Failure::failed(format!("cannot write {}: {error}", target.display()))
            .hint("choose another place with -o FILE")
    };
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(|error| failed(&error))?;
    file.write_all(bytes).map_err(|error| failed(&error))?;
    match file.persist_noclobber(target) {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(exists(target))
        }
        Err(error) => Err(failed(&error.error)),
    }
}

/// What is gathered.
struct Bundle {
    secrets: Secrets,
    parts: Vec<(String, Vec<u8>)>,
    /// What could not be had, and why.
    problems: Vec<String>,
}

impl Bundle {
    fn new(secrets: Secrets) -> Self {
        Self {
            secrets,
            parts: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// A text, without what is secret in it.
    fn text(&mut self, name: &str, text: &str) {
        let clean = self.secrets.clean(text);
        let begin = clean.len().saturating_sub(MAX_PART);
        let begin = (begin..clean.len()).find(|at| clean.is_char_boundary(*at));
        let part = clean.as_bytes()[begin.unwrap_or(0)..].to_vec();
        self.parts.push((name.to_owned(), part));
    }

    fn json(&mut self, name: &str, mut value: Value) {
        redact::value(&mut value);
        self.text(name, &output::json_text(&value));
    }

    fn problem(&mut self, of: &str, why: impl std::fmt::Display) {
        let why = output::plain(&format!("{of}: {why}")).replace('\n', " ");
        self.problems.push(self.secrets.clean(&why));
    }

    async fn gather(&mut self, args: &BundleArgs, setting: &Setting, now: Timestamp) {
        self.json(
            "about.json",
            json!({"made": now.to_string(), "client": version::own(), "machine": machine::facts()}),
        );
        match config::table(setting) {
            Ok(table) => self.text("config.txt", &table),
            Err(failure) => self.problem("config.txt", failure),
        }
        self.text("environment.txt", &redact::environment(std::env::vars_os()));
        match setting.data_dir() {
            Ok(dir) => self.of_this_machine(&dir),
            Err(failure) => self.problem("logs", failure),
        }
        let findings = doctor::look(setting, args.store.as_deref(), &args.access).await;
        self.json("doctor.json", findings);
        match setting.api() {
            Ok(api) => self.of_the_server(&api).await,
            Err(failure) => self.problem("server", failure),
        }
        let controllers = setting
            .data_dir()
            .map(|dir| place::controllers_socket(&dir))
            .ok()
            .filter(|socket| socket.exists());
        if let Some(socket) = controllers {
            self.pages("controllers", &Api::unix(socket)).await;
        }
    }

    fn of_this_machine(&mut self, data_dir: &Path) {
        for (name, text) in machine::kernel() {
            self.text(&format!("machine/{name}"), &text);
        }
        self.text("machine/data-directory.txt", &machine::listing(data_dir));
        let logs = crate::log::directory(data_dir);
        let mut found = match std::fs::read_dir(&logs) {
            Ok(found) => found.flatten().collect::<Vec<_>>(),
            Err(error) => {
                self.problem("log", format_args!("{}: {error}", logs.display()));
                return;
            }
        };
        found.sort_by_key(std::fs::DirEntry::file_name);
        for file in found {
            let name = file.file_name().to_string_lossy().into_owned();
            match machine::tail(&file.path(), MAX_PART) {
                Ok(text) => self.text(&format!("log/{name}"), &text),
                Err(error) => self.problem(&format!("log/{name}"), error),
            }
        }
    }

    /// What every process tells of itself.
    async fn pages(&mut self, of: &str, api: &Api) {
        for (page, name) in [
            ("/healthz", "healthz.txt"),
            ("/readyz", "readyz.txt"),
            ("/metrics", "metrics.txt"),
            ("/statusz", "statusz.txt"),
        ] {
            let name = format!("{of}/{name}");
            match api.text(page).await {
                Ok(text) => self.text(&name, &text),
                Err(failure) => self.problem(&name, failure),
            }
        }
    }

    async fn of_the_server(&mut self, api: &Api) {
        match api.get("/version").await {
            Ok(version) => self.json("server/version.json", version),
            Err(failure) => {
                // The rest would say the same.
                self.problem("server", failure);
                return;
            }
        }
        self.pages("server", api).await;
        for (path, name) in [("/failsafe", "failsafe"), ("/kinds", "kinds")] {
            let name = format!("server/{name}.json");
            match api.get(path).await {
                Ok(answer) => self.json(&name, answer),
                Err(failure) => self.problem(&name, failure),
            }
        }
        let catalog = match Catalog::load(api).await {
            Ok(catalog) => catalog,
            Err(failure) => return self.problem("objects", failure),
        };
        for kind in catalog.definitions() {
            let name = format!("objects/{}.{}.json", kind.plural, kind.group);
            let collection = Collection::new(kind, None);
            match find::list(api, &collection, &Query::default()).await {
                Ok((mut items, revision)) => {
                    if items.len() > MAX_OBJECTS {
                        let all = items.len();
                        self.problem(&name, format_args!("{MAX_OBJECTS} of {all} are in it"));
                        items.truncate(MAX_OBJECTS);
                    }
                    self.json(&name, output::list(&items, &revision));
                }
                Err(failure) => self.problem(&name, failure),
            }
        }
    }

    /// The archive, below one directory.
    fn pack(&self, name: &str, now: Timestamp) -> std::io::Result<Vec<u8>> {
        let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        let mut archive = tar::Builder::new(gzip);
        let problems = self.problems.iter().map(|problem| format!("{problem}\n"));
        let problems = (
            "problems.txt".to_owned(),
            problems.collect::<String>().into_bytes(),
        );
        for (part, bytes) in self.parts.iter().chain([&problems]) {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(u64::try_from(now.as_second()).unwrap_or_default());
            archive.append_data(&mut header, format!("{name}/{part}"), bytes.as_slice())?;
        }
        archive.into_inner()?.finish()
    }
}
