//! What a function is to the bus: registers in configuration space, and regions of ports or memory that it answers on.

/// Which addresses a region lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// I/O ports.
    Io,
    /// Guest-physical memory addresses.
    Memory,
}

/// The kind of a base address register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB, not prefetchable.
    Memory32,
    /// Memory anywhere, prefetchable; takes two registers.
    Prefetchable64,
}

/// A base address register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// Its number, 0 to 5.
    pub index: u8,
    /// What it decodes.
    pub kind: BarKind,
    /// Bytes, a power of two.
    pub size: u64,
}

impl Bar {
    /// Its offset in configuration space.
    #[must_use]
    pub const fn register(&self) -> u8 {
        super::config::register::BAR0 + 4 * self.index
    }
}

/// A range of addresses that a function decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Which of the function's regions: a BAR's number, or a number above 5 for one that is not in a BAR.
    pub id: u8,
    /// The kind of address.
    pub space: Space,
    /// The first address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
}

impl Region {
    /// The address after the last, if it exists.
    #[must_use]
    pub const fn end(&self) -> Option<u64> {
        self.base.checked_add(self.size)
    }

    /// Whether both decode a common address.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let before = |a: &Self, b: &Self| a.end().is_some_and(|end| end <= b.base);
        self.space == other.space && !before(self, other) && !before(other, self)
    }
}

/// One function of a PCI device.
///
/// Called by several vCPU threads at once; implementations lock for themselves. The root calls `config_*`, `regions`,
/// `mapped` and `reset` under its own lock, so none of them may call the root.
pub trait PciFunction: Send + Sync {
    /// The guest reads `data.len()` bytes (1, 2 or 4, inside one dword) of configuration space.
    fn config_read(&self, offset: u16, data: &mut [u8]);
    /// The guest writes configuration space.
    fn config_write(&self, offset: u16, data: &[u8]);
    /// The base address registers, for whoever assigns them in the firmware's place.
    fn bars(&self) -> Vec<Bar>;
    /// The regions the function decodes now.
    fn regions(&self) -> Vec<Region>;
    /// The guest reads in region `id`. `offset` lies inside; `offset + data.len()` may lie beyond its end.
    fn region_read(&self, id: u8, offset: u64, data: &mut [u8]);
    /// The guest writes in region `id`. `offset` lies inside; `offset + data.len()` may lie beyond its end.
    fn region_write(&self, id: u8, offset: u64, data: &[u8]);
    /// Region `id` answers at `base` from now on, or nowhere.
    fn mapped(&self, id: u8, base: Option<u64>);
    /// The bus is reset: everything as after power-on.
    fn reset(&self);
}
