//! The cloud's plans against simulated agents: the same functions as in production, with virtual time, seeded faults,
//! lost and doubled messages, and a cloud and agents that die at every step.
//!
//! The agents speak the real contract's types and keep its rules: a start is named by epoch and boot generation and is
//! done once; what is left out is left alone.

use super::create::{NewDisk, NewInstances, create};
use super::{Context, Refusal, desired, launch, observe, power, reconcile, task, tenancy};
use crate::model::*;
use crate::store::{Change, Entry, Op, Revision, Store, Txn};
use bixi_api::agent::{
    self, DesiredInstance, DesiredState, Ending, InstanceState, Inventory, KvmKind, LedgerEntry,
    ObservedInstance, Report,
};
use std::collections::{BTreeMap, BTreeSet};

/// Repeatable randomness.
#[derive(Debug, Clone)]
pub(crate) struct Seeded(pub(crate) u64);

impl Seeded {
    pub(crate) fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

impl ids::Source for Seeded {
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let random = self.next().to_le_bytes();
            chunk.copy_from_slice(&random[..chunk.len()]);
        }
    }
}

/// An agent with no server under it.
#[derive(Debug, Clone, Default)]
pub(crate) struct SimulatedAgent {
    server: String,
    desired: Option<DesiredState>,
    /// On its disk: survives a restart.
    instances: BTreeMap<String, ObservedInstance>,
    /// How often each start was made.
    pub(crate) starts: BTreeMap<(String, u64, u64), u32>,
    boot_id: u32,
}

impl SimulatedAgent {
    pub(crate) fn new(server: &str) -> Self {
        Self { server: server.to_owned(), ..Self::default() }
    }

    pub(crate) fn take(&mut self, desired: DesiredState) {
        assert_eq!(desired.server, self.server);
        assert_ne!(desired.revision, 0);
        let known: BTreeSet<&String> =
            desired.instances.iter().map(|instance| &instance.id).collect();
        let stays = |id: &String, i: &ObservedInstance| {
            known.contains(id) || i.state != InstanceState::Deleted
        };
        self.instances.retain(|id, instance| stays(id, instance));
        self.desired = Some(desired);
    }

    /// Every instance goes on by one state.
    pub(crate) fn turn(&mut self) {
        let Some(desired) = self.desired.clone() else { return };
        for wanted in &desired.instances {
            let fresh = || ObservedInstance {
                epoch: wanted.epoch,
                boot: 0,
                ..observed(&wanted.id, InstanceState::Stopped)
            };
            let instance = self.instances.entry(wanted.id.clone()).or_insert_with(fresh);
            if wanted.epoch < instance.epoch {
                continue;
            }
            let next = next_state(instance, wanted);
            assert!(next == instance.state || instance.state.can_become(next));
            if next == InstanceState::Starting && instance.state == InstanceState::Preparing {
                instance.epoch = wanted.epoch;
                instance.boot = wanted.boot;
                let start = (wanted.id.clone(), wanted.epoch, wanted.boot);
                *self.starts.entry(start).or_default() += 1;
            }
            if next == InstanceState::Stopped && instance.state == InstanceState::Stopping {
                instance.ended = Some(Ending::Stopped { forced: false });
            }
            instance.epoch = instance.epoch.max(wanted.epoch);
            instance.state = next;
        }
    }

    /// A guest ends by itself, if one runs.
    fn guest_ends(&mut self, random: &mut Seeded) {
        let running = self.instances.values_mut().filter(|i| i.state == InstanceState::Running);
        let mut running: Vec<_> = running.collect();
        if !running.is_empty() {
            let index = random.below(running.len());
            running[index].state = InstanceState::Stopped;
            running[index].ended = Some(Ending::Failed { reason: "killed".to_owned() });
        }
    }

    /// The agent's process dies and comes back: what it was told is gone, what is on its disk is not.
    fn restart(&mut self) {
        self.desired = None;
    }

