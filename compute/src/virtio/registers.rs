//! The common configuration of the transport: features, status, queues (virtio 1.2, section 4.1.4.3).
//!
//! ```text
//!  0 ─► ACKNOWLEDGE ─► DRIVER ─► FEATURES_OK ─► DRIVER_OK          writing 0 goes back to 0 from anywhere
//!                                  │ refused: the bit stays 0       FAILED may be added anywhere
//! ```
//!
//! Pure: a write returns what is to be done about it. Reads are taken from an image of the registers, so they work at any
//! width and alignment; writes count only if they hit a register as the specification says a driver must.
//!
//! Invariants: FEATURES_OK is set only over features that were offered and go together; a queue is enabled only with a
//! ring that lies whole in guest memory; nothing of an enabled queue changes but its vector; after DRIVER_OK no queue is
//! enabled.

use super::features::VERSION_1;
use super::state::{QueueState, RegistersState};

/// The driver has seen the device.
pub(super) const ACKNOWLEDGE: u8 = 1;
/// The driver knows how to drive it.
pub(super) const DRIVER: u8 = 2;
/// The driver is ready.
pub(super) const DRIVER_OK: u8 = 4;
/// Features are agreed on.
pub(super) const FEATURES_OK: u8 = 8;
/// The device cannot go on without a reset.
pub(super) const NEEDS_RESET: u8 = 64;
/// The driver has given up.
pub(super) const FAILED: u8 = 128;
/// No interrupt vector.
pub(super) const NO_VECTOR: u16 = 0xffff;

/// What a write asks for, beside the change of registers that is done already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// The device is to be reset; registers are.
    Reset,
    /// The driver is ready.
    Activate,
    /// The configuration vector was written.
    ConfigVector,
    /// This queue's vector was written.
    QueueVector(u16),
    /// A ring lies where no memory is: the device needs a reset.
    BadRing,
}

/// What registers depend on.
pub(super) struct Facts<'a> {
    /// Features offered.
    pub(super) features: u64,
    /// Interrupt vectors there are.
    pub(super) vectors: u16,
    /// Whether the device accepts features that were offered.
    pub(super) accepts: &'a dyn Fn(u64) -> bool,
    /// Whether guest memory has these bytes in one piece: address, length.
    pub(super) holds: &'a dyn Fn(u64, u64) -> bool,
}

/// One queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Queue {
    max: u16,
    pub(super) size: u16,
    pub(super) vector: u16,
    pub(super) enabled: bool,
    pub(super) desc: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
}

/// The registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Registers {
    device_select: u32,
    driver_select: u32,
    pub(super) features: u64,
    pub(super) config_vector: u16,
    pub(super) status: u8,
    queue_select: u16,
    pub(super) queues: Vec<Queue>,
}

impl Queue {
    fn new(max: u16) -> Self {
        let vector = NO_VECTOR;
        Self { max, size: max, vector, enabled: false, desc: 0, avail: 0, used: 0 }
    }

    /// Whether the ring is aligned and lies in memory.
    fn is_sound(&self, holds: &dyn Fn(u64, u64) -> bool) -> bool {
        let size = u64::from(self.size);
        let parts = [
            (self.desc, 16, size * 16),
            (self.avail, 2, size * 2 + 6),
            (self.used, 4, size * 8 + 6),
        ];
        parts.iter().all(|(at, align, len)| at % align == 0 && holds(*at, *len))
    }
}

/// Replaces one half of a 64-bit register.
fn half(value: u64, upper: bool, new: u32) -> u64 {
    if upper {
        value & 0xffff_ffff | u64::from(new) << 32
    } else {
        value & !0xffff_ffff | u64::from(new)
    }
}

impl Registers {
    /// The registers of a device with queues of these sizes.
    pub(super) fn new(sizes: &[u16]) -> Self {
        Self {
            device_select: 0,
            driver_select: 0,
            features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            queue_select: 0,
            queues: sizes.iter().map(|size| Queue::new(*size)).collect(),
        }
    }

