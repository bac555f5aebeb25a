//! What a server is to do: the agent's desired state, composed from the view.
//!
//! Invariant: the revision is a sum over the content: it differs whenever anything does, and a cloud that was started
//! anew gives the same one for the same content. A segment's generation is the newest revision of the store that any of
//! its parts was changed at, and so only grows.

use crate::model::{Disk, Eni, Image, ImageFile, Instance, Link, Power, Server, VSwitch, View};
use aws_lc_rs::digest::{SHA256, digest};
use bixi_api::agent::{
    self, BootSource, Cidata, DesiredDisk, DesiredInstance, DesiredNic, DesiredSegment,
    DesiredState, DiskRole, InstanceLimits, StopMode, WantedStream,
};
use bixi_api::network::{NamedHost, Peer, SegmentConfig, SegmentNames, name_servers};
use bixi_image::cidata::{Address, Nic, Seed};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// How long a guest has from the power button to the loss of power, in seconds.
const ORDERLY_SECONDS: u32 = 60;
/// What guests may send at once: 1500 bytes of the network between servers, less the tunnel's headers.
const MTU: u16 = 1450;
/// The domain in which instances find each other by name.
const DOMAIN: &str = "bixi.internal";

/// All that the server is to do, with the consoles that somebody waits for.
pub fn desired(
    view: &View,
    server: &str,
    region: &str,
    streams: Vec<WantedStream>,
) -> DesiredState {
    let here = view.linked::<Instance>(Link::InstanceAt, server);
    let instances: Vec<DesiredInstance> =
        here.filter_map(|instance| desired_instance(view, instance, region)).collect();
    let used: BTreeSet<u32> =
        instances.iter().flat_map(|i| i.nics.iter().map(|nic| nic.segment)).collect();
    let switches = view.vswitches.iter().filter(|vswitch| used.contains(&vswitch.vni));
    let segments = switches.map(|vswitch| segment(view, vswitch, server)).collect();
    let mut state =
        DesiredState { server: server.to_owned(), revision: 0, instances, segments, streams };
    state.revision = sum(&state);
    state
}

fn sum(state: &DesiredState) -> u64 {
    // Serialising plain structures to memory does not fail.
    let text = serde_json::to_vec(state).unwrap_or_default();
    let sum = digest(&SHA256, &text);
    let first = sum.as_ref().first_chunk().copied().unwrap_or_default();
    u64::from_le_bytes(first).max(1)
}

fn desired_instance(view: &View, instance: &Instance, region: &str) -> Option<DesiredInstance> {
    let image = view.images.get(&instance.image)?;
    let nics = view.enis_of(&instance.id);
    let nics: Vec<DesiredNic> = nics
        .iter()
        .filter_map(|eni| {
            let segment = view.vswitches.get(&eni.vswitch)?.vni;
            Some(DesiredNic { id: eni.id.clone(), mac: eni.mac.clone(), ipv4: eni.ipv4, segment })
        })
        .collect();
    let forced = StopMode::Forced;
    let orderly = StopMode::Orderly { deadline_seconds: ORDERLY_SECONDS };
    Some(DesiredInstance {
        id: instance.id.clone(),
        epoch: instance.placement.epoch,
        power: match instance.desired.power {
            Power::Running => agent::Power::Running,
            Power::Stopped => agent::Power::Stopped,
            Power::Deleted => agent::Power::Deleted,
        },
        boot: instance.desired.boot.max(1),
        stop: if instance.desired.forced { forced } else { orderly },
        limits: limits(instance),
        source: source(image)?,
        disks: view.disks_of(&instance.id).iter().map(|disk| desired_disk(disk, image)).collect(),
        cidata: Some(cidata(view, instance, &nics)),
        metadata: metadata(instance, &nics, region),
        nics,
    })
}

fn limits(instance: &Instance) -> InstanceLimits {
    InstanceLimits {
        vcpus: u8::try_from(instance.limits.vcpus).unwrap_or(u8::MAX),
        memory: instance.limits.memory_mib << 20,
        nic_packets: instance.limits.nic_packets,
        nic_bits: instance.limits.nic_bits,
        disk_iops: instance.limits.disk_iops,
    }
}

fn file(file: &ImageFile) -> agent::ImageFile {
    agent::ImageFile { id: file.id.clone(), size: file.size, sha256: file.sha256.clone() }
}

fn source(image: &Image) -> Option<BootSource> {
    Some(BootSource::Kernel {
        kernel: file(image.kernel.as_ref()?),
        initrd: image.initrd.as_ref().map(file),
        cmdline: image.cmdline.clone(),
    })
}

