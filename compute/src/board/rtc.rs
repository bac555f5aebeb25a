//! The real-time clock and its CMOS memory at ports 0x70 and 0x71, line 8: an MC146818.
//!
//! It tells the host's real time plus what the guest has set it off by. Time registers are computed when read; while the
//! guest holds the SET bit they are memory, and time is taken from them when it lets go. Flags of register C are brought
//! up to date when somebody looks, and a guest that enables an interrupt is called by the driver's timer
//! ([`Timed`]); a periodic rate above the host's timer resolution loses interrupts, as on any busy PC.
//!
//! Memory sizes are where firmware looks for them: 0x15–0x18, 0x30–0x31, 0x34–0x35, 0x5B–0x5D; 0x5F has the number of
//! vCPUs minus one.

use super::calendar::Calendar;
use super::clock::{Clock, Timed};
use crate::bus::PortDevice;
use crate::device::{Device, RestoreError};
use crate::doorbell::{Doorbell, Ring};
use crate::interrupts::Line;
use bixi_api::compute::DeviceDescription;
use bixi_api::state::{Declared, Movable, Payload};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The kind of this device's state.
pub const KIND: &str = "rtc-mc146818";
const VERSION: u32 = 1;

/// The index port; data is the port after it.
pub const PORT: u16 = 0x70;
/// The interrupt line.
pub const LINE: u32 = 8;
/// Where the century is, as the FADT says.
pub const CENTURY: u8 = 0x32;

const SIZE: usize = 128;
const NS_PER_S: u64 = 1_000_000_000;

const SECONDS: u8 = 0;
const SECONDS_ALARM: u8 = 1;
const MINUTES: u8 = 2;
const MINUTES_ALARM: u8 = 3;
const HOURS: u8 = 4;
const HOURS_ALARM: u8 = 5;
const WEEKDAY: u8 = 6;
const DAY: u8 = 7;
const MONTH: u8 = 8;
const YEAR: u8 = 9;
const REG_A: u8 = 0xa;
const REG_B: u8 = 0xb;
const REG_C: u8 = 0xc;
const REG_D: u8 = 0xd;

/// Update in progress: the last 244 µs of each second.
const UPDATING: u8 = 1 << 7;
const UPDATE_NS: u64 = 244_000;
/// Register B.
const SET: u8 = 1 << 7;
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
/// Bits 6 to 4 of B enable the interrupts whose flags are the same bits of C.
const FLAGS: u8 = 7 << 4;
const PERIODIC: u8 = 1 << 6;
const ALARM: u8 = 1 << 5;
const UPDATE_ENDED: u8 = 1 << 4;
const INTERRUPT: u8 = 1 << 7;
/// Register D: the battery is good.
const VALID: u8 = 1 << 7;
/// No two calendars that the registers can hold are further apart.
const MAX_OFFSET_S: u64 = 1 << 40;
/// An alarm byte from here on matches every value.
const ANY: u8 = 0xc0;

/// The clock's state as it travels.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RtcState {
    /// All 128 bytes, time registers as the guest last wrote them.
    #[prost(bytes = "vec", tag = "1")]
    pub memory: Vec<u8>,
    /// The selected register.
    #[prost(uint32, tag = "2")]
    pub index: u32,
    /// Seconds by which the guest has set it off the host's real time.
    #[prost(sint64, tag = "3")]
    pub offset_s: i64,
}

struct Registers {
    memory: [u8; SIZE],
    index: u8,
    /// Seconds by which the guest's clock is off the host's.
    offset_s: i64,
    /// Real time up to which flags are accounted for.
    seen_ns: u64,
    /// The level that the line has.
    level: bool,
}

/// The real-time clock.
pub struct Rtc {
    registers: Mutex<Registers>,
    clock: Arc<dyn Clock>,
    line: Arc<dyn Line>,
    bell: Arc<Doorbell>,
}

