//! `events`, and the events that `describe` shows.

use futures::StreamExt as _;
use jiff::Timestamp;
use serde_json::Value;

use super::{Setting, get::GetArgs};
use crate::api::{Api, OTHER_VERSION, Query, take};
use crate::error::{Code, Failure, Result};
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
    /// Only events with these fields, as type=Warning or reason=Crashed
    #[arg(long, value_name = "SELECTOR")]
    field_selector: Option<String>,
    /// Leave the names of the columns out
    #[arg(long)]
    no_headers: bool,
    /// Go on and print what happens
    #[arg(short, long)]
    watch: bool,
}

/// Which events are asked for.
#[derive(Debug, Default)]
struct Asked {
    path: String,
    query: Query,
}

impl Asked {
    fn new(namespace: Option<&str>, fields: &[String]) -> Result<Self> {
        let path = match namespace {
            Some(namespace) => format!(
                "/apis/platctrl.dev/v1/namespaces/{}/events",
                checked(namespace)?
            ),
            None => "/apis/platctrl.dev/v1/events".to_owned(),
        };
        let mut query = Query::default();
        if !fields.is_empty() {
            query = query.with("fieldSelector", &fields.join(","));
        }
        Ok(Self { path, query })
    }

    /// The events there are, oldest first: so they come. And the revision that this is of.
    async fn list(&self, api: &Api) -> Result<(Vec<Value>, String)> {
        let mut newest = Newest::default();
        let (mut next, mut revision) = (String::new(), String::new());
        loop {
            let mut page = self.query.clone().with("limit", PAGE);
            if !next.is_empty() {
                page = page.with("continue", &next);
            }
            let mut answer = api.get(&page.on(&self.path)).await?;
            let Value::Array(items) = take(&mut answer, "items") else {
                return Err(Failure::failed("the server's list has no items").hint(OTHER_VERSION));
            };
            newest.add(items);
            let text = |field: &str| answer["metadata"][field].as_str().unwrap_or_default();
            if revision.is_empty() {
                text("resourceVersion").clone_into(&mut revision);
            }
            next = text("continue").to_owned();
            if next.is_empty() {
                return Ok((newest.into_items(), revision));
            }
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
    check.map_err(|error| Failure::usage(error.to_string()))?;
    Ok(namespace)
}

fn about(kind: &str, name: &str) -> [String; 2] {
    [
        format!("involvedObject.kind={kind}"),
        format!("involvedObject.name={name}"),
    ]
}

/// What happened to one object, oldest first. Of a cluster's object: in no namespace.
pub(crate) async fn of(
    api: &Api,
    kind: &str,
    namespace: Option<&str>,
    name: &str,
) -> Result<Vec<Value>> {
    let asked = Asked::new(namespace, &about(kind, name))?;
    Ok(asked.list(api).await?.0)
}

pub(crate) async fn run(args: &EventsArgs, setting: &Setting) -> Result<()> {
    let mut namespace = (!args.all_namespaces).then_some(args.namespace.namespace.as_str());
    let mut fields: Vec<String> = args.field_selector.iter().cloned().collect();
    let api = match args.what.is_empty() {
        true => setting.api()?,
        false => {
            let (api, catalog) = setting.connect().await?;
            let target = catalog.target(&args.what)?;
            let cluster = target.kind.scope == platctrl_framework::model::Scope::Cluster;
            namespace = namespace.filter(|_| !cluster);
            fields.extend(about(&target.kind.kind, &target.name));
            api
        }
    };
    let asked = Asked::new(namespace, &fields)?;
    let (items, revision) = asked.list(&api).await?;
    let mut printer = Printer::new(&args.output, !args.no_headers, args.watch);
    printer.begin(&items)?;
    match args.watch {
        true => printer.follow(&api, &asked, &revision).await,
        false => Ok(()),
    }
}

/// `get events`.
pub(crate) async fn get(args: &GetArgs, api: &Api) -> Result<()> {
    let fields: Vec<String> = args.fields().map(str::to_owned).into_iter().collect();
    let mut asked = Asked::new(args.namespace(), &fields)?;
    if let Some(labels) = args.labels() {
        asked.query = asked.query.with("labelSelector", labels);
    }
    let (mut items, revision) = asked.list(api).await?;
    args.sort(&mut items);
    let mut printer = Printer::new(args.format(), args.has_headers(), args.is_watched());
    printer.begin(&items)?;
    match args.is_watched() {
        true => printer.follow(api, &asked, &revision).await,
        false => Ok(()),
    }
}

/// Prints events in the form that is asked for.
struct Printer<'a> {
    format: &'a Format,
    headers: bool,
    /// More may come.
    goes_on: bool,
    table: Table,
}

impl<'a> Printer<'a> {
    fn new(format: &'a Format, headers: bool, goes_on: bool) -> Self {
        Self {
            format,
            headers,
            goes_on,
            table: Table::default(),
        }
    }

    /// Those that there are.
    fn begin(&mut self, items: &[Value]) -> Result<()> {
        if self.goes_on && !self.format.is_table() {
            return items.iter().try_for_each(|item| self.one(item));
        }
        match self.format {
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
                if items.is_empty() && !self.goes_on {
                    output::note("nothing happened that is still remembered");
                    return Ok(());
                }
                let now = Timestamp::now();
                let headings = ["LAST", "TYPE", "REASON", "OBJECT", "MESSAGE"].map(str::to_owned);
                let headings = self.headers.then(|| headings.to_vec());
                let lines = items.iter().map(|event| line(event, now, true));
                let lines: Vec<_> = headings.into_iter().chain(lines).collect();
                output::print(self.table.render(&lines))
            }
        }
    }

    /// One that comes later.
    fn one(&mut self, event: &Value) -> Result<()> {
        match self.format {
            Format::Json => output::print(output::json_text(event)),
            Format::Yaml => output::print(format_args!("---\n{}", output::yaml_text(event)?)),
            Format::JsonPath(template) => {
                output::print(format_args!("{}\n", template.render(event)))
            }
            Format::Name => output::print(format_args!("{}\n", object(event))),
            Format::Table | Format::Wide => {
                let line = line(event, Timestamp::now(), true);
                output::print(self.table.render(&[line]))
            }
        }
    }

    async fn follow(&mut self, api: &Api, asked: &Asked, revision: &str) -> Result<()> {
        let query = asked.query.clone().with("watch", "1");
        let query = query.with("resourceVersion", revision);
        let mut events = api.watch(&query.on(&asked.path)).await?;
        while let Some(event) = events.next().await {
            let (what, event) = event?;
            if what != "BOOKMARK" {
                self.one(&event)?;
            }
        }
        Err(Failure::new(Code::Unreachable, "the server ended the watch").hint("ask again"))
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