    pub(crate) fn report(&self) -> Report {
        let ledger = vec![LedgerEntry {
            sequence: 1,
            at: 1,
            cause: "storage-restart".into(),
            milliseconds: 2,
        }];
        let with = |instance: &ObservedInstance| ObservedInstance {
            ledger: ledger.clone(),
            ..instance.clone()
        };
        Report {
            release: "1".to_owned(),
            inventory: Inventory {
                cores: 8,
                memory: 16 << 30,
                memory_free: 8 << 30,
                kvm: KvmKind::Svm,
                cpu: "simulated".to_owned(),
                kernel: "6.1".to_owned(),
                boot_id: self.boot_id.to_string(),
                disk: 1 << 40,
                disk_free: 1 << 40,
                underlay: Some(([10, 0, 0, 1], 4789).into()),
                architecture: "x86_64".to_owned(),
                lacks: Vec::new(),
            },
            applied: self.desired.as_ref().map_or(0, |desired| desired.revision),
            refused: None,
            instances: self.instances.values().map(with).collect(),
            cards: Vec::new(),
        }
    }
}

/// An instance as such an agent sees it in its first start.
pub(crate) fn observed(id: &str, state: InstanceState) -> ObservedInstance {
    ObservedInstance {
        id: id.to_owned(),
        epoch: 1,
        boot: 1,
        state,
        error: None,
        ended: None,
        progress: None,
        phases: Vec::new(),
        moments: Vec::new(),
        ledger: Vec::new(),
    }
}

/// A report as such an agent sends it.
pub(crate) fn report() -> Report {
    SimulatedAgent::new("s-1").report()
}

fn next_state(instance: &ObservedInstance, wanted: &DesiredInstance) -> InstanceState {
    use InstanceState::{Deleted, Deleting, Preparing, Running, Starting, Stopped, Stopping};
    let started = (instance.epoch, instance.boot) >= (wanted.epoch, wanted.boot);
    match (instance.state, wanted.power) {
        (Deleted, _) => Deleted,
        (Deleting, _) => Deleted,
        (Stopping, _) => Stopped,
        (Starting, agent::Power::Running) if started => Running,
        (Running, agent::Power::Running) if started => Running,
        (Starting | Running, _) => Stopping,
        (Preparing, agent::Power::Running) => Starting,
        (Preparing, agent::Power::Stopped) => Stopped,
        (Preparing | Stopped, agent::Power::Deleted) => Deleting,
        (Stopped, agent::Power::Running) if !started => Preparing,
        (Stopped, _) => Stopped,
    }
}

/// The cloud's state without a store under it.
#[derive(Debug, Default)]
struct World {
    view: View,
    now: u64,
    commits: u64,
}

impl World {
    /// What the store would do with the draft.
    fn commit(&mut self, draft: Draft) -> bool {
        assert!(!draft.is_empty(), "an empty plan");
        let txn: Txn = draft.into_txn();
        txn.check().unwrap();
        if !txn.compares.iter().all(|c| modified(&self.view, &c.key) == c.modified) {
            return false;
        }
        self.view.revision += 1;
        self.commits += 1;
        for op in txn.ops {
            let change = change(op, self.view.revision);
            self.view.apply(&change).unwrap();
        }
        true
    }

    fn must<T>(&mut self, planned: Result<(Draft, T), Refusal>) -> T {
        let (draft, value) = planned.unwrap();
        assert!(self.commit(draft));
        value
    }
}

fn change(op: Op, revision: Revision) -> Change {
    let key = op.key().to_vec();
    let entry = match op {
        Op::Put { key, value, lease } => {
            Some(Entry { key, value, created: revision, modified: revision, lease })
        }
        Op::Delete { .. } => None,
    };
    Change { key, entry }
}

fn modified(view: &View, key: &[u8]) -> Revision {
    let key = String::from_utf8(key.to_vec()).unwrap();
    let (kind, id) = key.split_once('/').unwrap();
    match kind {
        "tenant" => view.tenants.modified(id),
        "client-token" => view.client_tokens.modified(id),
        "access-key" => view.access_keys.modified(id),
        "vpc" => view.vpcs.modified(id),
        "vswitch" => view.vswitches.modified(id),
        "segment" => view.segments.modified(id),
        "security-group" => view.groups.modified(id),
        "eni" => view.enis.modified(id),
        "instance" => view.instances.modified(id),
        "disk" => view.disks.modified(id),
        "image" => view.images.modified(id),
        "server" => view.servers.modified(id),
        "room" => view.rooms.modified(id),
        "launch" => view.launches.modified(id),
        "join-ticket" => view.tickets.modified(id),
        "task" => view.tasks.modified(id),
        "event" => view.events.modified(id),
        "disturbance" => view.disturbances.modified(id),
        other => panic!("{other}"),
    }
}

