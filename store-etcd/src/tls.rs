//! TLS with ring, from files that may change.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use crate::grpc::chain;
use crate::options::Tls;

/// What the files hold at one time.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Files {
    ca: Vec<u8>,
    client: Option<(Vec<u8>, Vec<u8>)>,
}

impl Files {
    pub(crate) fn read(tls: &Tls) -> Result<Self, String> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
        };
        let client = match &tls.client_certificate {
            Some((certificate, key)) => Some((read(certificate)?, read(key)?)),
            None => None,
        };
        let ca = read(&tls.ca)?;
        Ok(Self { ca, client })
    }

    /// The configuration of connections.
    pub(crate) fn config(&self, tls: &Tls) -> Result<Arc<ClientConfig>, String> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca, &tls.ca)? {
            roots
                .add(certificate)
                .map_err(|error| format!("{}: {error}", tls.ca.display()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots);
        let mut config = match (&self.client, &tls.client_certificate) {
            (Some((certificate, key)), Some((certificate_path, key_path))) => {
                let chain_of = certificates(certificate, certificate_path)?;
                let key = PrivateKeyDer::from_pem_slice(key)
                    .map_err(|error| format!("no key in {}: {error}", key_path.display()))?;
                builder
                    .with_client_auth_cert(chain_of, key)
                    .map_err(|error| {
                        let (certificate, key) = (certificate_path.display(), key_path.display());
                        format!("{certificate} and {key}: {}", chain(&error))
                    })?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

fn certificates(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates =
        certificates.map_err(|error| format!("no certificates in {}: {error}", path.display()))?;
    if certificates.is_empty() {
        return Err(format!("no certificates in {}", path.display()));
    }
    Ok(certificates)
}

/// The name that a server's certificate must be for.
pub(crate) fn server_name(tls: &Tls, host: &str) -> Result<ServerName<'static>, String> {
    let name = tls.server_name.as_deref().unwrap_or(host);
    ServerName::try_from(name.to_owned())
        .map_err(|_| format!("`{name}` is no name that a certificate can be for"))
}
