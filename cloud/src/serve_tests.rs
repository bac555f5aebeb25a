//! The whole cloud over real HTTPS, with simulated servers behind the real contract and its real client.

use crate::plan::create::{NewDisk, NewInstances, create};
use crate::plan::simulation::{SimulatedAgent, wanted};
use crate::serve::{Cloud, Settings};
use crate::service::{Control, Place, now};
use crate::tls::Lives;
use aws_lc_rs::digest::{SHA256, digest};
use bixi_api::agent::{
    AgentClient, AgentClientError, Credentials, JoinToken, Validity, connect_to_join,
};
use bixi_api::error::ApiError;
use bixi_api::operator::*;
use http_body_util::{BodyExt, Full};
use hyper::Method;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(30);

/// A cloud in this process.
struct Running {
    operator: OperatorClient,
    control: Arc<Control>,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(state: &Path, listen: SocketAddr) -> Self {
        Self::start_with(state, listen, Lives::default()).await
    }

    async fn start_with(state: &Path, listen: SocketAddr, lives: Lives) -> Self {
        let place = Place { region: "r".to_owned(), zone: "z".to_owned() };
        let settings = Settings {
            state: state.to_owned(),
            listen,
            listen_http: None,
            names: Vec::new(),
            place,
            lives,
        };
        let cloud = Cloud::open(&settings).await.unwrap();
        let (address, control) = (cloud.address, cloud.control.clone());
        let ca = std::fs::read_to_string(cloud.authority.path()).unwrap();
        let token = std::fs::read_to_string(state.join("operator.token")).unwrap();
        let operator = OperatorClient::new(&address.to_string(), &ca, &token).unwrap();
        let task = tokio::spawn(async move { cloud.run().await.unwrap() });
        Self { operator, control, address, task }
    }

    /// Ends it as a kill would: nothing is waited for.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
        let mut control = Some(self.control);
        let began = Instant::now();
        // Requests under way hold it a moment longer.
        while let Some(held) = control.take() {
            match Arc::try_unwrap(held) {
                Ok(_) => return,
                Err(held) => control = Some(held),
            }
            assert!(began.elapsed() < PATIENCE, "somebody holds the control plane");
            tokio::task::yield_now().await;
        }
    }
}

fn csr() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    (request.pem().unwrap(), key.serialize_pem())
}

async fn join(operator: &OperatorClient, name: &str) -> (AgentClient, String, String) {
    let token: JoinTokenDescription =
        operator.ask(Method::POST, "/v1/join-tokens", &()).await.unwrap();
    let parsed: JoinToken = token.token.parse().unwrap();
    let (csr_pem, key_pem) = csr();
    let joined = connect_to_join(&parsed, name, &csr_pem).await.unwrap();
    let credentials =
        Credentials { certificate_pem: joined.certificate_pem, key_pem, ca_pem: joined.ca_pem };
    let client = AgentClient::new(&parsed.cloud, &credentials).unwrap();
    (client, joined.server_id, token.token)
}

/// Runs a simulated server until it is aborted; a cloud that is away changes nothing but time.
fn serve(client: AgentClient, server: &str) -> JoinHandle<()> {
    let mut agent = SimulatedAgent::new(server);
    tokio::spawn(async move {
        let mut revision = 0;
        loop {
            agent.turn();
            if client.report(&agent.report()).await.is_err() {
                tokio::task::yield_now().await;
                continue;
            }
            match client.desired(revision, Duration::from_secs(0)).await {
                Ok(Some(desired)) => {
                    revision = desired.revision;
                    for wanted in &desired.streams {
                        let mut stream = client.stream(&wanted.id).await.unwrap();
                        // A console that says everything twice.
                        tokio::spawn(async move {
                            while let Ok(byte) = stream.read_u8().await {
                                let _ = stream.write_all(&[byte, byte]).await;
                            }
                        });
                    }
                    agent.take(desired);
                }
                Ok(None) | Err(_) => tokio::task::yield_now().await,
            }
        }
    })
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "{what} was not seen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn refused<T: std::fmt::Debug>(answer: Result<T, OperatorClientError>) -> ApiError {
    match answer {
        Err(OperatorClientError::Refused(error)) => error,
        other => panic!("{other:?}"),
    }
}

