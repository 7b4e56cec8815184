//! What a person sees in the first minutes.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::mpsc;

use crate::rig::{Pod, Rig, eventually, is_alive, kill, processes_of};

const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

#[test]
fn the_quickstart_comes_up_and_answers_over_tcp() {
    let mut rig = Rig::new();
    rig.quickstart_artifact().manifest(2, |text| text);
    rig.up_with(&["-f", "hello.yaml", "--wait"]);
    let pods = rig.ready(2);
    for pod in &pods {
        let answer = pod.answer().unwrap();
        assert!(
            answer.starts_with(&format!("hi from pod {} on node {}", pod.name, rig.app)),
            "{answer}"
        );
    }
    let log = eventually("URLs on the terminal", || {
        Some(rig.log()).filter(|log| log.contains("URL"))
    });
    for pod in &pods {
        assert!(
            log.contains(&format!("http://127.0.0.1:{}", pod.port)),
            "{log}"
        );
    }
    assert_eq!(rig.json(&["get", "rc/hello"])["status"]["readyReplicas"], 2);
    assert_eq!(
        rig.cli(&["apply", "-f", "hello.yaml"]).ok(),
        "replicationcontroller/hello unchanged\n"
    );
    let table = rig.cli(&["get", "pods"]).ok();
    assert!(
        table.starts_with("NAME") && table.lines().count() == 3,
        "{table}"
    );
    let described = rig.cli(&["describe", "rc/hello"]).ok();
    for part in ["2 of 2 pods are ready", "created pod", &pods[0].name] {
        assert!(described.contains(part), "{part} is not in {described}");
    }
    rig.cli(&["wait", "rc/hello", "--for", "condition=Available"])
        .ok();
    assert!(rig.end_up(SIGINT).success());
    let log = rig.log();
    assert!(
        log.contains("2 pods keep running") && log.contains("uninstall --data-dir"),
        "{log}"
    );
    assert!(pods.iter().all(|pod| pod.answer().is_some()));
}

#[test]
fn a_controller_is_scaled_up_and_down() {
    let rig = Rig::running();
    rig.quickstart_artifact()
        .manifest(2, |text| text.replace("maxPerNode: 200", "maxPerNode: 3"));
    rig.cli(&["apply", "-f", "hello.yaml"]).ok();
    rig.ready(2);
    assert_eq!(
        rig.cli(&["scale", "rc/hello", "--replicas", "3"]).ok(),
        "replicationcontroller/hello scaled\n"
    );
    assert!(rig.ready(3).iter().all(|pod| pod.answer().is_some()));
    let beyond = rig.cli(&["scale", "rc", "hello", "--replicas", "6"]);
    assert!(
        beyond.err.contains("no place for 3 pods") && beyond.err.contains("maxPerNode"),
        "{beyond:#?}"
    );
    beyond.ok();
    rig.cli(&["scale", "rc", "hello", "--replicas", "1"]).ok();
    rig.ready(1);
}

#[test]
fn a_killed_program_is_back_and_describe_says_so() {
    let rig = Rig::running();
    let pod = rig.quickstart(1).remove(0);
    kill(pod.pid, SIGKILL);
    let back = eventually("the program's return", || {
        rig.ready(1)
            .into_iter()
            .find(|now| now.pid != pod.pid && now.answer().is_some())
    });
    assert_eq!(
        (&back.name, back.port),
        (&pod.name, pod.port),
        "it is the same pod"
    );
    assert!(!is_alive(pod.pid));
    let described = eventually("a description that says so", || {
        let text = rig.cli(&["describe", &format!("pod/{}", pod.name)]).ok();
        text.contains("by signal 9").then_some(text)
    });
    assert!(described.contains("restarts: 1"), "{described}");
}

#[test]
fn pods_serve_on_when_platctrl_is_killed_and_are_found_again() {
    let mut rig = Rig::running();
    let pods = rig.quickstart(2);
    rig.end_up(SIGKILL);
    assert!(
        pods.iter().all(|pod| pod.answer().is_some()),
        "they run without it"
    );
    rig.cli(&["get", "pods"])
        .fails(3, &["no platctrl runs at", "platctrl up"]);
    rig.up();
    // A third pod shows that the agent works again, and so that it has looked at the others.
    rig.cli(&["scale", "rc/hello", "--replicas", "3"]).ok();
    let now = rig.ready(3);
    for pod in &pods {
        assert!(
            now.contains(pod),
            "the same process on the same port: {now:#?}"
        );
        assert!(pod.answer().unwrap().contains(&format!("pid {}", pod.pid)));
    }
}

