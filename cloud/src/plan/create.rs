//! New instances: what they are made of is checked, counted and placed, and promised in one transaction.
//!
//! Invariants: all instances of a request and the ClientToken's answer come to be, or none does; what one transaction
//! cannot hold of them is a launch in it (see `launch`). The tenant's, the vSwitch's and the servers' rooms' records grow
//! by one in the same transaction, so that two creations at once are counted, addressed and placed one after the other.

use super::launch;
use super::schedule::{Candidate, Decision, Demand, decide};
use super::{Context, Refusal};
use crate::model::{
    ClientToken, Desired, Disk, Draft, Eni, Image, ImageState, Instance, Launch, Limits, Link,
    Member, Placement, Power, Room, SecurityGroup, Server, Status, Tag, Tenant, VSwitch, View,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// vCPUs that a server gives out for each of its processors.
const VCPUS_PER_CORE: u64 = 4;
/// Memory that a server keeps for itself, in MiB, or a quarter of it where that is less.
const RESERVED_MIB: u64 = 2048;
const GIB: u64 = 1 << 30;
/// The most data disks an instance may have.
const DATA_DISKS: usize = 16;

/// What is wanted. Absent choices are the tenant's defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewInstances {
    /// Whose they are to be.
    pub tenant: String,
    /// Name and host name of each: as many instances as there are names.
    pub names: Vec<(String, String)>,
    /// The least that is to be made, if not all can.
    pub at_least: usize,
    /// What they are for.
    pub description: String,
    /// Their type's name.
    pub type_id: String,
    /// What the type gives them.
    pub limits: Limits,
    /// `x86_64` or `arm64`.
    pub architecture: String,
    /// The image.
    pub image: String,
    /// The vSwitch.
    pub vswitch: Option<String>,
    /// Security groups.
    pub groups: Vec<String>,
    /// The address of a single instance.
    pub address: Option<Ipv4Addr>,
    /// The system disk.
    pub system_disk: NewDisk,
    /// The other disks.
    pub data_disks: Vec<NewDisk>,
    /// Tags.
    pub tags: Vec<Tag>,
    /// What the guest is told, decoded.
    pub user_data: String,
    /// Whether deletion is refused.
    pub deletion_protection: bool,
    /// SSH keys of the first user.
    pub ssh_keys: Vec<String>,
    /// The key pair's name.
    pub key_pair: Option<String>,
    /// Whether they are started at once.
    pub start: bool,
    /// The request's ClientToken, if it has one.
    pub token: Option<NewToken>,
}

/// A disk that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDisk {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Its category.
    pub category: String,
    /// Its size in GiB; the image's, rounded up, for a system disk where nothing is told.
    pub gib: Option<u64>,
    /// Whether it goes with the instance.
    pub delete_with_instance: bool,
}

/// By what a request is known when it comes again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    /// The action's name.
    pub action: String,
    /// The token.
    pub token: String,
    /// SHA-256 over the other parameters, in hexadecimal.
    pub fingerprint: String,
}

/// What a tenant uses, or a request wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Instances.
    pub instances: u64,
    /// vCPUs.
    pub vcpus: u64,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Disks.
    pub disks: u64,
    /// Size of disks in GiB.
    pub disk_gib: u64,
}

/// Checks, counts and places. The draft is empty if the ClientToken's answer was there already.
///
/// # Errors
/// See [`Refusal`].
pub fn create(
    view: &View,
    alive: &BTreeSet<String>,
    wanted: &NewInstances,
    context: &mut Context<'_>,
) -> Result<(Draft, Vec<String>), Refusal> {
    let tenant = super::tenancy::tenant(view, &wanted.tenant)?;
    if let Some(answer) = answered(view, &tenant.id, wanted)? {
        return Ok((Draft::default(), answer));
    }
    let parts = Parts::find(view, tenant, wanted)?;
    let mut maker = Maker {
        view,
        wanted,
        tenant,
        candidates: candidates(view, alive, &tenant.id),
        taken: addresses(view, &parts.vswitch.id),
        parts,
        members: Vec::new(),
    };
    maker.count()?;
    for name in &wanted.names {
        match maker.member(name, context) {
            Ok(member) => maker.members.push(member),
            // There is room for so many and no more, of servers or of addresses.
            Err(Refusal::NoStock(_) | Refusal::Address(_))
                if maker.members.len() >= wanted.at_least.max(1) =>
            {
                break;
            }
            Err(refusal) => return Err(refusal),
        }
    }
    Ok(maker.finish(context))
}

