//! The command line: one grammar, a module for each family of verbs.
//!
//! Nothing runs before the arguments are understood, so that help is there at once.

mod access;
mod alone;
pub(crate) mod apply;
mod audit;
mod change;
mod changes;
mod config;
mod debug;
mod delete;
mod diff;
mod doctor;
mod edit;
mod events;
mod exec;
mod explain;
pub(crate) mod failsafe;
mod find;
mod get;
mod here;
mod hoist;
mod hooks;
mod interrupt;
mod local;
mod logs;
mod node;
mod policy;
mod rollout;
mod sign;
mod store;
mod top;
mod undelete;
mod uninstall;
mod version;
mod wait;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::api::{Api, Catalog, Remote, Token};
use crate::error::{Failure, Result};
use crate::{output, place, roles, up};

pub(crate) use alone::run as run_agent;
pub(crate) use find::list;

/// The controller pattern without Kubernetes: say what should run, and it does.
#[derive(Debug, Parser)]
#[command(
    name = "platctrl",
    version,
    propagate_version = false,
    max_term_width = 100
)]
#[command(
    after_help = "Exit codes: 0 ok, 1 failed, 2 usage or ambiguous, 3 unreachable or \
uninitialised, 4 denied, 5 not found, 6 conflict, 7 timeout, 8 held by a failsafe."
)]
struct Cli<V: Subcommand> {
    #[command(flatten)]
    server: ServerFlags,
    /// Say more on standard error; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    verb: V,
}

/// Where the server is.
#[derive(Clone, Debug, Args)]
pub(crate) struct ServerFlags {
    /// The server to talk to: unix:PATH or https://HOST:PORT [default: the `up` of this machine]
    #[arg(long, global = true, env = "PLATCTRL_SERVER", value_name = "URL")]
    server: Option<String>,
    /// The certificate of the authority of an https server [default: tls/ca.crt in the data directory]
    #[arg(long, global = true, env = "PLATCTRL_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The file of the token for an https server [default: PLATCTRL_TOKEN, else token in the data directory]
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The directory that everything is kept in
    #[arg(long, global = true, env = place::DATA_DIR, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The context to take the server and namespace from, of those that `platctrl config` knows
    #[arg(long, global = true, env = "PLATCTRL_CONTEXT", value_name = "NAME")]
    context: Option<String>,
    /// Say that this command makes so many changes, so that no failsafe holds them
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    expect_changes: Option<u32>,
}

