//! The server in a process of its own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use platctrl::server::{SOCKET, Server, ServerConfig, bind};
use platctrl_bench::Result;
use platctrl_framework::environment::Environment;
use platctrl_framework::model::{Kinds, identity};
use platctrl_framework::store::{Key, MemoryOptions, MemoryStore, Store as _, Transaction};
use platctrl_kinds::{Node, Pod};
use serde_json::json;

/// The argument that makes this program the server.
pub(crate) const SERVE: &str = "--serve-for-bench";
/// Pods that are written in one transaction.
const AT_ONCE: usize = 50;
/// The argument for [`Reads::Newest`].
const NEWEST: &str = "newest";

/// What the server's store can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    /// It reads old revisions, as etcd.
    Pinned,
    /// It does not, as Consul: lists come from the server's mirror.
    Newest,
}

pub(crate) struct Child {
    process: std::process::Child,
    dir: tempfile::TempDir,
}

impl Child {
    /// Starts one with so many pods, and waits until it serves them and has mirrored them all.
    pub(crate) fn start(pods: usize, reads: Reads) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut process = Command::new(std::env::current_exe()?)
            .arg(SERVE)
            .arg(dir.path())
            .arg(pods.to_string())
            .arg(match reads {
                Reads::Pinned => "pinned",
                Reads::Newest => NEWEST,
            })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let out = process.stdout.take().ok_or("the server has no output")?;
        BufReader::new(out).read_line(&mut line)?;
        let child = Self { process, dir };
        match line.trim() {
            "ready" => super::clients::mirrored(&child.socket())?,
            other => return Err(format!("the server did not start: {other:?}").into()),
        }
        Ok(child)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join(SOCKET)
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Lets the peak of its memory begin anew.
    pub(crate) fn forget_peak(&self) -> Result<()> {
        std::fs::write(format!("/proc/{}/clear_refs", self.id()), "5")?;
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Is the server until its standard input ends.
pub(crate) fn serve(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let (Some(dir), Some(pods)) = (arguments.next(), arguments.next()) else {
        return ExitCode::FAILURE;
    };
    let newest = arguments.next().is_some_and(|reads| reads == NEWEST);
    let runtime = tokio::runtime::Runtime::new();
    let served = runtime
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(run(PathBuf::from(dir), pods.parse()?, newest)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(dir: PathBuf, pods: usize, newest: bool) -> Result<()> {
    let environment = Environment::system();
    let mut options = MemoryOptions::default();
    options.pinned_reads = !newest;
    let store = MemoryStore::with_options(environment.clone(), options);
    identity::initialise(&store, &environment).await?;
    fill(&store, pods).await?;
    let kinds = Kinds::new().with::<Node>().with::<Pod>();
    let config = ServerConfig::new(Arc::new(store), kinds, &dir);
    let listener = bind(&dir.join(SOCKET))?;
    let server = Server::new(config);
    println!("ready");
    std::io::stdout().flush()?;
    let ended = tokio::task::spawn_blocking(|| {
        let _ = std::io::stdin().read_line(&mut String::new());
    });
    server
        .serve(listener, async {
            let _ = ended.await;
        })
        .await?;
    Ok(())
}

/// Writes pods as agents and controllers leave them: with a status.
async fn fill(store: &MemoryStore, pods: usize) -> Result<()> {
    let numbers: Vec<usize> = (0..pods).collect();
    for numbers in numbers.chunks(AT_ONCE) {
        let mut transaction = Transaction::new();
        for number in numbers {
            let (node, name) = (
                format!("node-{:04}", number / 10),
                format!("pod-{number:06}"),
            );
            let path = format!("platctrl.dev/pods/{node}/default/{name}");
            let uid = format!("uid-{number}");
            let intent = json!({
                "apiVersion": "platctrl.dev/v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": "default", "uid": uid, "generation": 1,
                    "labels": {"app": "hello"}},
                "spec": {"nodeName": node, "app": "hello", "launchables": {"web": {
                    "location": format!("artifact:sha256:{}", "ab".repeat(32)),
                    "env": {"RUST_LOG": "info"}}}},
            });
            let reality = json!({
                "apiVersion": "platctrl.dev/v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": "default", "uid": uid},
                "status": {"phase": "Running", "observedGeneration": 1, "restarts": 0,
                    "ports": {"http": 31_234}, "pids": {"web": 4_711},
                    "conditions": [{"type": "Ready", "status": "True", "reason": "Healthy",
                        "message": "it answers"}]},
            });
            for (tree, record) in [("intent", intent), ("reality", reality)] {
                let key = Key::new(format!("o/{tree}/{path}"))?;
                transaction = transaction.put(key, record.to_string());
            }
        }
        store.commit(transaction).await?;
    }
    Ok(())
}
