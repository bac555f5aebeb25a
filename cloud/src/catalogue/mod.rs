//! What can be run: instance types with their limits, and the performance of disk categories.
//!
//! `types.csv` holds Alibaba Cloud's public families, the X-Dragon table of 2017 among them; `lab.csv` the small types
//! of a laboratory. Both are data of the program, read by one parser; nothing else knows the difference. A type's
//! limits are what the card enforces: bandwidth and packets at the port, IOPS at each disk. Called by the scheduler, by
//! the APIs and by what writes an instance's desired state.

mod disk;
mod parse;

pub use disk::{Category, Performance, PerformanceLevel, effective_iops};

use std::collections::BTreeMap;
use std::sync::LazyLock;

/// What an instance is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// A virtual machine, on a server shared with others.
    VirtualMachine,
    /// A whole server (elastic bare metal).
    Board,
}

/// The instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Architecture {
    /// x86-64.
    X86,
    /// AArch64.
    Arm,
}

/// A limit that may be passed for a while where the type has a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// What is promised always.
    pub base: u64,
    /// What is reached for a while, at least `base`.
    pub burst: u64,
}

/// Disks inside the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalDisks {
    /// How many.
    pub count: u32,
    /// The size of each in GiB.
    pub gib: u64,
}

/// Graphics processors or gate arrays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accelerator {
    /// The model, as its maker calls it.
    pub model: String,
    /// How many quarters of one: some types have a part of a graphics processor.
    pub quarters: u32,
}

/// An instance type.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceType {
    /// Its name, such as `ecs.g5.large`.
    pub name: String,
    /// Its family, such as `ecs.g5`.
    pub family: String,
    /// A virtual machine or a board.
    pub form: Form,
    /// The instruction set.
    pub architecture: Architecture,
    /// Virtual CPUs: threads of a core.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Disks inside the server, where the family has them.
    pub local_disks: Option<LocalDisks>,
    /// Graphics processors or gate arrays, where the family has them.
    pub accelerator: Option<Accelerator>,
    /// Network bandwidth in kbit/s, each way.
    pub bandwidth_kbit: Limit,
    /// Packets per second, each way.
    pub packets: u64,
    /// Queues of the primary network interface; the documents of boards do not say.
    pub queues: Option<u32>,
    /// Elastic network interfaces, with the primary one.
    pub interfaces: u32,
    /// Requests per second of all disks together; older families have only the limits of their disks.
    pub disk_iops: Option<Limit>,
}

impl InstanceType {
    /// Cloud disks, with the system disk: the same for every type.
    pub const DISKS: u32 = 17;
}

static TYPES: LazyLock<BTreeMap<String, InstanceType>> = LazyLock::new(|| {
    let files = [include_str!("types.csv"), include_str!("lab.csv")];
    let rows = files.into_iter().flat_map(parse::types);
    rows.map(|row| (row.name.clone(), row)).collect()
});

/// The type of that name.
pub fn instance_type(name: &str) -> Option<&'static InstanceType> {
    TYPES.get(name)
}

/// All types in the order of their names.
pub fn instance_types() -> impl Iterator<Item = &'static InstanceType> {
    TYPES.values()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_a_type() {
        let lines = |text: &str| text.lines().filter(|line| !line.is_empty()).count() - 1;
        let rows = lines(include_str!("types.csv")) + lines(include_str!("lab.csv"));
        let parsed = |text| parse::types(text).len();
        assert_eq!(parsed(include_str!("types.csv")) + parsed(include_str!("lab.csv")), rows);
        assert_eq!(instance_types().count(), rows, "a name is there twice");
        for one in instance_types() {
            assert!(one.vcpus > 0 && one.memory_mib >= 256, "{one:?}");
            assert!(
                one.interfaces > 0 && one.packets > 0 && one.bandwidth_kbit.base > 0,
                "{one:?}"
            );
            assert!(one.bandwidth_kbit.burst >= one.bandwidth_kbit.base, "{one:?}");
        }
    }

    #[test]
    fn the_odd_cells_are_understood() {
        let ga1 = instance_type("ecs.ga1.8xlarge").unwrap();
        let accelerator = Accelerator { model: "AMD S7150".into(), quarters: 8 };
        assert_eq!(ga1.accelerator, Some(accelerator));
        assert_eq!(ga1.local_disks, Some(LocalDisks { count: 1, gib: 700 }));
        let i2 = instance_type("ecs.i2.16xlarge").unwrap();
        assert_eq!(i2.local_disks, Some(LocalDisks { count: 8, gib: 1788 }));
        let g6 = instance_type("ecs.g6.xlarge").unwrap();
        assert_eq!(g6.bandwidth_kbit, Limit { base: 1_500_000, burst: 5_000_000 });
        assert_eq!(g6.disk_iops, Some(Limit { base: 20_000, burst: 20_000 }));
        let g7 = instance_type("ecs.g7.large").unwrap();
        assert_eq!(g7.disk_iops, Some(Limit { base: 20_000, burst: 110_000 }));
        let f2 = instance_type("ecs.f2-c8f1.4xlarge").unwrap();
        assert_eq!(f2.accelerator.as_ref().unwrap().quarters, 8);
        let quarter = instance_types().filter_map(|one| one.accelerator.as_ref());
        assert_eq!(quarter.map(|one| one.quarters).min(), Some(1));
    }

    #[test]
    fn boards_and_arm_are_told_by_their_family() {
        let form = |name| instance_type(name).map(|one| (one.form, one.architecture));
        assert_eq!(form("ecs.g5.large"), Some((Form::VirtualMachine, Architecture::X86)));
        assert_eq!(form("ecs.ebmhf.2xlarge"), Some((Form::Board, Architecture::X86)));
        assert_eq!(form("ecs.ebma.8xlarge"), Some((Form::Board, Architecture::Arm)));
        assert_eq!(form("bixi.tiny"), Some((Form::VirtualMachine, Architecture::X86)));
        assert_eq!(form("ebm.lab"), Some((Form::Board, Architecture::X86)));
        assert_eq!(form("ebm.lab-arm"), Some((Form::Board, Architecture::Arm)));
        assert_eq!(instance_type("bixi.tiny").map(|one| one.memory_mib), Some(256));
        assert_eq!(instance_type("ebm.lab").map(|one| one.memory_mib), Some(1024));
    }
}
