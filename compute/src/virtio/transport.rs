//! A virtio device as a PCI function: the modern transport (virtio 1.2, section 4.1).
//!
//! vCPU threads come in through the function's configuration space and BAR; one lock guards all registers. Orders to the
//! device are posted under that lock, so they are posted in the order in which the guest gave them.
//!
//! A queue's notify address is an ioeventfd while the device is at work and the BAR is mapped; before KVM knows about
//! it, or if KVM has no room for one more, the write comes here and signals the same eventfd.
//!
//! Invariant: the root's lock comes before this one; nothing here calls the root.

use super::device::{Activation, ActiveQueue, VirtioDevice};
use super::layout::{self, BAR, Capabilities, Window};
use super::registers::{Effect, Facts, NEEDS_RESET, NO_VECTOR, Registers};
use super::state::{TRANSPORT, TransportState};
use crate::device::{Device, Quiesce, RestoreError};
use crate::interrupts::{InterruptError, Interrupts};
use crate::kvm::{IoAddress, KvmError, Vm};
use crate::log_limit::LogLimit;
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::msix::{Call, Msix, Vector};
use crate::pci::{Bar, PciFunction, PciPath, Region};
use bixi_api::compute::DeviceDescription;
use bixi_api::state::{Declared, Movable, Payload};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// PCI vendor of virtio devices.
const VENDOR: u16 = 0x1af4;
/// What is added to a virtio device id for its PCI device id.
const DEVICE_BASE: u16 = 0x1040;
/// Subsystem id of the board's devices.
const SUBSYSTEM: u16 = 0x1100;

/// What the function needs of the machine around it.
pub trait Host: Send + Sync {
    /// A new interrupt vector, masked.
    ///
    /// # Errors
    /// None is left.
    fn vector(&self) -> Result<Arc<dyn Vector>, InterruptError>;
    /// From now on a guest's write of any length to `address` signals `event`.
    ///
    /// # Errors
    /// KVM has no room.
    fn bind(&self, event: &EventFd, address: u64) -> Result<(), KvmError>;
    /// Undoes [`Host::bind`].
    ///
    /// # Errors
    /// KVM knows no such binding.
    fn unbind(&self, event: &EventFd, address: u64) -> Result<(), KvmError>;
    /// Whether guest memory has the `len` bytes at `address` in one piece.
    fn holds(&self, address: u64, len: u64) -> bool;
}

/// The machine of a VM.
#[derive(Debug)]
pub struct KvmHost {
    /// The VM.
    pub vm: Arc<Vm>,
    /// Its interrupts.
    pub interrupts: Arc<Interrupts>,
}

impl Host for KvmHost {
    fn vector(&self) -> Result<Arc<dyn Vector>, InterruptError> {
        Ok(Arc::new(self.interrupts.msi()?))
    }

    fn bind(&self, event: &EventFd, address: u64) -> Result<(), KvmError> {
        self.vm.register_ioevent(event, &IoAddress::Mmio(address), 0, None)
    }

    fn unbind(&self, event: &EventFd, address: u64) -> Result<(), KvmError> {
        self.vm.unregister_ioevent(event, &IoAddress::Mmio(address), 0, None)
    }

    fn holds(&self, address: u64, len: u64) -> bool {
        self.vm.ram().regions().iter().any(|region| {
            let offset = address.checked_sub(region.guest_address);
            let end = offset.and_then(|offset| offset.checked_add(len));
            end.is_some_and(|end| end <= region.size)
        })
    }
}

/// Why a device cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No interrupt vector.
    #[error("cannot give {device} its interrupts")]
    Interrupt {
        /// The device.
        device: String,
        /// Why.
        source: InterruptError,
    },
    /// No eventfd for a queue.
    #[error("cannot make the eventfds of {device}: raise the limit of open files")]
    EventFd {
        /// The device.
        device: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// One virtio device on the PCI bus.
pub struct VirtioPci {
    id: String,
    path: PciPath,
    device: Arc<dyn VirtioDevice>,
    host: Arc<dyn Host>,
    kicks: Vec<Arc<EventFd>>,
    capabilities: Capabilities,
    inner: Mutex<Inner>,
    log: LogLimit,
}

struct Inner {
    config: ConfigSpace,
    msix: Msix,
    registers: Registers,
    /// Where the BAR is, if it is anywhere.
    base: Option<u64>,
    /// Queues with an ioeventfd, and at which address.
    bound: Vec<(u16, u64)>,
    /// What the status shows until a reset is done.
    status_before_reset: u8,
}

impl std::fmt::Debug for VirtioPci {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inner = self.lock();
        f.debug_struct("VirtioPci")
            .field("id", &self.id)
            .field("path", &self.path)
            .field("registers", &inner.registers)
            .field("base", &inner.base)
            .finish_non_exhaustive()
    }
}

