//! The servers, and the tickets by which they join.

use super::View;
use super::fields::record;
use std::net::SocketAddr;

/// So many parts the servers are in, as far as placing goes.
const ROOMS: u32 = 16;

record! {
    /// A part of the servers. Whoever places something on one of them changes it: two at once are placed one after the
    /// other, and a placement on a hundred servers is still one transaction.
    pub struct Room / RoomState {
        /// Its number.
        1 number: u32 as u32 [uint32];
        /// Grows with every placement.
        2 generation: u64 as u64 [uint64];
    }
}

impl Room {
    /// The room that a server is in, after one more placement.
    #[must_use]
    pub fn after_placing(view: &View, server: &str) -> Self {
        let number = server.bytes().fold(0u32, |sum, byte| sum.wrapping_add(byte.into())) % ROOMS;
        let before = view.rooms.get(&number.to_string()).map_or(0, |room| room.generation);
        Self { number, generation: before + 1 }
    }
}

record! {
    /// A server. Field 6 was a generation.
    pub struct Server / ServerState {
        /// Its id: `s-…`, also the name in its certificate.
        1 id: String as String [string];
        /// What it calls itself; unique.
        2 name: String as String [string];
        /// SHA-256 of its certificate, in hexadecimal: no other certificate is this server's.
        3 certificate_sha256: String as String [string];
        /// When it joined, in milliseconds since 1970.
        4 joined: u64 as u64 [uint64];
        /// Whether new instances may come here.
        5 schedulable: bool as bool [bool];
        /// What it has, once it has reported.
        7 hardware: Option<Hardware> as Option<HardwareState> [message, optional];
        /// The release of its agent.
        8 release: String as String [string];
        /// SHA-256 of the certificate that it was given last and has not shown yet: the other one is taken until then.
        9 next_certificate_sha256: Option<String> as Option<String> [string, optional];
    }
}

record! {
    /// What a server has, without what changes by the minute.
    pub struct Hardware / HardwareState {
        /// Processors.
        1 cores: u32 as u32 [uint32];
        /// Memory in bytes.
        2 memory: u64 as u64 [uint64];
        /// Size of the file system that holds the disks, in bytes.
        3 disk: u64 as u64 [uint64];
        /// Whether it can run VMs.
        4 kvm: bool as bool [bool];
        /// The processor's model.
        5 cpu: String as String [string];
        /// The kernel's release.
        6 kernel: String as String [string];
        /// Changes with every boot.
        7 boot_id: String as String [string];
        /// Its tunnel end point.
        8 underlay: Option<SocketAddr> as Option<String> [string, optional];
        /// What it lacks, for people.
        9 lacks: Vec<String> as Vec<String> [string, repeated];
        /// `x86_64` or `arm64`.
        10 architecture: String as String [string];
    }
}

record! {
    /// A join token that was given out and not used yet.
    pub struct JoinTicket / JoinTicketState {
        /// SHA-256 of the secret, in hexadecimal: the secret itself is not kept.
        1 secret_sha256: String as String [string];
        /// When it was made, in milliseconds since 1970.
        2 created: u64 as u64 [uint64];
        /// When it ends, in milliseconds since 1970.
        3 expires: u64 as u64 [uint64];
    }
}
