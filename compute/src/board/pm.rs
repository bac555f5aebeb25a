//! The power-management block of PIIX4: PM1 event and control registers, the PM timer, GPE0.
//!
//! Ports, as the board's frozen version has them: PM1 status 0xB000, enable 0xB002, control 0xB004, timer 0xB008 (24 bits
//! at 3.579545 MHz), GPE0 status 0xAFE0 and enable 0xAFE2. An enabled event raises the SCI, line 9, which stays up until
//! the guest clears the status bit. There is no legacy mode: SCI_EN reads as one always.
//!
//! Registers may be accessed in any width and alignment. Invariant: the line's level is `status & enable != 0` whenever
//! the lock is free.

use super::clock::{Clock, Timed};
use crate::bus::PortDevice;
use crate::device::{Device, RestoreError};
use crate::doorbell::{Doorbell, Ring};
use crate::interrupts::Line;
use crate::log_limit::LogLimit;
use bixi_api::compute::DeviceDescription;
use bixi_api::state::{Declared, Movable, Payload};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The kind of this device's state.
pub const KIND: &str = "piix4-pm";
const VERSION: u32 = 1;

/// The first port of the PM block.
pub const PM_BASE: u16 = 0xb000;
/// Ports of the PM block that PIIX4 decodes.
pub const PM_LEN: u16 = 64;
/// The first port of the general-purpose event block.
pub const GPE_BASE: u16 = 0xafe0;
/// Its ports: two of status, two of enable.
pub const GPE_LEN: u16 = 4;
/// The system control interrupt.
pub const SCI: u32 = 9;

/// Ticks of the PM timer per second.
pub const TIMER_HZ: u64 = 3_579_545;
const TIMER_BITS: u32 = 24;
const NS_PER_S: u128 = 1_000_000_000;

const STATUS: u64 = 0;
const ENABLE: u64 = 2;
const CONTROL: u64 = 4;
const TIMER: u64 = 8;

/// PM1 status and enable bits.
const TIMER_CARRY: u16 = 1 << 0;
const GLOBAL_LOCK: u16 = 1 << 5;
const POWER_BUTTON: u16 = 1 << 8;
const RTC_ALARM: u16 = 1 << 10;
const STATUS_BITS: u16 =
    TIMER_CARRY | (1 << 4) | GLOBAL_LOCK | POWER_BUTTON | RTC_ALARM | (1 << 15);
const ENABLE_BITS: u16 = TIMER_CARRY | GLOBAL_LOCK | POWER_BUTTON | RTC_ALARM;

/// PM1 control bits.
const SCI_ENABLED: u16 = 1 << 0;
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_ENABLE: u16 = 1 << 13;
/// Bits that stay as written: bus-master reload and sleep type.
const CONTROL_BITS: u16 = (1 << 1) | (7 << SLEEP_TYPE_SHIFT);
/// The sleep type of S5, as the DSDT says.
pub const SLEEP_TYPE_OFF: u16 = 0;

/// The block's state as it travels.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PmState {
    /// PM1 status.
    #[prost(uint32, tag = "1")]
    pub status: u32,
    /// PM1 enable.
    #[prost(uint32, tag = "2")]
    pub enable: u32,
    /// PM1 control.
    #[prost(uint32, tag = "3")]
    pub control: u32,
    /// Nanoseconds for which the PM timer had run.
    #[prost(uint64, tag = "4")]
    pub timer_ns: u64,
    /// GPE0 status.
    #[prost(uint32, tag = "5")]
    pub gpe_status: u32,
    /// GPE0 enable.
    #[prost(uint32, tag = "6")]
    pub gpe_enable: u32,
    /// Real time when this was saved, in nanoseconds since 1970: the timer has run on since.
    #[prost(uint64, tag = "7")]
    pub realtime_ns: u64,
}

#[derive(Debug, Default)]
struct Registers {
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u16,
    gpe_enable: u16,
    /// When the timer was zero, on the monotonic clock; wraps below zero after a move.
    timer_zero_ns: u64,
    /// Half periods of the timer that the carry bit has accounted for.
    carries: u64,
    /// The level that the line has.
    level: bool,
}

/// The PM block.
pub struct PowerManagement {
    registers: Mutex<Registers>,
    clock: Arc<dyn Clock>,
    sci: Arc<dyn Line>,
    bell: Arc<Doorbell>,
    limit: LogLimit,
}

impl fmt::Debug for PowerManagement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PowerManagement").field(&*self.lock()).finish()
    }
}

