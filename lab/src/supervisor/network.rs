//! The rack's two networks: bridges in its own network namespace, with one TAP device per server on each.

use crate::error::{Attempt, Error, Result};
use crate::plan::UNDERLAY_MTU;
use bixi_image::host;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Stdio;

/// The TAP device of a server on a network.
pub(super) fn tap(network: &str, server: usize) -> String {
    format!("{network}{server}")
}

/// Builds both networks.
pub(super) fn build(servers: usize) -> Result<()> {
    let mut steps = String::from("link set lo up\n");
    for (network, mtu) in [("mgmt", 1500), ("under", UNDERLAY_MTU)] {
        // Servers speak the moment they are up, so a port forwards at once; nobody speaks multicast.
        let options = "forward_delay 0 mcast_snooping 0";
        let _ = writeln!(steps, "link add {network} type bridge {options}");
        for server in 1..=servers {
            let tap = tap(network, server);
            let _ = writeln!(steps, "tuntap add {tap} mode tap vnet_hdr");
            let _ = writeln!(steps, "link set {tap} mtu {mtu} master {network} up");
        }
        let _ = writeln!(steps, "link set {network} up");
    }
    steps.push_str("addr add 10.88.0.254/24 dev mgmt\n");
    let wrong = || "run `ip -batch -`".to_owned();
    let mut ip = host::program("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .attempt(wrong)?;
    if let Some(mut input) = ip.stdin.take() {
        input.write_all(steps.as_bytes()).attempt(wrong)?;
    }
    let output = ip.wait_with_output().attempt(wrong)?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Program {
        command: "ip -batch".to_owned(),
        output: host::tail(&String::from_utf8_lossy(&output.stderr)),
    })
}
