//! The state of what KVM emulates for the VM as a whole: PICs, IOAPIC, timer, clock.
//!
//! Used twice: to go back to power-on at a reset, and as part of the VM's state when it moves. The structures are the
//! kernel's own, whose layout is part of its interface and never changes.

use super::{KvmError, Refused, Vm};
use crate::device::RestoreError;
use bixi_api::state::{Declared, Movable, Payload};
use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    kvm_clock_data, kvm_irqchip, kvm_pit_state2,
};
use std::sync::Arc;
use zerocopy::{FromBytes, IntoBytes};

/// The kind of these payloads.
pub const KIND: &str = "kvm-chips";
const VERSION: u32 = 1;
const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// The chips' state as it travels.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ChipsState {
    /// `struct kvm_irqchip` of both PICs and the IOAPIC, in this order.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub irqchips: Vec<Vec<u8>>,
    /// `struct kvm_pit_state2`.
    #[prost(bytes = "vec", tag = "2")]
    pub pit: Vec<u8>,
    /// kvmclock in nanoseconds at the moment of saving.
    #[prost(uint64, tag = "3")]
    pub clock_ns: u64,
    /// Real time in nanoseconds since 1970 at that moment; 0 where the host cannot say both at once.
    #[prost(uint64, tag = "4")]
    pub realtime_ns: u64,
}

/// PICs, IOAPIC and timer as KVM makes them, kept for resets.
#[derive(Debug, Clone)]
pub struct PowerOnChips {
    irqchips: [kvm_irqchip; 3],
    pit: kvm_pit_state2,
}

impl PowerOnChips {
    /// Records the chips of a VM that has not run yet.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn record(vm: &Vm) -> Result<Self, KvmError> {
        Ok(Self { irqchips: irqchips(vm)?, pit: pit(vm)? })
    }

    /// Sets the chips to what was recorded. The vCPUs stand still.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn apply(&self, vm: &Vm) -> Result<(), KvmError> {
        for chip in &self.irqchips {
            vm.fd().set_irqchip(chip).refused("reset an interrupt controller")?;
        }
        vm.fd().set_pit2(&self.pit).refused("reset the timer")
    }
}

fn irqchips(vm: &Vm) -> Result<[kvm_irqchip; 3], KvmError> {
    let mut chips = CHIPS.map(|chip_id| kvm_irqchip { chip_id, ..Default::default() });
    for chip in &mut chips {
        vm.fd().get_irqchip(chip).refused("read an interrupt controller")?;
    }
    Ok(chips)
}

fn pit(vm: &Vm) -> Result<kvm_pit_state2, KvmError> {
    vm.fd().get_pit2().refused("read the timer")
}

/// PICs, IOAPIC, timer and clock of one VM, as a part of it that moves.
#[derive(Debug)]
pub struct Chips {
    vm: Arc<Vm>,
}

impl Chips {
    /// The chips of `vm`.
    #[must_use]
    pub fn new(vm: Arc<Vm>) -> Self {
        Self { vm }
    }

    fn save(&self) -> Result<ChipsState, KvmError> {
        let clock = self.vm.fd().get_clock().refused("read the guest's clock")?;
        let realtime = clock.flags & KVM_CLOCK_REALTIME != 0;
        Ok(ChipsState {
            irqchips: irqchips(&self.vm)?.iter().map(|c| c.as_bytes().to_vec()).collect(),
            pit: pit(&self.vm)?.as_bytes().to_vec(),
            clock_ns: clock.clock,
            realtime_ns: if realtime { clock.realtime } else { 0 },
        })
    }

    /// Sets the chips, and the guest's clock to where it would stand had it run on since the state was saved, as far as
    /// the host can tell. The vCPUs stand still.
    ///
    /// # Errors
    /// The state is malformed or KVM refuses it.
    pub fn restore(&self, payload: &Payload) -> Result<(), RestoreError> {
        let state: ChipsState = payload.read(KIND, VERSION)?;
        let malformed =
            |what: &str| RestoreError::Value { device: KIND.to_owned(), what: what.to_owned() };
        let kernel = |error: KvmError| RestoreError::Kernel {
            device: KIND.to_owned(),
            what: error.what.to_owned(),
            source: error.source,
        };
        if state.irqchips.len() != CHIPS.len() {
            return Err(malformed("not three interrupt controllers"));
        }
        for (bytes, id) in state.irqchips.iter().zip(CHIPS) {
            let chip = kvm_irqchip::read_from_bytes(bytes)
                .ok()
                .filter(|chip| chip.chip_id == id)
                .ok_or_else(|| malformed("an interrupt controller of another layout"))?;
            self.vm
                .fd()
                .set_irqchip(&chip)
                .refused("set an interrupt controller")
                .map_err(kernel)?;
        }
        let pit = kvm_pit_state2::read_from_bytes(&state.pit)
            .map_err(|_| malformed("a timer of another layout"))?;
        self.vm.fd().set_pit2(&pit).refused("set the timer").map_err(kernel)?;
        self.set_clock(&state).map_err(kernel)
    }

    fn set_clock(&self, state: &ChipsState) -> Result<(), KvmError> {
        let mut clock = kvm_clock_data { clock: state.clock_ns, ..Default::default() };
        let knows = self.vm.fd().get_clock().refused("read the guest's clock")?.flags;
        if state.realtime_ns != 0 && knows & KVM_CLOCK_REALTIME != 0 {
            clock.flags = KVM_CLOCK_REALTIME;
            clock.realtime = state.realtime_ns;
        }
        self.vm.fd().set_clock(&clock).refused("set the guest's clock")
    }
}

impl Movable for Chips {
    fn declare(&self) -> Declared {
        match self.save() {
            Ok(state) => Declared::State(Payload::new(KIND, VERSION, &state)),
            Err(error) => Declared::NotMovable(format!("{error}: {}", error.source)),
        }
    }
}
