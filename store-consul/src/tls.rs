//! TLS as the options ask for it: only the named authorities, ring, files read again when they
//! change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use crate::options::TlsOptions;

/// What is wrong with the files for TLS.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {reason}", .path.display())]
pub(crate) struct TlsFileError {
    path: PathBuf,
    reason: String,
}

/// Makes connections secure.
#[derive(Debug)]
pub(crate) struct Tls {
    options: TlsOptions,
    name: ServerName<'static>,
    current: Mutex<Option<Current>>,
}

struct Current {
    stamps: Vec<Option<(SystemTime, u64)>>,
    config: Arc<ClientConfig>,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").finish_non_exhaustive()
    }
}

impl Tls {
    pub(crate) fn new(options: TlsOptions, host: &str) -> Result<Self, TlsFileError> {
        let name = options.server_name.as_deref().unwrap_or(host).to_owned();
        let name = ServerName::try_from(name).map_err(|error| TlsFileError {
            path: PathBuf::from(host),
            reason: error.to_string(),
        })?;
        let tls = Self {
            options,
            name,
            current: Mutex::new(None),
        };
        tls.config()?;
        Ok(tls)
    }

    pub(crate) fn name(&self) -> ServerName<'static> {
        self.name.clone()
    }

    pub(crate) fn connector(&self) -> Result<TlsConnector, TlsFileError> {
        Ok(TlsConnector::from(self.config()?))
    }

    fn config(&self) -> Result<Arc<ClientConfig>, TlsFileError> {
        let stamps = self.stamps();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = current.as_ref().filter(|current| current.stamps == stamps) {
            return Ok(Arc::clone(&current.config));
        }
        let config = match (build(&self.options), current.as_ref()) {
            (Ok(config), _) => Arc::new(config),
            // Half of a change: what was good goes on until the rest of it is there.
            (Err(error), Some(before)) => {
                tracing::warn!(%error, "changed files of TLS are not used");
                return Ok(Arc::clone(&before.config));
            }
            (Err(error), None) => return Err(error),
        };
        *current = Some(Current {
            stamps,
            config: Arc::clone(&config),
        });
        Ok(config)
    }

    fn stamps(&self) -> Vec<Option<(SystemTime, u64)>> {
        let mut files = vec![&self.options.ca_file];
        if let Some((certificate, key)) = &self.options.client {
            files.extend([certificate, key]);
        }
        let stamp = |path: &PathBuf| {
            let data = std::fs::metadata(path).ok()?;
            Some((data.modified().ok()?, data.len()))
        };
        files.into_iter().map(stamp).collect()
    }
}

fn build(options: &TlsOptions) -> Result<ClientConfig, TlsFileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&options.ca_file)? {
        roots
            .add(certificate)
            .map_err(|error| failed(&options.ca_file, error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&options.ca_file, error))?
        .with_root_certificates(roots);
    match &options.client {
        None => Ok(builder.with_no_client_auth()),
        Some((certificate, key)) => {
            let chain = certificates(certificate)?;
            let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, error))?;
            builder
                .with_client_auth_cert(chain, key_der)
                .map_err(|error| failed(certificate, error))
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(|error| failed(path, error))?
        .collect();
    let certificates = certificates.map_err(|error| failed(path, error))?;
    if certificates.is_empty() {
        return Err(failed(path, "it holds no certificate"));
    }
    Ok(certificates)
}

fn failed(path: &Path, reason: impl std::fmt::Display) -> TlsFileError {
    TlsFileError {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}