pub(crate) fn image() -> Image {
    let file = |name: &str, size| {
        Some(ImageFile { id: format!("m-{}.{name}", "1".repeat(20)), size, sha256: "0".repeat(64) })
    };
    Image {
        id: format!("m-{}", "1".repeat(20)),
        tenant: None,
        name: "tiny".to_owned(),
        description: String::new(),
        architecture: "x86_64".to_owned(),
        os_type: "linux".to_owned(),
        os_name: "Tiny".to_owned(),
        created: 1,
        state: ImageState::Available,
        disk: file("disk", 1 << 20),
        kernel: file("kernel", 1 << 20),
        initrd: None,
        cmdline: "console=ttyS0".to_owned(),
    }
}

pub(crate) fn wanted(tenant: &str, amount: usize) -> NewInstances {
    let disk = |gib| NewDisk {
        name: String::new(),
        description: String::new(),
        category: "cloud_essd".to_owned(),
        gib,
        delete_with_instance: true,
    };
    NewInstances {
        tenant: tenant.to_owned(),
        names: vec![(String::new(), String::new()); amount],
        at_least: amount,
        description: String::new(),
        type_id: "bixi.tiny".to_owned(),
        limits: Limits {
            vcpus: 1,
            memory_mib: 256,
            nic_packets: None,
            nic_bits: None,
            disk_iops: None,
        },
        architecture: "x86_64".to_owned(),
        image: image().id,
        vswitch: None,
        groups: Vec::new(),
        address: None,
        system_disk: disk(None),
        data_disks: vec![disk(Some(2))],
        tags: Vec::new(),
        user_data: String::new(),
        deletion_protection: false,
        ssh_keys: Vec::new(),
        key_pair: None,
        start: true,
        token: None,
    }
}

fn alive(view: &View) -> BTreeSet<String> {
    view.servers.iter().map(|server| server.id.clone()).collect()
}

/// A world with a tenant, an image and servers.
fn founded(servers: usize, random: &mut Seeded) -> (World, String, Vec<SimulatedAgent>) {
    let mut world = World { now: 1_000_000, ..World::default() };
    let mut context = Context { now: world.now, ids: random };
    let made = tenancy::new_tenant(&world.view, "one", Quota::default(), "z", &mut context);
    let tenant = world.must(made).id;
    let mut draft = Draft::default();
    draft.create(&image());
    assert!(world.commit(draft));
    let mut agents = Vec::new();
    for index in 0..servers {
        let mut context = Context { now: world.now, ids: random };
        let (draft, _) = tenancy::new_ticket(format!("secret{index}"), &context);
        assert!(world.commit(draft));
        let id = context.ids.id("s");
        let (secret, name) = (format!("secret{index}"), format!("server-{index}"));
        let draft =
            tenancy::join(&world.view, &secret, &id, &name, String::new(), &mut context).unwrap();
        assert!(world.commit(draft));
        assert!(
            tenancy::join(&world.view, &secret, "s-x", "y", String::new(), &mut context).is_err()
        );
        let agent = SimulatedAgent::new(&id);
        for draft in observe::observe(&world.view, &id, &agent.report(), &mut context) {
            assert!(world.commit(draft));
        }
        agents.push(agent);
    }
    (world, tenant, agents)
}

/// One thing that goes wrong or right.
fn disturb(
    world: &mut World,
    agents: &mut [SimulatedAgent],
    late: &mut Vec<(usize, Report)>,
    random: &mut Seeded,
) {
    let index = random.below(agents.len());
    let agent = &mut agents[index];
    match random.below(12) {
        0..=2 => agent.turn(),
        3..=4 => {
            let state = desired::desired(&world.view, &agent.server, "r", Vec::new());
            if !random.one_in(4) {
                agent.take(state.clone());
            }
            if random.one_in(4) {
                agent.take(state);
            }
        }
        5..=6 => late.push((index, agent.report())),
        7..=8 if !late.is_empty() => {
            // In any order, some twice, some never.
            let at = random.below(late.len());
            let (sender, report) = late[at].clone();
            if !random.one_in(4) {
                late.remove(at);
            }
            let server = agents[sender].server.clone();
            let mut context = Context { now: world.now, ids: random };
            for draft in observe::observe(&world.view, &server, &report, &mut context) {
                assert!(world.commit(draft));
            }
        }
        9 => {
            // The plan is carried out in part: the cloud dies within it.
            let plan = reconcile::plan(&world.view, &mut Context { now: world.now, ids: random });
            let done = random.below(plan.len() + 1);
            for draft in plan.into_iter().take(done) {
                world.commit(draft);
            }
        }
        10 => match random.below(6) {
            0 => agent.restart(),
            1 => agent.guest_ends(random),
            _ => world.now += random.next() % 60_000,
        },
        _ => world.now += random.next() % 2_000,
    }
}