impl VirtioPci {
    /// The function of `device`, called `id` by the operator, for address `path`.
    ///
    /// # Errors
    /// The process is out of descriptors, or the VM out of interrupt vectors.
    pub fn new(
        id: &str,
        path: PciPath,
        device: Arc<dyn VirtioDevice>,
        host: Arc<dyn Host>,
    ) -> Result<Arc<Self>, BuildError> {
        let sizes = device.queue_sizes();
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map(Arc::new);
        let kicks: Result<Vec<_>, _> = sizes.iter().map(|_| event()).collect();
        let kicks =
            kicks.map_err(|source| BuildError::EventFd { device: id.to_owned(), source })?;
        // One vector for each queue, and one for changes of the configuration.
        let vectors: Result<Vec<_>, _> = (0..=sizes.len()).map(|_| host.vector()).collect();
        let vectors =
            vectors.map_err(|source| BuildError::Interrupt { device: id.to_owned(), source })?;
        let msix = Msix::new(vectors);
        let kind = device.kind();
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: DEVICE_BASE + kind.id,
            revision: 1,
            class: kind.class,
            subsystem: Some((VENDOR, SUBSYSTEM)),
        });
        let config_len = device.link().config().len();
        let capabilities = layout::describe(&mut config, &msix, sizes.len() as u16, config_len);
        let inner = Inner {
            config,
            msix,
            registers: Registers::new(&sizes),
            base: None,
            bound: Vec::new(),
            status_before_reset: 0,
        };
        let (inner, log) = (Mutex::new(inner), LogLimit::default());
        let id = id.to_owned();
        Ok(Arc::new(Self { id, path, device, host, kicks, capabilities, inner, log }))
    }

    /// Where the function sits.
    #[must_use]
    pub fn path(&self) -> PciPath {
        self.path
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Registers are plain values: after a panic of another thread they are still registers.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_facts<T>(&self, vectors: u16, use_them: impl FnOnce(&Facts<'_>) -> T) -> T {
        use_them(&Facts {
            features: self.device.features(),
            vectors,
            accepts: &|features| self.device.accepts(features),
            holds: &|address, len| self.host.holds(address, len),
        })
    }

    /// The status as the driver reads it.
    fn status(&self, inner: &Inner) -> u8 {
        let link = self.device.link();
        let status = inner.registers.status;
        // A driver that waits for its reset sees 0 only when nothing touches its rings any more. One that does not
        // wait writes the next status and sees that.
        if status == 0 && link.is_resetting() {
            return inner.status_before_reset;
        }
        status | if link.has_failed() { NEEDS_RESET } else { 0 }
    }

    fn bar_read(&self, inner: &mut Inner, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset {
            layout::COMMON..layout::ISR => {
                let (status, generation) = (self.status(inner), self.device.link().generation());
                let vectors = inner.msix.len();
                let image = self
                    .with_facts(vectors, |facts| inner.registers.image(facts, status, generation));
                let from = image.get(offset as usize..).unwrap_or_default();
                data.iter_mut().zip(from).for_each(|(byte, value)| *byte = *value);
            }
            layout::ISR..layout::DEVICE => {
                if let (layout::ISR, Some(byte)) = (offset, data.first_mut()) {
                    *byte = self.device.link().take_isr();
                }
            }
            layout::DEVICE..layout::NOTIFY => {
                self.device.link().config_read(offset - layout::DEVICE, data);
            }
            layout::TABLE..layout::PENDING => {
                inner.msix.table_read(offset - layout::TABLE, data);
            }
            layout::PENDING.. => inner.msix.pending_read(offset - layout::PENDING, data),
            layout::NOTIFY.. => {}
        }
    }

    fn bar_write(&self, inner: &mut Inner, offset: u64, data: &[u8]) {
        match offset {
            layout::COMMON..layout::ISR => self.common_write(inner, offset, data),
            layout::NOTIFY..layout::TABLE => self.notify(inner, offset - layout::NOTIFY),
            layout::TABLE..layout::PENDING => {
                inner.msix.table_write(offset - layout::TABLE, data);
            }
            // No device of this release has a configuration space that a driver may write.
            _ => {}
        }
    }

    fn common_write(&self, inner: &mut Inner, offset: u64, data: &[u8]) {
        let before = (inner.registers.status, inner.registers.is_driver_ok());
        let vectors = inner.msix.len();
        let effect = self.with_facts(vectors, |facts| inner.registers.write(offset, data, facts));
        let link = self.device.link();
        match effect {
            Effect::None => {}
            Effect::Reset => self.end_life(inner, before),
            Effect::Activate => {
                link.set_live();
                self.device.activate(self.activation(inner));
                self.bind_queues(inner);
            }
            Effect::ConfigVector => {
                link.set_call(inner.call(inner.registers.config_vector));
            }
            Effect::QueueVector(index) => {
                let queue = inner.registers.queues.get(usize::from(index)).copied();
                if let Some(queue) = queue.filter(|q| q.enabled && inner.registers.is_driver_ok()) {
                    self.device.set_call(index, inner.call(queue.vector));
                }
            }
            Effect::BadRing => {
                if let Some(suppressed) = self.log.pass() {
                    tracing::warn!(device = %self.id, suppressed, "the guest's driver put a ring outside of memory");
                }
                link.fail(link.life());
            }
        }
    }

    /// The registers have been reset; so is the rest.
    fn end_life(&self, inner: &mut Inner, (status, was_active): (u8, bool)) {
        if status != 0 {
            inner.status_before_reset = status;
        }
        self.bind_queues(inner);
        let number = self.device.link().end_life(was_active);
        if was_active {
            self.device.reset(number);
        }
        inner.msix.forget_pending();
    }

    fn activation(&self, inner: &Inner) -> Activation {
        let queues = inner.registers.queues.iter().zip(&self.kicks).enumerate();
        let active =
            queues.filter(|(_, (queue, _))| queue.enabled).map(|(index, (queue, kick))| {
                ActiveQueue {
                    index: index as u16,
                    size: queue.size,
                    desc: queue.desc,
                    avail: queue.avail,
                    used: queue.used,
                    kick: Arc::clone(kick),
                    call: inner.call(queue.vector),
                }
            });
        Activation {
            features: inner.registers.features,
            queues: active.collect(),
            life: self.device.link().life(),
        }
    }

    /// A notification that KVM did not take.
    fn notify(&self, inner: &Inner, offset: u64) {
        let index = (offset / layout::NOTIFY_STRIDE) as usize;
        let ready = inner.registers.is_driver_ok()
            && inner.registers.queues.get(index).is_some_and(|queue| queue.enabled);
        if let Some(kick) = self.kicks.get(index).filter(|_| ready) {
            // Full only after 2^64 - 2 kicks nobody took, and readable then all the same.
            let _ = kick.write(1);
        }
    }

    /// Gives every queue at work its ioeventfd where the BAR is now, and takes all others away.
    fn bind_queues(&self, inner: &mut Inner) {
        let base = inner.base.filter(|_| inner.registers.is_driver_ok());
        let wanted: Vec<(u16, u64)> = base.map_or_else(Vec::new, |base| {
            let queues = inner.registers.queues.iter().enumerate();
            let enabled = queues.filter(|(_, queue)| queue.enabled).map(|(index, _)| index as u64);
            let address = |index| base + layout::NOTIFY + index * layout::NOTIFY_STRIDE;
            enabled.map(|index| (index as u16, address(index))).collect()
        });
        let gone = inner.bound.iter().filter(|bound| !wanted.contains(bound));
        for (index, address) in gone {
            let done = self.host.unbind(&self.kicks[usize::from(*index)], *address);
            self.complain(done, "a notify address stays bound");
        }
        inner.bound.retain(|bound| wanted.contains(bound));
        for (index, address) in wanted {
            if inner.bound.contains(&(index, address)) {
                continue;
            }
            let done = self.host.bind(&self.kicks[usize::from(index)], address);
            if done.is_ok() {
                inner.bound.push((index, address));
            }
            self.complain(done, "a notify address takes exits");
        }
    }

    fn complain(&self, done: Result<(), KvmError>, what: &str) {
        if let Err(error) = done
            && let Some(suppressed) = self.log.pass()
        {
            tracing::warn!(device = %self.id, %error, suppressed, "{what}");
        }
    }

    /// The window through configuration space, if the access touches its data and the guest has aimed it well.
    fn window(&self, inner: &Inner, offset: u16, len: usize) -> Option<Window> {
        let at = self.capabilities.window;
        let touched = Window::touched(at, offset, len);
        touched.then(|| Window::read(&inner.config, at)).flatten()
    }

    fn power_on(&self, inner: &mut Inner) {
        let before = (self.status(inner), inner.registers.is_driver_ok());
        inner.config.reset();
        inner.registers.reset();
        self.end_life(inner, before);
        inner.msix.reset();
    }

    fn wrong(&self, what: impl std::fmt::Display) -> RestoreError {
        RestoreError::Value { device: self.id.clone(), what: what.to_string() }
    }

    fn take(&self, state: &TransportState) -> Result<(), RestoreError> {
        let empty = || self.wrong("no registers");
        let mut inner = self.lock();
        let inner = &mut *inner;
        inner.config.restore(&state.config).map_err(|e| self.wrong(e))?;
        let control = inner.config.u16(self.capabilities.msix + 2);
        let msix = state.msix.as_ref().ok_or_else(empty)?;
        inner.msix.restore(msix, control).map_err(|e| self.wrong(e))?;
        let saved = state.registers.as_ref().ok_or_else(empty)?;
        let vectors = inner.msix.len();
        let registers = self.with_facts(vectors, |facts| inner.registers.restored(saved, facts));
        inner.registers = registers.map_err(|what| self.wrong(what))?;
        let link = self.device.link();
        if state.device_config.len() != link.config().len() {
            let bytes = state.device_config.len();
            return Err(self.wrong(format_args!("a configuration space of {bytes} bytes")));
        }
        let config = link.config();
        link.restore(&state.device_config, state.generation as u8, state.isr as u8);
        link.set_call(inner.call(inner.registers.config_vector));
        let ready = inner.registers.is_driver_ok();
        if ready {
            link.set_live();
        }
        if state.failed {
            link.fail(link.life());
        }
        // What the back end says now may be newer than what the driver knows; it is told then.
        link.set_config(&config);
        let active = ready.then(|| self.activation(inner));
        match &state.device {
            Some(payload) => self.device.restore(payload, active),
            None => Err(self.wrong("no device in it")),
        }
    }
}

impl Inner {
    fn call(&self, vector: u16) -> Option<Call> {
        if vector == NO_VECTOR { None } else { self.msix.call(vector) }
    }
}

impl PciFunction for VirtioPci {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        let mut inner = self.lock();
        inner.config.read(offset, data);
        let Some(window) = self.window(&inner, offset, data.len()) else { return };
        let mut through = [0; 4];
        self.bar_read(&mut inner, window.offset(), &mut through[..window.len()]);
        let first = u16::from(self.capabilities.window + Window::DATA);
        for (at, byte) in (offset..).zip(data) {
            let inside = at.checked_sub(first).map(usize::from).filter(|at| *at < window.len());
            if let Some(at) = inside {
                *byte = through[at];
            }
        }
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let mut inner = self.lock();
        inner.config.write(offset, data);
        let control = inner.config.u16(self.capabilities.msix + 2);
        inner.msix.set_control(control);
        if let Some(window) = self.window(&inner, offset, data.len()) {
            let at = self.capabilities.window + Window::DATA;
            let through = inner.config.u32(at).to_le_bytes();
            self.bar_write(&mut inner, window.offset(), &through[..window.len()]);
        }
    }

    fn bars(&self) -> Vec<Bar> {
        vec![BAR]
    }

    fn regions(&self) -> Vec<Region> {
        self.lock().config.regions()
    }

    fn region_read(&self, _: u8, offset: u64, data: &mut [u8]) {
        self.bar_read(&mut self.lock(), offset, data);
    }

    fn region_write(&self, _: u8, offset: u64, data: &[u8]) {
        self.bar_write(&mut self.lock(), offset, data);
    }

    fn mapped(&self, _: u8, base: Option<u64>) {
        let mut inner = self.lock();
        inner.base = base;
        self.bind_queues(&mut inner);
    }

    fn reset(&self) {
        self.power_on(&mut self.lock());
    }
}

