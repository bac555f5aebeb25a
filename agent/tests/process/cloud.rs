//! A cloud of a few lines: the agent's contract over real TLS, with what is desired set by the test.

use aws_lc_rs::digest::{SHA256, digest};
use bixi_api::agent::{
    CLOUD_NAME, DesiredState, ImageFile, JoinAnswer, JoinRequest, JoinToken, RenewAnswer,
    RenewRequest, Report, SHA256_HEADER, STREAM_PROTOCOL, Validity,
};
use bixi_api::error::{ApiError, ErrorBody};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto};

pub const SECRET: &str = "test-secret-0123456789";
pub const SERVER: &str = "s-1";
/// Long enough for anything on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// What both the test and the server's tasks hold.
struct Shared {
    desired: watch::Sender<DesiredState>,
    report: Mutex<Option<Report>>,
    images: Mutex<HashMap<String, Vec<u8>>>,
    /// Streams that the agent has opened: what came on them.
    streams: Mutex<HashMap<String, Vec<u8>>>,
    /// What is written to a stream when it is opened.
    typed: Mutex<Vec<u8>>,
    ca: CertifiedIssuer<'static, KeyPair>,
    joined: Mutex<bool>,
    /// How long the agent's certificates are good, if not for ever.
    life: Mutex<Option<Duration>>,
    /// The certificates that came with reports, in the order in which they were first seen.
    shown: Mutex<Vec<Vec<u8>>>,
}

/// The cloud; it goes away when it is dropped.
pub struct Cloud {
    shared: Arc<Shared>,
    runtime: Option<tokio::runtime::Runtime>,
    address: std::net::SocketAddr,
}