/// Somebody asks for something, possible or not.
fn ask(world: &mut World, tenant: &str, random: &mut Seeded) {
    let instances: Vec<String> = world.view.instances.iter().map(|i| i.id.clone()).collect();
    if instances.len() < 6 && random.one_in(3) {
        let mut request = wanted(tenant, 1 + random.below(2));
        request.start = !random.one_in(4);
        let mut context = Context { now: world.now, ids: random };
        if let Ok((draft, _)) = create(&world.view, &alive(&world.view), &request, &mut context) {
            assert!(world.commit(draft));
        }
        return;
    }
    if instances.is_empty() {
        return;
    }
    let id = &instances[random.below(instances.len())];
    let kinds = [TaskKind::Start, TaskKind::Stop, TaskKind::Reboot, TaskKind::Delete];
    let (kind, force) = (kinds[random.below(4)], random.one_in(2));
    let mut context = Context { now: world.now, ids: random };
    let asked = power::request(&world.view, Some(tenant), id, kind, force, &mut context);
    if let Ok((draft, task)) = asked {
        assert!(world.commit(draft));
        if random.one_in(6) {
            let cancelled = power::cancel(&world.view, Some(tenant), &task.id);
            assert!(world.commit(cancelled.unwrap()));
        }
    }
}

/// What must be true of every state.
fn check(view: &View, agents: &[SimulatedAgent]) {
    for agent in agents {
        assert!(agent.starts.values().all(|starts| *starts == 1), "a start was made twice");
    }
    let mut addresses = BTreeSet::new();
    for eni in view.enis.iter() {
        assert!(addresses.insert((eni.vswitch.clone(), eni.ipv4)), "an address was given twice");
        let instance = eni.instance.as_ref().unwrap();
        assert!(view.instances.get(instance).is_some(), "an interface outlived its instance");
    }
    for disk in view.disks.iter() {
        let instance = disk.instance.as_ref().unwrap();
        assert!(view.instances.get(instance).is_some(), "a disk outlived its instance");
    }
    let links = view.instances.len() * 2 + view.enis.len() * 2 + view.disks.len() * 3;
    assert_eq!(view.linked.len(), links, "something is linked twice or not at all");
    for instance in view.instances.iter() {
        let task = instance.task.as_ref().map(|task| view.tasks.get(task).unwrap());
        assert!(task.is_none_or(|task| !task.step.is_final()), "an ended task holds an instance");
    }
}

/// Everything is heard and done, until nothing changes any more.
fn heal(world: &mut World, agents: &mut [SimulatedAgent], random: &mut Seeded) {
    for _ in 0..400 {
        let before = world.commits;
        for agent in agents.iter_mut() {
            agent.take(desired::desired(&world.view, &agent.server, "r", Vec::new()));
            agent.turn();
            let mut context = Context { now: world.now, ids: random };
            let drafts =
                observe::observe(&world.view, &agent.server, &agent.report(), &mut context);
            for draft in drafts {
                assert!(world.commit(draft));
            }
        }
        let plan = reconcile::plan(&world.view, &mut Context { now: world.now, ids: random });
        for draft in plan {
            world.commit(draft);
        }
        world.now += 10_000;
        if world.commits == before && world.view.active.is_empty() {
            return;
        }
    }
    panic!("it does not come to rest: {:?}", world.view.active);
}

fn check_rest(view: &View, agents: &[SimulatedAgent]) {
    for instance in view.instances.iter() {
        let agent = agents.iter().find(|a| a.server == instance.placement.server).unwrap();
        let there = agent.instances.get(&instance.id).map(|i| i.state);
        match instance.status {
            Status::Running => assert_eq!(there, Some(InstanceState::Running)),
            Status::Stopped if matches!(there, None | Some(InstanceState::Stopped)) => {}
            other => panic!("rests as {other:?}, its server has {there:?}: {instance:?}"),
        }
    }
    for agent in agents {
        for (id, instance) in &agent.instances {
            let known = view.instances.get(id).is_some();
            assert!(known || instance.state == InstanceState::Deleted, "{id} was left behind");
        }
    }
}