impl Movable for VirtioPci {
    fn declare(&self) -> Declared {
        let device = match self.device.declare() {
            Declared::NotMovable(why) => {
                return Declared::NotMovable(format!("{}: {why}", self.id));
            }
            Declared::State(payload) => Some(payload),
            Declared::Stateless => None,
        };
        let inner = self.lock();
        let link = self.device.link();
        let (device_config, generation, isr) = link.save();
        let state = TransportState {
            config: inner.config.save(),
            msix: Some(inner.msix.save()),
            registers: Some(inner.registers.save()),
            device_config,
            generation: generation.into(),
            isr: isr.into(),
            failed: link.has_failed(),
            device,
        };
        Declared::State(Payload::new(TRANSPORT, 1, &state))
    }
}

impl Device for VirtioPci {
    fn describe(&self) -> Option<DeviceDescription> {
        let (connected, reconnects) = self.device.back_end();
        Some(DeviceDescription {
            id: self.id.clone(),
            kind: self.device.kind().name.to_owned(),
            address: self.path.to_string(),
            connected,
            reconnects,
            driver_ok: self.lock().registers.is_driver_ok(),
        })
    }

    fn reset(&self) {
        self.power_on(&mut self.lock());
    }

    fn restore(&self, state: &Payload) -> Result<(), RestoreError> {
        let state: TransportState = state.read(TRANSPORT, 1)?;
        self.take(&state)
    }

    fn quiesce(&self) -> Quiesce<'_> {
        self.device.quiesce()
    }

    fn quiesce_fully(&self) -> Quiesce<'_> {
        self.device.quiesce_fully()
    }

    fn resume(&self) {
        self.device.resume();
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        // KVM holds its own reference to a bound eventfd; a device that is unplugged leaves none behind.
        let mut inner = self.lock();
        inner.base = None;
        self.bind_queues(&mut inner);
    }
}
