//! TLS of the API: an authority that all servers of a store share, and what it signs.
//!
//! A directory holds `ca.crt` and `ca.key`. With both a server signs its own certificate at every
//! start, and again each day; a directory with `server.crt` and `server.key` instead serves those,
//! and its `ca.key` may stay elsewhere. A person's certificate names them and their role.

mod node;

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use x509_parser::prelude::{FromDer as _, X509Certificate};

pub(crate) use node::{NodeCertificate, agent_config, node_of, node_of_pem};

use crate::access::{Caller, Role};

/// The authority's certificate in its directory.
pub(crate) const CA: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const SERVER: &str = "server.crt";
const SERVER_KEY: &str = "server.key";

const DAY: Duration = Duration::from_secs(86_400);
/// The authority's own certificate.
const CA_LIFETIME: Duration = Duration::from_secs(86_400 * 3_650);
/// A server's, which is signed anew each day.
const SERVER_LIFETIME: Duration = Duration::from_secs(86_400 * 90);
/// Clocks of machines differ.
const SKEW: Duration = Duration::from_secs(3_600);
/// How a certificate's organisation names a role.
const ROLE: &str = "platctrl:";

/// What is wrong with the files, and what to do.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {problem}", .path.display())]
pub(crate) struct TlsError {
    path: PathBuf,
    problem: String,
    /// There is no authority yet.
    pub(crate) is_missing: bool,
}

fn wrong(path: &Path, problem: impl fmt::Display) -> TlsError {
    TlsError {
        path: path.to_owned(),
        problem: problem.to_string(),
        is_missing: false,
    }
}

fn read(path: &Path) -> Result<String, TlsError> {
    fs::read_to_string(path).map_err(|error| TlsError {
        is_missing: error.kind() == io::ErrorKind::NotFound,
        ..wrong(path, format_args!("cannot be read: {error}"))
    })
}

/// Writes a file that must not be there yet.
fn create(path: &Path, mode: u32, text: &str) -> Result<(), TlsError> {
    let write = || {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|error| wrong(path, format_args!("cannot be written: {error}")))
}

fn valid_for(params: &mut CertificateParams, lifetime: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - SKEW).into();
    params.not_after = (now + lifetime).into();
}

/// Whoever signs for the servers of a store.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
pub(crate) struct Issued {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    /// Makes one in a directory that has none.
    pub(crate) fn make(dir: &Path) -> Result<(), TlsError> {
        let failed = |error: rcgen::Error| wrong(dir, error);
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        // A name of its own, so that a certificate of another authority is told as that.
        let name = format!("platctrl {:08x}", rand::random::<u32>());
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid_for(&mut params, CA_LIFETIME);
        let certificate = params.self_signed(&key).map_err(failed)?;
        fs::create_dir_all(dir).map_err(|error| wrong(dir, error))?;
        // The key first: whoever sees the certificate finds the key, too.
        create(&dir.join(CA_KEY), 0o600, &key.serialize_pem())?;
        create(&dir.join(CA), 0o644, &certificate.pem())
    }

    pub(crate) fn load(dir: &Path) -> Result<Self, TlsError> {
        let (certificate, key) = (dir.join(CA), dir.join(CA_KEY));
        let certificate_text = read(&certificate)?;
        let parsed = KeyPair::from_pem(&read(&key)?)
            .map_err(|error| wrong(&key, format_args!("is no private key: {error}")))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate_text, parsed).map_err(|error| {
            wrong(
                &certificate,
                format_args!("is no authority's certificate: {error}"),
            )
        })?;
        Ok(Self { issuer })
    }

    fn sign(&self, params: &CertificateParams) -> Result<Issued, rcgen::Error> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// A server's certificate for these names and addresses.
    fn server(&self, names: &[String]) -> Result<Issued, rcgen::Error> {
        let mut params = CertificateParams::new(names.to_vec())?;
        params
            .distinguished_name
            .push(DnType::CommonName, "platctrl server");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        valid_for(&mut params, SERVER_LIFETIME);
        self.sign(&params)
    }

    /// A certificate for somebody, with their role. It cannot be taken back.
    pub(crate) fn person(
        &self,
        name: &str,
        role: Role,
        lifetime: Duration,
    ) -> Result<Issued, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params
            .distinguished_name
            .push(DnType::OrganizationName, format!("{ROLE}{role}"));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        valid_for(&mut params, lifetime);
        self.sign(&params)
    }
}

/// Whom a certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Person {
    pub(crate) caller: Caller,
    /// The end of the certificate's time.
    pub(crate) until: Timestamp,
}

/// The person that a certificate names, which the authority must have signed.
pub(crate) fn person_of(certificate: &CertificateDer<'_>) -> Option<Person> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    let role = subject
        .iter_organization()
        .filter_map(|it| it.as_str().ok()?.strip_prefix(ROLE)?.parse().ok())
        .next()?;
    let until = parsed.validity().not_after.timestamp();
    Some(Person {
        caller: Caller {
            name: name.to_owned(),
            role,
        },
        until: Timestamp::from_second(until).ok()?,
    })
}

