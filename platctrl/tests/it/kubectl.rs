//! Foreign clients: two kubectls, years apart, against `platctrl up`. No Kubernetes anywhere.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::rig::{Rig, Said, eventually};

/// The programs of a tool, made available once.
fn tool(name: &'static str, place: &'static OnceLock<PathBuf>) -> &'static Path {
    place.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/tools");
        let output = Command::new(script).arg(name).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "scripts/tools {name}: {said}");
        let dir = String::from_utf8(output.stdout).unwrap();
        Path::new(dir.trim_end()).join("kubectl")
    })
}

fn old() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    tool("kubectl-1.20", &PLACE)
}

fn current() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    tool("kubectl-1.32", &PLACE)
}

/// A server, and a kubectl that knows nothing but its kubeconfig.
struct Cluster {
    rig: Rig,
    program: &'static Path,
}

impl Cluster {
    fn new(program: &'static Path) -> Self {
        let mut rig = Rig::new();
        rig.up_with(&["--listen", "127.0.0.1:0"]);
        let config = rig.cli(&["kubeconfig"]).ok();
        rig.write("kubeconfig", config);
        fs::create_dir(rig.path("home")).unwrap();
        rig.write("hello.yaml", manifest("hello", 0));
        Self { rig, program }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.program);
        command
            .args(args)
            .env("KUBECONFIG", self.rig.path("kubeconfig"))
            .env("HOME", self.rig.path("home"))
            .current_dir(self.rig.path(""))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Said {
        self.command(args).output().unwrap().into()
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        self.run(args).ok()
    }

    /// It fails and says this.
    #[track_caller]
    fn fails(&self, args: &[&str], part: &str) {
        let said = self.run(args);
        assert_ne!(said.code, Some(0), "{said:#?}");
        assert!(said.err.contains(part), "{part:?} is not in {said:#?}");
    }

    fn field(&self, path: &str) -> String {
        self.ok(&["get", "rc", "hello", "-o", &format!("jsonpath={{{path}}}")])
    }
}

fn manifest(name: &str, replicas: i32) -> String {
    format!(
        "\
apiVersion: platctrl.dev/v1
kind: ReplicationController
metadata:
  name: {name}
spec:
  replicas: {replicas}
  nodeSelector: \"*\"
  maxPerNode: 4
  template:
    metadata: {{ labels: {{ app: hello }} }}
    spec:
      app: hello
      launchables:
        web:
          type: hoist
          location: https://artifacts.example/hello.tar.gz
          digest: sha256:{}
",
        "9f2c".repeat(16)
    )
}

