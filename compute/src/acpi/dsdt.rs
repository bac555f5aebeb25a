//! The DSDT: the host bridge with its windows, the ISA devices behind it, the S5 sleep state.

use super::{OEM, OEM_REVISION, OEM_TABLE, path};
use crate::board::{pm, rtc, serial};
use crate::pci::AcpiFacts;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, Package,
    ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, aml};

/// Integers are 64 bits wide from this revision on.
const REVISION: u8 = 2;
const HEADER: u32 = 36;

pub(super) fn dsdt(pci: &AcpiFacts) -> Sdt {
    let mut code = Vec::new();
    sleep_states().to_aml_bytes(&mut code);
    system_bus(pci, &mut code);
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, REVISION, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&code);
    dsdt
}

/// S5 only: the value that goes into SLP_TYP.
fn sleep_states() -> impl Aml {
    let off = pm::SLEEP_TYPE_OFF as u8;
    Name::new(path("_S5_"), &Package::new(vec![&off, &off, &0_u8, &0_u8]))
}

fn system_bus(pci: &AcpiFacts, code: &mut Vec<u8>) {
    let bridge_id = EISAName::new("PNP0A03");
    let windows = windows(pci);
    let windows = ResourceTemplate::new(windows.iter().map(AsRef::as_ref).collect());
    let (hid, adr, uid) = (
        Name::new(path("_HID"), &bridge_id),
        Name::new(path("_ADR"), &aml::ZERO),
        Name::new(path("_UID"), &aml::ZERO),
    );
    let crs = Name::new(path("_CRS"), &windows);
    let (rtc_device, serial_device) = (Vec::new(), Vec::new());
    let (rtc_device, serial_device) = (real_time_clock(rtc_device), serial_port(serial_device));
    let (rtc_device, serial_device) = (Raw(rtc_device), Raw(serial_device));
    let isa_address = Name::new(path("_ADR"), &0x1_0000_u32);
    let isa = Device::new(path("ISA_"), vec![&isa_address, &rtc_device, &serial_device]);
    let bridge = Device::new(path("PCI0"), vec![&hid, &adr, &uid, &crs, &isa]);
    let events = Raw(event_block());
    Scope::new(path("\\_SB_"), vec![&bridge, &events]).to_aml_bytes(code);
}

/// AML that is made already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

/// What the host bridge passes on: bus numbers, ports but its own, memory windows.
fn windows(pci: &AcpiFacts) -> Vec<Box<dyn Aml>> {
    let memory32 = &pci.apertures.memory32;
    let mut windows: Vec<Box<dyn Aml>> = vec![
        Box::new(AddressSpace::new_bus_number(0_u16, u16::from(pci.last_bus))),
        Box::new(IO::new(0xcf8, 0xcf8, 1, 8)),
        Box::new(AddressSpace::new_io(0_u16, 0xcf7, None)),
        Box::new(AddressSpace::new_io(0xd00_u16, 0xffff, None)),
        Box::new(AddressSpace::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            memory32.start as u32,
            (memory32.end - 1) as u32,
            None,
        )),
    ];
    if let Some(memory64) = &pci.apertures.memory64 {
        windows.push(Box::new(AddressSpace::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            memory64.start,
            memory64.end - 1,
            None,
        )));
    }
    windows
}

fn real_time_clock(mut code: Vec<u8>) -> Vec<u8> {
    let ports = IO::new(rtc::PORT, rtc::PORT, 1, 2);
    isa_device("RTC_", "PNP0B00", None, &ports, Some(rtc::LINE), &mut code);
    code
}

fn serial_port(mut code: Vec<u8>) -> Vec<u8> {
    let ports = IO::new(serial::PORT, serial::PORT, 1, 8);
    isa_device("COM1", "PNP0501", Some(1), &ports, Some(serial::LINE), &mut code);
    code
}

/// Ports that belong to the board, so that no device is put there.
fn event_block() -> Vec<u8> {
    let ports = IO::new(pm::GPE_BASE, pm::GPE_BASE, 1, pm::GPE_LEN as u8);
    let mut code = Vec::new();
    isa_device("GPE0", "PNP0C02", None, &ports, None, &mut code);
    code
}

fn isa_device(
    name: &str,
    id: &str,
    uid: Option<u8>,
    ports: &IO,
    line: Option<u32>,
    code: &mut Vec<u8>,
) {
    let id = EISAName::new(id);
    let hid = Name::new(path("_HID"), &id);
    let uid = uid.map(|uid| Name::new(path("_UID"), &uid));
    // Edge-triggered, active high, not shared: an ISA line.
    let line = line.map(|line| Interrupt::new(true, true, false, false, line));
    let mut resources: Vec<&dyn Aml> = vec![ports];
    if let Some(line) = &line {
        resources.push(line);
    }
    let resources = ResourceTemplate::new(resources);
    let crs = Name::new(path("_CRS"), &resources);
    let mut children: Vec<&dyn Aml> = vec![&hid];
    if let Some(uid) = &uid {
        children.push(uid);
    }
    children.push(&crs);
    Device::new(path(name), children).to_aml_bytes(code);
}
