//! Where the transport's structures lie in its BAR, and the capabilities that say so (virtio 1.2, section 4.1.4).
//!
//! Frozen with the board: a running guest has read the capabilities once and uses these offsets for ever.

use crate::pci::config::ConfigSpace;
use crate::pci::msix::{self, Msix};
use crate::pci::{Bar, BarKind};

/// The one BAR, in 32-bit memory, so that every firmware can reach it.
pub(super) const BAR: Bar = Bar { index: 0, kind: BarKind::Memory32, size: 0x4000 };
/// Common configuration.
pub(super) const COMMON: u64 = 0x0000;
/// Bytes of the common configuration, rounded up.
pub(super) const COMMON_SIZE: u64 = 0x40;
/// Interrupt status.
pub(super) const ISR: u64 = 0x0800;
/// Device-specific configuration.
pub(super) const DEVICE: u64 = 0x1000;
/// Notifications, one dword for each queue.
pub(super) const NOTIFY: u64 = 0x2000;
/// Bytes between the notify addresses of two queues.
pub(super) const NOTIFY_STRIDE: u64 = 4;
/// The MSI-X table.
pub(super) const TABLE: u64 = 0x3000;
/// The MSI-X pending bits.
pub(super) const PENDING: u64 = 0x3800;

/// Vendor-specific capability.
const VENDOR: u8 = 0x09;

/// Offsets of capabilities that are more than words to read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Capabilities {
    /// MSI-X.
    pub(super) msix: u8,
    /// The window through configuration space into the BAR.
    pub(super) window: u8,
}

/// Adds BAR and capabilities to `config`.
pub(super) fn describe(
    config: &mut ConfigSpace,
    msix: &Msix,
    queues: u16,
    config_len: usize,
) -> Capabilities {
    config.add_bar(BAR);
    let at = config.add_capability(
        msix::CAPABILITY,
        &msix.capability(BAR.index, TABLE as u32, PENDING as u32),
    );
    config.allow(at + 2, &(msix::CONTROL_ENABLE | msix::CONTROL_MASK_ALL).to_le_bytes());
    config.add_capability(VENDOR, &structure(1, COMMON, COMMON_SIZE, &[]));
    let stride = (NOTIFY_STRIDE as u32).to_le_bytes();
    let notify = u64::from(queues) * NOTIFY_STRIDE;
    config.add_capability(VENDOR, &structure(2, NOTIFY, notify, &stride));
    config.add_capability(VENDOR, &structure(3, ISR, 4, &[]));
    if config_len > 0 {
        config.add_capability(VENDOR, &structure(4, DEVICE, config_len as u64, &[]));
    }
    let window = config.add_capability(VENDOR, &structure(5, 0, 0, &[0; 4]));
    // BAR, then offset, length and data.
    config.allow(window + 4, &[0xff]);
    config.allow(window + 8, &[0xff; 12]);
    Capabilities { msix: at, window }
}

/// The body of a vendor capability: its length, which structure, BAR, offset and length, and what more there is.
fn structure(which: u8, offset: u64, length: u64, more: &[u8]) -> Vec<u8> {
    let mut body = vec![16 + more.len() as u8, which, BAR.index, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((length as u32).to_le_bytes());
    body.extend(more);
    body
}

/// The window through configuration space: firmware that cannot reach the BAR reads and writes it here
/// (virtio 1.2, section 4.1.4.9).
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    offset: u64,
    len: usize,
}

impl Window {
    /// Where its data bytes are in configuration space, from the capability's offset.
    pub(super) const DATA: u8 = 16;

    /// What the guest has programmed, if that is an access the BAR takes.
    pub(super) fn read(config: &ConfigSpace, at: u8) -> Option<Self> {
        let (bar, offset, len) = (config.u8(at + 4), config.u32(at + 8), config.u32(at + 12));
        let fits = u64::from(offset).checked_add(len.into()).is_some_and(|end| end <= BAR.size);
        let good = bar == BAR.index && matches!(len, 1 | 2 | 4) && offset % len == 0 && fits;
        good.then_some(Self { offset: offset.into(), len: len as usize })
    }

    pub(super) fn offset(self) -> u64 {
        self.offset
    }

    pub(super) fn len(self) -> usize {
        self.len
    }

    /// Whether an access of `len` bytes at `offset` of configuration space touches the data of the window at `at`.
    pub(super) fn touched(at: u8, offset: u16, len: usize) -> bool {
        let data = usize::from(at + Self::DATA);
        usize::from(offset) < data + 4 && usize::from(offset) + len > data
    }
}