fn desired_disk(disk: &Disk, image: &Image) -> DesiredDisk {
    let begins = disk.image.is_some();
    DesiredDisk {
        id: disk.id.clone(),
        size: disk.size,
        image: image.disk.as_ref().filter(|_| begins).map(file),
        role: if disk.system { DiskRole::System } else { DiskRole::Data },
        delete_with_instance: disk.delete_with_instance,
    }
}

/// The NoCloud files.
fn cidata(view: &View, instance: &Instance, nics: &[DesiredNic]) -> Cidata {
    let mut cards = Vec::new();
    for (index, nic) in nics.iter().enumerate() {
        let vswitch = view.vswitches.iter().find(|vswitch| vswitch.vni == nic.segment);
        let Some(vswitch) = vswitch else { continue };
        let Ok(prefix_len) = u8::try_from(vswitch.prefix_len) else { continue };
        let address = Address::Static {
            ipv4: vec![(nic.ipv4, prefix_len)],
            gateway: (index == 0).then(|| vswitch.gateway()),
            dns: name_servers(),
            search: vec![DOMAIN.to_owned()],
        };
        cards.push(Nic { mac: nic.mac.clone(), mtu: MTU, address });
    }
    let seed = Seed {
        instance_id: instance.id.clone(),
        hostname: instance.host_name.clone(),
        public_keys: instance.ssh_keys.clone(),
        nics: cards,
        ..Seed::default()
    };
    let (_, characters) = instance.id.split_once('-').unwrap_or_default();
    Cidata {
        disk: format!("cidata-{characters}"),
        meta_data: seed.meta_data(),
        user_data: instance.user_data.clone(),
        network_config: Some(seed.network_config()),
    }
}

fn metadata(instance: &Instance, nics: &[DesiredNic], region: &str) -> BTreeMap<String, String> {
    let mut documents: BTreeMap<&str, String> = BTreeMap::new();
    documents.insert("instance-id", instance.id.clone());
    documents.insert("hostname", instance.host_name.clone());
    documents.insert("image-id", instance.image.clone());
    documents.insert("region-id", region.to_owned());
    documents.insert("zone-id", instance.zone.clone());
    documents.insert("vpc-id", instance.vpc.clone());
    documents.insert("vswitch-id", instance.vswitch.clone());
    documents.insert("instance/instance-type", instance.type_id.clone());
    if let Some(nic) = nics.first() {
        documents.insert("mac", nic.mac.clone());
        documents.insert("private-ipv4", nic.ipv4.to_string());
    }
    let under = |(path, text)| (format!("latest/meta-data/{path}"), text);
    let mut documents: BTreeMap<String, String> = documents.into_iter().map(under).collect();
    if !instance.user_data.is_empty() {
        documents.insert("latest/user-data".to_owned(), instance.user_data.clone());
    }
    documents
}

fn segment(view: &View, vswitch: &VSwitch, server: &str) -> DesiredSegment {
    let mut generation = view.vswitches.modified(&vswitch.id);
    let (mut peers, mut hosts) = (Vec::new(), Vec::new());
    for eni in view.linked::<Eni>(Link::EniAt, &vswitch.id) {
        generation = generation.max(view.enis.modified(&eni.id));
        let instance = eni.instance.as_ref().and_then(|id| view.instances.get(id));
        let Some(instance) = instance else { continue };
        generation = generation.max(view.instances.modified(&instance.id));
        if is_label(&instance.host_name) {
            hosts.push(NamedHost { name: instance.host_name.clone(), ipv4: eni.ipv4 });
        }
        if instance.placement.server == server {
            continue;
        }
        let Some(other) = view.servers.get(&instance.placement.server) else { continue };
        generation = generation.max(view.servers.modified(&other.id));
        let Some(endpoint) = underlay(other) else { continue };
        peers.push(Peer { mac: eni.mac.clone(), ipv4: eni.ipv4, endpoint });
    }
    let config = SegmentConfig {
        generation,
        network: vswitch.network,
        prefix_len: u8::try_from(vswitch.prefix_len).unwrap_or(24),
        gateway: Some(vswitch.gateway()),
        dns: Vec::<Ipv4Addr>::new(),
        mtu: MTU,
        peers,
        names: Some(SegmentNames {
            servers: name_servers(),
            domain: Some(DOMAIN.to_owned()),
            hosts,
        }),
    };
    DesiredSegment { vni: vswitch.vni, config }
}

/// Whether a host name can be asked for by DNS (RFC 1123, section 2.1, one label). Others have no name there.
fn is_label(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let outer = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    bytes.len() <= 63
        && bytes.iter().copied().all(inner)
        && outer(bytes.first())
        && outer(bytes.last())
}

fn underlay(server: &Server) -> Option<std::net::SocketAddr> {
    server.hardware.as_ref()?.underlay
}
