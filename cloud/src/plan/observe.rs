//! What a server's report changes: hardware, what was seen of its instances, its part of the disturbance ledger.
//!
//! Invariants: a report is believed about instances that are placed on its sender, up to the placement's epoch, and
//! about nothing else. A report that comes twice changes nothing the second time. Signs of life, free memory and progress
//! are not stored.

use super::Context;
use crate::model::{
    Disturbance, Draft, Failure, Hardware, Instance, Observed, Server, Severity, View,
};
use bixi_api::agent::{Ending, InstanceState, KvmKind, ObservedInstance, Report};

/// The most entries of an instance's ledger that one report adds; the agent tells the others again.
const LEDGER: usize = 60;

/// What is to be changed; each draft is a transaction of its own.
pub fn observe(
    view: &View,
    server: &str,
    report: &Report,
    context: &mut Context<'_>,
) -> Vec<Draft> {
    let Some(record) = view.servers.get(server) else { return Vec::new() };
    let mut drafts = Vec::new();
    drafts.extend(hardware(view, record, report, context));
    for seen in &report.instances {
        let instance = view.instances.get(&seen.id);
        let placed = instance.filter(|instance| {
            instance.placement.server == server && seen.epoch <= instance.placement.epoch
        });
        if let Some(instance) = placed {
            drafts.extend(observed(view, instance, server, seen));
        }
    }
    drafts
}

fn hardware(
    view: &View,
    server: &Server,
    report: &Report,
    context: &mut Context<'_>,
) -> Option<Draft> {
    let inventory = &report.inventory;
    let hardware = Hardware {
        cores: inventory.cores,
        memory: inventory.memory,
        disk: inventory.disk,
        kvm: inventory.kvm != KvmKind::None,
        cpu: inventory.cpu.clone(),
        kernel: inventory.kernel.clone(),
        boot_id: inventory.boot_id.clone(),
        underlay: inventory.underlay,
        lacks: inventory.lacks.clone(),
        architecture: inventory.architecture.clone(),
    };
    if server.hardware.as_ref() == Some(&hardware) && server.release == report.release {
        return None;
    }
    let mut draft = Draft::default();
    let before = server.hardware.as_ref().map(|hardware| &hardware.boot_id);
    if before.is_some_and(|before| *before != hardware.boot_id) {
        let message = format!("Server {} was started anew.", server.name);
        let event = context.event(None, &server.id, "ServerRestarted", Severity::Warning, message);
        draft.create(&event);
    }
    let release = report.release.clone();
    draft.put(view, &Server { hardware: Some(hardware), release, ..server.clone() });
    Some(draft)
}

fn observed(
    view: &View,
    instance: &Instance,
    server: &str,
    seen: &ObservedInstance,
) -> Option<Draft> {
    let mut draft = Draft::default();
    let now = Observed {
        epoch: seen.epoch,
        boot: seen.boot,
        state: state_name(seen.state).to_owned(),
        error: seen
            .error
            .as_ref()
            .map(|error| Failure { code: error.code.clone(), message: error.to_string() }),
        ended: seen.ended.as_ref().map(ending),
    };
    if instance.observed.as_ref() != Some(&now) {
        draft.put(view, &Instance { observed: Some(now), ..instance.clone() });
    }
    for entry in seen.ledger.iter().take(LEDGER) {
        let entry = Disturbance {
            instance: seen.id.clone(),
            server: server.to_owned(),
            sequence: entry.sequence,
            at: entry.at,
            cause: entry.cause.clone(),
            milliseconds: entry.milliseconds,
        };
        let id = crate::model::Record::id(&entry);
        if view.disturbances.get(&id).is_none() {
            draft.put(view, &entry);
        }
    }
    (!draft.is_empty()).then_some(draft)
}

/// A state as reports write it.
pub fn state_name(state: InstanceState) -> &'static str {
    match state {
        InstanceState::Preparing => "preparing",
        InstanceState::Starting => "starting",
        InstanceState::Running => "running",
        InstanceState::Stopping => "stopping",
        InstanceState::Stopped => "stopped",
        InstanceState::Deleting => "deleting",
        InstanceState::Deleted => "deleted",
    }
}

fn ending(ending: &Ending) -> String {
    match ending {
        Ending::PoweredOff => "its guest powered off".to_owned(),
        Ending::Stopped { forced: false } => "it was stopped and its guest powered off".to_owned(),
        Ending::Stopped { forced: true } => "it was stopped and lost its power".to_owned(),
        Ending::Failed { reason } => format!("its VMM failed: {reason}"),
        Ending::Unseen => "it was gone when the agent came back".to_owned(),
        Ending::ServerRestarted => "its server was started anew".to_owned(),
    }
}
