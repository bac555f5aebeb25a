//! `bixi-network port …`: one request to the control socket.

use super::ask::{Whom, escape, read_json};
use super::{Failure, show};
use bixi_api::network::{MetadataDescription, PortAdd, PortDescription, PortLimits, PortMetadata};
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
    /// All ports.
    List,
    /// One port, with its counters.
    Show {
        /// The port's id.
        id: String,
    },
    /// Serve a port on a vhost-user socket; the same again with other limits changes them while it goes on.
    Add {
        /// The port's id.
        id: String,
        /// Where front ends connect.
        #[arg(long, value_name = "SOCKET")]
        socket: PathBuf,
        /// The placement's epoch; a lower one than the port has seen is refused.
        #[arg(long, value_name = "N")]
        epoch: u64,
        /// The segment it is in: a VXLAN network identifier.
        #[arg(long, value_name = "VNI")]
        segment: u32,
        /// Its hardware address.
        #[arg(long, value_name = "MAC")]
        mac: String,
        /// Its addresses; DHCP gives the first.
        #[arg(long, value_name = "ADDRESS", required = true, value_delimiter = ',')]
        ipv4: Vec<Ipv4Addr>,
        /// Pairs of queues offered.
        #[arg(long, value_name = "N", default_value_t = 1)]
        queue_pairs: u16,
        /// Accept a front end whose memory can shrink, as that of foreign ones.
        #[arg(long)]
        allow_unsealed: bool,
        /// The most packets a second in each direction, a tenth of it at once: more to send waits, more to receive is
        /// dropped. No limit unless told.
        #[arg(long, value_name = "N")]
        packets_per_second: Option<u64>,
        /// The most bits a second in each direction, a tenth of it at once. No limit unless told.
        #[arg(long, value_name = "N")]
        bits_per_second: Option<u64>,
    },
    /// What the guest of a port can read of itself; with a file, let it read that from now on.
    Metadata {
        /// The port's id.
        id: String,
        /// The generation, whether tokens are needed, and all documents as JSON, from a file or - for standard input.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Serve a port no longer.
    Delete {
        /// The port's id.
        id: String,
    },
}

pub(super) async fn run(Arguments { whom, verb }: &Arguments) -> Result<(), Failure> {
    let client = whom.client();
    let path = |id: &str| format!("/v1/ports/{}", escape(id));
    match verb {
        Verb::List => {
            let ports: Vec<PortDescription> = client.get("/v1/ports").await?;
            whom.write(&ports, |ports| show::ports(ports))
        }
        Verb::Show { id } => {
            let port: PortDescription = client.get(&path(id)).await?;
            whom.write(&port, show::port)
        }
        Verb::Add {
            id,
            socket,
            epoch,
            segment,
            mac,
            ipv4,
            queue_pairs,
            allow_unsealed,
            packets_per_second,
            bits_per_second,
        } => {
            let add = PortAdd {
                epoch: *epoch,
                socket: std::path::absolute(socket)?,
                segment: *segment,
                mac: mac.clone(),
                ipv4: ipv4.clone(),
                queue_pairs: *queue_pairs,
                require_sealed: !allow_unsealed,
                limits: PortLimits {
                    packets_per_second: *packets_per_second,
                    bits_per_second: *bits_per_second,
                },
            };
            let port: PortDescription = client.put(&path(id), &add).await?;
            whom.write(&port, |port| show::ports(std::slice::from_ref(port)))
        }
        Verb::Metadata { id, file } => {
            let path = format!("{}/metadata", path(id));
            let metadata: MetadataDescription = match file {
                Some(file) => client.put(&path, &read_json::<PortMetadata>(file)?).await?,
                None => client.get(&path).await?,
            };
            whom.write(&metadata, show::metadata)
        }
        Verb::Delete { id } => Ok(client.delete(&path(id)).await?),
    }
}
