//! `doctor`: looks at this machine, the server and a store, and says what to do.
//!
//! It changes nothing. What is looked at is gathered first ([`machine`], [`services`]); each
//! finding then says what it is about, what was found, and the way out where there is one to go.

mod machine;
mod services;

use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::Setting;
use crate::error::{Failure, Result};
use crate::output::{self, Format, Table};
use crate::store::{StoreAccess, StoreUrl};

/// The exit code when something is bad.
const BAD: u8 = 1;

#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 nothing is bad, 1 something is.")]
pub(crate) struct DoctorArgs {
    /// Also look at this store: embedded:DIR, etcd://HOST:PORT,…/ROOT or consul://HOST:PORT/ROOT
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    #[command(flatten)]
    access: StoreAccess,
    /// table, json or yaml
    #[arg(
        short,
        long,
        value_name = "FORM",
        default_value = "table",
        hide_default_value = true
    )]
    output: Format,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Good,
    /// It works, and could be better.
    Warning,
    /// Something will not work.
    Bad,
}

/// What was found out about one thing.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    about: &'static str,
    verdict: Verdict,
    found: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Finding {
    fn new(about: &'static str, verdict: Verdict, found: impl Into<String>) -> Self {
        Self {
            about,
            verdict,
            found: found.into(),
            hint: None,
        }
    }

    fn good(about: &'static str, found: impl Into<String>) -> Self {
        Self::new(about, Verdict::Good, found)
    }

    fn warning(about: &'static str, found: impl Into<String>) -> Self {
        Self::new(about, Verdict::Warning, found)
    }

    fn bad(about: &'static str, found: impl Into<String>) -> Self {
        Self::new(about, Verdict::Bad, found)
    }

    /// What a failed attempt says.
    fn of_failure(about: &'static str, failure: Failure) -> Self {
        Self {
            hint: Some(failure.way_out().to_owned()),
            ..Self::bad(about, failure.message)
        }
    }

    fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }
}

pub(crate) async fn run(args: &DoctorArgs, setting: &Setting) -> Result<()> {
    let data_dir = setting.data_dir()?;
    let url = args.store.as_deref().map(StoreUrl::parse).transpose()?;
    let findings = find(&data_dir, setting, url.as_ref(), &args.access).await;
    print(&findings, &args.output)?;
    match findings.iter().map(|finding| finding.verdict).max() {
        Some(Verdict::Bad) => Err(Failure::silent(BAD)),
        _ => Ok(()),
    }
}

async fn find(
    data_dir: &Path,
    setting: &Setting,
    store: Option<&StoreUrl>,
    access: &StoreAccess,
) -> Vec<Finding> {
    let mut findings = machine::look(data_dir).judge();
    findings.extend(services::server(setting).await);
    if let Some(url) = store {
        findings.extend(services::store(url, access).await);
    }
    findings
}

/// All findings, for a bundle: also of what cannot be looked at.
pub(crate) async fn look(setting: &Setting, store: Option<&str>, access: &StoreAccess) -> Value {
    let looked = async {
        let data_dir = setting.data_dir()?;
        let url = store.map(StoreUrl::parse).transpose()?;
        Ok::<_, Failure>(find(&data_dir, setting, url.as_ref(), access).await)
    };
    let findings = match looked.await {
        Ok(findings) => findings,
        Err(failure) => vec![Finding::of_failure("doctor", failure)],
    };
    json!({ "findings": findings })
}

fn print(findings: &[Finding], format: &Format) -> Result<()> {
    let all = json!({ "findings": findings });
    match format {
        Format::Json => return output::print(output::json_text(&all)),
        Format::Yaml => return output::print(output::yaml_text(&all)?),
        Format::JsonPath(template) => return output::print(template.render(&all)),
        Format::Table | Format::Wide | Format::Name => {}
    }
    let mut lines = Vec::new();
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Good => "ok",
            Verdict::Warning => "warning",
            Verdict::Bad => "BAD",
        };
        let cell = |text: &str| output::plain(text).replace('\n', " ");
        lines.push(vec![
            verdict.to_owned(),
            finding.about.to_owned(),
            cell(&finding.found),
        ]);
        if let Some(hint) = &finding.hint {
            lines.push(vec![
                String::new(),
                String::new(),
                format!("-> {}", cell(hint)),
            ]);
        }
    }
    output::print(Table::default().render(&lines))
}
