//! Ours and the peers in turns.
//!
//! On a small machine every measurement disturbs the next, and other programs disturb them all. So the sides take turns, run
//! by run, each from a fresh start; a run in which something else used the cores is thrown away and made again.

use crate::report::{Better, Figure, PeerFigure, Row};
use crate::setup::cores::{Cores, Disturbance, Priority};
use crate::setup::interrupt;
use crate::{BenchError, Effort};
use std::collections::BTreeMap;

/// More of the server's core taken by others than this spoils a run.
const TOLERATED: f64 = 0.05;
/// And more of the load's core than this, which has time to spare.
const TOLERATED_LOAD: f64 = 0.15;
/// How often a spoilt run is made again, in all runs of one side.
const PATIENCE: u32 = 6;

/// One side of a benchmark.
pub trait Side {
    /// `ours`, or the peer's name.
    fn name(&self) -> &str;

    /// Gets what it needs: packages, kernel settings.
    ///
    /// # Errors
    /// It cannot run here; the reason is what the user reads.
    fn prepare(&mut self) -> Result<(), BenchError>;

    /// Starts the server, runs the load, ends the server. Figures by what is appended to the row's name.
    ///
    /// # Errors
    /// The run failed.
    fn run(&mut self, cores: &Cores, effort: &Effort) -> Result<Outcome, BenchError>;
}

/// What one run gave.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// By suffix of the row: `""`, `"/p50"`, …
    pub figures: BTreeMap<&'static str, f64>,
    /// What others took of the cores meanwhile.
    pub disturbance: Disturbance,
}

/// What a benchmark measures.
#[derive(Debug, Clone, Copy)]
pub struct Measure {
    /// Appended to the row's name.
    pub suffix: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// Which way is better.
    pub better: Better,
}

/// Runs of one side so far.
struct Runs {
    good: Vec<Outcome>,
    spoilt: Vec<Outcome>,
    failed: Option<String>,
}

impl Runs {
    fn done(&self, effort: &Effort) -> bool {
        self.failed.is_some()
            || self.good.len() >= effort.runs as usize
            || self.spoilt.len() as u32 >= effort.runs + PATIENCE
    }

    /// The runs that count: the undisturbed ones, filled up with the least disturbed of the others.
    fn counted(mut self, name: &str, effort: &Effort) -> Vec<Outcome> {
        let missing = (effort.runs as usize).saturating_sub(self.good.len());
        if missing > 0 && !self.spoilt.is_empty() {
            self.spoilt.sort_by(|a, b| a.disturbance.worst().total_cmp(&b.disturbance.worst()));
            self.spoilt.truncate(missing);
            let worst = self.spoilt.iter().map(|run| run.disturbance.worst()).fold(0.0, f64::max);
            println!(
                "  {name}: {missing} of {} runs are disturbed, others used up to {:.0} % of a core",
                effort.runs,
                worst * 100.0
            );
            self.good.append(&mut self.spoilt);
        }
        self.good
    }
}

/// Runs `ours` and the peers in turns and makes rows of it, named `row` and the measures' suffixes.
///
/// # Errors
/// Ours cannot run, or the user ended it.
pub fn alternate(
    row: &str,
    measures: &[Measure],
    effort: &Effort,
    ours: &mut dyn Side,
    peers: &mut [Box<dyn Side>],
) -> Result<Vec<Row>, BenchError> {
    let cores = Cores::choose()?;
    let _priority = Priority::raise();
    ours.prepare()?;
    let mut all = vec![Runs { good: Vec::new(), spoilt: Vec::new(), failed: None }];
    for peer in peers.iter_mut() {
        let failed = peer.prepare().err().map(|error| error.to_string());
        all.push(Runs { good: Vec::new(), spoilt: Vec::new(), failed });
    }
    while !all.iter().all(|runs| runs.done(effort)) {
        for (at, runs) in all.iter_mut().enumerate() {
            if runs.done(effort) {
                continue;
            }
            interrupt::check()?;
            let side: &mut dyn Side = match at.checked_sub(1) {
                None => ours,
                Some(peer) => &mut *peers[peer],
            };
            match side.run(&cores, effort) {
                Ok(outcome) => note(row, side.name(), outcome, runs),
                Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
                Err(error) if at == 0 => return Err(error),
                Err(error) => runs.failed = Some(error.to_string()),
            }
        }
    }
    Ok(rows(row, measures, effort, all, peers))
}

fn note(row: &str, name: &str, outcome: Outcome, runs: &mut Runs) {
    let Disturbance { server, load, .. } = outcome.disturbance;
    let spoilt = server > TOLERATED || load > TOLERATED_LOAD;
    let remark = if spoilt { ", disturbed: runs again" } else { "" };
    let first = outcome.figures.iter().next();
    let (suffix, value) = first.map_or(("", 0.0), |(suffix, value)| (*suffix, *value));
    println!("  {row}{suffix} {name}: {value:.0} ({}{remark})", outcome.disturbance);
    if spoilt { runs.spoilt.push(outcome) } else { runs.good.push(outcome) }
}

fn rows(
    row: &str,
    measures: &[Measure],
    effort: &Effort,
    all: Vec<Runs>,
    peers: &[Box<dyn Side>],
) -> Vec<Row> {
    let names = std::iter::once("ours").chain(peers.iter().map(|peer| peer.name()));
    let mut failed = Vec::new();
    let mut counted = Vec::new();
    for (name, runs) in names.zip(all) {
        failed.push((name.to_owned(), runs.failed.clone()));
        counted.push(runs.counted(name, effort));
    }
    let figure = |side: usize, suffix: &str| {
        let values = counted[side].iter().filter_map(|run| run.figures.get(suffix).copied());
        Figure::of(&values.collect::<Vec<_>>())
    };
    measures
        .iter()
        .filter_map(|measure| {
            let ours = figure(0, measure.suffix)?;
            let peers = failed.iter().enumerate().skip(1).map(|(side, (name, failed))| {
                let skipped = |why: &str| PeerFigure::Skipped { skipped: why.to_owned() };
                let measured = figure(side, measure.suffix).map(PeerFigure::Measured);
                let peer = match failed {
                    Some(why) => skipped(why),
                    None => measured.unwrap_or_else(|| skipped("it gives no such figure")),
                };
                (name.clone(), peer)
            });
            let name = format!("{row}{}", measure.suffix);
            Some(Row::new(name, measure.unit, measure.better, ours, peers.collect()))
        })
        .collect()
}
