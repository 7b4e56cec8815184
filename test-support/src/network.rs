//! A network of namespaces, in which members can be cut off from each other. Root only.

use std::process::Command;

use crate::processes::random;

/// A bridge, and a namespace behind it for each member.
#[derive(Debug)]
pub struct Network {
    bridge: String,
    namespaces: Vec<String>,
    addresses: Vec<String>,
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
    /// A network for so many members; None, with a word, where nobody may make one.
    #[must_use]
    pub fn new(members: usize) -> Option<Self> {
        if !crate::needs::root() {
            return None;
        }

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
        Some(network)
    }

    /// Where the members are, and what each has to run within.
    #[must_use]
    pub fn places(&self) -> Vec<(String, Vec<String>)> {
        let within = |namespace: &String| {
            ["ip", "netns", "exec", namespace]
                .map(str::to_owned)
                .to_vec()
        };
        let namespaces = self.namespaces.iter().map(within);
        self.addresses.iter().cloned().zip(namespaces).collect()
    }

    /// Cuts two members off from each other; this process reaches both.
    ///
    /// # Panics
    /// They still reach each other's port.
    pub fn cut(&self, one: usize, other: usize, port: u16) {
        self.route(one, other, "add");
        assert!(!self.reaches(one, other, port), "they are cut off");
    }

    /// Undoes a cut.
    pub fn heal(&self, one: usize, other: usize) {
        self.route(one, other, "del");
    }

    /// Cuts a member off from all others; this process reaches all of them.
    pub fn isolate(&self, alone: usize, port: u16) {
        self.others(alone)
            .for_each(|other| self.cut(alone, other, port));
    }

    /// Undoes an isolation.
    pub fn rejoin(&self, alone: usize) {
        self.others(alone).for_each(|other| self.heal(alone, other));
    }

    fn others(&self, alone: usize) -> impl Iterator<Item = usize> + use<> {
        (0..self.namespaces.len()).filter(move |other| *other != alone)
    }

    fn route(&self, one: usize, other: usize, verb: &str) {
        for (from, to) in [(one, other), (other, one)] {
            let (namespace, address) = (&self.namespaces[from], &self.addresses[to]);
            ip(&format!(
                "-n {namespace} route {verb} blackhole {address}/32"
            ));
        }
    }

    /// Whether a connection from one to the other's port comes about.
    #[must_use]
    pub fn reaches(&self, from: usize, to: usize, port: u16) -> bool {
        let open = format!("exec 3<>/dev/tcp/{}/{port}", self.addresses[to]);
        let output = Command::new("ip")
            .args(["netns", "exec", &self.namespaces[from]])
            .args(["timeout", "5", "bash", "-c", &open])
            .output()
            .unwrap();
        output.status.success()
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
