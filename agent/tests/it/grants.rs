//! Restarts that an agent asks for: of pods that do not live, and when somebody on the node wants
//! one. Here a test grants them, in place of the controllers.

use std::sync::Arc;

use platctrl_agent::health::Verdict;
use platctrl_agent::{Control, PodName, PodRecord};
use platctrl_framework::model::{Object, Tree};
use platctrl_framework::store::{MemoryStore, Transaction};
use platctrl_kinds::{Grant, Pod, RestartRequest};
use serde_json::{Value, json};

use crate::rig::{get, hasty, is_alive, kill, name};
use crate::store::{Site, key};

/// A check that fails while there is a file `unhealthy` in the pod's data directory.
fn check() -> Value {
    json!({
        "http": {"port": "http"},
        "interval": "50ms",
        "timeout": "10s",
        "failureThreshold": 2,
        "grace": "30s",
    })
}

impl Site {
    fn live_spec(&self) -> Value {
        let mut spec = self.spec();
        spec["liveness"] = check();
        spec
    }

    /// Makes the checks of a pod fail, once they have passed, or pass again.
    fn ail(&self, pod: &PodName, ails: bool) {
        let paths = self.rig.layout().pod(pod);
        let file = paths.data().join("unhealthy");
        if ails {
            // Until then it is starting, and may fail.
            self.wait("a first answer", || {
                let known = PodRecord::look(&paths.record())?.liveness?;
                (known.state.verdict == Verdict::Healthy).then_some(())
            });
            std::fs::write(file, "").unwrap();
        } else {
            std::fs::remove_file(file).unwrap();
        }
    }

    fn asked(&self) -> (Object<Pod>, RestartRequest) {
        self.wait("a request", || {
            let pod = self.pod()?;
            let request = pod.status.detail.restart_request.clone()?;
            Some((pod, request))
        })
    }

    /// The pod, once it asks for nothing and is ready.
    fn lives(&self) -> Object<Pod> {
        self.wait("a pod that lives", || {
            let pod = self.pod()?;
            let asks = pod.status.detail.restart_request.is_some();
            (!asks && pod.status.conditions.is_true("Ready")).then_some(pod)
        })
    }

    fn other_than(&self, before: &RestartRequest) -> (Object<Pod>, RestartRequest) {
        self.wait("another request", || {
            let pod = self.pod()?;
            let request = pod.status.detail.restart_request.clone()?;
            (request.id != before.id).then_some((pod, request))
        })
    }

    fn grant(&self, uid: &str, request: &str) {
        let grant = Grant {
            uid: uid.into(),
            request: request.into(),
            by: "test".into(),
            at: jiff::Timestamp::now(),
            name_taken: None,
        };
        let value = serde_json::to_vec(&grant).unwrap();
        let key = key().store_key(Tree::Grant);
        let put = Transaction::new().put(key, value);
        let written = self.rig.block_on(self.store.commit(put)).unwrap();
        // What was put before is seen by the agent from here on.
        self.wait("the agent's view", || {
            let Some(status) = self.handle.as_ref()?.runtime().status() else {
                return Some(());
            };
            let mut sources = status.sources.iter();
            sources.all(|it| it.revision >= Some(written)).then_some(())
        });
    }
}

fn pid(pod: &Object<Pod>) -> u32 {
    pod.status.detail.pids["web"]
}

fn reason(pod: &Object<Pod>) -> String {
    let ready = pod.status.conditions.get("Ready").unwrap();
    ready.reason.clone()
}

#[test]
fn a_pod_that_does_not_live_is_not_ready_and_is_restarted_only_by_a_grant_for_its_request() {
    let site = Site::new();
    site.create(&site.live_spec());
    let before = site.ready();
    site.ail(&name(), true);
    let (pod, request) = site.asked();
    assert_eq!(reason(&pod), "NotAlive");
    assert!(request.reason.contains("503"), "{request:?}");
    // For another pod of that name, and for another request: neither is for this one.
    let uid = pod.metadata.uid.to_string();
    site.grant("another", &request.id);
    site.ail(&name(), false);
    assert_eq!(pid(&site.lives()), pid(&before));
    site.ail(&name(), true);
    let (_, request) = site.other_than(&request);
    site.grant(&uid, "another");
    site.ail(&name(), false);
    assert_eq!(pid(&site.lives()), pid(&before));
    site.ail(&name(), true);
    let (_, request) = site.other_than(&request);
    site.grant(&uid, &request.id);
    let again = site.wait("a restart", || {
        let pod = site.pod()?;
        let other = pod.status.detail.pids.get("web").copied()?;
        (other != pid(&before)).then_some(pod)
    });
    assert!(!is_alive(pid(&before)));
    // One grant was one restart. It has time to start again.
    site.ail(&name(), false);
    let healed = site.ready();
    assert_eq!(pid(&healed), pid(&again));
    assert_eq!(healed.status.detail.restart_request, None);
    site.event("RestartGranted");
}

#[test]
fn a_pod_that_lives_again_withdraws_its_request_and_an_old_grant_does_nothing() {
    let site = Site::new();
    site.create(&site.live_spec());
    let before = site.ready();
    site.ail(&name(), true);
    let (pod, first) = site.asked();
    site.ail(&name(), false);
    let healed = site.ready();
    assert_eq!(healed.status.detail.restart_request, None);
    site.event("RestartWithdrawn");
    site.grant(&pod.metadata.uid.to_string(), &first.id);
    site.ail(&name(), true);
    let (pod, second) = site.asked();
    assert_ne!(first.id, second.id);
    assert_eq!(
        pid(&pod),
        pid(&before),
        "the grant was for a request that is gone"
    );
    assert!(is_alive(pid(&before)));
}