async fn image(operator: &OperatorClient) -> ImageDescription {
    let create = ImageCreate {
        name: "tiny".to_owned(),
        description: String::new(),
        tenant: None,
        architecture: "x86_64".to_owned(),
        os_name: "Tiny".to_owned(),
        cmdline: "quiet".to_owned(),
    };
    let image: ImageDescription = operator.ask(Method::POST, "/v1/images", &create).await.unwrap();
    let again = operator.ask::<ImageDescription>(Method::POST, "/v1/images", &create).await;
    assert_eq!(refused(again).await.code, "Exists");
    for (part, size) in [("disk", 3 << 20), ("kernel", 100_000)] {
        let bytes: Vec<u8> = (0..size).map(|n: u32| (n % 251) as u8).collect();
        let sum = crate::tls::hex(digest(&SHA256, &bytes).as_ref());
        let path = format!("/v1/images/{}/{part}", image.id);
        let body = |bytes: &[u8]| Full::new(bytes.to_vec().into()).map_err(|n| match n {}).boxed();
        let damaged = operator.upload::<ImageDescription>(&path, &sum, body(&bytes[1..])).await;
        assert_eq!(refused(damaged).await.code, "UploadFailed");
        let kept: ImageDescription = operator.upload(&path, &sum, body(&bytes)).await.unwrap();
        assert!(kept.files.iter().any(|file| file.part == part && file.sha256 == sum));
    }
    let path = format!("/v1/images/{}/available", image.id);
    operator.ask(Method::PUT, &path, &()).await.unwrap()
}

async fn run(control: &Control, tenant: &str, image: &str) -> String {
    run_many(control, tenant, image, 1).await.remove(0)
}

async fn run_many(control: &Control, tenant: &str, image: &str, amount: usize) -> Vec<String> {
    let wanted = wanted(tenant, amount);
    let system_disk = NewDisk { gib: Some(1), ..wanted.system_disk.clone() };
    let request = NewInstances { image: image.to_owned(), system_disk, ..wanted };
    let made = control.change(|view, alive, context| create(view, alive, &request, context)).await;
    let made = made.unwrap();
    let view = control.view();
    assert!(made.iter().all(|id| view.instances.get(id).is_some()), "an answer before its effect");
    made
}

