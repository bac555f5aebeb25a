//! `bixi-network segment …`: one request to the control socket.

use super::ask::{Whom, read_json};
use super::{Failure, show};
use bixi_api::network::{Peer, SegmentConfig, SegmentDescription};
use clap::Subcommand;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// What is asked, and of whom.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    whom: Whom,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// All segments.
    List,
    /// One segment, with its hosts on other servers.
    Show {
        /// Its VXLAN network identifier.
        vni: u32,
    },
    /// Tell the process of a segment: all there is to know, in place of what it knew.
    Set {
        /// Its VXLAN network identifier.
        vni: u32,
        /// All of it as JSON, names of hosts too, from a file or - for standard input; no other option then.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["generation", "network", "mtu"])]
        file: Option<PathBuf>,
        /// Grows with every change; a lower one than the process has is refused.
        #[arg(long, value_name = "N", required_unless_present = "file")]
        generation: Option<u64>,
        /// Its network, for example 10.0.0.0/24.
        #[arg(long, value_name = "NETWORK/LENGTH", value_parser = network)]
        #[arg(required_unless_present = "file")]
        network: Option<(Ipv4Addr, u8)>,
        /// The guests' MTU in bytes.
        #[arg(long, value_name = "BYTES", default_value_t = 1450)]
        mtu: u16,
        /// The gateway that DHCP announces.
        #[arg(long, value_name = "ADDRESS")]
        gateway: Option<Ipv4Addr>,
        /// DNS servers that DHCP announces.
        #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
        dns: Vec<Ipv4Addr>,
        /// A host on another server, for example 02:00:00:00:00:01,10.0.0.7,192.0.2.2:4789; may be repeated.
        #[arg(long, value_name = "MAC,ADDRESS,ENDPOINT", value_parser = peer)]
        peer: Vec<Peer>,
    },
    /// Forget a segment that no port is in.
    Delete {
        /// Its VXLAN network identifier.
        vni: u32,
    },
}

fn network(text: &str) -> Result<(Ipv4Addr, u8), String> {
    let (network, length) = text.split_once('/').ok_or("expected NETWORK/LENGTH")?;
    let network = network.parse().map_err(|e| format!("{e}"))?;
    Ok((network, length.parse().map_err(|e| format!("{e}"))?))
}

fn peer(text: &str) -> Result<Peer, String> {
    let parts: Vec<&str> = text.split(',').collect();
    let [mac, ipv4, endpoint] = parts[..] else {
        return Err("expected MAC,ADDRESS,ENDPOINT".to_owned());
    };
    Ok(Peer {
        mac: mac.to_owned(),
        ipv4: ipv4.parse().map_err(|e| format!("{e}"))?,
        endpoint: super::serve::endpoint(endpoint)?,
    })
}

pub(super) async fn run(Arguments { whom, verb }: &Arguments) -> Result<(), Failure> {
    let client = whom.client();
    let path = |vni: u32| format!("/v1/segments/{vni}");
    match verb {
        Verb::List => {
            let segments: Vec<SegmentDescription> = client.get("/v1/segments").await?;
            whom.write(&segments, |segments| show::segments(segments))
        }
        Verb::Show { vni } => {
            let segment: SegmentDescription = client.get(&path(*vni)).await?;
            whom.write(&segment, show::segment)
        }
        Verb::Set { vni, file, generation, network, mtu, gateway, dns, peer } => {
            let config = match (file, generation, network) {
                (Some(file), ..) => read_json(file)?,
                (None, Some(generation), Some((network, prefix_len))) => SegmentConfig {
                    generation: *generation,
                    network: *network,
                    prefix_len: *prefix_len,
                    gateway: *gateway,
                    dns: dns.clone(),
                    mtu: *mtu,
                    peers: peer.clone(),
                    names: None,
                },
                _ => return Err(Failure::usage("give --generation and --network, or --file")),
            };
            let segment: SegmentDescription = client.put(&path(*vni), &config).await?;
            whom.write(&segment, |segment| show::segments(std::slice::from_ref(segment)))
        }
        Verb::Delete { vni } => Ok(client.delete(&path(*vni)).await?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_and_peers_are_read() {
        assert_eq!(network("10.1.0.0/16"), Ok((Ipv4Addr::new(10, 1, 0, 0), 16)));
        assert!(network("10.1.0.0").is_err() && network("10.1.0.0/x").is_err());
        let peer_ = peer("02:00:00:00:00:01,10.0.0.7,192.0.2.2").unwrap();
        assert_eq!(peer_.endpoint, "192.0.2.2:4789".parse().unwrap());
        assert!(peer("02:00:00:00:00:01,10.0.0.7").is_err());
    }
}
