//! The cloud's own certificate authority, in `ca/` of the state directory.

use aws_lc_rs::digest::{SHA256, digest};
use bixi_api::agent::CLOUD_NAME;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
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

/// The authority.
#[derive(Debug)]
pub struct Authority {
    path: PathBuf,
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Opens the authority in `folder`, which is made at the first start.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub fn open(folder: &Path) -> Result<Self, AuthorityError> {
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| AuthorityError::File { path, source }
        };
        let (path, key_path) = (folder.join("ca.pem"), folder.join("ca.key"));
        fs::create_dir_all(folder).map_err(fail(folder))?;
        // The certificate is written last: where it is, the key is too.
        if !path.exists() {
            let key = KeyPair::generate()?;
            let certificate = parameters()?.self_signed(&key)?;
            keep(&key_path, &key.serialize_pem(), 0o600).map_err(fail(&key_path))?;
            keep(&path, &certificate.pem(), 0o644).map_err(fail(&path))?;
        }
        let pem = fs::read_to_string(&path).map_err(fail(&path))?;
        let key = fs::read_to_string(&key_path).map_err(fail(&key_path))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, KeyPair::from_pem(&key)?)?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes());
        let der = der.map_err(|e| AuthorityError::Tls(e.to_string()))?;
        Ok(Self { path, pem, der, issuer })
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

    /// A certificate for a server's agent: the key of the request, our words. Gives PEM and SHA-256 in hexadecimal.
    ///
    /// # Errors
    /// The request is damaged, or its sender has not the key.
    pub fn sign(&self, csr_pem: &str, server: &str) -> Result<(String, String), AuthorityError> {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(server);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        request.params = params;
        let certificate = request.signed_by(&self.issuer)?;
        Ok((certificate.pem(), hex(digest(&SHA256, certificate.der()).as_ref())))
    }

    /// What listeners show: a fresh certificate for these names, and the authority's.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub fn server(&self, names: &[String]) -> Result<Arc<ServerConfig>, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut all = vec![CLOUD_NAME.to_owned(), "localhost".to_owned()];
        all.extend(["127.0.0.1".to_owned(), "::1".to_owned()]);
        let new = |name: &&String| !all.contains(name) && !is_any(name);
        let more: Vec<String> = names.iter().filter(new).cloned().collect();
        all.extend(more);
        let mut params = CertificateParams::new(all)?;
        params.distinguished_name = named(CLOUD_NAME);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let tls = |e: &dyn std::fmt::Display| AuthorityError::Tls(e.to_string());
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).map_err(|e| tls(&e))?;
        let provider = Arc::new(default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|e| tls(&e))?;
        let chain = vec![certificate.der().clone(), self.der.clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| tls(&e))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| tls(&e))?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)
            .map_err(|e| tls(&e))?;
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

fn parameters() -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
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