impl fmt::Debug for Rtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let registers = self.lock();
        f.debug_struct("Rtc")
            .field("index", &registers.index)
            .field("offset_s", &registers.offset_s)
            .finish_non_exhaustive()
    }
}

impl Rtc {
    /// A clock that tells the time of `clock` and says that there are `low` and `high` bytes of memory below and above
    /// 4 GiB, and `vcpus` vCPUs.
    #[must_use]
    pub fn new(
        clock: Arc<dyn Clock>,
        line: Arc<dyn Line>,
        bell: Arc<Doorbell>,
        (low, high): (u64, u64),
        vcpus: u8,
    ) -> Self {
        let mut memory = [0; SIZE];
        memory[usize::from(REG_A)] = 0x26;
        memory[usize::from(REG_B)] = HOURS_24;
        set_sizes(&mut memory, low, high);
        memory[0x5f] = vcpus.saturating_sub(1);
        let seen_ns = clock.realtime_ns();
        let registers = Registers { memory, index: 0, offset_s: 0, seen_ns, level: false };
        Self { registers: Mutex::new(registers), clock, line, bell }
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the flags of what happened since the last look, and the line.
    fn settle(&self, registers: &mut Registers) {
        let now = self.clock.realtime_ns();
        let before = std::mem::replace(&mut registers.seen_ns, now);
        let mut flags = 0;
        if registers.memory[usize::from(REG_B)] & SET == 0 && before / NS_PER_S < now / NS_PER_S {
            flags |= UPDATE_ENDED;
            // An alarm matches one of the seconds that began since.
            if registers.next_alarm_s(before).is_some_and(|second| second <= now / NS_PER_S) {
                flags |= ALARM;
            }
        }
        if let Some(period) = registers.period_ns()
            && before / period < now / period
        {
            flags |= PERIODIC;
        }
        registers.memory[usize::from(REG_C)] |= flags;
        self.set_line(registers);
    }

    fn set_line(&self, registers: &mut Registers) {
        let enabled = registers.memory[usize::from(REG_B)];
        let flags = &mut registers.memory[usize::from(REG_C)];
        let level = *flags & enabled & FLAGS != 0;
        *flags = (*flags & FLAGS) | if level { INTERRUPT } else { 0 };
        if level != registers.level {
            registers.level = level;
            self.line.set(level);
        }
    }

    fn read_data(&self) -> u8 {
        let mut registers = self.lock();
        let index = registers.index;
        match index {
            SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY => {
                if registers.is_set() {
                    return registers.memory[usize::from(index)];
                }
                let now = registers.now(self.clock.realtime_ns());
                registers.encode(index, &now)
            }
            REG_A => {
                let in_second = self.clock.realtime_ns() % NS_PER_S;
                let updating = !registers.is_set() && in_second >= NS_PER_S - UPDATE_NS;
                registers.memory[usize::from(REG_A)] | if updating { UPDATING } else { 0 }
            }
            REG_C => {
                self.settle(&mut registers);
                let flags = std::mem::take(&mut registers.memory[usize::from(REG_C)]);
                self.set_line(&mut registers);
                drop(registers);
                // The next interrupt of the same kind has to be waited for again.
                self.bell.ring(Ring::Timers);
                flags
            }
            REG_D => VALID,
            _ => registers.memory[usize::from(index)],
        }
    }

    fn write_data(&self, value: u8) {
        let mut registers = self.lock();
        let index = registers.index;
        let real_ns = self.clock.realtime_ns();
        match index {
            SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY => {
                if !registers.is_set() {
                    registers.hold(real_ns);
                }
                registers.memory[usize::from(index)] = value;
                if !registers.is_set() {
                    registers.let_go(real_ns);
                }
            }
            REG_A => registers.memory[usize::from(REG_A)] = value & !UPDATING,
            REG_B => self.write_b(&mut registers, value, real_ns),
            // These cannot be written.
            REG_C | REG_D => {}
            _ => registers.memory[usize::from(index)] = value,
        }
        if matches!(index, REG_A | REG_B | SECONDS_ALARM | MINUTES_ALARM | HOURS_ALARM) {
            self.settle(&mut registers);
            let armed = registers.memory[usize::from(REG_B)] & FLAGS != 0;
            drop(registers);
            if armed {
                self.bell.ring(Ring::Timers);
            }
        }
    }

    fn write_b(&self, registers: &mut Registers, value: u8, real_ns: u64) {
        let was_set = registers.is_set();
        if !was_set && value & SET != 0 {
            // The time as it stands, in the format in force before this write.
            registers.hold(real_ns);
        }
        registers.memory[usize::from(REG_B)] = value;
        if was_set && value & SET == 0 {
            registers.let_go(real_ns);
        }
    }
}

impl Registers {
    fn is_set(&self) -> bool {
        self.memory[usize::from(REG_B)] & SET != 0
    }

