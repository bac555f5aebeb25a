//! MSI-X of one function: table, pending bits, masks (PCI 3.0, section 6.8.2).
//!
//! ```text
//!              enabled, function not masked, entry not masked, message deliverable
//!   silent  ────────────────────────────────────────────────────────────────────►  live
//!   (signals collect in the eventfd: pending bit) ◄──────────────────────────────  (bound as irqfd)
//! ```
//!
//! Whoever signals holds the vector's eventfd and knows nothing of masks. A vector is bound to the guest's interrupt
//! controller only while it is live; what collected while it was silent is delivered once when it becomes live.
//!
//! Owned by a function, behind that function's lock; vCPU threads come in through the function's registers.

use super::state::{MsixEntryState, MsixState};
use crate::interrupts::{InterruptError, MsiVector};
use crate::log_limit::LogLimit;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// Capability id of MSI-X.
pub const CAPABILITY: u8 = 0x11;
/// Bytes of one table entry.
pub const ENTRY_SIZE: usize = 16;
/// The most vectors a table of this crate has; a table then fills 2 KiB.
pub const MAX_VECTORS: u16 = 128;
/// Message control: MSI-X is on.
pub const CONTROL_ENABLE: u16 = 1 << 15;
/// Message control: every vector is masked.
pub const CONTROL_MASK_ALL: u16 = 1 << 14;
/// Vector control: this vector is masked.
const ENTRY_MASK: u32 = 1;
/// Message addresses of the local interrupt controllers: bits 63 to 20. Any other address would be a write to memory,
/// and KVM refuses some of them together with every good route in the table.
const DELIVERABLE: u64 = 0xfee;

/// What raises one interrupt in the guest; [`MsiVector`] outside of tests.
pub trait Vector: Send + Sync {
    /// The eventfd that raises it.
    fn eventfd(&self) -> &EventFd;
    /// Sets address and data of the message.
    ///
    /// # Errors
    /// The interrupt controller refuses.
    fn set_message(&self, address: u64, data: u32) -> Result<(), InterruptError>;
    /// Signals collect from now on.
    ///
    /// # Errors
    /// The interrupt controller refuses.
    fn mask(&self) -> Result<(), InterruptError>;
    /// Signals, and those that collected, go to the guest from now on.
    ///
    /// # Errors
    /// The interrupt controller refuses.
    fn unmask(&self) -> Result<(), InterruptError>;
    /// Whether signals have collected.
    fn is_pending(&self) -> bool;
}

impl Vector for MsiVector {
    fn eventfd(&self) -> &EventFd {
        self.eventfd()
    }
    fn set_message(&self, address: u64, data: u32) -> Result<(), InterruptError> {
        self.set_message(address, data)
    }
    fn mask(&self) -> Result<(), InterruptError> {
        self.mask()
    }
    fn unmask(&self) -> Result<(), InterruptError> {
        self.unmask()
    }
    fn is_pending(&self) -> bool {
        self.is_pending()
    }
}

/// A handle by which a device raises one of its vectors.
#[derive(Clone)]
pub struct Call(Arc<dyn Vector>);

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Call({:?})", self.0.eventfd())
    }
}

impl Call {
    /// Raises the interrupt, or leaves it pending while masked.
    pub fn signal(&self) {
        // The counter can only be full after 2^64 - 2 signals that nobody took; then one is pending anyway.
        let _ = self.0.eventfd().write(1);
    }
}

impl AsFd for Call {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let raw = std::os::fd::AsRawFd::as_raw_fd(self.0.eventfd());
        // SAFETY: the eventfd lives as long as the vector, which `self` holds.
        unsafe { BorrowedFd::borrow_raw(raw) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
}

const RESET_ENTRY: Entry = Entry { address: 0, data: 0, control: ENTRY_MASK };

/// The MSI-X of one function.
pub struct Msix {
    entries: Vec<Entry>,
    vectors: Vec<Arc<dyn Vector>>,
    control: u16,
    log: LogLimit,
}

impl std::fmt::Debug for Msix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Msix")
            .field("control", &self.control)
            .field("entries", &self.entries)
            .finish()
    }
}

impl Msix {
    /// A table with one entry for each of `vectors`, all masked. What is beyond [`MAX_VECTORS`] is left out.
    #[must_use]
    pub fn new(mut vectors: Vec<Arc<dyn Vector>>) -> Self {
        vectors.truncate(usize::from(MAX_VECTORS));
        Self {
            entries: vec![RESET_ENTRY; vectors.len()],
            vectors,
            control: 0,
            log: LogLimit::default(),
        }
    }

    /// Entries of the table.
    #[must_use]
    pub fn len(&self) -> u16 {
        self.entries.len() as u16
    }

