//! TLS for checks: the agent's certificate, and whom it believes.
//!
//! One configuration for each way to check a server, never one that is changed for a single check:
//! a check that believes anybody must not make the others do so.

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

/// The files of the agent's identity towards the pods that it checks. They are read again when
/// they change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeFiles {
    /// Authorities whose certificates are believed (PEM). Without it anybody's are.
    pub ca: Option<PathBuf>,
    /// The certificate to show and its key (PEM).
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// What is known of the files: while this is the same, they are.
type Stamp = Vec<Option<(SystemTime, u64)>>;

#[derive(Clone)]
struct Configurations {
    /// Of servers whose name is checked, or that anybody may be when there is no authority.
    named: Arc<ClientConfig>,
    /// Of servers for which any name will do.
    unnamed: Arc<ClientConfig>,
}

/// Makes configurations of the files.
#[derive(Default)]
pub(super) struct Tls {
    files: ProbeFiles,
    known: Mutex<Option<(Stamp, Configurations)>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = &self.files;
        f.debug_struct("Tls")
            .field("files", files)
            .finish_non_exhaustive()
    }
}

impl Tls {
    pub(super) fn new(files: ProbeFiles) -> Self {
        Self {
            files,
            known: Mutex::default(),
        }
    }

    /// How to ask a server, with its name if that matters.
    pub(super) fn client(&self, name: Option<&str>) -> Result<Arc<ClientConfig>, String> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.stamp();
        let current = known.as_ref().filter(|(at, _)| *at == stamp);
        let configurations = match current {
            Some((_, configurations)) => configurations.clone(),
            None => {
                let made = self.make()?;
                *known = Some((stamp, made.clone()));
                made
            }
        };
        Ok(match name {
            Some(_) => configurations.named,
            None => configurations.unnamed,
        })
    }

    fn stamp(&self) -> Stamp {
        let ProbeFiles { ca, identity } = &self.files;
        let identity = identity.iter().flat_map(|(one, other)| [one, other]);
        let files = ca.iter().chain(identity);
        let stamp = |path: &PathBuf| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        files.map(stamp).collect()
    }

    fn make(&self) -> Result<Configurations, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = match &self.files.ca {
            Some(ca) => {
                let roots = Arc::new(authorities(ca)?);
                let built = WebPkiServerVerifier::builder_with_provider(roots, provider.clone());
                Some(built.build().map_err(|error| unusable(ca, &error))?)
            }
            None => None,
        };
        let make = |any_name: bool| {
            let verifier: Arc<dyn ServerCertVerifier> = match &chain {
                Some(chain) if !any_name => chain.clone(),
                chain => Arc::new(AnyName {
                    chain: chain.clone(),
                    provider: provider.clone(),
                }),
            };
            self.configuration(provider.clone(), verifier)
        };
        Ok(Configurations {
            named: make(false)?,
            unnamed: make(true)?,
        })
    }

    fn configuration(
        &self,
        provider: Arc<CryptoProvider>,
        verifier: Arc<dyn ServerCertVerifier>,
    ) -> Result<Arc<ClientConfig>, String> {
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &self.files.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate)?;
                let secret =
                    PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, &error))?;
                let config = builder.with_client_auth_cert(chain, secret);
                config.map_err(|error| unusable(certificate, &error))?
            }
        };
        // Each check proves anew that the pod can do its work.
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

fn unusable(path: &Path, error: &dyn fmt::Display) -> String {
    format!("the agent cannot use {}: {error}", path.display())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_file_iter(path).map_err(|error| unusable(path, &error))?;
    let found: Result<Vec<_>, _> = found.collect();
    let found = found.map_err(|error| unusable(path, &error))?;
    if found.is_empty() {
        return Err(unusable(path, &"it holds no certificate"));
    }
    Ok(found)
}

fn authorities(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| unusable(path, &error))?;
    }
    Ok(roots)
}

/// Believes the authorities' certificates for whatever name, or anybody's where there are none.
#[derive(Debug)]
struct AnyName {
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        match chain.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // The name is judged last: everything else was right.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            judged => judged,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
