//! Tenants, their keys and quotas; servers' comings and goings.

use super::{Context, Refusal, reconcile};
use crate::ecs::wire::timestamp::to_the_second;
use crate::model::{
    AccessKey, Draft, JoinTicket, Quota, Room, SecurityGroup, Segment, Server, Severity, Tenant,
    VSwitch, View, Vpc,
};
use std::net::Ipv4Addr;

/// The first VXLAN network identifier that is given out; those below are the operator's.
const FIRST_VNI: u32 = 4096;
/// The last one there is.
const LAST_VNI: u32 = (1 << 24) - 1;
/// How long a join token is good, in milliseconds.
const TICKET_LIFE: u64 = 24 * 3_600_000;

/// A new tenant, with a VPC, a vSwitch and a security group of its own.
///
/// # Errors
/// The name is taken or not possible.
pub fn new_tenant(
    view: &View,
    name: &str,
    quota: Quota,
    zone: &str,
    context: &mut Context<'_>,
) -> Result<(Draft, Tenant), Refusal> {
    check_name("tenant", name)?;
    if view.tenants.iter().any(|tenant| tenant.name == name) {
        return Err(Refusal::Exists { what: "tenant", name: name.to_owned() });
    }
    let mut draft = Draft::default();
    let (id, now) = (context.ids.id("t"), context.now);
    let vpc = Vpc {
        id: context.ids.id("vpc"),
        tenant: id.clone(),
        name: "default".to_owned(),
        network: Ipv4Addr::new(172, 16, 0, 0),
        prefix_len: 12,
        is_default: true,
        created: now,
        generation: 1,
    };
    let vswitch = VSwitch {
        id: context.ids.id("vsw"),
        tenant: id.clone(),
        vpc: vpc.id.clone(),
        name: "default".to_owned(),
        network: Ipv4Addr::new(172, 16, 0, 0),
        prefix_len: 20,
        zone: zone.to_owned(),
        vni: free_vni(view)?,
        is_default: true,
        created: now,
        generation: 1,
    };
    let group = SecurityGroup {
        id: context.ids.id("sg"),
        tenant: id.clone(),
        vpc: vpc.id.clone(),
        name: "default".to_owned(),
        description: "Made with the tenant".to_owned(),
        is_default: true,
        created: now,
        generation: 1,
    };
    let tenant = Tenant {
        id,
        name: name.to_owned(),
        created: now,
        quota,
        default_vpc: vpc.id.clone(),
        default_vswitch: vswitch.id.clone(),
        default_group: group.id.clone(),
        account: account(context),
        generation: 1,
    };
    // Compared, so that two tenants at once do not get the same segment.
    draft.put(view, &Segment { vni: vswitch.vni, vswitch: vswitch.id.clone() });
    draft.create(&vpc);
    draft.create(&vswitch);
    draft.create(&group);
    draft.create(&tenant);
    Ok((draft, tenant))
}

fn account(context: &mut Context<'_>) -> u64 {
    let digits = context.ids.characters(b"0123456789", 15);
    digits.parse::<u64>().unwrap_or(0) + 1_000_000_000_000_000
}

fn free_vni(view: &View) -> Result<u32, Refusal> {
    let free = (FIRST_VNI..=LAST_VNI).find(|vni| view.segments.get(&vni.to_string()).is_none());
    free.ok_or_else(|| Refusal::InUse("no network identifier is left".to_owned()))
}

/// Removes a tenant that has nothing left but what it was made with.
///
/// # Errors
/// It has instances, disks or interfaces, or there is none.
pub fn remove_tenant(view: &View, id: &str) -> Result<Draft, Refusal> {
    let tenant = tenant(view, id)?;
    let instances = view.instances.iter().filter(|instance| instance.tenant == id).count();
    let disks = view.disks.iter().filter(|disk| disk.tenant == id).count();
    if instances + disks > 0 {
        return Err(Refusal::InUse(format!(
            "tenant {} has {instances} instances and {disks} disks: delete them first",
            tenant.name
        )));
    }
    let mut draft = Draft::default();
    for vswitch in view.vswitches.iter().filter(|vswitch| vswitch.tenant == id) {
        draft.delete::<Segment>(view, &vswitch.vni.to_string());
        draft.delete::<VSwitch>(view, &vswitch.id);
    }
    for vpc in view.vpcs.iter().filter(|vpc| vpc.tenant == id) {
        draft.delete::<Vpc>(view, &vpc.id);
    }
    for group in view.groups.iter().filter(|group| group.tenant == id) {
        draft.delete::<SecurityGroup>(view, &group.id);
    }
    for key in view.access_keys.iter().filter(|key| key.tenant == id) {
        draft.delete::<AccessKey>(view, &key.id);
    }
    draft.delete::<Tenant>(view, id);
    Ok(draft)
}

