//! platctrl's parts as processes of their own, that meet in a store's server.

use std::fs;
use std::process::Child;

use crate::rig::{Pod, Rig, eventually, is_alive, kill};
use crate::servers::Server;

pub(crate) const SIGKILL: i32 = 9;
pub(crate) const SIGTERM: i32 = 15;

/// A process that ends with its test.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn end(mut self, signal: i32) {
        kill(self.0.id(), signal);
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts one of platctrl's parts on a store.
pub(crate) fn start(rig: &Rig, url: &str, role: &str, more: &[&str]) -> Process {
    let mut options = fs::OpenOptions::new();
    let log = options.create(true).append(true);
    let log = log.open(rig.path("up.log")).unwrap();
    let args = [&[role, "--store", url][..], more].concat();
    let mut command = rig.command(&args);
    let command = command.stdout(log.try_clone().unwrap()).stderr(log);
    Process(command.spawn().unwrap())
}

/// A root in a server, with this machine as its only node.
pub(crate) struct Fleet {
    // Dropped first: what uninstalls the pods needs no store.
    pub(crate) rig: Rig,
    pub(crate) url: String,
    pub(crate) store: Server,
}

impl Fleet {
    pub(crate) fn on_etcd() -> Self {
        let (rig, store) = (Rig::new(), Server::open_etcd("etcd-3.5"));
        let url = format!("etcd://{}/{}", store.at, rig.app);
        Self { rig, url, store }
    }

    pub(crate) fn on_consul() -> Self {
        let (rig, store) = (Rig::new(), Server::open_consul());
        let url = format!("consul://{}/fleets/test", store.at);
        Self { rig, url, store }
    }

    /// Makes the store, and admits the node.
    pub(crate) fn initialise(&self) {
        self.rig.cli(&["store", "init", &self.url]).ok();
        let node = self.rig.app.clone();
        self.rig
            .cli(&["node", "admit", &node, "--store", &self.url])
            .ok();
    }

    pub(crate) fn start(&self, role: &str, more: &[&str]) -> Process {
        start(&self.rig, &self.url, role, more)
    }

    pub(crate) fn agent(&self) -> Process {
        self.start("agent", &["--node", &self.rig.app])
    }

    pub(crate) fn server(&self) -> Process {
        let server = self.start("server", &[]);
        self.answers();
        server
    }

    pub(crate) fn answers(&self) {
        eventually("an answer of the server", || {
            (self.rig.cli(&["get", "nodes"]).code == Some(0)).then_some(())
        });
    }

    /// Scales to nothing, and waits for the pod's end.
    pub(crate) fn end_of(&self, pod: &Pod) {
        eventually("the order is taken", || {
            let said = self.rig.cli(&["scale", "rc/hello", "--replicas", "0"]);
            (said.code == Some(0)).then_some(())
        });
        eventually("the pod's end", || self.rig.pods().is_empty().then_some(()));
        assert!(!is_alive(pod.pid));
    }
}
