//! The cloud's own certificate authority, in `ca/` of the state directory.

use aws_lc_rs::digest::{SHA256, digest};
use bixi_api::agent::{CLOUD_NAME, Validity};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::crypto::aws_lc_rs::sign::any_supported_type;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// Why the authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read or written.
    #[error("cannot use {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A certificate or key is damaged, or cannot be made.
    #[error("certificates: {0}")]
    Certificate(#[from] rcgen::Error),
    /// TLS does not take them.
    #[error("TLS: {0}")]
    Tls(String),
}

/// How long certificates are good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lives {
    /// The authority's, when it is made.
    pub authority: Duration,
    /// The cloud's own.
    pub server: Duration,
    /// An agent's.
    pub agent: Duration,
}

impl Default for Lives {
    fn default() -> Self {
        let days = |days: u64| Duration::from_secs(days * 24 * 3600);
        Self { authority: days(20 * 365), server: days(90), agent: days(365) }
    }
}

/// A certificate for an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// In PEM.
    pub pem: String,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
    /// When it is good.
    pub validity: Validity,
}

/// Milliseconds since 1970.
pub(super) fn now() -> u64 {
    crate::service::now()
}

/// The authority.
#[derive(Debug)]
pub struct Authority {
    path: PathBuf,
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    lives: Lives,
    ends: u64,
}

impl Authority {
    /// Opens the authority in `folder`, which is made at the first start.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub fn open(folder: &Path, lives: Lives) -> Result<Self, AuthorityError> {
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| AuthorityError::File { path, source }
        };
        let (path, key_path) = (folder.join("ca.pem"), folder.join("ca.key"));
        fs::create_dir_all(folder).map_err(fail(folder))?;
        // The certificate is written last: where it is, the key is too.
        if !path.exists() {
            let key = KeyPair::generate()?;
            let certificate = parameters(lives.authority)?.self_signed(&key)?;
            keep(&key_path, &key.serialize_pem(), 0o600).map_err(fail(&key_path))?;
            keep(&path, &certificate.pem(), 0o644).map_err(fail(&path))?;
        }
        let pem = fs::read_to_string(&path).map_err(fail(&path))?;
        let key = fs::read_to_string(&key_path).map_err(fail(&key_path))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, KeyPair::from_pem(&key)?)?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes());
        let der = der.map_err(|e| AuthorityError::Tls(e.to_string()))?;
        let ends = ends(&der)?;
        Ok(Self { path, pem, der, issuer, lives, ends })
    }

    /// When its certificate ends, in milliseconds since 1970.
    pub fn ends(&self) -> u64 {
        self.ends
    }

    /// From now on; a certificate that outlived its authority would be good for nothing.
    fn good_for(&self, life: Duration) -> Validity {
        let (now, life) = (now(), u64::try_from(life.as_millis()).unwrap_or(u64::MAX));
        // The certificate has whole seconds.
        Validity { from: now, until: now.saturating_add(life).min(self.ends) / 1000 * 1000 }
    }

    /// Where its certificate is, for clients.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// SHA-256 of its certificate.
    pub fn sha256(&self) -> [u8; 32] {
        let mut sum = [0; 32];
        sum.copy_from_slice(digest(&SHA256, &self.der).as_ref());
        sum
    }

    /// A certificate for a server's agent: the key of the request, our words.
    ///
    /// # Errors
    /// The request is damaged, or its sender has not the key.
    pub fn sign(&self, csr_pem: &str, server: &str) -> Result<Signed, AuthorityError> {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem)?;
        let validity = self.good_for(self.lives.agent);
        let mut params = CertificateParams::default();
        valid(&mut params, validity);
        params.distinguished_name = named(server);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        request.params = params;
        let certificate = request.signed_by(&self.issuer)?;
        let sha256 = hex(digest(&SHA256, certificate.der()).as_ref());
        Ok(Signed { pem: certificate.pem(), sha256, validity })
    }

    /// A fresh certificate for these names, and the authority's.
    pub(super) fn server(
        &self,
        names: &[String],
    ) -> Result<(Arc<CertifiedKey>, Validity), AuthorityError> {
        let key = KeyPair::generate()?;
        let mut all = vec![CLOUD_NAME.to_owned(), "localhost".to_owned()];
        all.extend(["127.0.0.1".to_owned(), "::1".to_owned()]);
        let new = |name: &&String| !all.contains(name) && !is_any(name);
        let more: Vec<String> = names.iter().filter(new).cloned().collect();
        all.extend(more);
        let validity = self.good_for(self.lives.server);
        let mut params = CertificateParams::new(all)?;
        valid(&mut params, validity);
        params.distinguished_name = named(CLOUD_NAME);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let tls = |e: &dyn std::fmt::Display| AuthorityError::Tls(e.to_string());
        let chain = vec![certificate.der().clone(), self.der.clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| tls(&e))?;
        let key = any_supported_type(&key).map_err(|e| tls(&e))?;
        Ok((Arc::new(CertifiedKey::new(chain, key)), validity))
    }

    /// How listeners speak: they show what they are told to, and take agents' certificates.
    pub(super) fn config(
        &self,
        shown: Arc<dyn ResolvesServerCert>,
    ) -> Result<Arc<ServerConfig>, AuthorityError> {
        let tls = |e: &dyn std::fmt::Display| AuthorityError::Tls(e.to_string());
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).map_err(|e| tls(&e))?;
        let provider = Arc::new(default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|e| tls(&e))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| tls(&e))?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(shown);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Whether an address stands for all there are, and so is nobody's name.
fn is_any(name: &str) -> bool {
    name.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified())
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// Since an hour ago, for clocks that differ a little.
fn valid(params: &mut CertificateParams, validity: Validity) {
    let since_1970 = |ms| date_time_ymd(1970, 1, 1) + Duration::from_millis(ms);
    params.not_before = since_1970(validity.from.saturating_sub(3_600_000));
    params.not_after = since_1970(validity.until);
}

/// When a certificate ends, in milliseconds since 1970.
pub(super) fn ends(der: &CertificateDer<'_>) -> Result<u64, AuthorityError> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der)
        .map_err(|e| AuthorityError::Tls(format!("the authority's certificate: {e}")))?;
    let seconds = certificate.validity().not_after.timestamp();
    Ok(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000))
}

fn parameters(life: Duration) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    let until = now().saturating_add(u64::try_from(life.as_millis()).unwrap_or(u64::MAX));
    valid(&mut params, Validity { from: now(), until });
    params.distinguished_name = named("Bixi cloud authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// Writes a file whole or not at all, with these permissions from the beginning.
pub(crate) fn keep(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let fresh = path.with_extension("new");
    match fs::remove_file(&fresh) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::File::open(folder)?.sync_all()
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
