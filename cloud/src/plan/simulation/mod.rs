//! The cloud's plans against simulated agents: the same functions as in production, with virtual time, seeded faults,
//! lost and doubled messages, and a cloud and agents that die at every step.
//!
//! Here is the world that is disturbed at random; [`agent`] is a server in it, `mortal` walks a cloud's deaths, `requests` has
//! single requests.

mod agent;
mod mortal;
mod requests;

pub(crate) use agent::{SimulatedAgent, observed, report};

use super::create::{NewDisk, NewInstances, create};
use super::{Context, Refusal, desired, launch, observe, power, reconcile, task, tenancy};
use crate::model::*;
use crate::store::{Change, Entry, Op, Revision, Store, Txn};
use bixi_api::agent::{InstanceState, Report};
use std::collections::BTreeSet;

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