fn answered(
    view: &View,
    tenant: &str,
    wanted: &NewInstances,
) -> Result<Option<Vec<String>>, Refusal> {
    let Some(token) = &wanted.token else { return Ok(None) };
    match view.client_tokens.get(&ClientToken::key(tenant, &token.action, &token.token)) {
        None => Ok(None),
        Some(known) if known.fingerprint == token.fingerprint => Ok(Some(known.answer.clone())),
        Some(_) => Err(Refusal::TokenMismatch),
    }
}

/// What a tenant uses now.
pub fn usage(view: &View, tenant: &str) -> Usage {
    let mut usage = Usage::default();
    for instance in view.linked::<Instance>(Link::InstanceOf, tenant) {
        usage.instances += 1;
        usage.vcpus += u64::from(instance.limits.vcpus);
        usage.memory_mib += instance.limits.memory_mib;
    }
    for disk in view.linked::<Disk>(Link::DiskOf, tenant) {
        usage.disks += 1;
        usage.disk_gib += disk.gib();
    }
    usage
}

/// All servers as the scheduler sees them.
pub fn candidates(view: &View, alive: &BTreeSet<String>, tenant: &str) -> Vec<Candidate> {
    let mut all: BTreeMap<&str, Candidate> = view
        .servers
        .iter()
        .map(|server| (server.id.as_str(), candidate(server, alive.contains(&server.id))))
        .collect();
    for instance in view.instances.iter() {
        if let Some(candidate) = all.get_mut(instance.placement.server.as_str()) {
            candidate.used_vcpus += u64::from(instance.limits.vcpus);
            candidate.used_memory_mib += instance.limits.memory_mib;
            candidate.neighbours += u64::from(instance.tenant == tenant);
        }
    }
    for disk in view.disks.iter() {
        if let Some(candidate) = all.get_mut(disk.server.as_str()) {
            candidate.used_disk += disk.size;
        }
    }
    all.into_values().collect()
}

fn candidate(server: &Server, alive: bool) -> Candidate {
    let hardware = server.hardware.as_ref();
    let memory_mib = hardware.map_or(0, |hardware| hardware.memory >> 20);
    Candidate {
        server: server.id.clone(),
        schedulable: server.schedulable,
        alive,
        kvm: hardware.is_some_and(|hardware| hardware.kvm),
        architecture: hardware.map(|hardware| hardware.architecture.clone()).unwrap_or_default(),
        vcpus: hardware.map_or(0, |hardware| u64::from(hardware.cores) * VCPUS_PER_CORE),
        memory_mib: memory_mib.saturating_sub(RESERVED_MIB.min(memory_mib / 4)),
        disk: hardware.map_or(0, |hardware| hardware.disk / 10 * 9),
        used_vcpus: 0,
        used_memory_mib: 0,
        used_disk: 0,
        neighbours: 0,
    }
}

fn addresses(view: &View, vswitch: &str) -> BTreeSet<Ipv4Addr> {
    view.linked::<Eni>(Link::EniAt, vswitch).map(|eni| eni.ipv4).collect()
}

/// What the request refers to, found and checked.
struct Parts<'v> {
    image: &'v Image,
    vswitch: &'v VSwitch,
    groups: Vec<String>,
    system_bytes: u64,
}

