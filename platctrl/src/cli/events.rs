//! `events`, and the events that `describe` shows.

use jiff::Timestamp;
use serde_json::Value;

use super::{Setting, get::GetArgs};
use crate::api::{Api, Query};
use crate::error::Result;
use crate::output::{self, Format, Table};

/// Events in one page of a list.
const PAGE: &str = "2000";
/// Events that are printed.
const MOST: usize = 10_000;

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
    let mut newest = Newest::default();
    let mut next = String::new();
    loop {
        let mut page = query.clone().with("limit", PAGE);
        if !next.is_empty() {
            page = page.with("continue", &next);
        }
        let mut answer = api.get(&page.on(&path)).await?;
        if let Value::Array(items) = answer["items"].take() {
            newest.add(items);
        }
        let more = answer["metadata"]["continue"].as_str();
        next = more.unwrap_or_default().to_owned();
        if next.is_empty() {
            return Ok(newest.into_items());
        }
    }
}

/// The newest of many events.
#[derive(Default)]
struct Newest {
    items: Vec<(Timestamp, Value)>,
    forgotten: bool,
}

impl Newest {
    fn add(&mut self, items: Vec<Value>) {
        let timed = items.into_iter().map(|event| {
            let last = event["lastTimestamp"].as_str();
            let last = last.and_then(|last| last.parse().ok());
            (last.unwrap_or(Timestamp::UNIX_EPOCH), event)
        });
        self.items.extend(timed);
        if self.items.len() > 2 * MOST {
            self.leave(MOST);
        }
    }

    fn leave(&mut self, most: usize) {
        self.items.sort_by_key(|(last, _)| *last);
        let older = self.items.len().saturating_sub(most);
        self.items.drain(..older);
        self.forgotten |= older > 0;
    }

    /// Oldest first.
    fn into_items(mut self) -> Vec<Value> {
        self.leave(MOST);
        if self.forgotten {
            output::note(format_args!(
                "there are more events than these {MOST}, which are the newest: name an object, or choose a namespace"
            ));
        }
        self.items.into_iter().map(|(_, event)| event).collect()
    }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_very_many_events_the_newest_are_printed_and_the_oldest_of_them_first() {
        let mut newest = Newest::default();
        // Written with and without a fraction of a second, which text would put in another order.
        let event = |at: usize| {
            let at = Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_millis(at as i64 * 500);
            json!({"lastTimestamp": at})
        };
        let all = 3 * MOST;
        for page in (0..all).rev().collect::<Vec<_>>().chunks(999) {
            newest.add(page.iter().map(|at| event(*at)).collect());
        }
        assert!(newest.items.len() <= 2 * MOST + 999);
        let expected: Vec<_> = (all - MOST..all).map(event).collect();
        assert_eq!(newest.into_items(), expected);
    }
}