/// What both of them can do.
fn is_served_whole(program: &'static Path) {
    let cluster = Cluster::new(program);

    // Discovery, tables, and every output.
    let resources = cluster.ok(&["api-resources"]);
    for part in ["replicationcontrollers", "rc", "platctrl.dev/v1", "Pod"] {
        assert!(resources.contains(part), "{part} is not in {resources}");
    }
    let node = cluster.rig.app.as_str();
    let nodes = cluster.ok(&["get", "nodes"]);
    assert!(
        nodes.starts_with("NAME ") && nodes.contains("READY"),
        "{nodes}"
    );
    let wide = cluster.ok(&["get", "nodes", "-o", "wide"]);
    assert!(
        wide.contains("VERSION") && !nodes.contains("VERSION"),
        "{wide}"
    );
    assert_eq!(
        cluster.ok(&["get", "nodes", "-o", "name"]),
        format!("node.platctrl.dev/{node}\n")
    );
    for form in ["json", "yaml"] {
        let text = cluster.ok(&["get", "node", node, "-o", form]);
        assert!(text.contains("incarnation"), "{text}");
    }

    // Explain, from the schemas.
    let explained = cluster.ok(&["explain", "rc.spec.replicas"]);
    assert!(explained.contains("<integer>"), "{explained}");
    assert!(explained.contains("How many pods"), "{explained}");

    // Apply, three ways, and what is wrong with a manifest.
    let wrong = manifest("hello", 1).replace("replicas:", "replicaz:");
    cluster.rig.write("wrong.yaml", wrong);
    cluster.fails(&["apply", "-f", "wrong.yaml"], "replicaz");
    let named = "replicationcontroller.platctrl.dev/hello";
    let applied = |outcome: &str| {
        assert_eq!(
            cluster.ok(&["apply", "-f", "hello.yaml"]),
            format!("{named} {outcome}\n")
        );
    };
    applied("created");
    applied("unchanged");
    let changed = manifest("hello", 0).replace("maxPerNode: 4", "maxPerNode: 5");
    cluster.rig.write("changed.yaml", changed);
    let differs = cluster.run(&["diff", "-f", "changed.yaml"]);
    assert_eq!(differs.code, Some(1), "{differs:#?}");
    assert!(differs.out.contains("+  maxPerNode: 5"), "{differs:#?}");
    assert_eq!(
        cluster.field(".spec.maxPerNode"),
        "4",
        "a dry run changes nothing"
    );
    cluster.ok(&["apply", "-f", "changed.yaml"]);
    assert_eq!(cluster.field(".spec.maxPerNode"), "5");
    cluster.rig.write("other.yaml", manifest("other", 0));
    cluster.ok(&["create", "--dry-run=server", "-f", "other.yaml"]);
    cluster.ok(&["create", "-f", "other.yaml"]);
    cluster.fails(&["create", "-f", "other.yaml"], "already exists");

    // Each patch, and an editor.
    cluster.ok(&[
        "patch",
        "rc",
        "hello",
        "--type=merge",
        "-p",
        r#"{"spec":{"maxPerNode":2}}"#,
    ]);
    assert_eq!(cluster.field(".spec.maxPerNode"), "2");
    let operations = r#"[{"op":"test","path":"/spec/maxPerNode","value":2},{"op":"replace","path":"/spec/maxPerNode","value":3}]"#;
    cluster.ok(&["patch", "rc", "hello", "--type=json", "-p", operations]);
    assert_eq!(cluster.field(".spec.maxPerNode"), "3");
    cluster.fails(
        &["patch", "rc", "hello", "--type=json", "-p", operations],
        "invalid",
    );
    let editor = cluster.rig.write(
        "editor",
        "#!/bin/sh\nsed -i 's/maxPerNode: .*/maxPerNode: 7/' \"$1\"\n",
    );
    fs::set_permissions(&editor, fs::Permissions::from_mode(0o755)).unwrap();
    let edited = cluster
        .command(&["edit", "rc", "hello"])
        .env("KUBE_EDITOR", &editor)
        .output()
        .unwrap();
    Said::from(edited).ok();
    assert_eq!(cluster.field(".spec.maxPerNode"), "7");
    cluster.ok(&["replace", "-f", "hello.yaml"]);
    assert_eq!(cluster.field(".spec.maxPerNode"), "4");

    // Labels, annotations, selectors, scale, wait.
    cluster.ok(&["label", "rc", "hello", "tier=front"]);
    cluster.ok(&["annotate", "rc", "hello", "note=by hand"]);
    let listed = |selector: &str| cluster.ok(&["get", "rc", "-l", selector, "-o", "name"]);
    assert_eq!(listed("tier=front"), format!("{named}\n"));
    assert_eq!(listed("tier=back"), "");
    cluster.ok(&["scale", "rc", "hello", "--replicas=0"]);
    cluster.ok(&[
        "wait",
        "rc/hello",
        "--for=condition=Available",
        "--timeout=60s",
    ]);
    let described = cluster.ok(&["describe", "rc", "hello"]);
    assert!(described.contains("tier=front"), "{described}");

    // A watch tells what comes, as rows.
    let seen = cluster.rig.path("watched");
    let mut watch = cluster
        .command(&["get", "rc", "-w"])
        .stdout(fs::File::create(&seen).unwrap())
        .spawn()
        .unwrap();
    let shows = |part: &str| {
        fs::read_to_string(&seen)
            .unwrap()
            .contains(part)
            .then_some(())
    };
    eventually("what is there", || shows("other"));
    cluster.rig.write("late.yaml", manifest("latecomer", 0));
    cluster.ok(&["create", "-f", "late.yaml"]);
    eventually("what came", || shows("latecomer"));
    watch.kill().unwrap();
    watch.wait().unwrap();

    let gone = cluster.ok(&["delete", "rc", "hello", "other", "latecomer"]);
    assert!(gone.contains("\"hello\" deleted"), "{gone}");
    assert_eq!(cluster.ok(&["get", "rc", "-o", "name"]), "");
    cluster.fails(&["get", "rc", "hello"], "not found");
}

