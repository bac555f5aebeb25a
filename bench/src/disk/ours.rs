//! `bixi-storage` with a disk that is nowhere.

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

/// The disk's id.
const ID: &str = "d-00000000000000000000";

/// Our storage service.
#[derive(Debug)]
pub struct Storage {
    shape: Shape,
    program: PathBuf,
}

impl Storage {
    pub fn new(shape: Shape) -> Self {
        Self { shape, program: PathBuf::new() }
    }
}

impl Side for Storage {
    fn name(&self) -> &str {
        "ours"
    }

    fn prepare(&mut self) -> Result<(), BenchError> {
        self.program = packages::ours("bixi-storage")?;
        Ok(())
    }

    fn run(&mut self, cores: &Cores, effort: &Effort) -> Result<Outcome, BenchError> {
        let folder = Folder::new()?;
        let socket = folder.file("disk.sock");
        let mut command = Command::new(&self.program);
        command.arg("serve").arg("--root").arg(folder.path()).arg("--state").arg(folder.path());
        command.arg("--control").arg(folder.file("control.sock"));
        command.arg("--cpus").arg(cores.server.0.to_string());
        let disk = format!("null:{ID}:{DISK_BYTES}:{}:{}", socket.display(), self.shape.queues);
        command.arg("--bench-disk").arg(disk);
        let mut server = Process::start(command, Some(cores.server), folder.file("log"))?;
        server.wait_until("listen", Duration::from_secs(10), || socket.exists())?;
        let (outcome, record) = measure(&server, &socket, &self.shape, cores, effort)?;
        if !record {
            return Err(BenchError::Wrong("the disk came without an in-flight record".to_owned()));
        }
        server.stop();
        Ok(outcome)
    }
}