impl PowerManagement {
    /// The block after power-on: it raises `sci` and rings `bell` for power-off.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, sci: Arc<dyn Line>, bell: Arc<Doorbell>) -> Self {
        let registers = Registers { timer_zero_ns: clock.monotonic_ns(), ..Default::default() };
        Self { registers: Mutex::new(registers), clock, sci, bell, limit: LogLimit::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Someone presses the power button: the guest is asked to shut down.
    pub fn press_power_button(&self) {
        let mut registers = self.lock();
        registers.status |= POWER_BUTTON;
        self.settle(&mut registers);
    }

    /// Whether the guest's ACPI driver listens to the power button.
    #[must_use]
    pub fn hears_power_button(&self) -> bool {
        self.lock().enable & POWER_BUTTON != 0
    }

    fn ticks(&self, registers: &Registers) -> u64 {
        let ns = self.clock.monotonic_ns().wrapping_sub(registers.timer_zero_ns);
        (u128::from(ns) * u128::from(TIMER_HZ) / NS_PER_S) as u64
    }

    /// Sets the carry bit if the timer's highest bit has toggled since it was last cleared.
    fn account_timer(&self, registers: &mut Registers) {
        let halves = self.ticks(registers) >> (TIMER_BITS - 1);
        if halves != registers.carries {
            registers.carries = halves;
            registers.status |= TIMER_CARRY;
        }
    }

    /// Brings the line to its level.
    fn settle(&self, registers: &mut Registers) {
        let fixed = registers.status & registers.enable & ENABLE_BITS != 0;
        let general = registers.gpe_status & registers.gpe_enable != 0;
        let level = fixed || general;
        if level != registers.level {
            registers.level = level;
            self.sci.set(level);
        }
    }

    fn read_pm(&self, offset: u64, data: &mut [u8]) {
        let mut registers = self.lock();
        self.account_timer(&mut registers);
        let timer = self.ticks(&registers) as u32 & ((1 << TIMER_BITS) - 1);
        let mut image = [0; 12];
        image[..2].copy_from_slice(&registers.status.to_le_bytes());
        image[2..4].copy_from_slice(&registers.enable.to_le_bytes());
        image[4..6].copy_from_slice(&(registers.control | SCI_ENABLED).to_le_bytes());
        image[8..].copy_from_slice(&timer.to_le_bytes());
        copy_from(&image, offset, data);
        self.settle(&mut registers);
    }

    fn write_pm(&self, offset: u64, data: &[u8]) {
        let mut registers = self.lock();
        self.account_timer(&mut registers);
        for (register, byte) in (offset..).zip(data) {
            match register {
                0..2 => clear_byte(&mut registers.status, register - STATUS, *byte),
                2..4 => set_byte(&mut registers.enable, register - ENABLE, *byte, ENABLE_BITS),
                4..6 => {
                    let mask = CONTROL_BITS | SLEEP_ENABLE;
                    set_byte(&mut registers.control, register - CONTROL, *byte, mask);
                }
                // The timer and what is reserved cannot be written.
                _ => {}
            }
        }
        self.settle(&mut registers);
        let timer_armed = registers.enable & TIMER_CARRY != 0;
        let control = registers.control;
        registers.control &= !SLEEP_ENABLE;
        drop(registers);
        if timer_armed {
            self.bell.ring(Ring::Timers);
        }
        if control & SLEEP_ENABLE != 0 {
            self.sleep(control >> SLEEP_TYPE_SHIFT & 7);
        }
    }

    fn sleep(&self, kind: u16) {
        if kind == SLEEP_TYPE_OFF {
            self.bell.ring(Ring::PowerOff);
        } else if let Some(suppressed) = self.limit.pass() {
            tracing::warn!(kind, suppressed, "the guest asked for a sleep state this board lacks");
        }
    }

    fn read_gpe(&self, offset: u64, data: &mut [u8]) {
        let registers = self.lock();
        let mut image = [0; 4];
        image[..2].copy_from_slice(&registers.gpe_status.to_le_bytes());
        image[2..].copy_from_slice(&registers.gpe_enable.to_le_bytes());
        copy_from(&image, offset, data);
    }

    fn write_gpe(&self, offset: u64, data: &[u8]) {
        let mut registers = self.lock();
        for (register, byte) in (offset..).zip(data) {
            match register {
                0..2 => clear_byte(&mut registers.gpe_status, register, *byte),
                2..4 => set_byte(&mut registers.gpe_enable, register - 2, *byte, u16::MAX),
                _ => {}
            }
        }
        self.settle(&mut registers);
    }
}

/// Copies a register image from `offset` on; what lies behind it reads as zero.
fn copy_from(image: &[u8], offset: u64, data: &mut [u8]) {
    for (register, byte) in (offset..).zip(data) {
        let place = usize::try_from(register).ok();
        *byte = place.and_then(|place| image.get(place)).copied().unwrap_or(0);
    }
}

fn set_byte(register: &mut u16, number: u64, byte: u8, writable: u16) {
    let shift = 8 * (number & 1);
    let mask = 0xff << shift;
    *register = (*register & !mask) | (u16::from(byte) << shift & writable);
}

/// Status bits are cleared by writing ones.
fn clear_byte(register: &mut u16, number: u64, byte: u8) {
    *register &= !(u16::from(byte) << (8 * (number & 1)));
}

/// The part of the block at [`PM_BASE`], as a device on the bus.
#[derive(Debug)]
pub struct PmPorts(pub Arc<PowerManagement>);

impl PortDevice for PmPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // The timer is read most, and often in a loop: nothing else has to be looked at for it.
        if offset == TIMER && data.len() == 4 {
            let ticks = self.0.ticks(&self.0.lock()) as u32;
            data.copy_from_slice(&(ticks & ((1 << TIMER_BITS) - 1)).to_le_bytes());
            return;
        }
        self.0.read_pm(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.write_pm(offset, data);
    }
}

