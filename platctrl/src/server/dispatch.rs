//! A request about objects: who may ask it, what it is about, and who answers it.

use std::sync::{Arc, Mutex};

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use http::{HeaderMap, Method, Uri};
use platctrl_framework::client::Client;
use platctrl_framework::model::Scope;
use serde_json::{Value, json};

use super::asker::Asker;
use super::request::{self, Query};
use super::routes::ok;
use super::selection::Selection;
use super::status::{Failure, Result, warn};
use super::table::Form;
use super::target::{Part, Target};
use super::write::{self, Writing};
use super::{App, delete, events, failsafe, list, reach, read, undelete, watch};

pub(super) async fn objects_at(
    State(app): State<Arc<App>>,
    Path((group, version, rest)): Path<(String, String, String)>,
    Extension(asker): Extension<Arc<Asker>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let query = Query::parse(uri.query())?;
    let served = app.served();
    let target = served.target(&group, &version, &rest)?;
    let namespace = target.namespace.as_deref();
    if method == Method::GET {
        asker.read(target.kind, namespace)?;
    } else if target.part == Part::Status {
        asker.report(target.kind, namespace)?;
    } else if target.name.is_some()
        || namespace.is_some()
        || target.kind.definition.scope == Scope::Cluster
    {
        // What is created without a namespace in the path has one in its metadata.
        asker.write(target.kind, namespace)?;
    }
    let form = Form::asked(&headers, &query, &target.face.definition)?;
    if served.is_events(target.kind) {
        return events_at(&app, &target, &method, &query, form).await;
    }
    let client = Client::new(
        app.config.store.clone(),
        app.config.environment.clone(),
        asker.name.as_str(),
    );
    let verb = match (&method, target.part) {
        (_, Part::Status) => "status",
        (_, Part::Scale) => "scale",
        (_, Part::Undelete) => "undelete",
        (&Method::DELETE, _) => "delete",
        (&Method::POST, _) => "create",
        (&Method::PATCH, _) => "patch",
        _ => "update",
    };
    let manager = match query.get("fieldManager") {
        Some(manager) => Some(manager.to_owned()),
        None if request::media_type(&headers) == write::SERVER_SIDE_APPLY => None,
        None => Some(asker.with.split('/').next().unwrap_or_default().to_owned()),
    };
    let api_version = target.kind.definition.api_version();
    let writing = |client, target| -> Result<Writing<'_>> {
        Ok(Writing {
            client,
            target,
            asker: &asker,
            audit: &app.audit,
            validators: &app.config.validators,
            verb,
            dry_run: query.dry_run()?,
            admission: app.config.admission,
            manager: manager.clone(),
            api_version: api_version.clone(),
            force: query.flag("force")?,
            told: Mutex::default(),
        })
    };
    let whole = target.part == Part::Whole;
    match (target.name.is_some(), target.part, method) {
        (false, _, Method::GET) => list_at(&app, &target, &query, form).await,
        (false, _, Method::POST) => writing(client, target)?.create(&headers, body).await,
        (false, _, method) => Err(Failure::method(&method, "GET, POST")),
        (true, Part::Whole | Part::Status, Method::GET) => {
            if whole && query.flag("watch")? {
                return list_at(&app, &target, &query, form).await;
            }
            let object = read::get(&client, &target).await?;
            let object = target.shown().show(object).to_api();
            let mut response = ok(&shaped(&app, &form, object));
            failsafe::banner(&app, &mut response).await;
            Ok(response)
        }
        (true, Part::Scale, Method::GET) => writing(client, target)?.scale().await,
        (true, Part::Log, Method::GET) => {
            let pod = read::existing(&client, &target).await?;
            reach::log(&app, &asker, &pod, &query).await
        }
        (true, Part::Log, method) => Err(Failure::method(&method, "GET")),
        (true, Part::Undelete, Method::POST) => {
            undelete::undelete(writing(client, target)?, &headers, body).await
        }
        (true, Part::Undelete, method) => Err(Failure::method(&method, "POST")),
        (true, _, Method::PUT) => writing(client, target)?.replace(&headers, body).await,
        (true, _, Method::PATCH) => writing(client, target)?.patch(&headers, body).await,
        (true, Part::Whole, Method::DELETE) => {
            let writing = writing(client, target)?;
            let deleted = delete::delete(writing, &headers, &query, body).await?;
            let mut response = deleted.response;
            let kept = deleted.orphans_of.map_or(0, |uid| app.hub.owned_by(&uid));
            if kept > 0 {
                let text = format!(
                    "{kept} objects that it owns are kept and have no owner now; delete with --cascade to end them too"
                );
                warn(&mut response, &text);
            }
            Ok(response)
        }
        (true, Part::Whole, method) => Err(Failure::method(&method, "GET, PUT, PATCH, DELETE")),
        (true, _, method) => Err(Failure::method(&method, "GET, PUT, PATCH")),
    }
}

/// One object in the form that was asked for.
fn shaped(app: &App, form: &Form, object: Value) -> Value {
    match form {
        Form::Objects => object,
        Form::Table(table) => {
            let revision = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
            table.of(Some(&object), &revision, app.config.environment.now(), true)
        }
    }
}

async fn list_at(
    app: &Arc<App>,
    target: &Target<'_>,
    query: &Query,
    form: Form,
) -> Result<Response> {
    let mut selection = Selection::parse(target.kind, target.namespace.clone(), query)?;
    if let Some(name) = &target.name {
        selection = selection.named(name);
    }
    if query.flag("watch")? {
        return watch::objects(app, target, selection, query, form).await;
    }
    let mut response = list::answer(app, target, selection, query, form).await?;
    failsafe::banner(app, &mut response).await;
    Ok(response)
}

async fn events_at(
    app: &Arc<App>,
    target: &Target<'_>,
    method: &Method,
    query: &Query,
    form: Form,
) -> Result<Response> {
    if method != Method::GET {
        return Err(Failure::method(method, "GET"));
    }
    let store = app.config.store.as_ref();
    let namespace = target.namespace.clone();
    if let Some(name) = &target.name {
        let event = events::get(store, namespace.as_deref(), name).await?;
        return Ok(ok(&shaped(app, &form, event)));
    }
    let selection = Selection::parse(target.kind, namespace, query)?;
    if query.flag("watch")? {
        return watch::events(app, selection, query, form).await;
    }
    list::answer(app, target, selection, query, form).await
}
