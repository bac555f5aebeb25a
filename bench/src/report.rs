//! Figures: the JSON that programs compare, and the table that people read.
//!
//! Invariants: a ratio above 1 always means that ours is better, whatever the unit; it is one of medians, and the smallest and
//! largest run stand beside them.

use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// All figures of one benchmark.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The benchmark's name.
    pub bench: String,
    /// Where it ran.
    pub machine: Machine,
    /// The figures.
    pub rows: Vec<Row>,
}

/// The machine, in general terms.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// The kernel's release.
    pub kernel: String,
    /// `none`, `hardware`, or `software` (an interpreter behind /dev/kvm).
    pub kvm: String,
}

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Better {
    /// More is.
    Higher,
    /// Less is.
    Lower,
}

/// One figure: ours and the peers'.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Its name, for example `null-randread-4k-qd32/p99`.
    pub row: String,
    /// Its unit.
    pub unit: String,
    /// Which way is better.
    pub better: Better,
    /// Ours.
    pub ours: Figure,
    /// The peers', by name.
    pub peers: BTreeMap<String, PeerFigure>,
    /// How many times better ours is, by peer.
    pub ratio: BTreeMap<String, f64>,
}

/// A figure over several runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figure {
    /// The smallest run.
    pub min: f64,
    /// The median run.
    pub median: f64,
    /// The largest run.
    pub max: f64,
    /// How many runs.
    pub runs: usize,
}

/// A peer's figure, or why there is none.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum PeerFigure {
    /// It ran.
    Measured(Figure),
    /// It did not.
    Skipped {
        /// Why.
        skipped: String,
    },
}

impl Figure {
    /// Of these runs; `None` without one.
    #[must_use]
    pub fn of(runs: &[f64]) -> Option<Self> {
        let mut runs = runs.to_vec();
        runs.sort_by(f64::total_cmp);
        let (min, max) = (*runs.first()?, *runs.last()?);
        let half = runs.len() / 2;
        let median = if runs.len() % 2 == 1 {
            runs[half]
        } else {
            f64::midpoint(runs[half - 1], runs[half])
        };
        Some(Self { min, median, max, runs: runs.len() })
    }
}

impl Row {
    /// A row with its ratios.
    #[must_use]
    pub fn new(
        row: impl Into<String>,
        unit: impl Into<String>,
        better: Better,
        ours: Figure,
        peers: BTreeMap<String, PeerFigure>,
    ) -> Self {
        let ratio = peers.iter().filter_map(|(name, peer)| {
            let PeerFigure::Measured(peer) = peer else { return None };
            let (above, below) = match better {
                Better::Higher => (ours.median, peer.median),
                Better::Lower => (peer.median, ours.median),
            };
            (below > 0.0).then(|| (name.clone(), above / below))
        });
        let ratio = ratio.collect();
        Self { row: row.into(), unit: unit.into(), better, ours, peers, ratio }
    }
}

impl Report {
    /// The figures of a benchmark that ran on this machine.
    #[must_use]
    pub fn new(bench: &str, rows: Vec<Row>) -> Self {
        Self { bench: bench.to_owned(), machine: Machine::here(), rows }
    }
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn here() -> Self {
        let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpus.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
        };
        let flags = field("flags").unwrap_or_default();
        let hardware = flags.split(' ').any(|flag| flag == "vmx" || flag == "svm");
        let kvm = match std::path::Path::new("/dev/kvm").exists() {
            false => "none",
            true if hardware => "hardware",
            true => "software",
        };
        Self {
            cpu: field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            kvm: kvm.to_owned(),
        }
    }
}

/// A number with as many digits as its size deserves.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 => format!("{:.2} M", value / 1e6),
        size if size >= 1e4 => format!("{:.1} k", value / 1e3),
        size if size >= 100.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}–{})", short(self.median), short(self.min), short(self.max))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.machine;
        writeln!(
            f,
            "{} on {} cores of {}, Linux {}",
            self.bench, machine.cores, machine.cpu, machine.kernel
        )?;
        for row in &self.rows {
            writeln!(f, "\n{} in {}", row.row, row.unit)?;
            writeln!(f, "  {:<22} {}", "ours", row.ours)?;
            for (name, peer) in &row.peers {
                match peer {
                    PeerFigure::Measured(figure) => {
                        let ratio = row
                            .ratio
                            .get(name)
                            .map(|ratio| format!("ours is {ratio:.2} × as good"));
                        writeln!(
                            f,
                            "  {name:<22} {:<34} {}",
                            figure.to_string(),
                            ratio.unwrap_or_default()
                        )?;
                    }
                    PeerFigure::Skipped { skipped } => {
                        writeln!(f, "  {name:<22} skipped: {skipped}")?
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_above_one_means_that_ours_is_better() {
        let figure = |value| Figure::of(&[value]).unwrap();
        let peers =
            |value| BTreeMap::from([("peer".to_owned(), PeerFigure::Measured(figure(value)))]);
        let row = Row::new("a", "IOPS", Better::Higher, figure(6.0), peers(3.0));
        assert_eq!(row.ratio["peer"], 2.0);
        let row = Row::new("a", "µs", Better::Lower, figure(6.0), peers(3.0));
        assert_eq!(row.ratio["peer"], 0.5);
    }

    #[test]
    fn a_skipped_peer_is_named_with_its_reason() {
        let ours = Figure::of(&[3.0, 1.0, 2.0, 10.0]).unwrap();
        let skipped = PeerFigure::Skipped { skipped: "no root".to_owned() };
        let row =
            Row::new("a/p99", "µs", Better::Lower, ours, [("peer".to_owned(), skipped)].into());
        let json = serde_json::to_value(&row).unwrap();
        let wanted = serde_json::json!({
            "row": "a/p99", "unit": "µs", "better": "lower",
            "ours": {"min": 1.0, "median": 2.5, "max": 10.0, "runs": 4},
            "peers": {"peer": {"skipped": "no root"}}, "ratio": {},
        });
        assert_eq!(json, wanted);
    }
}
