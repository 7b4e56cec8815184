//! The server that commands go to, and a store.

use std::time::Duration;

use platctrl_framework::environment::Environment;
use platctrl_framework::model::identity::{self, AnchorState, IdentityError};
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::Finding;
use crate::api::{Api, Catalog, Collection, Query};
use crate::cli::{Setting, find};
use crate::error::{Code, Failure};
use crate::store::{StoreAccess, StoreUrl};

/// A store that takes longer to answer makes everything slow.
const SLOW: Duration = Duration::from_millis(100);
/// How long a store may take to be opened.
const OPENING: Duration = Duration::from_secs(10);
/// Nodes that are named; the others are counted.
const NAMED: usize = 5;

/// The server, and what it knows of its fleet.
pub(super) async fn server(setting: &Setting) -> Vec<Finding> {
    let asked = async {
        let api = setting.api()?;
        let answer = api.get("/version").await?;
        let version = crate::cli::version_of(&answer);
        Ok::<_, Failure>((api, version))
    };
    let (api, version) = match asked.await {
        Ok(server) => server,
        // Nobody has to run one on this machine.
        Err(failure) if failure.code == Code::Unreachable && setting.given_server().is_none() => {
            return vec![Finding {
                hint: failure.hint,
                ..Finding::warning("server", failure.message)
            }];
        }
        Err(failure) => return vec![Finding::of_failure("server", failure)],
    };
    let mut findings = vec![this_version(&version, &api)];
    match Catalog::load(&api).await {
        Ok(catalog) => findings.extend(nodes(&api, &catalog).await),
        Err(failure) => findings.push(Finding::of_failure("server", failure)),
    }
    findings.extend(failsafes(&api).await);
    findings
}

fn this_version(version: &str, api: &Api) -> Finding {
    let own = env!("CARGO_PKG_VERSION");
    let place = api.place();
    if version == own {
        return Finding::good("server", format!("answers at {place}"));
    }
    Finding::warning(
        "server",
        format!("answers at {place}, and is of version {version}; this program is {own}"),
    )
    .hint("use programs of one version, but for the time of an upgrade")
}

async fn nodes(api: &Api, catalog: &Catalog) -> Option<Finding> {
    let kind = catalog.named("nodes").ok()?;
    let listed = find::list(api, &Collection::new(&kind, None), &Query::default()).await;
    let items = match listed {
        Ok((items, _)) => items,
        // Not everybody may list nodes.
        Err(failure) if failure.code == Code::Denied => return None,
        Err(failure) => return Some(Finding::of_failure("nodes", failure)),
    };
    Some(judge_nodes(&items))
}

fn judge_nodes(items: &[Value]) -> Finding {
    let is_ready = |node: &&Value| {
        let conditions = node["status"]["conditions"].as_array();
        let is = |kind: &str| {
            let found = conditions.and_then(|all| all.iter().find(|it| it["type"] == kind));
            found.map(|it| it["status"] == "True")
        };
        // A node that fell silent still says what it said last.
        is("Ready") == Some(true) && is("Alive") != Some(false)
    };
    let away: Vec<&str> = items
        .iter()
        .filter(|node| !is_ready(node))
        .filter_map(|node| node["metadata"]["name"].as_str())
        .collect();
    if items.is_empty() {
        return Finding::warning("nodes", "there are none")
            .hint("`platctrl up` runs pods on this machine; `platctrl node admit NAME` lets another one in");
    }
    if away.is_empty() {
        return Finding::good("nodes", format!("all {} are ready", items.len()));
    }
    let mut names = away[..away.len().min(NAMED)].join(", ");
    if away.len() > NAMED {
        names.push_str(&format!(" and {} more", away.len() - NAMED));
    }
    let found = format!("{} of {} are not ready: {names}", away.len(), items.len());
    Finding::bad("nodes", found).hint(format!("`platctrl describe node/{}` says why", away[0]))
}

async fn failsafes(api: &Api) -> Option<Finding> {
    let state = match api.get("/failsafe").await {
        Ok(state) => state,
        Err(failure) if failure.code == Code::Denied => return None,
        Err(failure) => return Some(Finding::of_failure("failsafes", failure)),
    };
    if state["frozen"] == true {
        return Some(
            Finding::warning("failsafes", "all changes are frozen")
                .hint("`platctrl thaw` ends that, once its reason is gone"),
        );
    }
    let held = state["holds"].as_array().map_or(0, Vec::len);
    Some(match held {
        0 => Finding::good("failsafes", "nothing is held back"),
        held => Finding::bad("failsafes", format!("{held} changes are held back"))
            .hint("`platctrl failsafe list` shows them and what settles them"),
    })
}

/// A store: whether it answers, how fast, and whether it may be written.
pub(super) async fn store(url: &StoreUrl, access: &StoreAccess) -> Vec<Finding> {
    let environment = Environment::system();
    let opened = match timeout(OPENING, url.open(access, &environment, false)).await {
        Ok(Ok(store)) => store,
        Ok(Err(failure)) => return vec![Finding::of_failure("store", failure)],
        Err(_) => {
            let failure = Failure::new(
                Code::Timeout,
                format!("{url} did not answer within {} s", OPENING.as_secs()),
            );
            return vec![
                Finding::of_failure("store", failure)
                    .hint("is this its address, and may this machine reach it?"),
            ];
        }
    };
    let begun = Instant::now();
    let anchor = identity::open(&*opened).await;
    let took = begun.elapsed();
    let anchor = match anchor {
        Ok((anchor, _)) => anchor,
        Err(IdentityError::Uninitialised) => {
            return vec![
                Finding::bad("store", format!("{url} holds nothing of platctrl"))
                    .hint(format!("`platctrl store init {url}` makes it ready")),
            ];
        }
        Err(error) => return vec![Finding::of_failure("store", Failure::failed(error))],
    };
    let found = format!("{url} is {} in its epoch {}", anchor.store_id, anchor.epoch);
    let state = match anchor.state {
        AnchorState::Active => Finding::good("store", found),
        AnchorState::Sealed => Finding::bad(
            "store",
            format!("{found}, and sealed: it was copied elsewhere"),
        )
        .hint("use the copy; or, if that is not in use, `platctrl store unseal`"),
    };
    let speed = format!("a read took {} ms", took.as_millis());
    let speed = match took > SLOW {
        true => Finding::warning("store, speed", speed)
            .hint("look at its disks and at the network between"),
        false => Finding::good("store, speed", speed),
    };
    vec![state, speed]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Verdict;
    use super::*;

    #[test]
    fn nodes_that_are_not_ready_are_named() {
        let node = |name: String, ready: &str| json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        assert_eq!(judge_nodes(&[]).verdict, Verdict::Warning);
        assert_eq!(
            judge_nodes(&[node("a".into(), "True")]).verdict,
            Verdict::Good
        );
        let many: Vec<Value> = (0..7).map(|n| node(format!("n{n}"), "False")).collect();
        let finding = judge_nodes(&many);
        assert_eq!(finding.verdict, Verdict::Bad);
        assert_eq!(
            finding.found,
            "7 of 7 are not ready: n0, n1, n2, n3, n4 and 2 more"
        );
    }
}
