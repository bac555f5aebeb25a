//! `bixi-network` with two ports of one segment.

use super::{ENDS, UP, connected, measure};
use crate::rounds::{Outcome, Side};
use crate::setup::control::Control;
use crate::setup::cores::Cores;
use crate::setup::folder::Folder;
use crate::setup::packages;
use crate::setup::process::Process;
use crate::{BenchError, Effort};
use bixi_api::network::{PortAdd, PortDescription, SegmentConfig, SegmentDescription};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

/// The segment both ports are in.
const SEGMENT: u32 = 100;

/// Our network service.
#[derive(Debug, Default)]
pub struct Network {
    program: PathBuf,
}

impl Side for Network {
    fn name(&self) -> &str {
        "ours"
    }

    fn prepare(&mut self) -> Result<(), BenchError> {
        self.program = packages::ours("bixi-network")?;
        Ok(())
    }

    fn run(&mut self, cores: &Cores, effort: &Effort) -> Result<Outcome, BenchError> {
        let folder = Folder::new()?;
        let sockets = [folder.file("a.sock"), folder.file("b.sock")];
        let control = folder.file("control.sock");
        let mut command = Command::new(&self.program);
        command.arg("serve").arg("--state").arg(folder.path()).arg("--control").arg(&control);
        command.arg("--cpu").arg(cores.server.0.to_string());
        let mut server = Process::start(command, Some(cores.server), folder.file("log"))?;
        server.wait_until("listen", UP, || control.exists())?;
        configure(&Control::new(&control)?, &sockets)?;
        server
            .wait_until("serve its ports", UP, || sockets.iter().all(|socket| socket.exists()))?;
        let outcome = measure(&[&server], cores, effort, || Ok(connected(&sockets)))?;
        server.stop();
        Ok(outcome)
    }
}

fn configure(control: &Control, sockets: &[PathBuf; 2]) -> Result<(), BenchError> {
    let segment = SegmentConfig {
        generation: 1,
        network: Ipv4Addr::new(10, 0, 0, 0),
        prefix_len: 24,
        gateway: None,
        dns: Vec::new(),
        mtu: 1500,
        peers: Vec::new(),
        names: None,
    };
    let _: SegmentDescription = control.put(&format!("/v1/segments/{SEGMENT}"), &segment)?;
    for (end, socket) in ENDS.iter().zip(sockets) {
        let port = PortAdd {
            epoch: 1,
            socket: socket.clone(),
            segment: SEGMENT,
            mac: end.mac_text(),
            ipv4: vec![end.ip],
            queue_pairs: 1,
            require_sealed: true,
            limits: bixi_api::network::PortLimits::NONE,
        };
        let id = format!("bench-{}", end.port);
        let _: PortDescription = control.put(&format!("/v1/ports/{id}"), &port)?;
    }
    Ok(())
}
