//! `version`: what this program is, and what the server is that it would talk to.

use serde_json::{Value, json};

use super::Setting;
use crate::error::{Code, Failure, Result};
use crate::output::{self, Format};

/// The version of this program.
pub(crate) const OWN: &str = env!("CARGO_PKG_VERSION");

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without a server only this program's version is printed; with one that was named and does not answer, the exit code says so."
)]
pub(crate) struct VersionArgs {
    /// Only of this program: ask no server
    #[arg(long)]
    client: bool,
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

/// What a program is built from, for whoever compares two of them.
pub(crate) fn own() -> Value {
    json!({
        "version": OWN,
        "target": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        "build": if cfg!(debug_assertions) { "debug" } else { "release" },
        "api": "platctrl.dev/v1",
        "storeFormat": platctrl_framework::model::identity::FORMAT_VERSION,
    })
}

pub(crate) async fn run(args: &VersionArgs, setting: &Setting) -> Result<()> {
    let mut all = json!({ "client": own() });
    let mut outcome = Ok(());
    if !args.client {
        match server(setting).await {
            Ok(server) => all["server"] = server,
            // Nobody has to run one on this machine.
            Err(failure)
                if failure.code == Code::Unreachable && setting.given_server().is_none() => {}
            Err(failure) => outcome = Err(failure),
        }
    }
    match &args.output {
        Format::Json => output::print(output::json_text(&all))?,
        Format::Yaml => output::print(output::yaml_text(&all)?)?,
        Format::JsonPath(template) => output::print(template.render(&all))?,
        Format::Table | Format::Wide | Format::Name => output::print(lines(&all))?,
    }
    if let Some(server) = all["server"]["version"].as_str().filter(|it| *it != OWN) {
        output::note(format_args!(
            "warning: the server is of version {server}, this program of {OWN}\nhint: use programs of one version, but for the time of an upgrade"
        ));
    }
    outcome
}

async fn server(setting: &Setting) -> Result<Value> {
    let api = setting.api()?;
    let answer = api.get("/version").await?;
    if !answer.is_object() {
        return Err(
            Failure::failed(format!("{} does not say which version it is", api.place()))
                .hint("is it a platctrl server?"),
        );
    }
    Ok(json!({
        "version": of(&answer),
        "at": output::plain(&api.place().to_string()),
    }))
}

fn lines(all: &Value) -> String {
    let text = |pointer: &str| all.pointer(pointer).and_then(Value::as_str);
    let mut lines = format!(
        "platctrl {} ({}, {})\n",
        OWN,
        text("/client/target").unwrap_or_default(),
        text("/client/build").unwrap_or_default(),
    );
    if let (Some(version), Some(place)) = (text("/server/version"), text("/server/at")) {
        lines.push_str(&format!("server {version} at {place}\n"));
    }
    lines
}

/// What a server says that it is.
pub(crate) fn of(answer: &Value) -> String {
    let version = answer["platctrl"]
        .as_str()
        .or_else(|| answer["gitVersion"].as_str());
    output::plain(
        version
            .unwrap_or("of an unknown version")
            .trim_start_matches('v'),
    )
}
