//! The hierarchy as a guest sees it: through ports, with a scanner like a kernel's.

use super::config::register;
use super::fuzz::{NoPower, Plain};
use super::state::{FunctionState, RootState};
use super::{PciPath, PciRoot, i440fx_1};
use crate::bus::{MemoryBus, PortBus};
use crate::device::Device;
use bixi_api::state::{Declared, Movable, Payload};
use proptest::prelude::*;
use std::fmt::Write;
use std::sync::Arc;

struct Machine {
    ports: Arc<PortBus>,
    memory: Arc<MemoryBus>,
    pci: Arc<PciRoot>,
}

impl Machine {
    fn with(paths: &[&str]) -> Self {
        let (ports, memory) = (Arc::new(PortBus::default()), Arc::new(MemoryBus::default()));
        let pci = i440fx_1::build(
            Arc::clone(&ports),
            Arc::clone(&memory),
            i440fx_1::apertures(40),
            Arc::new(NoPower),
        );
        for path in paths {
            pci.insert(path.parse().unwrap(), Plain::new()).unwrap();
        }
        for (range, device) in pci.config_ports() {
            ports.insert(range, device).unwrap();
        }
        Self { ports, memory, pci }
    }

    fn select(&self, bus: u8, slot: u8, function: u8, register: u8) {
        let devfn = u32::from(slot << 3 | function);
        let address = 1 << 31 | u32::from(bus) << 16 | devfn << 8 | u32::from(register & 0xfc);
        self.ports.write(0xcf8, &address.to_le_bytes());
    }