    /// Whether the table has no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The body of the capability: table at `table`, pending bits at `pending`, both in BAR `bar`. Offsets are multiples
    /// of 8.
    #[must_use]
    pub fn capability(&self, bar: u8, table: u32, pending: u32) -> [u8; 10] {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&self.len().saturating_sub(1).to_le_bytes());
        body[2..6].copy_from_slice(&(table | u32::from(bar)).to_le_bytes());
        body[6..].copy_from_slice(&(pending | u32::from(bar)).to_le_bytes());
        body
    }

    /// The handle of vector `index`, if the table has one.
    #[must_use]
    pub fn call(&self, index: u16) -> Option<Call> {
        self.vectors.get(usize::from(index)).map(|vector| Call(Arc::clone(vector)))
    }

    /// The guest wrote message control.
    pub fn set_control(&mut self, control: u16) {
        let control = control & (CONTROL_ENABLE | CONTROL_MASK_ALL);
        if self.control != control {
            self.control = control;
            (0..self.entries.len()).for_each(|index| self.settle(index));
        }
    }

    /// The guest reads the table, at any width and alignment.
    pub fn table_read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in places(offset).zip(data) {
            let entry = self.entries.get(at / ENTRY_SIZE);
            *byte = entry.map_or(0, |entry| entry.bytes()[at % ENTRY_SIZE]);
        }
    }

    /// The guest writes the table, at any width and alignment.
    pub fn table_write(&mut self, offset: u64, data: &[u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(data.len());
        for index in start / ENTRY_SIZE..end.div_ceil(ENTRY_SIZE).min(self.entries.len()) {
            let mut bytes = self.entries[index].bytes();
            for (at, byte) in places(offset).zip(data) {
                if at / ENTRY_SIZE == index {
                    bytes[at % ENTRY_SIZE] = *byte;
                }
            }
            let new = Entry::from_bytes(bytes);
            if self.entries[index] != new {
                self.entries[index] = new;
                self.settle(index);
            }
        }
    }

    /// The guest reads the pending bits, at any width and alignment.
    pub fn pending_read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in places(offset).zip(data) {
            let first = at.saturating_mul(8);
            let bit = |n: usize| u8::from(self.is_pending(first.saturating_add(n))) << n;
            *byte = (0..8).map(bit).sum();
        }
    }

    fn is_pending(&self, index: usize) -> bool {
        self.vectors.get(index).is_some_and(|vector| !self.is_live(index) && vector.is_pending())
    }

    fn is_live(&self, index: usize) -> bool {
        let entry = &self.entries[index];
        self.control & (CONTROL_ENABLE | CONTROL_MASK_ALL) == CONTROL_ENABLE
            && entry.control & ENTRY_MASK == 0
            && entry.address >> 20 == DELIVERABLE
    }

    /// Makes the vector what the registers say.
    fn settle(&mut self, index: usize) {
        let entry = self.entries[index];
        let vector = &self.vectors[index];
        let done = if self.is_live(index) {
            vector.set_message(entry.address, entry.data).and_then(|()| vector.unmask())
        } else {
            vector.mask()
        };
        if let Err(error) = done
            && let Some(suppressed) = self.log.pass()
        {
            tracing::warn!(vector = index, %error, suppressed, "an interrupt vector is not set up");
        }
    }

    /// As after power-on: off, every entry masked.
    pub fn reset(&mut self) {
        self.control = 0;
        self.entries.fill(RESET_ENTRY);
        (0..self.entries.len()).for_each(|index| self.settle(index));
        self.forget_pending();
    }

    /// Drops signals that wait in silent vectors: the device that sent them has been reset.
    pub fn forget_pending(&self) {
        for (index, vector) in self.vectors.iter().enumerate() {
            if !self.is_live(index) && vector.is_pending() {
                // Pending, so that the read does not block; a vector that becomes empty meanwhile is no harm.
                let _ = vector.eventfd().read();
            }
        }
    }

    /// What travels; the control word does with the configuration space.
    #[must_use]
    pub fn save(&self) -> MsixState {
        let entries = self.entries.iter().enumerate().map(|(index, entry)| MsixEntryState {
            address: entry.address,
            data: entry.data,
            control: entry.control,
            pending: self.is_pending(index),
        });
        MsixState { entries: entries.collect() }
    }

    /// Takes a saved table and the control word of the restored configuration space.
    ///
    /// # Errors
    /// The table has another size.
    pub fn restore(&mut self, state: &MsixState, control: u16) -> Result<(), ForeignTable> {
        if state.entries.len() != self.entries.len() {
            let (wanted, got) = (self.entries.len(), state.entries.len());
            return Err(ForeignTable { wanted, got });
        }
        self.control = control & (CONTROL_ENABLE | CONTROL_MASK_ALL);
        for (index, saved) in state.entries.iter().enumerate() {
            self.entries[index] = Entry {
                address: saved.address,
                data: saved.data,
                control: saved.control & ENTRY_MASK,
            };
            if saved.pending {
                // See `Call::signal`.
                let _ = self.vectors[index].eventfd().write(1);
            }
            self.settle(index);
        }
        Ok(())
    }
}

