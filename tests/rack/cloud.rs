//! A cloud of two servers, used through its command line: the life of instances, and the deaths of everything around them.

use crate::bed::Check;
use bixi_lab::{Console, Rack, Server};
use bixi_tests::{Cloud, Failure, Instance, Lease, Result, check, wait_for};
use serde_json::Value;
use std::time::Duration;

pub const CHECKS: &[Check] =
    &[Check { name: "instances_live_whatever_dies_around_them", slow: false, run: instances }];

const LIMIT: Duration = Duration::from_secs(60);

const PING: &str = "ping -c 3 -W 5 two";

/// Writes a word to the disk of 2 GiB, past every cache.
const WRITE: &str = "disk=$(grep -lx 4194304 /sys/block/*/size | cut -d/ -f4); \
                     echo kept-word | dd of=/dev/$disk bs=512 conv=sync,fsync 2>/dev/null";
/// Reads it back.
const READ: &str = "disk=$(grep -lx 4194304 /sys/block/*/size | cut -d/ -f4); \
                    dd if=/dev/$disk bs=4096 count=1 iflag=direct 2>/dev/null | head -n 1 | tr -d '\\0'";

/// Two instances, on two servers, with a shell in each.
fn two(cloud: &Cloud) -> Result<[(Instance, Console); 2]> {
    cloud.import_tiny()?;
    let one = cloud.run("one", "--disk=2")?;
    let two = cloud.run("two", "")?;
    let (first, second) = (cloud.server_of(&one)?.number(), cloud.server_of(&two)?.number());
    check!(first != second, "both are on server-{first}");
    let shells = [cloud.login(&one)?, cloud.login(&two)?];
    let [of_one, of_two] = shells;
    Ok([(one, of_one), (two, of_two)])
}

fn instances(rack: &Rack) -> Result<()> {
    let mut cloud = Cloud::start(rack, Lease::Handle)?;
    let [(one, mut shell), (second, _)] = two(&cloud)?;
    let name = shell.sh("hostname", LIMIT)?;
    check!(name == "one", "the guest calls itself {name}");
    shell.sh(PING, LIMIT)?;
    shell.sh(WRITE, LIMIT)?;
    confinement(cloud.server_of(&one)?)?;
    deaths(&mut cloud, &one, &mut shell)?;
    stop_and_start(&cloud, &one)?;
    cloud.bixi("instance reboot two")?;
    check!(status(&cloud, "two")? == "Running", "it does not run");
    cloud.login(&second)?.sh("ping -c 3 -W 5 one", LIMIT)?;
    cloud.bixi("instance delete --force one two")?;
    check!(cloud.instances()?.is_empty(), "{:?}", cloud.instances());
    cloud.servers().iter().try_for_each(is_empty)
}

/// The disk is the same after a stop that the guest was asked for, and the network is there again.
fn stop_and_start(cloud: &Cloud, one: &Instance) -> Result<()> {
    cloud.bixi("instance stop one")?;
    check!(status(cloud, "one")? == "Stopped", "it is not stopped");
    cloud.bixi("instance start one")?;
    let mut shell = cloud.login(one)?;
    reads(&mut shell)?;
    shell.sh(PING, LIMIT).map(drop).map_err(Into::into)
}

/// Waits until nothing of any instance is on the server.
fn is_empty(server: &Server) -> Result<()> {
    wait_for("a server without a trace of instances", LIMIT, || {
        let left = server.sh("pidof bixi-vmm; ls /run/bixi/vm /scratch/disks; true")?;
        let names = |line: &&str| !line.is_empty() && !line.ends_with(':');
        let left: Vec<_> = left.lines().filter(names).collect();
        match left.is_empty() {
            true => Ok(Some(())),
            false => Err(Failure::new(left.join(" "))),
        }
    })
}

fn reads(shell: &mut Console) -> Result<()> {
    let word = shell.sh(READ, LIMIT)?;
    check!(word == "kept-word", "the disk has {word:?}");
    Ok(())
}

/// Checks what holds a VMM of this server: its user, its root, its control group, its filter.
fn confinement(server: &Server) -> Result<()> {
    let script = "p=$(pidof bixi-vmm); grep -E '^(Uid|CapEff|NoNewPrivs|Seccomp):' /proc/$p/status; \
                  cat /proc/$p/cgroup; ls /proc/$p/root";
    let said = server.sh(script)?;
    for wanted in ["CapEff: 0000000000000000", "NoNewPrivs: 1", "Seccomp: 2", "cards"] {
        let found = said.lines().any(|line| line.split_whitespace().eq(wanted.split(' ')));
        check!(found, "no {wanted:?} in what is known of the VMM: {said}");
    }
    check!(said.contains("::/bixi/i-"), "its control group: {said}");
    check!(!said.contains("Uid:\t0\t"), "it is root: {said}");
    Ok(())
}

fn status(cloud: &Cloud, name: &str) -> Result<String> {
    let all = cloud.instances()?;
    let found = all.iter().find(|one| one.instance_name == name);
    Ok(found.map_or_else(|| format!("{all:?}"), |one| one.status.clone()))
}

/// Kills the card, agent and cloud, and the VMM.
fn deaths(cloud: &mut Cloud, one: &Instance, shell: &mut Console) -> Result<()> {
    let server = cloud.server_of(one)?.clone();
    let vmm = server.sh("pidof bixi-vmm")?;
    // The card: its agent starts both processes again; the guest waits and goes on.
    server.sh("kill -9 $(pidof bixi-storage) $(pidof bixi-network)")?;
    reads(shell)?;
    wait_for("a ping after the card's return", LIMIT, || {
        Ok(shell.run(PING, LIMIT)?.1.eq(&0).then_some(()))
    })?;
    // The agent, and the cloud with it: guests do not notice.
    let agent = server.number() - 1;
    cloud.agents[agent].kill()?;
    cloud.control.kill()?;
    shell.sh(PING, LIMIT)?;
    reads(shell)?;
    cloud.agents[agent].start_with(&[])?;
    cloud.control.start_with(&[])?;
    wait_for("an agent that tells of its instance again", LIMIT, || {
        let seen: Vec<Value> = cloud.json("server list")?;
        Ok(seen.iter().all(|one| one["alive"] == true).then_some(()))
    })?;
    check!(status(cloud, "one")? == "Running", "{:?}", cloud.instances());
    check!(server.sh("pidof bixi-vmm")? == vmm, "it is another VMM than before");
    shell.sh(PING, LIMIT)?;
    let errors = shell.sh("dmesg | grep -i 'I/O error' || true", LIMIT)?;
    check!(errors.is_empty(), "the guest saw an error: {errors}");
    // The VMM: the cloud says so, and a start brings back the instance with what was written.
    server.sh(&format!("kill -9 {vmm}"))?;
    wait_for("a cloud that knows of the end", LIMIT, || {
        Ok((status(cloud, "one")? == "Stopped").then_some(()))
    })?;
    cloud.bixi("instance start one")?;
    reads(&mut cloud.login(one)?)
}
