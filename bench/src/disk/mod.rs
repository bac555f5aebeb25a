//! `bench disk`: the path of a disk request, beside QEMU's storage daemon.
//!
//! Ours has its in-flight record on, since every disk that survives its card has; the daemon has none. Each server has one core, the
//! load another.

mod load;
mod ours;
mod qemu;

pub use load::{Load, Measured, Shape};

use crate::report::{Better, Row};
use crate::rounds::{Measure, Outcome, Side, alternate};
use crate::setup::cores::{Cores, Disturbance, Watch};
use crate::setup::pages::HugePages;
use crate::setup::process::Process;
use crate::{BenchError, Effort};
use std::collections::BTreeMap;
use std::path::Path;

/// The size of the disks.
const DISK_BYTES: u64 = 1 << 30;

const MEASURES: &[Measure] = &[
    Measure { suffix: "", unit: "IOPS per server core", better: Better::Higher },
    Measure { suffix: "/p50", unit: "µs", better: Better::Lower },
    Measure { suffix: "/p99", unit: "µs", better: Better::Lower },
    Measure { suffix: "/p99.9", unit: "µs", better: Better::Lower },
];

/// Measures all rows.
///
/// # Errors
/// Ours cannot run here.
pub fn run(effort: Effort) -> Result<Vec<Row>, BenchError> {
    let shape = Shape { write: false, block: 4096, depth: 32, queues: 1 };
    let _pages = HugePages::reserve(shape.pages())?;
    let mut ours = ours::Storage::new(shape);
    let mut peers: [Box<dyn Side>; 1] = [Box::new(qemu::StorageDaemon::new(shape))];
    alternate("null-randread-4k-qd32", MEASURES, &effort, &mut ours, &mut peers)
}

/// Loads the server at `socket` and gives figures by suffix.
fn measure(
    server: &Process,
    socket: &Path,
    shape: &Shape,
    cores: &Cores,
    effort: &Effort,
) -> Result<(Outcome, bool), BenchError> {
    // The load has a thread of its own, so that pinning it leaves nothing behind.
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            cores.load.apply().map_err(BenchError::system("stay on a core"))?;
            let mut load = Load::connect(socket, shape)?;
            let mut watch = None;
            let measured = load.run(effort, || {
                watch = Some(Watch::start(*cores, &[server.pid()], &[]));
            })?;
            let disturbance = watch.map_or_else(Disturbance::default, |watch| watch.end());
            Ok((outcome(&load, &measured, disturbance), load.has_record()))
        });
        load.join()
            .unwrap_or_else(|_| Err(BenchError::Wrong("the load generator failed".to_owned())))
    })
}

fn outcome(load: &Load, measured: &Measured, disturbance: Disturbance) -> Outcome {
    let micros = |q: f64| load.clock().nanoseconds(measured.latencies.quantile(q)) as f64 / 1000.0;
    let figures = BTreeMap::from([
        ("", measured.rate),
        ("/p50", micros(0.5)),
        ("/p99", micros(0.99)),
        ("/p99.9", micros(0.999)),
    ]);
    Outcome { figures, disturbance }
}
