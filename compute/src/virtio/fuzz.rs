//! Fuzz functions of this module: any bytes, any order, no panic, and no device that is told what cannot be.

use super::device::{Activation, Kind, VirtioDevice};
use super::features::{RING_EVENT_IDX, VERSION_1};
use super::link::DeviceLink;
use super::state::TRANSPORT;
use super::transport::{Host, VirtioPci};
use crate::device::{Device, Quiesce, RestoreError};
use crate::interrupts::InterruptError;
use crate::kvm::KvmError;
use crate::pci::fuzz::Recorded;
use crate::pci::msix::{Call, Vector};
use crate::pci::{PciFunction, PciPath};
use bixi_api::state::{Declared, Movable, Payload};
use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// Guest memory of [`Around`], from 0 on, in bytes.
pub(super) const MEMORY: u64 = 16 << 20;
/// Features of [`Recorder`].
pub(super) const FEATURES: u64 = VERSION_1 | RING_EVENT_IDX | 0x15;
/// A bit of [`FEATURES`] that [`Recorder`] does not accept alone.
pub(super) const LONELY: u64 = 0x10;

/// A machine that keeps a record.
#[derive(Debug, Default)]
pub(super) struct Around {
    pub(super) vectors: Mutex<Vec<Arc<Recorded>>>,
    pub(super) bound: Mutex<Vec<u64>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host for Around {
    fn vector(&self) -> Result<Arc<dyn Vector>, InterruptError> {
        let vector = Recorded::new().map_err(InterruptError::EventFd)?;
        lock(&self.vectors).push(Arc::clone(&vector));
        Ok(vector)
    }

    fn bind(&self, _: &EventFd, address: u64) -> Result<(), KvmError> {
        assert!(!lock(&self.bound).contains(&address), "{address:#x} twice");
        lock(&self.bound).push(address);
        Ok(())
    }

    fn unbind(&self, _: &EventFd, address: u64) -> Result<(), KvmError> {
        let mut bound = lock(&self.bound);
        let at = bound.iter().position(|other| *other == address);
        bound.remove(at.expect("only what was bound is unbound"));
        Ok(())
    }

    fn holds(&self, address: u64, len: u64) -> bool {
        address.checked_add(len).is_some_and(|end| end <= MEMORY)
    }
}

/// A device that writes down its orders and checks them.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    link: Arc<DeviceLink>,
    pub(super) orders: Mutex<Vec<Order>>,
    /// Whether resets are done at once.
    pub(super) prompt: bool,
}

#[derive(Debug, Clone)]
#[allow(dead_code, reason = "fuzzing only cares that the order was possible")]
pub(super) enum Order {
    Activate(Activation),
    Reset(u64),
    SetCall(u16, bool),
    Resume,
    Restore(Option<Activation>),
}

impl Recorder {
    pub(super) fn new(prompt: bool) -> Arc<Self> {
        let recorder = Self { prompt, ..Self::default() };
        recorder.link.set_config(&[1, 2, 3, 4, 5, 6, 7, 8]);
        Arc::new(recorder)
    }

    #[cfg(test)]
    pub(super) fn orders(&self) -> Vec<Order> {
        std::mem::take(&mut lock(&self.orders))
    }

    fn check(&self, activation: &Activation) {
        assert_eq!(activation.features & !FEATURES, 0);
        assert!(activation.features & VERSION_1 != 0 && self.accepts(activation.features));
        for queue in &activation.queues {
            assert!(queue.size.is_power_of_two());
            assert!(queue.size <= self.queue_sizes()[usize::from(queue.index)]);
            let ends = [
                queue.desc + 16 * u64::from(queue.size),
                queue.avail + 2 * u64::from(queue.size) + 6,
                queue.used + 8 * u64::from(queue.size) + 6,
            ];
            assert!(ends.iter().all(|end| *end <= MEMORY));
            assert_eq!((queue.desc % 16, queue.avail % 2, queue.used % 4), (0, 0, 0));
        }
    }
}

impl Movable for Recorder {
    fn declare(&self) -> Declared {
        Declared::State(Payload { kind: "recorder".into(), version: 1, bytes: Vec::new() })
    }
}

impl VirtioDevice for Recorder {
    fn kind(&self) -> &'static Kind {
        &Kind { id: 2, name: "recorder", class: 0x01_80_00 }
    }
    fn features(&self) -> u64 {
        FEATURES
    }
    fn accepts(&self, features: u64) -> bool {
        features & LONELY == 0 || features & 1 != 0
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![256, 64, 1024]
    }
    fn link(&self) -> &Arc<DeviceLink> {
        &self.link
    }
    fn activate(&self, activation: Activation) {
        self.check(&activation);
        lock(&self.orders).push(Order::Activate(activation));
    }
    fn reset(&self, number: u64) {
        lock(&self.orders).push(Order::Reset(number));
        if self.prompt {
            self.link.reset_done(number);
        }
    }
    fn set_call(&self, queue: u16, call: Option<Call>) {
        lock(&self.orders).push(Order::SetCall(queue, call.is_some()));
    }
    fn quiesce(&self) -> Quiesce<'_> {
        Box::pin(ready(Ok(())))
    }
    fn resume(&self) {
        lock(&self.orders).push(Order::Resume);
    }
    fn restore(&self, _: &Payload, active: Option<Activation>) -> Result<(), RestoreError> {
        active.iter().for_each(|activation| self.check(activation));
        lock(&self.orders).push(Order::Restore(active));
        Ok(())
    }
}

fn function(prompt: bool) -> Option<(Arc<Recorder>, Arc<VirtioPci>)> {
    let device = Recorder::new(prompt);
    let path = PciPath::root(5)?;
    let host = Arc::new(Around::default());
    let function = VirtioPci::new("fuzz", path, Arc::clone(&device) as _, host).ok()?;
    Some((device, function))
}

/// Accesses of a guest to a virtio function's registers: seven bytes an access.
pub fn virtio_accesses(data: &[u8]) {
    let Some((device, function)) = function(data.len().is_multiple_of(2)) else { return };
    for access in data.chunks_exact(7) {
        let [what, low, high, value @ ..] = access else { return };
        let width = [1, 2, 4, 8][usize::from(what >> 3 & 3)];
        let wide = [value[0], value[1], value[2], value[3], 0, 0, 0, 0];
        let value = &wide[..width];
        let offset = u64::from(u16::from_le_bytes([*low, *high]) & 0x3fff);
        let mut read = wide;
        match what & 7 {
            0 => function.config_read(offset as u16, &mut read[..width]),
            1 => function.config_write(offset as u16 & 0xff, value),
            2 => function.region_read(0, offset, &mut read[..width]),
            // Most writes go where registers are.
            3 | 4 => function.region_write(0, offset & 0x3f, value),
            5 => function.region_write(0, offset, value),
            6 => function.mapped(0, (value[0] > 9).then_some(offset << 16)),
            _ => device.link().set_config(value),
        }
    }
    if let Declared::State(payload) = function.declare() {
        let _ = function.restore(&payload);
    }
    Device::reset(&*function);
}

/// Saved state of a virtio function from an untrusted place.
pub fn virtio_state(data: &[u8]) {
    let Some((_, function)) = function(true) else { return };
    let payload = Payload { kind: TRANSPORT.into(), version: 1, bytes: data.to_vec() };
    if function.restore(&payload).is_ok() {
        function.resume();
        function.mapped(0, Some(0xc000_0000));
    }
}
