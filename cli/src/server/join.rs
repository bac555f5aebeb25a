//! `bixi server join`: this machine becomes a server of a cloud, and its agent a service.
//!
//! Can be run again: a server that has joined stays what it is, changed settings are written and the agent is started again,
//! which VMs and card processes outlive.

use crate::failure::Failure;
use crate::output::printable;
use crate::progress::Progress;
use crate::systemd::{self, Settings};
use bixi_api::agent::JoinToken;
use bixi_release::product::{AGENT_UNIT, INSTANCES_UNIT};
use serde::Deserialize;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::process::Command;

/// VXLAN's own port.
const VXLAN: u16 = 4789;
const SETTINGS: Settings =
    Settings { path: "/etc/bixi/agent.env", variable: "BIXI_AGENT_ARGUMENTS" };

#[derive(Debug, clap::Args)]
pub struct Join {
    /// The token, from `bixi server token`; `-` reads it from standard input; needless where this server has joined
    token: Option<String>,
    /// The server's name in the cloud; its host name unless told
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The address by which other servers reach this one's networks; that which this machine has towards the cloud unless told
    #[arg(long, value_name = "IP[:PORT]", value_parser = endpoint)]
    underlay: Option<SocketAddr>,
    /// First of the users that VMs run as, one each
    #[arg(long, value_name = "UID", value_parser = clap::value_parser!(u32).range(1000..2_000_000_000))]
    first_user: Option<u32>,
    /// Directory of the agent's state
    #[arg(long, value_name = "DIR", default_value = "/var/lib/bixi/agent")]
    state: PathBuf,
    /// Directory of the disks
    #[arg(long, value_name = "DIR", default_value = "/var/lib/bixi/disks")]
    disks: PathBuf,
    /// A further argument for `bixi-storage serve`, for example --storage-argument=--cpus=2,3
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    storage_argument: Vec<String>,
    /// A further argument for `bixi-network serve`, for example --network-argument=--cpu=1
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    network_argument: Vec<String>,
    /// Make no service, but print how to run the agent
    #[arg(long)]
    no_service: bool,
    /// The bixi-agent program, for a server without the service; beside this one, or in PATH, unless told
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

/// What the agent has written down of who it is.
#[derive(Debug, Deserialize)]
struct Identity {
    server: String,
    cloud: String,
}

impl Join {
    /// Does it.
    pub async fn run(self) -> Result<(), Failure> {
        let service = systemd::is_wanted(self.no_service || self.program.is_some());
        if service {
            systemd::file(AGENT_UNIT)?;
        }
        let identity = self.joined().await?;
        let arguments = self.arguments(&identity.cloud)?;
        let Identity { server, cloud } = &identity;
        if !service {
            eprintln!("This server is {server} of the cloud at {cloud}.");
            let program = self.program().display().to_string();
            eprintln!("Next, and whenever this machine has started:");
            eprintln!("  {program} serve {}", arguments.join(" "));
            return Ok(());
        }
        let mut progress = Progress::new();
        progress.say("starting bixi-agent");
        SETTINGS.write(&arguments)?;
        systemd::link(INSTANCES_UNIT).await?;
        systemd::start(AGENT_UNIT, &arguments).await?;
        systemd::wait(AGENT_UNIT, async || self.lives().await).await?;
        drop(progress);
        eprintln!("This server is {server} of the cloud at {cloud}; its agent and card run.");
        eprintln!(
            "Look at them by `systemctl status bixi-agent bixi-instances`, and by `bixi server list` at the cloud."
        );
        Ok(())
    }

    /// Who this server is; it joins if it has not yet.
    async fn joined(&self) -> Result<Identity, Failure> {
        let token = match self.token.as_deref() {
            Some("-") => Some(
                io::read_to_string(io::stdin())
                    .map_err(|e| Failure::system("read the token from standard input", e))?,
            ),
            token => token.map(str::to_owned),
        };
        let token: Option<JoinToken> = token
            .map(|text| text.parse())
            .transpose()
            .map_err(|e: bixi_api::agent::TokenError| Failure::Usage(e.to_string()))?;
        if let Some(identity) = self.identity()? {
            let other = token.filter(|token| token.cloud != identity.cloud);
            return match other {
                None => Ok(identity),
                Some(token) => Err(Failure::Failed(format!(
                    "this server is {} of the cloud at {} already, the token is of the one at {}: \
                     to move it, end its instances and remove {} first",
                    identity.server,
                    identity.cloud,
                    token.cloud,
                    self.state.join("identity.json").display()
                ))),
            };
        }
        let Some(token) = token else {
            return Err(Failure::Usage(
                "this server has not joined yet: give a token, which `bixi server token` makes at the cloud"
                    .to_owned(),
            ));
        };
        self.ask_to_join(&token).await?;
        let identity = self.identity()?;
        identity.ok_or_else(|| Failure::Failed("bixi-agent has left no identity".to_owned()))
    }

    fn identity(&self) -> Result<Option<Identity>, Failure> {
        let path = self.state.join("identity.json");
        let failed = |e| Failure::system(format!("read {}", path.display()), e);
        match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => {
                let text = read.map_err(failed)?;
                serde_json::from_slice(&text).map(Some).map_err(|e| failed(e.into()))
            }
        }
    }

