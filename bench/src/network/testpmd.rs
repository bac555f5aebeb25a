//! DPDK's `testpmd` over its vhost driver: a bare cross-connect, the least that a switch on DPDK does.

use super::{UP, connected, measure};
use crate::rounds::{Outcome, Side};
use crate::setup::cores::Cores;
use crate::setup::folder::Folder;
use crate::setup::packages;
use crate::setup::process::Process;
use crate::{BenchError, Effort};
use std::path::PathBuf;
use std::process::Command;

/// `dpdk-testpmd` with two `net_vhost` ports.
#[derive(Debug, Default)]
pub struct Testpmd {
    program: PathBuf,
}

impl Side for Testpmd {
    fn name(&self) -> &str {
        "testpmd-vhost"
    }

    fn prepare(&mut self) -> Result<(), BenchError> {
        self.program = packages::ensure("dpdk-testpmd", &["dpdk-dev"])?;
        Ok(())
    }

    fn run(&mut self, cores: &Cores, effort: &Effort) -> Result<Outcome, BenchError> {
        let folder = Folder::new()?;
        let sockets = [folder.file("a.sock"), folder.file("b.sock")];
        let (server, load) = (cores.server.0, cores.load.0);
        let mut command = Command::new(&self.program);
        // Its first thread only sleeps; the second forwards.
        command.arg(format!("--lcores=0@{load},1@{server}"));
        command.args(["--no-pci", "--in-memory", "--no-telemetry", "-m", "512"]);
        command.arg(format!("--file-prefix=bench{}", std::process::id()));
        for (at, socket) in sockets.iter().enumerate() {
            command.arg(format!("--vdev=net_vhost{at},iface={},queues=1", socket.display()));
        }
        command.args(["--", "--nb-cores=1", "--forward-mode=io", "--mbcache=512"]);
        // Without periodic statistics it ends at the end of its standard input.
        command.args(["--total-num-mbufs=16384", "--stats-period=60"]);
        let mut server = Process::start(command, None, folder.file("log"))?;
        server.wait_until("listen", UP, || sockets.iter().all(|socket| socket.exists()))?;
        let outcome = measure(&[&server], cores, effort, || Ok(connected(&sockets)))?;
        server.stop();
        Ok(outcome)
    }
}
