//! `events`, and the events that `describe` shows.

use jiff::Timestamp;
use serde_json::Value;

use super::{Setting, get::GetArgs};
use crate::api::{Api, Query};
use crate::error::Result;
use crate::output::{self, Format, Table};

#[derive(Debug, clap::Args)]
pub(crate) struct EventsArgs {
    /// Only of this object: KIND/NAME
    #[arg(num_args = 0..=2, value_name = "KIND/NAME")]
    what: Vec<String>,
    #[command(flatten)]
    namespace: super::NamespaceFlag,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// How to print it [default: table]
    #[arg(short, long, value_name = output::FORMATS, default_value = "table", hide_default_value = true)]
    output: Format,
}

async fn read(api: &Api, namespace: Option<&str>, fields: &[(&str, &str)]) -> Result<Vec<Value>> {
    let path = match namespace {
        Some(namespace) => format!(
            "/apis/platctrl.dev/v1/namespaces/{}/events",
            checked(namespace)?
        ),
        None => "/apis/platctrl.dev/v1/events".to_owned(),
    };
    let mut query = Query::default();
    if !fields.is_empty() {
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        query = query.with("fieldSelector", &fields.join(","));
    }
    let mut answer = api.get(&query.on(&path)).await?;
    let Value::Array(items) = answer["items"].take() else {
        return Ok(Vec::new());
    };
    // Oldest first: so they come.
    Ok(items)
}

fn checked(namespace: &str) -> Result<&str> {
    let check = platctrl_framework::model::check_name("namespace", namespace);
    check.map_err(|error| crate::error::Failure::usage(error.to_string()))?;
    Ok(namespace)
}

/// What happened to one object, oldest first. Of a cluster's object: in no namespace.
pub(crate) async fn of(
    api: &Api,
    kind: &str,
    namespace: Option<&str>,
    name: &str,
) -> Result<Vec<Value>> {
    let fields = [("involvedObject.kind", kind), ("involvedObject.name", name)];
    read(api, namespace, &fields).await
}

pub(crate) async fn run(args: &EventsArgs, setting: &Setting) -> Result<()> {
    let namespace = (!args.all_namespaces).then_some(args.namespace.namespace.as_str());
    if args.what.is_empty() {
        let items = read(&setting.api()?, namespace, &[]).await?;
        return print(&items, &args.output);
    }
    let (api, catalog) = setting.connect().await?;
    let target = catalog.target(&args.what)?;
    let cluster = target.kind.scope == platctrl_framework::model::Scope::Cluster;
    let namespace = namespace.filter(|_| !cluster);
    print(
        &of(&api, &target.kind.kind, namespace, &target.name).await?,
        &args.output,
    )
}

/// `get events`.
pub(crate) async fn get(args: &GetArgs, api: &Api) -> Result<()> {
    let mut items = read(api, args.namespace(), &[]).await?;
    args.sort(&mut items);
    print(&items, args.format())
}

fn print(items: &[Value], format: &Format) -> Result<()> {
    match format {
        Format::Json => output::print(output::json_text(&output::list(items, &Value::Null))),
        Format::Yaml => output::print(output::yaml_text(&output::list(items, &Value::Null))?),
        Format::JsonPath(template) => {
            output::print(template.render(&output::list(items, &Value::Null)))
        }
        Format::Name => output::print(
            items
                .iter()
                .map(|it| format!("{}\n", object(it)))
                .collect::<String>(),
        ),
        Format::Table | Format::Wide => {
            if items.is_empty() {
                output::note("nothing happened that is still remembered");
                return Ok(());
            }
            let now = Timestamp::now();
            let mut lines = vec![
                ["LAST", "TYPE", "REASON", "OBJECT", "MESSAGE"]
                    .map(str::to_owned)
                    .to_vec(),
            ];
            lines.extend(items.iter().map(|event| line(event, now, true)));
            output::print(Table::default().render(&lines))
        }
    }
}

fn object(event: &Value) -> String {
    let text = |field: &str| event["involvedObject"][field].as_str().unwrap_or_default();
    output::plain(&format!("{}/{}", text("kind").to_lowercase(), text("name")))
}

/// An event as a line of a table.
pub(crate) fn line(event: &Value, now: Timestamp, with_object: bool) -> Vec<String> {
    let text =
        |field: &str| output::plain(event[field].as_str().unwrap_or_default()).replace('\n', " ");
    let mut message = text("message");
    if let Some(count) = event["count"].as_u64().filter(|count| *count > 1) {
        let since = output::age(&event["firstTimestamp"], now);
        message = format!("{message} (×{count} in {since})");
    }
    let last = output::age(&event["lastTimestamp"], now);
    let mut line = vec![last, text("type"), text("reason")];
    let source = event["source"]["component"].as_str().unwrap_or_default();
    line.push(if with_object {
        object(event)
    } else {
        output::plain(source)
    });
    line.push(message);
    line
}
