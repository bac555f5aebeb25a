//! Interrupts into the guest: MSI vectors by irqfd, legacy lines by level.
//!
//! One [`Interrupts`] per VM owns KVM's routing table. A device takes an [`MsiVector`] for each of its MSI-X entries
//! and hands the vector's eventfd to whoever signals: another thread, or a card process over vhost-user. While the
//! vector is masked, or has no message yet, the eventfd is not bound to KVM: signals collect in its counter, and
//! [`MsiVector::unmask`] delivers them once (KVM looks at the counter when an irqfd is bound).
//!
//! Invariants: GSIs below [`FIRST_MSI_GSI`] are the lines of PIC and IOAPIC with an identity map; a GSI is owned by at
//! most one vector; the routing table is written only under its lock; a bound vector always has a route.

use crate::kvm::{KvmError, Refused, Vm};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// The first GSI that is an MSI vector; those below are the pins of the IOAPIC.
pub const FIRST_MSI_GSI: u32 = 24;
/// The most vectors a VM has: 93 devices with 65 vectors each would fit KVM's 4,096 routes only in part, so say so.
pub const MAX_VECTORS: usize = 4096 - 64;

/// Why an interrupt cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum InterruptError {
    /// Every vector is taken.
    #[error(
        "all {MAX_VECTORS} interrupt vectors of this VM are taken: give its devices fewer queues"
    )]
    Exhausted,
    /// The vector's eventfd cannot be made.
    #[error("cannot make an eventfd for an interrupt")]
    EventFd(#[source] std::io::Error),
    /// KVM refuses.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// The VM's interrupts.
#[derive(Debug)]
pub struct Interrupts {
    vm: Arc<Vm>,
    table: Mutex<Table>,
}

/// One slot per MSI GSI.
#[derive(Debug, Default)]
struct Table {
    slots: Vec<Slot>,
    /// Whether KVM's table is older than this one.
    stale: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Slot {
    Free,
    Taken(Option<Message>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Message {
    address: u64,
    data: u32,
}

impl Interrupts {
    /// The interrupts of `vm`, with the legacy lines routed and no vector taken.
    ///
    /// # Errors
    /// KVM refuses the routing table.
    pub fn new(vm: Arc<Vm>) -> Result<Arc<Self>, InterruptError> {
        let interrupts = Self { vm, table: Mutex::default() };
        interrupts.commit(&mut interrupts.lock())?;
        Ok(Arc::new(interrupts))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // A panic while the lock was held cannot leave the table half-written: every change is one assignment.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new vector: masked, without message.
    ///
    /// # Errors
    /// No vector is left, or the process is out of descriptors.
    pub fn msi(self: &Arc<Self>) -> Result<MsiVector, InterruptError> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(InterruptError::EventFd)?;
        let mut table = self.lock();
        let index = match table.slots.iter().position(|slot| *slot == Slot::Free) {
            Some(index) => index,
            None if table.slots.len() < MAX_VECTORS => {
                table.slots.push(Slot::Free);
                table.slots.len() - 1
            }
            None => return Err(InterruptError::Exhausted),
        };
        table.slots[index] = Slot::Taken(None);
        let gsi = FIRST_MSI_GSI + index as u32;
        Ok(MsiVector { interrupts: Arc::clone(self), event, gsi, bound: Mutex::new(false) })
    }

    /// The legacy line `gsi`, a pin of the IOAPIC (and below 16 of the PIC).
    #[must_use]
    pub fn line(&self, gsi: u32) -> IrqLine {
        IrqLine { vm: Arc::clone(&self.vm), gsi }
    }

    /// Writes the whole routing table: KVM has no call for one route.
    fn commit(&self, table: &mut Table) -> Result<(), KvmError> {
        let mut entries = legacy_routes();
        for (gsi, slot) in (FIRST_MSI_GSI..).zip(&table.slots) {
            if let Slot::Taken(Some(message)) = slot {
                entries.push(msi_route(gsi, *message));
            }
        }
        let routing = KvmIrqRouting::from_entries(&entries).map_err(|_| KvmError {
            what: "hold that many interrupt routes",
            source: std::io::Error::from_raw_os_error(libc::E2BIG),
        })?;
        self.vm.fd().set_gsi_routing(&routing).refused("route interrupts")?;
        table.stale = false;
        Ok(())
    }
}

fn legacy_routes() -> Vec<kvm_irq_routing_entry> {
    let mut entries = Vec::new();
    let mut pin = |gsi: u32, chip: u32, pin: u32| {
        let mut entry =
            kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
        entry.u.irqchip.irqchip = chip;
        entry.u.irqchip.pin = pin;
        entries.push(entry);
    };
    // Line 2 is the cascade of the two PICs; no device is behind it.
    for gsi in (0..FIRST_MSI_GSI).filter(|gsi| *gsi != 2) {
        match gsi {
            0..8 => pin(gsi, KVM_IRQCHIP_PIC_MASTER, gsi),
            8..16 => pin(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8),
            _ => {}
        }
        // The timer's line 0 is wired to IOAPIC pin 2, as the MADT's override says.
        pin(gsi, KVM_IRQCHIP_IOAPIC, if gsi == 0 { 2 } else { gsi });
    }
    entries
}

fn msi_route(gsi: u32, message: Message) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = message.address as u32;
    entry.u.msi.address_hi = (message.address >> 32) as u32;
    entry.u.msi.data = message.data;
    entry
}

/// One MSI vector and the eventfd that raises it.
///
/// Dropped, it unbinds and gives its GSI back.
#[derive(Debug)]
pub struct MsiVector {
    interrupts: Arc<Interrupts>,
    event: EventFd,
    gsi: u32,
    bound: Mutex<bool>,
}

impl MsiVector {
    /// The eventfd that raises this vector; it may be signalled at any time, masked or not.
    #[must_use]
    pub fn eventfd(&self) -> &EventFd {
        &self.event
    }

    /// The vector's GSI in KVM's routing table.
    #[must_use]
    pub fn gsi(&self) -> u32 {
        self.gsi
    }

    /// Sets what the guest's interrupt controller receives. Takes effect at once if the vector is unmasked.
    ///
    /// # Errors
    /// KVM refuses the routing table; the message is kept all the same.
    pub fn set_message(&self, address: u64, data: u32) -> Result<(), InterruptError> {
        let bound = self.lock();
        let mut table = self.interrupts.lock();
        let index = self.index();
        let new = Slot::Taken(Some(Message { address, data }));
        if table.slots[index] != new {
            table.slots[index] = new;
            table.stale = true;
        }
        if *bound && table.stale {
            self.interrupts.commit(&mut table)?;
        }
        Ok(())
    }

    /// From now on signals collect in the eventfd.
    ///
    /// # Errors
    /// KVM refuses to let go of the eventfd.
    pub fn mask(&self) -> Result<(), InterruptError> {
        let mut bound = self.lock();
        if *bound {
            self.interrupts
                .vm
                .fd()
                .unregister_irqfd(&self.event, self.gsi)
                .refused("unbind an interrupt")?;
            *bound = false;
        }
        Ok(())
    }

    /// Binds the eventfd to the guest's interrupt controller; what collected while masked is delivered once.
    ///
    /// Does nothing before the first [`MsiVector::set_message`]: the next unmask after it binds.
    ///
    /// # Errors
    /// KVM refuses the route or the binding.
    pub fn unmask(&self) -> Result<(), InterruptError> {
        let mut bound = self.lock();
        if *bound {
            return Ok(());
        }
        let mut table = self.interrupts.lock();
        if table.slots[self.index()] == Slot::Taken(None) {
            return Ok(());
        }
        if table.stale {
            self.interrupts.commit(&mut table)?;
        }
        self.interrupts
            .vm
            .fd()
            .register_irqfd(&self.event, self.gsi)
            .refused("bind an interrupt")?;
        // KVM has injected what collected, but not every kernel takes it from the counter: it would count as pending at
        // the next mask. A signal that comes now is KVM's, which empties the counter itself.
        let _ = self.event.read();
        *bound = true;
        Ok(())
    }

    /// Whether a signal waits for the vector to be unmasked: the MSI-X pending bit.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        let bound = self.lock();
        if *bound {
            return false;
        }
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(
            // SAFETY: the descriptor belongs to `self.event`, which outlives this borrow.
            unsafe {
                std::os::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&self.event))
            },
            rustix::event::PollFlags::IN,
        )];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Forgets collected signals and the message, and masks: what a device reset does.
    ///
    /// # Errors
    /// See [`MsiVector::mask`].
    pub fn reset(&self) -> Result<(), InterruptError> {
        self.mask()?;
        let mut table = self.interrupts.lock();
        let index = self.index();
        table.slots[index] = Slot::Taken(None);
        drop(table);
        // The descriptor does not block; an empty counter is the good case.
        let _ = self.event.read();
        Ok(())
    }

    fn index(&self) -> usize {
        (self.gsi - FIRST_MSI_GSI) as usize
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for MsiVector {
    fn drop(&mut self) {
        if let Err(error) = self.mask() {
            tracing::warn!(gsi = self.gsi, %error, "an interrupt stays bound");
            return;
        }
        let index = self.index();
        self.interrupts.lock().slots[index] = Slot::Free;
    }
}

/// A line that a device drives; what is behind it is not the device's business.
pub trait Line: Send + Sync {
    /// Sets the line's level.
    fn set(&self, active: bool);

    /// Raises and lowers the line: one edge.
    fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

impl Line for IrqLine {
    fn set(&self, active: bool) {
        // KVM refuses only lines that do not exist, and the board's do.
        if let Err(error) = Self::set(self, active) {
            tracing::error!(gsi = self.gsi, %error, "an interrupt line is not there");
        }
    }
}

/// A legacy interrupt line.
#[derive(Debug, Clone)]
pub struct IrqLine {
    vm: Arc<Vm>,
    gsi: u32,
}

impl IrqLine {
    /// Sets the line's level.
    ///
    /// # Errors
    /// KVM has no such line.
    pub fn set(&self, active: bool) -> Result<(), InterruptError> {
        Ok(self.vm.fd().set_irq_line(self.gsi, active).refused("set an interrupt line")?)
    }

    /// Raises and lowers the line: one edge.
    ///
    /// # Errors
    /// KVM has no such line.
    pub fn pulse(&self) -> Result<(), InterruptError> {
        self.set(true)?;
        self.set(false)
    }
}

#[cfg(test)]
pub(crate) mod test {
    use super::Line;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    /// A line that remembers its level and counts its rising edges.
    #[derive(Debug, Default)]
    pub(crate) struct TestLine {
        level: AtomicBool,
        rises: AtomicU64,
    }

    impl TestLine {
        pub(crate) fn level(&self) -> bool {
            self.level.load(Ordering::SeqCst)
        }

        pub(crate) fn rises(&self) -> u64 {
            self.rises.load(Ordering::SeqCst)
        }
    }

    impl Line for TestLine {
        fn set(&self, active: bool) {
            if !self.level.swap(active, Ordering::SeqCst) && active {
                self.rises.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}
