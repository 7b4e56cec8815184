//! What a pod is held to, and what it gets that nobody else may see.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use platctrl_agent::Report;
use platctrl_framework::environment::Environment;
use platctrl_test_support::needs;
use serde_json::json;

use crate::rig::{Rig, eventually, kill, name, tombstone, want};

#[test]
fn a_pods_tmp_is_its_own_and_goes_with_it() {
    if !needs::root() {
        return;
    }
    // Below one of the two, that one has to stay as it is, or the pod would not find itself.
    for (below, private) in [("/tmp", "/var/tmp"), ("/var/tmp", "/tmp")] {
        let rig = Rig::under(Path::new(below), Environment::system());
        let probe = format!("{private}/platctrl-{}", rig.app);
        fs::write(&probe, "the machine's\n").unwrap();
        let script = format!(
            "#!/bin/sh\ncat {probe} || echo none\necho mine > {probe} && cat {probe}\n\
             touch $POD_HOME/data/own && echo kept\necho end\nexec sleep 1000\n"
        );
        let mut spec = rig.script("tmp", &script);
        let host = rig.host();
        let (worker, told) = rig.worker(&host, want(1, &spec));
        told.ready();
        let said = rig.said("end");
        assert_eq!(said.last().unwrap(), "kept");
        assert!(
            said.ends_with(&["none".into(), "mine".into(), "kept".into()]),
            "{said:?}"
        );
        assert_eq!(fs::read_to_string(&probe).unwrap(), "the machine's\n");
        let tmp = rig.layout().pod(&name()).home().join("tmp");
        assert_eq!(fs::metadata(&tmp).unwrap().mode() & 0o7777, 0o700);
        let file = Path::new(&probe).file_name().unwrap();
        assert_eq!(fs::read_to_string(tmp.join(file)).unwrap(), "mine\n");
        // Whoever wants the machine's gets it.
        spec["sharedTmp"] = true.into();
        worker.order(want(2, &spec));
        told.wait("the next version", |it| {
            it.is_ready() && it.observed_generation == 2
        });
        let shared = eventually("the next version's words", || {
            let said = rig.said("end");
            said.iter()
                .any(|line| line == "the machine's")
                .then_some(said)
        });
        assert!(shared.iter().any(|line| line == "the machine's"));
        worker.order(tombstone(2, &spec));
        told.wait("the end", |report| report.phase.as_str() == "Gone");
        assert!(!tmp.exists());
        fs::remove_file(&probe).unwrap();
    }
}

#[test]
fn limits_of_processes_and_the_mask_are_those_of_the_manifest_or_safe() {
    let rig = Rig::new();
    let script = "#!/bin/sh\numask\nulimit -n\nulimit -c\nulimit -f\necho end\nexec sleep 1000\n";
    let mut spec = rig.script("limits", script);
    let host = rig.host();
    let (worker, told) = rig.worker(&host, want(1, &spec));
    told.ready();
    assert_eq!(rig.said("end"), ["0022", "1024", "0", "unlimited"]);
    spec["launchables"]["web"]["umask"] = "027".into();
    spec["launchables"]["web"]["rlimits"] =
        json!({"openFiles": 77, "coreBytes": "1Ki", "fileBytes": "1Mi"});
    worker.order(want(2, &spec));
    told.wait("the next version", |it| {
        it.is_ready() && it.observed_generation == 2
    });
    let said = eventually("the next version's words", || {
        let said = rig.said("end");
        (said.len() > 5).then_some(said)
    });
    // The shell counts cores and files in blocks.
    assert_eq!(said[5..], ["0027", "77", "2", "2048"]);
}

