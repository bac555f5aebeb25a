//! The network interface (virtio 1.2, section 5.1): what a guest sees of a vhost-user-net back end.
//!
//! Offloads and mergeable buffers are the back end's. Address, MTU and link state are the configuration's, and the
//! control queue is served here: of all its commands the device offers the number of queue pairs, and only if there are
//! several.

use super::super::device::Kind;
use super::super::features::{
    NET_CSUM, NET_CTRL_VQ, NET_GUEST_CSUM, NET_GUEST_ECN, NET_GUEST_TSO4, NET_GUEST_TSO6,
    NET_GUEST_UFO, NET_GUEST_USO4, NET_GUEST_USO6, NET_HOST_ECN, NET_HOST_TSO4, NET_HOST_TSO6,
    NET_HOST_UFO, NET_HOST_USO, NET_MAC, NET_MQ, NET_MRG_RXBUF, NET_MTU, NET_STATUS,
    RING_EVENT_IDX, RING_INDIRECT_DESC, VERSION_1,
};
use super::contact::{BackEnd, Character, ConnectError, Face, VhostUser};
use super::share::GuestShare;
use bixi_api::compute::NicConfig;
use bixi_offload::frontend::{FrontConfig, Probe};
use std::sync::Arc;

pub(super) const KIND: Kind = Kind { id: 1, name: "virtio-net", class: 0x02_00_00 };

/// What is passed on of a back end.
const PASSED: u64 = VERSION_1
    | RING_INDIRECT_DESC
    | RING_EVENT_IDX
    | NET_CSUM
    | NET_GUEST_CSUM
    | NET_GUEST_TSO4
    | NET_GUEST_TSO6
    | NET_GUEST_ECN
    | NET_GUEST_UFO
    | NET_HOST_TSO4
    | NET_HOST_TSO6
    | NET_HOST_ECN
    | NET_HOST_UFO
    | NET_GUEST_USO4
    | NET_GUEST_USO6
    | NET_HOST_USO
    | NET_MRG_RXBUF
    // Shown only because this side serves it; a back end that knows of it is told that the driver took it.
    | NET_MQ;

/// Entries of the control queue.
const CONTROL_SIZE: u16 = 64;
/// The link is up.
const LINK_UP: u16 = 1;

/// Builds the interface `config` describes. Waits for its back end for as long as it takes; dropped, it leaves
/// nothing behind.
///
/// # Errors
/// The socket cannot be used, or the hardware address is none.
pub async fn connect(
    config: &NicConfig,
    share: &GuestShare,
) -> Result<Arc<VhostUser>, ConnectError> {
    let back_end = BackEnd::new(&config.id, &config.socket)?;
    let mac = parse_mac(&config.mac)
        .ok_or_else(|| ConnectError::Mac { nic: config.id.clone(), mac: config.mac.clone() })?;
    let pairs = config.queue_pairs.unwrap_or(1).max(1);
    let front = FrontConfig {
        features: PASSED,
        config_len: 0,
        rings: pairs.saturating_mul(2),
        in_order: true,
        channel: false,
        ..FrontConfig::default()
    };
    let nic = Nic { mac, mtu: config.mtu, pairs, queue_size: config.queue_size };
    VhostUser::connect(back_end, front, Box::new(nic), share).await
}

/// Six bytes in hexadecimal with colons between, of a single station.
pub(super) fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part =
            parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    let group = mac[0] & 1 != 0;
    (parts.next().is_none() && !group && mac != [0; 6]).then_some(mac)
}

/// An interface's character.
#[derive(Debug)]
pub(super) struct Nic {
    pub(super) mac: [u8; 6],
    pub(super) mtu: Option<u16>,
    pub(super) pairs: u16,
    pub(super) queue_size: u16,
}

impl Character for Nic {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn face(&self, probe: &Probe) -> Result<Face, String> {
        if probe.features & VERSION_1 == 0 {
            return Err("it does not offer VIRTIO_F_VERSION_1".to_owned());
        }
        let mut features = probe.features & !NET_MQ | NET_MAC | NET_STATUS;
        if self.mtu.is_some() {
            features |= NET_MTU;
        }
        let rings = self.pairs * 2;
        let mut queue_sizes = vec![self.queue_size; usize::from(rings)];
        if self.pairs > 1 {
            features |= NET_CTRL_VQ | NET_MQ;
            queue_sizes.push(CONTROL_SIZE);
        }
        let mut config = self.mac.to_vec();
        config.extend(LINK_UP.to_le_bytes());
        config.extend(self.pairs.to_le_bytes());
        config.extend(self.mtu.unwrap_or(0).to_le_bytes());
        Ok(Face { features, config, rings, queue_sizes, passed_on: probe.features })
    }

    fn update(&self, _: &[u8], _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn accepts(&self, features: u64) -> bool {
        // virtio 1.2, 5.1.3.1: several pairs are chosen over the control queue.
        features & NET_MQ == 0 || features & NET_CTRL_VQ != 0
    }

    fn pairs(&self) -> Option<u16> {
        Some(self.pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn nic(pairs: u16) -> Nic {
        Nic { mac: MAC, mtu: Some(1450), pairs, queue_size: 256 }
    }

    #[test]
    fn offloads_are_the_back_ends_and_the_rest_is_ours() {
        let probe = Probe {
            features: VERSION_1 | NET_CSUM | NET_MQ,
            protocol: 0,
            rings: 8,
            config: Vec::new(),
        };
        let one = nic(1).face(&probe).unwrap();
        assert_eq!(one.features, VERSION_1 | NET_CSUM | NET_MAC | NET_STATUS | NET_MTU);
        assert_eq!(one.queue_sizes, [256, 256]);
        let four = nic(4).face(&probe).unwrap();
        assert_eq!(four.features & !one.features, NET_MQ | NET_CTRL_VQ);
        assert_eq!((four.rings, four.queue_sizes.len()), (8, 9));
        assert_eq!(four.config, [2, 0, 0, 0, 0, 1, 1, 0, 4, 0, 0xaa, 0x05]);
        assert!(!nic(4).accepts(NET_MQ) && nic(4).accepts(NET_MQ | NET_CTRL_VQ));
    }

    #[test]
    fn only_a_stations_address_is_one() {
        assert_eq!(parse_mac("02:00:00:00:00:01"), Some(MAC));
        assert_eq!(parse_mac("fe:FF:ff:ff:ff:ff"), Some([0xfe, 255, 255, 255, 255, 255]));
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "2:0:0:0:0:1",
            "+2:00:00:00:00:01",
            "01:00:00:00:00:01",
            "00:00:00:00:00:00",
            "02-00-00-00-00-01",
        ] {
            assert_eq!(parse_mac(text), None, "{text}");
        }
    }
}