#[test]
fn after_a_power_cut_everything_comes_back() {
    let mut rig = Rig::running();
    let pods = rig.quickstart(2);
    rig.end_up(SIGKILL);
    eventually("the end of everything", || {
        let left = processes_of(&rig.data_dir());
        left.iter().for_each(|pid| kill(*pid, SIGKILL));
        left.is_empty().then_some(())
    });
    assert!(
        pods.iter().all(|pod| pod.answer().is_none()),
        "nothing runs any more"
    );
    let before = rig.log().len();
    rig.up_with(&["--wait"]);
    let said = eventually("URLs on the terminal", || {
        Some(rig.log().split_off(before)).filter(|log| log.contains("URL"))
    });
    for pod in rig.ready(2) {
        assert!(pod.answer().is_some(), "it was said to be ready: {said}");
    }
    // Until the agent has looked, the last report is from before the cut.
    let back = eventually("new processes that answer", || {
        let back = rig.ready(2);
        let is_new =
            |pod: &Pod| !pods.iter().any(|old| old.pid == pod.pid) && pod.answer().is_some();
        back.iter().all(is_new).then_some(back)
    });
    let names = |pods: &[Pod]| pods.iter().map(|pod| pod.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&back), names(&pods));
}

#[test]
fn a_cascading_delete_leaves_nothing_and_a_plain_one_keeps_the_pods() {
    let rig = Rig::running();
    let pods = rig.quickstart(2);
    let said = rig.cli(&["delete", "rc/hello", "--wait"]);
    assert!(said.err.contains("kept"), "{said:?}");
    said.ok();
    assert_eq!(rig.ready(2), pods, "orphans go on");
    for pod in &pods {
        rig.cli(&["delete", "pod", &pod.name, "--wait", "--grace", "5"])
            .ok();
        assert!(!is_alive(pod.pid));
    }
    rig.cli(&["apply", "-f", "hello.yaml"]).ok();
    let pods = rig.ready(2);
    assert_eq!(
        rig.cli(&["delete", "-f", "hello.yaml", "--cascade", "--wait"])
            .ok(),
        "replicationcontroller/hello deleted\n"
    );
    eventually("the end of the pods", || {
        rig.pods().is_empty().then_some(())
    });
    assert!(pods.iter().all(|pod| !is_alive(pod.pid)));
    assert_eq!(processes_of(&rig.data_dir()), Vec::<u32>::new());
    rig.cli(&["delete", "rc/hello"])
        .fails(5, &["there is no replicationcontroller/hello"]);
    rig.cli(&["delete", "rc/hello", "--ignore-not-found"]).ok();
}

#[test]
fn logs_are_shown_and_followed() {
    let rig = Rig::running();
    let pod = rig.quickstart(1).remove(0);
    let name = format!("pod/{}", pod.name);
    let text = rig.cli(&["logs", &name]).ok();
    assert!(text.contains("listening on"), "{text}");
    assert_eq!(
        rig.cli(&["logs", &name, "--tail", "1", "--launchable", "web"])
            .ok()
            .lines()
            .count(),
        1
    );
    rig.cli(&["logs", &name, "--launchable", "nope"])
        .fails(1, &["nope", "web"]);
    let mut follow = rig.command(&["logs", "-f", "--tail", "0", &name]);
    let mut follow = follow.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let (seen, line) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        lines
            .map_while(Result::ok)
            .for_each(|line| drop(seen.send(line)));
    });
    // It may not follow yet when the first answer is given.
    eventually("the line of an answer", || {
        pod.answer().unwrap();
        line.try_iter()
            .any(|line| line.contains("Get / 200"))
            .then_some(())
    });
    follow.kill().unwrap();
    follow.wait().unwrap();
    reader.join().unwrap();
}

#[test]
fn labels_are_set_removed_and_not_overwritten_by_chance() {
    let rig = Rig::running();
    let node = format!("node/{}", rig.app);
    assert_eq!(
        rig.cli(&["label", &node, "az=east", "role=web"]).ok(),
        format!("{node} labeled\n")
    );
    assert_eq!(
        rig.cli(&["label", &node, "az=east"]).ok(),
        format!("{node} unchanged\n")
    );
    rig.cli(&["label", &node, "az=west"])
        .fails(6, &["az=east", "--overwrite"]);
    rig.cli(&["label", "--overwrite", &node, "az=west", "role-"])
        .ok();
    assert_eq!(
        rig.json(&["get", &node])["metadata"]["labels"],
        serde_json::json!({"az": "west"})
    );
    assert_eq!(
        rig.cli(&["get", "nodes", "-l", "az=west", "-o", "name"])
            .ok(),
        format!("{node}\n")
    );
    assert_eq!(
        rig.cli(&["get", "nodes", "-l", "az=east", "-o", "name"])
            .ok(),
        ""
    );
}