    fn now(&self, real_ns: u64) -> Calendar {
        let seconds = i64::try_from(real_ns / NS_PER_S).unwrap_or(i64::MAX);
        Calendar::from_seconds(seconds.saturating_add(self.offset_s))
    }

    /// Writes the present time into the time registers.
    fn hold(&mut self, real_ns: u64) {
        let now = self.now(real_ns);
        for index in [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY] {
            self.memory[usize::from(index)] = self.encode(index, &now);
        }
    }

    /// Takes the present time from the time registers.
    fn let_go(&mut self, real_ns: u64) {
        let field = |index: u8| self.decode(self.memory[usize::from(index)]);
        let calendar = Calendar {
            year: u32::from(field(CENTURY)) * 100 + u32::from(field(YEAR)),
            month: field(MONTH),
            day: field(DAY),
            weekday: 0,
            hour: self.decode_hour(self.memory[usize::from(HOURS)]),
            minute: field(MINUTES),
            second: field(SECONDS),
        };
        let real_s = i64::try_from(real_ns / NS_PER_S).unwrap_or(i64::MAX);
        self.offset_s = calendar.to_seconds().saturating_sub(real_s);
    }

    fn encode(&self, index: u8, time: &Calendar) -> u8 {
        match index {
            SECONDS => self.encode_number(time.second),
            MINUTES => self.encode_number(time.minute),
            HOURS => self.encode_hour(time.hour),
            WEEKDAY => self.encode_number(time.weekday),
            DAY => self.encode_number(time.day),
            MONTH => self.encode_number(time.month),
            YEAR => self.encode_number((time.year % 100) as u8),
            _ => self.encode_number((time.year / 100 % 100) as u8),
        }
    }

    fn is_binary(&self) -> bool {
        self.memory[usize::from(REG_B)] & BINARY != 0
    }

