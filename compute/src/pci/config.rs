//! The 256 bytes of a function's configuration space: what each bit holds and who may change it.
//!
//! A register file with a mask of bits that the guest may write and a mask of bits that a written one clears. Access is
//! by byte, so that every width and alignment works and none can go wrong. BAR sizing needs no code of its own: bits
//! below a BAR's size are not writable and read as they were built.
//!
//! Invariants: the guest changes nothing outside the masks; a restored space differs from the built one only inside the
//! writable mask, whatever the saved bytes say. Owned by each function, behind the function's lock.

use super::region::{Bar, BarKind, Region, Space};

/// Bytes of one configuration space as mechanism #1 reaches it.
pub const CONFIG_SIZE: usize = 256;

/// Offsets of the registers every function has (PCI 3.0, section 6.1).
pub mod register {
    /// Vendor id, 16 bits.
    pub const VENDOR: u8 = 0x00;
    /// Device id, 16 bits.
    pub const DEVICE: u8 = 0x02;
    /// Command, 16 bits.
    pub const COMMAND: u8 = 0x04;
    /// Status, 16 bits.
    pub const STATUS: u8 = 0x06;
    /// Revision, then three bytes of class code.
    pub const REVISION: u8 = 0x08;
    /// Header type; bit 7: more functions in this slot.
    pub const HEADER_TYPE: u8 = 0x0e;
    /// The first base address register.
    pub const BAR0: u8 = 0x10;
    /// Subsystem vendor id, then subsystem id.
    pub const SUBSYSTEM: u8 = 0x2c;
    /// Offset of the first capability.
    pub const CAPABILITIES: u8 = 0x34;
    /// Interrupt line, scratch for firmware.
    pub const INTERRUPT_LINE: u8 = 0x3c;
    /// Interrupt pin, 0: none.
    pub const INTERRUPT_PIN: u8 = 0x3d;
}

/// Command: the function answers on I/O ports.
pub const COMMAND_IO: u16 = 1 << 0;
/// Command: the function answers on memory addresses.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: the function may write to memory, and so send messages.
pub const COMMAND_MASTER: u16 = 1 << 2;
/// Command bits that exist: I/O, memory, master, parity response, SERR, INTx disable.
const COMMAND_WRITABLE: u16 = 0x0547;
/// Status bits that a written one clears: parity and the aborts.
const STATUS_CLEARED: u16 = 0xf900;
/// Status: there is a capabilities list.
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Where the first capability goes.
const FIRST_CAPABILITY: u8 = 0x40;

/// What a function calls itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class code: class, subclass, programming interface from the top byte down.
    pub class: u32,
    /// Subsystem vendor and subsystem id; bridges have none.
    pub subsystem: Option<(u16, u16)>,
}

/// One configuration space.
#[derive(Clone)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_SIZE],
    built: [u8; CONFIG_SIZE],
    writable: [u8; CONFIG_SIZE],
    cleared: [u8; CONFIG_SIZE],
    bars: Vec<Bar>,
    last_capability: u8,
    capabilities_end: u8,
}

impl std::fmt::Debug for ConfigSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (vendor, device) = (self.u16(register::VENDOR), self.u16(register::DEVICE));
        write!(f, "ConfigSpace({vendor:04x}:{device:04x})")
    }
}