/// The part of the block at [`GPE_BASE`], as a device on the bus.
#[derive(Debug)]
pub struct GpePorts(pub Arc<PowerManagement>);

impl PortDevice for GpePorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read_gpe(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.write_gpe(offset, data);
    }
}

impl Timed for PowerManagement {
    fn next_timer_ns(&self) -> Option<u64> {
        let mut registers = self.lock();
        if registers.enable & TIMER_CARRY == 0 {
            return None;
        }
        self.account_timer(&mut registers);
        let ticks = u128::from(registers.carries + 1) << (TIMER_BITS - 1);
        let ns = (ticks * NS_PER_S).div_ceil(u128::from(TIMER_HZ)) as u64;
        Some(registers.timer_zero_ns.wrapping_add(ns))
    }

    fn on_timer(&self) {
        let mut registers = self.lock();
        self.account_timer(&mut registers);
        self.settle(&mut registers);
    }
}

impl Movable for PowerManagement {
    fn declare(&self) -> Declared {
        let registers = self.lock();
        let state = PmState {
            status: u32::from(registers.status),
            enable: u32::from(registers.enable),
            control: u32::from(registers.control),
            timer_ns: self.clock.monotonic_ns().wrapping_sub(registers.timer_zero_ns),
            gpe_status: u32::from(registers.gpe_status),
            gpe_enable: u32::from(registers.gpe_enable),
            realtime_ns: self.clock.realtime_ns(),
        };
        Declared::State(Payload::new(KIND, VERSION, &state))
    }
}

impl Device for PowerManagement {
    fn describe(&self) -> Option<DeviceDescription> {
        None
    }

    fn reset(&self) {
        let mut registers = self.lock();
        let level = registers.level;
        *registers =
            Registers { timer_zero_ns: self.clock.monotonic_ns(), level, ..Default::default() };
        self.settle(&mut registers);
    }

