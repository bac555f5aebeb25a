//! The whole cloud in one server.

use super::{CLOCK, LIMIT, printed};
use crate::BenchError;
use crate::Effort;
use crate::rounds::{Outcome, Side};
use crate::setup::cores::{Cores, Disturbance};
use bixi_api::agent::Moment;
use bixi_lab::{Process, Rack};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How often the server is asked whether its programs are there.
const LOOK: Duration = Duration::from_millis(200);
/// How often it is asked for what was seen, with its times: seldom, since asking takes the guest's processor away.
const SELDOM: Duration = Duration::from_secs(4);

/// The cloud's processes, once it is prepared.
pub struct Ours {
    rack: Rc<Rack>,
    daemons: Vec<Process>,
    made: u32,
}

#[derive(Deserialize)]
struct Instance {
    name: String,
    moments: Vec<Moment>,
}

impl Ours {
    pub fn new(rack: &Rc<Rack>) -> Self {
        Self { rack: Rc::clone(rack), daemons: Vec::new(), made: 0 }
    }

    fn sh(&self, script: &str) -> Result<String, BenchError> {
        printed(&self.rack.server(1), script)
    }

    fn until<T>(
        &self,
        what: &str,
        pause: Duration,
        mut look: impl FnMut() -> Result<Option<T>, BenchError>,
    ) -> Result<T, BenchError> {
        let start = Instant::now();
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            if start.elapsed() > LIMIT {
                let log = self.sh("tail -n 20 /run/bixi/log/*.log").unwrap_or_default();
                return Err(BenchError::Wrong(format!("{what} was not seen; the logs: {log}")));
            }
            std::thread::sleep(pause);
        }
    }

    fn daemon(&mut self, program: &str, line: &str) -> Result<(), BenchError> {
        let server = self.rack.server(1);
        let command = server.command(format!("/usr/bin/{program}")).args(line.split(' '));
        self.daemons.push(command.spawn_logged(format!("/run/bixi/log/{program}.log"))?);
        Ok(())
    }

    /// Runs one instance; when its steps were seen, in milliseconds of the server's clock, the request first.
    fn deliver(&mut self) -> Result<BTreeMap<String, f64>, BenchError> {
        self.made += 1;
        let name = format!("bench-{}", self.made);
        let what = "--type=bixi.tiny --image=tiny --no-wait";
        let asked = self.sh(&format!("{CLOCK}; clock; bixi instance run {what} --name={name}"))?;
        let asked = asked.lines().next().and_then(|line| line.parse::<f64>().ok());
        let asked = asked.ok_or_else(|| BenchError::Wrong("the server has no clock".to_owned()))?;
        let moments = self.until("the guest's first packet", SELDOM, || {
            let all = self.sh("bixi instance list --all-tenants --output=json")?;
            let all: Vec<Instance> =
                serde_json::from_str(&all).map_err(|e| BenchError::Wrong(e.to_string()))?;
            let one = all.into_iter().find(|one| one.name == name);
            let spoke = |one: &Instance| one.moments.iter().any(|m| m.what == "first-packet");
            Ok(one.filter(spoke))
        })?;
        self.sh(&format!("bixi instance delete --force {name}"))?;
        let steps = moments.moments.into_iter().map(|moment| (moment.what, moment.at as f64));
        Ok(steps.chain([("asked".to_owned(), asked / 1000.0)]).collect())
    }
}

impl Side for Ours {
    fn name(&self) -> &str {
        "ours"
    }

    fn prepare(&mut self) -> Result<(), BenchError> {
        let state = "--state=/scratch/cloud --listen=0.0.0.0:7443 --name=127.0.0.1";
        self.sh(&format!("bixi cloud init {state}"))?;
        self.daemon("bixi-cloud", &format!("serve {state}"))?;
        self.until("a cloud", LOOK, || Ok(self.sh("bixi server list").ok()))?;
        self.sh("bixi server token | bixi-agent join - --state=/scratch/agent")?;
        self.daemon("bixi-agent", "serve --state=/scratch/agent --disks=/scratch/disks")?;
        self.until("a server that is alive", LOOK, || {
            let servers = self.sh("bixi server list --output=json")?;
            Ok(servers.contains("\"alive\": true").then_some(()))
        })?;
        self.sh("bixi image import /opt/guest/tiny --name tiny")?;
        self.deliver().map(drop)
    }

    fn run(&mut self, _: &Cores, _: &Effort) -> Result<Outcome, BenchError> {
        let steps = self.deliver()?;
        let at = |name: &str| {
            let missing = || BenchError::Wrong(format!("nobody has seen `{name}`"));
            steps.get(name).copied().ok_or_else(missing)
        };
        let between = |from, to| Ok::<_, BenchError>((at(to)? - at(from)?) / 1000.0);
        let figures = [
            ("", between("asked", "first-packet")?),
            ("/api", between("asked", "requested")?),
            ("/placed", between("requested", "accepted")?),
            ("/prepared", between("accepted", "network")?),
            ("/started", between("network", "released")?),
            ("/running", between("released", "running")?),
            ("/first-packet", between("running", "first-packet")?),
        ];
        Ok(Outcome { figures: figures.into(), disturbance: Disturbance::default() })
    }
}
