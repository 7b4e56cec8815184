//! A pod whose name another one has, on another node: what its agent makes of what the controllers,
//! in whose place a test is, say of that.

use platctrl_framework::client::DeleteOptions;
use platctrl_framework::model::{ObjectKey, Resource as _, Tree, Uid};
use platctrl_framework::store::Transaction;
use platctrl_kinds::{Grant, NameTaken, Pod, PodPhase};
use serde_json::json;

use crate::rig::is_alive;
use crate::store::{NODE, Site, key};

impl Site {
    /// Why a pod that is not begun says that it is not, if it says so for this reason.
    pub(crate) fn waits(&self, name: &str, reason: &str) -> Option<String> {
        let key = ObjectKey::on_node(Pod::GROUP, Pod::PLURAL, NODE, "default", name).unwrap();
        let pod = self.rig.block_on(self.client.get::<Pod>(&key)).ok()?;
        let status = &pod.status;
        let held = status
            .conditions
            .get("Held")
            .filter(|it| it.reason == reason)?;
        let ready = status.conditions.get("Ready").unwrap();
        assert!(status.conditions.is_true("Held"));
        assert!(!status.conditions.is_true("Ready"));
        assert_eq!(ready.reason, reason);
        assert_eq!(status.phase, PodPhase::Pending.into());
        assert_eq!(status.observed_generation, Some(pod.metadata.generation));
        let detail = &status.detail;
        assert_eq!((&*detail.reason, &detail.message), (reason, &held.message));
        assert!(detail.pids.is_empty());
        assert_eq!(detail.node_name, NODE);
        Some(held.message.clone())
    }

    /// Says who has the name of the pod with this uid.
    fn taken(&self, uid: &Uid, by: Option<&str>) {
        let grant = Grant {
            uid: uid.clone(),
            request: String::new(),
            by: "test".into(),
            at: jiff::Timestamp::now(),
            name_taken: by.map(|node| NameTaken {
                node: node.into(),
                uid: "the-older-one".into(),
            }),
        };
        let value = serde_json::to_vec(&grant).unwrap();
        let put = Transaction::new().put(key().store_key(Tree::Grant), value);
        self.rig.block_on(self.store.commit(put)).unwrap();
    }

    /// A pod that was created and whose name was taken while its agent was away.
    fn created_too_late(&mut self) -> Uid {
        let spec = self.spec();
        self.stop();
        self.create(&spec);
        let uid = self.pod().unwrap().metadata.uid;
        self.taken(&uid, Some("web1"));
        self.start();
        let message = self.wait("its status", || self.waits("hello", "NameTaken"));
        assert!(message.contains("node web1 (the-older-one)"), "{message}");
        self.event("NameTaken");
        assert_eq!(self.rig.layout().pods().unwrap(), [], "nothing is begun");
        uid
    }
}

#[test]
fn a_pod_whose_name_an_older_one_has_never_starts_and_says_so_until_the_name_is_free() {
    let mut site = Site::new();
    let uid = site.created_too_late();
    // Neither a new version nor a new agent begins it. What comes later has come when it is there.
    let mut pod = site.pod().unwrap();
    pod.spec.config = json!({"new": true});
    site.rig.block_on(site.client.update(&pod)).unwrap();
    site.stop();
    site.start();
    site.create_named_as("later", &site.spec());
    site.wait("another pod", || site.pods_ready("later"));
    site.wait("its status", || {
        let is_new = site.pod()?.status.observed_generation == Some(2);
        site.waits("hello", "NameTaken").filter(|_| is_new)
    });
    let here = site.rig.layout().pods().unwrap();
    assert!(here.iter().all(|pod| pod.name() == "later"), "{here:?}");

    // What is said of an earlier pod of the name is nothing to this one.
    site.taken(&"another".into(), Some("web1"));
    let pod = site.ready();
    assert!(pod.status.conditions.get("Held").is_none());
    assert_eq!(pod.metadata.uid, uid);
}

#[test]
fn a_pod_that_is_not_begun_for_its_name_is_deleted_as_any_other() {
    let mut site = Site::new();
    site.created_too_late();
    let options = DeleteOptions::default();
    site.rig
        .block_on(site.client.delete(&key(), &options))
        .unwrap();
    site.wait("its end", || {
        (site.reality()?.status.phase == PodPhase::Gone.into()).then_some(())
    });
    assert_eq!(site.rig.layout().pods().unwrap(), []);
}

#[test]
fn a_pod_that_runs_when_its_name_turns_out_to_be_taken_runs_on_and_says_so() {
    let site = Site::new();
    site.create(&site.spec());
    let pod = site.ready();
    let pid = pod.status.detail.pids["web"];
    site.taken(&pod.metadata.uid, Some("web1"));
    site.held("NameTaken");
    let held = site.pod().unwrap();
    assert!(held.status.conditions.is_true("Ready"));
    assert_eq!(held.status.detail.pids["web"], pid);
    // It is looked after as before.
    let mut changed = held;
    changed.spec.config = json!({"new": true});
    site.rig.block_on(site.client.update(&changed)).unwrap();
    site.wait("the new version", || {
        let status = site.pod()?.status;
        let is = status.observed_generation == Some(2) && status.conditions.is_true("Ready");
        (is && status.conditions.is_true("Held")).then_some(())
    });
    site.taken(&pod.metadata.uid, None);
    let free = site.wait("no hold", || {
        let pod = site.pod()?;
        pod.status.conditions.get("Held").is_none().then_some(pod)
    });
    assert!(is_alive(free.status.detail.pids["web"]));
    assert_eq!(free.status.detail.reason, "");
}
