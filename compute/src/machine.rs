//! A built machine: memory, chips, board, devices and vCPUs of one VM, standing still or running as it is told.
//!
//! The driver owns it and decides; this type knows how, in which order. It has no opinion about when.
//!
//! Order of a reset: PCI, the other devices, KVM's chips, vCPUs; then the caller loads the boot files anew and calls
//! [`Machine::boot`]. Order of a restore: chips, vCPUs, PCI, the other devices.

use crate::board::clock::Clock;
use crate::board::{Board, BoardSpec};
use crate::bus::{BusError, MemoryBus, PortBus};
use crate::console::output::Writer;
use crate::device::{Device, RestoreError};
use crate::doorbell::Doorbell;
use crate::interrupts::{InterruptError, Interrupts};
use crate::kvm::chips::{Chips, PowerOnChips};
use crate::kvm::cpuid::CpuidTemplate;
use crate::kvm::host::Host;
use crate::kvm::{KvmError, Vm, msr};
use crate::memory::GuestRam;
use crate::pci::AssignError;
use crate::vcpu::Vcpu;
use crate::vcpu::registers::{self, Entry};
use crate::vcpu::thread::{Surroundings, VcpuThread};
use bixi_api::state::{Declared, Movable, Payload};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a vCPU may take to come back when it is called.
const PARK_DEADLINE: Duration = Duration::from_secs(10);

/// What a machine is made of.
#[derive(Debug)]
pub struct MachineSpec {
    /// The number of vCPUs, 1 to 64.
    pub vcpus: u8,
    /// The guest's memory.
    pub ram: Arc<GuestRam>,
    /// Where the serial port writes.
    pub console: Writer,
    /// The time that devices tell.
    pub clock: Arc<dyn Clock>,
}

/// Why a machine cannot be built or made to do something.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM refuses.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Interrupts cannot be set up.
    #[error(transparent)]
    Interrupt(#[from] InterruptError),
    /// Two devices of the board want one place.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// PCI devices do not fit into their windows.
    #[error(transparent)]
    Assign(#[from] AssignError),
    /// An eventfd or a thread cannot be made.
    #[error("cannot make {what}: raise this process's limits")]
    System {
        /// What was to be made.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The tables that a vCPU needs at its entry do not fit into guest memory.
    #[error("guest memory is too small for the tables that a boot needs")]
    Tables(#[from] vm_memory::GuestMemoryError),
    /// A vCPU did not come back.
    #[error("vCPU {index} did not stop within {PARK_DEADLINE:?}: the host may be overloaded")]
    Stuck {
        /// The vCPU.
        index: u8,
    },
}

/// A part of a machine that cannot move.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{part} cannot move: {reason}")]
pub struct NotMovable {
    /// The part.
    pub part: String,
    /// Why.
    pub reason: String,
}

/// The state of a machine as it travels, without the contents of its memory.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MachineState {
    /// The parts that have a state.
    #[prost(message, repeated, tag = "1")]
    pub parts: Vec<PartState>,
}

/// One part of a machine.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PartState {
    /// Its name, unique in the machine: `chips`, `vcpu/0`, `pci`, `device/2/1`.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its state.
    #[prost(message, required, tag = "2")]
    pub payload: Payload,
}

/// A device on the PCI bus, by its name.
struct Plugged {
    name: String,
    device: Arc<dyn Device>,
}

/// One machine.
pub struct Machine {
    // Threads first: they are joined before what they use goes away.
    vcpus: Vec<VcpuThread>,
    plugged: Vec<Plugged>,
    board: Board,
    chips: Chips,
    power_on: PowerOnChips,
    interrupts: Arc<Interrupts>,
    around: Surroundings,
    vm: Arc<Vm>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("board", &self.board).finish_non_exhaustive()
    }
}

impl Machine {
    /// Builds a machine whose vCPUs are parked at power-on.
    ///
    /// # Errors
    /// KVM or the system refuses a step.
    pub fn build(host: &Host, spec: MachineSpec) -> Result<Self, MachineError> {
        let bell = Doorbell::new()
            .map_err(|source| MachineError::System { what: "an eventfd", source })?;
        let around = Surroundings {
            ports: Arc::new(PortBus::default()),
            memory: Arc::new(MemoryBus::default()),
            bell: Arc::new(bell),
        };
        let vm = Arc::new(Vm::new(host, Arc::clone(&spec.ram))?);
        let interrupts = Interrupts::new(Arc::clone(&vm))?;
        let cpuid = CpuidTemplate::new(host, spec.vcpus)?;
        let board = BoardSpec {
            ram: &spec.ram,
            vcpus: spec.vcpus,
            physical_bits: cpuid.physical_bits(),
            console: spec.console,
            clock: spec.clock,
        };
        let board = Board::build(&around, &interrupts, board)?;
        let power_on = PowerOnChips::record(&vm)?;
        let msrs: Arc<[u32]> = msr::list(host)?.into();
        let vcpus = Vcpu::create_all(&vm, &cpuid, spec.vcpus, &msrs)?;
        let threads: io::Result<Vec<_>> =
            vcpus.into_iter().map(|vcpu| VcpuThread::spawn(vcpu, around.clone())).collect();
        let vcpus = threads.map_err(|source| MachineError::System { what: "a thread", source })?;
        let chips = Chips::new(Arc::clone(&vm));
        let plugged = Vec::new();
        Ok(Self { vcpus, plugged, board, chips, power_on, interrupts, around, vm })
    }

