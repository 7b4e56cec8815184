//! `config`: several fleets, each a context with its server, and where each setting came from.
//!
//! A flag wins over the environment, the environment over the context, the context over the
//! default. A place that was named (--server, --data-dir) replaces the context's place whole, so
//! that the token of one fleet is never shown to another. Programs that run pods take no context.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::{Deserialize, Serialize};

use super::Setting;
use crate::error::{Code, Failure, Result};
use crate::output::{self, Table};
use crate::place;

/// Names the file of contexts.
pub(crate) const VARIABLE: &str = "PLATCTRL_CONFIG";
/// No file of contexts is larger.
const MAX_FILE: u64 = 1 << 20;

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Show each setting of a command, and where it came from
    Show,
    /// List the contexts; a * is before the one that is used
    Contexts,
    /// Use a context from now on
    Use {
        /// Its name
        name: String,
    },
    /// Make or change a context from --server, --ca, --token-file and --namespace
    Set {
        /// Its name
        name: String,
        /// The namespace of commands that name none
        #[arg(short, long, value_name = "NAMESPACE")]
        namespace: Option<String>,
    },
    /// Forget a context; its files stay
    Delete {
        /// Its name
        name: String,
    },
}

/// The file of contexts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Config {
    /// The context that is used when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    current: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, Context>,
}

/// A fleet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Context {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) server: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
}

/// The context of a command.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    pub(crate) name: String,
    pub(crate) context: Context,
}

/// Where the file is; None for somebody without a home.
fn path() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os(VARIABLE).filter(|name| !name.is_empty()) {
        return Some(named.into());
    }
    let absolute = |name: &str| {
        let path = std::env::var_os(name).map(PathBuf::from);
        path.filter(|path| path.is_absolute())
    };
    let dir = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(dir.join("platctrl/config.yaml"))
}

fn must_have_path() -> Result<PathBuf> {
    path().ok_or_else(|| {
        Failure::usage("there is no home directory to keep contexts in")
            .hint(format!("name a file with {VARIABLE}"))
    })
}

impl Config {
    /// Reads the file; there need not be one.
    pub(crate) fn read() -> Result<Self> {
        match path() {
            Some(path) => Self::read_from(&path),
            None => Ok(Self::default()),
        }
    }

    fn read_from(path: &Path) -> Result<Self> {
        use std::io::Read as _;
        let wrong = |problem: String| {
            Failure::usage(format!("{}: {}", path.display(), output::plain(&problem)))
                .hint("`platctrl config set NAME --server URL` writes a context that is right")
        };
        let mut text = String::new();
        match std::fs::File::open(path)
            .and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text))
        {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(wrong(error.to_string())),
            Ok(size) if size as u64 > MAX_FILE => {
                return Err(wrong(format!("it has more than {MAX_FILE} bytes")));
            }
            Ok(_) if text.trim().is_empty() => return Ok(Self::default()),
            Ok(_) => {}
        }
        serde_saphyr::from_str(&text).map_err(|error| wrong(error.without_snippet().to_string()))
    }

    /// Writes the file whole or not at all; others cannot read where somebody's tokens are.
    fn write(&self, path: &Path) -> Result<()> {
        let text = serde_saphyr::to_string(self).map_err(Failure::failed)?;
        let dir = path.parent().unwrap_or(Path::new("."));
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(dir)?;
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            file.write_all(text.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(path)?;
            Ok(())
        };
        write()
            .map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))
    }

    fn unknown(&self, name: &str) -> Failure {
        let failure = Failure::new(
            Code::NotFound,
            format!("there is no context `{}`", output::plain(name)),
        );
        match output::nearest(name, self.contexts.keys().map(String::as_str)) {
            Some(near) => failure.hint(format!("did you mean `{near}`?")),
            None => failure.hint("`platctrl config contexts` lists them"),
        }
    }

    /// The context that is named, else the current one.
    pub(crate) fn choose(&self, named: Option<&str>) -> Result<Option<Chosen>> {
        let Some(name) = named.or(self.current.as_deref()) else {
            return Ok(None);
        };
        let context = self.contexts.get(name).ok_or_else(|| self.unknown(name))?;
        Ok(Some(Chosen {
            name: name.to_owned(),
            context: context.clone(),
        }))
    }
}

