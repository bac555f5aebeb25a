//! One server: a QEMU process, its disks and its console.

use super::network::tap;
use crate::error::{Attempt, Result};
use crate::plan::{
    MANAGEMENT_MTU, Plan, UNDERLAY_MTU, management_address, octet, underlay_address,
};
use crate::socket;
use bixi_image::cidata::{Address, Nic, Seed};
use bixi_image::host;
use bixi_image::tree::make_ext4;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// A running QEMU.
pub(super) struct Machine {
    handle: OwnedFd,
}

/// Keeps this thread, and whatever it starts, on one core for as long as this lives.
///
/// The processors of an emulated server must take turns: where they really run at once, guests in it were seen to hang or to
/// start anew in about every fifth test, and never otherwise. (QEMU's own way to let them take turns, one thread for all, is
/// many times slower.)
struct TakeTurns(Option<CpuSet>);

impl TakeTurns {
    fn on_core_of(server: usize) -> Self {
        let Ok(before) = sched_getaffinity(None) else { return Self(None) };
        let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| before.is_set(*cpu)).collect();
        let mut one = CpuSet::new();
        one.set(cores.get(server % cores.len().max(1)).copied().unwrap_or_default());
        // Where that is forbidden, the server runs as it can.
        Self(sched_setaffinity(None, &one).is_ok().then_some(before))
    }
}

impl Drop for TakeTurns {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = sched_setaffinity(None, before);
        }
    }
}

/// Waits for a QEMU's end; there is one for each.
pub(super) struct Watch {
    child: Child,
    folder: PathBuf,
}

impl Machine {
    /// Starts server `number` with an empty scratch disk.
    pub fn start(plan: &Plan, folder: &Path, number: usize) -> Result<(Self, Watch)> {
        fs::create_dir_all(folder).attempt(|| format!("make {}", folder.display()))?;
        let scratch = folder.join("scratch.img");
        make_ext4(&scratch, u64::from(plan.scratch_gib) << 30, None)?;
        if plan.system.is_some() {
            let cidata = folder.join("cidata.img");
            let wrong = || format!("write {}", cidata.display());
            fs::write(&cidata, seed(number).disk()?).attempt(wrong)?;
        }
        let log = folder.join("qemu.log");
        let log = fs::File::create(&log).attempt(|| format!("write {}", log.display()))?;
        // QEMU makes its sockets in its working folder: a path of any length fits.
        let mut command = host::program("qemu-system-x86_64");
        command
            .args(arguments(plan, number))
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().attempt(|| "share a log".to_owned())?)
            .stderr(log);
        let emulated = plan.processor.iter().any(|word| word.starts_with("tcg"));
        let turns = emulated.then(|| TakeTurns::on_core_of(number));
        let child = command.spawn().attempt(|| "start qemu-system-x86_64".to_owned())?;
        drop(turns);
        let handle = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
            .attempt(|| "watch QEMU".to_owned())?;
        Ok((Self { handle }, Watch { child, folder: folder.to_owned() }))
    }

    /// Cuts its power.
    pub fn kill(&self) {
        // It may have ended by itself.
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
    }
}

impl Watch {
    /// Waits for the end; the last the server said.
    pub fn wait(mut self) -> String {
        let how = self.child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
        format!("QEMU ended ({how}): {}", last_words(&self.folder))
    }
}

/// The last QEMU and the server's kernel said.
pub(super) fn last_words(folder: &Path) -> String {
    let read = |name: &str| {
        let bytes = fs::read(folder.join(name)).unwrap_or_default();
        host::tail(&String::from_utf8_lossy(&bytes))
    };
    format!("{} {}", read("qemu.log"), read("console.log")).trim().to_owned()
}

