//! Kinds that other programs registered: they are served like our own, as soon as they are there.
//!
//! What a program wrote there is checked before anything is done with it, and cannot take the
//! place of a kind whose types this server has.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use platctrl_framework::client::registered_kinds;
use platctrl_framework::model::{KindDefinition, Kinds, check_name, identity};
use platctrl_framework::store::{Prefix, Revision, StoreError, WatchEvent};

use super::App;
use super::target::Served;

const PREFIX: &str = "x/kinds/";
/// Kinds that are served.
const MOST: usize = 1_000;
/// Bytes of a definition.
const LARGEST: usize = 256 * 1024;
/// How long to wait after a failure, and the longest between two looks.
const PAUSE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_secs(300);

/// Serves what is registered, for as long as this is polled.
pub(super) async fn follow(app: &Arc<App>) {
    let environment = &app.config.environment;
    loop {
        let looked = look(app).await;
        let revision = match looked {
            Ok(revision) => revision,
            Err(error) => {
                tracing::warn!(%error, "the kinds that are served stay as they are");
                environment.sleep(environment.jitter(PAUSE)).await;
                continue;
            }
        };
        tokio::select! {
            changed = changed(app, revision) => if let Err(error) = changed {
                tracing::debug!(%error, "the watch of kinds ended");
                environment.sleep(environment.jitter(PAUSE)).await;
            },
            // A watch may have bugs.
            () = environment.sleep(environment.jitter(LOOK)) => {}
        }
    }
}

/// Completes when something is registered after a revision.
async fn changed(app: &App, after: Revision) -> Result<(), StoreError> {
    let prefix = Prefix::new(PREFIX).expect("a literal prefix is valid");
    let mut stream = app.config.store.watch(prefix, after);
    while let Some(event) = stream.next().await {
        match event? {
            WatchEvent::Progress(_) => {}
            _ => return Ok(()),
        }
    }
    Err(StoreError::unavailable("the watch ended"))
}

/// Reads what is registered, and serves it if it is not what is served.
async fn look(app: &Arc<App>) -> Result<Revision, StoreError> {
    let store = app.config.store.as_ref();
    // Before the list, so that nothing in between is missed.
    let revision = store.get(&[identity::anchor_key()]).await?.revision;
    let (definitions, unreadable) = registered_kinds(store).await?;
    for error in unreadable {
        tracing::warn!(%error, "a registered kind is not served");
    }
    let mut kinds = app.config.kinds.clone();
    for definition in definitions.into_iter().take(MOST) {
        match check(&definition) {
            Ok(()) => kinds.define(definition),
            Err(problem) => {
                let kind = definition.group_plural();
                tracing::warn!(%kind, problem, "a registered kind is not served");
            }
        }
    }
    if !same(&app.served().kinds, &kinds) {
        app.hub.set_kinds(kinds.clone());
        let served = app.served.write();
        *served.unwrap_or_else(PoisonError::into_inner) = Arc::new(Served::new(kinds));
    }
    Ok(revision)
}

fn same(served: &Kinds, found: &Kinds) -> bool {
    let definitions = |kinds: &Kinds| -> Vec<KindDefinition> {
        kinds.iter().map(|kind| kind.definition.clone()).collect()
    };
    definitions(served) == definitions(found)
}

/// Whether a definition can be served: its names are parts of paths and documents.
fn check(definition: &KindDefinition) -> Result<(), String> {
    let names = [
        ("API group", &definition.group),
        ("version", &definition.version),
        ("plural", &definition.plural),
        ("singular", &definition.singular),
    ];
    let short = definition
        .short_names
        .iter()
        .map(|name| ("short name", name));
    for (what, name) in names.into_iter().chain(short) {
        check_name(what, name).map_err(|error| error.to_string())?;
    }
    let kind = &definition.kind;
    let is_word = kind.len() <= 63
        && kind.starts_with(|c: char| c.is_ascii_uppercase())
        && kind.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if !is_word {
        return Err("its kind is not a word that begins with a capital letter".to_owned());
    }
    if !definition.schema.is_object() || definition.schema.to_string().len() > LARGEST {
        return Err(format!(
            "its schema is no object of at most {LARGEST} bytes"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use platctrl_kinds::Pod;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_definition_with_names_that_are_no_names_is_not_served() {
        let good = KindDefinition::of::<Pod>();
        assert_eq!(check(&good), Ok(()));
        let changes: [fn(&mut KindDefinition); 6] = [
            |kind| kind.group = "a/b".to_owned(),
            |kind| kind.version = "v1\"".to_owned(),
            |kind| kind.plural = "..".to_owned(),
            |kind| kind.kind = "pod".to_owned(),
            |kind| kind.short_names = vec!["P O".to_owned()],
            |kind| kind.schema = json!(true),
        ];
        for change in changes {
            let mut kind = good.clone();
            change(&mut kind);
            assert!(check(&kind).is_err(), "{}", kind.group_plural());
        }
    }
}