fn certificates(path: &Path, pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(wrong(path, "holds no certificate")),
        Err(error) => Err(wrong(path, format_args!("is no certificate: {error}"))),
    }
}

fn roots(path: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, &read(path)?)? {
        roots.add(certificate).map_err(|error| wrong(path, error))?;
    }
    Ok(Arc::new(roots))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What a server shows, and whose certificates it takes.
#[derive(Clone, Debug)]
pub(crate) struct ServerIdentity {
    dir: PathBuf,
    names: Vec<String>,
}

impl ServerIdentity {
    /// A server that is reached under these names and addresses.
    pub(crate) fn new(dir: impl Into<PathBuf>, names: Vec<String>) -> Self {
        Self {
            dir: dir.into(),
            names,
        }
    }

    /// How long a configuration is used.
    pub(crate) const GOOD_FOR: Duration = DAY;

    /// The configuration as of now, from the files as they are now.
    pub(crate) fn config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let ca = self.dir.join(CA);
        let authority = roots(&ca)?;
        let (path, key_path) = (self.dir.join(SERVER), self.dir.join(SERVER_KEY));
        let (chain, key) = if path.exists() {
            let key = PrivateKeyDer::from_pem_slice(read(&key_path)?.as_bytes())
                .map_err(|error| wrong(&key_path, format_args!("is no private key: {error}")))?;
            (certificates(&path, &read(&path)?)?, key)
        } else {
            let issued = Authority::load(&self.dir)?
                .server(&self.names)
                .map_err(|error| wrong(&self.dir, error))?;
            let key = PrivatePkcs8KeyDer::from_pem_slice(issued.key.as_bytes())
                .map_err(|error| wrong(&self.dir, error))?;
            (certificates(&self.dir, &issued.certificate)?, key.into())
        };
        let people = WebPkiClientVerifier::builder_with_provider(authority, provider())
            .allow_unauthenticated()
            .build()
            .map_err(|error| wrong(&ca, error))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(&self.dir, error))?
            .with_client_cert_verifier(people)
            .with_single_cert(chain, key)
            .map_err(|error| wrong(&path, error))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// How a client makes sure of a server: the authority in this file signed its certificate.
pub(crate) fn client_config(ca: &Path) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(ca, error))?
        .with_root_certificates(roots(ca)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The names of a server that listens here: its addresses, this machine's name, and those given.
pub(crate) fn names(listens: IpAddr, host: Option<String>, given: &[String]) -> Vec<String> {
    let mut names = vec![
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ];
    if !listens.is_unspecified() {
        names.push(listens.to_string());
    }
    names.extend(host);
    names.extend(given.iter().cloned());
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn an_authority_is_made_once_and_its_key_is_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let tls = dir.path().join("tls");
        let missing = Authority::load(&tls).err().unwrap();
        assert!(missing.is_missing, "{missing}");
        Authority::make(&tls).unwrap();
        let mode = fs::metadata(tls.join(CA_KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let before = read(&tls.join(CA)).unwrap();
        assert!(Authority::make(&tls).is_err());
        assert_eq!(read(&tls.join(CA)).unwrap(), before);
        Authority::load(&tls).unwrap();
        ServerIdentity::new(&tls, names("0.0.0.0".parse().unwrap(), None, &[]))
            .config()
            .unwrap();
        client_config(&tls.join(CA)).unwrap();
    }

    #[test]
    fn a_persons_certificate_names_them_and_their_role() {
        let dir = tempfile::tempdir().unwrap();
        Authority::make(dir.path()).unwrap();
        let authority = Authority::load(dir.path()).unwrap();
        let issued = authority.person("ann", Role::Operator, DAY).unwrap();
        let all = certificates(Path::new("ann.crt"), &issued.certificate).unwrap();
        let ann = Caller {
            name: "ann".to_owned(),
            role: Role::Operator,
        };
        let person = person_of(&all[0]).unwrap();
        assert_eq!(person.caller, ann);
        let lasts = person.until.duration_since(Timestamp::now()).unsigned_abs();
        assert!(lasts > DAY / 2 && lasts <= DAY, "{lasts:?}");
        // A server's own is nobody's.
        let issued = authority.server(&["localhost".to_owned()]).unwrap();
        let all = certificates(Path::new("server.crt"), &issued.certificate).unwrap();
        assert_eq!(person_of(&all[0]), None);
    }

    #[test]
    fn files_that_are_no_certificates_are_named() {
        let dir = tempfile::tempdir().unwrap();
        Authority::make(dir.path()).unwrap();
        fs::write(dir.path().join(CA), "text").unwrap();
        let identity = ServerIdentity::new(dir.path(), Vec::new());
        let error = identity.config().unwrap_err();
        assert!(error.to_string().contains("ca.crt"), "{error}");
        assert!(!error.is_missing);
    }
}