#[test]
fn a_secret_is_given_in_memory_and_taken_back_with_the_pod() {
    if !needs::root() {
        return;
    }
    let rig = Rig::new();
    let from = rig.scratch("secrets-of-the-node");
    fs::set_permissions(&from, fs::Permissions::from_mode(0o700)).unwrap();
    fs::create_dir(from.join("default")).unwrap();
    let write = |file: &str, text: &str| {
        let file = from.join("default").join(file);
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    };
    write("database", "hunter2");
    let script =
        "#!/bin/sh\ncat $SECRET_DB; echo\nstat -c %a $SECRET_DB\necho end\nexec sleep 1000\n";
    let mut spec = rig.script("secrets", script);
    spec["secrets"] = json!({"DB": {"file": "database"}});
    let open = || {
        let mut config = rig.host_config();
        config.secrets_dir = from.clone();
        std::sync::Arc::new(platctrl_agent::Host::open(config).unwrap())
    };
    let host = open();
    let (worker, told) = rig.worker(&host, want(1, &spec));
    let first = told.ready();
    assert_eq!(rig.said("end"), ["hunter2", "400"]);
    let paths = rig.layout().pod(&name());
    let given = paths.secrets().join("1/DB");
    assert_eq!(fs::read_to_string(&given).unwrap(), "hunter2");
    // Nothing on a disk holds it, and nothing that is told.
    for place in [paths.home().to_owned(), paths.state().to_owned()] {
        let found = std::process::Command::new("grep")
            .args(["-rl", "hunter2"])
            .arg(&place)
            .arg("--exclude-dir=log")
            .output()
            .unwrap();
        assert!(found.stdout.is_empty(), "{found:?}");
    }
    assert!(!format!("{:?}", told.ready()).contains("hunter"));
    // A new value comes with a restart that somebody asks for.
    write("database", "hunter4");
    let restart = platctrl_agent::Control::Restart {
        by: "test".into(),
        now: true,
    };
    worker.control(restart);
    let first = told.wait("another process", |it| {
        it.is_ready() && it.status.pids != first.status.pids
    });
    assert_eq!(fs::read_to_string(&given).unwrap(), "hunter4");
    // A name that the node does not have leaves what runs.
    spec["secrets"]["DB"]["file"] = "other".into();
    worker.order(want(2, &spec));
    let refused = told.wait("a refusal", |it| it.status.reason == "SecretMissing");
    assert_eq!(refused.status.pids, first.status.pids);
    write("other", "hunter3");
    worker.order(want(3, &spec));
    told.wait("the next version", |it| {
        it.is_ready() && it.observed_generation == 3
    });
    eventually("the older version's secrets to go", || {
        (!given.exists()).then_some(())
    });
    worker.order(tombstone(3, &spec));
    told.wait("the end", |report| report.phase.as_str() == "Gone");
    assert!(!paths.secrets().exists());
}

#[test]
fn a_fork_bomb_that_asked_for_nothing_is_held_by_its_own_group() {
    if !needs::root() {
        return;
    }
    let rig = Rig::new();
    let spec = rig.script("idle", "#!/bin/sh\nexec sleep 1000\n");
    let host = rig.host();
    let (_worker, told) = rig.worker(&host, want(1, &spec));
    let pid = told.ready().status.pids["web"];
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let Some(group) = groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let is_pids = fields
            .next()?
            .split(',')
            .any(|it| it == "pids" || it.is_empty());
        is_pids.then(|| fields.next()).flatten()
    }) else {
        needs::lacks("controller that counts processes");
        return;
    };
    let found = ["pids", "unified", ""].iter().find_map(|mount| {
        let base = Path::new("/sys/fs/cgroup").join(mount);
        fs::read_to_string(base.join(&group[1..]).join("pids.max")).ok()
    });
    match found {
        Some(limit) => assert_eq!(limit.trim(), "4096"),
        None => needs::lacks("controller that counts processes"),
    }
    kill(pid);
}

#[test]
fn limits_change_while_the_program_runs_and_no_process_is_started_again() {
    let rig = Rig::new();
    let mut spec = rig.spec(&rig.app("one"));
    spec["launchables"]["web"]["resources"] = json!({"memory": "256Mi", "pids": 64});
    let host = rig.host();
    let (worker, told) = rig.worker(&host, want(1, &spec));
    let first = told.ready();
    spec["launchables"]["web"]["resources"] = json!({"memory": "512Mi", "pids": 77, "cpu": "500m"});
    worker.order(want(2, &spec));
    let second = told.wait("the new limits", |it| it.observed_generation == 2);
    assert!(second.is_ready());
    assert_eq!(second.status.pids, first.status.pids);
    assert_eq!(second.status.restarts, 0);
    assert_eq!(told.events("Adjusted").len(), 1);
    // The program reads them where it did before.
    let limits = rig
        .layout()
        .pod(&name())
        .config(1)
        .join("resource_limits.yaml");
    let limits = fs::read_to_string(limits).unwrap();
    assert!(
        limits.contains("536870912") || limits.contains("512Mi"),
        "{limits}"
    );
    if needs::root() {
        match memory_limit(second.status.pids["web"]) {
            Some(limit) => assert_eq!(limit, 512 << 20),
            None => needs::lacks("controller of memory"),
        }
    }
    // Anything else is another version, with another process.
    spec["launchables"]["web"]["resources"]["memory"] = "512Mi".into();
    spec["launchables"]["web"]["env"] = json!({"A": "b"});
    worker.order(want(4, &spec));
    let last = told.wait("another version", |it| {
        it.is_ready() && it.observed_generation == 4
    });
    assert_ne!(last.status.pids, first.status.pids);
}

