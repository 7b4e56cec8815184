//! A disk that is nearly full: no further pods, while those that are here go on.

use std::sync::Arc;

use platctrl_framework::store::MemoryStore;
use serde_json::json;

use crate::full::Small;
use crate::rig::{Rig, hasty, is_alive, kill};
use crate::store::Site;

#[test]
fn on_a_full_disk_no_further_pod_is_begun_and_those_that_are_here_go_on() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounting a small file system needs root");
        return;
    }
    let rig = Rig::with(hasty());
    let small = Small::mount(&rig);
    let store = Arc::new(MemoryStore::new(rig.environment.clone()));
    let site = Site::of(rig, store);
    let script = Some("#!/bin/sh\nexec sleep 1000\n");
    let mut spec = site
        .rig
        .spec(&site.rig.pack("one", &[("bin/launch", script)]));
    spec["ports"] = json!({});
    site.create(&spec);
    let pid = site.ready().status.detail.pids["web"];
    let pressed = |site: &Site, is: bool| {
        site.wait("the condition", || {
            let conditions = site.node()?.status.conditions;
            let told = conditions.get("DiskPressure").is_some();
            (told && conditions.is_true("DiskPressure") == is).then_some(())
        });
    };
    pressed(&site, false);

    small.leave(512 << 10);
    pressed(&site, true);
    site.create_named_as("later", &spec);
    site.event("NotYet");
    let waits = site.wait("its status", || site.waits("later", "DiskPressure"));
    assert!(waits.contains("not begun before there is room"), "{waits}");
    let here = site.rig.layout().pods().unwrap();
    assert_eq!(here.len(), 1, "{here:?}");
    // What is here is started again, and gets its new version.
    assert!(is_alive(pid));
    kill(pid);
    site.wait("another process", || {
        let pod = site.pod()?;
        let now = pod.status.detail.pids.get("web")?;
        (*now != pid && pod.status.conditions.is_true("Ready")).then_some(())
    });
    let mut pod = site.pod().unwrap();
    pod.spec.config = json!({"new": true});
    site.rig.block_on(site.client.update(&pod)).unwrap();
    site.wait("the new version", || {
        let pod = site.pod()?;
        let is =
            pod.status.observed_generation == Some(2) && pod.status.conditions.is_true("Ready");
        is.then_some(())
    });
    assert!(site.pods_ready("later").is_none());

    small.make_room();
    pressed(&site, false);
    let later = site.wait("the other pod", || site.pods_ready("later"));
    assert!(later.status.conditions.get("Held").is_none());
    assert_eq!(later.status.detail.reason, "");
}
