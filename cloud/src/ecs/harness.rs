//! A cloud for tests: the real store, plans and reconcilers, and simulated agents that do what they are told.

use super::dispatch::{Cloud, Done, Place, Plan, World};
use super::documented::{self, Fields, Kind, Version};
use super::refusal::Refusal;
use super::service::Api;
use super::wire::percent;
use crate::model::{AccessKey, Draft, Quota, View, ids};
use crate::plan::simulation::{SimulatedAgent, image};
use crate::plan::{Context, desired, launch, observe, reconcile, tenancy};
use crate::service::Live;
use crate::store::{EmbeddedStore, Outcome, Store};
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub(crate) const REGION: &str = "bixi-1";
pub(crate) const SERVER: &str = "s-00000000000000000000";

pub(crate) struct TestCloud {
    store: EmbeddedStore,
    state: Mutex<State>,
    _folder: tempfile::TempDir,
}

struct State {
    view: View,
    alive: BTreeSet<String>,
    agent: SimulatedAgent,
    live: Live,
}

impl TestCloud {
    /// A cloud with one server and an image.
    pub(crate) async fn new() -> Arc<Self> {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(&folder.path().join("state")).unwrap();
        let alive = BTreeSet::from([SERVER.to_owned()]);
        let (agent, live) = (SimulatedAgent::new(SERVER), Live::default());
        let state = State { view: View::default(), alive, agent, live };
        let cloud = Arc::new(Self { store, state: Mutex::new(state), _folder: folder });
        let mut draft = Draft::default();
        draft.create(&image());
        cloud.commit(draft).await;
        let ticket = |context: &mut Context<'_>| tenancy::new_ticket("secret".into(), context).0;
        cloud.plan(|_, context| ticket(context)).await;
        let join = |view: &View, context: &mut Context<'_>| {
            tenancy::join(view, "secret", SERVER, "one", String::new(), context).unwrap()
        };
        cloud.plan(join).await;
        cloud.turn().await;
        cloud
    }

    /// A tenant with a key.
    pub(crate) async fn tenant(&self, name: &str, quota: Quota) -> AccessKey {
        let mut id = String::new();
        self.plan(|view, context| {
            let made = tenancy::new_tenant(view, name, quota.clone(), "bixi-1a", context);
            let (draft, tenant) = made.unwrap();
            id = tenant.id;
            draft
        })
        .await;
        let mut key = None;
        self.plan(|view, context| {
            let (draft, made) = tenancy::new_key(view, &id, context).unwrap();
            key = Some(made);
            draft
        })
        .await;
        key.unwrap()
    }

    /// Everything goes on by one step: agents, what they tell, reconcilers.
    pub(crate) async fn turn(&self) {
        let report = {
            let mut state = self.state.lock().unwrap();
            let wanted = desired::desired(&state.view, SERVER, REGION, Vec::new());
            state.agent.take(wanted);
            state.agent.turn();
            let report = state.agent.report();
            state.live.hear(SERVER, report.clone());
            report
        };
        let drafts = self.with(|view, context| observe::observe(view, SERVER, &report, context));
        for draft in drafts {
            self.commit(draft).await;
        }
        for draft in self.with(reconcile::plan) {
            self.commit(draft).await;
        }
    }

    pub(crate) fn with<T>(&self, plan: impl FnOnce(&View, &mut Context<'_>) -> T) -> T {
        let state = self.state.lock().unwrap();
        let mut kernel = ids::Kernel;
        plan(&state.view, &mut Context { now: super::dispatch::now(), ids: &mut kernel })
    }

    async fn plan(&self, plan: impl FnOnce(&View, &mut Context<'_>) -> Draft) {
        let draft = self.with(plan);
        assert!(self.commit(draft).await);
    }

    async fn commit(&self, draft: Draft) -> bool {
        let outcome = self.store.txn(draft.into_txn()).await.unwrap();
        let page = self.store.range(b"", None, 100_000).await.unwrap();
        let mut view = View::default();
        for entry in &page.entries {
            view.load(entry).unwrap();
        }
        view.revision = page.revision;
        let mut state = self.state.lock().unwrap();
        if view.revision >= state.view.revision {
            state.view = view;
        }
        matches!(outcome, Outcome::Committed(_))
    }
}

impl Cloud for TestCloud {
    fn look(&self, look: &mut dyn FnMut(World<'_>)) {
        let state = self.state.lock().unwrap();
        look(World { view: &state.view, alive: &state.alive, live: Some(&state.live) });
    }

    fn change(
        &self,
        mut plan: Plan,
    ) -> Pin<Box<dyn Future<Output = Result<Done, Refusal>> + Send + '_>> {
        Box::pin(async move {
            loop {
                let alive = self.state.lock().unwrap().alive.clone();
                let planned = self
                    .with(|view, context| plan(World { view, alive: &alive, live: None }, context));
                let (draft, done) = planned?;
                if draft.is_empty() || self.commit(draft).await {
                    while let Some(draft) = self.with(|view, _| launch::carry_on(view)) {
                        self.commit(draft).await;
                    }
                    return Ok(done);
                }
            }
        })
    }
}

/// A cloud behind a listener.
pub(crate) struct Served {
    pub(crate) cloud: Arc<TestCloud>,
    pub(crate) address: SocketAddr,
    nonce: AtomicU64,
}

impl Served {
    pub(crate) async fn new() -> Self {
        let cloud = TestCloud::new().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let place = Place {
            region: REGION.to_owned(),
            name: "A test".to_owned(),
            zones: vec!["bixi-1a".to_owned()],
        };
        let router = Api::new(cloud.clone(), place).router();
        tokio::spawn(crate::tls::serve_http(listener, router));
        Self { cloud, address, nonce: AtomicU64::new(0) }
    }

    /// The query of a call, signed in version 1.
    pub(crate) fn sign(
        &self,
        key: &AccessKey,
        method: &str,
        action: &str,
        parameters: &[(&str, &str)],
    ) -> String {
        let nonce = self.nonce.fetch_add(1, Ordering::Relaxed).to_string();
        let now = i64::try_from(super::dispatch::now() / 1000).unwrap();
        let time = super::wire::timestamp::to_the_second(now);
        let mut pairs = vec![
            ("AccessKeyId", key.id.as_str()),
            ("Action", action),
            ("Format", "JSON"),
            ("SignatureMethod", "HMAC-SHA1"),
            ("SignatureNonce", &nonce),
            ("SignatureVersion", "1.0"),
            ("Timestamp", &time),
            ("Version", "2014-05-26"),
            ("RegionId", REGION),
        ];
        for (name, value) in parameters {
            pairs.retain(|(known, _)| known != name);
            pairs.push((name, value));
        }
        pairs.sort_unstable();
        let query = percent::canonical(pairs.iter().copied());
        let to_sign = format!("{method}&%2F&{}", percent::encode(&query));
        let secret = format!("{}&", key.secret);
        let secret = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
        let signature = STANDARD.encode(hmac::sign(&secret, to_sign.as_bytes()));
        format!("{query}&Signature={}", percent::encode(&signature))
    }

    /// Sends text as it is and returns the status, the headers and the body.
    pub(crate) async fn send(&self, request: &[u8]) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head[9..12].parse().unwrap();
        (status, head.to_owned(), body.to_owned())
    }

    pub(crate) async fn get(&self, query: &str) -> (u16, Value) {
        let request = format!(
            "GET /?{query} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.address
        );
        let (status, _, body) = self.send(request.as_bytes()).await;
        (status, serde_json::from_str(&body).unwrap())
    }

    /// Calls an action and holds its reply against what ECS documents.
    pub(crate) async fn call(
        &self,
        key: &AccessKey,
        action: &str,
        parameters: &[(&str, &str)],
    ) -> Result<Value, String> {
        let (status, reply) = self.get(&self.sign(key, "GET", action, parameters)).await;
        if status != 200 {
            let field = |name: &str| reply[name].as_str().unwrap().to_owned();
            assert!(!field("RequestId").is_empty() && !field("HostId").is_empty());
            return Err(format!("{status} {}", field("Code")));
        }
        let documented = documented::action(Version::Ecs, action).unwrap();
        conforms(action, &reply, &documented.reply);
        Ok(reply)
    }

    /// Turns until the instance has the status, or is gone if it is to be.
    pub(crate) async fn until(&self, key: &AccessKey, id: &str, status: Option<&str>) {
        for _ in 0..50 {
            let ids = format!("[{id:?}]");
            let reply = self.call(key, "DescribeInstances", &[("InstanceIds", &ids)]).await;
            let reply = reply.unwrap();
            let seen = reply["Instances"]["Instance"][0]["Status"].as_str();
            if seen == status {
                return;
            }
            self.cloud.turn().await;
        }
        panic!("{id} does not become {status:?}");
    }
}

/// Every field of a reply is documented, and is what is documented.
fn conforms(path: &str, value: &Value, fields: &Fields) {
    for (name, value) in value.as_object().unwrap_or_else(|| panic!("{path} is no object")) {
        let path = format!("{path}.{name}");
        let field = fields.get(name.as_str()).unwrap_or_else(|| panic!("{path} is unknown"));
        let right = match &field.kind {
            Kind::Text => value.is_string(),
            Kind::Integer => value.is_u64(),
            Kind::Boolean => value.is_boolean(),
            Kind::Fraction => value.is_number(),
            Kind::Texts => value.as_array().is_some_and(|all| all.iter().all(Value::is_string)),
            Kind::Object(fields) => {
                conforms(&path, value, fields);
                true
            }
            // The one list of lists in the documents is an object with a list on the wire.
            Kind::Objects(fields) if value.is_object() => {
                conforms(&path, value, fields);
                true
            }
            Kind::Objects(fields) => {
                let items = value.as_array().unwrap_or_else(|| panic!("{path} is no list"));
                items.iter().for_each(|item| conforms(&path, item, fields));
                true
            }
        };
        assert!(right, "{path}: {value}");
    }
}
