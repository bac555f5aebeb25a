//! A cloud in a rack: the control plane on the first server, an agent on each, asked by the command line as people do.

use crate::daemon::{Daemon, Lease};
use crate::error::{Failure, Result};
use crate::wait_for;
use bixi_lab::{Console, Rack, Server};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// Emulated servers are slow; no single thing that is asked for here takes longer.
const LIMIT: Duration = Duration::from_secs(120);

/// The lab's guest image as a bundle; each server has it.
const TINY: &str = "/opt/guest/tiny";

/// The port of the cloud.
const PORT: u16 = 7443;

/// The cloud's processes.
#[derive(Debug)]
pub struct Cloud {
    /// `bixi-cloud`, on the first server.
    pub control: Daemon,
    /// `bixi-agent`, one on each server.
    pub agents: Vec<Daemon>,
    servers: Vec<Server>,
}

/// An instance, as the command line shows it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Instance {
    /// Its id.
    pub instance_id: String,
    /// Its name.
    pub instance_name: String,
    /// `Running`, `Stopped` and so on.
    pub status: String,
}

#[derive(Debug, Deserialize)]
struct Alive {
    alive: bool,
}

impl Cloud {
    /// Makes a cloud and lets every server of the rack join it.
    ///
    /// # Errors
    /// When a part does not start; what it logged is told.
    pub fn start(rack: &Rack, lease: Lease) -> Result<Self> {
        let servers = rack.servers();
        let first = servers.first().ok_or_else(|| Failure::new("the rack has no server"))?;
        let listen = format!("--state=/scratch/cloud --listen=0.0.0.0:{PORT}");
        let line = format!("{listen} --name={}", first.management());
        let init = format!("cloud init {line}");
        bixi(first, &words(&init))?;
        let serve = words(&format!("serve {line}"));
        let mut control = Daemon::new(first, "bixi-cloud", serve, lease);
        control.start_until(&[], LIMIT, || bixi(first, &["server", "list"]).map(Some))?;
        let mut agents = Vec::new();
        for server in &servers {
            agents.push(join(first, server, lease)?);
        }
        let cloud = Self { control, agents, servers };
        let joined = wait_for("servers that are alive", LIMIT, || cloud.all_alive());
        if let Err(failure) = joined {
            let logs: Vec<_> = cloud.agents.iter().map(Daemon::logged).collect();
            return Err(Failure::new(format!(
                "{failure}; logs of the agents: {}",
                logs.join("\n")
            )));
        }
        Ok(cloud)
    }

    fn all_alive(&self) -> Result<Option<()>> {
        let seen: Vec<Alive> = self.json("server list")?;
        let all = seen.len() == self.servers.len() && seen.iter().all(|server| server.alive);
        Ok(all.then_some(()))
    }

    /// Runs `bixi` on the first server with these words; what it printed.
    ///
    /// # Errors
    /// When it fails; what it said is told.
    pub fn bixi(&self, line: &str) -> Result<String> {
        bixi(&self.servers[0], &words(line))
    }

    /// Like [`Self::bixi`], for answers that are read by programs.
    ///
    /// # Errors
    /// When it fails, or the answer is something else.
    pub fn json<T: DeserializeOwned>(&self, line: &str) -> Result<T> {
        let said = self.bixi(&format!("{line} --output=json"))?;
        serde_json::from_str(&said)
            .map_err(|error| Failure::new(format!("`bixi {line}` printed {said}: {error}")))
    }

    /// Gives the cloud the lab's guest image, by the name `tiny`.
    ///
    /// # Errors
    /// When the cloud does not take it.
    pub fn import_tiny(&self) -> Result<()> {
        self.bixi(&format!("image import {TINY} --name tiny")).map(drop)
    }

    /// Runs one instance of `tiny`, called `name` by the cloud and by its segment, and waits until it runs.
    ///
    /// # Errors
    /// When it does not run.
    pub fn run(&self, name: &str, more: &str) -> Result<Instance> {
        let what = "--type=bixi.tiny --image=tiny";
        let line = format!("instance run {what} --name={name} --host-name={name} {more}");
        let mut made: Vec<Instance> = self.json(&line)?;
        match (made.pop(), made.is_empty()) {
            (Some(one), true) if one.status == "Running" => Ok(one),
            other => Err(Failure::new(format!("one instance was to run: {other:?}"))),
        }
    }

    /// What the cloud says of its instances.
    ///
    /// # Errors
    /// When it says nothing.
    pub fn instances(&self) -> Result<Vec<Instance>> {
        self.json("instance list")
    }

    /// The server that an instance runs on.
    ///
    /// # Errors
    /// When it runs on none.
    pub fn server_of(&self, instance: &Instance) -> Result<&Server> {
        let folder = format!("test -d /run/bixi/vm/{}", instance.instance_id);
        let mut here = self.servers.iter().filter(|server| server.sh(&folder).is_ok());
        let found = here
            .next()
            .ok_or_else(|| Failure::new(format!("{} is on no server", instance.instance_name)))?;
        match here.next() {
            None => Ok(found),
            Some(_) => Err(Failure::new(format!("{} is on two servers", instance.instance_name))),
        }
    }

    /// A shell on the console of an instance that boots or has booted.
    ///
    /// # Errors
    /// When it offers none in time; what its VMM said is told.
    pub fn login(&self, instance: &Instance) -> Result<Console> {
        let server = self.server_of(instance)?;
        let folder = format!("/run/bixi/vm/{}", instance.instance_id);
        let console = server.connect(format!("{folder}/console"))?;
        let mut console = Console::new(&instance.instance_name, console)?;
        console.login(LIMIT).map_err(|error| {
            let log = server.sh(&format!("tail -n 20 {folder}/log"));
            let log = log.unwrap_or_else(|error| error.to_string());
            Failure::new(format!("{error}; log of its VMM: {log}"))
        })?;
        Ok(console)
    }

    /// The servers, first to last.
    #[must_use]
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }
}

/// Lets `server` join by a token of the cloud on `first`, and starts its agent.
fn join(first: &Server, server: &Server, lease: Lease) -> Result<Daemon> {
    let token = bixi(first, &["server", "token"])?;
    let joining = server.command("/usr/bin/bixi-agent");
    let joining = joining.args(["join", "-", "--state=/scratch/agent"]).limit(LIMIT);
    let output = joining.input(token.trim()).run()?;
    if !output.success() {
        let said = output.describe();
        return Err(Failure::new(format!("server-{} cannot join: {said}", server.number())));
    }
    let places = "--state=/scratch/agent --disks=/scratch/disks";
    let serve = words(&format!("serve {places} --underlay={}", server.underlay()));
    let mut agent = Daemon::new(server, "bixi-agent", serve, lease);
    agent.start_with(&[])?;
    Ok(agent)
}

/// Runs `bixi` on a server.
fn bixi(server: &Server, words: &[impl AsRef<str>]) -> Result<String> {
    let command = server.command("/usr/bin/bixi").limit(LIMIT);
    let output = command.args(words.iter().map(|word| word.as_ref().to_owned())).run()?;
    if output.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let line: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    Err(Failure::new(format!("`bixi {}` {}", line.join(" "), output.describe())))
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}