/// A namespace.
#[derive(Clone, Debug, Args)]
pub(crate) struct NamespaceFlag {
    /// The namespace
    #[arg(short, long, default_value = platctrl_kinds::DEFAULT_NAMESPACE)]
    pub(crate) namespace: String,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run everything on this machine: server, controllers and agent
    Up(up::UpArgs),
    /// Serve the API for a store that many machines use
    Server(roles::ServerArgs),
    /// Run the controllers on a store that many machines use; several may, and one leads
    Controllers(roles::ControllersArgs),
    /// Look after the pods of this machine, on a store that many machines use
    Agent(Box<roles::AgentArgs>),
    /// Admit machines, empty them, give them up
    #[command(subcommand)]
    Node(node::NodeVerb),
    /// Show objects
    Get(get::GetArgs),
    /// Show everything about an object: what it wants, what is, and why
    Describe(get::DescribeArgs),
    /// Make what manifests say
    Apply(apply::ApplyArgs),
    /// End objects
    Delete(delete::DeleteArgs),
    /// Take a delete back, while it is not carried out: pods that still run are kept
    Undelete(undelete::UndeleteArgs),
    /// Change how many pods a controller keeps
    Scale(change::ScaleArgs),
    /// Take pods over to another version, watch it, pause it, go back
    #[command(subcommand)]
    Rollout(rollout::RolloutVerb),
    /// Set and remove labels
    Label(change::LabelArgs),
    /// Set and remove annotations
    Annotate(change::LabelArgs),
    /// Show what `apply` would change
    Diff(diff::DiffArgs),
    /// Change an object in an editor
    Edit(edit::EditArgs),
    /// Show the fields of a kind, and what they mean
    Explain(explain::ExplainArgs),
    /// Put no new pods on a node; the same as `node cordon`
    Cordon(node::NameArgs),
    /// Put pods on a node again, and end a drain; the same as `node uncordon`
    Uncordon(node::NameArgs),
    /// Move a node's pods elsewhere, never more at once than their budgets leave; the same as `node drain`
    Drain(node::DrainArgs),
    /// Show what a pod's programs wrote
    Logs(logs::LogsArgs),
    /// Restart a pod of this machine, once that takes no more pods away than may be
    Restart(here::ControlArgs),
    /// Stop a pod of this machine until it is started again, or gets a new version
    Stop(here::ControlArgs),
    /// Start a pod of this machine that was stopped
    Start(here::StartArgs),
    /// Run a command with the user, the cgroup and the environment of a pod
    Exec(exec::ExecArgs),
    /// Show what machines and pods use
    #[command(subcommand)]
    Top(top::TopVerb),
    /// Show what happened, oldest first
    Events(events::EventsArgs),
    /// Wait until something is so
    Wait(wait::WaitArgs),
    /// Show and settle what failsafes hold back
    #[command(subcommand)]
    Failsafe(failsafe::FailsafeVerb),
    /// Stop every change; pods keep running
    Freeze(failsafe::FreezeArgs),
    /// End a freeze
    Thaw(failsafe::FreezeArgs),
    /// Make and take the tokens that let people and programs in over the network
    #[command(subcommand)]
    Token(access::TokenVerb),
    /// Show who did what over the API, from where, and what changed
    Audit(audit::AuditArgs),
    /// Make the authority that signs for servers
    #[command(subcommand)]
    Ca(access::CaVerb),
    /// Print what kubectl needs to talk to this server
    Kubeconfig(access::KubeconfigArgs),
    /// Make, look at, save and move the store
    Store(store::StoreArgs),
    /// Make and check artifacts
    #[command(subcommand)]
    Hoist(hoist::HoistVerb),
    /// Sign an artifact or manifests with a key of gpg's
    Sign(sign::SignArgs),
    /// Check who signed an artifact or manifests, and print what was signed
    Verify(sign::VerifyArgs),
    /// Run one pod of a manifest without a server, until it has ended or is interrupted
    Launch(local::LaunchArgs),
    /// Call a node's hooks for one of its pods by hand
    RunHooks(hooks::RunHooksArgs),
    /// Stop and remove everything of a data directory
    Uninstall(uninstall::UninstallArgs),
    /// Show where settings come from; keep several fleets apart
    #[command(subcommand)]
    Config(config::ConfigVerb),
    /// Look at this machine, the server and a store, and say what to do
    Doctor(doctor::DoctorArgs),
    /// Gather what somebody needs who is to find out what is wrong
    #[command(subcommand)]
    Debug(debug::DebugVerb),
    /// Print the versions of this program and of the server
    Version(version::VersionArgs),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Whether these arguments are taken, without doing anything.
pub(crate) fn takes(arguments: &[String]) -> std::result::Result<(), String> {
    match Cli::<Verb>::try_parse_from(arguments) {
        Err(error) if error.use_stderr() => Err(error.to_string()),
        // Help and versions are answers, too.
        _ => Ok(()),
    }
}

/// Every verb with its own verbs, as somebody writes them. Aliases and what is hidden are left out.
pub(crate) fn verbs() -> Vec<Vec<String>> {
    fn gather(grammar: &clap::Command, before: &[String], found: &mut Vec<Vec<String>>) {
        let verbs = grammar
            .get_subcommands()
            .filter(|verb| verb.get_name() != "help" && !verb.is_hide_set());
        for verb in verbs {
            let words = [before, &[verb.get_name().to_owned()]].concat();
            if verb.has_subcommands() {
                gather(verb, &words, found);
            } else {
                found.push(words);
            }
        }
    }
    let mut found = Vec::new();
    gather(&Cli::<Verb>::command(), &[], &mut found);
    found
}

/// Whether a server is one on the network.
pub(crate) fn is_remote(server: &str) -> bool {
    server.starts_with("https:")
}

impl ServerFlags {
    /// A server on the network with the authority and token that were given, else those of the
    /// data directory.
    fn remote_at(&self, url: &str, data_dir: &Path) -> Result<Remote> {
        let ca = self
            .ca
            .clone()
            .unwrap_or_else(|| data_dir.join(place::TLS).join(crate::tls::CA));
        let read = |path: &Path| std::fs::read_to_string(path).map(|text| Token::new(&text));
        let token = match (&self.token_file, std::env::var("PLATCTRL_TOKEN")) {
            (Some(path), _) => Some(read(path).map_err(|error| {
                Failure::usage(format!(
                    "cannot read the token in {}: {error}",
                    path.display()
                ))
            })?),
            (None, Ok(text)) if !text.trim().is_empty() => Some(Token::new(&text)),
            _ => read(&place::token(data_dir)).ok(),
        };
        Remote::new(url, ca, token)
    }
}

impl Verb {
    /// Whether it asks a server for something, so that a context may say which.
    fn is_of_a_client(&self) -> bool {
        !matches!(
            self,
            Self::Up(_)
                | Self::Server(_)
                | Self::Controllers(_)
                | Self::Agent(_)
                | Self::Launch(_)
                | Self::Uninstall(_)
                | Self::Hoist(_)
                | Self::Sign(_)
                | Self::Verify(_)
                | Self::Ca(_)
                | Self::Completion { .. }
        )
    }
}

impl Verb {
    /// Whether it works, or mends things, where the file of contexts is wrong.
    fn works_without_contexts(&self) -> bool {
        matches!(
            self,
            Self::Config(_) | Self::Version(_) | Self::Debug(_) | Self::Doctor(_)
        )
    }
}

/// What every verb knows.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    /// What was given, and what the context adds to it.
    flags: ServerFlags,
    /// What was given as a flag or in the environment.
    given: ServerFlags,
    /// Where each of them was given.
    sources: BTreeMap<&'static str, String>,
    context: Option<config::Chosen>,
    verbose: u8,
}

