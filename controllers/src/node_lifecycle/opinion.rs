//! A second opinion on nodes that are not heard of: whether they do their work all the same.
//!
//! Signs of life go through the store. A node that is cut off from it, and whose pods serve, is
//! not lost, and what is more likely when several are silent is that something between is.

use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::model::Object;
use platctrl_kinds::{Node, Pod};
use tokio::net::TcpStream;

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// Questions for one node, at most.
const QUESTIONS: usize = 4;

/// An answer that is on its way: what was seen of the node, if anything was.
pub type Answer<'a> = Pin<Box<dyn Future<Output = Option<String>> + Send + 'a>>;

/// Asked before one of several silent nodes is given up.
pub trait SecondOpinion: fmt::Debug + Send + Sync + 'static {
    /// What shows that the node does its work, in words; None when nothing does, or nobody can
    /// say.
    fn on<'a>(&'a self, node: &'a Object<Node>, pods: &'a [Arc<Object<Pod>>]) -> Answer<'a>;
}

/// Knocks at the ports of the node's pods, under the addresses that the node was admitted with.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenPorts;

/// Where to knock: no address of this machine itself.
fn doors(node: &Object<Node>, pods: &[Arc<Object<Pod>>]) -> Vec<SocketAddr> {
    let addresses = node.spec.addresses.iter();
    let addresses = addresses.filter_map(|address| address.parse::<IpAddr>().ok());
    let addresses = addresses.filter(|it| !it.is_loopback() && !it.is_unspecified());
    let ports = pods.iter().flat_map(|pod| pod.status.detail.ports.values());
    let mut doors: Vec<SocketAddr> = addresses
        .flat_map(|address| {
            ports
                .clone()
                .map(move |port| SocketAddr::new(address, *port))
        })
        .collect();
    doors.truncate(QUESTIONS);
    doors
}

async fn knock(doors: Vec<SocketAddr>) -> Option<String> {
    for door in doors {
        let knock = tokio::time::timeout(PATIENCE, TcpStream::connect(door));
        if let Ok(Ok(_)) = knock.await {
            return Some(format!("{door} answers"));
        }
    }
    None
}

impl SecondOpinion for OpenPorts {
    fn on<'a>(&'a self, node: &'a Object<Node>, pods: &'a [Arc<Object<Pod>>]) -> Answer<'a> {
        Box::pin(knock(doors(node, pods)))
    }
}

#[cfg(test)]
mod tests {
    use platctrl_framework::model::Metadata;
    use platctrl_kinds::{NodeSpec, PodSpec};

    use super::*;

    #[tokio::test]
    async fn a_node_is_asked_at_its_pods_ports() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let closed = {
            let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            gone.local_addr().unwrap()
        };
        let seen = knock(vec![closed, open]).await;
        assert_eq!(seen, Some(format!("{open} answers")));
        assert_eq!(knock(vec![closed]).await, None);
    }

    #[test]
    fn only_addresses_of_another_machine_are_asked() {
        let spec = NodeSpec {
            addresses: ["127.0.0.1", "10.0.0.7", "web1.example", "::", "fd00::7"]
                .map(str::to_owned)
                .to_vec(),
            ..NodeSpec::default()
        };
        let node = Object::<Node>::new(Metadata::named("n1"), spec);
        let mut pod = Object::<Pod>::new(Metadata::named("p"), PodSpec::default());
        pod.status.detail.ports = [("http".to_owned(), 80), ("admin".to_owned(), 81)].into();
        let pods = [Arc::new(pod)];
        let doors: Vec<String> = doors(&node, &pods)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            doors,
            ["10.0.0.7:81", "10.0.0.7:80", "[fd00::7]:81", "[fd00::7]:80"]
        );
        assert!(super::doors(&node, &[]).is_empty());
    }
}
