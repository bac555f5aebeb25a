//! The listeners: HTTP/1.1 over TCP or TLS, one task for each connection.
//!
//! Invariants: a client that says nothing, or says it too slowly, costs one of a bounded number of connections for a
//! bounded time; it never stops others from being heard.

use super::authority::{ends, hex};
use super::head::{self, Excess, Guard, Phase};
use aws_lc_rs::digest::{SHA256, digest};
use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

/// The most connections of one listener.
const CONNECTIONS: usize = 4096;
/// How long a handshake, or the head of a request, may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// Bytes that are read of a request that was refused by its head.
const DRAIN: u64 = 32 << 20;
/// The same, of somebody whose handshake failed.
const STRANGER: u64 = 64 << 10;
/// How long accepting rests when the process has no descriptors left.
const REST: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// SHA-256 of the certificate that it has shown, in hexadecimal; the authority has signed it.
    pub certificate_sha256: Option<String>,
    /// When it ends, in milliseconds since 1970: whoever takes a session up again is not asked for it anew.
    pub certificate_ends: Option<u64>,
}

/// Serves until dropped, without TLS.
pub async fn serve_http(listener: TcpListener, router: Router) {
    accept(listener, move |stream, address| {
        let router = router.clone();
        async move {
            talk(stream, Peer { address, certificate_sha256: None, certificate_ends: None }, router)
                .await
        }
    })
    .await;
}

/// Serves until dropped, with TLS.
pub async fn serve_https(listener: TcpListener, config: Arc<ServerConfig>, router: Router) {
    let acceptor = TlsAcceptor::from(config);
    accept(listener, move |stream, address| {
        let (router, acceptor) = (router.clone(), acceptor.clone());
        async move {
            let accepted = acceptor.accept(stream).into_fallible();
            let stream = match tokio::time::timeout(PATIENCE, accepted).await {
                Ok(Ok(stream)) => stream,
                Ok(Err((error, stream))) => {
                    tracing::debug!(%error, %address, "a handshake failed");
                    return rest(stream, STRANGER).await;
                }
                Err(_) => return,
            };
            let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let certificate_sha256 = shown.map(|der| hex(digest(&SHA256, der).as_ref()));
            let certificate_ends = shown.and_then(|der| ends(der).ok());
            talk(stream, Peer { address, certificate_sha256, certificate_ends }, router).await;
        }
    })
    .await;
}

async fn accept<F>(listener: TcpListener, serve: impl Fn(TcpStream, SocketAddr) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(place) = free.clone().acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, address)) => {
                let _ = stream.set_nodelay(true);
                let served = serve(stream, address);
                connections.spawn(async move {
                    served.await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    router: Router,
) {
    let phase = Phase::default();
    let (stream, mut excess) = Guard::new(stream, phase.clone());
    let watch = move |request, next| phase.clone().watch(request, next);
    let router = router.layer(axum::Extension(peer)).layer(axum::middleware::from_fn(watch));
    let service = TowerToHyperService::new(router);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection broke");
    }
    if let Ok((stream, excess)) = excess.try_recv() {
        refuse(stream, &excess).await;
    }
}

/// Answers a head that hyper was not shown.
async fn refuse(mut stream: impl AsyncRead + AsyncWrite + Unpin, excess: &Excess) {
    let answered = async {
        stream.write_all(&head::wire(excess.answer()).await).await?;
        io::Result::Ok(stream)
    };
    match tokio::time::timeout(PATIENCE, answered).await {
        Ok(Ok(stream)) => rest(stream, DRAIN).await,
        Ok(Err(error)) => tracing::debug!(%error, "a connection broke"),
        Err(_) => {}
    }
}

/// Ends a connection after the last thing that was said on it: what the other side still sends, up to so many bytes, is
/// read for a while, or it would see a reset connection in place of what was said.
async fn rest(mut stream: impl AsyncRead + AsyncWrite + Unpin, most: u64) {
    let ended = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(most), &mut tokio::io::sink()).await
    };
    if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, ended).await {
        tracing::debug!(%error, "a connection broke");
    }
}
