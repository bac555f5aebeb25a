//! Resource assignment in the firmware's place, for direct boot.
//!
//! Gives buses their numbers, bridges their windows and BARs their addresses, so that a kernel takes all of it as it is.
//! The windows have room for what is plugged in later. Called by the board after building and after each reset when no
//! firmware runs.

use super::bridge::Windows;
use super::config::register;
use super::region::{Bar, BarKind, PciFunction};
use super::root::PciRoot;
use std::ops::Range;

/// Memory window of each bridge below 4 GiB, in bytes: 1 MiB for each slot.
const BRIDGE_MEMORY: u64 = 32 << 20;
/// The most of the 64-bit aperture that one bridge gets, in bytes.
const BRIDGE_PREFETCH_MAX: u64 = 64 << 30;
/// Ports of each bridge.
const BRIDGE_PORTS: u64 = 0x1000;
/// Where bridges' ports begin: above the power-management block.
const FIRST_BRIDGE_PORT: u64 = 0xc000;
/// Ports for functions on the root bus.
const ROOT_PORTS: Range<u64> = 0x1000..0x2000;

/// A BAR has no place.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no room for BAR {bar} of the device at {path} ({size:#x} bytes): remove a device")]
pub struct AssignError {
    path: String,
    bar: u8,
    size: u64,
}

/// A range of addresses handed out from the bottom up.
#[derive(Debug)]
struct Pool(Range<u64>);

impl Pool {
    fn take(&mut self, size: u64) -> Option<u64> {
        let base = self.0.start.checked_next_multiple_of(size)?;
        let end = base.checked_add(size).filter(|end| *end <= self.0.end)?;
        self.0.start = end;
        Some(base)
    }
}

/// The three kinds of address behind one bridge, or on the root bus.
#[derive(Debug)]
struct Pools {
    io: Pool,
    memory: Pool,
    prefetch: Option<Pool>,
}

impl Pools {
    fn take(&mut self, bar: &Bar) -> Option<u64> {
        match bar.kind {
            BarKind::Io => self.io.take(bar.size),
            BarKind::Memory32 => self.memory.take(bar.size),
            // A prefetchable BAR may lie in ordinary memory, if it fits there.
            BarKind::Prefetchable64 => match &mut self.prefetch {
                Some(pool) => pool.take(bar.size),
                None => self.memory.take(bar.size),
            },
        }
    }
}

impl PciRoot {
    /// Programs every bridge and every BAR, and turns decoding on.
    ///
    /// # Errors
    /// A BAR does not fit; the boards of this release cannot come to that.
    pub fn assign(&self) -> Result<(), AssignError> {
        let mut inner = self.lock();
        let memory32 = &self.apertures.memory32;
        let mut root = Pools {
            io: Pool(ROOT_PORTS),
            memory: Pool(memory32.clone()),
            prefetch: self.apertures.memory64.clone().map(Pool),
        };
        let share = prefetch_share(self.apertures.memory64.as_ref(), inner.bridges.len());
        let mut behind = Vec::new();
        for (index, (slot, bridge)) in inner.bridges.iter_mut().enumerate() {
            let io = FIRST_BRIDGE_PORT + index as u64 * BRIDGE_PORTS;
            let base = root.memory.take(BRIDGE_MEMORY).unwrap_or(memory32.end);
            let prefetch = share.and_then(|size| {
                let base = root.prefetch.as_mut()?.take(size)?;
                Some(base..base + size)
            });
            let windows =
                Windows { io: io..io + BRIDGE_PORTS, memory: base..base + BRIDGE_MEMORY, prefetch };
            bridge.program(index as u8 + 1, &windows);
            let pools = Pools {
                io: Pool(windows.io),
                memory: Pool(windows.memory),
                prefetch: windows.prefetch.map(Pool),
            };
            behind.push((*slot, pools));
        }
        for (path, function) in &inner.functions {
            let pools = match path.bridge() {
                None => &mut root,
                Some(bridge) => match behind.iter_mut().find(|(slot, _)| *slot == bridge) {
                    Some((_, pools)) => pools,
                    None => continue,
                },
            };
            place(function.as_ref(), pools).map_err(|bar| AssignError {
                path: path.to_string(),
                bar: bar.index,
                size: bar.size,
            })?;
        }
        self.remap(&mut inner);
        Ok(())
    }
}

/// Half of the 64-bit aperture goes to the bridges, in equal shares of a power of two.
fn prefetch_share(aperture: Option<&Range<u64>>, bridges: usize) -> Option<u64> {
    let size = aperture?.end.checked_sub(aperture?.start)?;
    let share = size / 2 / (bridges as u64).max(1);
    let share = BRIDGE_PREFETCH_MAX.min(1 << share.checked_ilog2()?);
    (share >= 1 << 20).then_some(share)
}

fn place(function: &dyn PciFunction, pools: &mut Pools) -> Result<(), Bar> {
    let bars = function.bars();
    for bar in &bars {
        let base = pools.take(bar).ok_or(*bar)?;
        let at = u16::from(bar.register());
        function.config_write(at, &(base as u32).to_le_bytes());
        if bar.kind == BarKind::Prefetchable64 {
            function.config_write(at + 4, &((base >> 32) as u32).to_le_bytes());
        }
    }
    if !bars.is_empty() {
        let on = super::config::COMMAND_IO | super::config::COMMAND_MEMORY;
        function.config_write(u16::from(register::COMMAND), &on.to_le_bytes());
    }
    Ok(())
}
