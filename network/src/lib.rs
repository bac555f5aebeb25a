//! Network virtualization: ports of instances, served to virtual machines and boards by vhost-user-net, and the segments
//! that connect them.
//!
//! ```text
//!   cli ──► service: who may have which port; what is written down; the control socket
//!              │ commands, immutable views
//!           switch: on the worker thread; from guests' rings to guests' rings
//!              │                   │                   │
//!           engine: what is      answer: ARP, DHCP,   underlay: VXLAN over UDP
//!           done with a frame    DNS, ICMP; metadata  to other servers
//!              │                   │                   │
//!           packet: headers, checksums, segmentation   tables: flows and leases on tmpfs
//! ```
//!
//! A port is added with an id and an epoch; a front end (a VMM's, or a board's QEMU) connects to its socket, and its
//! guest's rings are served from its memory. The process may die at any instant: ports and segments are written down, flows
//! and leases lie in files on tmpfs, and a successor with the same command line goes on. Nothing here knows of KVM.

pub mod address;
pub mod answer;
pub mod cli;
pub mod engine;
#[doc(hidden)]
pub mod fuzz;
pub mod metadata;
pub mod packet;
pub mod service;
pub mod state;
pub mod switch;
pub mod tables;
pub mod underlay;
