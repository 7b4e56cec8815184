//! `audit`: who did what over the API, from where, and what changed.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::Setting;
use crate::api::{OTHER_VERSION, Query, take};
use crate::error::{Failure, Result};
use crate::output::{self, Format, Table};

#[derive(Debug, clap::Args)]
pub(crate) struct AuditArgs {
    /// Only by this person or program
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Only to this: KINDS, KINDS/NAMESPACE or KINDS/NAMESPACE/NAME, as pods/default
    #[arg(long, value_name = "WHAT")]
    to: Option<String>,
    /// Only this: create, update, patch, scale, status, delete, …
    #[arg(long)]
    verb: Option<String>,
    /// Only what was done in this time, as 2h
    #[arg(long, value_parser = super::duration)]
    since: Option<Duration>,
    /// How many records, the newest
    #[arg(long, default_value_t = 100)]
    limit: u32,
    /// How to print it [default: table]
    #[arg(short, long, value_name = output::FORMATS, default_value = "table", hide_default_value = true)]
    output: Format,
}

pub(crate) async fn run(args: &AuditArgs, setting: &Setting) -> Result<()> {
    let mut query = Query::default().with("limit", &args.limit.to_string());
    for (name, value) in [("by", &args.by), ("to", &args.to), ("verb", &args.verb)] {
        if let Some(value) = value {
            query = query.with(name, value);
        }
    }
    let now = Timestamp::now();
    let since = args.since.and_then(|since| now.checked_sub(since).ok());
    if let Some(since) = since {
        query = query.with("since", &since.to_string());
    }
    let mut answer = setting.api()?.get(&query.on("/audit")).await?;
    let Value::Array(items) = take(&mut answer, "items") else {
        return Err(Failure::failed("the server's list has no items").hint(OTHER_VERSION));
    };
    match &args.output {
        Format::Json => output::print(output::json_text(&output::list(&items, &Value::Null))),
        Format::Yaml => output::print(output::yaml_text(&output::list(&items, &Value::Null))?),
        Format::JsonPath(template) => {
            output::print(template.render(&output::list(&items, &Value::Null)))
        }
        Format::Name => output::print(
            items
                .iter()
                .map(|it| format!("{}\n", output::plain(it["to"].as_str().unwrap_or_default())))
                .collect::<String>(),
        ),
        Format::Table | Format::Wide => {
            if items.is_empty() {
                output::note("nothing of this is written down");
                return Ok(());
            }
            let mut lines = vec![
                ["AT", "BY", "FROM", "DID", "TO", "WHAT CHANGED"]
                    .map(str::to_owned)
                    .to_vec(),
            ];
            lines.extend(items.iter().map(line));
            output::print(Table::default().render(&lines))
        }
    }
}

fn line(deed: &Value) -> Vec<String> {
    let text = |field: &str| output::plain(deed[field].as_str().unwrap_or_default());
    let changes = deed["changes"].as_array().into_iter().flatten();
    let changes: Vec<_> = changes.filter_map(Value::as_str).collect();
    let at = text("at");
    // To the second: what is told below it is the order.
    let at = at
        .split('.')
        .next()
        .unwrap_or_default()
        .trim_end_matches('Z');
    vec![
        at.replace('T', " "),
        text("by"),
        text("from"),
        text("verb"),
        text("to"),
        output::plain(&changes.join("; ")).replace('\n', " "),
    ]
}
