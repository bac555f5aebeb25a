//! The check that counts: a guest of a few instructions, run by `bixi-vmm` on `/dev/kvm`.
//!
//! It is an ELF file with a PVH entry, as Linux is: it writes a word to its serial port and switches its power off. That
//! the word arrives shows that a vCPU runs, and that its exits come back.

use super::Check;
use bixi_image::host::tail;
use serde_json::json;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::Command;

/// Long enough for an emulated machine.
const PATIENCE: Duration = Duration::from_secs(30);
const WORD: &[u8] = b"bixi";
const NAME: &str = "guest";
/// Where the guest is in its memory.
const ADDRESS: u32 = 0x10_0000;

/// Runs the guest.
pub async fn check(vmm: &Path) -> Check {
    let begun = Instant::now();
    match run(vmm).await {
        Ok(()) => {
            let milliseconds = begun.elapsed().as_millis();
            Check::ok(NAME, format!("a small guest ran on /dev/kvm, in {milliseconds} ms"))
        }
        Err(Unrun { found, next }) => Check::no(NAME, found, next),
    }
}

struct Unrun {
    found: String,
    next: &'static str,
}

fn unrun(found: impl Into<String>, next: &'static str) -> Unrun {
    Unrun { found: found.into(), next }
}

async fn run(vmm: &Path) -> Result<(), Unrun> {
    let no_room = |e: std::io::Error| unrun(e.to_string(), "make room in TMPDIR");
    let folder = tempfile::tempdir().map_err(no_room)?;
    let place = |name: &str| folder.path().join(name);
    std::fs::write(place("kernel"), kernel()).map_err(no_room)?;
    let config = json!({
        "id": "doctor",
        "memory": {"size": 16 << 20},
        "boot": {"kernel": {"path": place("kernel")}},
        "rng": false,
        "console": {"file": {"path": place("console")}},
    });
    std::fs::write(place("vm.json"), config.to_string()).map_err(no_room)?;
    let mut command = Command::new(vmm);
    command.arg("--config").arg(place("vm.json")).args(["--log", "error"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(PATIENCE, command.output()).await {
        Err(_) => {
            let found = format!("the guest has not ended within {} s", PATIENCE.as_secs());
            return Err(unrun(
                found,
                "look whether this machine's host allows nested virtualization",
            ));
        }
        Ok(Err(error)) => {
            let found = format!("{}: {error}", vmm.display());
            return Err(unrun(found, "install bixi-vmm beside bixi, or name it with --vmm"));
        }
        Ok(Ok(output)) => output,
    };
    let said = tail(&String::from_utf8_lossy(&output.stderr));
    let heard = std::fs::read(place("console")).unwrap_or_default();
    match output.status.success() {
        true if heard == WORD => Ok(()),
        true => Err(unrun("the guest ended and said nothing", "report this, with `dmesg`")),
        // What bixi-vmm says tells what to do.
        false => Err(unrun(format!("{said} ({})", output.status), "")),
    }
}

/// The guest, as an ELF file.
fn kernel() -> Vec<u8> {
    let code = code();
    let mut image = vec![0; 64];
    image[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    // x86-64; program headers after this header, 56 bytes each, two.
    (image[18], image[32], image[54], image[56]) = (62, 64, 56, 2);
    let length = code.len() as u64;
    for (kind, offset, address, length) in
        [(1_u32, 200_u64, u64::from(ADDRESS), length), (4, 176, 0, 20)]
    {
        let mut header = [0; 56];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        for (at, value) in [(8, offset), (24, address), (32, length), (40, length)] {
            header[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        image.extend_from_slice(&header);
    }
    // The note that names the entry: XEN_ELFNOTE_PHYS32_ENTRY.
    image.extend_from_slice(&[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    image.extend_from_slice(b"Xen\0");
    image.extend_from_slice(&ADDRESS.to_le_bytes());
    image.resize(200, 0);
    image.extend_from_slice(&code);
    image
}

/// Its code, 32-bit, and the word after it.
fn code() -> Vec<u8> {
    let mut code = vec![0xbe, 0, 0, 0, 0]; // mov esi, word
    code.extend([0xac]); // next: lodsb
    code.extend([0x84, 0xc0]); // test al, al
    code.extend([0x74, 0x07]); // jz off
    code.extend([0x66, 0xba, 0xf8, 0x03]); // mov dx, 0x3f8: the serial port
    code.extend([0xee]); // out dx, al
    code.extend([0xeb, 0xf4]); // jmp next
    code.extend([0x66, 0xba, 0x04, 0xb0]); // off: mov dx, 0xb004: power management, control
    code.extend([0x66, 0xb8, 0x00, 0x20]); // mov ax, 0x2000: sleep type 0 (S5), now
    code.extend([0x66, 0xef]); // out dx, ax
    code.extend([0xf4, 0xeb, 0xfd]); // halt: hlt; jmp halt
    let word = ADDRESS + code.len() as u32;
    code[1..5].copy_from_slice(&word.to_le_bytes());
    code.extend_from_slice(WORD);
    code.push(0);
    code
}
