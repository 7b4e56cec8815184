//! `get` and `describe`.

use futures::StreamExt as _;
use jiff::Timestamp;
use platctrl_framework::model::{KindDefinition, Scope};
use serde_json::{Value, json};

use super::{Setting, events, find};
use crate::api::{Api, Catalog, Collection, Query};
use crate::error::{Code, Failure, Result};
use crate::output::jsonpath::JsonPath;
use crate::output::{self, Cells, Format, Table};

#[derive(Debug, clap::Args)]
pub(crate) struct GetArgs {
    /// KIND, KIND NAME or KIND/NAME; the beginning of a name will do for people
    #[arg(required = true, num_args = 1..=2, value_name = "KIND[/NAME]")]
    what: Vec<String>,
    #[command(flatten)]
    namespace: super::NamespaceFlag,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// How to print it [default: table]
    #[arg(short, long, value_name = output::FORMATS, default_value = "table", hide_default_value = true)]
    output: Format,
    /// Sort by what a path leads to, as .metadata.creationTimestamp
    #[arg(long, value_name = "PATH", value_parser = JsonPath::parse, conflicts_with = "watch")]
    sort_by: Option<JsonPath>,
    /// Leave the names of the columns out
    #[arg(long)]
    no_headers: bool,
    /// Only objects with these labels, as app=web,tier!=db
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// Only those that lost their owner and wait for another of its name
    #[arg(long, conflicts_with = "selector")]
    orphans: bool,
    /// Only objects with these fields, as spec.nodeName=web1
    #[arg(long, value_name = "SELECTOR")]
    field_selector: Option<String>,
    /// Go on and print what changes
    #[arg(short, long)]
    watch: bool,
}

impl GetArgs {
    /// The labels that are asked for.
    pub(super) fn labels(&self) -> Option<&str> {
        let orphans = self.orphans.then_some(platctrl_controllers::ORPHAN_OF);
        self.selector.as_deref().or(orphans)
    }

    /// The one namespace that is asked for, or all.
    pub(super) fn namespace(&self) -> Option<&str> {
        (!self.all_namespaces).then_some(self.namespace.namespace.as_str())
    }

    /// Puts objects into the order that is asked for.
    pub(super) fn sort(&self, items: &mut [Value]) {
        if let Some(path) = &self.sort_by {
            output::jsonpath::sort(items, path);
        }
    }

    pub(super) fn format(&self) -> &Format {
        &self.output
    }

    pub(super) fn fields(&self) -> Option<&str> {
        self.field_selector.as_deref()
    }

    pub(super) fn is_watched(&self) -> bool {
        self.watch
    }