/// Where the server's processors are, as QEMU's monitor says: one that hangs tells nothing itself.
pub(super) fn registers(folder: &Path) -> String {
    let ask = || -> std::io::Result<Vec<u8>> {
        let mut monitor = socket::connect(&folder.join("monitor.sock"))?;
        monitor.set_read_timeout(Some(Duration::from_secs(1)))?;
        monitor.write_all(b"info registers -a\n")?;
        let mut said = vec![0; 32 << 10];
        let mut length = 0;
        // It says nothing when it is done; the time-out ends this.
        while let Ok(n @ 1..) = monitor.read(&mut said[length..]) {
            length += n;
        }
        said.truncate(length);
        Ok(said)
    };
    let said = ask().unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let lines = said.lines().filter(|line| line.starts_with("CPU#") || line.starts_with("RIP="));
    lines.map(str::trim_end).collect::<Vec<_>>().join(" ")
}

/// What a server that boots from a disk is told: its networks, and to run our agent.
fn seed(number: usize) -> Seed {
    let nic = |network: usize, ipv4, mtu| Nic {
        mac: mac(network, number),
        mtu,
        address: Address::Static {
            ipv4: vec![(ipv4, 24)],
            gateway: None,
            dns: vec![],
            search: vec![],
        },
    };
    Seed {
        instance_id: format!("server-{number}"),
        hostname: format!("server-{number}"),
        user_data: include_bytes!("../../init/server.cloud-config").to_vec(),
        nics: vec![
            nic(0, management_address(number), MANAGEMENT_MTU),
            nic(1, underlay_address(number), UNDERLAY_MTU),
        ],
        ..Seed::default()
    }
}

/// The hardware address of a server in one of the rack's networks.
fn mac(network: usize, number: usize) -> String {
    format!("52:54:00:b1:{network:02x}:{:02x}", octet(number))
}

fn arguments(plan: &Plan, number: usize) -> Vec<String> {
    let fixed = format!(
        "-name bixi-server-{number} -machine q35 -smp {cpus} -m {memory} -nodefaults \
         -no-user-config -display none -no-reboot -device virtio-rng-pci \
         -chardev socket,id=console,path=console.sock,server=on,wait=off,logfile=console.log \
         -serial chardev:console -monitor unix:monitor.sock,server=on,wait=off \
         -device virtio-blk-pci,drive=scratch,serial=scratch \
         -device virtio-blk-pci,drive=programs,serial=programs",
        cpus = plan.cpus,
        memory = plan.memory_mib,
    );
    let mut arguments: Vec<String> = fixed.split_whitespace().map(str::to_owned).collect();
    arguments.extend(plan.processor.iter().cloned());
    let mut add = |option: &str, value: String| {
        arguments.push(option.to_owned());
        arguments.push(value);
    };
    add("-kernel", plan.kernel.display().to_string());
    add("-initrd", plan.initrd.display().to_string());
    add("-append", command_line(plan, number));
    if let Some(system) = &plan.system {
        let system = system.display().to_string().replace(',', ",,");
        add("-drive", format!("if=none,id=system,format=raw,snapshot=on,file={system}"));
        add("-device", "virtio-blk-pci,drive=system".to_owned());
        add("-drive", "if=none,id=cidata,format=raw,readonly=on,file=cidata.img".to_owned());
        add("-device", "virtio-blk-pci,drive=cidata".to_owned());
    }
    // The scratch disk lives no longer than the rack: nothing has to reach the medium.
    let scratch = "if=none,id=scratch,format=raw,cache=unsafe,discard=unmap,file=scratch.img";
    add("-drive", scratch.to_owned());
    let programs = plan.disk.display().to_string().replace(',', ",,");
    add("-drive", format!("if=none,id=programs,format=raw,readonly=on,file={programs}"));
    for (index, (network, mtu)) in
        [("mgmt", MANAGEMENT_MTU), ("under", UNDERLAY_MTU)].iter().enumerate()
    {
        let name = tap(network, number);
        add("-netdev", format!("tap,id={network},ifname={name},script=no,downscript=no"));
        let mac = mac(index, number);
        let device = format!("virtio-net-pci,netdev={network},mac={mac},host_mtu={mtu},romfile=");
        add("-device", device);
    }
    arguments
}

fn command_line(plan: &Plan, number: usize) -> String {
    // Without tsc=reliable an emulated server's clock is HPET, and its KVM has no master clock.
    format!(
        "{} tsc=reliable bixi.server={number} bixi.underlay-mtu={UNDERLAY_MTU}",
        plan.command_line
    )
}