    /// Takes a PCI device into the machine's care; its function is on the bus already. `name` is unique.
    pub fn plug(&mut self, name: String, device: Arc<dyn Device>) {
        self.plugged.push(Plugged { name, device });
    }

    /// The VM in KVM.
    #[must_use]
    pub fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// The guest's memory.
    #[must_use]
    pub fn ram(&self) -> &Arc<GuestRam> {
        self.vm.ram()
    }

    /// The VM's interrupts.
    #[must_use]
    pub fn interrupts(&self) -> &Arc<Interrupts> {
        &self.interrupts
    }

    /// The buses and the doorbell.
    #[must_use]
    pub fn around(&self) -> &Surroundings {
        &self.around
    }

    /// The fixed devices.
    #[must_use]
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// The vCPUs.
    #[must_use]
    pub fn vcpus(&self) -> &[VcpuThread] {
        &self.vcpus
    }

    /// All devices in the order in which they are reset and restored.
    pub fn devices(&self) -> impl Iterator<Item = (&str, Arc<dyn Device>)> {
        let plugged = self.plugged.iter().map(|p| (p.name.as_str(), Arc::clone(&p.device)));
        self.board.devices().into_iter().chain(plugged)
    }

    /// Sets parked, fresh or freshly reset vCPUs up to begin at `entry`, and PCI up as firmware would.
    ///
    /// # Errors
    /// KVM refuses, memory is too small, or PCI devices do not fit.
    pub fn boot(&self, entry: &Entry) -> Result<(), MachineError> {
        registers::write_tables(self.ram().memory(), entry)?;
        self.board.pci.assign()?;
        for vcpu in &self.vcpus {
            vcpu.with(|vcpu| vcpu.boot(entry))?;
        }
        Ok(())
    }

    /// Lets the vCPUs run.
    pub fn run(&self) {
        for (_, device) in self.devices() {
            device.resume();
        }
        for vcpu in &self.vcpus {
            vcpu.run();
        }
    }

    /// Calls the vCPUs back and waits until every one stands still.
    ///
    /// # Errors
    /// One does not come back; the others may stand or run.
    pub fn park(&self) -> Result<(), MachineError> {
        self.vcpus.iter().for_each(VcpuThread::park);
        let deadline = Instant::now() + PARK_DEADLINE;
        let stuck = self.vcpus.iter().find(|vcpu| !vcpu.wait_parked(deadline));
        stuck.map_or(Ok(()), |vcpu| Err(MachineError::Stuck { index: vcpu.index() }))
    }

    /// The same for a task, without blocking it: device tasks go on meanwhile.
    pub fn parking(&self) -> impl Future<Output = Result<(), MachineError>> + Send + 'static {
        self.vcpus.iter().for_each(VcpuThread::park);
        let waits: Vec<_> = self.vcpus.iter().map(|vcpu| (vcpu.index(), vcpu.parked())).collect();
        async move {
            let deadline = tokio::time::Instant::now() + PARK_DEADLINE;
            for (index, parked) in waits {
                let parked = tokio::time::timeout_at(deadline, parked).await;
                parked.map_err(|_| MachineError::Stuck { index })?;
            }
            Ok(())
        }
    }

    /// Everything but memory goes back to power-on. The vCPUs stand still.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn reset(&self) -> Result<(), MachineError> {
        for (_, device) in self.devices() {
            device.reset();
        }
        self.power_on.apply(&self.vm)?;
        for vcpu in &self.vcpus {
            vcpu.with(|vcpu| vcpu.reset())?;
        }
        Ok(())
    }

    /// The state of all parts. Everything stands still.
    ///
    /// # Errors
    /// A part cannot move now.
    pub fn save(&self) -> Result<MachineState, NotMovable> {
        let mut parts = Vec::new();
        let mut add = |name: String, declared: Declared| match declared {
            Declared::Stateless => Ok(()),
            Declared::State(payload) => {
                parts.push(PartState { name, payload });
                Ok(())
            }
            Declared::NotMovable(reason) => Err(NotMovable { part: name, reason }),
        };
        add("memory".to_owned(), self.ram().declare())?;
        add("chips".to_owned(), self.chips.declare())?;
        for vcpu in &self.vcpus {
            add(vcpu_name(vcpu), vcpu.with(|vcpu| vcpu.declare()))?;
        }
        for (name, device) in self.devices() {
            add(device_name(name), device.declare())?;
        }
        Ok(MachineState { parts })
    }

    /// Takes over the state of a machine of the same configuration. This one has not run.
    ///
    /// # Errors
    /// A part is missing, malformed, or this host cannot take it.
    pub fn restore(&self, state: &MachineState) -> Result<(), RestoreError> {
        let part = |name: &str| {
            let found = state.parts.iter().find(|part| part.name == name);
            found.map(|part| &part.payload).ok_or_else(|| RestoreError::Value {
                device: name.to_owned(),
                what: "no state at all".to_owned(),
            })
        };
        self.ram().check(part("memory")?)?;
        self.chips.restore(part("chips")?)?;
        for vcpu in &self.vcpus {
            let payload = part(&vcpu_name(vcpu))?;
            vcpu.with(|vcpu| vcpu.restore(payload))?;
        }
        for (name, device) in self.devices() {
            match device.declare() {
                Declared::Stateless => {}
                Declared::State(_) | Declared::NotMovable(_) => {
                    device.restore(part(&device_name(name))?)?;
                }
            }
        }
        Ok(())
    }
}

fn vcpu_name(vcpu: &VcpuThread) -> String {
    format!("vcpu/{}", vcpu.index())
}

fn device_name(name: &str) -> String {
    format!("device/{name}")
}
