//! What is frozen and held, and what a person says to that.
//!
//! Holds are written by the programs that hold, each in its own `Failsafe` object; freezing is one
//! record that everybody watches. Here both are put together, and orders about them are written
//! down with who gave them.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, Method, StatusCode};
use platctrl_framework::client::{Client, ClientError};
use platctrl_framework::controller::EventRecorder;
use platctrl_framework::failsafe::{self as failsafes, Failsafe, Freeze, Hold, Recall, Reset};
use platctrl_framework::model::{
    Deletion, EventType, Intent, KindDefinition, Metadata, Object, ObjectKey, ObjectReference,
    Propagation, RawObject, Resource as _, Tree, schema,
};
use platctrl_framework::store::{Key, StoreError, Transaction};
use serde_json::{Map, Value, json};

use super::asker::Asker;
use super::read::locate;
use super::status::{Failure, Result, json_response, warn};
use super::{App, request};
use crate::access;

/// Attempts when a program writes its object at the same time.
const ATTEMPTS: usize = 8;
/// How long a program may take to write a lost intent again.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);
/// Orders about lost intents are kept this long.
const ORDERS: Duration = Duration::from_secs(600);
const MAX_EXPECTED: u64 = 100_000;

/// A hold and who holds.
struct Held {
    holder: String,
    hold: Hold,
}

async fn programs(app: &App) -> Result<Vec<Object<Failsafe>>> {
    let client = client(app, "server");
    let listed = client.list(&KindDefinition::of::<Failsafe>(), None).await?;
    let shown = listed.shown();
    // One that a newer program wrote in a form unknown here holds all the same.
    Ok(shown.filter_map(|object| object.typed().ok()).collect())
}

fn client(app: &App, actor: &str) -> Client {
    let (store, environment) = (app.config.store.clone(), app.config.environment.clone());
    Client::new(store, environment, actor)
}

async fn holds(app: &App) -> Result<Vec<Held>> {
    let programs = programs(app).await?;
    let holds = programs.into_iter().flat_map(|program| {
        let holder = program.metadata.name;
        let holds = program.status.detail.holds.into_iter();
        holds.map(move |hold| Held {
            holder: holder.clone(),
            hold,
        })
    });
    Ok(holds.collect())
}

fn is_frozen(freeze: Option<&Freeze>) -> bool {
    freeze.is_some_and(|freeze| freeze.frozen)
}

/// `GET /failsafe`.
pub(super) async fn show(app: &App) -> Result<Response> {
    let freeze = failsafes::frozen(&*app.config.store).await?;
    let holds = holds(app).await?.into_iter().map(|held| {
        let mut value = json!(held.hold);
        value["holder"] = held.holder.into();
        value
    });
    let unexplained = app.hub.unexplained();
    let unexplained = unexplained.iter().map(|key| {
        json!({
            "key": key.store_key(Tree::Intent).as_str(),
            "kind": key.kind().plural, "group": key.kind().group,
            "namespace": key.namespace(), "name": key.name(), "node": key.node(),
        })
    });
    let answer = json!({
        "frozen": is_frozen(freeze.as_ref()),
        "freeze": freeze,
        "holds": holds.collect::<Vec<_>>(),
        "unexplained": unexplained.collect::<Vec<_>>(),
    });
    Ok(json_response(StatusCode::OK, &answer))
}

/// Says in a warning what keeps things as they are. Reading goes on when that cannot be told.
pub(super) async fn banner(app: &App, response: &mut Response) {
    let Ok(freeze) = failsafes::frozen(&*app.config.store).await else {
        return;
    };
    if let Some(freeze) = freeze.filter(|freeze| freeze.frozen) {
        let reason = freeze
            .reason
            .unwrap_or_else(|| "no reason given".to_owned());
        let text = format!(
            "frozen by {}: {reason}; nothing changes until `platctrl thaw`",
            freeze.by
        );
        warn(response, &text);
    }
    let held = app.hub.held();
    if held > 0 {
        let holds = if held == 1 { "1 hold" } else { "holds" };
        let text = format!(
            "failsafes hold something back ({holds}{}): `platctrl failsafe list` says what",
            if held == 1 {
                String::new()
            } else {
                format!(": {held}")
            }
        );
        warn(response, &text);
    }
}

