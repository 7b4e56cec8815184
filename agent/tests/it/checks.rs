//! Checks of pods beside those over HTTP: by a command, and by a connection.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use platctrl_agent::health::ProbeFiles;
use platctrl_agent::{Agent, AgentConfig};
use platctrl_test_support::certificates::Authority;
use platctrl_test_support::needs;
use serde_json::json;

use crate::rig::{Rig, is_alive, name, want};
use crate::store::Site;

#[test]
fn a_command_checks_a_pod_as_its_user_in_its_groups_and_decides_whether_it_is_ready() {
    let rig = Rig::new();
    let mut spec = rig.spec(&rig.app("one"));
    let script = "cd $HOME; id -u > by.new; cat /proc/self/cgroup > in.new; mv in.new in; mv by.new by; \
                  test -e well || { echo not well yet >&2; exit 3; }";
    spec["health"] = json!({
        "exec": {"command": ["sh", "-c", script]},
        "interval": "20ms", "timeout": "30s", "failureThreshold": 1, "grace": "1ms",
    });
    let host = rig.host();
    let (_worker, told) = rig.worker(&host, want(1, &spec));
    let sick = told.wait("its failure", |it| it.status.reason == "Unhealthy");
    assert!(!sick.is_ready());
    let message = &sick.status.message;
    assert!(message.contains("not well yet"), "{message}");
    let data = rig.layout().pod(&name()).data();
    fs::write(data.join("well"), "").unwrap();
    let well = told.ready();
    assert_eq!(well.condition("Ready").unwrap().reason, "Healthy");
    assert_eq!(well.status.pids, sick.status.pids, "it restarted nothing");
    let by = fs::read_to_string(data.join("by")).unwrap();
    assert_eq!(by.trim(), fs::metadata(&data).unwrap().uid().to_string());
    if needs::root() {
        assert_ne!(by.trim(), "0");
        let within = fs::read_to_string(data.join("in")).unwrap();
        let pid = well.status.pids["web"];
        let its = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert_eq!(within, its, "it counts as a part of the pod");
    }
    fs::remove_file(data.join("well")).unwrap();
    told.wait("its failure", |it| !it.is_ready());
}

#[test]
fn whoever_accepts_connections_is_ready_by_a_check_over_tcp() {
    let rig = Rig::new();
    let mut spec = rig.spec(&rig.app("one"));
    spec["health"] = json!({"tcp": {"port": "http"}, "interval": "20ms", "timeout": "30s"});
    let host = rig.host();
    let (_worker, told) = rig.worker(&host, want(1, &spec));
    let ready = told.ready();
    assert_eq!(ready.condition("Ready").unwrap().reason, "Healthy");
}

#[test]
fn a_pod_that_serves_https_to_who_has_a_certificate_is_checked_with_the_agents() {
    let mut site = Site::new();
    site.stop();
    let (ours, strangers) = (Authority::new("ours"), Authority::new("strangers"));
    let dir = site.rig.scratch("tls");
    let server = ours.issue("web", vec!["web.example".into()]);
    // For the pod's own user.
    let (_, key) = server.write(&dir, "server");
    fs::set_permissions(key, fs::Permissions::from_mode(0o644)).unwrap();
    let authority = ours.write(&dir);
    // Whom the pod does not know.
    let stranger = strangers.issue("agent", Vec::new());
    let identity = stranger.write(&site.rig.scratch("agent"), "agent");

    let mut config = AgentConfig::new(site.rig.host_config(), site.store.clone());
    config.host.probes = ProbeFiles {
        ca: Some(authority),
        identity: Some(identity.clone()),
    };
    let agent = site.rig.block_on(Agent::new(config)).unwrap();
    site.run(agent);
    let mut spec = site.spec();
    spec["launchables"]["web"]["env"] = json!({"TLS_IN": dir.display().to_string()});
    spec["health"] = json!({
        "http": {"port": "http", "scheme": "Https", "serverName": "web.example"},
        "interval": "20ms", "timeout": "30s", "failureThreshold": 1, "grace": "1ms",
    });
    site.create(&spec);
    let refused = site.wait("a refusal", || {
        let pod = site.pod()?;
        (pod.status.detail.reason == "Unhealthy").then_some(pod)
    });
    assert!(!refused.status.conditions.is_true("Ready"));
    let pid = refused.status.detail.pids["web"];

    // The agent is given another certificate, which the pod's authority has signed.
    let right = ours.issue("agent", Vec::new());
    right.write(&site.rig.artifacts(), "agent");
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
    for (name, to) in [("agent.key", &identity.1), ("agent.pem", &identity.0)] {
        let new = site.rig.artifacts().join(name);
        let file = fs::File::options().write(true).open(&new).unwrap();
        // Written twice within a tick of the file system's clock it would look the same.
        file.set_modified(later).unwrap();
        fs::rename(new, to).unwrap();
    }
    let ready = site.ready();
    assert_eq!(ready.status.detail.pids["web"], pid, "it restarted nothing");
    let how = ready.status.conditions.get("Ready").unwrap();
    assert_eq!(how.reason, "Healthy");

    // A pod that is somebody else is not believed, whoever signed its certificate.
    let mut pod = ready;
    let http = pod.spec.health.as_mut().unwrap().http.as_mut().unwrap();
    http.server_name = Some("db.example".into());
    site.rig.block_on(site.client.update(&pod)).unwrap();
    let refused = site.wait("a refusal", || {
        let pod = site.pod()?;
        let is = pod.status.detail.reason == "Unhealthy";
        (is && pod.status.observed_generation == Some(2)).then_some(pod)
    });
    let message = &refused.status.detail.message;
    assert!(message.contains("https://"), "{message}");
    assert!(is_alive(refused.status.detail.pids["web"]));
}
