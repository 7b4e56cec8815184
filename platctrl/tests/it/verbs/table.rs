//! The rows: each verb as somebody writes it.

/// What a verb needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Does {
    /// It asks a server.
    Asks,
    /// It has a server change something.
    Orders,
    /// It works without a server, on what is on this machine.
    Here,
    /// It works without a server.
    Alone,
}

/// A verb, its arguments, and how it ends where nothing is wrong. `RC`, `POD` and `NODE` stand for
/// objects, `AREA` for the test's directory.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) verb: &'static str,
    pub(super) arguments: &'static str,
    pub(super) does: Does,
    /// The exit codes where all is well.
    pub(super) well: &'static [i32],
    /// It only looks for what is there, so that a name of nothing is none that is wrong.
    pub(super) any_name: bool,
}

impl Row {
    pub(super) fn names_an_object(&self) -> bool {
        let objects = ["RC", "POD", "NODE"];
        self.arguments
            .split(' ')
            .any(|word| objects.contains(&word))
    }

    /// Its exit code is an answer, and its output says the rest.
    pub(super) fn tells_by_its_code(&self) -> bool {
        matches!(self.verb, "doctor" | "diff")
    }
}

const fn row(verb: &'static str, arguments: &'static str, does: Does) -> Row {
    Row {
        verb,
        arguments,
        does,
        well: &[0],
        any_name: false,
    }
}

const fn ends(
    verb: &'static str,
    arguments: &'static str,
    does: Does,
    well: &'static [i32],
) -> Row {
    Row {
        verb,
        arguments,
        does,
        well,
        any_name: false,
    }
}

use Does::{Alone, Asks, Here, Orders};

/// Verbs that run until they are stopped, which have tests of their own.
pub(super) const STAY: [&str; 5] = ["up", "server", "controllers", "agent", "launch"];

pub(super) const ROWS: &[Row] = &[
    row("get", "RC", Asks),
    row("get", "RC -o json", Asks),
    row(
        "get",
        "pods -A -o wide --sort-by .metadata.name -l app=hello --field-selector metadata.namespace=default",
        Asks,
    ),
    row("describe", "POD", Asks),
    row("explain", "rc.spec.template", Asks),
    Row {
        any_name: true,
        ..row("events", "RC", Asks)
    },
    row("logs", "POD --tail 1", Asks),
    row("top nodes", "", Asks),
    row("top pods", "-A", Asks),
    row("wait", "POD --for condition=Ready --timeout 60s", Asks),
    row("audit", "--limit 3", Asks),
    row("diff", "-f doomed.yaml", Asks),
    row("rollout status", "RC --timeout 60s", Asks),
    row("rollout history", "RC", Asks),
    row("failsafe list", "", Asks),
    row("token list", "", Asks),
    row("apply", "-f doomed.yaml", Orders),
    row("scale", "RC --replicas 2", Orders),
    row("label", "RC a=b --overwrite", Orders),
    row("annotate", "RC a=b --overwrite", Orders),
    row("edit", "RC", Orders),
    row("rollout start", "rc/help -f new.yaml --dry-run", Orders),
    ends("rollout start", "RC -f new.yaml", Orders, &[6]),
    row("rollout pause", "RC", Orders),
    row("rollout resume", "RC", Orders),
    ends("rollout promote", "RC", Orders, &[6]),
    row("rollout undo", "RC", Orders),
    row("rollout cancel", "RC", Orders),
    row("delete", "rc/doomed --grace 3600", Orders),
    row("delete", "RC --grace 3600", Orders),
    ends("undelete", "RC", Orders, &[0, 6]),
    row("cordon", "NODE", Orders),
    row("uncordon", "NODE", Orders),
    row("drain", "NODE --dry-run", Asks),
    row("node cordon", "NODE", Orders),
    row("node uncordon", "NODE", Orders),
    row("node drain", "NODE --dry-run", Asks),
    ends("node retire", "NODE", Orders, &[6]),
    row("failsafe reset", "--all", Orders),
    ends("failsafe adopt", "rc/none", Orders, &[5]),
    ends("failsafe remove", "rc/none", Orders, &[5]),
    row("freeze", "--reason test", Orders),
    row("thaw", "", Orders),
    row("token create", "somebody --role viewer", Orders),
    row("token delete", "somebody", Orders),
    row("store backup", "AREA/saved", Orders),
    row("store compact", "", Orders),
    row("kubeconfig", "", Alone),
    ends(
        "node admit",
        "web9 --store etcd://127.0.0.1:1/x",
        Alone,
        &[3],
    ),
    ends(
        "node revoke",
        "web9 --store etcd://127.0.0.1:1/x",
        Alone,
        &[3],
    ),
    row("ca init", "--tls-dir AREA/tls", Alone),
    row("ca issue", "ann --tls-dir AREA/tls -o AREA", Alone),
    row("store init", "embedded:AREA/own", Alone),
    row("store info", "embedded:AREA/own", Alone),
    row("store check", "embedded:AREA/own", Alone),
    ends(
        "store restore",
        "AREA/none embedded:AREA/restored",
        Alone,
        &[1, 5],
    ),
    row(
        "store copy",
        "embedded:AREA/own embedded:AREA/copied",
        Alone,
    ),
    row("store unseal", "embedded:AREA/own", Alone),
    row("store restored", "embedded:AREA/own", Alone),
    row("store policy", "etcd://127.0.0.1:1/x --role server", Alone),
    row("hoist build", "AREA/hello.d -o AREA/again.tar.gz", Alone),
    row("hoist inspect", "AREA/hello.tar.gz", Alone),
    row("hoist verify", "AREA/hello.tar.gz", Alone),
    ends("sign", "AREA/none.yaml", Alone, &[5]),
    ends(
        "verify",
        "AREA/hello.tar.gz --keys AREA/trusted.asc",
        Alone,
        &[1],
    ),
    ends("run-hooks", "nope before_launch", Alone, &[5]),
    ends("uninstall", "--data-dir AREA/data", Alone, &[2]),
    row("node inspect", "", Alone),
    // Before what ends the pod's processes, this one with them.
    row("exec", "POD -- true", Here),
    row("restart", "POD --now", Here),
    row("stop", "POD --now", Here),
    row("start", "POD", Here),
    row("config show", "", Alone),
    row("config contexts", "", Alone),
    row("config set", "another -n web", Alone),
    row("config use", "another", Alone),
    row("config delete", "another", Alone),
    row("debug bundle", "-o -", Alone),
    ends("doctor", "", Alone, &[0, 1]),
    row("version", "", Alone),
    row("completion", "bash", Alone),
];