/// `POST /failsafe/<what>`.
pub(super) async fn order(
    app: &App,
    what: &str,
    asker: &Asker,
    method: &Method,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response> {
    let by = asker.name.as_str();
    if method != Method::POST {
        return Err(Failure::method(method, "POST"));
    }
    let bytes = request::read(headers, body).await?;
    let body = if bytes.is_empty() {
        json!({})
    } else {
        request::parse(&bytes)?
    };
    let done = match what {
        "freeze" | "thaw" => freeze(app, by, &body, what == "freeze").await?,
        "reset" => reset(app, by, &body).await?,
        "expect" => expect(app, by, &body).await?,
        "adopt" | "remove" => recall(app, by, &body, what == "remove").await?,
        _ => {
            return Err(Failure::not_found(
                "there is nothing at this path; /failsafe takes freeze, thaw, reset, expect, adopt and remove",
            ));
        }
    };
    let mut deed = asker.deed(app.audit.now(), what, "failsafe");
    let said = |field: &str| {
        let value = body.get(field).filter(|value| !value.is_object())?;
        Some(format!("{field}: {}", request::shown(&value.to_string())))
    };
    let fields = [
        "reason",
        "changes",
        "ids",
        "all",
        "kind",
        "namespace",
        "name",
    ];
    deed.changes = fields.into_iter().filter_map(said).collect();
    app.audit.write(&deed).await?;
    Ok(done)
}

fn text<'v>(body: &'v Value, field: &str) -> Option<&'v str> {
    let text = body.get(field).and_then(Value::as_str);
    text.map(str::trim).filter(|text| !text.is_empty())
}

/// Writes down who ordered what.
async fn audit(app: &App, by: &str, reason: &str, message: String) {
    tracing::warn!(target: "audit", by, reason, message);
    let (store, environment) = (app.config.store.clone(), app.config.environment.clone());
    let Ok(recorder) = EventRecorder::new(store, "server", "server", environment) else {
        return;
    };
    let about = ObjectReference {
        api_version: Failsafe::api_version(),
        kind: Failsafe::KIND.to_owned(),
        namespace: None,
        name: "all".to_owned(),
        uid: String::new().into(),
    };
    recorder.record(
        about,
        EventType::Warning,
        reason,
        format!("by {by}: {message}"),
    );
    recorder.flush().await;
}

async fn freeze(app: &App, by: &str, body: &Value, frozen: bool) -> Result<Response> {
    let (store, environment) = (&*app.config.store, &app.config.environment);
    let was = failsafes::frozen(store).await?;
    let reason = text(body, "reason");
    let now = match frozen {
        true => failsafes::freeze(store, environment, by, reason).await?,
        false => failsafes::thaw(store, environment, by, reason).await?,
    };
    let changed = is_frozen(was.as_ref()) != frozen;
    if changed {
        let what = if frozen { "Frozen" } else { "Thawed" };
        audit(
            app,
            by,
            what,
            reason.unwrap_or("no reason given").to_owned(),
        )
        .await;
    }
    let answer = json!({"frozen": now.frozen, "freeze": now, "changed": changed});
    Ok(json_response(StatusCode::OK, &answer))
}

async fn expect(app: &App, by: &str, body: &Value) -> Result<Response> {
    let changes = body.get("changes").and_then(Value::as_u64);
    let changes = changes.filter(|changes| (1..=MAX_EXPECTED).contains(changes));
    let changes = changes
        .and_then(|changes| u32::try_from(changes).ok())
        .ok_or_else(|| {
            Failure::bad_request(format!(
                "changes is how many are expected: a whole number from 1 to {MAX_EXPECTED}"
            ))
        })?;
    failsafes::expect_changes(&*app.config.store, &app.config.environment, by, changes).await?;
    audit(app, by, "ChangesExpected", changes.to_string()).await;
    Ok(json_response(StatusCode::OK, &json!({"changes": changes})))
}