pub(crate) fn run(verb: &ConfigVerb, setting: &Setting) -> Result<()> {
    match verb {
        ConfigVerb::Show => output::print(table(setting)?),
        ConfigVerb::Contexts => {
            let config = Config::read()?;
            if config.contexts.is_empty() {
                output::note(
                    "there are no contexts: `platctrl config set NAME --server URL` makes one",
                );
                return Ok(());
            }
            let mut lines = vec![
                ["", "NAME", "SERVER", "NAMESPACE"]
                    .map(str::to_owned)
                    .to_vec(),
            ];
            for (name, context) in &config.contexts {
                let mark = if config.current.as_ref() == Some(name) {
                    "*"
                } else {
                    " "
                };
                let or = |value: &Option<String>, default: &str| {
                    output::plain(value.as_deref().unwrap_or(default))
                };
                lines.push(vec![
                    mark.to_owned(),
                    output::plain(name),
                    or(&context.server, "this machine"),
                    or(&context.namespace, platctrl_kinds::DEFAULT_NAMESPACE),
                ]);
            }
            output::print(Table::default().render(&lines))
        }
        ConfigVerb::Use { name } => {
            let path = must_have_path()?;
            let mut config = Config::read()?;
            if !config.contexts.contains_key(name) {
                return Err(config.unknown(name));
            }
            config.current = Some(name.clone());
            config.write(&path)?;
            output::print(format_args!("context/{name} in use\n"))
        }
        ConfigVerb::Set { name, namespace } => set(name, namespace.as_deref(), setting),
        ConfigVerb::Delete { name } => {
            let path = must_have_path()?;
            let mut config = Config::read()?;
            if config.contexts.remove(name).is_none() {
                return Err(config.unknown(name));
            }
            if config.current.as_ref() == Some(name) {
                config.current = None;
                output::note(
                    "hint: commands go to this machine's server now; `platctrl config use NAME` chooses a context",
                );
            }
            config.write(&path)?;
            output::print(format_args!("context/{name} deleted\n"))
        }
    }
}

fn set(name: &str, namespace: Option<&str>, setting: &Setting) -> Result<()> {
    for (what, word) in [
        ("the name of a context", Some(name)),
        ("namespace", namespace),
    ] {
        if let Some(word) = word {
            let checked = platctrl_framework::model::check_name(what, word);
            checked.map_err(|error| Failure::usage(error.to_string()))?;
        }
    }
    let flags = &setting.given;
    if let Some(server) = &flags.server
        && !super::is_remote(server)
    {
        place::server(Some(server), None)?;
    }
    let absolute = |path: &Option<PathBuf>| -> Result<Option<PathBuf>> {
        let path = path.as_ref().map(std::path::absolute).transpose();
        path.map_err(|error| Failure::usage(format!("a path cannot be used: {error}")))
    };
    let given = Context {
        server: flags.server.clone(),
        ca: absolute(&flags.ca)?,
        token_file: absolute(&flags.token_file)?,
        namespace: namespace.map(str::to_owned),
    };
    let path = must_have_path()?;
    let mut config = Config::read()?;
    let is_new = !config.contexts.contains_key(name);
    let context = config.contexts.entry(name.to_owned()).or_default();
    let before = context.clone();
    context.server = given.server.or(context.server.take());
    context.ca = given.ca.or(context.ca.take());
    context.token_file = given.token_file.or(context.token_file.take());
    context.namespace = given.namespace.or(context.namespace.take());
    let outcome = match (is_new, *context == before) {
        (true, _) => "created",
        (false, true) => "unchanged",
        (false, false) => "configured",
    };
    config.current.get_or_insert_with(|| name.to_owned());
    config.write(&path)?;
    output::print(format_args!("context/{name} {outcome}\n"))
}