#[test]
fn a_request_and_its_grant_outlive_the_agent() {
    let mut site = Site::new();
    site.create(&site.live_spec());
    let before = site.ready();
    site.ail(&name(), true);
    let (pod, request) = site.asked();
    site.stop();
    site.grant(&pod.metadata.uid.to_string(), &request.id);
    assert!(is_alive(pid(&before)), "nobody is there to restart it");
    site.start();
    site.wait("a restart", || {
        let pod = site.pod()?;
        let other = pod.status.detail.pids.get("web").copied()?;
        (other != pid(&before)).then_some(())
    });
}

#[test]
fn a_program_that_was_started_anew_asks_for_nothing() {
    let site = Site::new();
    site.create(&site.live_spec());
    let before = site.ready();
    site.ail(&name(), true);
    let (_, _) = site.asked();
    site.ail(&name(), false);
    kill(pid(&before));
    let after = site.wait("another process", || {
        let pod = site
            .pod()
            .filter(|pod| pod.status.conditions.is_true("Ready"))?;
        (pid(&pod) != pid(&before)).then_some(pod)
    });
    assert_eq!(after.status.detail.restart_request, None);
    assert_eq!(after.status.detail.restarts, 1);
}

#[test]
fn with_the_store_away_a_pod_that_does_not_live_is_held_or_restarted_as_its_spec_says() {
    for (rule, restarts) in [("hold", false), ("restart", true)] {
        // Time goes fast: a store is away when it was not heard of for 30 s.
        let environment = hasty();
        let memory = MemoryStore::new(environment.clone());
        let site = Site::on(environment, Arc::new(memory.clone()));
        let mut spec = site.live_spec();
        spec["liveness"]["interval"] = "5s".into();
        spec["liveness"]["timeout"] = "1000s".into();
        spec["liveness"]["grace"] = "3000s".into();
        spec["livenessOffline"] = rule.into();
        site.create(&spec);
        let before = site.ready();
        memory.faults().set_away(true);
        assert!(
            site.rig.block_on(site.store.get(&[])).is_err(),
            "the fault happened"
        );
        site.ail(&name(), true);
        let asked = || {
            let reports = site.handle.as_ref()?.reports();
            let request = reports[0].status.restart_request.as_ref();
            (request.is_some() || reports[0].status.pids.get("web") != Some(&pid(&before)))
                .then_some(())
        };
        site.wait("a request", asked);
        if restarts {
            site.wait("a restart", || (!is_alive(pid(&before))).then_some(()));
            site.ail(&name(), false);
        }
        memory.faults().set_away(false);
        if !restarts {
            site.asked();
            assert!(is_alive(pid(&before)));
            site.ail(&name(), false);
        }
        site.wait("the pod's return", || {
            let pod = site.pod()?;
            let is_back = pod.status.conditions.is_true("Ready")
                && pod.status.detail.restart_request.is_none();
            (is_back && (pid(&pod) != pid(&before)) == restarts).then_some(())
        });
    }
}

#[test]
fn somebody_on_the_node_restarts_stops_and_starts_a_pod_by_grants_too() {
    let mut site = Site::new();
    site.create(&site.spec());
    let before = site.ready();
    let uid = before.metadata.uid.to_string();
    let say = |site: &Site, word: Control| {
        assert!(site.handle.as_ref().unwrap().control(&name(), word));
    };
    let by = || "user 0".to_owned();
    let stop_now = |site: &Site| {
        let (by, now) = (by(), true);
        say(site, Control::Stop { by, now });
        site.wait("a stopped pod", || {
            (reason(&site.pod()?) == "Stopped").then_some(())
        });
    };
    say(
        &site,
        Control::Restart {
            by: by(),
            now: false,
        },
    );
    let (pod, request) = site.asked();
    assert!(
        pod.status.conditions.is_true("Ready"),
        "it lives, and waits"
    );
    site.grant(&uid, &request.id);
    let second = site.wait("another process", || {
        let pod = site
            .pod()
            .filter(|pod| pod.status.conditions.is_true("Ready"))?;
        (pid(&pod) != pid(&before)).then_some(pod)
    });
    stop_now(&site);
    assert!(!is_alive(pid(&second)));
    // It stays so over a restart of the agent.
    site.stop();
    site.start();
    site.wait("its report", || {
        let reports = site.handle.as_ref()?.reports();
        let ready = reports.first()?.condition("Ready")?;
        (ready.reason == "Stopped").then_some(())
    });
    say(&site, Control::Start { by: by() });
    let third = site.ready();
    assert_eq!(get(third.status.detail.ports["http"], "/version"), "one");
    // A newer version is started, too, whoever stopped the older.
    stop_now(&site);
    let mut pod = site.pod().unwrap();
    pod.spec.config = json!({"new": 1});
    site.rig.block_on(site.client.update(&pod)).unwrap();
    site.wait("the newer version", || {
        let pod = site.pod()?;
        (pod.status.conditions.is_true("Ready") && pod.status.observed_generation == Some(2))
            .then_some(())
    });
    let nobody = PodName::new("default", "nobody").unwrap();
    let handle = site.handle.as_ref().unwrap();
    assert!(!handle.control(&nobody, Control::Start { by: by() }));
}
