//! `cargo xtask demo`: two servers, two guests that talk, and a card that dies under them and comes back.

use bixi_lab::{Config, Rack, load};
use bixi_tests::{Failure, Guest, Lease, Pair, Result, check};
use clap::Parser;
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The demo's rack; an earlier demo's rack is ended first.
const STATE: &str = ".lab/demo";

/// Downloads and images are shared by all racks of a checkout.
const CACHE: &str = ".lab/cache";

/// An emulated guest is slow.
const LIMIT: Duration = Duration::from_secs(60);

/// How long the guest writes; its card dies meanwhile.
const LOAD: Duration = Duration::from_secs(12);

#[derive(Parser)]
struct Arguments {
    /// End the rack afterwards instead of leaving it running
    #[arg(long)]
    exit: bool,
    /// Write what each step took as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How long the build took, in seconds
    #[arg(long)]
    built: Option<f64>,
}

#[derive(Serialize)]
struct Step {
    step: &'static str,
    ok: bool,
    seconds: f64,
}

#[derive(Serialize)]
struct Steps {
    ok: bool,
    steps: Vec<Step>,
}

impl Steps {
    /// Does one step and says what it took.
    fn run<T>(&mut self, step: &'static str, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = act();
        self.add(step, result.is_ok(), start.elapsed().as_secs_f64());
        result
    }

    fn add(&mut self, step: &'static str, ok: bool, seconds: f64) {
        let word = if ok { "ok" } else { "FAILED" };
        say(&format!("{step:<60} {word:<6} {seconds:>7.1} s"));
        self.ok &= ok;
        self.steps.push(Step { step, ok, seconds: (seconds * 1000.0).round() / 1000.0 });
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut steps = Steps { ok: true, steps: Vec::new() };
    if let Some(seconds) = arguments.built {
        steps.add("build", true, seconds);
    }
    let result = demo(&mut steps, arguments.exit);
    if let Err(failure) = &result {
        eprintln!("demo: {failure}");
        steps.ok = false;
    }
    if let Some(path) = &arguments.json
        && let Err(error) = serde_json::to_vec_pretty(&steps)
            .map_err(Into::into)
            .and_then(|t| std::fs::write(path, t))
    {
        eprintln!("demo: cannot write {}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    if steps.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn demo(steps: &mut Steps, exit: bool) -> Result<()> {
    let config = Config { cache: CACHE.into(), ..Config::new(STATE)? };
    if Rack::down(&config.state)? {
        bixi_lab::say("ended the rack of an earlier demo");
    }
    let rack = steps.run("a rack of two servers is up", || Ok(Rack::up(&config)?))?;
    let result = show(steps, &rack);
    let Ok(pair) = result else { return result.map(drop) };
    if exit {
        return steps.run("the rack is down and has left nothing", || {
            drop(rack);
            check!(Rack::supervisor(&config.state).is_none(), "the rack is still up");
            Ok(())
        });
    }
    rack.leave_up()?;
    let lab = config.lab.strip_prefix(std::env::current_dir()?).unwrap_or(&config.lab);
    say("\nThe rack stays up. Log in to a guest (Ctrl-] leaves):");
    for half in &pair.halves {
        let (number, id) = (half.server.number(), &half.guest.id);
        say(&format!("    {} --state {STATE} console {number} {id}", lab.display()));
    }
    say(&format!("End it with:\n    {} --state {STATE} down", lab.display()));
    Ok(())
}

/// Everything between the rack's start and its end.
fn show(steps: &mut Steps, rack: &Rack) -> Result<Pair> {
    let mut pair = steps
        .run("each server's card serves a disk and a port", || Pair::start(rack, Lease::Own))?;
    let result = with_guests(steps, &mut pair);
    if result.is_err() {
        for half in &pair.halves {
            let number = half.server.number();
            eprintln!("server-{number}, storage: {}", half.card.storage.logged());
            eprintln!("server-{number}, network: {}", half.card.network.logged());
        }
    }
    result.map(|()| pair)
}

fn with_guests(steps: &mut Steps, pair: &mut Pair) -> Result<()> {
    let mut guests =
        steps.run("two unmodified Debian kernels boot, bzImage and PVH ELF", || pair.boot())?;
    let address = pair.halves[1].guest.address;
    let ping = format!("ping -c 3 -W 5 {address}");
    steps.run("one guest pings the other through VXLAN", || guests[0].sh(&ping, LIMIT))?;
    let report = steps.run("kill -9 of storage and network while the guest writes", || {
        killed_under_load(pair, &mut guests[0], &ping)
    })?;
    steps.run("the disk read back has the checksum of what was written", || {
        let read = guests[0].sh("bixi-lab load --digest /dev/vda", LIMIT)?;
        check!(read == report.digest.to_string(), "written: {}, read: {read}", report.digest);
        Ok(())
    })?;
    let dmesg = guests[0].sh("dmesg | grep -i 'I/O error' || true", LIMIT)?;
    check!(dmesg.is_empty(), "the guest saw an error: {dmesg}");
    say(&format!(
        "    {} blocks written, {} read back; the longest request took {} ms, no error",
        report.writes, report.reads, report.longest_ms
    ));
    for guest in guests {
        guest.console.hand_over(LIMIT)?;
    }
    Ok(())
}

/// Kills both processes of the first server's card while its guest writes and pings, and starts them again.
fn killed_under_load(pair: &mut Pair, guest: &mut Guest, ping: &str) -> Result<load::Report> {
    let seconds = LOAD.as_secs();
    guest.sh(&format!("bixi-lab load /dev/vda --seconds {seconds} >/tmp/load 2>&1 &"), LIMIT)?;
    // The load runs; the guest's shell is free for pings that show when the network is back.
    guest.sh(ping, LIMIT)?;
    let card = &mut pair.halves[0].card;
    card.storage.kill()?;
    card.network.kill()?;
    card.storage.start()?;
    card.network.start()?;
    bixi_tests::wait_for("a ping after the network's return", LIMIT, || {
        Ok(guest.console.run(ping, LIMIT)?.1.eq(&0).then_some(()))
    })?;
    let text = guest.sh("wait; cat /tmp/load", LOAD + LIMIT)?;
    let line = text.lines().last().unwrap_or_default();
    let report: load::Report = serde_json::from_str(line)
        .map_err(|e| Failure::new(format!("the load said {text:?}: {e}")))?;
    check!(report.failures.is_empty(), "{:?}", report.failures);
    check!(report.writes > 0, "nothing was written");
    Ok(report)
}

fn say(line: &str) {
    // A reader who has gone away has seen enough.
    let _ = writeln!(std::io::stdout(), "{line}");
}
