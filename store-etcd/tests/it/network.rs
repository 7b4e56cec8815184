//! A network of namespaces, in which members can be cut off from each other. Root only.

use std::process::Command;

use crate::server::random;

/// A bridge, and a namespace behind it for each member.
pub(crate) struct Network {
    bridge: String,
    pub(crate) namespaces: Vec<String>,
    pub(crate) addresses: Vec<String>,
}

fn try_ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn ip(arguments: &str) {
    if let Err(said) = try_ip(arguments) {
        panic!("ip {arguments}: {said}");
    }
}

impl Network {
    pub(crate) fn new(members: usize) -> Self {
        let number = random();
        let tag = format!("{:06x}", number & 0xff_ffff);
        let subnet = format!("10.{}.{}", (number >> 24) & 0xff, (number >> 32) & 0xff);
        let network = Self {
            bridge: format!("pctb{tag}"),
            namespaces: (0..members).map(|n| format!("pct{tag}m{n}")).collect(),
            addresses: (0..members)
                .map(|n| format!("{subnet}.{}", n + 10))
                .collect(),
        };
        let bridge = &network.bridge;
        ip(&format!("link add {bridge} type bridge"));
        ip(&format!("addr add {subnet}.1/24 dev {bridge}"));
        ip(&format!("link set {bridge} up"));
        for (n, namespace) in network.namespaces.iter().enumerate() {
            let port = format!("pct{tag}v{n}");
            let address = &network.addresses[n];
            ip(&format!("netns add {namespace}"));
            ip(&format!(
                "link add {port} type veth peer name eth0 netns {namespace}"
            ));
            ip(&format!("link set {port} master {bridge} up"));
            ip(&format!("-n {namespace} addr add {address}/24 dev eth0"));
            ip(&format!("-n {namespace} link set eth0 up"));
            ip(&format!("-n {namespace} link set lo up"));
        }
        network
    }

    fn pairs(&self, alone: usize) -> impl Iterator<Item = (&String, &String)> {
        let others = (0..self.namespaces.len()).filter(move |other| *other != alone);
        others.flat_map(move |other| {
            [
                (&self.namespaces[alone], &self.addresses[other]),
                (&self.namespaces[other], &self.addresses[alone]),
            ]
        })
    }

    /// Cuts a member off from the others; this process reaches all of them.
    pub(crate) fn isolate(&self, alone: usize) {
        for (namespace, address) in self.pairs(alone) {
            ip(&format!("-n {namespace} route add blackhole {address}/32"));
        }
    }

    pub(crate) fn heal(&self, alone: usize) {
        for (namespace, address) in self.pairs(alone) {
            ip(&format!("-n {namespace} route del blackhole {address}/32"));
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            let _ = try_ip(&format!("netns del {namespace}"));
        }
        let _ = try_ip(&format!("link del {}", self.bridge));
    }
}
