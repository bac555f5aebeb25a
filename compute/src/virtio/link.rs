//! What a device and its transport share: the configuration space, interrupts that are not a queue's, resets under way.
//!
//! Invariants: bytes of the configuration space and its generation change together, so a driver that sees the same
//! generation before and after has read whole values; a failure of an earlier life of the device does not touch a later.

use crate::pci::msix::Call;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Interrupt status: the configuration has changed.
const ISR_CONFIG: u8 = 2;

/// What a device and its transport share.
#[derive(Debug, Default)]
pub struct DeviceLink {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    config: Vec<u8>,
    generation: u8,
    /// Raises a configuration change; none if the driver has chosen no vector.
    call: Option<Call>,
    /// Whether the driver is there to be told.
    live: bool,
    isr: u8,
    /// Which life of the device is on, and whether it has failed.
    life: u64,
    failed: bool,
    /// Resets ordered and resets done.
    ordered: u64,
    done: u64,
}

impl DeviceLink {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is whole before anything in it can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the configuration space that the driver reads. If that changes anything, a driver that is there is told.
    pub fn set_config(&self, config: &[u8]) {
        let mut state = self.lock();
        if state.config != config {
            state.config = config.to_vec();
            state.generation = state.generation.wrapping_add(1);
            state.tell();
        }
    }

    /// The device cannot go on until the driver resets it. Ignored if `life` is over already.
    pub fn fail(&self, life: u64) {
        let mut state = self.lock();
        if state.life == life && !state.failed {
            state.failed = true;
            state.tell();
        }
    }

    /// Reset `number`, and all before it, are done: nothing touches the rings.
    pub fn reset_done(&self, number: u64) {
        let mut state = self.lock();
        state.done = state.done.max(number).min(state.ordered);
    }

    /// The configuration space as it is now.
    #[must_use]
    pub fn config(&self) -> Vec<u8> {
        self.lock().config.clone()
    }

    pub(super) fn config_read(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        let from = usize::try_from(offset).ok().and_then(|at| state.config.get(at..));
        for (byte, value) in data.iter_mut().zip(from.unwrap_or_default()) {
            *byte = *value;
        }
    }

    pub(super) fn generation(&self) -> u8 {
        self.lock().generation
    }

    pub(super) fn set_call(&self, call: Option<Call>) {
        self.lock().call = call;
    }

    /// Reads the interrupt status, which clears it.
    pub(super) fn take_isr(&self) -> u8 {
        std::mem::take(&mut self.lock().isr)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.lock().failed
    }

    pub(super) fn life(&self) -> u64 {
        self.lock().life
    }

    pub(super) fn set_live(&self) {
        self.lock().live = true;
    }

    /// Ends this life of the device. `stopping` is whether the device is to report when it has stopped; returns the
    /// number it reports with.
    pub(super) fn end_life(&self, stopping: bool) -> u64 {
        let mut state = self.lock();
        state.life += 1;
        state.failed = false;
        state.live = false;
        state.isr = 0;
        state.call = None;
        state.ordered += u64::from(stopping);
        state.ordered
    }

    pub(super) fn is_resetting(&self) -> bool {
        let state = self.lock();
        state.done < state.ordered
    }

    /// Configuration space, generation and interrupt status, as they travel.
    pub(super) fn save(&self) -> (Vec<u8>, u8, u8) {
        let state = self.lock();
        (state.config.clone(), state.generation, state.isr)
    }

    /// Takes what [`DeviceLink::save`] gave, before a driver is there.
    pub(super) fn restore(&self, config: &[u8], generation: u8, isr: u8) {
        let mut state = self.lock();
        state.config = config.to_vec();
        state.generation = generation;
        state.isr = isr;
    }
}

impl State {
    fn tell(&mut self) {
        if self.live {
            self.isr |= ISR_CONFIG;
            if let Some(call) = &self.call {
                call.signal();
            }
        }
    }
}