    fn read(&self, bus: u8, slot: u8, function: u8, register: u8) -> u32 {
        let mut data = [0; 4];
        self.select(bus, slot, function, register);
        self.ports.read(0xcfc, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, bus: u8, slot: u8, register: u8, value: u32) {
        self.select(bus, slot, 0, register);
        self.ports.write(0xcfc, &value.to_le_bytes());
    }

    fn answers(&self, address: u64) -> bool {
        self.memory.read(address, &mut [0; 4])
    }

    /// What `lspci -n` prints, walking bridges as a kernel does.
    fn lspci(&self) -> String {
        let mut listing = String::new();
        self.scan(0, &mut listing);
        listing
    }

    fn scan(&self, bus: u8, listing: &mut String) {
        let mut behind = Vec::new();
        for slot in 0..32 {
            for function in 0..8 {
                let id = self.read(bus, slot, function, 0);
                if id == u32::MAX {
                    continue;
                }
                let class = self.read(bus, slot, function, 8);
                let (vendor, device) = (id & 0xffff, id >> 16);
                write!(listing, "{bus:02x}:{slot:02x}.{function} {:04x}: ", class >> 16).unwrap();
                write!(listing, "{vendor:04x}:{device:04x}").unwrap();
                match class & 0xff {
                    0 => listing.push('\n'),
                    revision => writeln!(listing, " (rev {revision:02x})").unwrap(),
                }
                let header = self.read(bus, slot, function, 0x0c) >> 16 & 0xff;
                if header & 0x7f == 1 {
                    behind.push((self.read(bus, slot, 0, 0x18) >> 8) as u8);
                }
                if function == 0 && header & 0x80 == 0 {
                    break;
                }
            }
        }
        behind.retain(|bus| *bus != 0);
        behind.iter().for_each(|bus| self.scan(*bus, listing));
    }
}

/// The board is frozen: whoever makes this test fail makes guests fail that were started by an earlier release.
#[test]
fn the_board_is_frozen() {
    let machine = Machine::with(&["5", "2/1", "4/1", "4/31"]);
    machine.pci.assign().unwrap();
    let expected = "\
00:00.0 0600: 8086:1237 (rev 02)
00:01.0 0601: 8086:7000
00:01.3 0680: 8086:7113 (rev 03)
00:02.0 0604: 1b36:0001
00:03.0 0604: 1b36:0001
00:04.0 0604: 1b36:0001
00:05.0 0000: 1234:0011
01:01.0 0000: 1234:0011
03:01.0 0000: 1234:0011
03:1f.0 0000: 1234:0011
";
    assert_eq!(machine.lspci(), expected);
    let pm = |register| machine.read(0, 1, 3, register);
    assert_eq!((pm(0x40), pm(0x58), pm(0x80)), (0xb001, 1 << 25, 1));
    assert_eq!(pm(0x3c) & 0xffff, 0x0109);
    assert_eq!(machine.read(0, 1, 0, 0x60), 0x8080_8080);
    assert_eq!(machine.read(0, 0, 0, 0x2c), 0x1100_1af4);
    let windows = |slot| [0x18, 0x1c, 0x20, 0x24, 0x28, 0x2c].map(|r| machine.read(0, slot, 0, r));
    assert_eq!(windows(2), [0x0001_0100, 0xc0c0, 0xc1f0_c000, 0xfff1_0001, 0x80, 0x8f]);
    assert_eq!(windows(4), [0x0003_0300, 0xe0e0, 0xc5f0_c400, 0xfff1_0001, 0xa0, 0xaf]);
    let disks: Vec<_> = i440fx_1::disk_addresses().map(|path| path.to_string()).collect();
    assert_eq!((disks.len(), &*disks[0], &*disks[31], &*disks[61]), (62, "2/1", "3/1", "3/31"));
    let nics: Vec<_> = i440fx_1::nic_addresses().map(|path| path.to_string()).collect();
    assert_eq!((nics.len(), &*nics[0], &*nics[31], &*nics[61]), (62, "4/1", "3/31", "3/1"));
    assert_eq!(i440fx_1::RNG.to_string(), "5");
}

#[test]
fn configuration_cycles_follow_the_ports_rules() {
    let machine = Machine::with(&[]);
    let word = |port: u64, width: usize| {
        let mut data = [0; 4];
        machine.ports.read(port, &mut data[..width]);
        u32::from_le_bytes(data)
    };
    machine.select(0, 0, 0, 0);
    assert_eq!((word(0xcfc, 4), word(0xcfc, 2), word(0xcfe, 2)), (0x1237_8086, 0x8086, 0x1237));
    assert_eq!((word(0xcfc, 1), word(0xcfd, 1), word(0xcff, 1)), (0x86, 0x80, 0x12));
    assert_eq!((word(0xcfd, 2), word(0xcfe, 4)), (0x3780, 0xffff_1237), "a dword is the limit");
    assert_eq!(word(0xcf8, 4), 1 << 31);
    assert_eq!(word(0xcf8, 2), 0xffff, "narrow accesses are not for the latch");
    machine.ports.write(0xcf8, &[0, 0]);
    assert_eq!(word(0xcf8, 4), 1 << 31);
    machine.ports.write(0xcf8, &0u32.to_le_bytes());
    assert_eq!(word(0xcfc, 4), u32::MAX, "cycles are off");
    assert_eq!(machine.read(0, 9, 0, 0), u32::MAX, "nobody there");
    assert_eq!(machine.read(7, 0, 0, 0), u32::MAX, "no such bus");
}

#[test]
fn buses_are_numbered_by_the_guest() {
    let machine = Machine::with(&["3/7"]);
    assert_eq!(machine.read(1, 7, 0, 0), u32::MAX, "no bridge has a number yet");
    machine.write(0, 3, 0x18, 0x00_2a_2a_00);
    assert_eq!(machine.read(0x2a, 7, 0, 0), 0x0011_1234);
    machine.write(0, 3, 0x18, 0x00_ff_10_00);
    assert_eq!(machine.read(0x2a, 7, 0, 0), u32::MAX, "further down there is nothing");
    assert_eq!(machine.read(0x10, 7, 0, 0), 0x0011_1234);
    machine.write(0, 2, 0x18, 0x00_ff_10_00);
    assert_eq!(machine.read(0x10, 7, 0, 0), u32::MAX, "the first of two that claim a bus has it");
}

#[test]
fn a_region_appears_where_registers_say_and_nowhere_else() {
    let machine = Machine::with(&["2/1"]);
    machine.pci.assign().unwrap();
    let bar = u64::from(machine.read(1, 1, 0, 0x10));
    assert_eq!(bar, 0xc000_0000);
    assert!(
        machine.answers(bar) && machine.answers(bar + 0x3ffc) && !machine.answers(bar + 0x4000)
    );
    assert!(machine.answers(0x80_0000_0000), "the prefetchable one");
    machine.write(1, 1, 0x10, 0xc100_0000);
    assert!(machine.answers(0xc100_0000) && !machine.answers(bar));
    machine.write(0, 2, 0x04, 0x0005);
    assert!(!machine.answers(0xc100_0000), "the bridge does not decode memory");
    machine.write(0, 2, 0x04, 0x0007);
    assert!(machine.answers(0xc100_0000));
    machine.write(1, 1, 0x04, 0);
    assert!(!machine.answers(0xc100_0000), "the function does not decode memory");
}

#[test]
fn a_bar_in_a_wrong_place_disappears_and_comes_back() {
    let machine = Machine::with(&["5", "6"]);
    machine.pci.assign().unwrap();
    let home = machine.read(0, 5, 0, 0x10);
    let other = machine.read(0, 6, 0, 0x10);
    let wrong = [0, 0x10_0000, 0xfec0_0000, 0xfee0_0000, 0xffff_c000, 0xb000_0000, other];
    for base in wrong {
        machine.write(0, 5, 0x10, base);
        assert!(base == other || !machine.answers(base.into()), "{base:#x}");
        machine.write(0, 5, 0x10, home);
        assert!(machine.answers(home.into()) && machine.answers(other.into()), "{base:#x}");
    }
    machine.write(0, 5, 0x18 + 4, u32::MAX);
    machine.write(0, 5, 0x18, u32::MAX);
    assert!(!machine.answers(u64::MAX - 3));
}

#[test]
fn the_power_block_moves_and_yields_to_ports_that_are_taken() {
    let machine = Machine::with(&[]);
    let there = |port| machine.ports.read(port, &mut [0; 4]);
    assert!(there(0xb000) && there(0xb03c) && !there(0xb040) && !there(0x600));
    machine.select(0, 1, 3, 0x40);
    machine.ports.write(0xcfc, &0x0601u32.to_le_bytes());
    assert!(there(0x608) && !there(0xb008));
    machine.ports.write(0xcfc, &0x0cc1u32.to_le_bytes());
    assert_eq!(machine.read(0, 0, 0, 0), 0x1237_8086, "the configuration ports stay");
    machine.select(0, 1, 3, 0x80);
    machine.ports.write(0xcfc, &[0]);
    machine.select(0, 1, 3, 0x40);
    machine.ports.write(0xcfc, &0xb001u32.to_le_bytes());
    assert!(!there(0xb008), "switched off");
}

#[test]
fn a_function_comes_and_goes_while_the_bus_is_in_use() {
    let machine = Machine::with(&["2/1"]);
    machine.pci.assign().unwrap();
    let path: PciPath = "2/2".parse().unwrap();
    assert!(machine.pci.is_free(path));
    machine.pci.insert(path, Plain::new()).unwrap();
    assert!(!machine.pci.is_free(path));
    machine.write(1, 2, 0x10, 0xc080_0000);
    machine.write(1, 2, 0x04, 2);
    assert!(machine.answers(0xc080_0000));
    assert!(machine.pci.remove(path).is_some());
    assert!(!machine.answers(0xc080_0000));
    assert_eq!(machine.read(1, 2, 0, 0), u32::MAX);
    for (path, why) in [("2/0", "slots go from 1"), ("9/1", "bridges in root slots 2, 3, 4")] {
        let error = machine.pci.insert(path.parse().unwrap(), Plain::new()).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    for path in ["2/1", "3", "1", "0"] {
        let path: PciPath = path.parse().unwrap();
        assert!(!machine.pci.is_free(path), "{path}");
        assert!(machine.pci.insert(path, Plain::new()).is_err(), "{path}");
    }
}

#[test]
fn a_secondary_bus_reset_reaches_the_functions_behind() {
    let machine = Machine::with(&["2/1", "3/1"]);
    machine.pci.assign().unwrap();
    machine.write(0, 2, 0x3c, 0x0040_0000);
    machine.write(0, 2, 0x3c, 0);
    assert_eq!(machine.read(1, 1, 0, 0x10), 0);
    assert_ne!(machine.read(2, 1, 0, 0x10), 0);
}

#[test]
fn reset_forgets_what_the_guest_programmed_and_assign_brings_it_back() {
    let machine = Machine::with(&["2/1", "5"]);
    machine.pci.assign().unwrap();
    let before = machine.lspci();
    machine.pci.reset();
    assert!(!machine.answers(0xc000_0000));
    assert_eq!(machine.read(1, 1, 0, 0), u32::MAX);
    machine.pci.assign().unwrap();
    assert_eq!(machine.lspci(), before);
    assert!(machine.answers(0xc000_0000));
}

#[test]
fn every_address_of_the_board_can_be_taken() {
    let paths: Vec<_> = i440fx_1::disk_addresses()
        .chain((1..32).filter_map(|slot| PciPath::behind(4, slot)))
        .chain((5..32).filter_map(PciPath::root))
        .map(|path| path.to_string())
        .collect();
    let paths: Vec<_> = paths.iter().map(String::as_str).collect();
    assert_eq!(paths.len(), 93 + 27);
    let machine = Machine::with(&paths);
    machine.pci.assign().unwrap();
    assert_eq!(machine.lspci().lines().count(), 93 + 27 + 6);
    assert_eq!(
        machine.pci.lock().mapped().len(),
        3 * (93 + 27) + 1,
        "three regions each, and power"
    );
}

#[test]
fn state_round_trips() {
    let machine = Machine::with(&["2/1", "5"]);
    machine.pci.assign().unwrap();
    machine.write(0, 2, 0x18, 0x0007_0700);
    machine.write(7, 1, 0x10, 0xc030_0000);
    machine.select(0, 1, 3, 0x40);
    machine.ports.write(0xcfc, &0x0601u32.to_le_bytes());
    let Declared::State(payload) = machine.pci.declare() else { panic!("movable") };
    let moved = Machine::with(&["2/1", "5"]);
    moved.pci.restore(&payload).unwrap();
    assert_eq!(moved.pci.declare(), Declared::State(payload.clone()));
    // The device behind the bridge brings its own registers, after the root.
    moved.write(7, 1, 0x10, 0xc030_0000);
    moved.write(7, 1, 0x04, 7);
    moved.pci.resume();
    assert!(moved.answers(0xc030_0000) && moved.ports.read(0x608, &mut [0; 4]));
    let mut fewer: RootState = payload.read("pci-root", 1).unwrap();
    let last = fewer.functions.pop().unwrap();
    let refusal = |state: &RootState| {
        let payload = Payload::new("pci-root", 1, state);
        Machine::with(&[]).pci.restore(&payload).unwrap_err().to_string()
    };
    assert!(refusal(&fewer).contains("5 functions"));
    fewer.functions.push(fewer.functions[0].clone());
    assert!(refusal(&fewer).contains("twice"));
    fewer.functions[5] = FunctionState { devfn: 0x55, ..last };
    assert!(refusal(&fewer).contains("has not"));
}

#[test]
fn a_machine_that_is_taken_down_leaves_nothing() {
    let machine = Machine::with(&["2/1"]);
    machine.pci.assign().unwrap();
    let pci = Arc::downgrade(&machine.pci);
    let function = Arc::downgrade(&machine.pci.functions()[3].1);
    drop(machine);
    assert!(pci.upgrade().is_none() && function.upgrade().is_none());
}

#[test]
fn without_room_above_memory_prefetchable_bars_lie_below() {
    let (ports, memory) = (Arc::new(PortBus::default()), Arc::new(MemoryBus::default()));
    let apertures = i440fx_1::apertures(39);
    assert_eq!(apertures.memory64, None);
    let pci =
        i440fx_1::build(Arc::clone(&ports), Arc::clone(&memory), apertures, Arc::new(NoPower));
    let function = Plain::new();
    pci.insert("2/1".parse().unwrap(), Arc::clone(&function) as _).unwrap();
    pci.assign().unwrap();
    assert!(memory.read(0xc010_0000, &mut [0; 4]));
    let mut upper = [0; 4];
    super::PciFunction::config_read(&*function, u16::from(register::BAR0) + 12, &mut upper);
    assert_eq!(upper, [0; 4]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn no_access_panics(data in prop::collection::vec(any::<u8>(), 0..600)) {
        super::fuzz::pci_accesses(&data);
    }

    #[test]
    fn no_state_panics(data in prop::collection::vec(any::<u8>(), 0..200)) {
        super::fuzz::pci_state(&data);
    }
}
