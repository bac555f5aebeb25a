//! What an agent takes for proof that it speaks with its cloud. TLS 1.3 only.

use super::Credentials;
use ::aws_lc_rs::digest::{SHA256, digest};
use std::sync::Arc;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    version,
};

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A text is no PEM of its kind.
    #[error("cannot read the {what}")]
    Pem {
        /// Which.
        what: &'static str,
        /// What is wrong.
        source: pem::Error,
    },
    /// TLS does not take them.
    #[error(transparent)]
    Tls(#[from] Error),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A configuration that shows the agent's certificate and takes the cloud's by its authority.
pub(super) fn by_authority(credentials: &Credentials) -> Result<ClientConfig, TlsError> {
    let unreadable = |what| move |source| TlsError::Pem { what, source };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(credentials.ca_pem.as_bytes()) {
        roots.add(certificate.map_err(unreadable("authority's certificate"))?)?;
    }
    let own = CertificateDer::pem_slice_iter(credentials.certificate_pem.as_bytes());
    let own: Result<Vec<_>, _> = own.collect();
    let own = own.map_err(unreadable("agent's certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(credentials.key_pem.as_bytes());
    let key = key.map_err(unreadable("agent's key"))?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(own, key)?;
    Ok(config)
}

/// A configuration that shows nothing and takes the cloud's certificate if its authority has this fingerprint.
pub(super) fn by_fingerprint(ca_sha256: [u8; 32]) -> Result<ClientConfig, TlsError> {
    let verifier = Arc::new(Pinned { ca_sha256, provider: provider() });
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(config)
}

/// Finds the authority in the chain by its fingerprint, then lets WebPKI judge with it as the only root.
#[derive(Debug)]
struct Pinned {
    ca_sha256: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = |der: &&CertificateDer<'_>| digest(&SHA256, der).as_ref() == self.ca_sha256;
        let authority = intermediates.iter().find(pinned);
        let authority = authority.ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let provider = Arc::clone(&self.provider);
        let judge = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|e| Error::General(e.to_string()))?;
        judge.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
