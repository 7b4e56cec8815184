//! How a node reaches the servers that artifacts come from: proxies, authorities, S3.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use url::{Host, Url};

/// How servers of artifacts are reached. By default directly, trusting the authorities that the
/// machine trusts, and S3 without credentials.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[non_exhaustive]
pub struct Network {
    /// The proxy for `https:`, as `http://[USER:PASSWORD@]HOST:PORT`.
    pub https_proxy: Option<String>,
    /// The proxy for `http:`.
    pub http_proxy: Option<String>,
    /// Hosts that are reached directly all the same, separated by commas: names with what is below
    /// them, addresses, networks as `10.0.0.0/8`, or `*`. This machine itself always is.
    pub no_proxy: String,
    /// Files of certificates (PEM) of authorities that are trusted beside the machine's.
    pub authorities: Vec<PathBuf>,
    /// Where `s3:` locations are.
    pub s3: S3,
}

/// Where `s3:` locations are, and who asks. Without a key requests are not signed.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[non_exhaustive]
pub struct S3 {
    /// The address of a server that speaks S3; Amazon's when left out.
    pub endpoint: Option<String>,
    /// The region; `us-east-1` when left out.
    pub region: Option<String>,
    /// The bucket is a part of the server's name instead of the path.
    pub virtual_hosted: bool,
    /// The access key's id.
    pub access_key_id: Option<String>,
    /// The access key.
    pub secret_access_key: Option<String>,
    /// The session that a temporary key belongs to.
    pub session_token: Option<String>,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Proxies' addresses may hold passwords.
        f.debug_struct("Network")
            .field("https_proxy", &self.https_proxy.is_some())
            .field("http_proxy", &self.http_proxy.is_some())
            .field("no_proxy", &self.no_proxy)
            .field("authorities", &self.authorities)
            .field("s3", &self.s3)
            .finish()
    }
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("virtual_hosted", &self.virtual_hosted)
            .field("signed", &self.secret_access_key.is_some())
            .finish()
    }
}

impl Network {
    /// What the usual environment variables say: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`,
    /// `NO_PROXY` (also in small letters), `SSL_CERT_FILE`, and Amazon's `AWS_ENDPOINT_URL_S3`,
    /// `AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_DEFAULT_REGION`, `AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(get: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: &[&str]| {
            let values = names.iter().filter_map(|name| get(name));
            values.into_iter().find(|value| !value.is_empty())
        };
        Self {
            https_proxy: first(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]),
            http_proxy: first(&["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]),
            no_proxy: first(&["NO_PROXY", "no_proxy"]).unwrap_or_default(),
            authorities: first(&["SSL_CERT_FILE"])
                .map(PathBuf::from)
                .into_iter()
                .collect(),
            s3: S3 {
                endpoint: first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]),
                region: first(&["AWS_REGION", "AWS_DEFAULT_REGION"]),
                virtual_hosted: false,
                access_key_id: first(&["AWS_ACCESS_KEY_ID"]),
                secret_access_key: first(&["AWS_SECRET_ACCESS_KEY"]),
                session_token: first(&["AWS_SESSION_TOKEN"]),
            },
        }
    }

    /// The proxy that leads to `url`, if one does.
    pub(super) fn proxy_for(&self, url: &Url) -> Option<&str> {
        let proxy = match url.scheme() {
            "https" => &self.https_proxy,
            _ => &self.http_proxy,
        };
        let proxy = proxy.as_deref()?;
        let host = url.host()?;
        let direct = is_this_machine(&host)
            || self
                .no_proxy
                .split(',')
                .any(|entry| matches(entry.trim(), &host));
        (!direct).then_some(proxy)
    }
}

/// The address of a host that is written as one.
pub(super) fn literal(host: &Host<&str>) -> Option<IpAddr> {
    match host {
        Host::Domain(_) => None,
        Host::Ipv4(address) => Some(IpAddr::V4(*address)),
        Host::Ipv6(address) => Some(IpAddr::V6(*address).to_canonical()),
    }
}

/// It is a name or an address of the machine itself.
pub(super) fn is_this_machine(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => *name == "localhost" || name.ends_with(".localhost"),
        other => literal(other).is_some_and(|address| address.is_loopback()),
    }
}

/// Whether an entry of the list of hosts that need no proxy means `host`.
fn matches(entry: &str, host: &Host<&str>) -> bool {
    if entry == "*" {
        return true;
    }
    match (literal(host), host) {
        (Some(address), _) => match entry.split_once('/') {
            Some((network, bits)) => match (network.parse(), bits.parse()) {
                (Ok(network), Ok(bits)) => is_within(address, network, bits),
                _ => false,
            },
            None => entry.parse() == Ok(address),
        },
        (None, Host::Domain(name)) => {
            let entry = entry.trim_start_matches('.').to_ascii_lowercase();
            let below = || name.strip_suffix(entry.as_str());
            !entry.is_empty() && below().is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        }
        (None, _) => false,
    }
}

fn is_within(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    let bits_of = |address| match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)) << 96, 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    };
    let ((address, width), (network, other)) = (bits_of(address), bits_of(network));
    width == other && bits <= width && (bits == 0 || (address ^ network) >> (128 - bits) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn a_proxy_leads_everywhere_but_where_it_is_not_wanted_and_to_this_machine() {
        let network = Network {
            https_proxy: Some("http://proxy:3128".into()),
            no_proxy: "example.org, .corp.test,10.0.0.0/8,192.0.2.7,fd00::/8".into(),
            ..Network::default()
        };
        for direct in [
            "https://example.org/a",
            "https://a.b.example.org/a",
            "https://corp.test/a",
            "https://x.corp.test/a",
            "https://10.200.1.1/a",
            "https://192.0.2.7/a",
            "https://[fd12::1]/a",
            "https://127.0.0.1:8443/a",
            "https://[::1]/a",
            "https://localhost/a",
            "http://far.test/a",
        ] {
            assert_eq!(network.proxy_for(&url(direct)), None, "{direct}");
        }
        for through in [
            "https://notexample.org/a",
            "https://example.org.test/a",
            "https://11.0.0.1/a",
            "https://192.0.2.8/a",
            "https://[fe00::1]/a",
        ] {
            assert!(network.proxy_for(&url(through)).is_some(), "{through}");
        }
        let none = Network {
            no_proxy: "*".into(),
            ..network
        };
        assert_eq!(none.proxy_for(&url("https://far.test")), None);
    }

    #[test]
    fn the_environment_is_read_as_others_read_it() {
        let network = Network::from_variables(|name| match name {
            "https_proxy" => Some("http://me:hunter2@proxy:1".into()),
            "HTTPS_PROXY" => Some(String::new()),
            "AWS_ACCESS_KEY_ID" => Some("AKIA".into()),
            "AWS_SECRET_ACCESS_KEY" => Some("hunter3".into()),
            "AWS_DEFAULT_REGION" => Some("eu-central-1".into()),
            _ => None,
        });
        assert_eq!(
            network.https_proxy.as_deref(),
            Some("http://me:hunter2@proxy:1")
        );
        assert_eq!(network.s3.region.as_deref(), Some("eu-central-1"));
        let shown = format!("{network:?}");
        assert!(!shown.contains("hunter"), "{shown}");
    }
}
