//! Where a store is: `etcd://HOST[:PORT],…/ROOT`.

use std::fmt;
use std::str::FromStr;

use platctrl_framework::store::Prefix;

/// etcd's port for clients.
const DEFAULT_PORT: u16 = 2_379;
/// The most bytes of a root: room for it is kept free in every transaction.
const MAX_ROOT_BYTES: usize = 128;

/// The members of an etcd cluster, and the root that the store's keys begin with.
///
/// ```
/// use platctrl_store_etcd::Location;
///
/// let location: Location = "etcd://db1:2379,db2,[::1]:23790/prod/platctrl".parse().unwrap();
/// assert_eq!(location.root(), "prod/platctrl");
/// assert_eq!(location.to_string(), "etcd://db1:2379,db2:2379,[::1]:23790/prod/platctrl");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    endpoints: Vec<Endpoint>,
    root: String,
}

/// The address of one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// A name or an address; that of version 6 without its brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// Text that is no location.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no etcd store: {reason}; write etcd://HOST[:PORT],…/ROOT")]
pub struct InvalidLocation {
    text: String,
    reason: String,
}

impl Location {
    /// The root: the keys of the store are below it, with a slash between.
    #[must_use]
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The members as `HOST:PORT`.
    pub fn members(&self) -> impl Iterator<Item = String> {
        self.endpoints.iter().map(Endpoint::to_string)
    }

    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }
}

impl FromStr for Location {
    type Err = InvalidLocation;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|reason| InvalidLocation {
            // A password would be here.
            text: match text.rsplit_once('@') {
                Some((_, rest)) => format!("etcd://…@{rest}"),
                None => text.chars().take(200).collect(),
            },
            reason,
        })
    }
}

fn parse(text: &str) -> Result<Location, String> {
    let rest = text
        .strip_prefix("etcd://")
        .ok_or("it does not begin with etcd://")?;
    if rest.contains('@') {
        return Err("users and passwords do not belong into it, give them apart".to_owned());
    }
    let (members, root) = rest.split_once('/').unwrap_or((rest, ""));
    let root = root.strip_suffix('/').unwrap_or(root);
    if root.is_empty() {
        return Err("it names no root".to_owned());
    }
    if root.len() > MAX_ROOT_BYTES {
        return Err(format!("its root is longer than {MAX_ROOT_BYTES} bytes"));
    }
    Prefix::new(format!("{root}/")).map_err(|error| format!("its root is no key: {error}"))?;
    let endpoints = members
        .split(',')
        .map(parse_endpoint)
        .collect::<Result<Vec<_>, _>>()?;
    for (position, endpoint) in endpoints.iter().enumerate() {
        if endpoints[..position].contains(endpoint) {
            return Err(format!("it names {endpoint} twice"));
        }
    }
    Ok(Location {
        endpoints,
        root: root.to_owned(),
    })
}

fn parse_endpoint(text: &str) -> Result<Endpoint, String> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest
            .split_once(']')
            .ok_or_else(|| format!("`{text}` has no closing bracket"))?;
        host.parse::<std::net::Ipv6Addr>()
            .map_err(|_| format!("`{host}` is no address of IP version 6"))?;
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            None => return Err(format!("`{port}` follows a bracket")),
            port => port,
        };
        (host, port)
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    if host.is_empty() || !host.bytes().all(allowed) {
        return Err(format!("`{text}` names no host"));
    }
    let port = match port {
        None => DEFAULT_PORT,
        Some(port) => match port.parse() {
            Ok(0) | Err(_) => return Err(format!("`{port}` is no port")),
            Ok(port) => port,
        },
    };
    Ok(Endpoint {
        host: host.to_owned(),
        port,
    })
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("etcd://")?;
        for (position, endpoint) in self.endpoints.iter().enumerate() {
            if position > 0 {
                f.write_str(",")?;
            }
            write!(f, "{endpoint}")?;
        }
        write!(f, "/{}", self.root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_no_location_says_what_is_wrong() {
        for (text, reason) in [
            ("consul://a/r", "begin with etcd://"),
            ("etcd://a", "no root"),
            ("etcd://a/", "no root"),
            ("etcd:///r", "no host"),
            ("etcd://a,,b/r", "no host"),
            ("etcd://a:0/r", "no port"),
            ("etcd://a:99999/r", "no port"),
            ("etcd://a:b:c/r", "no port"),
            ("etcd://[::1/r", "closing bracket"),
            ("etcd://[zz]/r", "IP version 6"),
            ("etcd://a b/r", "no host"),
            ("etcd://a/R", "no key"),
            ("etcd://a/../r", "no key"),
            ("etcd://a//r", "no key"),
            ("etcd://a,a:2379/r", "twice"),
        ] {
            let error = text.parse::<Location>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn a_password_in_it_is_refused_and_not_repeated() {
        let error = "etcd://root:hush@a/r".parse::<Location>().unwrap_err();
        assert!(!error.to_string().contains("hush"), "{error}");
    }
}
