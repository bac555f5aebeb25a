//! What the driver tells the cloud.

use super::{Driver, LONGEST_SLEEP};
use crate::instance::Event;
use crate::inventory;
use bixi_api::RELEASE;
use bixi_api::agent::{InstanceState, ObservedInstance, Report};
use std::time::Instant;

impl Driver {
    /// Puts up a new report, if anything has changed or the inventory has become old.
    pub(super) fn report(&mut self) {
        let (instances, cards) = (self.observed(), self.cards.values());
        let cards: Vec<_> = cards.map(|card| card.observed.clone()).collect();
        let (applied, refused) = (self.desired.revision, self.refused.clone());
        let same = self.reports.borrow().as_ref().is_some_and(|(_, last)| {
            last.instances == instances
                && last.cards == cards
                && last.applied == applied
                && last.refused == refused
        });
        if same && self.reported_at.elapsed() < LONGEST_SLEEP {
            return;
        }
        let inventory = inventory::look(&self.executor.places, &self.fixed);
        self.report_number += 1;
        self.reported_at = Instant::now();
        for held in self.instances.values_mut() {
            held.in_report = (self.report_number, held.machine.record.ledger_sequence);
        }
        let release = RELEASE.to_owned();
        let report = Report { release, inventory, applied, refused, instances, cards };
        self.reports.send_replace(Some((self.report_number, report)));
    }

    /// A report has arrived: what was in it of the ledger need not be told again.
    pub(super) fn reported(&mut self, number: u64) {
        let now = self.now();
        for held in self.instances.values_mut() {
            let (report, sequence) = held.in_report;
            if report == number && !held.machine.record.ledger.is_empty() {
                held.machine.apply(Event::Told(sequence), now);
            }
        }
    }

    fn observed(&self) -> Vec<ObservedInstance> {
        let known = self.instances.iter().map(|(id, held)| {
            let record = &held.machine.record;
            ObservedInstance {
                id: id.clone(),
                epoch: record.epoch,
                boot: held.machine.boot(),
                state: held.machine.phase().state(),
                error: held.machine.error(),
                ended: record.ended.clone(),
                progress: held.progress.clone(),
                phases: record.phases.clone(),
                moments: held.moments.seen().to_vec(),
                ledger: record.ledger.clone(),
            }
        });
        let damaged = self.damaged.iter().map(|(id, error)| ObservedInstance {
            id: id.clone(),
            epoch: 0,
            boot: 0,
            state: InstanceState::Stopped,
            error: Some(error.clone()),
            ended: None,
            progress: None,
            phases: Vec::new(),
            moments: Vec::new(),
            ledger: Vec::new(),
        });
        known.chain(damaged).collect()
    }
}
