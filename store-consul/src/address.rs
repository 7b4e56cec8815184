//! The store URL: `consul://host:8500/root`.
//!
//! The root is part of every key on the server, so it is held to the same characters as keys:
//! nothing that a URL would have to escape and nothing that Consul would clean away.

use std::fmt;
use std::str::FromStr;

use platctrl_framework::store::Key;

/// Consul's port for HTTP, with and without TLS.
const DEFAULT_PORT: u16 = 8500;

/// Where a store is: an agent or server of Consul, and the root below which all keys are.
///
/// ```
/// use platctrl_store_consul::Address;
///
/// let address: Address = "consul://127.0.0.1/fleets/east".parse().unwrap();
/// assert_eq!((address.host(), address.port(), address.root()), ("127.0.0.1", 8500, "fleets/east"));
/// assert!("consul://127.0.0.1:8500".parse::<Address>().is_err(), "without a root");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: u16,
    root: String,
}

/// Text that is no address of a store on Consul.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not the address of a store on Consul: {reason}; it looks like consul://HOST:8500/ROOT"
)]
pub struct InvalidAddress {
    text: String,
    reason: String,
}

impl Address {
    /// The host's name or address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The root, without slashes at its ends.
    #[must_use]
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Host and port as they are written in URLs.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "consul://{}/{}", self.authority(), self.root)
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|reason| InvalidAddress {
            // Somebody may have written a password into it.
            text: if text.contains('@') {
                "consul://…@…".to_owned()
            } else {
                text.chars()
                    .take(200)
                    .flat_map(char::escape_default)
                    .collect()
            },
            reason,
        })
    }
}

fn parse(text: &str) -> Result<Address, String> {
    let rest = text
        .strip_prefix("consul://")
        .ok_or("it does not begin with consul://")?;
    let (authority, root) = rest.split_once('/').ok_or("it names no root")?;
    if authority.contains('@') {
        return Err("credentials do not belong into it: name a token file instead".to_owned());
    }
    if authority.contains(',') {
        return Err(
            "it names several hosts: name one agent, which knows the servers by itself".to_owned(),
        );
    }
    let (host, port) = if let Some(bracketed) = authority.strip_prefix('[') {
        let (host, port) = bracketed.split_once(']').ok_or("a bracket is not closed")?;
        host.parse::<std::net::Ipv6Addr>()
            .map_err(|_| "there is no IPv6 address in the brackets")?;
        (host, port.strip_prefix(':'))
    } else {
        let (host, port) = authority
            .split_once(':')
            .map_or((authority, None), |(host, port)| (host, Some(port)));
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if host.is_empty() || host.len() > 253 || !host.bytes().all(allowed) {
            return Err("its host is no name and no address".to_owned());
        }
        (host, port)
    };
    let port = match port {
        None => DEFAULT_PORT,
        Some(port) => port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| format!("`{port}` is no port"))?,
    };
    let root = root.strip_suffix('/').unwrap_or(root);
    if root.is_empty() {
        return Err("it names no root".to_owned());
    }
    if root.len() > 128 {
        return Err("its root is longer than 128 bytes".to_owned());
    }
    Key::new(root).map_err(|error| format!("its root is no path: {error}"))?;
    Ok(Address {
        host: host.to_owned(),
        port,
        root: root.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_ports_and_roots_are_told_apart() {
        for (text, host, port, root) in [
            ("consul://c1:8501/platctrl", "c1", 8501, "platctrl"),
            ("consul://c1/a/b/", "c1", 8500, "a/b"),
            ("consul://[::1]:8500/a", "::1", 8500, "a"),
            ("consul://[::1]/a", "::1", 8500, "a"),
        ] {
            let address: Address = text.parse().unwrap();
            let found = (address.host(), address.port(), address.root());
            assert_eq!(found, (host, port, root), "{text}");
            assert_eq!(
                address.to_string().parse::<Address>().unwrap(),
                address,
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_its_reason() {
        for (text, reason) in [
            ("http://c1:8500/a", "consul://"),
            ("consul://c1:8500", "no root"),
            ("consul://c1:8500/", "no root"),
            ("consul://c1:port/a", "`port`"),
            ("consul://c1:0/a", "`0`"),
            ("consul://c1:99999/a", "`99999`"),
            ("consul://:8500/a", "host"),
            ("consul://c1/a//b", "no path"),
            ("consul://c1/a/../b", "no path"),
            ("consul://c1/A", "no path"),
            ("consul://c1/a?dc=x", "no path"),
            ("consul://c1,c2/a", "several hosts"),
            ("consul://[::1/a", "bracket"),
            ("consul://[x]/a", "IPv6"),
            ("consul://a b/a", "host"),
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn a_password_in_an_address_is_refused_and_not_repeated() {
        let error = "consul://me:secret@c1/a".parse::<Address>().unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("token file") && !error.contains("secret"),
            "{error}"
        );
    }
}
