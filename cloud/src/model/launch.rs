//! New instances that were promised and are not all written down: what they share once, what differs for each.

use super::fields::record;
use super::{Disk, Eni, Instance};
use std::net::Ipv4Addr;

record! {
    /// A creation that is larger than a transaction of the store. It has its answer: whoever asked was told the ids.
    pub struct Launch / LaunchState {
        /// Its id: `launch-…`.
        1 id: String as String [string];
        /// When it was asked for, in milliseconds since 1970.
        2 created: u64 as u64 [uint64];
        /// What all of its instances share; what differs is empty.
        3 instance: Instance as Option<super::instance::InstanceRecordState> [message, optional];
        /// What their interfaces share.
        4 eni: Eni as Option<super::network::EniState> [message, optional];
        /// What their disks share, in the guest's order.
        5 disks: Vec<Disk> as Vec<super::instance::DiskState> [message, repeated];
        /// The instances that are not written down yet.
        6 members: Vec<Member> as Vec<MemberState> [message, repeated];
    }
}

record! {
    /// What is a new instance's own.
    pub struct Member / MemberState {
        /// The instance's id.
        1 instance: String as String [string];
        /// Its name.
        2 name: String as String [string];
        /// What its guest is called.
        3 host_name: String as String [string];
        /// The server that it is placed on.
        4 server: String as String [string];
        /// Its interface's id.
        5 eni: String as String [string];
        /// Its hardware address.
        6 mac: String as String [string];
        /// Its address.
        7 ipv4: Ipv4Addr as u32 [uint32];
        /// Its disks' ids, in the guest's order.
        8 disks: Vec<String> as Vec<String> [string, repeated];
        /// The id of the task that starts it, if it is to be started.
        9 task: Option<String> as Option<String> [string, optional];
    }
}
