//! An instance and its disks: what is desired, where, and what was seen.

use super::fields::{numbered, record};

numbered! {
    /// What ECS calls an instance's status.
    ///
    /// ```text
    ///                      reboot
    ///             start   ◄───────
    ///  pending ──► starting ──► running ──► stopping ──► stopped ──► starting (again)
    ///     │            │  │         │           ▲           ▲  │
    ///     │            │  └─────────┼── undone ─┤           │  └──► stopping (deleted)
    ///     └────────────┼────────────┼───────────┘           │
    ///                  └── failed ──┴── ended by itself ────┘
    /// ```
    pub enum Status {
        /// It was made and not started yet.
        1 Pending,
        /// It is being started.
        2 Starting,
        /// It runs.
        3 Running,
        /// It is being stopped.
        4 Stopping,
        /// It does not run.
        5 Stopped,
    }
}

impl Status {
    /// As ECS writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Starting => "Starting",
            Self::Running => "Running",
            Self::Stopping => "Stopping",
            Self::Stopped => "Stopped",
        }
    }

    /// Whether an instance may go from here to `next`.
    #[must_use]
    pub fn can_become(self, next: Self) -> bool {
        use Status::{Pending, Running, Starting, Stopped, Stopping};
        matches!(
            (self, next),
            (Pending, Starting | Stopping | Stopped)
                | (Starting, Running | Stopping | Stopped)
                | (Running, Starting | Stopping | Stopped)
                | (Stopping, Stopped)
                | (Stopped, Starting | Stopping)
        )
    }
}

numbered! {
    /// Whether an instance is to run.
    pub enum Power {
        /// It runs.
        1 Running,
        /// It does not run; its disks stay.
        2 Stopped,
        /// It is gone.
        3 Deleted,
    }
}

record! {
    /// An instance.
    pub struct Instance / InstanceRecordState {
        /// Its id: `i-…`.
        1 id: String as String [string];
        /// Whose it is.
        2 tenant: String as String [string];
        /// Its name.
        3 name: String as String [string];
        /// What it is for.
        4 description: String as String [string];
        /// What its guest is called.
        5 host_name: String as String [string];
        /// Its type, for example `ecs.g5.large`.
        6 type_id: String as String [string];
        /// What the type gave it when it was made.
        7 limits: Limits as Option<LimitsState> [message, optional];
        /// The image that it was made of.
        8 image: String as String [string];
        /// Its zone.
        9 zone: String as String [string];
        /// Its VPC.
        10 vpc: String as String [string];
        /// Its first interface's vSwitch.
        11 vswitch: String as String [string];
        /// Its security groups.
        12 groups: Vec<String> as Vec<String> [string, repeated];
        /// What the guest is told, decoded.
        13 user_data: String as String [string];
        /// Its tags.
        14 tags: Vec<Tag> as Vec<TagState> [message, repeated];
        /// When it was made, in milliseconds since 1970.
        15 created: u64 as u64 [uint64];
        /// When it was last seen to start, in milliseconds since 1970; 0 for never.
        16 started: u64 as u64 [uint64];
        /// Whether deletion is refused.
        17 deletion_protection: bool as bool [bool];
        /// What ECS calls its status.
        18 status: Status as u32 [uint32];
        /// What it is to be.
        19 desired: Desired as Option<DesiredState> [message, optional];
        /// Where it is.
        20 placement: Placement as Option<PlacementState> [message, optional];
        /// What its server last told, once it has.
        21 observed: Option<Observed> as Option<ObservedState> [message, optional];
        /// The task that works on it, if any.
        22 task: Option<String> as Option<String> [string, optional];
        /// SSH keys that its first user may log in with.
        23 ssh_keys: Vec<String> as Vec<String> [string, repeated];
        /// Its key pair's name, if it was given one.
        24 key_pair: Option<String> as Option<String> [string, optional];
    }
}

record! {
    /// A tag.
    pub struct Tag / TagState {
        /// Its key.
        1 key: String as String [string];
        /// Its value.
        2 value: String as String [string];
    }
}

record! {
    /// What a type gives an instance.
    pub struct Limits / LimitsState {
        /// Virtual CPUs.
        1 vcpus: u32 as u32 [uint32];
        /// Memory in MiB.
        2 memory_mib: u64 as u64 [uint64];
        /// Packets a second of all interfaces, each direction.
        3 nic_packets: Option<u64> as Option<u64> [uint64, optional];
        /// Bits a second of all interfaces, each direction.
        4 nic_bits: Option<u64> as Option<u64> [uint64, optional];
        /// Requests a second of each disk.
        5 disk_iops: Option<u64> as Option<u64> [uint64, optional];
    }
}

record! {
    /// What an instance is to be.
    pub struct Desired / DesiredState {
        /// Whether it is to run.
        1 power: Power as u32 [uint32];
        /// Which start is wanted: grows with every one.
        2 boot: u64 as u64 [uint64];
        /// Whether it loses its power at once when it is to end.
        3 forced: bool as bool [bool];
    }
}

record! {
    /// Where an instance is.
    pub struct Placement / PlacementState {
        /// The server.
        1 server: String as String [string];
        /// Grows with every placement; servers, disks and ports refuse a lower one.
        2 epoch: u64 as u64 [uint64];
    }
}

record! {
    /// What a server last told of an instance.
    pub struct Observed / ObservedState {
        /// The epoch that the agent had accepted.
        1 epoch: u64 as u64 [uint64];
        /// The start that was made last; 0 for none.
        2 boot: u64 as u64 [uint64];
        /// Where it was in its life, as `bixi_api::agent::InstanceState` writes it.
        3 state: String as String [string];
        /// What went wrong.
        4 error: Option<super::Failure> as Option<super::work::FailureState> [message, optional];
        /// How it ended last, for people.
        5 ended: Option<String> as Option<String> [string, optional];
    }
}

record! {
    /// A cloud disk. The 20 characters of its id are the serial that its guest sees.
    pub struct Disk / DiskState {
        /// Its id: `d-…`.
        1 id: String as String [string];
        /// Whose it is.
        2 tenant: String as String [string];
        /// Its name.
        3 name: String as String [string];
        /// What it is for.
        4 description: String as String [string];
        /// Its category, for example `cloud_essd`.
        5 category: String as String [string];
        /// Its size in bytes.
        6 size: u64 as u64 [uint64];
        /// Whether the system is on it.
        7 system: bool as bool [bool];
        /// The image that it begins with, if any.
        8 image: Option<String> as Option<String> [string, optional];
        /// The instance that it is in, if any.
        9 instance: Option<String> as Option<String> [string, optional];
        /// Its place among the instance's disks, from 0.
        10 index: u32 as u32 [uint32];
        /// Whether it goes when the instance is deleted.
        11 delete_with_instance: bool as bool [bool];
        /// The server whose file system it is on.
        12 server: String as String [string];
        /// When it was made, in milliseconds since 1970.
        13 created: u64 as u64 [uint64];
        /// Grows with every change.
        14 generation: u64 as u64 [uint64];
    }
}

impl Disk {
    /// Its size in GiB, rounded up, as ECS shows it.
    #[must_use]
    pub fn gib(&self) -> u64 {
        self.size.div_ceil(1 << 30)
    }
}
