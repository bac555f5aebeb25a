//! Which server an instance is placed on: filters say who can, weighers who should, and both can be asked why.
//!
//! Pure: everything it looks at is in [`Candidate`]. Invariants: a server that is chosen passes every filter, so
//! neither memory nor disk is ever promised twice; the order of the candidates does not change the choice.

use std::cmp::Reverse;
use std::fmt;

/// What an instance needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// Virtual CPUs.
    pub vcpus: u64,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Bytes of its disks.
    pub disk: u64,
    /// `x86_64` or `arm64`.
    pub architecture: String,
}

/// A server as the scheduler sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub server: String,
    /// Whether new instances may come here.
    pub schedulable: bool,
    /// Whether its agent was heard lately.
    pub alive: bool,
    /// Whether it can run VMs.
    pub kvm: bool,
    /// `x86_64` or `arm64`.
    pub architecture: String,
    /// vCPUs that it gives out in all.
    pub vcpus: u64,
    /// Memory that it gives out in all, in MiB.
    pub memory_mib: u64,
    /// Bytes of disks that it gives out in all.
    pub disk: u64,
    /// vCPUs promised.
    pub used_vcpus: u64,
    /// Memory promised, in MiB.
    pub used_memory_mib: u64,
    /// Bytes of disks promised.
    pub used_disk: u64,
    /// Instances of the same tenant that are here.
    pub neighbours: u64,
}

/// Why a server cannot take an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The operator wants nothing new here.
    NotSchedulable,
    /// Its agent was not heard lately.
    NotAlive,
    /// It cannot run VMs.
    NoKvm,
    /// Its processor is of another kind.
    Architecture,
    /// Too few vCPUs are left.
    Vcpus {
        /// So many are left.
        free: u64,
    },
    /// Too little memory is left.
    Memory {
        /// MiB that are left.
        free_mib: u64,
    },
    /// Too little room for disks is left.
    Disk {
        /// Bytes that are left.
        free: u64,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSchedulable => write!(f, "takes nothing new"),
            Self::NotAlive => write!(f, "was not heard lately"),
            Self::NoKvm => write!(f, "cannot run VMs"),
            Self::Architecture => write!(f, "has another architecture"),
            Self::Vcpus { free } => write!(f, "has {free} vCPUs left"),
            Self::Memory { free_mib } => write!(f, "has {free_mib} MiB of memory left"),
            Self::Disk { free } => write!(f, "has {} GiB for disks left", free >> 30),
        }
    }
}

/// What was decided about one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The server.
    pub server: String,
    /// How good it is, more is better; or why it cannot be.
    pub score: Result<u64, Reason>,
}

/// The choice, and how it came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The best server, if any can.
    pub chosen: Option<String>,
    /// What was decided about each, best first, those that cannot last.
    pub verdicts: Vec<Verdict>,
}

impl Decision {
    /// One sentence about every server that cannot, for whoever was refused.
    pub fn explain(&self) -> String {
        if self.verdicts.is_empty() {
            return "no server has joined the cloud yet".to_owned();
        }
        let refused = self.verdicts.iter().filter_map(|verdict| {
            let reason = verdict.score.as_ref().err()?;
            Some(format!("{} {reason}", verdict.server))
        });
        refused.collect::<Vec<_>>().join("; ")
    }
}

/// Chooses a server.
pub fn decide(demand: &Demand, candidates: &[Candidate]) -> Decision {
    let mut verdicts: Vec<Verdict> = candidates
        .iter()
        .map(|candidate| {
            let score = filter(demand, candidate).map(|()| weigh(demand, candidate));
            Verdict { server: candidate.server.clone(), score }
        })
        .collect();
    verdicts.sort_by_key(|verdict| {
        (verdict.score.is_err(), Reverse(verdict.score.unwrap_or(0)), verdict.server.clone())
    });
    let best = verdicts.first().filter(|verdict| verdict.score.is_ok());
    Decision { chosen: best.map(|verdict| verdict.server.clone()), verdicts }
}

fn filter(demand: &Demand, candidate: &Candidate) -> Result<(), Reason> {
    if !candidate.schedulable {
        return Err(Reason::NotSchedulable);
    }
    if !candidate.alive {
        return Err(Reason::NotAlive);
    }
    if !candidate.kvm {
        return Err(Reason::NoKvm);
    }
    if candidate.architecture != demand.architecture {
        return Err(Reason::Architecture);
    }
    // A server that has promised more than it gives out takes nothing, not even what needs none of that.
    let (vcpus, memory_mib) = (candidate.used_vcpus, candidate.used_memory_mib);
    left(candidate.vcpus, vcpus, demand.vcpus).map_err(|free| Reason::Vcpus { free })?;
    left(candidate.memory_mib, memory_mib, demand.memory_mib)
        .map_err(|free_mib| Reason::Memory { free_mib })?;
    left(candidate.disk, candidate.used_disk, demand.disk).map_err(|free| Reason::Disk { free })
}

