//! `bench network`: packets a second and core of the switch, beside Open vSwitch on DPDK and DPDK's own bare cross-connect.
//!
//! One load generator with two front ends on the load's core, the switch on the server's core. Ours does its whole work (two ports
//! of one segment with their addresses, anti-spoofing, forwarding by what the controller told), the peers forward
//! from port to port.

pub mod frame;
mod ours;
mod ovs;
mod testpmd;
pub mod traffic;

use crate::report::{Better, Row};
use crate::rounds::{Measure, Outcome, Side, alternate};
use crate::setup::cores::{Cores, Disturbance, Watch};
use crate::setup::pages::HugePages;
use crate::setup::process::Process;
use crate::{BenchError, Effort};
use bixi_offload::frontend::Target;
use frame::End;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;
use traffic::Traffic;

/// The two ends of the line.
const ENDS: [End; 2] = [
    End { mac: [0x02, 0, 0, 0, 0, 0x0a], ip: Ipv4Addr::new(10, 0, 0, 10), port: 1000 },
    End { mac: [0x02, 0, 0, 0, 0, 0x0b], ip: Ipv4Addr::new(10, 0, 0, 11), port: 2000 },
];
/// Bytes of a frame as a virtio device sees it.
const FRAME: usize = 64;
/// Huge pages for a peer on DPDK, beyond those of the load.
const DPDK_PAGES: u64 = 640;
/// How long a switch may take to come up.
const UP: Duration = Duration::from_secs(20);
/// Fewer idle turns of the generator than this, and it is what was measured.
const IDLE: f64 = 0.1;

const MEASURES: &[Measure] =
    &[Measure { suffix: "", unit: "packets/s/core", better: Better::Higher }];

/// Measures all rows.
///
/// # Errors
/// Ours cannot run here.
pub fn run(effort: Effort) -> Result<Vec<Row>, BenchError> {
    let _pages = HugePages::reserve(traffic::PAGES + DPDK_PAGES)?;
    let mut ours = ours::Network::default();
    alternate("xconnect-64", MEASURES, &effort, &mut ours, &mut peers())
}

/// The switches beside which ours is measured.
#[must_use]
pub fn peers() -> Vec<Box<dyn Side>> {
    vec![Box::new(ovs::OpenVSwitch::default()), Box::new(testpmd::Testpmd::default())]
}

/// Loads a switch and gives figures by suffix. `connect` gives the connections to its two ports.
fn measure(
    servers: &[&Process],
    cores: &Cores,
    effort: &Effort,
    connect: impl FnOnce() -> Result<[Target; 2], BenchError> + Send,
) -> Result<Outcome, BenchError> {
    let servers: Vec<_> = servers.iter().map(|server| server.pid()).collect();
    // The load has a thread of its own, so that pinning it leaves nothing behind.
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            cores.load.apply().map_err(BenchError::system("stay on a core"))?;
            let mut traffic = Traffic::connect(connect()?, &ENDS[0], &ENDS[1], FRAME)?;
            traffic.await_path()?;
            let mut watch = None;
            let measured =
                traffic.run(effort, || watch = Some(Watch::start(*cores, &servers, &[])))?;
            let disturbance = watch.map_or_else(Disturbance::default, |watch| watch.end());
            if measured.idle < IDLE {
                let idle = measured.idle * 100.0;
                println!("  the load waited in {idle:.0} % of its turns only: a lower bound");
            }
            if measured.lost > 0.01 {
                println!("  the switch lost {:.0} % of the packets", measured.lost * 100.0);
            }
            Ok(Outcome { figures: BTreeMap::from([("", measured.rate)]), disturbance })
        });
        load.join()
            .unwrap_or_else(|_| Err(BenchError::Wrong("the load generator failed".to_owned())))
    })
}

/// The connections to ports whose switch listens.
fn connected(sockets: &[PathBuf; 2]) -> [Target; 2] {
    sockets.clone().map(Target::Path)
}

/// Listens where a switch will connect to.
fn listen(socket: &Path) -> Result<UnixListener, BenchError> {
    UnixListener::bind(socket).map_err(BenchError::system("listen for the switch"))
}

/// Waits for the switch to connect.
fn accept(listener: &UnixListener) -> Result<Target, BenchError> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec { tv_sec: UP.as_secs() as i64, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&timeout));
    match ready.map_err(BenchError::system("wait for the switch"))? {
        0 => Err(BenchError::Silent("the switch does not connect".to_owned())),
        _ => {
            let (stream, _) = listener.accept().map_err(BenchError::system("accept the switch"))?;
            Ok(Target::Stream(Some(stream.into())))
        }
    }
}
