//! HTTPS to the cloud, as each of its clients speaks it: one request, one connection, one answer, TLS 1.3 only.
//!
//! Invariant: nothing is said before the other side has shown a certificate for [`CLOUD_NAME`] that the client's
//! configuration takes. Called by the clients of agents, operators and tenants.

use crate::agent::CLOUD_NAME;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

/// No answer that is read whole is larger than this many bytes.
const ANSWER_LIMIT: usize = 64 << 20;

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Why no answer began.
pub(crate) enum Fault {
    /// The cloud cannot be reached, or is not who it should be.
    Connect(io::Error),
    /// The connection broke.
    Broken(Failure),
}

/// Sends `request` to the cloud at `cloud`, `HOST:PORT`; a connection is made within `patience` or not at all.
pub(crate) async fn exchange<B>(
    cloud: &str,
    config: &Arc<ClientConfig>,
    patience: Duration,
    request: Request<B>,
) -> Result<Response<Incoming>, Fault>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Failure>,
{
    let stream = async {
        let tcp = TcpStream::connect(cloud).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(CLOUD_NAME).map_err(io::Error::other)?;
        TlsConnector::from(Arc::clone(config)).connect(name, tcp).await
    };
    let late = |_| Err(io::Error::from(io::ErrorKind::TimedOut));
    let stream = timeout(patience, stream).await.unwrap_or_else(late).map_err(Fault::Connect)?;
    let broken = |error: hyper::Error| Fault::Broken(error.into());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // The task ends with the connection: when the answer's body is read or dropped, or an upgraded stream is.
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await.map_err(broken)
}

/// The whole of an answer's body.
pub(crate) async fn whole(answer: Response<Incoming>) -> Result<Bytes, Failure> {
    Ok(Limited::new(answer.into_body(), ANSWER_LIMIT).collect().await?.to_bytes())
}

/// A configuration that shows nothing and takes what the authority `ca_pem` has signed.
#[cfg(any(feature = "operator-client", feature = "ecs-client"))]
pub(crate) fn by_authority(ca_pem: &str) -> Result<Arc<ClientConfig>, Failure> {
    use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
    use tokio_rustls::rustls::pki_types::CertificateDer;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::{RootCertStore, version};

    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
