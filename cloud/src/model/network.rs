//! A tenant's network: VPC, vSwitch, security group, network interface.

use super::fields::record;
use std::net::Ipv4Addr;

record! {
    /// A network of one tenant.
    pub struct Vpc / VpcState {
        /// Its id: `vpc-…`.
        1 id: String as String [string];
        /// Whose it is.
        2 tenant: String as String [string];
        /// Its name.
        3 name: String as String [string];
        /// Its address range's first address.
        4 network: Ipv4Addr as u32 [fixed32];
        /// The range's prefix length in bits.
        5 prefix_len: u32 as u32 [uint32];
        /// Whether the tenant was made with it.
        6 is_default: bool as bool [bool];
        /// When it was made, in milliseconds since 1970.
        7 created: u64 as u64 [uint64];
        /// Grows with every change.
        8 generation: u64 as u64 [uint64];
    }
}

record! {
    /// A part of a VPC in one zone: a segment of its own.
    pub struct VSwitch / VSwitchState {
        /// Its id: `vsw-…`.
        1 id: String as String [string];
        /// Whose it is.
        2 tenant: String as String [string];
        /// Its VPC.
        3 vpc: String as String [string];
        /// Its name.
        4 name: String as String [string];
        /// Its address range's first address.
        5 network: Ipv4Addr as u32 [fixed32];
        /// The range's prefix length in bits, 16 to 29.
        6 prefix_len: u32 as u32 [uint32];
        /// Its zone.
        7 zone: String as String [string];
        /// The VXLAN network identifier of its segment, used by no other vSwitch.
        8 vni: u32 as u32 [uint32];
        /// Whether the tenant was made with it.
        9 is_default: bool as bool [bool];
        /// When it was made, in milliseconds since 1970.
        10 created: u64 as u64 [uint64];
        /// Grows with every change of its interfaces.
        11 generation: u64 as u64 [uint64];
    }
}

impl VSwitch {
    /// Addresses that interfaces may get: all but the first, and the last three, which are the network's.
    pub fn host_addresses(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let first = u32::from(self.network);
        let size = 1u32.checked_shl(32 - self.prefix_len.clamp(1, 32)).unwrap_or(0);
        (1..size.saturating_sub(3)).map(move |offset| first.wrapping_add(offset).into())
    }

    /// The address that guests take for their gateway: the third from the end.
    pub fn gateway(&self) -> Ipv4Addr {
        let size = 1u32.checked_shl(32 - self.prefix_len.clamp(1, 32)).unwrap_or(0);
        u32::from(self.network).wrapping_add(size.wrapping_sub(3)).into()
    }
}

record! {
    /// Interfaces that are allowed the same.
    pub struct SecurityGroup / SecurityGroupState {
        /// Its id: `sg-…`.
        1 id: String as String [string];
        /// Whose it is.
        2 tenant: String as String [string];
        /// Its VPC.
        3 vpc: String as String [string];
        /// Its name.
        4 name: String as String [string];
        /// What it is for.
        5 description: String as String [string];
        /// Whether the tenant was made with it.
        6 is_default: bool as bool [bool];
        /// When it was made, in milliseconds since 1970.
        7 created: u64 as u64 [uint64];
        /// Grows with every change.
        8 generation: u64 as u64 [uint64];
    }
}

record! {
    /// A network interface.
    pub struct Eni / EniState {
        /// Its id: `eni-…`.
        1 id: String as String [string];
        /// Whose it is.
        2 tenant: String as String [string];
        /// Its VPC.
        3 vpc: String as String [string];
        /// Its vSwitch.
        4 vswitch: String as String [string];
        /// Its security groups.
        5 groups: Vec<String> as Vec<String> [string, repeated];
        /// Its hardware address.
        6 mac: String as String [string];
        /// Its address.
        7 ipv4: Ipv4Addr as u32 [fixed32];
        /// The instance that it is in, if any.
        8 instance: Option<String> as Option<String> [string, optional];
        /// Whether it is that instance's first one, which comes and goes with it.
        9 primary: bool as bool [bool];
        /// When it was made, in milliseconds since 1970.
        10 created: u64 as u64 [uint64];
        /// Grows with every change.
        11 generation: u64 as u64 [uint64];
    }
}

record! {
    /// A VXLAN network identifier in use, so that no two vSwitches get the same.
    pub struct Segment / SegmentState {
        /// The identifier.
        1 vni: u32 as u32 [uint32];
        /// Whose it is.
        2 vswitch: String as String [string];
    }
}
