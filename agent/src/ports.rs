//! Numbers for a pod's ports: fixed ones as asked, the others free and then kept.
//!
//! A number that the pod already has is kept without looking: the pod itself may be listening on
//! it. Any other number is tried by taking it for a moment, and one that somebody listens on is
//! refused with the name of that process where `/proc` tells.

mod holder;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;

use platctrl_kinds::Port;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

/// Where ports are picked: below what Linux picks for outgoing connections by default.
const PREFERRED: RangeInclusive<u16> = 20_000..=32_767;
/// Where they are picked on a machine whose outgoing connections use all of that.
const ANY: RangeInclusive<u16> = 1_024..=65_535;
/// Fewer numbers than this are no range to run pods in.
const ENOUGH: usize = 1_000;

/// Why a pod cannot have its ports.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum PortError {
    /// Somebody else has the number that was asked for.
    #[error(
        "port {port}, asked for as `{name}`, is in use by {}: stop that, or ask for another number or none",
        by.as_deref().unwrap_or("a process outside platctrl")
    )]
    InUse {
        /// The number.
        port: u16,
        /// The name it has in the pod.
        name: String,
        /// Who has it, where that is known.
        by: Option<String>,
    },
    /// The agent may not listen on the number, and neither may a pod.
    #[error("port {port}, asked for as `{name}`, needs root: ask for one above 1023, or for none")]
    Denied {
        /// The number.
        port: u16,
        /// The name it has in the pod.
        name: String,
    },
    /// Whether the number is free cannot be found out.
    #[error("cannot try port {port}, asked for as `{name}`: {source}")]
    Failed {
        /// The number.
        port: u16,
        /// The name it has in the pod.
        name: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// No number is free.
    #[error("no port is free for `{name}` on this node: remove pods, or give it a fixed number")]
    Exhausted {
        /// The name of the port.
        name: String,
    },
}

/// Finds a number for each of a pod's ports.
///
/// `used` are the numbers that other pods have, with a name for each pod; `previous` those that
/// this pod has, by port name. A dynamic port keeps its previous number unless another pod has it.
/// Blocks for about a millisecond; on a conflict, for as long as it takes to look through `/proc`.
///
/// # Errors
/// [`PortError`] names the port and who is in the way.
pub(crate) fn allocate(
    used: &BTreeMap<u16, String>,
    wanted: &BTreeMap<String, Port>,
    previous: &BTreeMap<String, u16>,
) -> Result<BTreeMap<String, u16>, PortError> {
    let own: BTreeSet<u16> = previous.values().copied().collect();
    let mut given = BTreeMap::new();
    let mut taken: BTreeSet<u16> = used.keys().copied().collect();
    for (name, port) in wanted {
        let Some(port) = port.port else { continue };
        if let Some(pod) = used.get(&port) {
            let by = Some(format!("the pod {pod}"));
            return Err(PortError::InUse {
                port,
                name: name.clone(),
                by,
            });
        }
        if !own.contains(&port) {
            try_fixed(port, name)?;
        }
        taken.insert(port);
        given.insert(name.clone(), port);
    }
    let dynamic = wanted
        .iter()
        .filter(|(_, port)| port.port.is_none())
        .map(|(name, _)| name);
    let (kept, new): (Vec<_>, Vec<_>) =
        dynamic.partition(|name| previous.get(*name).is_some_and(|port| taken.insert(*port)));
    given.extend(
        kept.into_iter()
            .filter_map(|name| Some((name.clone(), *previous.get(name)?))),
    );
    if !new.is_empty() {
        let mut candidates = candidates(ephemeral_range().as_ref(), rand::random());
        for name in new {
            let port = candidates
                .find(|port| !own.contains(port) && !taken.contains(port) && is_free(*port))
                .ok_or_else(|| PortError::Exhausted { name: name.clone() })?;
            taken.insert(port);
            given.insert(name.clone(), port);
        }
    }
    Ok(given)
}

fn try_fixed(port: u16, name: &str) -> Result<(), PortError> {
    let name = || name.to_owned();
    match look(port) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(PortError::InUse {
            port,
            name: name(),
            by: holder::of(port),
        }),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(PortError::Denied { port, name: name() })
        }
        Err(source) => Err(PortError::Failed {
            port,
            name: name(),
            source,
        }),
    }
}

/// Nobody listens on it.
pub(crate) fn is_free(port: u16) -> bool {
    look(port).is_ok()
}

/// Takes the port of every address for as long as what it returns lives. Connections of the past do
/// not count.
///
/// It does not listen: a process that another thread is starting has a copy of all that is open, and
/// in the way of whoever looks next, or of the program itself, would be what listens.
fn look(port: u16) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    let four = take(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
    match take(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
        Err(Errno::ADDRINUSE) => Err(Errno::ADDRINUSE.into()),
        // There may be no IPv6 here.
        six => Ok((four, six.ok())),
    }
}

fn take(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // With others that do not listen either it is shared.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &address)?;
    Ok(socket)
}

/// Every number to try, once each. They begin anywhere, so that the number a pod gave back is not
/// the next one's: somebody may still be calling it.
fn candidates(
    ephemeral: Option<&RangeInclusive<u16>>,
    random: u64,
) -> impl Iterator<Item = u16> + use<> {
    let outside = |range: RangeInclusive<u16>| -> Vec<u16> {
        range
            .filter(|port| ephemeral.is_none_or(|taken| !taken.contains(port)))
            .collect()
    };
    let ports = [PREFERRED, ANY]
        .into_iter()
        .map(outside)
        .find(|ports| ports.len() >= ENOUGH)
        // Everything is used for outgoing connections: what is free now has to do.
        .unwrap_or_else(|| PREFERRED.collect());
    let count = ports.len();
    let start = usize::try_from(random % count as u64).unwrap_or(0);
    (0..count).map(move |offset| ports[(start + offset) % count])
}