    fn encode_number(&self, value: u8) -> u8 {
        if self.is_binary() { value } else { ((value / 10 % 10) << 4) | (value % 10) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.memory[usize::from(REG_B)] & HOURS_24 != 0 {
            return self.encode_number(hour);
        }
        let afternoon = if hour >= 12 { 0x80 } else { 0 };
        self.encode_number(if hour.is_multiple_of(12) { 12 } else { hour % 12 }) | afternoon
    }

    fn decode(&self, value: u8) -> u8 {
        if self.is_binary() { value } else { (value >> 4) * 10 + (value & 0xf) }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.memory[usize::from(REG_B)] & HOURS_24 != 0 {
            return self.decode(value);
        }
        let hour = self.decode(value & 0x7f) % 12;
        if value & 0x80 != 0 { hour + 12 } else { hour }
    }

    /// The first second after `real_ns`, since 1970 in the host's time, at which the alarm matches.
    fn next_alarm_s(&self, real_ns: u64) -> Option<u64> {
        let field = |index: u8| {
            let byte = self.memory[usize::from(index)];
            let value =
                if index == HOURS_ALARM { self.decode_hour(byte) } else { self.decode(byte) };
            (byte < ANY).then_some(value)
        };
        let (hour, minute, second) =
            (field(HOURS_ALARM), field(MINUTES_ALARM), field(SECONDS_ALARM));
        let impossible = |field: Option<u8>, limit: u8| field.is_some_and(|value| value >= limit);
        if impossible(hour, 24) || impossible(minute, 60) || impossible(second, 60) {
            return None;
        }
        let first = i64::try_from(real_ns / NS_PER_S).ok()?.checked_add(self.offset_s)? + 1;
        let mut at = first;
        let matches = |field: Option<u8>, now: u8| field.is_none_or(|wanted| wanted == now);
        // Skips to the next hour, minute or second: fewer than 24 + 60 + 60 steps reach a match within a day.
        for _ in 0..200 {
            let time = Calendar::from_seconds(at);
            if !matches(hour, time.hour) {
                at += 3600 - at.rem_euclid(3600);
            } else if !matches(minute, time.minute) {
                at += 60 - at.rem_euclid(60);
            } else if !matches(second, time.second) {
                at += 1;
            } else {
                return u64::try_from(at.checked_sub(self.offset_s)?).ok();
            }
        }
        None
    }

    /// The period of the periodic interrupt, or `None` while it is off.
    fn period_ns(&self) -> Option<u64> {
        let ticks = match self.memory[usize::from(REG_A)] & 0xf {
            0 => return None,
            // The two fastest settings repeat later ones.
            rate @ 1..=2 => 1_u64 << (rate + 6),
            rate => 1 << (rate - 1),
        };
        Some(ticks * NS_PER_S / 32_768)
    }
}

fn set_sizes(memory: &mut [u8; SIZE], low: u64, high: u64) {
    let mut put = |at: usize, bytes: &[u8]| memory[at..at + bytes.len()].copy_from_slice(bytes);
    let bounded = |value: u64| u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes();
    put(0x15, &640_u16.to_le_bytes());
    let above_1m_in_kib = bounded((low.saturating_sub(1 << 20) >> 10).min(0xfc00));
    put(0x17, &above_1m_in_kib);
    put(0x30, &above_1m_in_kib);
    put(0x34, &bounded(low.saturating_sub(16 << 20) >> 16));
    put(0x5b, &u32::try_from(high >> 16).unwrap_or(u32::MAX).to_le_bytes()[..3]);
}

impl PortDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (register, byte) in (offset..2).zip(data) {
            // The index port cannot be read on a PC.
            *byte = if register == 1 { self.read_data() } else { 0xff };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (register, byte) in (offset..2).zip(data) {
            match register {
                // The highest bit masks the NMI, of which there is none.
                0 => self.lock().index = byte & 0x7f,
                _ => self.write_data(*byte),
            }
        }
    }
}

impl Timed for Rtc {
    fn next_timer_ns(&self) -> Option<u64> {
        let registers = self.lock();
        let enabled = registers.memory[usize::from(REG_B)] & FLAGS;
        // What is flagged already interrupts again only after register C was read.
        let waiting = enabled & !registers.memory[usize::from(REG_C)];
        let now = self.clock.realtime_ns();
        let mut next: Option<u64> = None;
        let mut sooner = |at: u64| next = Some(next.map_or(at, |next| next.min(at)));
        if waiting & UPDATE_ENDED != 0 && !registers.is_set() {
            sooner((now / NS_PER_S + 1) * NS_PER_S);
        }
        if waiting & ALARM != 0
            && !registers.is_set()
            && let Some(second) = registers.next_alarm_s(now)
        {
            sooner(second.saturating_mul(NS_PER_S));
        }
        if waiting & PERIODIC != 0
            && let Some(period) = registers.period_ns()
        {
            sooner((now / period + 1) * period);
        }
        let in_ns = next?.saturating_sub(now);
        Some(self.clock.monotonic_ns() + in_ns)
    }