/// The settings whose source is told.
const SETTINGS: [(&str, &str); 5] = [
    ("server", "PLATCTRL_SERVER"),
    ("ca", "PLATCTRL_CA"),
    ("token_file", ""),
    ("data_dir", place::DATA_DIR),
    ("context", "PLATCTRL_CONTEXT"),
];

impl Setting {
    fn new(
        given: &ServerFlags,
        verbose: u8,
        matches: &clap::ArgMatches,
        context: Option<config::Chosen>,
    ) -> Self {
        use clap::parser::ValueSource;
        let matches = innermost(matches);
        let sources = SETTINGS.into_iter().filter_map(|(id, variable)| {
            let from = match matches.value_source(id)? {
                ValueSource::CommandLine => format!("--{}", id.replace('_', "-")),
                ValueSource::EnvVariable => variable.to_owned(),
                _ => return None,
            };
            Some((id, from))
        });
        let mut setting = Self {
            flags: given.clone(),
            given: given.clone(),
            sources: sources.collect(),
            context,
            verbose,
        };
        if let Some(chosen) = setting.context.clone().filter(|_| setting.takes_place()) {
            let (flags, of) = (&mut setting.flags, chosen.context);
            flags.server = of.server;
            flags.ca = flags.ca.take().or(of.ca);
            if std::env::var_os("PLATCTRL_TOKEN").is_none() {
                flags.token_file = flags.token_file.take().or(of.token_file);
            }
        }
        setting
    }

    /// Whether the place is the context's: nobody named another.
    fn takes_place(&self) -> bool {
        self.given.server.is_none() && self.given.data_dir.is_none()
    }

    /// Where a setting was given; None if it was not.
    fn source(&self, id: &str) -> Option<String> {
        self.sources.get(id).cloned()
    }

    /// The namespace of what names none.
    pub(crate) fn namespace(&self) -> &str {
        let of = self.context.as_ref();
        of.and_then(|chosen| chosen.context.namespace.as_deref())
            .unwrap_or(platctrl_kinds::DEFAULT_NAMESPACE)
    }

    pub(crate) fn api(&self) -> Result<Api> {
        if self.given_server().is_some_and(is_remote)
            && let Some(remote) = self.remote()?
        {
            return Ok(Api::remote(remote));
        }
        let socket = place::server(self.flags.server.as_deref(), self.flags.data_dir.as_deref())?;
        Ok(Api::unix(socket))
    }

    /// The server and the kinds that it serves.
    pub(crate) async fn connect(&self) -> Result<(Api, Catalog)> {
        let api = self.api()?;
        if let Some(changes) = self.flags.expect_changes {
            failsafe::expect(&api, changes).await?;
        }
        let catalog = Catalog::load(&api).await?;
        Ok((api, catalog))
    }

    /// The server on the network: the one that was named, else where this machine's listens, if
    /// it does.
    pub(crate) fn remote(&self) -> Result<Option<Remote>> {
        let data_dir = self.data_dir()?;
        let url = match self.given_server() {
            Some(given) if is_remote(given) => given.to_owned(),
            Some(_) => return Ok(None),
            None => {
                let here = match (self.given_data_dir(), place::Pointer::read()) {
                    (None, Some(pointer)) => pointer.data_dir,
                    _ => data_dir.clone(),
                };
                let flags = ServerFlags {
                    data_dir: Some(here.clone()),
                    ..self.flags.clone()
                };
                match std::fs::read_to_string(place::listens(&here)) {
                    Ok(url) => return flags.remote_at(url.trim(), &here).map(Some),
                    Err(_) => return Ok(None),
                }
            }
        };
        self.flags.remote_at(&url, &data_dir).map(Some)
    }

