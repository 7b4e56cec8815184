//! Certificates of nodes: what an agent shows where it opens its stream.
//!
//! Such a certificate names a node and nothing else. It is no person's, so that it lets nobody ask
//! anything of the API; and which one a node has is written in the store, so that one that was
//! lost is worth nothing once another was given.

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use platctrl_framework::model::check_name;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Authority, CA_LIFETIME, Issued, TlsError, certificates, provider, read, roots, wrong};

/// What the organisation of a node's certificate is.
const ORGANISATION: &str = "platctrl-node";

/// What a node's certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeCertificate {
    pub(crate) node: String,
    /// The digest of the whole certificate.
    pub(crate) sha256: String,
    /// The end of its time.
    pub(crate) until: Timestamp,
}

impl Authority {
    /// A certificate for a node. It is good until another is given, or the node is given up.
    pub(crate) fn node(&self, name: &str) -> Result<Issued, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params
            .distinguished_name
            .push(DnType::OrganizationName, ORGANISATION);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        super::valid_for(&mut params, CA_LIFETIME);
        self.sign(&params)
    }
}

/// The node that a certificate names, which the authority must have signed.
pub(crate) fn node_of(certificate: &CertificateDer<'_>) -> Option<NodeCertificate> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let subject = parsed.subject();
    let mut organisations = subject.iter_organization();
    if organisations.next()?.as_str().ok()? != ORGANISATION {
        return None;
    }
    let node = subject.iter_common_name().next()?.as_str().ok()?;
    check_name("node name", node).ok()?;
    let until = parsed.validity().not_after.timestamp();
    Some(NodeCertificate {
        node: node.to_owned(),
        sha256: digest(certificate),
        until: Timestamp::from_second(until).ok()?,
    })
}

fn digest(certificate: &CertificateDer<'_>) -> String {
    let digest = Sha256::digest(certificate.as_ref());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a certificate in PEM says, of a node.
pub(crate) fn node_of_pem(pem: &str) -> Option<NodeCertificate> {
    node_of(&CertificateDer::from_pem_slice(pem.as_bytes()).ok()?)
}

/// How an agent makes sure of a server, and what it shows to it.
pub(crate) fn agent_config(
    ca: &Path,
    certificate: &Path,
    key: &Path,
) -> Result<Arc<ClientConfig>, TlsError> {
    let chain = certificates(certificate, &read(certificate)?)?;
    let parsed = PrivateKeyDer::from_pem_slice(read(key)?.as_bytes())
        .map_err(|error| wrong(key, format_args!("is no private key: {error}")))?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(ca, error))?
        .with_root_certificates(roots(ca)?)
        .with_client_auth_cert(chain, parsed)
        .map_err(|error| wrong(certificate, error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::access::Role;
    use crate::tls::person_of;

    #[test]
    fn a_nodes_certificate_names_it_and_is_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        Authority::make(dir.path()).unwrap();
        let authority = Authority::load(dir.path()).unwrap();
        let issued = authority.node("web1").unwrap();
        let seen = node_of_pem(&issued.certificate).unwrap();
        assert_eq!(seen.node, "web1");
        assert_eq!(seen.sha256.len(), 64);
        let der = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap();
        assert_eq!(person_of(&der), None);
        let again = authority.node("web1").unwrap();
        assert_ne!(node_of_pem(&again.certificate).unwrap().sha256, seen.sha256);

        // Nor is a person one, whatever they are called and may.
        let person = authority.person("web1", Role::Node, Duration::from_secs(60));
        assert_eq!(node_of_pem(&person.unwrap().certificate), None);
        let server = authority.server(&["web1".to_owned()]).unwrap();
        assert_eq!(node_of_pem(&server.certificate), None);
        for odd in ["Web 1", "../x", ""] {
            let odd = authority.node(odd).unwrap();
            assert_eq!(node_of_pem(&odd.certificate), None);
        }

        let (certificate, key) = (dir.path().join("web1.crt"), dir.path().join("web1.key"));
        std::fs::write(&certificate, &issued.certificate).unwrap();
        std::fs::write(&key, &issued.key).unwrap();
        let ca = dir.path().join(crate::tls::CA);
        agent_config(&ca, &certificate, &key).unwrap();
        std::fs::write(&key, &again.key).unwrap();
        let error = agent_config(&ca, &certificate, &key).unwrap_err();
        assert!(error.to_string().contains("web1.crt"), "{error}");
    }
}
