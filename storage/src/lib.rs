//! Storage virtualization: cloud disks, served to virtual machines and boards by vhost-user-blk.

pub mod disk;
pub mod engine;
