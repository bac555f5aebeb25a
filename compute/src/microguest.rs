//! Guests of a few hundred instructions on a real machine: what the tests of this crate run on `/dev/kvm`.
//!
//! A test assembles code, [`MicroGuest::load`]s it, [`MicroGuest::start`]s it and watches what comes out of the serial
//! port, of guest memory or of the doorbell. The machine is the production one: KVM, board and vCPU threads. Where there
//! is no KVM, [`host`] says so and the test returns: it is skipped, not passed.
//!
//! In long mode the first 4 GiB are mapped one to one; the stack is at 0x8FF0; code goes to [`CODE`] or above 1 MiB.

use crate::board::clock::HostClock;
use crate::console::output::{Cursor, KEPT, Output, Writer};
use crate::doorbell::Ring;
use crate::kvm::host::Host;
use crate::machine::{Machine, MachineError, MachineSpec};
use crate::memory::{GuestRam, MemoryError};
use crate::vcpu::registers::Entry;
use bixi_api::compute::PageSize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryError};

/// Where real-mode code goes: segment 0x1000.
pub const CODE: u64 = 0x1_0000;
/// Long enough for any micro-guest on any machine; a test that waits this long has failed.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// KVM, or `None` after saying on the standard error stream why the calling test is skipped.
#[must_use]
pub fn host() -> Option<Host> {
    match Host::open() {
        Ok(host) => Some(host),
        Err(error) => {
            eprintln!("SKIPPED: {error}");
            None
        }
    }
}

/// Why a micro-guest cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MicroError {
    /// No machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// An address that is not memory.
    #[error(transparent)]
    Access(#[from] GuestMemoryError),
}

/// A small guest.
#[derive(Debug)]
pub struct MicroGuest {
    /// Its machine.
    pub machine: Machine,
    output: Arc<Output>,
}

impl MicroGuest {
    /// A machine of `vcpus` vCPUs and `memory` bytes, parked at power-on.
    ///
    /// # Errors
    /// The system refuses.
    pub fn new(host: &Host, vcpus: u8, memory: u64) -> Result<Self, MicroError> {
        let output = Arc::new(Output::default());
        let spec = MachineSpec {
            vcpus,
            ram: Arc::new(GuestRam::new(memory, PageSize::Small)?),
            console: Writer(Some(Arc::clone(&output))),
            clock: Arc::new(HostClock),
        };
        Ok(Self { machine: Machine::build(host, spec)?, output })
    }

    /// Puts bytes into guest memory.
    ///
    /// # Errors
    /// There is no memory at that address.
    pub fn load(&self, address: u64, bytes: &[u8]) -> Result<(), MicroError> {
        Ok(self.machine.ram().memory().write_slice(bytes, GuestAddress(address))?)
    }

    /// Reads a value from guest memory.
    ///
    /// # Errors
    /// There is no memory at that address.
    pub fn peek<T: ByteValued>(&self, address: u64) -> Result<T, MicroError> {
        Ok(self.machine.ram().memory().read_obj(GuestAddress(address))?)
    }

    /// Writes a value into guest memory.
    ///
    /// # Errors
    /// There is no memory at that address.
    pub fn poke<T: ByteValued>(&self, address: u64, value: T) -> Result<(), MicroError> {
        Ok(self.machine.ram().memory().write_obj(value, GuestAddress(address))?)
    }

    /// Sets the vCPUs up at `entry` and lets them run.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn start(&self, entry: Entry) -> Result<(), MicroError> {
        self.machine.boot(&entry)?;
        self.machine.run();
        Ok(())
    }

    /// Starts the first vCPU in real mode at [`CODE`].
    ///
    /// # Errors
    /// KVM refuses.
    pub fn start_real(&self) -> Result<(), MicroError> {
        self.start(Entry::Real { segment: (CODE >> 4) as u16 })
    }

    /// Starts the first vCPU in 64-bit mode at `entry`.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn start_long(&self, entry: u64) -> Result<(), MicroError> {
        self.start(Entry::Long { entry, boot_params: 0 })
    }

    /// All that the guest has written to the serial port, up to what the console keeps.
    #[must_use]
    pub fn output(&self) -> Vec<u8> {
        let mut all = vec![0; KEPT];
        let len = self.output.read(&mut Cursor::default(), &mut all);
        all.truncate(len);
        all
    }

    /// Waits until `condition` holds. Returns whether it did in time.
    #[must_use]
    pub fn wait(&self, mut condition: impl FnMut(&Self) -> bool) -> bool {
        let deadline = Instant::now() + DEADLINE;
        while !condition(self) {
            if Instant::now() > deadline {
                return false;
            }
            // A poll, since the guest signals nobody when it writes memory.
            std::thread::sleep(Duration::from_micros(200));
        }
        true
    }

    /// Waits until the guest has written `text` to the serial port. Returns whether it did in time.
    #[must_use]
    pub fn wait_output(&self, text: &[u8]) -> bool {
        self.wait(|guest| guest.output().windows(text.len()).any(|window| window == text))
    }

    /// Waits until `ring` has rung, and takes it. Returns whether it did in time.
    #[must_use]
    pub fn wait_ring(&self, ring: Ring) -> bool {
        let deadline = Instant::now() + DEADLINE;
        let bell = &self.machine.around().bell;
        while !bell.take().contains(ring) {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        true
    }
}
