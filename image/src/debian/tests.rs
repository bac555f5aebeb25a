//! The Debian image, built and booted by both firmwares: its cloud-init reads our disk.

// A test that cannot go on panics, one that is skipped says so: in helpers too.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use super::cached;
use crate::bundle::Bundle;
use crate::cache::Cache;
use crate::cidata::{Address, Nic, Seed};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(900);
const SAYS: &str =
    "#!/bin/sh\necho \"user data on $(hostname), $(ip -4 -br addr show eth0)\" >/dev/ttyS0\n";

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn boot(bundle: &Bundle, cidata: &Path, console: &Path, firmware: Option<&Path>) -> Running {
    let disk = bundle.path(&bundle.manifest.disk.as_ref().unwrap().file);
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg,thread=multi", "-m", "768", "-display", "none", "-nodefaults"]);
    command.args(["-cpu", "max", "-smp", "2"]);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    if let Some(firmware) = firmware {
        let drive = format!("if=pflash,format=raw,readonly=on,file={}", firmware.display());
        command.arg("-drive").arg(drive);
    }
    for (file, options) in [(disk.as_path(), "snapshot=on"), (cidata, "read-only=on")] {
        let drive = format!("if=virtio,format=raw,{options},file={}", file.display());
        command.arg("-drive").arg(drive);
    }
    command.args(["-nic", "user,model=virtio-net-pci,mac=02:00:00:00:00:01"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Running(command.spawn().unwrap())
}

#[test]
#[ignore = "installs and boots a whole Debian: several minutes, and root"]
fn debian_boots_by_both_firmwares_and_is_told_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let cache = concat!(env!("CARGO_MANIFEST_DIR"), "/../.lab/cache");
    let cache = std::env::var_os("BIXI_LAB_CACHE").unwrap_or_else(|| cache.into());
    let bundle = cached(&Cache::new(cache)).unwrap();
    bundle.verify().unwrap();
    let seed = Seed {
        instance_id: "i-1".into(),
        hostname: "web".into(),
        user_data: SAYS.into(),
        nics: vec![Nic { mac: "02:00:00:00:00:01".into(), mtu: 1450, address: Address::Dhcp }],
        ..Seed::default()
    };
    let cidata = folder.path().join("cidata");
    std::fs::write(&cidata, seed.disk().unwrap()).unwrap();
    let ovmf = Path::new("/usr/share/OVMF/OVMF_CODE.fd");
    for (name, firmware) in [("bios", None), ("uefi", Some(ovmf))] {
        if firmware.is_some_and(|file| !file.exists()) {
            println!("SKIPPED: {name}: no OVMF (apt-get install ovmf)");
            continue;
        }
        let console = folder.path().join(name);
        let _running = boot(&bundle, &cidata, &console, firmware);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = std::fs::read(&console).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            if text.contains("user data on web, eth0") && text.contains("10.0.2.15") {
                break;
            }
            assert!(Instant::now() < deadline, "{name}: {text}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
