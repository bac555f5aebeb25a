//! A server's agent in the simulation: it speaks the real contract's types and keeps its rules. A start is named by epoch and
//! boot generation and is done once; what is left out is left alone.

use super::Seeded;
use bixi_api::agent::{
    self, DesiredInstance, DesiredState, Ending, InstanceState, Inventory, KvmKind, LedgerEntry,
    ObservedInstance, Report,
};
use std::collections::{BTreeMap, BTreeSet};

/// An agent with no server under it.
#[derive(Debug, Clone, Default)]
pub(crate) struct SimulatedAgent {
    pub(super) server: String,
    desired: Option<DesiredState>,
    /// On its disk: survives a restart.
    pub(super) instances: BTreeMap<String, ObservedInstance>,
    /// How often each start was made.
    pub(crate) starts: BTreeMap<(String, u64, u64), u32>,
    boot_id: u32,
}

impl SimulatedAgent {
    pub(crate) fn new(server: &str) -> Self {
        Self { server: server.to_owned(), ..Self::default() }
    }

    pub(crate) fn take(&mut self, desired: DesiredState) {
        assert_eq!(desired.server, self.server);
        assert_ne!(desired.revision, 0);
        let known: BTreeSet<&String> =
            desired.instances.iter().map(|instance| &instance.id).collect();
        let stays = |id: &String, i: &ObservedInstance| {
            known.contains(id) || i.state != InstanceState::Deleted
        };
        self.instances.retain(|id, instance| stays(id, instance));
        self.desired = Some(desired);
    }

    /// Every instance goes on by one state.
    pub(crate) fn turn(&mut self) {
        let Some(desired) = self.desired.clone() else { return };
        for wanted in &desired.instances {
            let fresh = || ObservedInstance {
                epoch: wanted.epoch,
                boot: 0,
                ..observed(&wanted.id, InstanceState::Stopped)
            };
            let instance = self.instances.entry(wanted.id.clone()).or_insert_with(fresh);
            if wanted.epoch < instance.epoch {
                continue;
            }
            let next = next_state(instance, wanted);
            assert!(next == instance.state || instance.state.can_become(next));
            if next == InstanceState::Starting && instance.state == InstanceState::Preparing {
                instance.epoch = wanted.epoch;
                instance.boot = wanted.boot;
                let start = (wanted.id.clone(), wanted.epoch, wanted.boot);
                *self.starts.entry(start).or_default() += 1;
            }
            if next == InstanceState::Stopped && instance.state == InstanceState::Stopping {
                instance.ended = Some(Ending::Stopped { forced: false });
            }
            instance.epoch = instance.epoch.max(wanted.epoch);
            instance.state = next;
        }
    }

    /// A guest ends by itself, if one runs.
    pub(super) fn guest_ends(&mut self, random: &mut Seeded) {
        let running = self.instances.values_mut().filter(|i| i.state == InstanceState::Running);
        let mut running: Vec<_> = running.collect();
        if !running.is_empty() {
            let index = random.below(running.len());
            running[index].state = InstanceState::Stopped;
            running[index].ended = Some(Ending::Failed { reason: "killed".to_owned() });
        }
    }

    /// The agent's process dies and comes back: what it was told is gone, what is on its disk is not.
    pub(super) fn restart(&mut self) {
        self.desired = None;
    }

    pub(crate) fn report(&self) -> Report {
        let ledger = vec![LedgerEntry {
            sequence: 1,
            at: 1,
            cause: "storage-restart".into(),
            milliseconds: 2,
        }];
        let with = |instance: &ObservedInstance| ObservedInstance {
            ledger: ledger.clone(),
            ..instance.clone()
        };
        Report {
            release: "1".to_owned(),
            inventory: Inventory {
                cores: 8,
                memory: 16 << 30,
                memory_free: 8 << 30,
                kvm: KvmKind::Svm,
                cpu: "simulated".to_owned(),
                kernel: "6.1".to_owned(),
                boot_id: self.boot_id.to_string(),
                disk: 1 << 40,
                disk_free: 1 << 40,
                underlay: Some(([10, 0, 0, 1], 4789).into()),
                architecture: "x86_64".to_owned(),
                lacks: Vec::new(),
            },
            applied: self.desired.as_ref().map_or(0, |desired| desired.revision),
            refused: None,
            instances: self.instances.values().map(with).collect(),
            cards: Vec::new(),
        }
    }
}

/// An instance as such an agent sees it in its first start.
pub(crate) fn observed(id: &str, state: InstanceState) -> ObservedInstance {
    ObservedInstance {
        id: id.to_owned(),
        epoch: 1,
        boot: 1,
        state,
        error: None,
        ended: None,
        progress: None,
        phases: Vec::new(),
        moments: Vec::new(),
        ledger: Vec::new(),
    }
}

/// A report as such an agent sends it.
pub(crate) fn report() -> Report {
    SimulatedAgent::new("s-1").report()
}

fn next_state(instance: &ObservedInstance, wanted: &DesiredInstance) -> InstanceState {
    use InstanceState::{Deleted, Deleting, Preparing, Running, Starting, Stopped, Stopping};
    let started = (instance.epoch, instance.boot) >= (wanted.epoch, wanted.boot);
    match (instance.state, wanted.power) {
        (Deleted, _) => Deleted,
        (Deleting, _) => Deleted,
        (Stopping, _) => Stopped,
        (Starting, agent::Power::Running) if started => Running,
        (Running, agent::Power::Running) if started => Running,
        (Starting | Running, _) => Stopping,
        (Preparing, agent::Power::Running) => Starting,
        (Preparing, agent::Power::Stopped) => Stopped,
        (Preparing | Stopped, agent::Power::Deleted) => Deleting,
        (Stopped, agent::Power::Running) if !started => Preparing,
        (Stopped, _) => Stopped,
    }
}