#[test]
fn whatever_goes_wrong_nothing_is_lost_and_nothing_runs_twice() {
    let mut tasks = 0;
    for seed in 0..300 {
        let mut random = Seeded(seed);
        let (mut world, tenant, mut agents) = founded(2, &mut random);
        let mut late = Vec::new();
        for _ in 0..400 {
            if random.one_in(25) {
                ask(&mut world, &tenant, &mut random);
            }
            disturb(&mut world, &mut agents, &mut late, &mut random);
            check(&world.view, &agents);
        }
        heal(&mut world, &mut agents, &mut random);
        check(&world.view, &agents);
        check_rest(&world.view, &agents);
        tasks += world.view.tasks.len();
    }
    assert!(tasks > 2000, "{tasks} tasks are too few to argue from");
}

/// A cloud on a real store that can be killed after any commit: `None` is that death.
struct Mortal {
    store: crate::store::EmbeddedStore,
    view: View,
    left: u64,
    commits: u64,
}

impl Mortal {
    async fn open(path: &std::path::Path, left: u64) -> Self {
        let store = crate::store::EmbeddedStore::open(path).unwrap();
        let page = store.range(b"", None, usize::MAX).await.unwrap();
        let mut view = View { revision: page.revision, ..View::default() };
        page.entries.iter().for_each(|entry| view.load(entry).unwrap());
        Self { store, view, left, commits: 0 }
    }

    async fn commit(&mut self, draft: Draft) -> Option<()> {
        let txn = draft.into_txn();
        let outcome = self.store.txn(txn.clone()).await.unwrap();
        let crate::store::Outcome::Committed(revision) = outcome else { panic!("{outcome:?}") };
        self.view.revision = revision;
        for op in txn.ops {
            self.view.apply(&change(op, revision)).unwrap();
        }
        self.commits += 1;
        self.left -= 1;
        (self.left > 0).then_some(())
    }

    /// Brings about whatever is wanted, with the agent, until nothing is to be done.
    async fn rest(
        &mut self,
        agent: &mut SimulatedAgent,
        now: &mut u64,
        random: &mut Seeded,
    ) -> Option<()> {
        for _ in 0..60 {
            let before = self.commits;
            agent.take(desired::desired(&self.view, &agent.server, "r", Vec::new()));
            agent.turn();
            *now += 1000;
            let mut context = Context { now: *now, ids: random };
            let mut drafts =
                observe::observe(&self.view, &agent.server, &agent.report(), &mut context);
            for draft in drafts.drain(..) {
                self.commit(draft).await?;
            }
            // One at a time: a plan is made anew after each step.
            while let Some(draft) =
                reconcile::plan(&self.view, &mut Context { now: *now, ids: random })
                    .into_iter()
                    .next()
            {
                self.commit(draft).await?;
            }
            if self.commits == before && self.view.active.is_empty() {
                return Some(());
            }
        }
        panic!("it does not come to rest")
    }

    /// What the tenant has not asked for yet. `asked` says what was acknowledged; it asks again for the rest.
    async fn ask(
        &mut self,
        tenant: &str,
        asked: &mut usize,
        now: u64,
        random: &mut Seeded,
    ) -> Option<bool> {
        let steps =
            [TaskKind::Run, TaskKind::Stop, TaskKind::Start, TaskKind::Reboot, TaskKind::Delete];
        let Some(kind) = steps.get(*asked) else { return Some(false) };
        let mut context = Context { now, ids: random };
        let draft = if *kind == TaskKind::Run {
            create(&self.view, &alive(&self.view), &wanted(tenant, 1), &mut context).unwrap().0
        } else {
            let id = self.view.instances.iter().next().unwrap().id.clone();
            power::request(&self.view, Some(tenant), &id, *kind, true, &mut context).unwrap().0
        };
        *asked += 1;
        self.commit(draft).await?;
        Some(true)
    }

    async fn live(
        &mut self,
        tenant: &str,
        agent: &mut SimulatedAgent,
        asked: &mut usize,
        now: &mut u64,
        random: &mut Seeded,
    ) -> Option<()> {
        loop {
            self.rest(agent, now, random).await?;
            if !self.ask(tenant, asked, *now, random).await? {
                return Some(());
            }
        }
    }
}