#[test]
fn a_limit_of_memory_below_what_is_in_use_is_refused_and_the_program_runs_on() {
    if !needs::root() {
        return;
    }
    let rig = Rig::new();
    let holds = "#!/bin/sh\nx=$(head -c 60000000 /dev/zero | tr '\\0' x)\necho end\nwhile :; do sleep 1000; done\n";
    let mut spec = rig.script("holds", holds);
    let resources = |memory: &str| json!({"memory": memory});
    spec["launchables"]["web"]["resources"] = resources("256Mi");
    let host = rig.host();
    let (worker, told) = rig.worker(&host, want(1, &spec));
    let first = told.ready();
    let pid = first.status.pids["web"];
    if memory_limit(pid).is_none() {
        needs::lacks("controller of memory");
        return;
    }
    rig.said("end");
    spec["launchables"]["web"]["resources"] = resources("16Mi");
    worker.order(want(2, &spec));
    told.wait("a refusal", |it| it.status.reason == "LimitRefused");
    assert_eq!(memory_limit(pid), Some(256 << 20));
    let runs = told.wait("its running on", Report::is_ready);
    assert_eq!(runs.status.pids, first.status.pids);
    assert_eq!(runs.status.restarts, 0);
    // More is not refused.
    spec["launchables"]["web"]["resources"] = resources("300Mi");
    worker.order(want(3, &spec));
    told.wait("the new limit", |it| it.observed_generation == 3);
    assert_eq!(memory_limit(pid), Some(300 << 20));
}

/// The limit of memory that is in force for a process.
fn memory_limit(pid: u32) -> Option<u64> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    for line in groups.lines() {
        let path = line.splitn(3, ':').nth(2)?;
        for (mount, file) in [
            ("memory", "memory.limit_in_bytes"),
            ("unified", "memory.max"),
            ("", "memory.max"),
        ] {
            let file = Path::new("/sys/fs/cgroup")
                .join(mount)
                .join(&path[1..])
                .join(file);
            if path.contains("/platctrl-")
                && let Ok(text) = fs::read_to_string(file)
            {
                return text.trim().parse().ok();
            }
        }
    }
    None
}

#[test]
fn what_a_node_names_is_fetched_in_advance_and_what_became_of_it_told() {
    use platctrl_framework::model::Digest;
    use platctrl_kinds::{Node, Prefetch};

    use crate::store::{Site, node_key};

    let site = Site::with(crate::rig::hasty());
    let (location, digest) = site.rig.app("one");
    let missing = Prefetch {
        location: format!("file:{}/none", site.rig.artifacts().display()),
        digest: Digest::of("none"),
    };
    let there = Prefetch { location, digest };
    let node = || {
        site.rig
            .block_on(site.client.get::<Node>(&node_key()))
            .unwrap()
    };
    let mut wanted = node();
    wanted.spec.prefetch = vec![missing.clone(), there];
    site.rig.block_on(site.client.update(&wanted)).unwrap();
    let told = site.wait("both", || {
        let told = node().status.detail.prefetched;
        (told.len() == 2).then_some(told)
    });
    assert_eq!(told[&digest.to_string()], "Installed");
    assert!(
        told[&missing.digest.to_string()].contains("does not exist"),
        "{told:?}"
    );
    let install = format!("installs/sha256-{}", digest.hex());
    assert!(
        site.rig
            .data_dir()
            .join(install)
            .join("bin/launch")
            .exists()
    );
    // What is not named any more is not told of any more.
    let mut none = node();
    none.spec.prefetch = Vec::new();
    site.rig.block_on(site.client.update(&none)).unwrap();
    site.wait("nothing", || {
        node().status.detail.prefetched.is_empty().then_some(())
    });
}