/// Changes the intent of a program's object, also while the program reports.
async fn change(
    app: &App,
    by: &str,
    name: &str,
    edit: impl Fn(&mut Object<Failsafe>),
) -> Result<()> {
    let client = client(app, by);
    let key = ObjectKey::cluster(Failsafe::GROUP, Failsafe::PLURAL, name)
        .map_err(|error| Failure::bad_request(error.to_string()))?;
    for _ in 0..ATTEMPTS {
        let mut object = client.get::<Failsafe>(&key).await?;
        edit(&mut object);
        match client.update(&object).await {
            Err(ClientError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => return Ok(()),
        }
    }
    Err(Failure::conflict("others kept changing it: try again"))
}

async fn reset(app: &App, by: &str, body: &Value) -> Result<Response> {
    let all = body.get("all").and_then(Value::as_bool) == Some(true);
    let ids: Vec<&str> = body
        .get("ids")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if ids.is_empty() && !all {
        return Err(Failure::bad_request("ids names the holds, or all is true"));
    }
    let held = holds(app).await?;
    for id in &ids {
        if !held.iter().any(|held| held.hold.id == **id) {
            return Err(Failure::not_found(format!(
                "there is no hold `{}`; `platctrl failsafe list` names those there are",
                request::shown(id)
            )));
        }
    }
    let wanted = |held: &&Held| all || ids.contains(&held.hold.id.as_str());
    let mut done = Vec::new();
    for program in programs(app).await? {
        let name = program.metadata.name;
        let mine: Vec<Reset> = held
            .iter()
            .filter(wanted)
            .filter(|held| held.holder == name)
            .map(|held| Reset {
                id: held.hold.id.clone(),
                since: held.hold.since,
            })
            .collect();
        if mine.is_empty() {
            continue;
        }
        change(app, by, &name, |object| object.spec.reset.clone_from(&mine)).await?;
        done.extend(mine.into_iter().map(|reset| reset.id));
    }
    if !done.is_empty() {
        failsafes::ring(&*app.config.store, &app.config.environment).await?;
        audit(app, by, "Reset", done.join(", ")).await;
    }
    Ok(json_response(StatusCode::OK, &json!({"reset": done})))
}

/// Finds the object whose intent is missing.
fn unexplained(app: &App, body: &Value) -> Result<ObjectKey> {
    let (kind, name) = (text(body, "kind"), text(body, "name"));
    let (Some(kind), Some(name)) = (kind, name) else {
        return Err(Failure::bad_request("kind and name say which object"));
    };
    let (group, namespace) = (text(body, "group"), text(body, "namespace"));
    let is_it = |key: &&ObjectKey| {
        *key.kind().plural == *kind
            && group.is_none_or(|group| *key.kind().group == *group)
            && key.name() == name
            && (key.namespace().is_none() || key.namespace() == namespace)
    };
    let all = app.hub.unexplained();
    let found: Vec<_> = all.iter().filter(is_it).collect();
    match found[..] {
        [one] => Ok(one.clone()),
        [] => Err(Failure::not_found(format!(
            "there is no {kind} `{}` whose intent is missing; `platctrl failsafe list` names those there are",
            request::shown(name)
        ))),
        [..] => Err(Failure::conflict(format!(
            "several {kind} `{}` on different nodes miss their intents: retire the node that is not meant first",
            request::shown(name)
        ))),
    }
}

async fn recall(app: &App, by: &str, body: &Value, end: bool) -> Result<Response> {
    let key = unexplained(app, body)?;
    if !end {
        check_name_is_free(app, by, &key).await?;
    }
    let intent = key.store_key(Tree::Intent);
    let what = if end { "Removed" } else { "Adopted" };
    match body.get("object") {
        Some(manifest) => write_given(app, by, &key, manifest, end).await?,
        None => ask_programs(app, by, &intent, end).await?,
    }
    audit(app, by, what, intent.to_string()).await;
    let answer = json!({"key": intent.as_str(), "removed": end});
    Ok(json_response(StatusCode::OK, &answer))
}

/// Refuses to bring back what would be the second of its name: of two the older one has it, and
/// the intent that is written now would be the newer, whatever runs.
async fn check_name_is_free(app: &App, by: &str, key: &ObjectKey) -> Result<()> {
    let served = app.served();
    let Some(kind) = served.kinds.get(key.kind()) else {
        return Ok(());
    };
    let client = client(app, by);
    match locate(&client, kind, key.namespace(), key.name()).await? {
        Some(other) if other.node() != key.node() => Err(Failure::conflict(format!(
            "the name was given to another meanwhile, on node {}: delete that one first, or end this one with `platctrl failsafe remove`",
            other.node().unwrap_or_default()
        ))),
        _ => Ok(()),
    }
}

/// Writes the intent that a manifest gives, for the uid that is reported.
async fn write_given(
    app: &App,
    by: &str,
    key: &ObjectKey,
    manifest: &Value,
    end: bool,
) -> Result<()> {
    if access::gives_access(key.kind()) {
        return Err(Failure::forbidden(
            "who may do what is not taken from a status: create it again",
        ));
    }
    let client = client(app, by);
    let joined = client.joined(key).await?;
    let Some(reality) = joined.reality.as_ref().filter(|_| joined.intent.is_none()) else {
        return Err(Failure::conflict("its intent is not missing any more"));
    };
    let served = app.served();
    let known = served.kinds.get(key.kind());
    let known = known.ok_or_else(|| Failure::not_found("this server does not know its kind"))?;
    let errors = schema::check(manifest, &known.definition.schema, "");
    let title = format!("{} {}", known.definition.singular, key.name());
    if !errors.is_empty() {
        return Err(Failure::invalid(title, errors));
    }
    let given: RawObject = serde_json::from_value(manifest.clone())
        .map_err(|error| Failure::bad_request(error.to_string()))?;
    if let Some(checks) = &known.checks {
        let errors = checks.validate(&given.spec);
        if !errors.is_empty() {
            return Err(Failure::invalid(title, errors));
        }
    }
    if given.metadata.name != key.name() || known.node(&given.spec).as_deref() != key.node() {
        return Err(Failure::bad_request(format!(
            "the manifest is not of {key}: its name, and its node where it has one, must be the same"
        )));
    }
    let uid = reality.value.metadata.uid.clone();
    let seen = reality.value.status.observed_generation.unwrap_or(0);
    let now = app.config.environment.now();
    let deletion = end.then(|| Deletion {
        uid: uid.clone(),
        at: now,
        by: by.to_owned(),
        propagation: Propagation::Orphan,
        grace_seconds: None,
        reason: Some("its intent was lost, and a person ordered its end".to_owned()),
        declared: true,
    });
    let record = Intent {
        api_version: given.api_version,
        kind: given.kind,
        metadata: Metadata {
            name: key.name().to_owned(),
            namespace: key.namespace().map(ToOwned::to_owned),
            uid,
            resource_version: None,
            // It may be another spec than the one that was worked on last.
            generation: seen + 1,
            creation_timestamp: Some(now),
            deletion,
            ..given.metadata
        },
        spec: given.spec,
        other: Map::new(),
    };
    let value =
        serde_json::to_vec(&record).map_err(|error| Failure::internal(error.to_string()))?;
    let intent = key.store_key(Tree::Intent);
    let put = Transaction::new()
        .require_absent(intent.clone())
        .require_unchanged(key.store_key(Tree::Reality), Some(reality.modified))
        .put(intent, value);
    app.config.store.commit(put).await?;
    Ok(())
}

/// Has a program that remembers the intent write it again.
async fn ask_programs(app: &App, by: &str, intent: &Key, end: bool) -> Result<()> {
    let now = app.config.environment.now();
    let order = Recall {
        key: intent.to_string(),
        at: now,
        by: by.to_owned(),
    };
    let recent = |order: &Recall| now.duration_since(order.at).unsigned_abs() < ORDERS;
    for program in programs(app).await? {
        change(app, by, &program.metadata.name, |object| {
            let orders = match end {
                true => &mut object.spec.remove,
                false => &mut object.spec.adopt,
            };
            orders.retain(|old| recent(old) && old.key != order.key);
            orders.push(order.clone());
        })
        .await?;
    }
    failsafes::ring(&*app.config.store, &app.config.environment).await?;
    let written = async {
        loop {
            let keys = [intent.clone()];
            let records = app.config.store.get(&keys).await?.records;
            if records.into_iter().flatten().next().is_some() {
                return Ok::<_, StoreError>(());
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    match tokio::time::timeout(PATIENCE, written).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(Failure::conflict(
            "no program remembers its intent: give the manifest with --filename",
        )),
    }
}