    fn on_timer(&self) {
        self.settle(&mut self.lock());
    }
}

impl Movable for Rtc {
    fn declare(&self) -> Declared {
        let registers = self.lock();
        let state = RtcState {
            memory: registers.memory.to_vec(),
            index: u32::from(registers.index),
            offset_s: registers.offset_s,
        };
        Declared::State(Payload::new(KIND, VERSION, &state))
    }
}

impl Device for Rtc {
    fn describe(&self) -> Option<DeviceDescription> {
        None
    }

    /// A battery keeps time and memory; interrupts go off.
    fn reset(&self) {
        let mut registers = self.lock();
        registers.memory[usize::from(REG_B)] &= !(FLAGS | SET);
        registers.memory[usize::from(REG_C)] = 0;
        registers.index = 0;
        self.set_line(&mut registers);
    }

    fn restore(&self, payload: &Payload) -> Result<(), RestoreError> {
        let state: RtcState = payload.read(KIND, VERSION)?;
        let wrong =
            |what: &str| RestoreError::Value { device: KIND.to_owned(), what: what.to_owned() };
        let memory: [u8; SIZE] =
            state.memory.try_into().map_err(|_| wrong("another size of memory"))?;
        if state.offset_s.unsigned_abs() > MAX_OFFSET_S {
            return Err(wrong("an impossible offset"));
        }
        let index = u8::try_from(state.index).ok().filter(|index| usize::from(*index) < SIZE);
        let mut registers = self.lock();
        registers.index = index.ok_or_else(|| wrong("an impossible index"))?;
        registers.memory = memory;
        registers.offset_s = state.offset_s;
        registers.seen_ns = self.clock.realtime_ns();
        self.set_line(&mut registers);
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
        rtc: Rtc,
    }

    /// 2023-11-14 22:13:20, a Tuesday.
    fn rig() -> Rig {
        let clock = Arc::new(TestClock::at(1_700_000_000));
        let line = Arc::new(TestLine::default());
        let bell = Arc::new(Doorbell::new().unwrap());
        let sizes = (3 << 30, 5 << 30);
        let rtc = Rtc::new(clock.clone(), line.clone(), bell, sizes, 4);
        Rig { clock, line, rtc }
    }

    impl Rig {
        fn get(&self, index: u8) -> u8 {
            self.rtc.write(0, &[index]);
            let mut data = [0];
            self.rtc.read(1, &mut data);
            data[0]
        }

        fn set(&self, index: u8, value: u8) {
            self.rtc.write(0, &[index]);
            self.rtc.write(1, &[value]);
        }

        fn time(&self) -> [u8; 8] {
            [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS].map(|r| self.get(r))
        }
    }

    #[test]
    fn it_tells_the_hosts_time_in_every_format() {
        let rig = rig();
        assert_eq!(rig.time(), [0x20, 0x23, 0x11, 0x14, 3, 0x22, 0x13, 0x20]);
        rig.set(REG_B, HOURS_24 | BINARY);
        assert_eq!(rig.time(), [20, 23, 11, 14, 3, 22, 13, 20]);
        rig.set(REG_B, 0);
        assert_eq!(rig.get(HOURS), 0x80 | 0x10);
        rig.clock.advance(2 * 3600 * NS_PER_S);
        assert_eq!(rig.get(HOURS), 0x12, "midnight is 12 in the morning");
    }

