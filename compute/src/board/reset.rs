//! The ways by which a guest resets the machine: the reset register at 0xCF9, the keyboard controller's pulse at 0x64,
//! the fast reset of port 0x92.
//!
//! There is no keyboard: 0x60 and 0x64 read as all ones, which firmware and Linux take for "no controller" without
//! waiting for one.

use crate::bus::PortDevice;
use crate::doorbell::{Doorbell, Ring};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// The reset register's port, in the middle of those of PCI configuration.
pub const RESET_PORT: u16 = 0xcf9;
/// The value that resets, as the FADT says.
pub const RESET_VALUE: u8 = 6;
const RESET_CPU: u8 = 1 << 2;
const WRITABLE: u8 = 0b1010;

/// The reset register.
#[derive(Debug)]
pub struct ResetControl {
    control: AtomicU8,
    bell: Arc<Doorbell>,
}

impl ResetControl {
    /// The register, which rings `bell`.
    #[must_use]
    pub fn new(bell: Arc<Doorbell>) -> Self {
        Self { control: AtomicU8::new(0), bell }
    }
}

impl PortDevice for ResetControl {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        if let [byte] = data {
            *byte = self.control.load(Ordering::Relaxed);
        }
    }

    /// Wider accesses belong to nobody: the register is one byte.
    fn write(&self, _offset: u64, data: &[u8]) {
        if let [byte] = data {
            self.control.store(byte & WRITABLE, Ordering::Relaxed);
            if byte & RESET_CPU != 0 {
                self.bell.ring(Ring::Reset);
            }
        }
    }
}

/// The keyboard controller's data port.
pub const KEYBOARD_PORT: u16 = 0x60;
/// The keyboard controller's command port.
pub const KEYBOARD_COMMAND_PORT: u16 = 0x64;

/// The data port of a controller that is not there.
#[derive(Debug)]
pub struct KeyboardData;

impl PortDevice for KeyboardData {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

/// The command port, of which only the pulses are left.
#[derive(Debug)]
pub struct KeyboardController(pub Arc<Doorbell>);

impl PortDevice for KeyboardController {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    /// Commands 0xF0 to 0xFF pulse the output lines whose bits are zero; line 0 is
    /// the processor's reset.
    fn write(&self, _offset: u64, data: &[u8]) {
        if let [command @ 0xf0..=0xff, ..] = data
            && command & 1 == 0
        {
            self.0.ring(Ring::Reset);
        }
    }
}

/// Port 0x92: the A20 gate, always open, and the fast reset.
#[derive(Debug)]
pub struct FastReset(pub Arc<Doorbell>);

/// Its port.
pub const FAST_RESET_PORT: u16 = 0x92;

impl PortDevice for FastReset {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        if let Some((first, rest)) = data.split_first_mut() {
            *first = 1 << 1;
            rest.fill(0xff);
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data.first().is_some_and(|byte| byte & 1 != 0) {
            self.0.ring(Ring::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_resets_and_nothing_else_does() {
        let bell = Arc::new(Doorbell::new().unwrap());
        let rang = || bell.take().contains(Ring::Reset);
        let control = ResetControl::new(bell.clone());
        control.write(0, &[2]);
        control.write(0, &[6, 6]);
        assert!(!rang());
        control.write(0, &[RESET_VALUE]);
        assert!(rang());
        let keyboard = KeyboardController(bell.clone());
        keyboard.write(0, &[0xd1]);
        keyboard.write(0, &[0xff]);
        assert!(!rang());
        keyboard.write(0, &[0xfe]);
        assert!(rang());
        let fast = FastReset(bell.clone());
        fast.write(0, &[2]);
        assert!(!rang());
        fast.write(0, &[3]);
        assert!(rang());
    }
}