/// Applying on the server's side: owners, conflicts, force.
fn is_applied_on_the_server(program: &'static Path) {
    let cluster = Cluster::new(program);
    let named = "replicationcontroller.platctrl.dev/hello";
    let apply = ["apply", "--server-side", "-f", "hello.yaml"];
    let said = cluster.ok(&apply);
    assert_eq!(said, format!("{named} serverside-applied\n"));
    assert_eq!(
        cluster.field(".metadata.managedFields[*].manager"),
        "kubectl"
    );
    assert_eq!(
        cluster.field(".metadata.managedFields[*].operation"),
        "Apply"
    );
    assert_eq!(cluster.ok(&apply), said);
    let version = cluster.field(".metadata.resourceVersion");

    // Somebody else sets a field: it is theirs, and they are named.
    let patch = r#"{"spec":{"maxPerNode":9}}"#;
    let by = [
        "patch",
        "rc",
        "hello",
        "--type=merge",
        "--field-manager=ann",
        "-p",
        patch,
    ];
    cluster.ok(&by);
    assert_ne!(cluster.field(".metadata.resourceVersion"), version);
    cluster.fails(&apply, ".spec.maxPerNode");
    cluster.fails(&apply, "\"ann\"");
    assert_eq!(cluster.field(".spec.maxPerNode"), "9");
    let tried = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--dry-run=server",
        "-f",
        "hello.yaml",
    ];
    cluster.ok(&tried);
    assert_eq!(cluster.field(".spec.maxPerNode"), "9");
    cluster.ok(&[
        "apply",
        "--server-side",
        "--force-conflicts",
        "-f",
        "hello.yaml",
    ]);
    assert_eq!(cluster.field(".spec.maxPerNode"), "4");
    assert_eq!(
        cluster.field(".metadata.managedFields[*].manager"),
        "kubectl"
    );

    // Another manager's fields, and what it leaves out later. An old kubectl checks by itself, and
    // takes only whole objects then.
    let text = "apiVersion: platctrl.dev/v1\nkind: ReplicationController\nmetadata: {name: hello, labels: {team: a}}\n";
    cluster.rig.write("label.yaml", text);
    let other = [
        "apply",
        "--server-side",
        "--field-manager=team",
        "--validate=false",
        "-f",
        "label.yaml",
    ];
    cluster.ok(&other);
    assert_eq!(cluster.field(".metadata.labels.team"), "a");
    cluster
        .rig
        .write("label.yaml", text.replace(", labels: {team: a}", ""));
    cluster.ok(&other);
    assert_eq!(cluster.field(".metadata.labels.team"), "");

    // What was applied on the client's side goes over without a conflict.
    cluster.rig.write("moved.yaml", manifest("moved", 0));
    cluster.ok(&["apply", "-f", "moved.yaml"]);
    let next = manifest("moved", 0).replace("maxPerNode: 4", "maxPerNode: 6");
    cluster.rig.write("moved.yaml", next);
    cluster.ok(&["apply", "--server-side", "-f", "moved.yaml"]);
    let most = ["get", "rc", "moved", "-o", "jsonpath={.spec.maxPerNode}"];
    assert_eq!(cluster.ok(&most), "6");
    let diff = cluster.run(&["diff", "--server-side", "-f", "moved.yaml"]);
    assert_eq!(diff.code, Some(0), "{diff:#?}");
}