    #[test]
    fn the_guest_sets_it_and_it_goes_on_from_there() {
        let rig = rig();
        rig.set(REG_B, HOURS_24 | SET);
        let wanted = [0x20, 0x30, 0x02, 0x28, 5, 0x23, 0x59, 0x58];
        let order = [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS];
        order.iter().zip(wanted).for_each(|(register, value)| rig.set(*register, value));
        rig.clock.advance(9 * NS_PER_S);
        assert_eq!(rig.time(), wanted, "it stands still while it is set");
        rig.set(REG_B, HOURS_24);
        rig.clock.advance(3 * NS_PER_S);
        assert_eq!(rig.time(), [0x20, 0x30, 0x03, 0x01, 6, 0, 0, 1]);
        let Declared::State(payload) = rig.rtc.declare() else { panic!("movable") };
        let other = self::rig();
        other.clock.advance(12 * NS_PER_S);
        other.rtc.restore(&payload).unwrap();
        assert_eq!(other.time(), rig.time());
    }

    #[test]
    fn an_update_in_progress_shows_at_the_end_of_a_second() {
        let rig = rig();
        assert_eq!(rig.get(REG_A) & UPDATING, 0);
        rig.clock.advance(NS_PER_S - UPDATE_NS);
        assert_eq!(rig.get(REG_A) & UPDATING, UPDATING);
        rig.clock.advance(UPDATE_NS);
        assert_eq!(rig.get(REG_A) & UPDATING, 0);
        assert_eq!(rig.get(REG_D), VALID);
    }

    #[test]
    fn an_alarm_interrupts_at_its_second_and_not_before() {
        let rig = rig();
        rig.set(HOURS_ALARM, 0x22);
        rig.set(MINUTES_ALARM, 0x15);
        rig.set(SECONDS_ALARM, 0x05);
        rig.get(REG_C);
        rig.set(REG_B, HOURS_24 | ALARM);
        let wait = rig.rtc.next_timer_ns().unwrap() - rig.clock.monotonic_ns();
        assert_eq!(wait, 105 * NS_PER_S);
        rig.clock.advance(wait - 1);
        rig.rtc.on_timer();
        assert!(!rig.line.level());
        rig.clock.advance(1);
        rig.rtc.on_timer();
        assert!(rig.line.level());
        assert_eq!(rig.rtc.next_timer_ns(), None, "flagged already");
        assert_eq!(rig.get(REG_C), INTERRUPT | FLAGS, "the other two are flagged, not enabled");
        assert!(!rig.line.level());
        assert_eq!(rig.line.rises(), 1);
    }

    #[test]
    fn update_and_periodic_interrupts_come_at_their_rates() {
        let rig = rig();
        rig.set(REG_B, HOURS_24 | UPDATE_ENDED);
        rig.clock.advance(NS_PER_S / 2);
        let wait = rig.rtc.next_timer_ns().unwrap() - rig.clock.monotonic_ns();
        assert_eq!(wait, NS_PER_S / 2);
        rig.set(REG_B, HOURS_24 | PERIODIC);
        assert!(rig.line.level(), "what was flagged before counts");
        rig.get(REG_C);
        let wait = rig.rtc.next_timer_ns().unwrap() - rig.clock.monotonic_ns();
        assert!(wait <= NS_PER_S / 1024 + 1, "{wait}");
        rig.clock.advance(wait);
        rig.rtc.on_timer();
        assert_eq!(rig.get(REG_C) & (INTERRUPT | PERIODIC), INTERRUPT | PERIODIC);
        rig.set(HOURS_ALARM, 0x77);
        rig.set(REG_B, HOURS_24 | ALARM);
        assert_eq!(rig.rtc.next_timer_ns(), None, "no such hour comes");
    }

    #[test]
    fn memory_sizes_are_where_firmware_looks() {
        let rig = rig();
        let word = |at| u16::from_le_bytes([rig.get(at), rig.get(at + 1)]);
        assert_eq!((word(0x15), word(0x17), word(0x30)), (640, 0xfc00, 0xfc00));
        assert_eq!(u64::from(word(0x34)) << 16, (3 << 30) - (16 << 20));
        let high = u64::from(word(0x5b)) | u64::from(rig.get(0x5d)) << 16;
        assert_eq!((high << 16, rig.get(0x5f)), (5 << 30, 3));
    }
}