    pub(crate) fn given_server(&self) -> Option<&str> {
        self.flags.server.as_deref()
    }

    /// The file of the token that is shown, if one was named.
    pub(crate) fn token_file(&self) -> Option<&Path> {
        self.flags.token_file.as_deref()
    }

    pub(crate) fn given_ca(&self) -> Option<PathBuf> {
        self.flags.ca.clone()
    }

    pub(crate) fn data_dir(&self) -> Result<PathBuf> {
        place::data_dir(self.given_data_dir())
    }

    pub(crate) fn given_data_dir(&self) -> Option<&Path> {
        self.flags.data_dir.as_deref()
    }
}

/// Parses the arguments of this process and does what they say.
pub(crate) fn run() -> ExitCode {
    let (cli, setting) = match understand() {
        Ok(understood) => understood,
        Err(refusal) => return refusal.report(),
    };
    crate::log::to_stderr(setting.verbose);
    end(run_verb(cli.verb, &setting))
}

/// Says how it ended.
fn end(outcome: Result<()>) -> ExitCode {
    let _ = std::io::stdout().flush();
    match outcome.and_then(|()| output::told()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Why the arguments say nothing that can be done.
enum Refusal {
    /// They are wrong, or ask for help.
    Usage(clap::Error),
    /// The context cannot be used.
    Context(Failure),
}

impl Refusal {
    /// Says so, or shows the help that was asked for.
    fn report(self) -> ExitCode {
        match self {
            Self::Usage(error) => {
                // Help goes to standard output and ends well, an error of usage with 2.
                let code = u8::try_from(error.exit_code()).unwrap_or(2);
                let _ = error.print();
                ExitCode::from(code)
            }
            Self::Context(failure) => failure.report(),
        }
    }
}

/// Understands the arguments; the context's namespace stands where none is given.
fn understand() -> std::result::Result<(Cli<Verb>, Setting), Refusal> {
    let parse = |grammar: clap::Command| {
        let matches = grammar.try_get_matches()?;
        Cli::<Verb>::from_arg_matches(&matches).map(|cli| (cli, matches))
    };
    let (cli, matches) = parse(Cli::<Verb>::command()).map_err(Refusal::Usage)?;
    if !cli.verb.is_of_a_client() {
        let setting = Setting::new(&cli.server, cli.verbose, &matches, None);
        return Ok((cli, setting));
    }
    let named = cli.server.context.as_deref();
    let context = match config::Config::read().and_then(|config| config.choose(named)) {
        Ok(context) => context,
        // What mends the contexts works without them.
        Err(_) if cli.verb.works_without_contexts() && named.is_none() => None,
        Err(failure) => return Err(Refusal::Context(failure)),
    };
    let setting = Setting::new(&cli.server, cli.verbose, &matches, context);
    if setting.namespace() == platctrl_kinds::DEFAULT_NAMESPACE {
        return Ok((cli, setting));
    }
    // The grammar wants it for as long as this process is there, and so does the command.
    let namespace = String::from(setting.namespace()).leak();
    let grammar = with_namespace(Cli::<Verb>::command(), namespace);
    let (cli, _) = parse(grammar).map_err(Refusal::Usage)?;
    Ok((cli, setting))
}

/// The grammar with another namespace where none is given.
fn with_namespace(grammar: clap::Command, namespace: &'static str) -> clap::Command {
    let is_default = |argument: &clap::Arg| {
        argument.get_id() == "namespace" && !argument.get_default_values().is_empty()
    };
    let has_default = grammar.get_arguments().any(is_default);
    let grammar = match has_default {
        true => grammar.mut_arg("namespace", |argument| argument.default_value(namespace)),
        false => grammar,
    };
    grammar.mut_subcommands(|verb| with_namespace(verb, namespace))
}

/// The matches of the verb itself: a global flag may be given behind it.
fn innermost(matches: &clap::ArgMatches) -> &clap::ArgMatches {
    match matches.subcommand() {
        Some((_, inner)) => innermost(inner),
        None => matches,
    }
}

fn run_verb(verb: Verb, setting: &Setting) -> Result<()> {
    match verb {
        Verb::Up(args) => up::run(&args, setting),
        Verb::Server(args) => process(roles::server(&args, setting)),
        Verb::Controllers(args) => process(roles::controllers(&args, setting)),
        // They are understood, and are read once more over there.
        Verb::Agent(_) => alone::turn_into(),
        Verb::Node(verb) => change(node::run(&verb, setting)),
        Verb::Get(args) => client(get::get(&args, setting)),
        Verb::Describe(args) => client(get::describe(&args, setting)),
        Verb::Apply(args) => change(apply::run(&args, setting)),
        Verb::Delete(args) => change(delete::run(&args, setting)),
        Verb::Undelete(args) => change(undelete::run(&args, setting)),
        Verb::Scale(args) => change(change::scale(&args, setting)),
        Verb::Rollout(verb) if verb.only_looks() => client(rollout::run(&verb, setting)),
        Verb::Rollout(verb) => change(rollout::run(&verb, setting)),
        Verb::Label(args) => change(change::note(change::LABELS, &args, setting)),
        Verb::Annotate(args) => change(change::note(change::ANNOTATIONS, &args, setting)),
        Verb::Diff(args) => client(diff::run(&args, setting)),
        Verb::Edit(args) => change(edit::run(&args, setting)),
        Verb::Explain(args) => client(explain::run(&args, setting)),
        Verb::Cordon(args) => change(node::run(&args.cordon(), setting)),
        Verb::Uncordon(args) => change(node::run(&args.uncordon(), setting)),
        Verb::Drain(args) => change(node::run(&node::NodeVerb::Drain(args), setting)),
        Verb::Logs(args) => client(logs::run(&args, setting)),
        Verb::Restart(args) => client(here::restart(&args, setting)),
        Verb::Stop(args) => client(here::stop(&args, setting)),
        Verb::Start(args) => client(here::start(&args, setting)),
        Verb::Exec(args) => exec::run(&args, setting),
        Verb::Top(verb) => client(top::run(&verb, setting)),
        Verb::Events(args) => client(events::run(&args, setting)),
        Verb::Wait(args) => client(wait::run(&args, setting)),
        Verb::Failsafe(verb) => change(failsafe::run(&verb, setting)),
        Verb::Freeze(args) => change(failsafe::freeze(&args, setting)),
        Verb::Thaw(args) => change(failsafe::thaw(&args, setting)),
        Verb::Token(verb) => change(access::token(&verb, setting)),
        Verb::Audit(args) => client(audit::run(&args, setting)),
        Verb::Ca(verb) => access::ca(&verb, setting),
        Verb::Kubeconfig(args) => access::kubeconfig(&args, setting),
        Verb::Store(args) => change(store::run(&args, setting)),
        Verb::Hoist(verb) => hoist::run(&verb),
        Verb::Sign(args) => change(sign::sign(&args)),
        Verb::Verify(args) => client(sign::verify(&args)),
        Verb::Launch(args) => local::run(&args, setting),
        Verb::RunHooks(args) => change(hooks::run(&args, setting)),
        Verb::Uninstall(args) => change(uninstall::run(&args, setting)),
        Verb::Doctor(args) => client(doctor::run(&args, setting)),
        Verb::Config(verb) => config::run(&verb, setting),
        Verb::Debug(verb) => client(debug::run(&verb, setting)),
        Verb::Version(args) => client(version::run(&args, setting)),
        Verb::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::<Verb>::command(), "platctrl", &mut script);
            output::print_bytes(&script)
        }
    }
}

/// Runs what looks at something: one thing after the other, on one thread.
fn client(work: impl Future<Output = Result<()>>) -> Result<()> {
    until_interrupted(work, false)
}

/// Runs what changes something.
fn change(work: impl Future<Output = Result<()>>) -> Result<()> {
    until_interrupted(work, true)
}

fn until_interrupted(work: impl Future<Output = Result<()>>, changes: bool) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    let outcome = runtime.block_on(async {
        tokio::select! {
            biased;
            () = interrupt::interrupted() => Err(Failure::interrupted(changes)),
            outcome = work => outcome,
        }
    });
    // A read of standard input or of a slow disk is not waited for.
    runtime.shutdown_timeout(Duration::ZERO);
    outcome
}

/// Runs what stays.
fn process(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

pub(crate) use version::of as version_of;

/// An event as a line of a description's table.
pub(crate) fn event_line(event: &serde_json::Value, now: jiff::Timestamp) -> Vec<String> {
    events::line(event, now, false)
}

/// Parses `30s`, `5m`, `500ms`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let span: platctrl_kinds::Span = text.parse().map_err(|error| format!("{error}"))?;
    Ok(span.duration())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_consistent() {
        Cli::<Verb>::command().debug_assert();
    }
}
