//! The ACPI tables of the board, as a guest finds them when it boots without firmware.
//!
//! RSDP → XSDT → FADT (→ DSDT, FACS) and MADT. Everything lies in one block below 1 MiB, which the memory map reserves;
//! the RSDP is at its start, where a guest that is told nothing finds it too. The tables hold addresses of each other,
//! so the block is made for one address.
//!
//! The board has fixed hardware (PM1, PM timer, SCI) and is in ACPI mode from the start: there is no SMI command port.

mod dsdt;

use crate::board::{pm, reset, rtc};
use crate::pci::AcpiFacts;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};

const OEM: [u8; 6] = *b"BIXI  ";
const OEM_TABLE: [u8; 8] = *b"I440FX-1";
const OEM_REVISION: u32 = 1;

const LAPIC: u32 = 0xfee0_0000;
const IOAPIC: u32 = 0xfec0_0000;

/// Tables begin at multiples of this; the FACS demands it.
const ALIGN: usize = 64;

/// The tables of a machine with `vcpus` vCPUs, to be put at `address`; the RSDP is at the start of the block.
#[must_use]
pub fn tables(address: u64, vcpus: u8, pci: &AcpiFacts) -> Vec<u8> {
    let mut block = Block { base: address, bytes: vec![0; ALIGN] };
    let dsdt = block.add(&dsdt::dsdt(pci));
    let facs = block.add(&FACS::new());
    let fadt = block.add(&fadt(dsdt, facs).finalize());
    let madt = block.add(&madt(vcpus));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = block.add(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    block.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    block.bytes
}

/// Tables one behind the other, and where they are.
struct Block {
    base: u64,
    bytes: Vec<u8>,
}

impl Block {
    /// Appends a table and returns its address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        let address = self.base + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

fn io(port: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, u64::from(port))
}

fn fadt(dsdt: u64, facs: u64) -> FADTBuilder {
    let port = |offset: u16| pm::PM_BASE + offset;
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // The power button is a fixed one (its flag is zero), a sleep button there is not.
        .flag(Flags::SlpButton)
        // The RTC wakes nobody by way of PM1.
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup)
        .gpe_info(u32::from(pm::GPE_BASE), 0, pm::GPE_LEN as u8, 0, 0);
    // Both the old fields and the new ones: a guest complains if they differ.
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.sci_int = (pm::SCI as u16).into();
    fadt.pm1a_evt_blk = u32::from(port(0)).into();
    fadt.x_pm1a_evt_blk = io(port(0), 32, AccessSize::WordAccess);
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = u32::from(port(4)).into();
    fadt.x_pm1a_cnt_blk = io(port(4), 16, AccessSize::WordAccess);
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_blk = u32::from(port(8)).into();
    fadt.x_pm_tmr_blk = io(port(8), 32, AccessSize::DwordAccess);
    fadt.pm_tmr_len = 4;
    fadt.x_gpe0_blk = io(pm::GPE_BASE, 32, AccessSize::ByteAccess);
    // No C2 or C3, no sleeping longer than these say.
    fadt.p_lvl2_lat = 0xfff.into();
    fadt.p_lvl3_lat = 0xfff.into();
    fadt.century = rtc::CENTURY;
    // Legacy devices yes, keyboard controller no, VGA no.
    fadt.iapc_boot_arch = (1 | 1 << 2).into();
    fadt.reset_reg = io(reset::RESET_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = reset::RESET_VALUE;
    fadt
}

fn madt(vcpus: u8) -> Sdt {
    const HEADER: u32 = 44;
    let mut madt = Sdt::new(*b"APIC", HEADER, 4, OEM, OEM_TABLE, OEM_REVISION);
    madt.write_u32(36, LAPIC);
    // A PC's two 8259s are there too.
    madt.write_u32(40, 1);
    for id in 0..vcpus {
        madt.append_slice(&[0, 8, id, id, 1, 0, 0, 0]);
    }
    let ioapic: [[u8; 4]; 3] = [[1, 12, 0, 0], IOAPIC.to_le_bytes(), [0; 4]];
    madt.append_slice(ioapic.as_flattened());
    // The timer's line 0 arrives at pin 2; the SCI is level-triggered and active high.
    for (line, pin, flags) in [(0, 2, 0), (pm::SCI as u8, pm::SCI as u8, 0xd)] {
        madt.append_slice(&[2, 10, 0, line, pin, 0, 0, 0, flags, 0]);
    }
    // Every LAPIC's LINT1 is the NMI.
    madt.append_slice(&[4, 6, 0xff, 0, 0, 1]);
    madt
}

/// A shorthand for the DSDT: a path that is a constant of this module.
fn path(name: &str) -> aml::Path {
    aml::Path::new(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::i440fx_1;
    use crate::pci::{Apertures, PciRoot};
    use std::sync::Arc;

    fn facts(apertures: Apertures) -> AcpiFacts {
        struct Nothing;
        impl crate::bus::PortDevice for Nothing {
            fn read(&self, _: u64, _: &mut [u8]) {}
            fn write(&self, _: u64, _: &[u8]) {}
        }
        let root: Arc<PciRoot> =
            i440fx_1::build(Arc::default(), Arc::default(), apertures, Arc::new(Nothing));
        root.acpi_facts()
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn u32_at(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }

    #[test]
    fn every_table_is_found_by_its_pointer_and_sums_to_zero() {
        let base = 0xe_0000;
        let block = tables(base, 64, &facts(i440fx_1::apertures(48)));
        assert!(block.len() < 0x1_0000, "{} bytes", block.len());
        let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(&block[..8], b"RSD PTR ");
        assert_eq!((sum(&block[..20]), sum(&block[..36])), (0, 0));
        let table = |address: u64| {
            let at = (address - base) as usize;
            &block[at..at + u32_at(&block, at + 4)]
        };
        let xsdt = table(u64_at(&block, 24));
        assert_eq!((&xsdt[..4], sum(xsdt)), (b"XSDT".as_slice(), 0));
        let fadt = table(u64_at(xsdt, 36));
        assert_eq!((&fadt[..4], sum(fadt), fadt.len()), (b"FACP".as_slice(), 0, 276));
        let dsdt = table(u64_at(fadt, 140));
        assert_eq!((&dsdt[..4], sum(dsdt)), (b"DSDT".as_slice(), 0));
        assert_eq!(u32_at(fadt, 40) as u64, u64_at(fadt, 140));
        let facs = u32_at(fadt, 36) as u64;
        assert_eq!((&table(facs)[..4], facs % 64), (b"FACS".as_slice(), 0));
        let madt = table(u64_at(xsdt, 44));
        assert_eq!((&madt[..4], sum(madt)), (b"APIC".as_slice(), 0));
        assert_eq!(madt.len(), 44 + 64 * 8 + 12 + 2 * 10 + 6);
    }

    #[test]
    fn the_window_above_memory_is_named_only_where_it_is() {
        let with = tables(0xe_0000, 1, &facts(i440fx_1::apertures(48)));
        let without = tables(0xe_0000, 1, &facts(i440fx_1::apertures(36)));
        let names = |block: &[u8]| {
            block.windows(8).any(|bytes| u64_at(bytes, 0) == i440fx_1::MEMORY64_START)
        };
        assert!(names(&with) && !names(&without));
    }
}
