//! `cargo xtask demo`: a cloud of two servers, two instances that talk, and the deaths of all that carries them.

use bixi_lab::{Config, Console, Rack, load};
use bixi_tests::{Cloud, Failure, Instance, Lease, Result, check};
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

/// How long the guest writes; all that carries it dies meanwhile.
const LOAD: Duration = Duration::from_secs(15);

/// How much of its disk the guest writes, in blocks of 4 KiB.
const BLOCKS: u64 = 16_384;

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
    let Ok(seen) = result else { return result.map(drop) };
    if exit {
        return steps.run("the rack is down and has left nothing", || {
            drop(rack);
            check!(Rack::supervisor(&config.state).is_none(), "the rack is still up");
            Ok(())
        });
    }
    rack.leave_up()?;
    let lab = config.lab.strip_prefix(std::env::current_dir()?).unwrap_or(&config.lab);
    let lab = format!("{} --state {STATE}", lab.display());
    say(
        "\nThe rack stays up. Log in to an instance (Ctrl-] leaves), or use the cloud from its first server:",
    );
    for (server, instance) in &seen {
        say(&format!("    {lab} console {server} /run/bixi/vm/{instance}/console"));
    }
    say(&format!("    {lab} shell 1      # then: bixi instance list, bixi --help"));
    say(&format!("End it with:\n    {lab} down"));
    Ok(())
}

/// Everything between the rack's start and its end; the servers and ids of the instances.
fn show(steps: &mut Steps, rack: &Rack) -> Result<Vec<(usize, String)>> {
    let start = "a control plane, and two servers join it";
    let mut cloud = steps.run(start, || Cloud::start(rack, Lease::Own))?;
    let result = with_cloud(steps, &mut cloud);
    if result.is_err() {
        eprintln!("bixi-cloud: {}", cloud.control.logged());
        for agent in &cloud.agents {
            eprintln!("bixi-agent: {}", agent.logged());
        }
    }
    result
}

fn with_cloud(steps: &mut Steps, cloud: &mut Cloud) -> Result<Vec<(usize, String)>> {
    steps.run("bixi image import: Debian's own kernel and busybox", || cloud.import_tiny())?;
    let (one, two) = steps.run("bixi instance run: two instances, on two servers", || {
        let both = (cloud.run("one", "--disk=2")?, cloud.run("two", "")?);
        let (first, second) = (cloud.server_of(&both.0)?, cloud.server_of(&both.1)?);
        check!(first.number() != second.number(), "both are on one server");
        Ok(both)
    })?;
    say(&cloud.bixi("instance list")?);
    let mut shells = steps.run("both unmodified Debian kernels have booted to a shell", || {
        Ok([cloud.login(&one)?, cloud.login(&two)?])
    })?;
    let ping = "ping -c 3 -W 5 two";
    steps.run("one instance pings the other by its name, through VXLAN", || {
        Ok(shells[0].sh(ping, LIMIT)?)
    })?;
    let disk = shells[0].sh("grep -lx 4194304 /sys/block/*/size | cut -d/ -f4", LIMIT)?;
    let killed = "kill -9 of card, agents and control plane while a guest writes";
    let report =
        steps.run(killed, || killed_under_load(cloud, &one, &mut shells[0], &disk, ping))?;
    let intact = |shell: &mut Console| {
        let read =
            shell.sh(&format!("bixi-lab load --digest --blocks {BLOCKS} /dev/{disk}"), LIMIT)?;
        check!(read == report.digest.to_string(), "written: {}, read: {read}", report.digest);
        Ok(())
    };
    steps.run("the disk has the checksum of what was written", || intact(&mut shells[0]))?;
    let dmesg = shells[0].sh("dmesg | grep -i 'I/O error' || true", LIMIT)?;
    check!(dmesg.is_empty(), "the guest saw an error: {dmesg}");
    say(&format!(
        "    {} blocks written, {} read back; the longest request took {} ms, no error",
        report.writes, report.reads, report.longest_ms
    ));
    steps.run("it has it after bixi instance stop and start, too", || {
        cloud.bixi("instance stop one")?;
        cloud.bixi("instance start one")?;
        shells[0] = cloud.login(&one)?;
        intact(&mut shells[0])
    })?;
    for shell in shells {
        shell.hand_over(LIMIT)?;
    }
    let place = |instance: &Instance| {
        Ok((cloud.server_of(instance)?.number(), instance.instance_id.clone()))
    };
    [&one, &two].into_iter().map(place).collect()
}

/// Kills everything of ours but the VMMs while a guest writes and pings, starts what a service manager would, and waits
/// until all is as before.
fn killed_under_load(
    cloud: &mut Cloud,
    writer: &Instance,
    shell: &mut Console,
    disk: &str,
    ping: &str,
) -> Result<load::Report> {
    let seconds = LOAD.as_secs();
    let load = format!("bixi-lab load /dev/{disk} --blocks {BLOCKS} --seconds {seconds}");
    shell.sh(&format!("{load} >/tmp/load 2>&1 &"), LIMIT)?;
    // The load runs; the guest's shell is free for pings that show when the network is back.
    shell.sh(ping, LIMIT)?;
    cloud.control.kill()?;
    for agent in &mut cloud.agents {
        agent.kill()?;
    }
    cloud.server_of(writer)?.sh("kill -9 $(pidof bixi-storage) $(pidof bixi-network)")?;
    for agent in &mut cloud.agents {
        agent.start_with(&[])?;
    }
    cloud.control.start_with(&[])?;
    bixi_tests::wait_for("a ping after the network's return", LIMIT, || {
        Ok(shell.run(ping, LIMIT)?.1.eq(&0).then_some(()))
    })?;
    bixi_tests::wait_for("two running instances in the cloud's list", LIMIT, || {
        let running = cloud.instances()?.iter().filter(|one| one.status == "Running").count();
        Ok((running == 2).then_some(()))
    })?;
    let text = shell.sh("wait; cat /tmp/load", LOAD + LIMIT)?;
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
