//! QEMU's microvm, started by hand, with the same guest; its packets go to a file.

use super::{CLOCK, MEMORY, printed};
use crate::rounds::{Outcome, Side};
use crate::setup::cores::{Cores, Disturbance};
use crate::{BenchError, Effort};
use bixi_lab::Rack;
use std::rc::Rc;

/// The file's header; a packet makes it larger.
const HEADER: u32 = 24;

pub struct Microvm {
    rack: Rc<Rack>,
    ready: Option<BenchError>,
}

impl Microvm {
    /// `ready` is whether its packages are there.
    pub fn new(rack: &Rc<Rack>, ready: Result<(), BenchError>) -> Self {
        Self { rack: Rc::clone(rack), ready: ready.err() }
    }
}

impl Side for Microvm {
    fn name(&self) -> &str {
        "qemu"
    }

    fn prepare(&mut self) -> Result<(), BenchError> {
        self.ready.take().map_or(Ok(()), Err)
    }

    fn run(&mut self, _: &Cores, _: &Effort) -> Result<Outcome, BenchError> {
        let machine = format!(
            "-L /opt/firmware -M microvm,accel=kvm,pcie=on,rtc=on -cpu host -smp 1 -m {MEMORY} -nodefaults \
             -no-user-config -display none -no-reboot -serial file:/run/bench-console \
             -kernel /opt/guest/bzImage -initrd /opt/guest/initrd \
             -netdev socket,id=net,udp=127.0.0.1:4791,localaddr=127.0.0.1:4790 \
             -device virtio-net-pci,netdev=net,mac=02:00:00:00:00:01,romfile= \
             -object filter-dump,id=dump,netdev=net,file=/run/bench-packets"
        );
        let script = format!(
            "{CLOCK}; rm -f /run/bench-packets; clock; \
             /opt/bin/qemu-system-x86_64 {machine} -append 'console=ttyS0 quiet panic=-1' & qemu=$!; \
             until [ \"$(stat -c %s /run/bench-packets 2>/dev/null || echo 0)\" -gt {HEADER} ]; do \
             kill -0 $qemu || exit 1; usleep 10000; done; clock; kill -9 $qemu"
        );
        let said = printed(&self.rack.server(1), &script)?;
        let times: Vec<f64> = said.lines().filter_map(|line| line.parse().ok()).collect();
        let [start, end] = times.as_slice() else {
            return Err(BenchError::Wrong(format!("QEMU's script said {said}")));
        };
        let figures = [("", (end - start) / 1e6)];
        Ok(Outcome { figures: figures.into(), disturbance: Disturbance::default() })
    }
}