/// The tenant with this id or name.
///
/// # Errors
/// There is none.
pub fn tenant<'v>(view: &'v View, id: &str) -> Result<&'v Tenant, Refusal> {
    let named = || view.tenants.iter().find(|tenant| tenant.name == id);
    let found = view.tenants.get(id).or_else(named).map(AsRef::as_ref);
    found.ok_or_else(|| Refusal::NotFound { what: "tenant", id: id.to_owned() })
}

/// Other quotas for a tenant. What it has beyond them it keeps.
///
/// # Errors
/// There is no such tenant.
pub fn set_quota(view: &View, id: &str, quota: Quota) -> Result<Draft, Refusal> {
    let tenant = tenant(view, id)?;
    let mut draft = Draft::default();
    draft.put(view, &Tenant { quota, generation: tenant.generation + 1, ..tenant.clone() });
    Ok(draft)
}

/// A new access key.
///
/// # Errors
/// There is no such tenant.
pub fn new_key(
    view: &View,
    tenant_id: &str,
    context: &mut Context<'_>,
) -> Result<(Draft, AccessKey), Refusal> {
    let tenant = tenant(view, tenant_id)?;
    let key = AccessKey {
        id: format!("LTAI{}", context.ids.secret(20)),
        secret: context.ids.secret(30),
        tenant: tenant.id.clone(),
        created: context.now,
        enabled: true,
    };
    let mut draft = Draft::default();
    draft.expect::<Tenant>(view, &tenant.id);
    draft.create(&key);
    Ok((draft, key))
}

/// Removes an access key.
///
/// # Errors
/// There is no such key.
pub fn remove_key(view: &View, id: &str) -> Result<Draft, Refusal> {
    let mut draft = Draft::default();
    if view.access_keys.get(id).is_none() {
        return Err(Refusal::NotFound { what: "access key", id: id.to_owned() });
    }
    draft.delete::<AccessKey>(view, id);
    Ok(draft)
}

/// Notes that a join token with this secret was given out.
pub fn new_ticket(secret_sha256: String, context: &Context<'_>) -> (Draft, JoinTicket) {
    let (created, expires) = (context.now, context.now + TICKET_LIFE);
    let ticket = JoinTicket { secret_sha256, created, expires };
    let mut draft = Draft::default();
    draft.create(&ticket);
    (draft, ticket)
}

/// A server joins with a ticket, which is used up by that.
///
/// # Errors
/// The ticket is unknown, used or too old, or the name is taken or not possible.
pub fn join(
    view: &View,
    secret_sha256: &str,
    id: &str,
    name: &str,
    certificate_sha256: String,
    context: &mut Context<'_>,
) -> Result<Draft, Refusal> {
    check_name("server", name)?;
    let ticket = view.tickets.get(secret_sha256).filter(|ticket| context.now < ticket.expires);
    if ticket.is_none() {
        let hint = "is unknown, was used already or is too old".to_owned();
        return Err(Refusal::NotFound { what: "join token like this: it", id: hint });
    }
    if view.servers.iter().any(|server| server.name == name) {
        return Err(Refusal::Exists { what: "server", name: name.to_owned() });
    }
    let server = Server {
        id: id.to_owned(),
        name: name.to_owned(),
        certificate_sha256,
        joined: context.now,
        schedulable: true,
        hardware: None,
        release: String::new(),
        next_certificate_sha256: None,
    };
    let mut draft = Draft::default();
    draft.delete::<JoinTicket>(view, secret_sha256);
    draft.create(&server);
    let message = format!("Server {name} has joined.");
    draft.create(&context.event(None, id, "ServerJoined", Severity::Info, message));
    Ok(draft)
}