/// Writes the founded world once; it is copied for each death.
async fn found(path: &std::path::Path, world: &World, tenant: &Tenant) {
    let mut mortal = Mortal::open(path, u64::MAX).await;
    let mut draft = Draft::default();
    draft.create(tenant);
    world.view.vpcs.iter().for_each(|record| draft.create(record.as_ref()));
    world.view.vswitches.iter().for_each(|record| draft.create(record.as_ref()));
    world.view.groups.iter().for_each(|record| draft.create(record.as_ref()));
    world.view.images.iter().for_each(|record| draft.create(record.as_ref()));
    world.view.servers.iter().for_each(|record| draft.create(record.as_ref()));
    mortal.commit(draft).await.unwrap();
}

#[tokio::test]
async fn a_cloud_killed_after_every_single_step_ends_every_task_clean() {
    let folder = tempfile::tempdir().unwrap();
    let founded_at = folder.path().join("founded");
    let mut random = Seeded(7);
    let (world, tenant, agents) = founded(1, &mut random);
    let record = world.view.tenants.get(&tenant).unwrap().clone();
    found(&founded_at, &world, &record).await;
    let mut death = 1;
    let mut deaths = 0;
    loop {
        let path = folder.path().join("state");
        std::fs::copy(&founded_at, &path).unwrap();
        let (mut agent, mut asked, mut now) = (agents[0].clone(), 0, 2_000_000);
        let mut mortal = Mortal::open(&path, death).await;
        let survived = mortal.live(&tenant, &mut agent, &mut asked, &mut now, &mut random).await;
        drop(mortal);
        let mut mortal = Mortal::open(&path, u64::MAX).await;
        mortal.live(&tenant, &mut agent, &mut asked, &mut now, &mut random).await.unwrap();
        let view = &mortal.view;
        assert_eq!(view.tasks.len(), 5, "after {death} steps");
        assert!(view.tasks.iter().all(|task| task.step == Step::Done), "after {death} steps");
        assert!(view.instances.is_empty() && view.disks.is_empty() && view.enis.is_empty());
        assert!(agent.instances.values().all(|i| i.state == InstanceState::Deleted));
        assert_eq!(agent.starts.len(), 3);
        assert!(agent.starts.values().all(|starts| *starts == 1));
        let ends = view.events.iter().filter(|event| event.task.is_some()).count();
        assert_eq!(ends, 5, "after {death} steps");
        if survived.is_some() {
            break;
        }
        deaths += 1;
        death += 1;
    }
    assert!(deaths > 25, "{deaths} steps are fewer than there are");
}

/// A hundred instances with all that one may have, on a hundred servers, for a tenant with just that quota.
#[test]
fn a_hundred_instances_are_promised_in_one_transaction() {
    let mut random = Seeded(11);
    let (mut world, tenant, _) = founded(100, &mut random);
    let quota =
        Quota { instances: 100, vcpus: 100, memory_mib: 25_600, disks: 1700, disk_gib: 3300 };
    let record = world.view.tenants.get(&tenant).unwrap().as_ref().clone();
    let mut draft = Draft::default();
    draft.put(&world.view, &Tenant { quota, ..record });
    assert!(world.commit(draft));
    let mut request = wanted(&tenant, 100);
    request.user_data = "u".repeat(32 << 10);
    request.data_disks =
        vec![NewDisk { description: "d".repeat(256), ..request.data_disks[0].clone() }; 16];
    let tag = |n| Tag { key: format!("{n}{}", "k".repeat(100)), value: "v".repeat(128) };
    request.tags = (0..20).map(tag).collect();
    let mut context = Context { now: world.now, ids: &mut random };
    let made = create(&world.view, &alive(&world.view), &request, &mut context);
    let made = world.must(made);
    assert_eq!(made.len(), 100);
    assert_eq!(world.view.launches.len(), 1);
    assert!(world.view.instances.len() < 100);
    // Whatever else is to be done waits for it.
    let mut steps = 0;
    while !world.view.launches.is_empty() {
        let mut plan = reconcile::plan(&world.view, &mut context);
        assert_eq!(plan.len(), 1);
        assert!(world.commit(plan.remove(0)));
        steps += 1;
    }
    assert!((5..40).contains(&steps), "{steps}");
    let ids: BTreeSet<String> = made.into_iter().collect();
    assert_eq!(world.view.instances.iter().map(|i| i.id.clone()).collect::<BTreeSet<_>>(), ids);
    assert_eq!((world.view.disks.len(), world.view.tasks.len()), (1700, 100));
    let servers: BTreeSet<&str> =
        world.view.instances.iter().map(|i| i.placement.server.as_str()).collect();
    assert_eq!(servers.len(), 100);
    check(&world.view, &[]);
    let again = create(&world.view, &alive(&world.view), &wanted(&tenant, 1), &mut context);
    assert!(matches!(again, Err(Refusal::Quota { what: "instances", used: 100, .. })));
}

