//! Two servers, each with a card and a guest, joined by one segment.

use crate::card::{Card, disk_id};
use crate::daemon::Lease;
use crate::error::{Failure, Result};
use crate::guest::{Guest, GuestPlan, Kernel};
use bixi_api::network::{Peer, SegmentConfig};
use bixi_lab::{Rack, Server};
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// The segment's VXLAN network identifier.
pub const SEGMENT: u32 = 4097;

/// Bytes of each guest's disk.
const DISK: u64 = 64 << 20;

/// One server's half of the pair.
#[derive(Debug)]
pub struct Half {
    /// The server.
    pub server: Server,
    /// Its card.
    pub card: Card,
    /// The guest's port, hardware address, address, disk.
    pub guest: Names,
    disk: PathBuf,
    port: PathBuf,
}

/// What a half's guest and its devices are called.
#[derive(Debug, Clone)]
pub struct Names {
    /// The guest's id.
    pub id: String,
    /// The disk's id.
    pub disk: String,
    /// The port's id.
    pub port: String,
    /// The port's hardware address.
    pub mac: String,
    /// The port's address.
    pub address: Ipv4Addr,
}

impl Names {
    fn of(number: usize) -> Self {
        // A rack has at most 32 servers.
        let byte = u8::try_from(number).unwrap_or(u8::MAX);
        Self {
            id: format!("guest-{number}"),
            disk: disk_id(u32::from(byte)),
            port: format!("eni-{number}"),
            mac: format!("02:00:00:00:00:{byte:02x}"),
            address: Ipv4Addr::new(192, 168, 7, byte),
        }
    }
}

/// Two servers with cards; guests are started on them.
#[derive(Debug)]
pub struct Pair {
    /// The halves.
    pub halves: Vec<Half>,
    lease: Lease,
}

impl Pair {
    /// Starts the cards of a rack's first two servers, with a disk and a port each, and joins them by a segment.
    ///
    /// # Errors
    /// When a card does not start or refuses.
    pub fn start(rack: &Rack, lease: Lease) -> Result<Self> {
        let mut halves = Vec::new();
        for server in rack.servers().into_iter().take(2) {
            let card = Card::start(&server, lease)?;
            let guest = Names::of(server.number());
            card.segment(SEGMENT, &Self::segment(&server))?;
            let disk = card.disk(&guest.disk, DISK)?;
            let port = card.port(&guest.port, SEGMENT, &guest.mac, guest.address)?;
            halves.push(Half { server, card, guest, disk, port });
        }
        if halves.len() < 2 {
            return Err(Failure::new("the rack has fewer than two servers"));
        }
        Ok(Self { halves, lease })
    }

    /// What the card of `server` is told: the other guest lives behind the other server.
    #[must_use]
    pub fn segment(server: &Server) -> SegmentConfig {
        let other = 3 - server.number();
        let peer = Names::of(other);
        let endpoint = (bixi_lab::underlay_address(other), 4789).into();
        SegmentConfig {
            generation: 1,
            network: Ipv4Addr::new(192, 168, 7, 0),
            prefix_len: 24,
            gateway: Some(Ipv4Addr::new(192, 168, 7, 254)),
            dns: Vec::new(),
            mtu: 1500,
            peers: vec![Peer { mac: peer.mac, ipv4: peer.address, endpoint }],
            names: None,
        }
    }

    /// A half's guest as it would be started.
    #[must_use]
    pub fn plan(&self, half: usize, kernel: Kernel) -> GuestPlan {
        let half = &self.halves[half];
        let names = &half.guest;
        GuestPlan::new(&names.id, kernel).disk(&names.disk, &half.disk).nic(
            &names.port,
            &half.port,
            &names.mac,
        )
    }

    /// Boots both guests, one as bzImage with one vCPU, one as PVH ELF with two.
    ///
    /// # Errors
    /// When one does not boot.
    pub fn boot(&self) -> Result<Vec<Guest>> {
        let plans = [self.plan(0, Kernel::BzImage), self.plan(1, Kernel::Elf).cpus(2)];
        let mut guests = Vec::new();
        for (half, plan) in self.halves.iter().zip(&plans) {
            guests.push(Guest::start(&half.server, plan, self.lease)?);
        }
        for guest in &mut guests {
            guest.login()?;
        }
        Ok(guests)
    }
}