/// Whether `wanted` more fits; if not, what is left.
fn left(all: u64, used: u64, wanted: u64) -> Result<(), u64> {
    let fits = used.checked_add(wanted).is_some_and(|needed| needed <= all);
    fits.then_some(()).ok_or(all.saturating_sub(used))
}

/// What is left in the scarcer of memory and vCPUs, in thousandths, less a little for each neighbour of the same
/// tenant: load spreads, and so do one tenant's instances.
fn weigh(demand: &Demand, candidate: &Candidate) -> u64 {
    let left = |all: u64, used: u64, wanted: u64| {
        let left = all.saturating_sub(used).saturating_sub(wanted);
        u64::try_from(u128::from(left) * 1000 / u128::from(all.max(1))).unwrap_or(0)
    };
    let memory = left(candidate.memory_mib, candidate.used_memory_mib, demand.memory_mib);
    let vcpus = left(candidate.vcpus, candidate.used_vcpus, demand.vcpus);
    (1000 + memory.min(vcpus)).saturating_sub(candidate.neighbours.min(10) * 50)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate() -> impl Strategy<Value = Candidate> {
        let flags =
            (prop::bool::weighted(0.8), prop::bool::weighted(0.8), prop::bool::weighted(0.8));
        let size = (0..64u64, 0..65536u64, 0..1000u64);
        let used = (0..64u64, 0..65536u64, 0..1000u64, 0..20u64);
        (0..10_000u32, flags, size, used, any::<bool>()).prop_map(
            |(id, (schedulable, alive, kvm), size, used, arm)| Candidate {
                server: format!("s-{id}"),
                schedulable,
                alive,
                kvm,
                architecture: if arm { "arm64" } else { "x86_64" }.to_owned(),
                vcpus: size.0,
                memory_mib: size.1,
                disk: size.2,
                used_vcpus: used.0,
                used_memory_mib: used.1,
                used_disk: used.2,
                neighbours: used.3,
            },
        )
    }

    fn demand() -> impl Strategy<Value = Demand> {
        (1..16u64, 1..16384u64, 0..200u64).prop_map(|(vcpus, memory_mib, disk)| Demand {
            vcpus,
            memory_mib,
            disk,
            architecture: "x86_64".to_owned(),
        })
    }

    proptest! {
        #[test]
        fn a_chosen_server_can_and_nobody_who_can_is_passed_over(
            demand in demand(),
            mut candidates in prop::collection::vec(candidate(), 0..12),
        ) {
            candidates.sort_by(|a, b| a.server.cmp(&b.server));
            candidates.dedup_by(|a, b| a.server == b.server);
            let decision = decide(&demand, &candidates);
            prop_assert_eq!(decision.verdicts.len(), candidates.len());
            match &decision.chosen {
                Some(chosen) => {
                    let found = candidates.iter().find(|c| c.server == *chosen);
                    let Some(found) = found else { panic!("{chosen} is no candidate") };
                    prop_assert!(found.used_memory_mib + demand.memory_mib <= found.memory_mib);
                    prop_assert!(found.used_vcpus + demand.vcpus <= found.vcpus);
                    prop_assert!(found.used_disk + demand.disk <= found.disk);
                    prop_assert!(found.schedulable && found.alive && found.kvm);
                    prop_assert_eq!(&found.architecture, "x86_64");
                }
                None => {
                    prop_assert!(decision.verdicts.iter().all(|verdict| verdict.score.is_err()));
                    prop_assert!(!decision.explain().is_empty());
                }
            }
            candidates.reverse();
            prop_assert_eq!(decide(&demand, &candidates), decision);
        }
    }

    #[test]
    fn load_and_tenants_spread() {
        let empty = Candidate {
            server: "s-b".to_owned(),
            schedulable: true,
            alive: true,
            kvm: true,
            architecture: "x86_64".to_owned(),
            vcpus: 16,
            memory_mib: 16384,
            disk: 1 << 40,
            used_vcpus: 0,
            used_memory_mib: 0,
            used_disk: 0,
            neighbours: 0,
        };
        let demand =
            Demand { vcpus: 1, memory_mib: 256, disk: 0, architecture: "x86_64".to_owned() };
        let busy = Candidate { server: "s-a".to_owned(), used_memory_mib: 8192, ..empty.clone() };
        assert_eq!(decide(&demand, &[busy, empty.clone()]).chosen.as_deref(), Some("s-b"));
        let known = Candidate { server: "s-a".to_owned(), neighbours: 3, ..empty.clone() };
        assert_eq!(decide(&demand, &[known, empty.clone()]).chosen.as_deref(), Some("s-b"));
        let over =
            Candidate { server: "s-a".to_owned(), used_disk: empty.disk + 1, ..empty.clone() };
        assert_eq!(decide(&demand, &[over]).chosen, None);
        let twin = Candidate { server: "s-a".to_owned(), ..empty.clone() };
        assert_eq!(decide(&demand, &[empty, twin]).chosen.as_deref(), Some("s-a"));
    }
}