#[test]
fn what_has_the_same_labels_is_labeled_and_deleted_together() {
    let rig = Rig::running();
    let budget = |name: &str, tier: &str| {
        let labels = format!("metadata: {{ name: {name}, labels: {{ tier: {tier} }} }}\n");
        let spec = "spec: { podSelector: \"app=a\", minimumHealthy: 1 }\n";
        format!("apiVersion: platctrl.dev/v1\nkind: DisruptionBudget\n{labels}{spec}---\n")
    };
    let all = [budget("a", "web"), budget("b", "web"), budget("c", "db")].concat();
    rig.write("budgets.yaml", &all);
    rig.cli(&["apply", "-f", "budgets.yaml"]).ok();
    let names = |selector: &str| {
        let said = rig.cli(&["get", "disruptionbudgets", "-l", selector, "-o", "name"]);
        said.ok().replace("disruptionbudget/", "")
    };
    rig.cli(&["label", "disruptionbudget/b", "team=x"]).ok();
    // One of them may not be changed, so none is.
    let label = ["label", "disruptionbudgets", "-l", "tier=web", "team=y"];
    rig.cli(&label)
        .fails(6, &["disruptionbudget/b", "team=x", "--overwrite"]);
    assert_eq!(names("team=y"), "");
    let said = rig.cli(&[&label[..], &["--overwrite"]].concat()).ok();
    assert_eq!(
        said,
        "disruptionbudget/a labeled\ndisruptionbudget/b labeled\n"
    );
    assert_eq!(names("team=y"), "a\nb\n");

    let delete = ["delete", "disruptionbudgets", "-l"];
    rig.cli(&[&delete[..], &["tier=none"]].concat())
        .fails(5, &["with these labels", "hint:"]);
    rig.cli(&[&delete[..], &["tier=none", "--ignore-not-found"]].concat())
        .ok();
    // Nothing chooses everything by chance, and a selection has no names.
    rig.cli(&[&delete[..], &[""]].concat())
        .fails(2, &["--selector"]);
    rig.cli(&["delete", "disruptionbudget", "c", "-l", "tier=web"])
        .fails(2, &["exclude each other"]);
    let said = rig.cli(&[&delete[..], &["team=y", "--wait"]].concat()).ok();
    assert_eq!(
        said,
        "disruptionbudget/a deleted\ndisruptionbudget/b deleted\n"
    );
    assert_eq!(names("tier"), "c\n");
}

#[test]
fn a_watch_prints_what_changes() {
    let rig = Rig::running();
    let mut watch = rig.command(&["get", "rc", "-w", "-o", "name"]);
    let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    rig.quickstart_artifact().manifest(1, |text| text);
    rig.cli(&["apply", "-f", "hello.yaml"]).ok();
    assert_eq!(
        lines.next().unwrap().unwrap(),
        "replicationcontroller/hello"
    );
    // Whoever reads has had enough: no complaint.
    drop(lines);
    rig.cli(&["scale", "rc/hello", "--replicas", "0"]).ok();
    let status = eventually("the end of the watch", || {
        rig.cli(&[
            "label",
            "rc/hello",
            "--overwrite",
            &format!("a=b{}", std::process::id()),
        ]);
        rig.cli(&["label", "rc/hello", "a-"]);
        watch.try_wait().unwrap()
    });
    assert!(status.success(), "{status}");
}

#[test]
fn a_pod_is_launched_without_a_server() {
    let rig = Rig::new();
    rig.quickstart_artifact().manifest(5, |text| text);
    let dir = rig.path("local");
    rig.write(
        "bad.yaml",
        "apiVersion: platctrl.dev/v1\nkind: Pod\nmetadata: {name: a}\nspec: {launchablse: {}}\n",
    );
    rig.cli(&[
        "launch",
        "--local",
        "bad.yaml",
        "--data-dir",
        dir.to_str().unwrap(),
    ])
    .fails(
        1,
        &["bad.yaml:4: spec.launchablse: unknown field; did you mean `launchables`?"],
    );
    assert!(!dir.exists(), "nothing was begun");
    let args = [
        "launch",
        "--local",
        "hello.yaml",
        "--data-dir",
        dir.to_str().unwrap(),
    ];
    let mut child = rig.command(&args).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let ready = lines
        .by_ref()
        .map(Result::unwrap)
        .find(|line| line.contains(", ready http://"))
        .unwrap();
    let port = ready.rsplit(':').next().unwrap().parse().unwrap();
    assert!(
        crate::rig::http(port, "/")
            .unwrap()
            .starts_with("hi from pod hello")
    );
    kill(child.id(), SIGTERM);
    let mut rest = String::new();
    lines
        .map_while(Result::ok)
        .for_each(|line| rest.push_str(&line));
    assert!(child.wait().unwrap().success(), "{rest}");
    assert!(crate::rig::http(port, "/").is_none());
    assert_eq!(processes_of(&dir), Vec::<u32>::new());
}