    /// Lets the agent join. The token goes by a pipe: no list of processes shows it.
    async fn ask_to_join(&self, token: &JoinToken) -> Result<(), Failure> {
        let program = self.program();
        let failed = |e| Failure::system(format!("run {} join", program.display()), e);
        let mut command = Command::new(&program);
        command.args(["join", "-"]).arg("--state").arg(&self.state);
        if let Some(name) = &self.name {
            command.arg("--name").arg(name);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        if let Some(mut to) = child.stdin.take() {
            // One that has ended without reading says why itself.
            let _ = to.write_all(token.to_string().as_bytes()).await;
        }
        let output = child.wait_with_output().await.map_err(failed)?;
        match output.status.success() {
            true => Ok(()),
            false => {
                let said = String::from_utf8_lossy(&output.stderr);
                Err(Failure::Failed(printable(said.trim())))
            }
        }
    }

    fn program(&self) -> PathBuf {
        self.program.clone().unwrap_or_else(|| crate::context::beside("bixi-agent"))
    }

    /// The arguments of `bixi-agent serve`, but for what the unit itself says.
    fn arguments(&self, cloud: &str) -> Result<Vec<String>, Failure> {
        let underlay = match self.underlay {
            Some(underlay) => Some(underlay),
            None => towards(cloud)?,
        };
        if underlay.is_none() {
            eprintln!(
                "The cloud is on this machine, which may have many addresses: without --underlay, networks reach no other server."
            );
        }
        let mut arguments = vec![
            format!("--state={}", self.state.display()),
            format!("--disks={}", self.disks.display()),
        ];
        arguments.extend(underlay.map(|underlay| format!("--underlay={underlay}")));
        arguments.extend(self.first_user.map(|user| format!("--first-user={user}")));
        let more = |name: &str, values: &[String]| -> Vec<String> {
            values.iter().map(|value| format!("--{name}-argument={value}")).collect()
        };
        arguments.extend(more("storage", &self.storage_argument));
        arguments.extend(more("network", &self.network_argument));
        Ok(arguments)
    }

    /// Whether the agent does what it is for: the card answers it, and the cloud has told it what is desired.
    async fn lives(&self) -> Result<(), Failure> {
        for card in ["storage", "network"] {
            let path = Path::new("/run/bixi").join(format!("{card}.sock"));
            let connected = UnixStream::connect(&path).await;
            connected.map_err(|e| Failure::system(format!("reach bixi-{card}"), e))?;
        }
        match self.state.join("desired.json").exists() {
            true => Ok(()),
            false => Err(Failure::Failed("the cloud has told the agent nothing yet".to_owned())),
        }
    }
}

fn endpoint(text: &str) -> Result<SocketAddr, String> {
    let alone = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, VXLAN));
    text.parse().or_else(|_| alone()).map_err(|_| format!("`{text}` is no IP:PORT"))
}

/// The address that this machine has towards the cloud; none if that is one that nobody else reaches.
fn towards(cloud: &str) -> Result<Option<SocketAddr>, Failure> {
    let failed = |e| {
        Failure::system(format!("find this machine's address towards {cloud} (give --underlay)"), e)
    };
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in cloud.to_socket_addrs().map_err(failed)? {
        let any: IpAddr = match address.is_ipv4() {
            true => Ipv4Addr::UNSPECIFIED.into(),
            false => Ipv6Addr::UNSPECIFIED.into(),
        };
        // Nothing is sent: the kernel only looks up the route.
        let found = UdpSocket::bind((any, 0)).and_then(|socket| {
            socket.connect(address)?;
            socket.local_addr()
        });
        match found {
            Ok(own) => {
                let reached = !own.ip().is_loopback();
                return Ok(reached.then(|| SocketAddr::new(own.ip(), VXLAN)));
            }
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        join: Join,
    }

    fn join(words: &[&str]) -> Join {
        Line::try_parse_from([&["join"], words].concat()).unwrap().join
    }

    #[test]
    fn arguments_of_the_agent_follow_from_those_of_the_command() {
        let join = join(&[
            "--underlay=192.0.2.7",
            "--first-user=300000",
            "--storage-argument=--cpus=2,3",
            "--network-argument=--cpu=1",
        ]);
        let arguments = join.arguments("cloud.invalid:7443").unwrap().join(" ");
        assert_eq!(
            arguments,
            "--state=/var/lib/bixi/agent --disks=/var/lib/bixi/disks --underlay=192.0.2.7:4789 \
             --first-user=300000 --storage-argument=--cpus=2,3 --network-argument=--cpu=1"
        );
        for bad in ["--underlay=here", "--first-user=5"] {
            assert!(Line::try_parse_from(["join", bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_that_nobody_reaches_is_no_underlay() {
        assert_eq!(towards("127.0.0.1:7443").unwrap(), None);
        let refused = towards("nonsense").unwrap_err().to_string();
        assert!(refused.contains("--underlay"), "{refused}");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_server_stays_in_its_cloud() {
        let folder = tempfile::tempdir().unwrap();
        let state = format!("--state={}", folder.path().display());
        let refused = join(&[&state]).joined().await.unwrap_err().to_string();
        assert!(refused.contains("bixi server token"), "{refused}");
        let refused = join(&["nonsense", &state]).joined().await.unwrap_err();
        assert_eq!(refused.code(), 2, "{refused}");
        let text = r#"{"server":"s-1","cloud":"a.example:7443","key-pem":"secret"}"#;
        std::fs::write(folder.path().join("identity.json"), text).unwrap();
        let token = |cloud: &str| JoinToken {
            secret: "0123456789abcdefXYZ".to_owned(),
            ca_sha256: [1; 32],
            cloud: cloud.to_owned(),
        };
        let own = token("a.example:7443").to_string();
        assert_eq!(join(&[&own, &state]).joined().await.unwrap().server, "s-1");
        assert_eq!(join(&[&state]).joined().await.unwrap().server, "s-1");
        let other = token("b.example:7443").to_string();
        let refused = join(&[&other, &state]).joined().await.unwrap_err().to_string();
        assert!(refused.contains("s-1") && refused.contains("identity.json"), "{refused}");
    }
}