impl<'v> Parts<'v> {
    fn find(view: &'v View, tenant: &Tenant, wanted: &NewInstances) -> Result<Self, Refusal> {
        let image = image(view, tenant, wanted)?;
        let id = wanted.vswitch.as_deref().unwrap_or(&tenant.default_vswitch);
        let vswitch = view.vswitches.get(id).filter(|vswitch| vswitch.tenant == tenant.id);
        let vswitch =
            vswitch.ok_or_else(|| Refusal::NotFound { what: "vswitch", id: id.to_owned() })?;
        let groups = groups(view, tenant, vswitch, wanted)?;
        let image_bytes = image.disk.as_ref().map_or(0, |disk| disk.size);
        let gib = wanted.system_disk.gib.unwrap_or_else(|| image_bytes.div_ceil(GIB).max(1));
        let system_bytes = bytes("SystemDisk.Size", gib)?;
        if system_bytes < image_bytes {
            let message = format!("{gib} GiB is less than the image's {image_bytes} bytes");
            return Err(Refusal::Invalid { parameter: "SystemDisk.Size", message });
        }
        if wanted.data_disks.len() > DATA_DISKS {
            let message = format!("an instance may have {DATA_DISKS} data disks");
            return Err(Refusal::Invalid { parameter: "DataDisk", message });
        }
        Ok(Self { image, vswitch, groups, system_bytes })
    }
}

fn image<'v>(view: &'v View, tenant: &Tenant, wanted: &NewInstances) -> Result<&'v Image, Refusal> {
    let image = view.images.get(&wanted.image);
    let seen = image.filter(|image| image.tenant.as_ref().is_none_or(|owner| *owner == tenant.id));
    let image =
        seen.ok_or_else(|| Refusal::NotFound { what: "image", id: wanted.image.clone() })?;
    let invalid = |message: String| Refusal::Invalid { parameter: "ImageId", message };
    if image.state != ImageState::Available {
        return Err(invalid(format!("image {} is being made still", image.id)));
    }
    if image.architecture != wanted.architecture {
        let (is, needs) = (image.architecture.clone(), wanted.architecture.clone());
        return Err(Refusal::Architecture { image: image.id.clone(), is, needs });
    }
    if image.kernel.is_none() {
        return Err(invalid(format!("image {} has no kernel to be started with", image.id)));
    }
    Ok(image)
}

fn groups(
    view: &View,
    tenant: &Tenant,
    vswitch: &VSwitch,
    wanted: &NewInstances,
) -> Result<Vec<String>, Refusal> {
    if wanted.groups.is_empty() && vswitch.vpc == tenant.default_vpc {
        return Ok(vec![tenant.default_group.clone()]);
    }
    for id in &wanted.groups {
        let group = view.groups.get(id).filter(|group| group.tenant == tenant.id);
        let group =
            group.ok_or_else(|| Refusal::NotFound { what: "security group", id: id.clone() })?;
        if group.vpc != vswitch.vpc {
            let message = format!("security group {id} is in another VPC than {}", vswitch.id);
            return Err(Refusal::Invalid { parameter: "SecurityGroupId", message });
        }
    }
    if wanted.groups.is_empty() {
        let message = format!("name a security group of VPC {}", vswitch.vpc);
        return Err(Refusal::Invalid { parameter: "SecurityGroupId", message });
    }
    Ok(wanted.groups.clone())
}

fn bytes(parameter: &'static str, gib: u64) -> Result<u64, Refusal> {
    let message = || format!("{gib} GiB: 1 to 32768 are possible");
    let possible = (1..=32768).contains(&gib);
    possible.then_some(gib * GIB).ok_or_else(|| Refusal::Invalid { parameter, message: message() })
}

struct Maker<'v> {
    view: &'v View,
    wanted: &'v NewInstances,
    tenant: &'v Tenant,
    candidates: Vec<Candidate>,
    taken: BTreeSet<Ipv4Addr>,
    parts: Parts<'v>,
    members: Vec<Member>,
}

