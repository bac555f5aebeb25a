//! QEMU's storage daemon with its empty block driver.

use super::{DISK_BYTES, Shape, measure};
use crate::rounds::{Outcome, Side};
use crate::setup::cores::Cores;
use crate::setup::folder::Folder;
use crate::setup::packages;
use crate::setup::process::Process;
use crate::{BenchError, Effort};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// `qemu-storage-daemon`.
#[derive(Debug)]
pub struct StorageDaemon {
    shape: Shape,
    program: PathBuf,
}

impl StorageDaemon {
    pub fn new(shape: Shape) -> Self {
        Self { shape, program: PathBuf::new() }
    }
}

impl Side for StorageDaemon {
    fn name(&self) -> &str {
        "qemu-storage-daemon"
    }

    fn prepare(&mut self) -> Result<(), BenchError> {
        self.program = packages::ensure("qemu-storage-daemon", &["qemu-system-common"])?;
        Ok(())
    }

    fn run(&mut self, cores: &Cores, effort: &Effort) -> Result<Outcome, BenchError> {
        let folder = Folder::new()?;
        let socket = folder.file("disk.sock");
        let mut command = Command::new(&self.program);
        command.arg("--blockdev").arg(format!("null-co,node-name=disk,size={DISK_BYTES}"));
        // A thread of its own for the ring: the daemon's main thread would wake for each request otherwise.
        command.args(["--object", "iothread,id=thread"]).arg("--export").arg(format!(
            "vhost-user-blk,id=export,node-name=disk,iothread=thread,writable=on,num-queues={},\
             addr.type=unix,addr.path={}",
            self.shape.queues,
            socket.display()
        ));
        let mut server = Process::start(command, Some(cores.server), folder.file("log"))?;
        server.wait_until("listen", Duration::from_secs(10), || socket.exists())?;
        let (outcome, _) = measure(&server, &socket, &self.shape, cores, effort)?;
        server.stop();
        Ok(outcome)
    }
}
