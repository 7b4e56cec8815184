//! `ca`, `token`, `kubeconfig`: how other machines and people get in.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use super::Setting;
use crate::access::Role;
use crate::api::{OTHER_VERSION, media};
use crate::error::{Code, Failure, Result};
use crate::output::Table;
use crate::roles::listen::write_secret;
use crate::tls::{self, Authority, TlsError};
use crate::{output, place};

#[derive(Debug, Subcommand)]
pub(crate) enum CaVerb {
    /// Make an authority that signs for all servers of a store: ca.crt, and ca.key to be kept secret
    Init {
        /// Where [default: tls in the data directory]
        #[arg(long, value_name = "DIR")]
        tls_dir: Option<PathBuf>,
    },
    /// Make a certificate and key for somebody: it cannot be taken back before its end, a token can
    Issue {
        /// The person or program
        name: String,
        /// What they may do everywhere; bound: what role bindings give them, and nothing else
        #[arg(long, default_value_t = Role::Bound)]
        role: Role,
        /// How long it is good
        #[arg(long, default_value = "720h", value_parser = super::duration)]
        lifetime: Duration,
        /// Where the authority is [default: tls in the data directory]
        #[arg(long, value_name = "DIR")]
        tls_dir: Option<PathBuf>,
        /// Where NAME.crt and NAME.key are written
        #[arg(short, long, value_name = "DIR", default_value = ".")]
        output: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenVerb {
    /// Make a token and print it: it is not shown again
    Create {
        /// The person or program that it stands for
        name: String,
        /// What they may do everywhere; bound: what role bindings give them, and nothing else
        #[arg(long, default_value_t = Role::Bound)]
        role: Role,
        /// How long it is good [default: until it is deleted]
        #[arg(long, value_parser = super::duration)]
        lifetime: Option<Duration>,
    },
    /// Show whom tokens were made for
    List,
    /// Take a token away; servers notice within two seconds
    Delete {
        /// The name that it was made for
        name: String,
    },
}

fn failed(error: &TlsError, dir: &Path) -> Failure {
    let failure = Failure::failed(error);
    match error.is_missing {
        true => failure.hint(format!(
            "`platctrl ca init --tls-dir {}` makes an authority",
            dir.display()
        )),
        false => failure,
    }
}

pub(crate) fn ca(verb: &CaVerb, setting: &Setting) -> Result<()> {
    let dir = |given: &Option<PathBuf>| match given {
        Some(dir) => Ok(dir.clone()),
        None => setting.data_dir().map(|dir| dir.join(place::TLS)),
    };
    match verb {
        CaVerb::Init { tls_dir } => {
            let dir = dir(tls_dir)?;
            if dir.join(tls::CA).exists() {
                return Err(Failure::new(
                    Code::Conflict,
                    format!("{} has an authority already", dir.display()),
                )
                .hint("servers and clients trust that one; make another in another --tls-dir"));
            }
            Authority::make(&dir).map_err(|error| failed(&error, &dir))?;
            output::note(format_args!(
                "hint: start servers with --listen ADDRESS:PORT --tls-dir {}; clients need ca.crt alone",
                dir.display()
            ));
            output::print(format_args!("{}\n", dir.join(tls::CA).display()))
        }
        CaVerb::Issue {
            name,
            role,
            lifetime,
            tls_dir,
            output: to,
        } => {
            if name.is_empty() || name.contains('/') || name.starts_with('.') || name.len() > 63 {
                return Err(Failure::usage(format!(
                    "`{}` cannot be the name of a file and a person",
                    output::plain(name)
                )));
            }
            let dir = dir(tls_dir)?;
            let authority = Authority::load(&dir).map_err(|error| failed(&error, &dir))?;
            let issued = authority
                .person(name, *role, *lifetime)
                .map_err(Failure::failed)?;
            let certificate = to.join(format!("{name}.crt"));
            let written = write_secret(&to.join(format!("{name}.key")), issued.key.trim_end())
                .and_then(|()| std::fs::write(&certificate, issued.certificate));
            written.map_err(|error| {
                Failure::failed(format!("cannot write {}: {error}", certificate.display()))
            })?;
            output::print(format_args!("{}\n", certificate.display()))
        }
    }
}

/// A server answered what nobody asked for.
fn strange(what: &str) -> Failure {
    Failure::failed(format!("the server's answer {what}")).hint(OTHER_VERSION)
}

pub(crate) async fn token(verb: &TokenVerb, setting: &Setting) -> Result<()> {
    let api = setting.api()?;
    match verb {
        TokenVerb::Create {
            name,
            role,
            lifetime,
        } => {
            let mut wanted = json!({"name": name, "role": role});
            if let Some(lifetime) = lifetime {
                wanted["lifetimeSeconds"] = lifetime.as_secs().into();
            }
            let made = api
                .call(Method::POST, "/auth/tokens", Some((media::JSON, &wanted)))
                .await?;
            let text = made.body["token"]
                .as_str()
                .ok_or_else(|| strange("has no token"))?;
            output::note(
                "hint: it is not shown again; give it to clients in PLATCTRL_TOKEN or --token-file",
            );
            let printed = output::print(format_args!("{text}\n"));
            if printed.is_err() {
                // Nobody has it, and nobody ever will.
                let path = format!("/auth/tokens/{}", crate::api::segment(name));
                api.call(Method::DELETE, &path, None).await?;
                return Err(Failure::failed(
                    "nobody read the token, so it was deleted again",
                ));
            }
            Ok(())
        }
        TokenVerb::List => {
            let answer = api.get("/auth/tokens").await?;
            let headings = ["NAME", "ROLE", "CREATED", "BY", "EXPIRES"];
            let mut lines = vec![headings.map(str::to_owned).to_vec()];
            let tokens = answer["tokens"].as_array();
            for token in tokens.ok_or_else(|| strange("lists no tokens"))? {
                let text = |field: &str| match &token[field] {
                    Value::String(text) => output::plain(text),
                    _ => "never".to_owned(),
                };
                let fields = ["name", "role", "createdAt", "createdBy", "expiresAt"];
                lines.push(fields.map(text).to_vec());
            }
            output::print(Table::default().render(&lines))
        }
        TokenVerb::Delete { name } => {
            let path = format!("/auth/tokens/{}", crate::api::segment(name));
            let answer = api.call(Method::DELETE, &path, None).await?.body;
            if answer["deleted"].is_null() {
                return Err(strange("does not say that the token is deleted"));
            }
            output::print(format_args!("token/{name} deleted\n"))
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct KubeconfigArgs {
    /// What the cluster and its context are called
    #[arg(long, default_value = "platctrl")]
    name: String,
}

/// Prints what kubectl needs: where the server is, its authority, and a token.
pub(crate) fn kubeconfig(args: &KubeconfigArgs, setting: &Setting) -> Result<()> {
    use base64::Engine as _;
    let remote = setting.remote()?.ok_or_else(|| {
        Failure::new(
            Code::Unreachable,
            "the server of this machine does not listen on the network",
        )
        .hint("start it with --listen 127.0.0.1:7654, or name one with --server https://HOST:PORT")
    })?;
    let authority = std::fs::read(&remote.ca).map_err(|error| {
        Failure::failed(format!("cannot read {}: {error}", remote.ca.display()))
            .hint("name the authority's certificate with --ca FILE")
    })?;
    let token = remote.token.as_ref().ok_or_else(|| {
        Failure::usage("there is no token to put into it")
            .hint("give one with --token-file or PLATCTRL_TOKEN; `platctrl token create` makes one")
    })?;
    let name = &args.name;
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {
            "server": remote.url,
            "certificate-authority-data": base64::engine::general_purpose::STANDARD.encode(authority),
        }}],
        "users": [{"name": name, "user": {"token": token.reveal()}}],
        "contexts": [{"name": name, "context": {
            "cluster": name, "user": name, "namespace": platctrl_kinds::DEFAULT_NAMESPACE,
        }}],
        "current-context": name,
    });
    let yaml = serde_saphyr::to_string(&config).map_err(Failure::failed)?;
    output::print(yaml)
}