impl ConfigSpace {
    /// A type-0 or type-1 header with `identity`, the command and status registers, and an interrupt line to scribble on.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; CONFIG_SIZE],
            built: [0; CONFIG_SIZE],
            writable: [0; CONFIG_SIZE],
            cleared: [0; CONFIG_SIZE],
            bars: Vec::new(),
            last_capability: 0,
            capabilities_end: FIRST_CAPABILITY,
        };
        space.build(register::VENDOR, &identity.vendor.to_le_bytes());
        space.build(register::DEVICE, &identity.device.to_le_bytes());
        let class = identity.class << 8 | u32::from(identity.revision);
        space.build(register::REVISION, &class.to_le_bytes());
        if let Some((vendor, id)) = identity.subsystem {
            let subsystem = u32::from(id) << 16 | u32::from(vendor);
            space.build(register::SUBSYSTEM, &subsystem.to_le_bytes());
        }
        space.allow(register::COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        space.clear_by_one(register::STATUS, &STATUS_CLEARED.to_le_bytes());
        space.allow(register::INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Sets what the bytes from `offset` on hold after a reset. For builders.
    pub fn build(&mut self, offset: u8, value: &[u8]) {
        for (at, byte) in (usize::from(offset)..CONFIG_SIZE).zip(value) {
            self.built[at] = *byte;
            self.bytes[at] = *byte;
        }
    }

    /// Lets the guest write the bits of `mask` from `offset` on. For builders.
    pub fn allow(&mut self, offset: u8, mask: &[u8]) {
        for (at, bits) in (usize::from(offset)..CONFIG_SIZE).zip(mask) {
            self.writable[at] |= bits;
        }
    }

    /// Makes the bits of `mask` from `offset` on ones that a written one clears. For builders.
    pub fn clear_by_one(&mut self, offset: u8, mask: &[u8]) {
        for (at, bits) in (usize::from(offset)..CONFIG_SIZE).zip(mask) {
            self.cleared[at] |= bits;
        }
    }

    /// Adds a base address register. For builders; `bar.size` is a power of two of at least 16 bytes.
    pub fn add_bar(&mut self, bar: Bar) {
        let mask = !(bar.size - 1);
        let offset = bar.register();
        match bar.kind {
            BarKind::Io => {
                self.build(offset, &1u32.to_le_bytes());
                self.allow(offset, &(mask as u32 & !0x3).to_le_bytes());
            }
            BarKind::Memory32 => self.allow(offset, &(mask as u32 & !0xf).to_le_bytes()),
            BarKind::Prefetchable64 => {
                self.build(offset, &0xcu32.to_le_bytes());
                self.allow(offset, &(mask & !0xf).to_le_bytes());
            }
        }
        self.bars.push(bar);
    }

    /// Appends a capability with `id` and the bytes after its two-byte head; returns its offset. For builders.
    ///
    /// What does not fit into 256 bytes is cut off; the boards of this release stay far below.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> u8 {
        let offset = self.capabilities_end;
        match self.last_capability {
            0 => {
                self.build(register::CAPABILITIES, &[offset]);
                let status = self.u16(register::STATUS) | STATUS_CAPABILITIES;
                self.build(register::STATUS, &status.to_le_bytes());
            }
            last => self.build(last + 1, &[offset]),
        }
        self.build(offset, &[id, 0]);
        self.build(offset.saturating_add(2), body);
        self.last_capability = offset;
        let end = usize::from(offset) + 2 + body.len();
        self.capabilities_end = u8::try_from(end.next_multiple_of(4)).unwrap_or(0xfc);
        offset
    }

    /// The guest reads. What lies beyond the space reads as ones.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (at, byte) in (usize::from(offset)..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0xff);
        }
    }

    /// The guest writes.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        for (at, byte) in (usize::from(offset)..CONFIG_SIZE).zip(data) {
            let (writable, cleared) = (self.writable[at], self.cleared[at]);
            let kept = self.bytes[at] & !writable & !(cleared & byte);
            self.bytes[at] = kept | byte & writable;
        }
    }

    /// Back to what was built.
    pub fn reset(&mut self) {
        self.bytes = self.built;
    }

    /// One byte.
    #[must_use]
    pub fn u8(&self, offset: u8) -> u8 {
        self.bytes[usize::from(offset)]
    }

    /// Two bytes, little endian.
    #[must_use]
    pub fn u16(&self, offset: u8) -> u16 {
        u16::from(self.u8(offset)) | u16::from(self.u8(offset.wrapping_add(1))) << 8
    }

    /// Four bytes, little endian.
    #[must_use]
    pub fn u32(&self, offset: u8) -> u32 {
        u32::from(self.u16(offset)) | u32::from(self.u16(offset.wrapping_add(2))) << 16
    }

    /// The base address registers.
    #[must_use]
    pub fn bars(&self) -> &[Bar] {
        &self.bars
    }

    /// The regions that the BARs decode now, as the command register and the BARs say.
    #[must_use]
    pub fn regions(&self) -> Vec<Region> {
        let command = self.u16(register::COMMAND);
        let decoding = |bar: &&Bar| match bar.kind {
            BarKind::Io => command & COMMAND_IO != 0,
            BarKind::Memory32 | BarKind::Prefetchable64 => command & COMMAND_MEMORY != 0,
        };
        self.bars.iter().filter(decoding).map(|bar| self.region(bar)).collect()
    }

    fn region(&self, bar: &Bar) -> Region {
        let low = self.u32(bar.register());
        let (space, base) = match bar.kind {
            BarKind::Io => (Space::Io, u64::from(low & !0x3)),
            BarKind::Memory32 => (Space::Memory, u64::from(low & !0xf)),
            BarKind::Prefetchable64 => {
                let high = u64::from(self.u32(bar.register() + 4)) << 32;
                (Space::Memory, high | u64::from(low & !0xf))
            }
        };
        Region { id: bar.index, space, base, size: bar.size }
    }

    /// All bytes, for the state of the function.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Takes saved bytes. Only writable bits are taken: saved bytes are untrusted.
    ///
    /// # Errors
    /// The bytes are not those of this kind of function.
    pub fn restore(&mut self, saved: &[u8]) -> Result<(), ForeignConfig> {
        let identity = ..usize::from(register::COMMAND);
        if saved.len() != CONFIG_SIZE || saved[identity] != self.built[identity] {
            let id =
                |at: usize| saved.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]));
            return Err(ForeignConfig {
                wanted: (self.u16(register::VENDOR), self.u16(register::DEVICE)),
                got: (id(0), id(2)),
            });
        }
        self.reset();
        for (at, byte) in saved.iter().enumerate() {
            let writable = self.writable[at];
            self.bytes[at] = self.bytes[at] & !writable | byte & writable;
        }
        Ok(())
    }
}