    /// As after power-on.
    pub(super) fn reset(&mut self) {
        let sizes: Vec<_> = self.queues.iter().map(|queue| queue.max).collect();
        *self = Self::new(&sizes);
    }

    /// Whether the driver is ready, and the device at work.
    pub(super) fn is_driver_ok(&self) -> bool {
        self.status & DRIVER_OK != 0
    }

    /// The registers as bytes, with the `status` and `generation` to show.
    pub(super) fn image(&self, facts: &Facts<'_>, status: u8, generation: u8) -> [u8; 64] {
        let word = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let none = Queue { vector: NO_VECTOR, ..Queue::new(0) };
        let queue = self.queues.get(usize::from(self.queue_select)).unwrap_or(&none);
        let mut image = [0; 64];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &self.device_select.to_le_bytes());
        put(0x04, &word(facts.features, self.device_select).to_le_bytes());
        put(0x08, &self.driver_select.to_le_bytes());
        put(0x0c, &word(self.features, self.driver_select).to_le_bytes());
        put(0x10, &self.config_vector.to_le_bytes());
        put(0x12, &(self.queues.len() as u16).to_le_bytes());
        put(0x14, &[status, generation]);
        put(0x16, &self.queue_select.to_le_bytes());
        put(0x18, &queue.size.to_le_bytes());
        put(0x1a, &queue.vector.to_le_bytes());
        put(0x1c, &u16::from(queue.enabled).to_le_bytes());
        // Each queue has its own notify address, in the order of the queues.
        let notify = if queue.max > 0 { self.queue_select } else { 0 };
        put(0x1e, &notify.to_le_bytes());
        put(0x20, &queue.desc.to_le_bytes());
        put(0x28, &queue.avail.to_le_bytes());
        put(0x30, &queue.used.to_le_bytes());
        image
    }

    /// The driver writes.
    pub(super) fn write(&mut self, offset: u64, data: &[u8], facts: &Facts<'_>) -> Effect {
        let value =
            data.iter().rev().take(8).fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        match (offset, data.len()) {
            (0x00, 4) => self.device_select = value as u32,
            (0x08, 4) => self.driver_select = value as u32,
            (0x0c, 4) if self.status & FEATURES_OK == 0 && self.driver_select < 2 => {
                self.features = half(self.features, self.driver_select == 1, value as u32);
            }
            (0x10, 2) => {
                self.config_vector = vector(value as u16, facts);
                return Effect::ConfigVector;
            }
            (0x14, 1) => return self.write_status(value as u8, facts),
            (0x16, 2) => self.queue_select = value as u16,
            (0x18..0x38, _) => return self.write_queue(offset, data.len(), value, facts),
            _ => {}
        }
        Effect::None
    }

    fn write_status(&mut self, value: u8, facts: &Facts<'_>) -> Effect {
        if value == 0 {
            self.reset();
            return Effect::Reset;
        }
        // A driver may only add bits; what it leaves out stays.
        let mut added =
            value & !self.status & (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED);
        if added & FEATURES_OK != 0 && !self.features_are_good(facts) {
            added &= !FEATURES_OK;
        }
        if (self.status | added) & FEATURES_OK == 0 || self.status & NEEDS_RESET != 0 {
            added &= !DRIVER_OK;
        }
        self.status |= added;
        if added & DRIVER_OK != 0 { Effect::Activate } else { Effect::None }
    }

    fn features_are_good(&self, facts: &Facts<'_>) -> bool {
        let offered = self.features & !facts.features == 0;
        offered && self.features & VERSION_1 != 0 && (facts.accepts)(self.features)
    }

    fn write_queue(&mut self, offset: u64, len: usize, value: u64, facts: &Facts<'_>) -> Effect {
        let index = self.queue_select;
        let Some(queue) = self.queues.get_mut(usize::from(index)) else { return Effect::None };
        if (offset, len) == (0x1a, 2) {
            queue.vector = vector(value as u16, facts);
            return Effect::QueueVector(index);
        }
        if queue.enabled {
            return Effect::None;
        }
        let address = match offset & !7 {
            0x20 => &mut queue.desc,
            0x28 => &mut queue.avail,
            _ => &mut queue.used,
        };
        match (offset, len) {
            (0x18, 2) => {
                let size = value as u16;
                if size.is_power_of_two() && size <= queue.max {
                    queue.size = size;
                }
            }
            (0x1c, 2) if value as u16 == 1 && self.status & DRIVER_OK == 0 => {
                if !queue.is_sound(facts.holds) {
                    self.status |= NEEDS_RESET;
                    return Effect::BadRing;
                }
                queue.enabled = true;
            }
            (0x20 | 0x28 | 0x30, 8) => *address = value,
            (0x20 | 0x28 | 0x30, 4) => *address = half(*address, false, value as u32),
            (0x24 | 0x2c | 0x34, 4) => *address = half(*address, true, value as u32),
            _ => {}
        }
        Effect::None
    }

    /// What travels.
    pub(super) fn save(&self) -> RegistersState {
        let queues = self.queues.iter().map(|queue| QueueState {
            size: queue.size.into(),
            vector: queue.vector.into(),
            enabled: queue.enabled,
            desc: queue.desc,
            avail: queue.avail,
            used: queue.used,
        });
        RegistersState {
            device_select: self.device_select,
            driver_select: self.driver_select,
            features: self.features,
            config_vector: self.config_vector.into(),
            status: self.status.into(),
            queue_select: self.queue_select.into(),
            queues: queues.collect(),
        }
    }

    /// Registers with saved values, checked as if a driver had written them; the reason if they cannot be.
    pub(super) fn restored(
        &self,
        state: &RegistersState,
        facts: &Facts<'_>,
    ) -> Result<Self, String> {
        let narrow =
            |value: u32| u16::try_from(value).map_err(|_| format!("a register of {value}"));
        if state.queues.len() != self.queues.len() {
            let (got, wanted) = (state.queues.len(), self.queues.len());
            return Err(format!("{got} queues where this device has {wanted}"));
        }
        let known = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED | NEEDS_RESET;
        let status = u8::try_from(state.status).ok().filter(|status| status & !known == 0);
        let mut new = Self {
            device_select: state.device_select,
            driver_select: state.driver_select,
            features: state.features,
            config_vector: vector(narrow(state.config_vector)?, facts),
            status: status.ok_or_else(|| format!("a status of {:#x}", state.status))?,
            queue_select: narrow(state.queue_select)?,
            queues: Vec::with_capacity(self.queues.len()),
        };
        for (saved, queue) in state.queues.iter().zip(&self.queues) {
            let size = narrow(saved.size)?;
            let QueueState { enabled, desc, avail, used, .. } = *saved;
            let vector = vector(narrow(saved.vector)?, facts);
            let queue = Queue { max: queue.max, size, vector, enabled, desc, avail, used };
            if !size.is_power_of_two() || size > queue.max {
                return Err(format!("a queue of {size} entries"));
            }
            if enabled && !queue.is_sound(facts.holds) {
                return Err("a ring outside of guest memory".to_owned());
            }
            new.queues.push(queue);
        }
        if new.status & FEATURES_OK != 0 && !new.features_are_good(facts) {
            let missing = new.features & !facts.features;
            return Err(format!(
                "acknowledged features {missing:#x} that this device does not offer"
            ));
        }
        if new.is_driver_ok() && new.status & FEATURES_OK == 0 {
            return Err("a driver without features".to_owned());
        }
        Ok(new)
    }
}

/// A vector that the table does not have is no vector; the driver reads that back.
fn vector(value: u16, facts: &Facts<'_>) -> u16 {
    if value < facts.vectors { value } else { NO_VECTOR }
}
