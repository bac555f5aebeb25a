//! Disks and ports of an instance at the card: attached with its epoch, detached.

use super::{Executor, Fault};
use bixi_api::agent::{DesiredInstance, DesiredSegment, InstanceLimits};
use bixi_api::client::ClientError;
use bixi_api::network::{
    Document, HttpTokens, MetadataDescription, PortAdd, PortDescription, PortLimits, PortMetadata,
    SegmentDescription,
};
use bixi_api::storage::{DiskAttach, DiskDescription, DiskLimits};
use rustix::fs::{Gid, Uid};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Queues of a disk; the VMM takes as many as it has vCPUs.
const MOST_QUEUES: u8 = 4;

impl Executor {
    /// Attaches every disk and port of `desired` with its epoch; a card that has seen a higher one refuses.
    pub(super) async fn attach(
        &self,
        id: &str,
        slot: u32,
        desired: &DesiredInstance,
        segments: &[DesiredSegment],
    ) -> Result<(), Fault> {
        let cards = self.places.vm(id).cards();
        prepare(&cards, self.first_user + slot)
            .map_err(|e| Fault::io("make the card sockets' directory", &e))?;
        let wanted: BTreeSet<u32> = desired.nics.iter().map(|nic| nic.segment).collect();
        for segment in segments.iter().filter(|segment| wanted.contains(&segment.vni)) {
            self.put_segment(segment).await?;
        }
        for nic in &desired.nics {
            let port = PortAdd {
                epoch: desired.epoch,
                socket: cards.join(&nic.id),
                segment: nic.segment,
                mac: nic.mac.clone(),
                ipv4: vec![nic.ipv4],
                queue_pairs: 1,
                require_sealed: true,
                limits: port_limits(&desired.limits, desired.nics.len()),
            };
            let path = format!("/v1/ports/{}", nic.id);
            self.network().put::<PortDescription>(&path, &port).await?;
            let path = format!("{path}/metadata");
            let put = self.network().put::<MetadataDescription>(&path, &metadata(desired)).await;
            absent("StaleGeneration", put.map(drop))?;
        }
        for disk in disks(desired) {
            let attach = DiskAttach {
                epoch: desired.epoch,
                socket: cards.join(disk),
                queues: u16::from(desired.limits.vcpus.min(MOST_QUEUES)),
                read_only: desired.cidata.as_ref().is_some_and(|cidata| cidata.disk == *disk),
                require_sealed: true,
                limits: DiskLimits { iops: desired.limits.disk_iops, bytes_per_second: None },
            };
            let path = format!("/v1/disks/{disk}/attachment");
            self.storage().put::<DiskDescription>(&path, &attach).await?;
        }
        Ok(())
    }

    /// Detaches what is attached of `desired`.
    pub(super) async fn detach(&self, desired: &DesiredInstance) -> Result<(), Fault> {
        for nic in &desired.nics {
            let path = format!("/v1/ports/{}", nic.id);
            absent("NoSuchPort", self.network().delete::<()>(&path).await)?;
        }
        for disk in disks(desired) {
            let path = format!("/v1/disks/{disk}/attachment");
            let detached = self.storage().delete::<DiskDescription>(&path).await;
            absent("NoSuchDisk", detached.map(drop))?;
        }
        Ok(())
    }

    /// Makes the network process know a segment; a newer one that it knows stays.
    pub(super) async fn put_segment(&self, segment: &DesiredSegment) -> Result<(), Fault> {
        let path = format!("/v1/segments/{}", segment.vni);
        let put = self.network().put::<SegmentDescription>(&path, &segment.config).await;
        absent("StaleGeneration", put.map(drop))
    }

    /// Makes the network process know the segments that are desired, and no others but those with ports.
    ///
    /// # Errors
    /// It is away, or refuses.
    pub async fn sync_segments(&self, segments: &[DesiredSegment]) -> Result<(), Fault> {
        for segment in segments {
            self.put_segment(segment).await?;
        }
        let known: Vec<SegmentDescription> = self.network().get("/v1/segments").await?;
        let wanted: BTreeSet<u32> = segments.iter().map(|segment| segment.vni).collect();
        for segment in known.iter().filter(|segment| !wanted.contains(&segment.vni)) {
            let path = format!("/v1/segments/{}", segment.vni);
            absent("SegmentInUse", self.network().delete::<()>(&path).await)?;
        }
        Ok(())
    }
}

/// The disks of an instance, in the guest's order; what the NoCloud disk says comes last.
pub(super) fn disks(desired: &DesiredInstance) -> impl Iterator<Item = &String> {
    let own = desired.disks.iter().map(|disk| &disk.id);
    own.chain(desired.cidata.iter().map(|cidata| &cidata.disk))
}

/// What each of an instance's ports may carry. The type's rates are those of all ports together, which may be on different
/// workers of the card and know nothing of each other: each gets an equal part, so that together they have no more.
fn port_limits(limits: &InstanceLimits, ports: usize) -> PortLimits {
    let part = |all: u64| (all / (ports as u64).max(1)).max(1);
    PortLimits {
        packets_per_second: limits.nic_packets.map(part),
        bits_per_second: limits.nic_bits.map(part),
    }
}

/// What the guest reads of itself; it is new with every start.
fn metadata(desired: &DesiredInstance) -> PortMetadata {
    let documents = desired.metadata.iter();
    let documents = documents.map(|(path, text)| (path.clone(), Document::Text(text.clone())));
    PortMetadata {
        generation: desired.epoch << 32 | desired.boot & u64::from(u32::MAX),
        http_tokens: HttpTokens::Optional,
        documents: documents.collect(),
    }
}

/// A refusal with this code says that all is as it should be.
fn absent(code: &str, asked: Result<(), ClientError>) -> Result<(), Fault> {
    match asked.map_err(Fault::from) {
        Err(fault) if fault.is(code) => Ok(()),
        other => other,
    }
}

/// Makes the directory whose group may connect to every socket in it, and nobody else: the card hands it on to each socket
/// that it makes there, also when it comes back without an agent.
fn prepare(cards: &Path, user: u32) -> io::Result<()> {
    fs::create_dir_all(cards)?;
    let group = Some(Gid::from_raw(user));
    rustix::fs::chown(cards, Some(Uid::ROOT), group)?;
    // After the change of owner, which takes the bit away.
    fs::set_permissions(cards, fs::Permissions::from_mode(0o2750))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_of_an_instance_have_no_more_than_its_type_gives() {
        let (nic_packets, nic_bits) = (Some(300_000), Some(1_000_000_000));
        let limits = InstanceLimits { nic_packets, nic_bits, ..InstanceLimits::default() };
        let of = |ports| {
            let limits = port_limits(&limits, ports);
            (limits.packets_per_second, limits.bits_per_second)
        };
        assert_eq!(of(1), (nic_packets, nic_bits));
        assert_eq!(of(3), (Some(100_000), Some(333_333_333)));
        assert_eq!(port_limits(&InstanceLimits::default(), 2), PortLimits::NONE);
    }
}
