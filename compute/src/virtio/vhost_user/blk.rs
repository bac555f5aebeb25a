//! The disk (virtio 1.2, section 5.2): what a guest sees of a vhost-user-blk back end.

use super::super::device::Kind;
use super::super::features::{
    BLK_BLK_SIZE, BLK_DISCARD, BLK_FLUSH, BLK_GEOMETRY, BLK_MQ, BLK_RO, BLK_SEG_MAX, BLK_SIZE_MAX,
    BLK_TOPOLOGY, BLK_WRITE_ZEROES, RING_EVENT_IDX, RING_INDIRECT_DESC, VERSION_1,
};
use super::contact::{BackEnd, Character, ConnectError, Face, VhostUser};
use super::share::GuestShare;
use bixi_api::compute::DiskConfig;
use bixi_offload::frontend::{FrontConfig, Probe};
use std::sync::Arc;

pub(super) const KIND: Kind = Kind { id: 2, name: "virtio-blk", class: 0x01_80_00 };

/// Bytes of the configuration space read from the back end: up to and with the fields of write-zeroes. Back ends exist
/// that refuse to give more.
pub(super) const CONFIG_LEN: usize = 60;
/// Where the number of queues is in it.
const NUM_QUEUES: usize = 34;
/// Bytes of the capacity, which is the first field.
const CAPACITY_LEN: usize = 8;

/// What is passed on of a back end. Secure erase and a writable cache mode have fields or writes that are not passed on.
const PASSED: u64 = VERSION_1
    | RING_INDIRECT_DESC
    | RING_EVENT_IDX
    | BLK_SIZE_MAX
    | BLK_SEG_MAX
    | BLK_GEOMETRY
    | BLK_RO
    | BLK_BLK_SIZE
    | BLK_FLUSH
    | BLK_TOPOLOGY
    | BLK_MQ
    | BLK_DISCARD
    | BLK_WRITE_ZEROES;

/// Builds the disk `config` describes, for a VM of `vcpus` vCPUs. Waits for its back end for as long as it takes;
/// dropped, it leaves nothing behind.
///
/// # Errors
/// The socket cannot be used.
pub async fn connect(
    config: &DiskConfig,
    vcpus: u8,
    share: &GuestShare,
) -> Result<Arc<VhostUser>, ConnectError> {
    let back_end = BackEnd::new(&config.id, &config.socket)?;
    connect_to(back_end, config, vcpus, share).await
}

pub(super) async fn connect_to(
    back_end: BackEnd,
    config: &DiskConfig,
    vcpus: u8,
    share: &GuestShare,
) -> Result<Arc<VhostUser>, ConnectError> {
    let front = FrontConfig {
        features: PASSED,
        config_len: CONFIG_LEN as u32,
        rings: 1,
        in_order: false,
        channel: true,
        ..FrontConfig::default()
    };
    let wanted = config.queues.unwrap_or(vcpus.into()).max(1);
    let disk = Disk { wanted, queue_size: config.queue_size };
    VhostUser::connect(back_end, front, Box::new(disk), share).await
}

/// A disk's character.
#[derive(Debug)]
pub(super) struct Disk {
    /// Queues wanted; the back end may have fewer.
    pub(super) wanted: u16,
    pub(super) queue_size: u16,
}

impl Character for Disk {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn face(&self, probe: &Probe) -> Result<Face, String> {
        let mut config: [u8; CONFIG_LEN] = probe.config.as_slice().try_into().map_err(|_| {
            "it gives no configuration space: it must offer the protocol feature CONFIG".to_owned()
        })?;
        if probe.features & VERSION_1 == 0 {
            return Err("it does not offer VIRTIO_F_VERSION_1".to_owned());
        }
        let queues = self.wanted.min(probe.rings).max(1);
        config[NUM_QUEUES..NUM_QUEUES + 2].copy_from_slice(&queues.to_le_bytes());
        let several = if queues > 1 { BLK_MQ } else { 0 };
        Ok(Face {
            features: probe.features & !BLK_MQ | several,
            config: config.to_vec(),
            rings: queues,
            queue_sizes: vec![self.queue_size; usize::from(queues)],
            // The number of queues is this side's word.
            passed_on: probe.features & !BLK_MQ | several & probe.features,
        })
    }

    fn update(&self, shown: &[u8], told: &[u8]) -> Option<Vec<u8>> {
        // A driver reads everything but the capacity once. A back end that returns with other limits serves the old
        // ones, or answers requests beyond its own with errors; the driver could not act on a change.
        let capacity = told.get(..CAPACITY_LEN)?;
        let mut config = shown.to_vec();
        config.get_mut(..CAPACITY_LEN)?.copy_from_slice(capacity);
        Some(config)
    }

    fn accepts(&self, _: u64) -> bool {
        true
    }

    fn pairs(&self) -> Option<u16> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(rings: u16) -> Probe {
        let mut config = vec![0; CONFIG_LEN];
        config[..8].copy_from_slice(&2048u64.to_le_bytes());
        config[NUM_QUEUES] = 64;
        Probe { features: PASSED, protocol: 0, rings, config }
    }

    #[test]
    fn a_disk_has_as_many_queues_as_wanted_and_never_more_than_its_back_end() {
        for (wanted, rings, queues) in [(4, 8, 4), (4, 2, 2), (1, 8, 1), (8, 0, 1)] {
            let disk = Disk { wanted, queue_size: 128 };
            let face = disk.face(&probe(rings)).unwrap();
            assert_eq!((face.rings, face.queue_sizes.len()), (queues, usize::from(queues)));
            assert_eq!(face.config[NUM_QUEUES], queues as u8);
            assert_eq!(face.features & BLK_MQ != 0, queues > 1);
        }
    }

    #[test]
    fn a_back_end_without_configuration_or_of_old_times_is_refused() {
        let disk = Disk { wanted: 1, queue_size: 128 };
        let bare = Probe { config: Vec::new(), ..probe(1) };
        assert!(disk.face(&bare).unwrap_err().contains("CONFIG"));
        let old = Probe { features: 0, ..probe(1) };
        assert!(disk.face(&old).unwrap_err().contains("VERSION_1"));
    }

    #[test]
    fn only_the_capacity_changes_later() {
        let disk = Disk { wanted: 2, queue_size: 128 };
        let shown = disk.face(&probe(2)).unwrap().config;
        let mut told = vec![0xff; CONFIG_LEN];
        told[..8].copy_from_slice(&4096u64.to_le_bytes());
        let config = disk.update(&shown, &told).unwrap();
        assert_eq!(config[..8], 4096u64.to_le_bytes());
        assert_eq!(config[8..], shown[8..]);
        assert_eq!(disk.update(&shown, &[1, 2]), None);
    }
}
