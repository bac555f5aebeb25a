//! `bench first-light`: from the start of the hypervisor's process to the guest's first program, and the memory that it costs,
//! beside QEMU's smallest machine.
//!
//! Both run in one server of a rack, in turns, with the same unmodified kernel, the same initial RAM file system and the same
//! memory. Where the rack is emulated its times are no performance figures; the ratio of the two is.

mod vmm;

use crate::report::{Better, Row};
use crate::rounds::{Measure, Side, alternate};
use crate::setup::folder::Folder;
use crate::{BenchError, Effort};
use bixi_lab::{Config, Needed, Rack};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use vmm::{Kind, Vmm};

/// What the peer needs beside what every rack needs.
const PEER: &[Needed] = &[("qemu-system-x86_64", "qemu-system-x86")];
/// Firmware and option ROMs of QEMU's `microvm`.
const FIRMWARE: &[&str] = &[
    "bios-microvm.bin",
    "bios-256k.bin",
    "qboot.rom",
    "linuxboot_dma.bin",
    "pvh.bin",
    "kvmvapic.bin",
];

const MEASURES: &[Measure] = &[
    Measure { suffix: "boot-to-init", unit: "ms", better: Better::Lower },
    Measure { suffix: "vmm-memory", unit: "MiB", better: Better::Lower },
];

/// Measures all rows.
///
/// # Errors
/// Ours cannot run here, or there can be no rack.
pub fn run(effort: Effort) -> Result<Vec<Row>, BenchError> {
    let folder = Folder::new()?;
    let mut config = Config::new(folder.path())?;
    config.cache = concat!(env!("CARGO_MANIFEST_DIR"), "/../.lab/cache").into();
    config.servers = 1;
    let peer = microvm(&mut config);
    let rack = Rc::new(Rack::up(&config)?);
    let mut ours = Vmm::new(Kind::Ours, &rack, Ok(()));
    let mut peers: [Box<dyn Side>; 1] = [Box::new(Vmm::new(Kind::Microvm, &rack, peer))];
    alternate("", MEASURES, &effort, &mut ours, &mut peers)
}

/// Puts QEMU's microvm into the rack's servers; whether it is there.
pub(crate) fn microvm(config: &mut Config) -> Result<(), BenchError> {
    let peer = bixi_lab::ensure_programs(PEER).map_err(BenchError::from);
    config.contents.programs.extend(find(&["/usr/bin"], "qemu-system-x86_64"));
    for name in FIRMWARE {
        let file = find(&["/usr/share/seabios", "/usr/share/qemu"], name);
        config.contents.files.extend(file.map(|file| (file, format!("firmware/{name}"))));
    }
    peer
}

fn find(folders: &[&str], name: &str) -> Option<PathBuf> {
    folders.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists())
}
