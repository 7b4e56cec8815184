//! `store policy`: the rights of platctrl's programs, as etcd's roles and users or Consul's
//! policies and tokens: printed as commands, or made.
//!
//! A credential is written to a file that only its owner reads, or to standard output, as asked;
//! nothing else ever shows it.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use platctrl_framework::environment::Environment;
use platctrl_framework::store::StoreError;
use platctrl_store_consul::{self as consul, ConsulStore};
use platctrl_store_etcd::{self as etcd, EtcdStore};
use serde_json::{Value, json};

use crate::error::{Code, Failure, Result};
use crate::output;
use crate::rights::{Rights, Role};
use crate::store::{StoreAccess, StoreUrl};

/// About 157 bits.
const PASSWORD_CHARS: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum RoleName {
    /// The agent of a node
    Agent,
    /// Controllers: platctrl's own, or yours
    Controllers,
    /// The API server
    Server,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    #[default]
    Text,
    Json,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct PolicyArgs {
    /// Which: etcd://HOST:PORT,…/ROOT or consul://HOST:PORT/ROOT
    url: String,
    /// Whose rights
    #[arg(long)]
    role: RoleName,
    /// The node of an agent
    #[arg(long, required_if_eq("role", "agent"), value_name = "NODE")]
    node: Option<String>,
    /// The name of the controllers' runtime
    #[arg(long, default_value = "controllers", value_name = "NAME")]
    name: String,
    /// Into how many shards the controllers' work is divided
    #[arg(long, default_value_t = 0, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(0..=256))]
    shards: u16,
    /// The user's name (etcd); one that shows a certificate has the certificate's common name
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// The user shows a certificate and has no password (etcd)
    #[arg(long)]
    certificate: bool,
    /// Make what is missing and bring the rest in line, instead of printing how
    #[arg(long)]
    apply: bool,
    /// Where the password or token goes: a new file, or - for standard output
    #[arg(long, value_name = "FILE", requires = "apply")]
    credential: Option<PathBuf>,
    /// Make another password or token for a user that there is
    #[arg(long, requires = "credential")]
    renew: bool,
    /// Take it all away again: the user or token, and rights that nobody else has
    #[arg(long, conflicts_with_all = ["apply", "credential", "renew"])]
    revoke: bool,
    /// As what to print
    #[arg(long, short, default_value = "text", value_name = "FORM")]
    output: Form,
}

/// What came of it.
#[derive(Debug, Default)]
struct Done {
    changes: Vec<String>,
    /// To be shown on standard output, because that was asked for.
    shown: Option<String>,
}

impl PolicyArgs {
    fn role(&self) -> Role {
        match self.role {
            RoleName::Agent => Role::Agent {
                node: self.node.clone().unwrap_or_default(),
            },
            RoleName::Controllers => Role::Controllers {
                name: self.name.clone(),
                shards: usize::from(self.shards),
            },
            RoleName::Server => Role::Server,
        }
    }

    /// The rights, with the user's name as it was asked for.
    fn rights(&self, root: &str) -> Result<Rights> {
        let mut rights = self.role().rights(root).map_err(Failure::usage)?;
        if let Some(user) = &self.user {
            let odd = |c: char| c == ':' || c == '\'' || c.is_whitespace() || c.is_control();
            if user.is_empty() || user.contains(odd) || user.starts_with('-') || user == "root" {
                let user = output::plain(user);
                return Err(Failure::usage(format!(
                    "`{user}` cannot be the user's name"
                )));
            }
            rights.user.clone_from(user);
        }
        Ok(rights)
    }
}

/// Takes away what the agent of a node may do in a store.
pub(crate) async fn revoke_agent(url: &str, node: &str, access: &StoreAccess) -> Result<()> {
    let args = PolicyArgs {
        url: url.to_owned(),
        role: RoleName::Agent,
        node: Some(node.to_owned()),
        name: "controllers".to_owned(),
        shards: 0,
        user: None,
        certificate: false,
        apply: false,
        credential: None,
        renew: false,
        revoke: true,
        output: Form::Text,
    };
    run(&args, access).await
}

pub(crate) async fn run(args: &PolicyArgs, access: &StoreAccess) -> Result<()> {
    let url = StoreUrl::parse(&args.url)?;
    let (rights, commands, done, hint) = match &url {
        StoreUrl::Embedded(_) => {
            return Err(Failure::usage(format!(
                "{url} has no users: whoever may open its files may do everything"
            ))
            .hint("the API server asks each caller; its socket is for its owner alone"));
        }
        StoreUrl::Etcd(location) => {
            let rights = args.rights(location.root())?;
            let with_password = !args.certificate;
            let commands =
                etcd::access::commands(location, &rights.policies, &rights.user, with_password);
            let done = if args.apply || args.revoke {
                let store = access.etcd_store(location).await?;
                on_etcd(args, &store, &rights).await?
            } else {
                Done::default()
            };
            let hint = if args.certificate {
                format!(
                    "--store-cert FILE --store-key FILE, common name {}",
                    rights.user
                )
            } else {
                format!("--store-user {} --store-password-file FILE", rights.user)
            };
            (rights, commands, done, hint)
        }
        StoreUrl::Consul(address) => {
            if args.certificate || args.user.is_some() {
                let message = "Consul knows tokens, neither users nor their certificates";
                return Err(Failure::usage(message));
            }
            let rights = args.rights(address.root())?;
            let commands = consul::access::commands(address.root(), &rights.policies, &rights.user);
            let done = if args.apply || args.revoke {
                let store = access.consul_store(address, &Environment::system()).await?;
                on_consul(args, &store, &rights).await?
            } else {
                Done::default()
            };
            (rights, commands, done, "--store-token-file FILE".to_owned())
        }
    };
    if args.output == Form::Json {
        let value = as_json(args, &url, &rights, &commands, &done);
        return output::print(output::json_text(&value));
    }
    if args.apply || args.revoke {
        return say(args, &done, &hint);
    }
    output::print(format_args!(
        "# rights of {} in {url}\n{}\n",
        args.role().describe(),
        commands.join("\n")
    ))
}

fn say(args: &PolicyArgs, done: &Done, hint: &str) -> Result<()> {
    let mut text: String = done.changes.iter().map(|it| format!("{it}\n")).collect();
    if text.is_empty() {
        text.push_str("nothing to change\n");
    }
    if args.apply {
        output::note(format_args!("hint: it is used with {hint}"));
    }
    match &done.shown {
        // Whoever asks for it there takes standard output as it is.
        Some(secret) => {
            output::note(text.trim_end());
            output::print(format_args!("{secret}\n"))
        }
        None => output::print(text),
    }
}

fn as_json(
    args: &PolicyArgs,
    url: &StoreUrl,
    rights: &Rights,
    commands: &[String],
    done: &Done,
) -> Value {
    let mut value = json!({
        "store": url.to_string(),
        "policies": rights.policies,
        "commands": commands,
        "changes": done.changes,
        "applied": args.apply,
    });
    match url {
        StoreUrl::Consul(address) => {
            value["token"] = json!({
                "accessor": consul::access::accessor(&rights.user),
                "description": rights.user,
            });
            for (at, policy) in rights.policies.iter().enumerate() {
                value["policies"][at]["rules"] =
                    consul::access::rules(address.root(), policy).into();
                value["policies"][at]["consulName"] =
                    consul::access::policy_name(&policy.name).into();
            }
        }
        _ => value["user"] = rights.user.clone().into(),
    }
    if let Some(secret) = &done.shown {
        value["credential"] = secret.clone().into();
    }
    value
}

fn failure(error: &StoreError) -> Failure {
    let code = match error {
        StoreError::Denied { .. } => Code::Denied,
        StoreError::Unavailable { .. } | StoreError::Unknown { .. } => Code::Unreachable,
        _ => Code::Failed,
    };
    let failure = Failure::new(code, output::plain(&error.to_string()));
    match code {
        Code::Denied => failure.hint(
            "roles and users are made by etcd's user `root`; policies and tokens by a token with `acl = \"write\"`",
        ),
        Code::Unreachable => failure.hint("ask again: what was made already stays as it is"),
        _ => failure,
    }
}

async fn on_etcd(args: &PolicyArgs, store: &EtcdStore, rights: &Rights) -> Result<Done> {
    let control = store.access_control();
    let failed = |error: StoreError| failure(&error);
    let user = &rights.user;
    let mut done = Done::default();
    if args.revoke {
        if control.remove_user(user).await.map_err(failed)? {
            done.changes.push(format!("user {user} removed"));
        }
        // The first of several is shared with others.
        if let Some(own) = rights.policies.last()
            && control.remove_role(&own.name).await.map_err(failed)?
        {
            done.changes.push(format!("role {} removed", own.name));
        }
        output::note(
            "hint: etcd goes on with watches that are open: restart a member, or the process, when that matters",
        );
        return Ok(done);
    }
    let roles = control.roles_of(user).await.map_err(failed)?;
    if roles.is_none() && !args.certificate && args.credential.is_none() {
        return Err(Failure::usage(format!(
            "user {user} is new and gets a password: say where it goes"
        ))
        .hint("--credential FILE, or --credential - for standard output; or --certificate"));
    }
    if control.is_enabled().await.map_err(failed)? == Some(false) {
        output::note(
            "warning: etcd does not ask who anybody is: no right confines anybody until `etcdctl auth enable`",
        );
    }
    let server = store.server();
    for warning in server.iter().flat_map(|server| &server.warnings) {
        output::note(format_args!("warning: {warning}"));
    }
    for policy in &rights.policies {
        done.changes
            .extend(control.apply(policy).await.map_err(failed)?);
    }
    let is_new = roles.is_none();
    let needs_password = !args.certificate && (is_new || args.renew);
    if needs_password && let Some(target) = &args.credential {
        let password = Environment::system().suffix(PASSWORD_CHARS);
        let written = Secret::keep(target, &password)?;
        if is_new {
            let made = control.add_user(user, Some(&password)).await;
            if !made.map_err(failed)? {
                return Err(Failure::new(
                    Code::Conflict,
                    format!("somebody else made user {user} meanwhile"),
                )
                .hint("ask again; --renew gives it another password"));
            }
            done.changes.push(format!("user {user} made"));
        } else {
            let changed = control.change_password(user, &password).await;
            changed.map_err(failed)?;
            done.changes.push(format!("user {user}: another password"));
        }
        done.shown = written.done();
    } else if is_new {
        control.add_user(user, None).await.map_err(failed)?;
        done.changes
            .push(format!("user {user} made, which shows a certificate"));
    } else if args.credential.is_some() {
        output::note(format_args!(
            "warning: user {user} keeps its password, which nobody can read: nothing was written; --renew gives it another"
        ));
    }
    let held = roles.unwrap_or_default();
    let wanted: Vec<&String> = rights.policies.iter().map(|it| &it.name).collect();
    for role in &wanted {
        if !held.contains(role) {
            control.grant_role(user, role).await.map_err(failed)?;
            done.changes.push(format!("user {user}: in role {role}"));
        }
    }
    for other in held.iter().filter(|role| !wanted.contains(role)) {
        output::note(format_args!("warning: user {user} is in role {other} too"));
    }
    Ok(done)
}

async fn on_consul(args: &PolicyArgs, store: &ConsulStore, rights: &Rights) -> Result<Done> {
    let control = store.access_control();
    let failed = |error: StoreError| failure(&error);
    let name = &rights.user;
    let mut done = Done::default();
    if args.revoke {
        if control.remove_token(name).await.map_err(failed)? {
            done.changes.push(format!("token of {name} removed"));
        }
        // The first of several is shared with others.
        if let Some(own) = rights.policies.last()
            && control.remove(&own.name).await.map_err(failed)?
        {
            done.changes.push(format!("policy {} removed", own.name));
        }
        return Ok(done);
    }
    for policy in &rights.policies {
        done.changes
            .extend(control.apply(policy).await.map_err(failed)?);
    }
    if args.renew && control.remove_token(name).await.map_err(failed)? {
        done.changes.push(format!("token of {name} removed"));
    }
    let made = control.token(name, &rights.policies).await;
    let (token, changes) = made.map_err(failed)?;
    done.changes.extend(changes);
    if let Some(target) = &args.credential {
        done.shown = Secret::keep(target, &token.secret)?.done();
    }
    Ok(done)
}

/// A credential on its way to where it was asked for; a file that was made is removed again
/// unless all went well.
struct Secret {
    file: Option<PathBuf>,
    shown: Option<String>,
}

impl Secret {
    fn keep(target: &Path, secret: &str) -> Result<Self> {
        use std::os::unix::fs::OpenOptionsExt as _;
        if target == Path::new("-") {
            return Ok(Self {
                file: None,
                shown: Some(secret.to_owned()),
            });
        }
        let cannot = |error: &std::io::Error| {
            Failure::failed(format!("cannot write {}: {error}", target.display()))
        };
        let mut options = std::fs::OpenOptions::new();
        let opened = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(target);
        let mut file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let held = std::fs::read_to_string(target);
                if held.is_ok_and(|held| held.trim_end() == secret) {
                    return Ok(Self {
                        file: None,
                        shown: None,
                    });
                }
                return Err(
                    Failure::failed(format!("{} exists already", target.display()))
                        .hint("choose another name: a credential is never written over something"),
                );
            }
            Err(error) => return Err(cannot(&error)),
        };
        let kept = Self {
            file: Some(target.to_owned()),
            shown: None,
        };
        let written = writeln!(file, "{secret}").and_then(|()| file.sync_all());
        written.map_err(|error| cannot(&error))?;
        Ok(kept)
    }

    /// It is in use now; what is to be shown of it.
    fn done(mut self) -> Option<String> {
        self.file = None;
        self.shown.take()
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            let _ = std::fs::remove_file(file);
        }
    }
}
