//! Three machines, each in a network namespace of its own: etcd, the server and the controllers on
//! the first, pods on the other two. What people ask of a pod goes to whichever machine it is on.

mod fleet;
mod impostor;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdout, Stdio};

use serde_json::Value;

use crate::fleet::{SIGKILL, SIGTERM};
use crate::rig::{Rig, eventually, is_alive};
use fleet::{Fleet, PORT};

/// A client whose output is read as it comes. It ends with its test.
struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Running {
    fn of(mut command: std::process::Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line
    }

    fn say(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How many bytes a process has written.
fn written(pid: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.unwrap().parse().unwrap()
}

#[test]
fn logs_commands_and_usage_come_from_whichever_machine_a_pod_is_on() {
    let Some(fleet) = Fleet::new() else { return };
    let client = fleet.client("admin");
    let pods = fleet.pods();
    for (number, pod) in pods.iter().enumerate() {
        let node = fleet.node(number + 1);
        eventually("the log", || {
            let said = client.cli(&["logs", pod]);
            (said.out == format!("begin on {node}\n")).then_some(())
        });
        let said = client.cli(&["exec", pod, "--", "sh", "-c", "echo $NODE_NAME $POD_NAME"]);
        assert_eq!(said.ok(), format!("{node} {pod}\n"));
    }

    // What is written later comes to those who follow, and standard input to the command.
    let pod = pods[0].as_str();
    let mut followed = Running::of(client.command(&["logs", "-f", pod]));
    assert_eq!(followed.line(), format!("begin on {}\n", fleet.node(1)));
    let feed = ["exec", "-i", pod, "--", "sh", "-c", "cat >> \"$HOME/feed\""];
    client.cli_with(&feed, b"one\ntwo\n").ok();
    assert_eq!(
        (followed.line(), followed.line()),
        ("one\n".into(), "two\n".into())
    );
    drop(followed);

    // The command's streams and its end are those of the client.
    let said = client.cli(&[
        "exec",
        pod,
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 3",
    ]);
    assert_eq!(
        (said.code, said.out.as_str(), said.err.as_str()),
        (Some(3), "out\n", "err\n")
    );
    let said = client.cli(&["exec", pod, "--", "sh", "-c", "kill -9 $$"]);
    assert_eq!((said.code, said.out.as_str()), (Some(137), ""));
    client
        .cli(&["exec", pod, "--", "no-such-command"])
        .fails(127, &["no-such-command"]);
    let much = vec![b'x'; 3_000_000];
    let count = client.cli_with(&["exec", "-i", pod, "--", "wc", "-c"], &much);
    assert_eq!(count.ok().trim(), "3000000");
    let none = client.cli_with(&["exec", pod, "--", "wc", "-c"], b"not asked for");
    assert_eq!(none.ok().trim(), "0");
    let user = client.cli(&["exec", pod, "--", "id", "-u"]).ok();
    assert_ne!(user.trim(), "0", "it is the pod's user");
    client
        .cli(&["exec", pod, "--launchable", "none", "--", "true"])
        .fails(1, &["none", "web"]);
    client
        .cli(&["exec", "nobody", "--", "true"])
        .fails(5, &["nobody"]);

    // A command ends with its client.
    let mut session = Running::of(client.command(&[
        "exec",
        "-i",
        pod,
        "--",
        "sh",
        "-c",
        "echo $$; exec sleep 1000",
    ]));
    let pid: u32 = session.line().trim().parse().unwrap();
    assert!(is_alive(pid));
    drop(session);
    eventually("the command's end", || (!is_alive(pid)).then_some(()));

    // A terminal: `script` gives the client one.
    let command = format!(
        "{} exec -it {pod} -- sh -c 'test -t 0 && test -t 1 && stty size && read a && echo got-$a'",
        env!("CARGO_BIN_EXE_platctrl")
    );
    let mut shown = Running::of(client.on(&["script", "-qec", &command, "/dev/null"]));
    let size = shown.line();
    let sides: Vec<_> = size.split_whitespace().map(str::parse::<u16>).collect();
    assert!(matches!(sides[..], [Ok(_), Ok(_)]), "{size:?}");
    shown.say("word\n");
    eventually("an answer", || {
        shown.line().contains("got-word").then_some(())
    });
    drop(shown);

    // It is written down who ran what, without what it was given.
    let deeds = client.cli(&["audit", "-o", "json"]).ok();
    assert!(
        deeds.contains("command: sh") && !deeds.contains("exit 3"),
        "{deeds}"
    );

    usage(&fleet, &pods);
}

fn usage(fleet: &Fleet, pods: &[String]) {
    let client = fleet.client("admin");
    let top = |args: &[&str]| -> Value {
        let args = [&["top"], args, &["-o", "json"]].concat();
        serde_json::from_str(&client.cli(&args).ok()).unwrap()
    };
    let nodes = top(&["nodes"]);
    let names = nodes["items"].as_array().unwrap().iter();
    let names: BTreeSet<_> = names.map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, BTreeSet::from([fleet.node(1), fleet.node(2)]));
    for node in nodes["items"].as_array().unwrap() {
        let (usage, capacity) = (&node["usage"], &node["capacity"]);
        assert!(
            usage["memoryBytes"].as_u64() < capacity["memoryBytes"].as_u64(),
            "{node}"
        );
        assert!(usage["cpuMillis"].is_u64() && capacity["cpuMillis"].as_u64() >= Some(1_000));
        assert_eq!(node["pods"], 1);
    }
    // A pod that works is seen to, and the other is not.
    let busy = Running::of(client.command(&[
        "exec",
        "-i",
        &pods[0],
        "--",
        "sh",
        "-c",
        "while :; do :; done",
    ]));
    eventually("a pod at work", || {
        let items = top(&["pods", "--sort-by", "cpu"])["items"].take();
        let first = &items[0];
        assert_eq!(items.as_array().unwrap().len(), 2);
        assert!(first["usage"]["memoryBytes"].as_u64() > Some(0), "{first}");
        let cpu = first["usage"]["cpuMillis"].as_u64();
        (first["name"] == pods[0].as_str() && first["node"] == fleet.node(1) && cpu > Some(0))
            .then_some(())
    });
    drop(busy);
    let chosen = top(&["pods", "-l", "app=two"]);
    assert_eq!(chosen["items"][0]["name"], pods[1].as_str());
    assert_eq!(chosen["items"].as_array().unwrap().len(), 1);
    let table = client.cli(&["top", "pods", "-A"]).ok();
    assert!(table.starts_with("NAMESPACE   NAME"), "{table}");
    client.cli(&["top", "pods", "nobody"]).fails(5, &["nobody"]);
}

#[test]
fn whoever_reads_slowly_holds_up_nobody_else() {
    let Some(fleet) = Fleet::new() else { return };
    let client = fleet.client("admin");
    let pod = fleet.pods().remove(0);
    let mut slow =
        Running::of(client.command(&["exec", &pod, "--", "sh", "-c", "echo $$; exec yes"]));
    let pid: u32 = slow.line().trim().parse().unwrap();
    assert_eq!(slow.line(), "y\n");
    // Nobody reads on, and after a while it can write no more.
    let mut last = (0, 0);
    eventually("a standstill", || {
        let now = written(pid);
        last = if now == last.0 {
            (now, last.1 + 1)
        } else {
            (now, 0)
        };
        (last.1 >= 20).then_some(())
    });
    assert!(is_alive(pid));
    for _ in 0..5 {
        assert_eq!(client.cli(&["exec", &pod, "--", "echo", "hi"]).ok(), "hi\n");
        assert!(client.cli(&["logs", &pod]).ok().starts_with("begin on"));
    }
    // What is on its way is bounded, and of what could be written a tiny part.
    let stood = written(pid);
    assert!(stood < 64 << 20, "{stood} bytes");
    // As soon as somebody reads, it goes on.
    let mut some = vec![0; 64 << 10];
    eventually("more", || {
        slow.out.read_exact(&mut some).unwrap();
        (written(pid) > stood).then_some(())
    });
    drop(slow);
    eventually("its end", || (!is_alive(pid)).then_some(()));
}

#[test]
fn a_stream_that_was_cut_comes_back_and_so_does_one_to_a_server_that_was_started_again() {
    let Some(fleet) = Fleet::new() else {
        return;
    };
    let client = fleet.client("admin");
    let pods = fleet.pods();
    let mut followed = Running::of(client.command(&["logs", "-f", &pods[0]]));
    assert!(followed.line().starts_with("begin on"));

    fleet.network.isolate(1, PORT);
    eventually("the loss to be told", || {
        let said = client.cli(&["exec", &pods[0], "--", "true"]);
        let told = said.err.contains(fleet.node(1)) && said.err.contains("no stream");
        (said.code == Some(3) && told).then_some(())
    });
    // Whoever follows hears of it, and the other machine is reached as before.
    let mut rest = String::new();
    let _ = followed.out.read_to_string(&mut rest);
    assert_eq!(followed.child.wait().unwrap().code(), Some(3), "{rest}");
    client.cli(&["exec", &pods[1], "--", "true"]).ok();
    let top = client.cli(&["top", "nodes"]);
    assert!(top.err.contains(fleet.node(1)), "{top:?}");
    assert!(top.ok().contains(fleet.node(2)));

    fleet.network.rejoin(1);
    eventually("the stream", || {
        (client.cli(&["exec", &pods[0], "--", "true"]).code == Some(0)).then_some(())
    });

    fleet.end_server(SIGKILL);
    client.cli(&["logs", &pods[0]]).fails(3, &[]);
    fleet.start_server();
    for pod in &pods {
        eventually("the stream", || {
            (client.cli(&["exec", pod, "--", "true"]).code == Some(0)).then_some(())
        });
    }
    // An agent that is started again has another stream.
    fleet.end_agent(1, SIGTERM);
    fleet.start_agent(1, &[]);
    eventually("the stream", || {
        (client.cli(&["exec", &pods[0], "--", "true"]).code == Some(0)).then_some(())
    });
}

#[test]
fn whoever_may_not_is_refused_by_the_server_and_by_the_node() {
    let Some(fleet) = Fleet::new() else {
        return;
    };
    let pods = fleet.pods();
    let pod = pods[0].as_str();
    fleet.token("bob", "bound");
    fleet.token("vera", "viewer");
    let (bob, vera) = (fleet.client("bob"), fleet.client("vera"));
    vera.cli(&["exec", pod, "--", "true"])
        .fails(4, &["takes the role operator"]);
    bob.cli(&["exec", pod, "--", "true"]).fails(4, &["bob"]);
    bob.cli(&["logs", pod]).fails(4, &["bob"]);
    bob.cli(&["top", "pods"]).fails(4, &["bob"]);
    bob.cli(&["top", "nodes"]).fails(4, &["bob"]);
    eventually("the log", || {
        (vera.cli(&["logs", pod]).code == Some(0)).then_some(())
    });
    vera.cli(&["top", "nodes"]).ok();

    // A server that asks whatever it likes gets as far as the node lets those go for whom it asks.
    let mut liar = impostor::Liar::new(&fleet);
    fleet.end_agent(1, SIGTERM);
    let servers = format!("{},{}", fleet.server_url(), liar.url());
    fleet.start_agent(1, &["--servers", &servers]);
    let mut stream = liar.called_by(fleet.node(1));
    let exec = format!("/pods/default/{pod}/exec?command=true");
    let log = format!("/pods/default/{pod}/log");
    assert_eq!(stream.ask("GET", &log, None), 401);
    for (name, role, log_code, exec_code) in [
        ("bob", "bound", 403, 403),
        ("bob", "node", 403, 403),
        ("vera", "viewer", 200, 403),
        ("ann", "operator", 200, 200),
    ] {
        let behalf = Some((name, role));
        assert_eq!(stream.ask("GET", &log, behalf), log_code, "{name} {role}");
        assert_eq!(
            stream.ask("POST", &exec, behalf),
            exec_code,
            "{name} {role}"
        );
    }
    assert_eq!(stream.ask("GET", "/usage", Some(("bob", "bound"))), 403);
    assert_eq!(
        stream.ask("GET", "/usage?namespace=default", Some(("vera", "viewer"))),
        200
    );
    for odd in [
        "/",
        "/pods/default/x/log/y",
        "/pods/..%2F/x/log",
        "/pods/default/none/exec?command=true",
    ] {
        let code = stream.ask("POST", odd, Some(("ann", "admin")));
        assert!(matches!(code, 400 | 404), "{odd}: {code}");
    }

    // What roles give, the node reads by itself.
    let binding = fleet.write(
        "bob.yaml",
        "apiVersion: platctrl.dev/v1\nkind: RoleBinding\nmetadata: { name: bob }\nspec: { role: operator, subjects: [bob] }\n",
    );
    fleet.admin(&["apply", "-f", &binding]);
    eventually("bob's right", || {
        (stream.ask("POST", &exec, Some(("bob", "bound"))) == 200).then_some(())
    });
    eventually("bob's right", || {
        (bob.cli(&["exec", pod, "--", "true"]).code == Some(0)).then_some(())
    });
    // A command ends when the right to it is taken away.
    let mut session = Running::of(bob.command(&[
        "exec",
        "-i",
        pod,
        "--",
        "sh",
        "-c",
        "echo $$; exec sleep 1000",
    ]));
    let pid: u32 = session.line().trim().parse().unwrap();
    fleet.admin(&["delete", "rolebinding/bob"]);
    eventually("the command's end", || (!is_alive(pid)).then_some(()));
    drop((session, stream));

    // A node that runs nobody's commands runs nobody's.
    fleet.end_agent(2, SIGTERM);
    fleet.start_agent(2, &["--no-exec"]);
    let client = fleet.client("admin");
    eventually("the stream", || {
        (client.cli(&["logs", &pods[1]]).code == Some(0)).then_some(())
    });
    client
        .cli(&["exec", &pods[1], "--", "true"])
        .fails(4, &["--no-exec"]);
}

#[test]
fn a_stream_is_for_its_node_alone_and_for_a_server_of_the_same_authority() {
    let Some(fleet) = Fleet::new() else {
        return;
    };
    let client = fleet.client("admin");
    let pods = fleet.pods();
    let works = |pod: &str| client.cli(&["exec", pod, "--", "true"]).code == Some(0);
    eventually("the streams", || {
        (works(&pods[0]) && works(&pods[1])).then_some(())
    });

    // Another node's certificate, a person's, none: the stream stays whose it is.
    let (one, two) = (fleet.node(1).to_owned(), fleet.node(2).to_owned());
    fleet.issue("eve", "admin");
    for (identity, code, why) in [
        (Some(two.as_str()), 403, "certificate of node"),
        (Some("eve"), 401, "certificate"),
        (None, 401, "certificate"),
    ] {
        let (seen, words) = fleet.calls_as(&one, identity);
        assert_eq!(seen, code, "{identity:?}: {words}");
        assert!(words.contains(why), "{identity:?}: {words}");
    }
    // The right certificate in another agent's hands, while the node's own is there.
    let (seen, words) = fleet.calls_as(&one, Some(&one));
    assert_eq!(seen, 409, "{words}");
    assert!(words.contains("another agent"), "{words}");
    assert!(works(&pods[0]));
    // With a node's certificate nobody asks anything else.
    let (seen, _) = fleet.asks_as("/apis/platctrl.dev/v1/nodes", Some(&one));
    assert_eq!(seen, 401);

    // A certificate that was given anew takes the one before away, and so does its end.
    fleet.keep_identity(&one, "before");
    fleet.admit(1);
    eventually("the end of the old one's stream", || {
        (!works(&pods[0])).then_some(())
    });
    let (seen, words) = fleet.calls_as(&one, Some("before"));
    assert_eq!(seen, 403, "{words}");
    assert!(words.contains("another certificate"), "{words}");
    // The agent takes up what was given, from the same files.
    fleet.hand_over(1);
    eventually("the stream", || works(&pods[0]).then_some(()));
    fleet.admin_on_store(&["node", "revoke", &one]);
    eventually("the end of the stream", || (!works(&pods[0])).then_some(()));
    let (seen, words) = fleet.calls_as(&one, Some(&one));
    assert_eq!(seen, 403, "{words}");
    assert!(words.contains("no certificate"), "{words}");

    // A node that was given up.
    fleet.admin(&["node", "retire", &two, "--force"]);
    eventually("the end of the stream", || (!works(&pods[1])).then_some(()));
    let (seen, words) = fleet.calls_as(&two, Some(&two));
    assert_eq!(seen, 403, "{words}");
    assert!(words.contains("given up"), "{words}");

    // A server of another authority is called, and told nothing.
    let mut stranger = impostor::Liar::stranger(&fleet);
    fleet.end_agent(1, SIGTERM);
    fleet.start_agent(1, &["--servers", &stranger.url()]);
    stranger.is_not_believed();
}

#[test]
fn a_server_asks_the_node_of_its_own_process_the_same_way() {
    let rig = Rig::running();
    fleet::feeder(&rig);
    let manifest = fleet::manifest(&rig, "hello", "hello", "*");
    rig.write("hello.yaml", manifest);
    rig.cli(&["apply", "-f", "hello.yaml"]).ok();
    let pod = eventually("a pod", || {
        let pods = rig.pods();
        let pod = pods.first()?;
        (pod["status"]["phase"] == "Running").then(|| pod["metadata"]["name"].clone())
    });
    let pod = pod.as_str().unwrap();
    let socket = rig.data_dir().join("platctrl.sock");
    let server = format!("unix:{}", socket.display());
    let over = |args: &[&str]| rig.cli(&[&["--server", &server], args].concat());
    let said = over(&["exec", pod, "--", "sh", "-c", "echo $POD_NAME; exit 4"]);
    assert_eq!((said.code, said.out), (Some(4), format!("{pod}\n")));
    assert!(over(&["logs", pod]).ok().starts_with("begin on"));
    let nodes = over(&["top", "nodes"]).ok();
    assert!(nodes.contains(&rig.app), "{nodes}");
    let pods = over(&["top", "pods"]).ok();
    assert!(pods.contains(pod), "{pods}");
    // On the terminal of this machine: no server is needed, and input only where it is asked for.
    let said = rig.cli_with(&["exec", pod, "--", "wc", "-c"], b"abc");
    assert_eq!(said.ok().trim(), "0");
    let said = rig.cli_with(&["exec", "-i", pod, "--", "wc", "-c"], b"abc");
    assert_eq!(said.ok().trim(), "3");
}
