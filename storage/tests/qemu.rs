//! QEMU's own front end and SeaBIOS's own driver: a boot sector is read from the disk and writes itself elsewhere.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says what it found by failing"
)]

mod rig;

use rig::plain::Plain;
use rig::{DISK, Rig, until};
use std::process::{Child, Command, Stdio};

/// Loaded by the firmware from sector 0. Writes itself to sector 5 by the BIOS (int 13h, function 43h) and says `W` on
/// the first serial port, or `F`.
fn boot_sector() -> [u8; 512] {
    let code = [
        &[0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0][..], // ax, ds, es = 0
        &[0xb8, 0x00, 0x43, 0xbe, 0x40, 0x7c, 0xcd, 0x13], // ax = 4300h, si = packet, int 13h
        &[0xba, 0xf8, 0x03, 0xb0, b'W', 0x73, 0x02, 0xb0, b'F'], // al = carry ? 'F' : 'W'
        &[0xee, 0xf4, 0xeb, 0xfd],                 // out dx, al; halt for ever
    ]
    .concat();
    // Packet at 7c40h: 16 bytes, 1 sector at 0000:7c00, to sector 5.
    let packet = [0x10, 0, 1, 0, 0x00, 0x7c, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0];
    let mut sector = [0; 512];
    sector[..code.len()].copy_from_slice(&code);
    sector[0x40..0x50].copy_from_slice(&packet);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn qemu(rig: &Rig) -> std::io::Result<Qemu> {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", "pc,memory-backend=m", "-accel", "tcg", "-m", "64", "-nodefaults"]);
    command.args(["-object", "memory-backend-memfd,id=m,size=64M,share=on", "-display", "none"]);
    let socket = format!("socket,id=c,path={},reconnect=1", rig.socket(DISK).display());
    command.args(["-chardev", &socket]);
    command.args(["-device", "vhost-user-blk-pci,chardev=c,bootindex=0,num-queues=2"]);
    command.args(["-serial", &format!("file:{}", rig.path("serial").display())]);
    command.stdin(Stdio::null()).spawn().map(Qemu)
}

#[test]
fn qemu_boots_from_the_disk_and_writes_to_it() {
    let mut rig = Rig::new(None);
    rig.start();
    rig.create(DISK, 1 << 20);
    rig.attach(DISK, 1).unwrap();
    let mut owner = Plain::connect(&rig.socket(DISK));
    assert_eq!(owner.write(0, &boot_sector()), 0);
    drop(owner);

    let guest = match qemu(&rig) {
        Ok(guest) => guest,
        Err(why) => return println!("SKIPPED: qemu-system-x86_64: {why}"),
    };
    let said = || std::fs::read(rig.path("serial")).unwrap_or_default();
    until("the boot sector has run", || !said().is_empty());
    assert_eq!(said(), b"W");
    drop(guest);
    let mut owner = Plain::connect(&rig.socket(DISK));
    assert!(owner.read(5, 512) == (0, boot_sector().to_vec()));
    let attachment = rig.show(DISK).attachment.unwrap();
    assert_eq!((attachment.last_fault, attachment.statistics.errors), (None, 0));
}