    fn restore(&self, payload: &Payload) -> Result<(), RestoreError> {
        let state: PmState = payload.read(KIND, VERSION)?;
        let word = |value: u32, mask: u16| {
            u16::try_from(value).ok().filter(|value| value & !mask == 0).ok_or_else(|| {
                RestoreError::Value {
                    device: KIND.to_owned(),
                    what: format!("a register of {value:#x}"),
                }
            })
        };
        let passed = self.clock.realtime_ns().saturating_sub(state.realtime_ns);
        let ran = state.timer_ns.wrapping_add(passed);
        let mut registers = self.lock();
        let level = registers.level;
        *registers = Registers {
            status: word(state.status, STATUS_BITS)?,
            enable: word(state.enable, ENABLE_BITS)?,
            control: word(state.control, CONTROL_BITS)?,
            gpe_status: word(state.gpe_status, u16::MAX)?,
            gpe_enable: word(state.gpe_enable, u16::MAX)?,
            timer_zero_ns: self.clock.monotonic_ns().wrapping_sub(ran),
            carries: 0,
            level,
        };
        registers.carries = self.ticks(&registers) >> (TIMER_BITS - 1);
        self.settle(&mut registers);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::clock::test::TestClock;
    use super::*;
    use crate::interrupts::test::TestLine;

    struct Rig {
        clock: Arc<TestClock>,
        line: Arc<TestLine>,
        bell: Arc<Doorbell>,
        pm: Arc<PowerManagement>,
    }

    fn rig() -> Rig {
        let clock = Arc::new(TestClock::at(1_700_000_000));
        let line = Arc::new(TestLine::default());
        let bell = Arc::new(Doorbell::new().unwrap());
        let pm = PowerManagement::new(clock.clone(), line.clone(), bell.clone());
        Rig { clock, line, bell, pm: Arc::new(pm) }
    }

    impl Rig {
        fn read16(&self, offset: u64) -> u16 {
            let mut data = [0; 2];
            PmPorts(self.pm.clone()).read(offset, &mut data);
            u16::from_le_bytes(data)
        }

        fn write16(&self, offset: u64, value: u16) {
            PmPorts(self.pm.clone()).write(offset, &value.to_le_bytes());
        }

        fn timer(&self) -> u32 {
            let mut data = [0; 4];
            PmPorts(self.pm.clone()).read(TIMER, &mut data);
            u32::from_le_bytes(data)
        }
    }

    #[test]
    fn the_timer_counts_24_bits_at_its_rate() {
        let rig = rig();
        assert_eq!(rig.timer(), 0);
        rig.clock.advance(1_000_000_000);
        assert_eq!(rig.timer(), 3_579_545);
        rig.clock.advance(4_000_000_000);
        assert_eq!(rig.timer(), (5 * 3_579_545) & 0xff_ffff);
    }

    #[test]
    fn the_power_button_raises_the_sci_until_it_is_cleared() {
        let rig = rig();
        rig.pm.press_power_button();
        assert!(!rig.line.level(), "not enabled");
        rig.write16(ENABLE, POWER_BUTTON);
        assert!(rig.line.level() && rig.pm.hears_power_button());
        rig.write16(STATUS, TIMER_CARRY);
        assert!(rig.line.level(), "another bit was cleared");
        rig.write16(STATUS, POWER_BUTTON);
        assert!(!rig.line.level());
        assert_eq!(rig.read16(STATUS) & POWER_BUTTON, 0);
    }

    #[test]
    fn only_s5_is_power_off_and_a_byte_suffices() {
        let rig = rig();
        rig.write16(CONTROL, SLEEP_ENABLE | 1 << SLEEP_TYPE_SHIFT);
        assert!(!rig.bell.take().contains(Ring::PowerOff));
        PmPorts(rig.pm.clone()).write(CONTROL + 1, &[(SLEEP_ENABLE >> 8) as u8]);
        assert!(rig.bell.take().contains(Ring::PowerOff));
        assert_eq!(rig.read16(CONTROL), SCI_ENABLED, "sleep enable reads as zero");
    }

    #[test]
    fn the_carry_comes_when_the_highest_bit_toggles() {
        let rig = rig();
        rig.write16(ENABLE, TIMER_CARRY);
        assert!(rig.bell.take().contains(Ring::Timers));
        let at = rig.pm.next_timer_ns().unwrap();
        rig.clock.advance(at - rig.clock.monotonic_ns() - 1_000);
        rig.pm.on_timer();
        assert!(!rig.line.level());
        rig.clock.advance(1_000);
        rig.pm.on_timer();
        assert!(rig.line.level());
        rig.write16(STATUS, TIMER_CARRY);
        assert!(!rig.line.level());
    }

    #[test]
    fn the_state_moves_and_the_timer_runs_on() {
        let rig_a = rig();
        rig_a.write16(ENABLE, POWER_BUTTON);
        rig_a.pm.press_power_button();
        rig_a.clock.advance(2_000_000_000);
        let Declared::State(payload) = rig_a.pm.declare() else { panic!("movable") };
        let rig_b = rig();
        rig_b.clock.advance(3_000_000_000);
        rig_b.pm.restore(&payload).unwrap();
        assert!(rig_b.line.level());
        assert_eq!(rig_b.timer(), 3 * 3_579_545, "the clocks of both hosts agree");
        let wrong = PmState { enable: 0xffff, ..Default::default() };
        let wrong = Payload::new(KIND, VERSION, &wrong);
        assert!(matches!(rig_b.pm.restore(&wrong), Err(RestoreError::Value { .. })));
    }

    #[test]
    fn a_reset_lowers_the_line() {
        let rig = rig();
        rig.write16(ENABLE, POWER_BUTTON);
        rig.pm.press_power_button();
        rig.pm.reset();
        assert!(!rig.line.level());
        assert_eq!((rig.read16(STATUS), rig.read16(ENABLE)), (0, 0));
    }
}