/// What the kernel picks for outgoing connections.
fn ephemeral_range() -> Option<RangeInclusive<u16>> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    parse_range(&text)
}

fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next()?, numbers.next()?) {
        (Ok(first), Ok(last)) => Some(first..=last),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn wanted(ports: &[(&str, Option<u16>)]) -> BTreeMap<String, Port> {
        let port = |(name, port): &(&str, Option<u16>)| ((*name).to_owned(), Port { port: *port });
        ports.iter().map(port).collect()
    }

    fn numbers(ports: &[(&str, u16)]) -> BTreeMap<String, u16> {
        ports
            .iter()
            .map(|(name, port)| ((*name).to_owned(), *port))
            .collect()
    }

    fn nobody() -> BTreeMap<u16, String> {
        BTreeMap::new()
    }

    /// A number that the kernel just gave out and nobody listens on any more.
    fn some_free_port() -> u16 {
        TcpListener::bind("0.0.0.0:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port()
    }

    #[test]
    fn whoever_looks_at_a_port_is_in_nobodys_way() {
        let port = some_free_port();
        let looks = look(port).unwrap();
        assert!(is_free(port), "for another look");
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
        if looks.1.is_some() {
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
        }
    }

    #[test]
    fn dynamic_ports_are_free_distinct_and_outside_the_range_of_outgoing_connections() {
        let wanted = wanted(&[("a", None), ("b", None), ("c", None)]);
        let given = allocate(&nobody(), &wanted, &BTreeMap::new()).unwrap();
        let distinct: BTreeSet<_> = given.values().collect();
        assert_eq!(distinct.len(), 3);
        let ephemeral = ephemeral_range();
        for port in given.values() {
            assert!(
                ephemeral.as_ref().is_none_or(|range| !range.contains(port)),
                "{port}"
            );
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).unwrap();
        }
    }

    #[test]
    fn a_port_keeps_its_number_even_while_the_pod_itself_listens_on_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let previous = numbers(&[("http", port)]);
        let given = allocate(&nobody(), &wanted(&[("http", None)]), &previous).unwrap();
        assert_eq!(given, previous);
        // The same number under another name, and fixed: it is still the pod's own.
        let fixed = wanted(&[("web", Some(port))]);
        assert_eq!(
            allocate(&nobody(), &fixed, &previous).unwrap(),
            numbers(&[("web", port)])
        );
    }

    #[test]
    fn a_number_that_went_to_another_pod_is_not_kept() {
        let used = BTreeMap::from([(20_500, "default/other".to_owned())]);
        let previous = numbers(&[("http", 20_500)]);
        let given = allocate(&used, &wanted(&[("http", None)]), &previous).unwrap();
        assert_ne!(given["http"], 20_500);
    }

    #[test]
    fn a_dynamic_port_gives_way_to_a_fixed_one_of_the_same_pod() {
        let port = some_free_port();
        let wanted = wanted(&[("a", None), ("b", Some(port))]);
        let given = allocate(&nobody(), &wanted, &numbers(&[("a", port)])).unwrap();
        assert_eq!(given["b"], port);
        assert_ne!(given["a"], port);
    }

    #[test]
    fn two_names_never_keep_one_number() {
        let previous = numbers(&[("a", 20_501), ("b", 20_501)]);
        let wanted = wanted(&[("a", None), ("b", None)]);
        let given = allocate(&nobody(), &wanted, &previous).unwrap();
        assert_eq!(given["a"], 20_501);
        assert_ne!(given["b"], 20_501);
    }

    #[test]
    fn a_fixed_port_of_another_pod_is_refused_by_its_name() {
        let used = BTreeMap::from([(8080, "default/other".to_owned())]);
        let error = allocate(&used, &wanted(&[("http", Some(8080))]), &BTreeMap::new());
        let text = error.unwrap_err().to_string();
        assert!(text.contains("8080") && text.contains("`http`"), "{text}");
        assert!(text.contains("the pod default/other"), "{text}");
    }

    #[test]
    fn a_fixed_port_somebody_listens_on_is_refused_with_the_name_of_the_process() {
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                continue;
            };
            let port = listener.local_addr().unwrap().port();
            let wanted = wanted(&[("http", Some(port))]);
            let error = allocate(&nobody(), &wanted, &BTreeMap::new()).unwrap_err();
            let PortError::InUse { by: Some(by), .. } = &error else {
                panic!("{error}")
            };
            assert!(by.contains(&format!("pid {}", std::process::id())), "{by}");
        }
    }

    #[test]
    fn a_machine_that_uses_the_usual_range_for_outgoing_connections_gets_another() {
        let usual: Vec<_> = candidates(Some(&(32_768..=60_999)), 12_345).collect();
        assert_eq!(usual.len(), PREFERRED.len());
        let wide: Vec<_> = candidates(Some(&(15_000..=65_000)), 0).collect();
        assert!(wide.iter().all(|port| !(15_000..=65_000).contains(port)));
        assert_eq!(
            candidates(Some(&(1_024..=65_535)), 7).count(),
            PREFERRED.len()
        );
        assert_eq!(
            candidates(None, u64::MAX).collect::<BTreeSet<_>>().len(),
            PREFERRED.len()
        );
    }

    #[test]
    fn the_kernels_range_is_read() {
        assert_eq!(parse_range("32768\t60999\n"), Some(32_768..=60_999));
        for text in ["", "1", "a b", "1 70000"] {
            assert_eq!(parse_range(text), None, "{text:?}");
        }
    }
}
