//! What is at which path, but for objects themselves, which [`dispatch`](super::dispatch) answers.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{any, get, post};
use axum::{Extension, Router, middleware};
use http::{HeaderMap, Method, StatusCode};
use platctrl_framework::model::identity;
use serde_json::Value;

use super::asker::Asker;
use super::dispatch::objects_at;
use super::status::{Failure, Result, json_response};
use super::{
    App, Maintained, audit, auth, discovery, failsafe, insight, linger, maintenance, openapi,
    reach, streams,
};

pub(super) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/version", get(version))
        .route(
            "/api",
            get(|| async { json_response(StatusCode::OK, &discovery::core()) }),
        )
        .route("/apis", get(groups))
        .route("/apis/", get(groups))
        .route("/apis/{group}", get(group))
        .route("/apis/{group}/{version}", get(resources))
        .route("/apis/{group}/{version}/{*rest}", any(objects_at))
        .route(
            "/apis/{group}/{version}/namespaces/{namespace}/pods/{name}/exec",
            any(reach::exec),
        )
        .route("/top/nodes", get(reach::top_nodes))
        .route("/top/pods", get(reach::top_pods))
        .route("/stream/nodes/{name}", get(streams::accept))
        .route("/failsafe", get(failsafe_state))
        .route("/failsafe/{what}", any(failsafe_order))
        .route("/openapi/v2", get(openapi_second))
        .route("/openapi/v3", get(openapi_index))
        .route("/openapi/v3/apis/{group}/{version}", get(openapi_third))
        .route("/kinds", get(kinds))
        .route("/artifacts/sha256/{hex}", any(artifact))
        .route("/store/backup", get(backup))
        .route("/store/compact", post(compact))
        .method_not_allowed_fallback(
            |method: Method| async move { Failure::method(&method, "GET") },
        )
        .fallback(|| async {
            Failure::not_found("there is nothing at this path; /apis and /kinds list what there is")
        })
        .route("/metrics", get(insight::metrics))
        .route("/statusz", get(insight::statusz))
        .route("/why/{group}/{version}/{*rest}", get(insight::why))
        .route("/audit", get(audit::list))
        .route("/auth/self", get(auth::whoami))
        .route("/auth/tokens", get(auth::list).post(auth::create))
        .route("/auth/tokens/{name}", axum::routing::delete(auth::revoke))
        .layer(middleware::from_fn_with_state(app.clone(), auth::admit))
        .layer(middleware::map_request(linger::to_the_end))
        .with_state(app)
}

pub(super) fn ok(value: &Value) -> Response {
    json_response(StatusCode::OK, value)
}

/// The store answers and is one.
async fn ready(State(app): State<Arc<App>>) -> Result<&'static str> {
    identity::open(app.config.store.as_ref()).await?;
    Ok("ok")
}

async fn version(State(app): State<Arc<App>>) -> Response {
    ok(&discovery::version(&app.config.version))
}

async fn groups(State(app): State<Arc<App>>) -> Response {
    ok(&discovery::groups(&app.served()))
}

async fn group(State(app): State<Arc<App>>, Path(group): Path<String>) -> Result<Response> {
    Ok(ok(&discovery::group(&app.served(), &group)?))
}

async fn resources(
    State(app): State<Arc<App>>,
    Path((group, version)): Path<(String, String)>,
) -> Result<Response> {
    Ok(ok(&discovery::resources(&app.served(), &group, &version)?))
}

async fn failsafe_state(State(app): State<Arc<App>>) -> Result<Response> {
    failsafe::show(&app).await
}

async fn failsafe_order(
    State(app): State<Arc<App>>,
    Path(what): Path<String>,
    Extension(asker): Extension<Arc<Asker>>,
    method: Method,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    failsafe::order(&app, &what, &asker, &method, &headers, body).await
}

async fn kinds(State(app): State<Arc<App>>) -> Result<Response> {
    Ok(ok(&discovery::kinds(&app.served())?))
}

async fn openapi_second(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let accepts = |value: &http::HeaderValue| {
        value.to_str().is_ok_and(|value| {
            value.contains(openapi::MESSAGE) || value.contains(openapi::OLD_MESSAGE)
        })
    };
    if !headers.get_all(http::header::ACCEPT).iter().any(accepts) {
        return ok(app.served().second());
    }
    let message = app.served().message().to_vec();
    let mut response = Response::new(Body::from(message));
    let media = http::HeaderValue::from_static(openapi::MESSAGE);
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, media);
    response
}

async fn openapi_index(State(app): State<Arc<App>>) -> Response {
    ok(&openapi::index(&app.served()))
}

async fn openapi_third(
    State(app): State<Arc<App>>,
    Path((group, version)): Path<(String, String)>,
) -> Result<Response> {
    Ok(ok(&openapi::third(&app.served(), &group, &version)?))
}

fn maintained(app: &App) -> Result<&dyn Maintained> {
    app.config.maintained.as_deref().ok_or_else(|| {
        Failure::not_found(
            "this server's store is saved and compacted by its own tools, as etcdctl",
        )
    })
}

async fn backup(State(app): State<Arc<App>>) -> Result<Response> {
    maintenance::backup(maintained(&app)?, &app.config.data_dir).await
}

async fn compact(
    State(app): State<Arc<App>>,
    Extension(asker): Extension<Arc<Asker>>,
) -> Result<Response> {
    let store = maintained(&app)?;
    let deed = asker.deed(app.audit.now(), "compact", "store");
    app.audit.write(&deed).await?;
    maintenance::compact(store).await
}

async fn artifact(
    State(app): State<Arc<App>>,
    Path(hex): Path<String>,
    Extension(asker): Extension<Arc<Asker>>,
    method: Method,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    match method {
        Method::GET => app.artifacts.read(&hex, true).await,
        Method::HEAD => app.artifacts.read(&hex, false).await,
        Method::PUT => {
            let response = app.artifacts.write(&hex, &headers, body).await?;
            let to = format!("artifacts/sha256/{hex}");
            let deed = asker.deed(app.audit.now(), "upload", to);
            app.audit.write(&deed).await?;
            Ok(response)
        }
        other => Err(Failure::method(&other, "GET, HEAD, PUT")),
    }
}
