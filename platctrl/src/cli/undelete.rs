//! `undelete`: takes a delete back, while it is not carried out.

use http::Method;
use platctrl_framework::model::Scope;
use serde_json::json;

use super::{NamespaceFlag, Setting, find};
use crate::api::{Collection, Query, media};
use crate::error::{Code, Failure, Result};
use crate::output;

#[derive(Debug, clap::Args)]
pub(crate) struct UndeleteArgs {
    /// KIND/NAME or KIND NAME
    #[arg(required = true, num_args = 1..=2, value_name = "KIND/NAME")]
    what: Vec<String>,
    #[command(flatten)]
    namespace: NamespaceFlag,
    /// Say what would be kept and what it is too late for, and change nothing
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(args: &UndeleteArgs, setting: &Setting) -> Result<()> {
    let (api, catalog) = setting.connect().await?;
    let target = catalog.target(&args.what)?;
    let namespace = &args.namespace.namespace;
    let object = find::exact(&api, &target, namespace).await.map_err(|failure| {
        match failure.code {
            Code::NotFound => failure.hint(
                "what is gone is not brought back; pods that it left (`platctrl get pods --orphans`) are taken over when its manifest is applied again",
            ),
            _ => failure,
        }
    })?;
    let body = json!({"preconditions": {"uid": object["metadata"]["uid"]}});
    let namespace = (target.kind.scope != Scope::Cluster).then_some(namespace.as_str());
    let path = Collection::new(&target.kind, namespace).part(&target.name, "undelete");
    let mut query = Query::default();
    if args.dry_run {
        query = query.with("dryRun", "All");
    }
    let answer = api
        .call(Method::POST, &query.on(&path), Some((media::JSON, &body)))
        .await
        .map_err(|failure| Failure {
            message: format!("{}: {}", target.title(), failure.message),
            ..failure
        })?;
    let causes = answer.body["details"]["causes"].as_array();
    for cause in causes.into_iter().flatten() {
        let text = |field: &str| output::plain(cause[field].as_str().unwrap_or_default());
        output::print(format_args!("{}: {}\n", text("field"), text("message")))?;
    }
    let dry = if args.dry_run { " (dry run)" } else { "" };
    output::print(format_args!("{} undeleted{dry}\n", target.title()))
}
