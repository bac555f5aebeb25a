//! A simulated server: it joins by a token and does at once whatever the cloud wants, as the cloud will believe.

use bixi_api::agent::{
    AgentClient, Credentials, DesiredState, InstanceState, Inventory, JoinToken, KvmKind,
    ObservedInstance, Power, Report, connect_to_join,
};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::runtime::Runtime;

/// How long the cloud may hold an answer back when nothing is new.
const HOLD: Duration = Duration::from_secs(1);

/// A server that serves until it is dropped.
pub struct Server {
    _runtime: Runtime,
}

impl Server {
    /// Joins by `token`; a lazy server never gets anything done.
    pub fn join(token: &str, lazy: bool) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(1).enable_all().build().unwrap();
        let token: JoinToken = token.parse().unwrap();
        let client = runtime.block_on(async {
            let key = rcgen::KeyPair::generate().unwrap();
            let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
            let joined = connect_to_join(&token, "s1", &request.pem().unwrap()).await.unwrap();
            let (certificate_pem, ca_pem) = (joined.certificate_pem, joined.ca_pem);
            let key_pem = key.serialize_pem();
            let credentials = Credentials { certificate_pem, key_pem, ca_pem };
            AgentClient::new(&token.cloud, &credentials).unwrap()
        });
        runtime.spawn(serve(client, lazy));
        Self { _runtime: runtime }
    }
}

async fn serve(client: AgentClient, lazy: bool) {
    let (mut desired, mut boots) = (None::<DesiredState>, BTreeMap::new());
    loop {
        let wait = if client.report(&report(desired.as_ref(), lazy, &mut boots)).await.is_ok() {
            HOLD
        } else {
            Duration::ZERO
        };
        let after = desired.as_ref().map_or(0, |desired| desired.revision);
        match client.desired(after, wait).await {
            Ok(Some(new)) => desired = Some(new),
            Ok(None) => {}
            // The cloud is away, and comes back.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// `boots` is the newest start that each instance has had.
fn report(desired: Option<&DesiredState>, lazy: bool, boots: &mut BTreeMap<String, u64>) -> Report {
    let wanted = desired.map(|desired| desired.instances.as_slice()).unwrap_or_default();
    for wanted in wanted.iter().filter(|wanted| wanted.power == Power::Running) {
        boots.insert(wanted.id.clone(), wanted.boot);
    }
    let observe = |wanted: &bixi_api::agent::DesiredInstance| ObservedInstance {
        id: wanted.id.clone(),
        epoch: wanted.epoch,
        boot: boots.get(&wanted.id).copied().unwrap_or(0),
        state: match (lazy, wanted.power) {
            (true, _) => InstanceState::Preparing,
            (false, Power::Running) => InstanceState::Running,
            (false, Power::Stopped) => InstanceState::Stopped,
            (false, Power::Deleted) => InstanceState::Deleted,
        },
        error: None,
        ended: None,
        progress: None,
        phases: Vec::new(),
        moments: Vec::new(),
        ledger: Vec::new(),
    };
    Report {
        release: bixi_api::RELEASE.to_owned(),
        inventory: Inventory {
            cores: 8,
            memory: 16 << 30,
            memory_free: 8 << 30,
            kvm: KvmKind::Svm,
            cpu: "simulated".to_owned(),
            kernel: "6.1".to_owned(),
            boot_id: "1".to_owned(),
            disk: 1 << 40,
            disk_free: 1 << 40,
            underlay: Some(([10, 0, 0, 1], 4789).into()),
            architecture: "x86_64".to_owned(),
            lacks: Vec::new(),
        },
        applied: desired.map_or(0, |desired| desired.revision),
        refused: None,
        instances: wanted.iter().map(observe).collect(),
        cards: Vec::new(),
    }
}