    pub(super) fn has_headers(&self) -> bool {
        !self.no_headers
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct DescribeArgs {
    /// KIND/NAME or KIND NAME; the beginning of a name will do
    #[arg(required = true, num_args = 1..=2, value_name = "KIND/NAME")]
    what: Vec<String>,
    #[command(flatten)]
    namespace: super::NamespaceFlag,
}

pub(crate) async fn get(args: &GetArgs, setting: &Setting) -> Result<()> {
    let (api, catalog) = setting.connect().await?;
    if let [word] = args.what.as_slice() {
        match word.as_str() {
            "events" | "event" | "ev" => return events::get(args, &api).await,
            "kinds" | "kind" => return kinds(&catalog, &args.output),
            _ => {}
        }
    }
    let is_collection = matches!(args.what.as_slice(), [word] if !word.contains('/'));
    if is_collection {
        let kind = catalog.named(&args.what[0])?;
        return Listing {
            args,
            kind,
            name: None,
        }
        .run(&api)
        .await;
    }
    let target = catalog.target(&args.what)?;
    if args.all_namespaces || args.labels().is_some() || args.field_selector.is_some() {
        return Err(Failure::usage("a name and a selection exclude each other")
            .hint("leave the name out, or -A, --selector, --orphans and --field-selector"));
    }
    let object = match &args.output {
        Format::Table | Format::Wide => {
            find::by_beginning(&api, &target, &args.namespace.namespace).await?
        }
        // A script gets what it named and nothing else.
        _ => find::exact(&api, &target, &args.namespace.namespace).await?,
    };
    if args.watch {
        let name = object["metadata"]["name"].as_str().map(str::to_owned);
        return Listing {
            args,
            kind: target.kind,
            name,
        }
        .run(&api)
        .await;
    }
    match &args.output {
        Format::Json => output::print(output::json_text(&object)),
        Format::Yaml => output::print(output::yaml_text(&object)?),
        Format::JsonPath(template) => output::print(template.render(&object)),
        _ => print_items(&target.kind, args, &[object], &Value::Null),
    }
}

/// `KIND/NAME` as `-o name` prints it.
fn title(kind: &KindDefinition, object: &Value) -> String {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    output::plain(&format!("{}/{name}\n", kind.singular))
}

fn print_items(
    kind: &KindDefinition,
    args: &GetArgs,
    items: &[Value],
    revision: &Value,
) -> Result<()> {
    match &args.output {
        Format::Json => output::print(output::json_text(&output::list(items, revision))),
        Format::Yaml => output::print(output::yaml_text(&output::list(items, revision))?),
        Format::JsonPath(template) => {
            output::print(template.render(&output::list(items, revision)))
        }
        Format::Name => output::print(
            items
                .iter()
                .map(|item| title(kind, item))
                .collect::<String>(),
        ),
        Format::Table | Format::Wide => {
            if items.is_empty() && !args.watch {
                let place = match (kind.scope, args.all_namespaces) {
                    (Scope::Cluster, _) | (_, true) => String::new(),
                    _ => format!(
                        " in namespace `{}`",
                        output::plain(&args.namespace.namespace)
                    ),
                };
                output::note(format_args!("there are no {}{place}", kind.plural));
                return Ok(());
            }
            let now = Timestamp::now();
            let lines = lines(kind, args, items, now);
            output::print(Table::default().render(&lines))
        }
    }
}

/// The table of some objects, with its headings if they are wanted.
fn lines(kind: &KindDefinition, args: &GetArgs, items: &[Value], now: Timestamp) -> Vec<Cells> {
    let (all, wide) = (args.all_namespaces, args.output == Format::Wide);
    let headings = (!args.no_headers).then(|| output::headings(kind, all, wide));
    let rows = items
        .iter()
        .map(|item| output::row(kind, item, all, wide, now));
    headings.into_iter().chain(rows).collect()
}

fn kinds(catalog: &Catalog, format: &Format) -> Result<()> {
    match format {
        Format::Json | Format::Yaml | Format::JsonPath(_) => {
            let items: Vec<Value> = catalog
                .definitions()
                .map(|definition| json!(definition))
                .collect();
            let list = json!({"kind": "List", "items": items});
            match format {
                Format::Json => output::print(output::json_text(&list)),
                Format::JsonPath(template) => output::print(template.render(&list)),
                _ => output::print(output::yaml_text(&list)?),
            }
        }
        Format::Name => output::print(
            catalog
                .definitions()
                .map(|it| format!("{}\n", it.plural))
                .collect::<String>(),
        ),
        Format::Table | Format::Wide => {
            let heading = ["NAME", "SHORT", "KIND", "API VERSION", "SCOPE"]
                .map(str::to_owned)
                .to_vec();
            let line = |it: &KindDefinition| {
                let short = it.short_names.join(",");
                vec![
                    it.plural.clone(),
                    short,
                    it.kind.clone(),
                    it.api_version(),
                    format!("{:?}", it.scope),
                ]
            };
            let lines: Vec<_> = std::iter::once(heading)
                .chain(catalog.definitions().map(line))
                .collect();
            output::print(Table::default().render(&lines))
        }
    }
}

/// A list, and what happens to it.
struct Listing<'a> {
    args: &'a GetArgs,
    kind: KindDefinition,
    name: Option<String>,
}

impl Listing<'_> {
    fn query(&self) -> Query {
        let mut query = Query::default();
        if let Some(selector) = self.args.labels() {
            query = query.with("labelSelector", selector);
        }
        let name = self
            .name
            .as_ref()
            .map(|name| format!("metadata.name={name}"));
        let fields = [self.args.field_selector.clone(), name];
        let fields: Vec<_> = fields.into_iter().flatten().collect();
        if !fields.is_empty() {
            query = query.with("fieldSelector", &fields.join(","));
        }
        query
    }