/// Every output, selection and order; lists in pages; deletes in each way.
fn is_read_in_every_form(program: &'static Path) {
    let cluster = Cluster::new(program);
    for name in ["a", "b", "c", "d", "e"] {
        cluster.rig.write("one.yaml", manifest(name, 0));
        cluster.ok(&["create", "-f", "one.yaml"]);
        cluster.ok(&["label", "rc", name, &format!("rank=r{name}")]);
    }
    let names = |more: &[&str]| {
        let said = cluster.ok(&[&["get", "rc", "-o", "name"], more].concat());
        let names = said.lines().map(|line| {
            let (_, name) = line.rsplit_once('/').unwrap();
            name.to_owned()
        });
        names.collect::<Vec<_>>().join(" ")
    };
    // Each page is a request of its own.
    assert_eq!(names(&["--chunk-size=2"]), "a b c d e");
    assert_eq!(names(&["-A"]), "a b c d e");
    assert_eq!(names(&["--sort-by=.metadata.name"]), "a b c d e");
    assert_eq!(names(&["-l", "rank in (rb,rd)"]), "b d");
    assert_eq!(names(&["--field-selector=metadata.name!=c"]), "a b d e");
    assert_eq!(
        names(&["-l", "rank", "--field-selector=metadata.name=e"]),
        "e"
    );

    let get = |more: &[&str]| cluster.ok(&[&["get", "rc"], more].concat());
    let list: serde_json::Value = serde_json::from_str(&get(&["-o", "json"])).unwrap();
    assert_eq!(list["kind"], "List");
    assert_eq!(list["items"].as_array().unwrap().len(), 5);
    assert!(get(&["-o", "yaml"]).contains("kind: ReplicationController"));
    let path = "{range .items[*]}{.metadata.name}={.spec.maxPerNode};{end}";
    let all = "a=4;b=4;c=4;d=4;e=4;";
    assert_eq!(get(&["-o", &format!("jsonpath={path}")]), all);
    cluster.rig.write("path", path);
    assert_eq!(get(&["-o", "jsonpath-file=path"]), all);
    let template = "{{range .items}}{{.metadata.name}}={{.spec.maxPerNode}};{{end}}";
    assert_eq!(get(&["-o", &format!("go-template={template}")]), all);
    cluster.rig.write("template", template);
    assert_eq!(get(&["-o", "go-template-file=template"]), all);
    let columns = "RC:.metadata.name,MOST:.spec.maxPerNode";
    let shown = get(&["-o", &format!("custom-columns={columns}")]);
    assert_eq!(shown.lines().count(), 6, "{shown}");
    assert!(shown.starts_with("RC    MOST\na     4\n"), "{shown}");
    cluster
        .rig
        .write("columns", "RC MOST\n.metadata.name .spec.maxPerNode\n");
    assert_eq!(get(&["-o", "custom-columns-file=columns"]), shown);
    let bare = get(&["--no-headers"]);
    assert_eq!(bare.lines().count(), 5, "{bare}");
    assert!(get(&["--show-labels"]).contains("rank=ra"));
    assert!(get(&["-L", "rank"]).contains("RANK"));
    let everywhere = get(&["-A", "-o", "wide"]);
    assert!(everywhere.starts_with("NAMESPACE "), "{everywhere}");
    let node = format!("node/{}", cluster.rig.app);
    let both = cluster.ok(&["get", "rc/a", &node]);
    assert!(
        both.contains("replicationcontroller.platctrl.dev/a"),
        "{both}"
    );
    assert_eq!(cluster.ok(&["get", "rc", "x", "--ignore-not-found"]), "");
    cluster.ok(&["get", "events"]);
    assert!(
        cluster
            .ok(&["get", "--raw", "/apis"])
            .contains("platctrl.dev")
    );
    assert!(cluster.ok(&["api-versions"]).contains("platctrl.dev/v1"));
    assert!(cluster.ok(&["version"]).contains("Server Version"));
    let fields = cluster.ok(&["explain", "rc.spec.template", "--recursive"]);
    assert!(fields.contains("launchables"), "{fields}");

    // Labels and annotations are set, replaced and taken away; and what is not to be, is not.
    cluster.fails(&["label", "rc", "a", "rank=other"], "overwrite");
    cluster.ok(&["label", "rc", "a", "rank=other", "--overwrite"]);
    cluster.ok(&["label", "rc", "b", "rank-"]);
    assert_eq!(names(&["-l", "!rank"]), "b");
    cluster.ok(&["annotate", "rc", "--all", "note=x"]);
    cluster.ok(&["annotate", "rc", "a", "note-"]);
    let noted = "jsonpath={.items[?(@.metadata.annotations.note)].metadata.name}";
    assert_eq!(get(&["-o", noted]), "b c d e");
    let strategic = ["patch", "rc", "a", "-p", r#"{"spec":{"maxPerNode":2}}"#];
    assert_ne!(cluster.run(&strategic).code, Some(0), "no such patch");
    let expects = ["scale", "rc", "a", "--current-replicas=3", "--replicas=1"];
    cluster.fails(&expects, "3");

    // Deletes.
    cluster.ok(&["delete", "rc", "a", "--dry-run=server"]);
    assert_eq!(names(&[]), "a b c d e");
    for (name, cascade) in [("a", "orphan"), ("b", "background"), ("c", "foreground")] {
        cluster.ok(&["delete", "rc", name, &format!("--cascade={cascade}")]);
    }
    cluster.ok(&["delete", "rc", "-l", "rank=rd"]);
    assert_eq!(names(&[]), "e");
    cluster.ok(&["delete", "rc", "--all"]);
    assert_eq!(names(&[]), "");
}

#[test]
fn kubectl_1_20_reads_in_every_form() {
    is_read_in_every_form(old());
}

#[test]
fn kubectl_1_32_reads_in_every_form() {
    is_read_in_every_form(current());
}

/// What only a newer kubectl can.
#[test]
fn kubectl_1_32_uses_subresources_and_waits_for_fields() {
    let cluster = Cluster::new(current());
    cluster.ok(&["apply", "-f", "hello.yaml"]);
    let scale = r#"{"spec":{"replicas":0}}"#;
    let by = [
        "patch",
        "rc",
        "hello",
        "--subresource=scale",
        "--type=merge",
        "-p",
        scale,
    ];
    cluster.ok(&by);
    let shown = cluster.ok(&["get", "rc", "hello", "--subresource=scale", "-o", "json"]);
    assert!(shown.contains("\"kind\": \"Scale\""), "{shown}");
    let shown = cluster.ok(&["get", "rc", "hello", "--subresource=status", "-o", "yaml"]);
    assert!(shown.contains("kind: ReplicationController"), "{shown}");
    cluster.ok(&[
        "wait",
        "rc/hello",
        "--for=jsonpath={.status.replicas}=0",
        "--timeout=60s",
    ]);
    cluster.ok(&["delete", "rc", "hello"]);
    cluster.ok(&["wait", "rc/hello", "--for=delete", "--timeout=60s"]);
}

#[test]
fn kubectl_1_20_applies_on_the_server() {
    is_applied_on_the_server(old());
}

#[test]
fn kubectl_1_32_applies_on_the_server() {
    is_applied_on_the_server(current());
}

#[test]
fn kubectl_1_20_is_served_whole() {
    is_served_whole(old());
}

#[test]
fn kubectl_1_32_is_served_whole() {
    is_served_whole(current());
}