/// The server with this id or name.
///
/// # Errors
/// There is none.
pub fn server<'v>(view: &'v View, id: &str) -> Result<&'v Server, Refusal> {
    let named = || view.servers.iter().find(|server| server.name == id);
    let found = view.servers.get(id).or_else(named).map(AsRef::as_ref);
    found.ok_or_else(|| Refusal::NotFound { what: "server", id: id.to_owned() })
}

/// A server was given another certificate.
///
/// # Errors
/// There is no such server.
pub fn renew(view: &View, id: &str, certificate_sha256: String) -> Result<Draft, Refusal> {
    let server = server(view, id)?;
    let mut draft = Draft::default();
    let next_certificate_sha256 = Some(certificate_sha256);
    draft.put(view, &Server { next_certificate_sha256, ..server.clone() });
    Ok(draft)
}

/// A server has shown a certificate: if it is the one that it was given last, the one before is worth nothing any more.
///
/// # Errors
/// There is no such server.
pub fn has_shown(view: &View, id: &str, certificate_sha256: &str) -> Result<Draft, Refusal> {
    let server = server(view, id)?;
    let mut draft = Draft::default();
    if server.next_certificate_sha256.as_deref() == Some(certificate_sha256) {
        let certificate_sha256 = certificate_sha256.to_owned();
        let next_certificate_sha256 = None;
        draft.put(view, &Server { certificate_sha256, next_certificate_sha256, ..server.clone() });
    }
    Ok(draft)
}

/// Whether new instances may come to a server.
///
/// # Errors
/// There is no such server.
pub fn set_schedulable(view: &View, id: &str, schedulable: bool) -> Result<Draft, Refusal> {
    let server = server(view, id)?;
    let mut draft = Draft::default();
    draft.put(view, &Server { schedulable, ..server.clone() });
    Ok(draft)
}

/// Removes a server where nothing is placed; its certificate is worth nothing afterwards.
///
/// # Errors
/// Instances or disks are there, or there is no such server.
pub fn remove_server(view: &View, id: &str, context: &mut Context<'_>) -> Result<Draft, Refusal> {
    let server = server(view, id)?;
    if !reconcile::is_free(view, server) {
        return Err(Refusal::InUse(format!(
            "instances or disks are on server {}: delete them first",
            server.name
        )));
    }
    let mut draft = Draft::default();
    draft.delete::<Server>(view, &server.id);
    // Whoever places something there at the same time plans anew.
    draft.put(view, &Room::after_placing(view, &server.id));
    let message = format!("Server {} was removed.", server.name);
    draft.create(&context.event(None, &server.id, "ServerRemoved", Severity::Info, message));
    Ok(draft)
}

/// What is said of an authority that ends, in milliseconds since 1970.
pub fn authority_end(ends: u64) -> String {
    let day = to_the_second(i64::try_from(ends / 1000).unwrap_or(i64::MAX));
    format!(
        "The cloud's authority ends at {day}, and then nobody believes the cloud. Before that: end the cloud, move `ca` \
         out of its state directory and start it, which makes a new one; give its certificate to every client, and let \
         every server join again."
    )
}

/// The event of an authority that ends, unless it was told and is kept still.
pub fn authority_ends(view: &View, ends: u64, context: &mut Context<'_>) -> Draft {
    const KIND: &str = "AuthorityEnds";
    let mut draft = Draft::default();
    if !view.events.iter().any(|event| event.kind == KIND) {
        let message = authority_end(ends);
        draft.create(&context.event(None, "cloud", KIND, Severity::Warning, message));
    }
    draft
}

fn check_name(what: &'static str, name: &str) -> Result<(), Refusal> {
    let good = |c: u8| c.is_ascii_alphanumeric() || c == b'-';
    if (1..=63).contains(&name.len()) && name.bytes().all(good) && !name.starts_with('-') {
        return Ok(());
    }
    let message = format!("the name of a {what} has 1 to 63 letters, digits and `-`");
    Err(Refusal::Invalid { parameter: "name", message })
}