impl Maker<'_> {
    fn count(&self) -> Result<(), Refusal> {
        let (wanted, quota) = (self.wanted, &self.tenant.quota);
        let amount = wanted.names.len() as u64;
        let mut gib = self.parts.system_bytes / GIB;
        for disk in &wanted.data_disks {
            gib += bytes("DataDisk.Size", disk.gib.unwrap_or(0))? / GIB;
        }
        let used = usage(self.view, &self.tenant.id);
        let disks = 1 + wanted.data_disks.len() as u64;
        for (what, limit, used, wanted) in [
            ("instances", quota.instances, used.instances, 1),
            ("vcpus", quota.vcpus, used.vcpus, u64::from(wanted.limits.vcpus)),
            ("memory-mib", quota.memory_mib, used.memory_mib, wanted.limits.memory_mib),
            ("disks", quota.disks, used.disks, disks),
            ("disk-gib", quota.disk_gib, used.disk_gib, gib),
        ] {
            let wanted = wanted * amount;
            if used.saturating_add(wanted) > limit {
                return Err(Refusal::Quota { what, limit, used, wanted });
            }
        }
        Ok(())
    }

    fn member(
        &mut self,
        (name, host_name): &(String, String),
        context: &mut Context<'_>,
    ) -> Result<Member, Refusal> {
        let server = self.place()?;
        let ipv4 = self.address()?;
        let instance = context.ids.id("i");
        let or = |name: &String, other: String| if name.is_empty() { other } else { name.clone() };
        let disks = 0..=self.wanted.data_disks.len();
        Ok(Member {
            name: or(name, instance.clone()),
            host_name: or(host_name, host_name_of(&instance)),
            server,
            eni: context.ids.id("eni"),
            mac: context.ids.mac(),
            ipv4,
            disks: disks.map(|_| context.ids.id("d")).collect(),
            task: self.wanted.start.then(|| context.ids.id("task")),
            instance,
        })
    }

    /// What all instances share.
    fn instance(&self, now: u64) -> Instance {
        let wanted = self.wanted;
        Instance {
            id: String::new(),
            name: String::new(),
            host_name: String::new(),
            tenant: self.tenant.id.clone(),
            description: wanted.description.clone(),
            type_id: wanted.type_id.clone(),
            limits: wanted.limits.clone(),
            image: wanted.image.clone(),
            zone: self.parts.vswitch.zone.clone(),
            vpc: self.parts.vswitch.vpc.clone(),
            vswitch: self.parts.vswitch.id.clone(),
            groups: self.parts.groups.clone(),
            user_data: wanted.user_data.clone(),
            tags: wanted.tags.clone(),
            created: now,
            started: 0,
            deletion_protection: wanted.deletion_protection,
            status: if wanted.start { Status::Pending } else { Status::Stopped },
            desired: Desired { power: Power::Stopped, boot: 0, forced: false },
            placement: Placement { server: String::new(), epoch: 1 },
            observed: None,
            task: None,
            ssh_keys: wanted.ssh_keys.clone(),
            key_pair: wanted.key_pair.clone(),
        }
    }

    fn eni(&self, now: u64) -> Eni {
        Eni {
            id: String::new(),
            tenant: self.tenant.id.clone(),
            vpc: self.parts.vswitch.vpc.clone(),
            vswitch: self.parts.vswitch.id.clone(),
            groups: self.parts.groups.clone(),
            mac: String::new(),
            ipv4: Ipv4Addr::UNSPECIFIED,
            instance: None,
            primary: true,
            created: now,
            generation: 1,
        }
    }

    fn place(&mut self) -> Result<String, Refusal> {
        let data = self.wanted.data_disks.iter().map(|disk| disk.gib.unwrap_or(0) * GIB);
        let demand = Demand {
            vcpus: u64::from(self.wanted.limits.vcpus),
            memory_mib: self.wanted.limits.memory_mib,
            disk: self.parts.system_bytes + data.sum::<u64>(),
            architecture: self.wanted.architecture.clone(),
        };
        let decision: Decision = decide(&demand, &self.candidates);
        let Some(chosen) = decision.chosen.clone() else {
            return Err(Refusal::NoStock(decision.explain()));
        };
        for candidate in self.candidates.iter_mut().filter(|c| c.server == chosen) {
            candidate.used_vcpus += demand.vcpus;
            candidate.used_memory_mib += demand.memory_mib;
            candidate.used_disk += demand.disk;
            candidate.neighbours += 1;
        }
        Ok(chosen)
    }

    fn address(&mut self) -> Result<Ipv4Addr, Refusal> {
        let vswitch = self.parts.vswitch;
        let chosen = match self.wanted.address {
            Some(address) if self.taken.contains(&address) => {
                return Err(Refusal::Address(format!("address {address} is in use")));
            }
            Some(address) if !vswitch.host_addresses().any(|free| free == address) => {
                let message = format!("{address} is no free address of vSwitch {}", vswitch.id);
                return Err(Refusal::Invalid { parameter: "PrivateIpAddress", message });
            }
            Some(address) => address,
            None => {
                let mut free = vswitch.host_addresses().filter(|a| !self.taken.contains(a));
                let none =
                    || Refusal::Address(format!("vSwitch {} has no free address", vswitch.id));
                free.next().ok_or_else(none)?
            }
        };
        self.taken.insert(chosen);
        Ok(chosen)
    }

    fn disks(&self, now: u64) -> Vec<Disk> {
        let system = std::iter::once((&self.wanted.system_disk, self.parts.system_bytes, true));
        let data = self.wanted.data_disks.iter();
        let data = data.map(|disk| (disk, disk.gib.unwrap_or(0) * GIB, false));
        let disk = |(index, (disk, size, system)): (usize, (&NewDisk, u64, bool))| {
            let begins = system && self.parts.image.disk.is_some();
            Disk {
                id: String::new(),
                tenant: self.tenant.id.clone(),
                name: disk.name.clone(),
                description: disk.description.clone(),
                category: disk.category.clone(),
                size,
                system,
                image: begins.then(|| self.parts.image.id.clone()),
                instance: None,
                index: u32::try_from(index).unwrap_or(u32::MAX),
                delete_with_instance: disk.delete_with_instance,
                server: String::new(),
                created: now,
                generation: 1,
            }
        };
        system.chain(data).enumerate().map(disk).collect()
    }

    fn finish(self, context: &mut Context<'_>) -> (Draft, Vec<String>) {
        let (view, tenant, vswitch) = (self.view, self.tenant, self.parts.vswitch);
        let made: Vec<String> = self.members.iter().map(|m| m.instance.clone()).collect();
        let mut draft = Draft::default();
        draft.put(view, &Tenant { generation: tenant.generation + 1, ..tenant.clone() });
        draft.put(view, &VSwitch { generation: vswitch.generation + 1, ..vswitch.clone() });
        draft.expect::<Image>(view, &self.parts.image.id);
        for group in &self.parts.groups {
            draft.expect::<SecurityGroup>(view, group);
        }
        for member in &self.members {
            draft.put(view, &Room::after_placing(view, &member.server));
        }
        if let Some(token) = &self.wanted.token {
            let record = ClientToken {
                tenant: tenant.id.clone(),
                action: token.action.clone(),
                token: token.token.clone(),
                fingerprint: token.fingerprint.clone(),
                answer: made.clone(),
                created: context.now,
            };
            draft.put(view, &record);
        }
        let mut rest = Launch {
            id: context.ids.id("launch"),
            created: context.now,
            instance: self.instance(context.now),
            eni: self.eni(context.now),
            disks: self.disks(context.now),
            members: self.members,
        };
        launch::make(&mut rest, &mut draft);
        if !rest.members.is_empty() {
            draft.create(&rest);
        }
        (draft, made)
    }
}

/// What a guest is called if nobody said: ECS makes it of the id too.
fn host_name_of(id: &str) -> String {
    format!("iZ{}", id.trim_start_matches("i-"))
}