    async fn run(&self, api: &Api) -> Result<()> {
        let args = self.args;
        let collection = Collection::new(&self.kind, args.namespace());
        let (mut items, revision) = find::list(api, &collection, &self.query()).await?;
        args.sort(&mut items);
        if !args.watch {
            return print_items(&self.kind, args, &items, &revision);
        }
        let mut lines = Lines {
            args,
            kind: &self.kind,
            table: Table::default(),
        };
        lines.begin(&items)?;
        let revision = revision.as_str().unwrap_or_default();
        let query = self
            .query()
            .with("watch", "1")
            .with("resourceVersion", revision);
        let mut events = api.watch(&query.on(collection.path())).await?;
        while let Some(event) = events.next().await {
            let (what, object) = event?;
            if what != "BOOKMARK" {
                lines.change(&what, &object)?;
            }
        }
        Err(Failure::new(Code::Unreachable, "the server ended the watch").hint("ask again"))
    }
}

/// Prints objects one by one.
struct Lines<'a> {
    args: &'a GetArgs,
    kind: &'a KindDefinition,
    table: Table,
}

impl Lines<'_> {
    fn begin(&mut self, items: &[Value]) -> Result<()> {
        if self.args.output.is_table() {
            let lines = lines(self.kind, self.args, items, Timestamp::now());
            return output::print(self.table.render(&lines));
        }
        items.iter().try_for_each(|item| self.change("ADDED", item))
    }

    fn change(&mut self, what: &str, object: &Value) -> Result<()> {
        match &self.args.output {
            Format::Json => output::print(output::json_text(object)),
            Format::JsonPath(template) => {
                output::print(format_args!("{}\n", template.render(object)))
            }
            Format::Yaml => output::print(format_args!("---\n{}", output::yaml_text(object)?)),
            Format::Name => output::print(title(self.kind, object)),
            Format::Table | Format::Wide => {
                let wide = self.args.output == Format::Wide;
                let now = Timestamp::now();
                let mut line = output::row(self.kind, object, self.args.all_namespaces, wide, now);
                if what == "DELETED" {
                    line.push("gone".to_owned());
                }
                output::print(self.table.render(&[line]))
            }
        }
    }
}

pub(crate) async fn describe(args: &DescribeArgs, setting: &Setting) -> Result<()> {
    let (api, catalog) = setting.connect().await?;
    let target = catalog.target(&args.what)?;
    let object = find::by_beginning(&api, &target, &args.namespace.namespace).await?;
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let namespace = object["metadata"]["namespace"].as_str();
    let happened = events::of(&api, &target.kind.kind, namespace, name).await?;
    let owned = match catalog.named("pods") {
        Ok(pods) if target.kind.kind != "Pod" => {
            let collection = Collection::new(&pods, namespace);
            let (items, _) = find::list(&api, &collection, &Query::default()).await?;
            let uid = &object["metadata"]["uid"];
            let belongs = |item: &Value| {
                let owners = item["metadata"]["ownerReferences"].as_array();
                let owned =
                    owners.is_some_and(|owners| owners.iter().any(|owner| owner["uid"] == *uid));
                owned || (target.kind.kind == "Node" && item["spec"]["nodeName"] == *name)
            };
            Some((pods, items.into_iter().filter(belongs).collect::<Vec<_>>()))
        }
        _ => None,
    };
    let node = node_of(&api, &catalog, &target.kind.kind, &object).await;
    let described = output::describe(
        &target.kind,
        &object,
        node.as_ref(),
        owned.as_ref(),
        &happened,
        Timestamp::now(),
    );
    let path = Collection::new(&target.kind, namespace).object(name);
    // A server without controllers beside it does not know.
    let why = api.get(&path.replacen("/apis/", "/why/", 1)).await;
    output::print(described + &output::why(&why.unwrap_or_default()))
}

/// The node of a pod, if it is there and may be read.
async fn node_of(api: &Api, catalog: &Catalog, kind: &str, object: &Value) -> Option<Value> {
    let name = object["spec"]["nodeName"].as_str()?;
    let kind = catalog.named("nodes").ok().filter(|_| kind == "Pod")?;
    api.get(&Collection::new(&kind, None).object(name))
        .await
        .ok()
}
