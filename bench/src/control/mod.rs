//! `bench control`: what the control plane does per second, and what it costs when nothing is asked of it.
//!
//! A whole cloud on this machine, by its own programs: `bixi-cloud`, one `bixi-agent` and the card that it starts. Clients are
//! as tenants have them: each request signed, on a TLS connection of its own. No peer is compared: none offers this
//! interface; the figures stand for themselves.
//!
//! | row | what is counted |
//! |---|---|
//! | `describe` | DescribeInstances of a page of the cloud's instances, four clients at once |
//! | `run` | instances that a RunInstances of several brings to `Running` |
//! | `store-redb` | durable transactions of one key, sixteen writers at once |
//! | `idle-cpu` | processor time of cloud and agent while nothing happens, in % of a core |
//! | `idle-memory` | what both hold in memory that they share with nobody |

mod cloud;
mod store;

use crate::report::{Better, Row};
use crate::rounds::{Measure, Outcome, Side, alternate};
use crate::setup::cores::{Cores, Disturbance};
use crate::setup::folder::Folder;
use crate::{BenchError, Effort};
use cloud::Cloud;
use std::time::Duration;

const MEASURES: &[Measure] = &[
    Measure { suffix: "describe", unit: "requests/s", better: Better::Higher },
    Measure { suffix: "run", unit: "instances/s", better: Better::Higher },
    Measure { suffix: "store-redb", unit: "transactions/s", better: Better::Higher },
    Measure { suffix: "idle-cpu", unit: "% of a core", better: Better::Lower },
    Measure { suffix: "idle-memory", unit: "MiB", better: Better::Lower },
];

/// Of how many instances a page is described, and how many are run at once.
const INSTANCES: usize = 4;
/// How many times longer than a load the idle cloud is watched: it does little.
const IDLE: f64 = 5.0;

/// Measures all rows.
///
/// # Errors
/// A program cannot run here.
pub fn run(effort: Effort) -> Result<Vec<Row>, BenchError> {
    alternate("", MEASURES, &effort, &mut Ours, &mut [])
}

struct Ours;

impl Side for Ours {
    fn name(&self) -> &str {
        "ours"
    }

    fn prepare(&mut self) -> Result<(), BenchError> {
        match rustix::process::geteuid().is_root() {
            true => Ok(()),
            false => Err(BenchError::Root("an agent")),
        }
    }

    fn run(&mut self, _: &Cores, effort: &Effort) -> Result<Outcome, BenchError> {
        let folder = Folder::new()?;
        let store_redb = store::measure(&folder.file("store"), effort.measured)?;
        let cloud = Cloud::start(&folder)?;
        let idle = cloud.idle(Duration::from_secs_f64(effort.measured * IDLE))?;
        let run = cloud.run(INSTANCES)?;
        let describe = cloud.describe(effort.measured)?;
        cloud.delete_all()?;
        let figures = [
            ("describe", describe),
            ("run", run),
            ("store-redb", store_redb),
            ("idle-cpu", idle.percent),
            ("idle-memory", idle.mebibytes),
        ];
        Ok(Outcome { figures: figures.into(), disturbance: Disturbance::default() })
    }
}