/// The cloud is killed after every transaction of a creation that needs several, and comes back.
#[tokio::test]
async fn a_creation_in_steps_is_whole_wherever_the_cloud_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let founded_at = folder.path().join("founded");
    let mut random = Seeded(13);
    let (world, tenant, agents) = founded(2, &mut random);
    let record = world.view.tenants.get(&tenant).unwrap().as_ref().clone();
    let quota = Quota { instances: 60, ..Quota::default() };
    found(&founded_at, &world, &Tenant { quota, ..record }).await;
    let mut request = wanted(&tenant, 50);
    request.at_least = 10;
    request.token = Some(super::create::NewToken {
        action: "RunInstances".into(),
        token: "once".into(),
        fingerprint: "1".into(),
    });
    let plan = |view: &View, random: &mut Seeded| {
        let mut context = Context { now: 2_000_000, ids: random };
        create(view, &alive(view), &request, &mut context)
    };
    for death in 1.. {
        let path = folder.path().join("state");
        std::fs::copy(&founded_at, &path).unwrap();
        let mut mortal = Mortal::open(&path, death).await;
        let (draft, promised) = plan(&mortal.view, &mut random).unwrap();
        let mut survived = mortal.commit(draft).await;
        while let (Some(()), Some(draft)) = (survived, launch::carry_on(&mortal.view)) {
            survived = mortal.commit(draft).await;
        }
        drop(mortal);
        let mut mortal = Mortal::open(&path, u64::MAX).await;
        while let Some(draft) = launch::carry_on(&mortal.view) {
            mortal.commit(draft).await.unwrap();
        }
        // Whoever asks again gets what was promised, and it is there, once.
        let (draft, answer) = plan(&mortal.view, &mut random).unwrap();
        assert!(draft.is_empty() && answer == promised, "after {death} steps");
        let there: BTreeSet<String> = mortal.view.instances.iter().map(|i| i.id.clone()).collect();
        assert_eq!(there, promised.into_iter().collect(), "after {death} steps");
        assert_eq!((there.len(), mortal.view.tasks.len()), (50, 50));
        check(&mortal.view, &agents);
        if survived.is_some() {
            assert!(death > 3, "{death} steps are fewer than there are");
            return;
        }
    }
}

#[test]
fn a_start_that_is_cancelled_or_late_is_taken_back() {
    for cancel in [true, false] {
        let mut random = Seeded(3);
        let (mut world, tenant, mut agents) = founded(1, &mut random);
        let mut context = Context { now: world.now, ids: &mut random };
        let made = create(&world.view, &alive(&world.view), &wanted(&tenant, 1), &mut context);
        let id = world.must(made).remove(0);
        let task = world.view.instances.get(&id).unwrap().task.clone().unwrap();
        for draft in reconcile::plan(&world.view, &mut context) {
            assert!(world.commit(draft));
        }
        let state = desired::desired(&world.view, &agents[0].server, "r", Vec::new());
        agents[0].take(state);
        agents[0].turn();
        if cancel {
            let cancelled = power::cancel(&world.view, Some(&tenant), &task).unwrap();
            assert!(world.commit(cancelled));
        } else {
            world.now += task::patience(TaskKind::Run);
        }
        heal(&mut world, &mut agents, &mut random);
        check_rest(&world.view, &agents);
        let task = world.view.tasks.get(&task).unwrap();
        assert_eq!(task.step, if cancel { Step::Cancelled } else { Step::Failed });
        assert_eq!(world.view.instances.get(&id).unwrap().status, Status::Stopped);
        if !cancel {
            let failure = task.failure.as_ref().unwrap();
            assert!(failure.message.contains("deadline"), "{failure:?}");
        }
    }
}