/// Offsets from `offset` on; those that overflow are beyond every table.
fn places(offset: u64) -> impl Iterator<Item = usize> {
    (0..).map(move |n: usize| usize::try_from(offset).map_or(usize::MAX, |at| at.saturating_add(n)))
}

/// A saved MSI-X table has another size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an MSI-X table of {got} entries where this device has {wanted}")]
pub struct ForeignTable {
    wanted: usize,
    got: usize,
}

impl Entry {
    fn bytes(self) -> [u8; ENTRY_SIZE] {
        let mut bytes = [0; ENTRY_SIZE];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.data.to_le_bytes());
        bytes[12..].copy_from_slice(&self.control.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; ENTRY_SIZE]) -> Self {
        let u32_at = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        // The two lowest bits of an address are reserved, as are all bits of the control but the mask.
        let address = u64::from(u32_at(4)) << 32 | u64::from(u32_at(0) & !3);
        Self { address, data: u32_at(8), control: u32_at(12) & ENTRY_MASK }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::fuzz::Recorded;
    use proptest::prelude::*;

    fn vectors(count: usize) -> (Vec<Arc<Recorded>>, Vec<Arc<dyn Vector>>) {
        let records: Vec<_> = (0..count).map(|_| Recorded::new().unwrap()).collect();
        let vectors = records.iter().map(|v| Arc::clone(v) as Arc<dyn Vector>).collect();
        (records, vectors)
    }

    fn set(msix: &mut Msix, index: u64, address: u32, data: u32, control: u32) {
        for (at, word) in [(0, address), (4, 0), (8, data), (12, control)] {
            msix.table_write(index * 16 + at, &word.to_le_bytes());
        }
    }

    #[test]
    fn a_vector_is_bound_only_while_nothing_masks_it() {
        let (records, all) = vectors(2);
        let mut msix = Msix::new(all);
        set(&mut msix, 1, 0xfee0_1000, 0x41, 0);
        assert_eq!(records[1].bound(), None, "MSI-X is off");
        msix.set_control(CONTROL_ENABLE | CONTROL_MASK_ALL);
        assert_eq!(records[1].bound(), None, "the function is masked");
        msix.set_control(CONTROL_ENABLE);
        assert_eq!(records[1].bound(), Some((0xfee0_1000, 0x41)));
        assert_eq!(records[0].bound(), None, "the other is masked");
        set(&mut msix, 1, 0xfee0_1000, 0x41, 1);
        assert_eq!(records[1].bound(), None);
    }

    #[test]
    fn what_is_signalled_while_masked_is_pending_and_delivered_once() {
        let (records, all) = vectors(70);
        let mut msix = Msix::new(all);
        msix.set_control(CONTROL_ENABLE);
        let call = msix.call(65).unwrap();
        call.signal();
        call.signal();
        let mut bits = [0; 16];
        msix.pending_read(0, &mut bits);
        assert_eq!(bits, [0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        set(&mut msix, 65, 0xfee0_0000, 7, 0);
        assert!(records[65].bound().is_some() && records[65].signalled());
        msix.pending_read(8, &mut bits[..4]);
        assert_eq!(bits[..4], [0; 4]);
    }

    #[test]
    fn a_message_that_is_no_interrupt_is_never_bound() {
        let (records, all) = vectors(1);
        let mut msix = Msix::new(all);
        msix.set_control(CONTROL_ENABLE);
        set(&mut msix, 0, 0x0010_0000, 7, 0);
        msix.table_write(4, &1u32.to_le_bytes());
        assert_eq!(records[0].bound(), None);
        set(&mut msix, 0, 0xfee0_0000, 7, 0);
        assert!(records[0].bound().is_some());
    }

    proptest! {
        #[test]
        fn any_access_is_survived_and_state_round_trips(
            accesses in prop::collection::vec(
                (0u64..80, prop::collection::vec(any::<u8>(), 0..20), any::<u16>()), 0..40)
        ) {
            let (records, all) = vectors(3);
            let mut msix = Msix::new(all);
            for (offset, mut data, control) in accesses {
                msix.table_write(offset, &data);
                msix.table_read(offset, &mut data);
                msix.pending_read(offset, &mut data);
                msix.set_control(control);
            }
            msix.table_write(u64::MAX, &[0; 8]);
            msix.pending_read(u64::MAX, &mut [0; 8]);
            msix.call(2).unwrap().signal();
            let (others, all) = vectors(3);
            let mut moved = Msix::new(all);
            moved.restore(&msix.save(), msix.control).unwrap();
            prop_assert_eq!(&moved.entries, &msix.entries);
            for (a, b) in records.iter().zip(&others) {
                prop_assert_eq!(a.bound(), b.bound());
            }
        }
    }
}