/// Each setting, its value and where it came from; never a token.
pub(crate) fn table(setting: &Setting) -> Result<String> {
    let mut lines = vec![["SETTING", "VALUE", "FROM"].map(str::to_owned).to_vec()];
    let mut line = |name: &str, value: String, from: String| {
        lines.push(vec![name.to_owned(), output::plain(&value), from]);
    };
    let file = path().map_or_else(|| "-".to_owned(), |path| path.display().to_string());
    let from_file = match std::env::var_os(VARIABLE) {
        Some(_) => VARIABLE.to_owned(),
        None => "default".to_owned(),
    };
    line("config file", file.clone(), from_file);
    let of_context = |name: &str| format!("context {name} in {file}");
    match &setting.context {
        Some(chosen) => line(
            "context",
            chosen.name.clone(),
            setting
                .source("context")
                .unwrap_or_else(|| format!("current in {file}")),
        ),
        None => line("context", "-".to_owned(), "default".to_owned()),
    }
    let taken = setting.context.as_ref().filter(|_| setting.takes_place());
    let from = |id: &str, in_context: bool| match (setting.source(id), taken) {
        (Some(source), _) => source,
        (None, Some(chosen)) if in_context => of_context(&chosen.name),
        _ => "default".to_owned(),
    };
    let has = |of: fn(&Context) -> bool| taken.is_some_and(|chosen| of(&chosen.context));
    let here = setting.data_dir()?;
    let server = match setting.given_server() {
        Some(server) => server.to_owned(),
        None => match place::server(None, setting.given_data_dir()) {
            Ok(socket) => format!("unix:{}", socket.display()),
            Err(_) => "none runs on this machine".to_owned(),
        },
    };
    line(
        "server",
        server,
        from("server", has(|it| it.server.is_some())),
    );
    let ca = setting
        .flags
        .ca
        .clone()
        .unwrap_or_else(|| here.join(place::TLS).join(crate::tls::CA));
    line(
        "ca",
        ca.display().to_string(),
        from("ca", has(|it| it.ca.is_some())),
    );
    // A token is never shown, only where it is.
    let (token, from_token) = match (
        &setting.flags.token_file,
        std::env::var_os("PLATCTRL_TOKEN"),
    ) {
        (Some(path), _) => (
            path.display().to_string(),
            from("token_file", has(|it| it.token_file.is_some())),
        ),
        (None, Some(_)) => ("(not shown)".to_owned(), "PLATCTRL_TOKEN".to_owned()),
        (None, None) => (
            place::token(&here).display().to_string(),
            "default".to_owned(),
        ),
    };
    line("token", token, from_token);
    line(
        "data dir",
        here.display().to_string(),
        from("data_dir", false),
    );
    let namespace = setting
        .context
        .as_ref()
        .and_then(|chosen| Some((chosen.context.namespace.clone()?, of_context(&chosen.name))));
    let (namespace, from_namespace) = namespace.unwrap_or_else(|| {
        (
            platctrl_kinds::DEFAULT_NAMESPACE.to_owned(),
            "default".to_owned(),
        )
    });
    line("namespace", namespace, from_namespace);
    Ok(Table::default().render(&lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_written_and_read_and_chosen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/config.yaml");
        assert_eq!(Config::read_from(&path).unwrap(), Config::default());
        let mut config = Config::default();
        let context = Context {
            server: Some("https://a:1".to_owned()),
            ..Context::default()
        };
        config.contexts.insert("prod".to_owned(), context.clone());
        config.write(&path).unwrap();
        let read = Config::read_from(&path).unwrap();
        assert_eq!(read, config);
        assert!(read.choose(None).unwrap().is_none());
        assert_eq!(read.choose(Some("prod")).unwrap().unwrap().context, context);
        let failure = read.choose(Some("prd")).unwrap_err();
        assert_eq!(
            (failure.code, failure.hint.as_deref()),
            (Code::NotFound, Some("did you mean `prod`?"))
        );
    }

    #[test]
    fn a_wrong_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        for text in ["contexts: [", "contexts: {a: {sever: x}}", "context: {}"] {
            std::fs::write(&path, text).unwrap();
            let failure = Config::read_from(&path).unwrap_err();
            assert_eq!(failure.code, Code::Usage, "{text}");
            assert!(failure.message.contains("config.yaml"), "{failure}");
        }
    }
}