#[test]
fn an_image_runs_on_servers_of_its_architecture_alone() {
    let mut random = Seeded(17);
    let (mut world, tenant, agents) = founded(1, &mut random);
    let arm =
        Image { id: format!("m-{}", "2".repeat(20)), architecture: "arm64".into(), ..image() };
    let mut draft = Draft::default();
    draft.create(&arm);
    assert!(world.commit(draft));
    let mut context = Context { now: world.now, ids: &mut random };
    let mut request = wanted(&tenant, 1);
    request.image = arm.id;
    let refused = create(&world.view, &alive(&world.view), &request, &mut context).unwrap_err();
    let refused = crate::ecs::refusal::Refusal::from(refused);
    assert_eq!((refused.status, &*refused.code), (403, "ImageNotSupportInstanceType"));
    // A type of the image's architecture, and no server that is.
    request.architecture = "arm64".to_owned();
    let refused = create(&world.view, &alive(&world.view), &request, &mut context).unwrap_err();
    assert!(refused.to_string().contains("has another architecture"), "{refused}");
    let mut report = agents[0].report();
    report.inventory.architecture = "arm64".to_owned();
    for draft in observe::observe(&world.view, &agents[0].server, &report, &mut context) {
        assert!(world.commit(draft));
    }
    assert!(create(&world.view, &alive(&world.view), &request, &mut context).is_ok());
}

#[test]
fn requests_are_refused_with_their_reason() {
    let mut random = Seeded(5);
    let (mut world, tenant, _) = founded(1, &mut random);
    let mut context = Context { now: world.now, ids: &mut random };
    let try_it = |world: &World, request: &NewInstances, context: &mut Context<'_>| {
        create(&world.view, &alive(&world.view), request, context).map(|(_, made)| made)
    };
    let mut request = wanted(&tenant, 1);
    request.image = "m-none".to_owned();
    assert!(matches!(
        try_it(&world, &request, &mut context),
        Err(Refusal::NotFound { what: "image", .. })
    ));
    let mut request = wanted(&tenant, 1);
    request.limits.memory_mib = 1 << 18;
    let refused = try_it(&world, &request, &mut context);
    assert!(
        matches!(&refused, Err(Refusal::NoStock(why)) if why.contains("MiB of memory left")),
        "{refused:?}"
    );
    let refused = try_it(&world, &wanted(&tenant, 21), &mut context);
    assert!(matches!(refused, Err(Refusal::Quota { what: "instances", limit: 20, .. })));
    let mut request = wanted(&tenant, 1);
    request.vswitch = Some("vsw-another".to_owned());
    assert!(matches!(try_it(&world, &request, &mut context), Err(Refusal::NotFound { .. })));

    let mut request = wanted(&tenant, 2);
    let token = super::create::NewToken {
        action: "RunInstances".into(),
        token: "a/ b".into(),
        fingerprint: "1".into(),
    };
    request.token = Some(token.clone());
    let made = create(&world.view, &alive(&world.view), &request, &mut context);
    let made = world.must(made);
    assert_eq!(made.len(), 2);
    // The same again is the same; the token for something else is refused.
    let again = create(&world.view, &alive(&world.view), &request, &mut context).unwrap();
    assert!(again.0.is_empty() && again.1 == made);
    request.token = Some(super::create::NewToken { fingerprint: "2".into(), ..token });
    assert_eq!(try_it(&world, &request, &mut context), Err(Refusal::TokenMismatch));

    let other = tenancy::new_tenant(&world.view, "two", Quota::default(), "z", &mut context);
    let other = world.must(other).id;
    let asked =
        power::request(&world.view, Some(&other), &made[0], TaskKind::Delete, true, &mut context);
    assert!(matches!(asked, Err(Refusal::NotFound { what: "instance", .. })));
    let asked =
        power::request(&world.view, Some(&tenant), &made[0], TaskKind::Start, true, &mut context);
    assert!(matches!(asked, Err(Refusal::Busy { .. })));
    // Both tenants have the same addresses and different segments.
    let vnis: BTreeSet<u32> = world.view.vswitches.iter().map(|vswitch| vswitch.vni).collect();
    assert_eq!(vnis.len(), 2);
    assert!(tenancy::remove_tenant(&world.view, &tenant).is_err());
    let draft = tenancy::remove_tenant(&world.view, &other).unwrap();
    assert!(world.commit(draft));
    assert_eq!((world.view.vpcs.len(), world.view.segments.len()), (1, 1));
}