async fn status(operator: &OperatorClient, id: &str, wanted: &str) -> InstanceDescription {
    until(wanted, async || {
        let instance: InstanceDescription =
            operator.get(&format!("/v1/instances/{id}")).await.ok()?;
        (instance.status == wanted).then_some(instance)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_lives_through_the_death_of_its_cloud() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Running::start(folder.path(), ([127, 0, 0, 1], 0).into()).await;
    let operator = cloud.operator.clone();
    let tenant: TenantDescription = operator
        .ask(Method::POST, "/v1/tenants", &TenantCreate { name: "one".to_owned(), quota: None })
        .await
        .unwrap();
    assert_eq!(tenant.used.instances, 0);
    let image = image(&operator).await;
    assert!(image.available);
    let (client, server, token) = join(&operator, "server-1").await;
    assert!(client.image(&image.id).await.is_err());
    let agent = serve(client.clone(), &server);
    until("a server that lives", async || {
        let servers: Vec<ServerDescription> = operator.get("/v1/servers").await.ok()?;
        servers.first().filter(|server| server.alive).map(|_| ())
    })
    .await;

    let id = run(&cloud.control, &tenant.id, &image.id).await;
    let instance = status(&operator, &id, "Running").await;
    assert_eq!((instance.server.as_str(), instance.epoch, instance.boot), (server.as_str(), 1, 1));
    let mut file = client.image(&format!("{}.kernel", image.id)).await.unwrap();
    let mut size = 0;
    while let Some(bytes) = file.next().await.unwrap() {
        size += bytes.len();
    }
    assert_eq!((size, file.size), (100_000, 100_000));

    let mut console = operator.console(&id).await.unwrap();
    console.write_all(b"x").await.unwrap();
    let mut echo = [0; 2];
    tokio::time::timeout(PATIENCE, console.read_exact(&mut echo)).await.unwrap().unwrap();
    assert_eq!(&echo, b"xx");
    drop(console);

    let events: Vec<EventDescription> = operator.get("/v1/events").await.unwrap();
    assert!(events.iter().any(|event| event.kind == "InstanceStarted" && event.subject == id));
    let path = format!("/v1/events?follow=true&after={}", events[0].id);
    let mut stream = operator.stream(&path).await.unwrap();
    let mut told = String::new();
    while told.matches("\n\n").count() < events.len() - 1 {
        let frame = tokio::time::timeout(PATIENCE, stream.frame()).await.unwrap();
        let data = frame.unwrap().unwrap().into_data().unwrap();
        told.push_str(std::str::from_utf8(&data).unwrap());
    }
    assert!(!told.contains(&events[0].id) && told.contains("event: InstanceStarted\ndata: {"));
    let ledger: Vec<LedgerDescription> =
        operator.get(&format!("/v1/instances/{id}/ledger")).await.unwrap();
    assert_eq!(ledger.len(), 1);

    // The stop is asked for, and the cloud dies before it was seen.
    let power = |force| PowerRequest { force };
    let path = format!("/v1/instances/{id}/stop");
    let task: TaskDescription = operator.ask(Method::POST, &path, &power(false)).await.unwrap();
    let address = cloud.address;
    cloud.kill().await;
    let cloud = Running::start(folder.path(), address).await;
    let operator = cloud.operator.clone();
    status(&operator, &id, "Stopped").await;
    let path = format!("/v1/tasks/{}", task.id);
    let task: TaskDescription = operator.get(&path).await.unwrap();
    assert_eq!((task.step.as_str(), task.progress), ("done", 100));
    // What was seen of servers is not kept, and comes again with the next report.
    let path = format!("/v1/instances/{id}/delete");
    let deleted: TaskDescription = operator.ask(Method::POST, &path, &power(false)).await.unwrap();
    until("the end of the deletion", async || {
        let task: TaskDescription =
            operator.get(&format!("/v1/tasks/{}", deleted.id)).await.ok()?;
        (task.step == "done").then_some(())
    })
    .await;
    let gone = operator.get::<InstanceDescription>(&format!("/v1/instances/{id}")).await;
    assert_eq!(refused(gone).await.code, "NotFound");

    // The token was used up, and a removed server is nobody.
    let (csr_pem, _) = csr();
    let again = connect_to_join(&token.parse().unwrap(), "server-2", &csr_pem).await;
    assert!(matches!(again, Err(AgentClientError::Refused(error)) if error.code == "BadToken"));
    agent.abort();
    let () = operator.ask(Method::DELETE, "/v1/servers/server-1", &()).await.unwrap();
    let stranger = client.desired(0, Duration::ZERO).await;
    assert!(matches!(stranger, Err(AgentClientError::Refused(e)) if e.code == "UnknownServer"));
    cloud.kill().await;
}

/// A client that shows another certificate, as an agent that died before it used its new one does.
async fn renewed(
    client: &AgentClient,
    address: SocketAddr,
    ca_pem: &str,
) -> (AgentClient, Credentials, Validity) {
    let (csr_pem, key_pem) = csr();
    let renewed = client.renew(&csr_pem).await.unwrap();
    let certificate_pem = renewed.certificate_pem;
    let credentials = Credentials { certificate_pem, key_pem, ca_pem: ca_pem.to_owned() };
    let client = AgentClient::new(&address.to_string(), &credentials).unwrap();
    (client, credentials, renewed.validity)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_before_they_end_and_are_nothing_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let second = Duration::from_secs(1);
    let lives = Lives { authority: 3600 * second, server: 3 * second, agent: 8 * second };
    let cloud = Running::start_with(folder.path(), ([127, 0, 0, 1], 0).into(), lives).await;
    let operator = cloud.operator.clone();
    // An authority of an hour is one in its last year.
    until("a warning", async || {
        let events: Vec<EventDescription> = operator.get("/v1/events").await.ok()?;
        events.iter().any(|e| e.kind == "AuthorityEnds" && e.severity == "warning").then_some(())
    })
    .await;
    let ca_pem = std::fs::read_to_string(folder.path().join("ca/ca.pem")).unwrap();
    let (first, server, _) = join(&operator, "server-1").await;
    let (unused, ..) = renewed(&first, cloud.address, &ca_pem).await;
    // The answer got lost: the one before is taken still, and asks again.
    assert!(first.desired(0, Duration::ZERO).await.is_ok());
    let (second, credentials, validity) = renewed(&first, cloud.address, &ca_pem).await;
    assert!(validity.until > now() && validity.until <= now() + 8_000);
    let unknown =
        |answer| matches!(answer, Err(AgentClientError::Refused(e)) if e.code == "UnknownServer");
    assert!(unknown(unused.desired(0, Duration::ZERO).await.map(|_| ())));
    assert!(second.desired(0, Duration::ZERO).await.is_ok());
    // The new one was shown: the one before is nobody's.
    assert!(unknown(first.desired(0, Duration::ZERO).await.map(|_| ())));
    // The same client takes other credentials, and so do its copies.
    let copy = first.clone();
    first.show(&credentials).unwrap();
    assert_eq!(copy.desired(0, Duration::ZERO).await.unwrap().unwrap().server, server);

    // Over the lives of three of the cloud's own certificates its listener is always there.
    let began = now();
    while now() < began + 7_000 {
        assert!(operator.get::<CloudDescription>("/v1/cloud").await.is_ok());
        assert!(!unknown(second.desired(0, Duration::ZERO).await.map(|_| ())));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The agent's has ended meanwhile. The alert may lose against the end of the connection.
    // Whether a session is taken up again, which shows no certificate anew, or begins.
    until("an end that says what to do", async || {
        let error = second.desired(0, Duration::ZERO).await.err()?;
        match &error {
            AgentClientError::Expired => {}
            AgentClientError::Refused(refusal) if refusal.code == "CertificateExpired" => {}
            _ => return None,
        }
        error.to_string().contains("bixi-agent join TOKEN").then_some(())
    })
    .await;
    until("an end of whoever begins", async || {
        let fresh = AgentClient::new(&cloud.address.to_string(), &credentials).unwrap();
        let answer = fresh.desired(0, Duration::ZERO).await;
        matches!(answer, Err(AgentClientError::Expired)).then_some(())
    })
    .await;
    // Whoever was removed is given nothing more.
    let (removed, ..) = join(&operator, "server-2").await;
    let () = operator.ask(Method::DELETE, "/v1/servers/server-2", &()).await.unwrap();
    assert!(unknown(removed.renew(&csr().0).await.map(|_| ())));
    cloud.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_nonsense_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Running::start(folder.path(), ([127, 0, 0, 1], 0).into()).await;
    let operator = &cloud.operator;
    let address = cloud.address.to_string();
    let ca = std::fs::read_to_string(folder.path().join("ca/ca.pem")).unwrap();
    for token in ["", "wrong"] {
        let stranger = OperatorClient::new(&address, &ca, token).unwrap();
        let answer = stranger.get::<Vec<ServerDescription>>("/v1/servers").await;
        assert_eq!(refused(answer).await.code, "NotAllowed");
    }
    for (path, code) in [
        ("/v1/servers/none", "NotFound"),
        ("/v1/nowhere", "NotFound"),
        ("/v1/tasks/none", "NotFound"),
        ("/v1/events?colour=1", "InvalidRequest"),
    ] {
        assert_eq!(
            refused(operator.get::<serde_json::Value>(path).await).await.code,
            code,
            "{path}"
        );
    }
    let body = serde_json::json!({"name": "one", "colour": 1});
    let answer = operator.ask::<serde_json::Value>(Method::POST, "/v1/tenants", &body).await;
    assert_eq!(refused(answer).await.code, "InvalidRequest");
    let create = TenantCreate { name: "no/name".to_owned(), quota: None };
    let answer = operator.ask::<TenantDescription>(Method::POST, "/v1/tenants", &create).await;
    assert_eq!(refused(answer).await.code, "InvalidRequest");
    // Another authority's cloud is not spoken to, and its certificates are worth nothing here.
    let other = tempfile::tempdir().unwrap();
    let other = crate::tls::Authority::open(&other.path().join("ca"), Lives::default()).unwrap();
    let stranger = OperatorClient::new(&address, other.pem(), "x").unwrap();
    let answer = stranger.get::<Vec<ServerDescription>>("/v1/servers").await;
    assert!(matches!(answer, Err(OperatorClientError::Connect { .. })), "{answer:?}");
    let (csr_pem, key_pem) = csr();
    let certificate_pem = other.sign(&csr_pem, "s-x").unwrap().pem;
    let credentials = Credentials { certificate_pem, key_pem, ca_pem: ca };
    let agent = AgentClient::new(&address, &credentials).unwrap();
    assert!(agent.desired(0, Duration::ZERO).await.is_err());
    for path in ["ca/ca.key", "operator.token"] {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(folder.path().join(path)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{path}");
    }
    cloud.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_creations_at_once_share_neither_memory_nor_addresses() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Running::start(folder.path(), ([127, 0, 0, 1], 0).into()).await;
    let operator = cloud.operator.clone();
    let image = image(&operator).await;
    let mut agents = Vec::new();
    for name in ["server-1", "server-2"] {
        let (client, server, _) = join(&operator, name).await;
        agents.push(serve(client, &server));
    }
    until("servers that live", async || {
        let cloud: CloudDescription = operator.get("/v1/cloud").await.ok()?;
        (cloud.servers_alive == 2).then_some(())
    })
    .await;
    let mut makers = tokio::task::JoinSet::new();
    // One creation for each of forty instances together, which are more than a transaction holds.
    for (name, requests, amount) in [("one", 10, 1), ("two", 10, 1), ("three", 1, 40)] {
        let quota = QuotaDescription {
            instances: 40,
            vcpus: 40,
            memory_mib: 1 << 20,
            disks: 80,
            disk_gib: 1000,
        };
        let create = TenantCreate { name: name.to_owned(), quota: Some(quota) };
        let tenant: TenantDescription =
            operator.ask(Method::POST, "/v1/tenants", &create).await.unwrap();
        for _ in 0..requests {
            let (control, tenant, image) =
                (cloud.control.clone(), tenant.id.clone(), image.id.clone());
            makers.spawn(async move { run_many(&control, &tenant, &image, amount).await });
        }
    }
    assert_eq!(makers.join_all().await.into_iter().flatten().count(), 60);
    until("sixty instances that run", async || {
        let instances: Vec<InstanceDescription> = operator.get("/v1/instances").await.ok()?;
        (instances.iter().filter(|i| i.status == "Running").count() == 60).then_some(())
    })
    .await;
    {
        let view = cloud.control.view();
        let mut addresses: Vec<_> =
            view.enis.iter().map(|eni| (eni.vswitch.clone(), eni.ipv4)).collect();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), 60);
        assert!(view.launches.is_empty());
        // Each creation is one placement in each room that it has placed something in.
        let placed = view.rooms.iter().map(|room| room.generation).sum::<u64>();
        assert!((21..=22).contains(&placed), "{placed}");
    }
    agents.iter().for_each(JoinHandle::abort);
    cloud.kill().await;
}
