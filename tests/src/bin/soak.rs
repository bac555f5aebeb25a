//! `cargo xtask soak`: card processes die under load and come back, over and over; nothing may be lost.

use bixi_lab::{Config, Rack, load};
use bixi_tests::{Failure, Guest, Lease, Pair, Result, check};
use clap::Parser;
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The soak's rack; an earlier soak's rack is ended first.
const STATE: &str = ".lab/soak";

/// Downloads and images are shared by all racks of a checkout.
const CACHE: &str = ".lab/cache";

/// An emulated guest is slow.
const LIMIT: Duration = Duration::from_secs(90);

/// A run that fails so often tells nothing new.
const FAILURES: usize = 20;

#[derive(Parser)]
struct Arguments {
    /// For how long
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Write the tally as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What happened, in the form all soaks share.
#[derive(Default, Serialize)]
struct Tally {
    /// Cycles begun.
    runs: u64,
    /// Cycles after which all was well.
    done: u64,
    /// A hand-over that was taken back; a crash has nothing to take back.
    rolled_back: u64,
    /// A hand-over without a decision; a crash needs none.
    undecided: u64,
    /// Acknowledged writes that were not there afterwards.
    lost: u64,
    /// Packets that came twice.
    doubles: u64,
    /// What went wrong, in words.
    failures: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut tally = Tally::default();
    if let Err(failure) = soak(&mut tally, Duration::from_secs(arguments.minutes * 60)) {
        tally.failures.push(failure.to_string());
    }
    let text = serde_json::to_string_pretty(&tally).unwrap_or_default();
    let _ = writeln!(std::io::stdout(), "{text}");
    if let Some(path) = &arguments.json
        && let Err(error) = std::fs::write(path, text)
    {
        eprintln!("soak: cannot write {}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    if tally.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn soak(tally: &mut Tally, time: Duration) -> Result<()> {
    let config = Config { cache: CACHE.into(), ..Config::new(STATE)? };
    Rack::down(&config.state)?;
    let rack = Rack::up(&config)?;
    let mut pair = Pair::start(&rack, Lease::Handle)?;
    let mut guests = pair.boot()?;
    let deadline = Instant::now() + time;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    while Instant::now() < deadline && tally.failures.len() < FAILURES {
        tally.runs += 1;
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let number = tally.runs;
        match cycle(&mut pair, &mut guests, random >> 33, tally) {
            Ok(longest_ms) => {
                tally.done += 1;
                bixi_lab::say(&format!("cycle {number}: well, longest request {longest_ms} ms"));
            }
            Err(failure) => {
                bixi_lab::say(&format!("cycle {number}: {failure}"));
                tally.failures.push(format!("cycle {number}: {failure}"));
            }
        }
    }
    Ok(())
}

/// One kill and return, chosen by `random`; the longest request a guest saw, in milliseconds.
fn cycle(pair: &mut Pair, guests: &mut [Guest], random: u64, tally: &mut Tally) -> Result<u64> {
    let addresses: Vec<_> = pair.halves.iter().rev().map(|h| h.guest.address).collect();
    for (guest, address) in guests.iter_mut().zip(&addresses) {
        let work = "bixi-lab load /dev/vda --seconds 8 >/tmp/load 2>&1 &";
        let ping = format!("ping -c 30 -i 0.3 -W 5 {address} >/tmp/ping 2>&1 &");
        guest.sh(&format!("{work} {ping}"), LIMIT)?;
    }
    // The instant of the kill is what a soak varies.
    std::thread::sleep(Duration::from_millis(random % 4000));
    let half = &mut pair.halves[usize::from(random >> 16 & 1 == 1)];
    let (storage, network) = match (random >> 17) % 3 {
        0 => (true, false),
        1 => (false, true),
        _ => (true, true),
    };
    if storage {
        half.card.storage.kill()?;
    }
    if network {
        half.card.network.kill()?;
    }
    std::thread::sleep(Duration::from_millis((random >> 8) % 2000));
    if network {
        half.card.network.start()?;
    }
    if storage {
        half.card.storage.start()?;
    }
    let mut longest = 0;
    for (guest, address) in guests.iter_mut().zip(&addresses) {
        let text = guest.sh("wait; cat /tmp/load", LIMIT)?;
        let line = text.lines().last().unwrap_or_default();
        let report: load::Report = serde_json::from_str(line)
            .map_err(|e| Failure::new(format!("the load said {text:?}: {e}")))?;
        let wrong = report.failures.iter().filter(|f| f.contains("should have generation"));
        tally.lost += wrong.count() as u64;
        check!(report.failures.is_empty(), "{}: {:?}", guest.id(), report.failures);
        let doubles = guest.sh("grep -c DUP /tmp/ping || true", LIMIT)?;
        let doubles: u64 = doubles.trim().parse().unwrap_or_default();
        tally.doubles += doubles;
        check!(doubles == 0, "{}: {doubles} packets came twice", guest.id());
        guest.sh(&format!("ping -c 2 -W 10 {address}"), LIMIT)?;
        longest = longest.max(report.longest_ms);
    }
    Ok(longest)
}