impl Cloud {
    pub fn start() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let shared = Arc::new(Shared {
            desired: watch::channel(DesiredState::default()).0,
            report: Mutex::default(),
            images: Mutex::default(),
            streams: Mutex::default(),
            typed: Mutex::default(),
            ca,
            joined: Mutex::new(false),
            life: Mutex::default(),
            shown: Mutex::default(),
        });
        let mut cloud = Self { shared, runtime: None, address: "127.0.0.1:0".parse().unwrap() };
        cloud.come_back();
        cloud
    }

    /// Listens, at the address of before.
    pub fn come_back(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind(self.address)).unwrap();
        self.address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls(&self.shared)));
        runtime.spawn(accept(listener, acceptor, Arc::clone(&self.shared)));
        self.runtime = Some(runtime);
    }

    /// Is not there any more: connections break, nobody listens.
    pub fn go_away(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }

    pub fn token(&self) -> JoinToken {
        let sum = digest(&SHA256, self.shared.ca.der());
        let ca_sha256 = sum.as_ref().try_into().unwrap();
        JoinToken { secret: SECRET.to_owned(), ca_sha256, cloud: self.address.to_string() }
    }

    /// Gives out `bytes` under `id`.
    pub fn image(&self, id: &str, bytes: Vec<u8>) -> ImageFile {
        let image =
            ImageFile { id: id.to_owned(), size: bytes.len() as u64, sha256: sha256(&bytes) };
        self.shared.images.lock().unwrap().insert(id.to_owned(), bytes);
        image
    }

    /// Changes what is desired.
    pub fn desire(&self, change: impl FnOnce(&mut DesiredState)) {
        self.shared.desired.send_modify(|desired| {
            change(desired);
            desired.server = SERVER.to_owned();
            desired.revision += 1;
        });
    }

    pub fn revision(&self) -> u64 {
        self.shared.desired.borrow().revision
    }

    /// What the agent reported last.
    pub fn report(&self) -> Option<Report> {
        self.shared.report.lock().unwrap().clone()
    }

    /// Gives certificates that are good for so long from now on.
    pub fn sign_for(&self, life: Duration) {
        *self.shared.life.lock().unwrap() = Some(life);
    }

    /// With how many certificates the agent has reported.
    pub fn certificates(&self) -> usize {
        self.shared.shown.lock().unwrap().len()
    }

    /// Forgets it, so that the next one is new.
    pub fn forget_report(&self) {
        *self.shared.report.lock().unwrap() = None;
    }

    pub fn type_into_streams(&self, bytes: &[u8]) {
        *self.shared.typed.lock().unwrap() = bytes.to_vec();
    }

    /// What came on a stream, once it has been opened.
    pub fn stream(&self, id: &str) -> Option<Vec<u8>> {
        self.shared.streams.lock().unwrap().get(id).cloned()
    }

    /// Waits for a report for which `condition` has an answer.
    pub fn wait<T>(&self, what: &str, mut condition: impl FnMut(&Report) -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let report = self.report();
            if let Some(found) = report.as_ref().and_then(&mut condition) {
                return found;
            }
            assert!(Instant::now() < deadline, "no {what}: {report:#?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn tls(shared: &Shared) -> ServerConfig {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![CLOUD_NAME.to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let own = params.signed_by(&key, &shared.ca).unwrap();
    let authority: CertificateDer<'static> = shared.ca.der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).unwrap();
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .unwrap();
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![own.der().clone(), authority],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap()
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    loop {
        let Ok((tcp, _)) = listener.accept().await else { continue };
        let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(tcp).await else { return };
            let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let known = shown.map(|certificate| certificate.to_vec());
            let service = hyper::service::service_fn(move |request| {
                let (shared, known) = (Arc::clone(&shared), known.clone());
                async move { Ok::<_, std::convert::Infallible>(answer(&shared, known, request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            let _ = connection.await;
        });
    }
}

type Answer = Response<Full<Bytes>>;

fn json(status: StatusCode, value: &impl serde::Serialize) -> Answer {
    let body = Full::new(serde_json::to_vec(value).unwrap().into());
    Response::builder().status(status).body(body).unwrap()
}

fn refuse(status: StatusCode, code: &str) -> Answer {
    json(status, &ErrorBody { error: ApiError::new(code, "it is refused.", "") })
}

async fn answer(
    shared: &Arc<Shared>,
    known: Option<Vec<u8>>,
    request: Request<Incoming>,
) -> Answer {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    if path == "/agent/v1/join" {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        return join(shared, &serde_json::from_slice(&body).unwrap());
    }
    let Some(known) = known else { return refuse(StatusCode::UNAUTHORIZED, "NoCertificate") };
    if let Some(id) = path.strip_prefix("/agent/v1/images/") {
        return match shared.images.lock().unwrap().get(id) {
            None => refuse(StatusCode::NOT_FOUND, "NoSuchImage"),
            Some(bytes) => Response::builder()
                .header(SHA256_HEADER, sha256(bytes))
                .body(Full::new(bytes.clone().into()))
                .unwrap(),
        };
    }
    if let Some(id) = path.strip_prefix("/agent/v1/streams/") {
        tokio::spawn(carry(Arc::clone(shared), id.to_owned(), request));
        return Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header("connection", "upgrade")
            .header("upgrade", STREAM_PROTOCOL)
            .body(Full::default())
            .unwrap();
    }
    match path.as_str() {
        "/agent/v1/desired" => desired(shared, &query).await,
        "/agent/v1/renew" => {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let request: RenewRequest = serde_json::from_slice(&body).unwrap();
            let (certificate_pem, validity) = sign(shared, &request.csr_pem);
            json(StatusCode::OK, &RenewAnswer { certificate_pem, validity: validity.unwrap() })
        }
        "/agent/v1/report" => {
            see(&shared.shown, known);
            let body = request.into_body().collect().await.unwrap().to_bytes();
            *shared.report.lock().unwrap() = Some(serde_json::from_slice(&body).unwrap());
            json(StatusCode::OK, &())
        }
        _ => refuse(StatusCode::NOT_FOUND, "NoSuchPath"),
    }
}

fn join(shared: &Shared, request: &JoinRequest) -> Answer {
    let mut joined = shared.joined.lock().unwrap();
    if request.secret != SECRET || *joined {
        return refuse(StatusCode::FORBIDDEN, "BadToken");
    }
    *joined = true;
    let (certificate_pem, validity) = sign(shared, &request.csr_pem);
    let answer = JoinAnswer {
        server_id: SERVER.to_owned(),
        certificate_pem,
        ca_pem: shared.ca.pem(),
        validity,
    };
    json(StatusCode::OK, &answer)
}

fn see(shown: &Mutex<Vec<Vec<u8>>>, certificate: Vec<u8>) {
    let mut shown = shown.lock().unwrap();
    if !shown.contains(&certificate) {
        shown.push(certificate);
    }
}

fn sign(shared: &Shared, csr_pem: &str) -> (String, Option<Validity>) {
    let csr = CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, SERVER);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let validity = shared.life.lock().unwrap().map(|life| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + now + life;
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap();
        Validity { from: millis(now), until: millis(now + life) }
    });
    (params.signed_by(&csr.public_key, &shared.ca).unwrap().pem(), validity)
}

async fn desired(shared: &Shared, query: &str) -> Answer {
    let value = |name: &str| {
        let found = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        found.and_then(|text| text.parse::<u64>().ok()).unwrap()
    };
    let (after, wait) = (value("after"), Duration::from_secs(value("wait")));
    let mut watch = shared.desired.subscribe();
    let changed = watch.wait_for(|desired| desired.revision != 0 && desired.revision != after);
    match tokio::time::timeout(wait, changed).await {
        Ok(Ok(desired)) => json(StatusCode::OK, &*desired),
        _ => Response::builder().status(StatusCode::NO_CONTENT).body(Full::default()).unwrap(),
    }
}

async fn carry(shared: Arc<Shared>, id: String, request: Request<Incoming>) {
    let mut stream = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
    let typed = shared.typed.lock().unwrap().clone();
    shared.streams.lock().unwrap().insert(id.clone(), Vec::new());
    stream.write_all(&typed).await.unwrap();
    stream.flush().await.unwrap();
    let mut bytes = [0; 256];
    while let Ok(n @ 1..) = stream.read(&mut bytes).await {
        shared.streams.lock().unwrap().entry(id.clone()).or_default().extend(&bytes[..n]);
    }
}