/// A saved configuration space belongs to another kind of function.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a configuration space of {:04x}:{:04x} where this board has {:04x}:{:04x}: restore with the configuration that was saved",
    .got.0, .got.1, .wanted.0, .wanted.1
)]
pub struct ForeignConfig {
    wanted: (u16, u16),
    got: (u16, u16),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: 0x01_00_00,
            subsystem: Some((0x1af4, 0x1100)),
        });
        space.add_bar(Bar { index: 0, kind: BarKind::Memory32, size: 0x4000 });
        space.add_bar(Bar { index: 2, kind: BarKind::Prefetchable64, size: 1 << 33 });
        space.add_bar(Bar { index: 4, kind: BarKind::Io, size: 0x20 });
        space
    }

    fn sized(space: &mut ConfigSpace, bar: u8) -> u32 {
        let offset = u16::from(register::BAR0 + 4 * bar);
        space.write(offset, &[0xff; 4]);
        space.u32(offset as u8)
    }

    #[test]
    fn a_bar_tells_its_size() {
        let mut space = space();
        assert_eq!(sized(&mut space, 0), 0xffff_c000);
        assert_eq!(sized(&mut space, 1), 0);
        assert_eq!((sized(&mut space, 2), sized(&mut space, 3)), (0xc, 0xffff_fffe));
        assert_eq!(sized(&mut space, 4), 0xffff_ffe1);
    }

    #[test]
    fn regions_follow_the_command_register() {
        let mut space = space();
        space.write(0x10, &0xfe00_0000u32.to_le_bytes());
        assert!(space.regions().is_empty());
        space.write(0x04, &COMMAND_MEMORY.to_le_bytes());
        let regions = space.regions();
        assert_eq!(regions.len(), 2);
        assert_eq!((regions[0].base, regions[0].size), (0xfe00_0000, 0x4000));
        space.write(0x04, &[1]);
        assert_eq!(space.regions()[0].space, Space::Io);
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut space = space();
        assert_eq!(space.u16(register::STATUS) & STATUS_CAPABILITIES, 0);
        assert_eq!(space.add_capability(0x11, &[0; 10]), 0x40);
        assert_eq!(space.add_capability(0x09, &[0; 15]), 0x4c);
        assert_eq!(space.add_capability(0x09, &[0; 14]), 0x60);
        assert_eq!(space.u16(register::STATUS) & STATUS_CAPABILITIES, STATUS_CAPABILITIES);
        let list = [space.u8(0x34), space.u8(0x41), space.u8(0x4d), space.u8(0x61)];
        assert_eq!(list, [0x40, 0x4c, 0x60, 0]);
    }

    #[test]
    fn a_written_one_clears_and_a_written_zero_does_not() {
        let mut space = space();
        space.bytes[7] = 0xf9;
        space.write(0x07, &[0x00]);
        assert_eq!(space.u8(0x07), 0xf9);
        space.write(0x07, &[0x21]);
        assert_eq!(space.u8(0x07), 0xd8);
    }

    #[test]
    fn state_of_another_function_is_refused() {
        let mut saved = space().save();
        saved[2] ^= 1;
        assert!(space().restore(&saved).unwrap_err().to_string().contains("1af4:1043"));
        assert!(space().restore(&saved[..7]).is_err());
    }

    proptest! {
        #[test]
        fn writes_stay_inside_the_masks(
            writes in prop::collection::vec((0u16..300, prop::collection::vec(any::<u8>(), 0..9)), 0..50)
        ) {
            let (fresh, mut space) = (space(), space());
            for (offset, data) in writes {
                space.write(offset, &data);
                let mut read = vec![0; data.len()];
                space.read(offset, &mut read);
            }
            for at in 0..CONFIG_SIZE {
                let fixed = !(space.writable[at] | space.cleared[at]);
                prop_assert_eq!(space.bytes[at] & fixed, fresh.bytes[at] & fixed);
            }
            let mut moved = fresh.clone();
            moved.restore(&space.save()).unwrap();
            for at in 0..CONFIG_SIZE {
                let kept = space.writable[at];
                prop_assert_eq!(moved.bytes[at] & kept, space.bytes[at] & kept);
                prop_assert_eq!(moved.bytes[at] & !kept, fresh.bytes[at] & !kept);
            }
        }
    }
}
