//! A cloud on this machine for as long as a measurement, made and asked as its users do.

use crate::BenchError;
use crate::setup::folder::Folder;
use crate::setup::process::Process;
use bixi_api::ecs::{AccessKey, EcsClient, EcsClientError, Instances, Nothing, RunAnswer};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// How long anything may take to come up or to go.
const PATIENCE: Duration = Duration::from_secs(60);
/// Clients at once.
const CLIENTS: usize = 4;
/// How often the cloud is asked whether its instances run.
const LOOK: Duration = Duration::from_millis(10);

/// What an idle cloud costs.
pub(super) struct Idle {
    pub percent: f64,
    pub mebibytes: f64,
}

/// The processes, and a tenant's client.
pub(super) struct Cloud<'a> {
    folder: &'a Folder,
    client: EcsClient,
    runtime: Runtime,
    image: String,
    agent: Process,
    control: Process,
}

#[derive(Deserialize)]
struct Profiles {
    profiles: BTreeMap<String, Profile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Profile {
    endpoint: String,
    region: String,
    ca_file: PathBuf,
    access_key_id: String,
    access_key_secret: String,
}

/// A program beside this one.
fn program(name: &str) -> Result<PathBuf, BenchError> {
    let own = std::env::current_exe().map_err(BenchError::system("find this program"))?;
    let path = own.with_file_name(name);
    if path.exists() { Ok(path) } else { Err(BenchError::NotBuilt(path)) }
}

/// Runs the command line; what it printed.
fn bixi(folder: &Folder, line: &str) -> Result<String, BenchError> {
    let mut command = Command::new(program("bixi")?);
    let cache = concat!(env!("CARGO_MANIFEST_DIR"), "/../.lab/cache");
    command.env("BIXI_PROFILES", folder.file("profiles.json")).env("XDG_CACHE_HOME", cache);
    printed(command.args(line.split(' ')), "do what it was asked")
}

fn printed(command: &mut Command, what: &'static str) -> Result<String, BenchError> {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let program = program.to_string_lossy().into_owned();
    let output = command.output().map_err(BenchError::system(format!("start {program}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(BenchError::Process { program, what, said })
}

fn asked(error: EcsClientError) -> BenchError {
    BenchError::Wrong(error.to_string())
}

impl<'a> Cloud<'a> {
    /// Starts one with a server and an image.
    pub fn start(folder: &'a Folder) -> Result<Self, BenchError> {
        // The port is free until somebody else takes it in the same instant; then the cloud says so.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.map_err(BenchError::system("find a free port"))?.to_string();
        let state = folder.file("cloud");
        let place = format!("--state={} --listen={address} --name=127.0.0.1", state.display());
        bixi(folder, &format!("cloud init {place}"))?;
        let mut serve = Command::new(program("bixi-cloud")?);
        serve.arg("serve").args(place.split(' '));
        let mut control = Process::start(serve, None, folder.file("cloud.log"))?;
        let list = || bixi(folder, "server list").is_ok();
        control.wait_until("answer", PATIENCE, list)?;
        let mut agent = join(folder)?;
        let alive =
            || bixi(folder, "server list -o json").is_ok_and(|t| t.contains("\"alive\": true"));
        agent.wait_until("join", PATIENCE, alive)?;
        bixi(folder, "image build tiny --name tiny")?;
        let client = client(&folder.file("profiles.json"))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(BenchError::system("start a runtime"))?;
        let image = bixi(folder, "image list -o json")?;
        let image = image.split('"').find(|word| word.starts_with("m-"));
        let image = image.ok_or_else(|| BenchError::Wrong("there is no image".to_owned()))?;
        let image = image.to_owned();
        Ok(Self { folder, client, runtime, image, agent, control })
    }

    /// What cloud and agent use while nothing is asked for.
    pub fn idle(&self, time: Duration) -> Result<Idle, BenchError> {
        let pids = [self.control.pid(), self.agent.pid()];
        let used = || -> Result<f64, BenchError> { pids.iter().map(|pid| seconds(*pid)).sum() };
        let (before, start) = (used()?, Instant::now());
        std::thread::sleep(time);
        let percent = (used()? - before) * 100.0 / start.elapsed().as_secs_f64();
        let kib: Result<u64, BenchError> = pids.iter().map(|pid| private(*pid)).sum();
        Ok(Idle { percent, mebibytes: kib? as f64 / 1024.0 })
    }

    /// Runs `count` instances at once; how many per second.
    pub fn run(&self, count: usize) -> Result<f64, BenchError> {
        let parameters: BTreeMap<String, String> = [
            ("InstanceType", "bixi.tiny"),
            ("ImageId", self.image.as_str()),
            ("Amount", &count.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let start = Instant::now();
        self.runtime.block_on(async {
            self.client.call::<RunAnswer>("RunInstances", &parameters).await.map_err(asked)?;
            loop {
                let all = self.client.list::<Instances>(&BTreeMap::new()).await.map_err(asked)?;
                if all.iter().filter(|one| one.status == "Running").count() == count {
                    return Ok(count as f64 / start.elapsed().as_secs_f64());
                }
                if start.elapsed() > PATIENCE || all.iter().any(|one| one.status == "Stopped") {
                    return Err(self.agent.failed("run the instances"));
                }
                tokio::time::sleep(LOOK).await;
            }
        })
    }

    /// DescribeInstances per second.
    pub fn describe(&self, time: f64) -> Result<f64, BenchError> {
        let (start, time) = (Instant::now(), Duration::from_secs_f64(time));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let client = self.client.clone();
                self.runtime.spawn(async move {
                    let mut done = 0_u64;
                    while start.elapsed() < time {
                        let parameters = BTreeMap::new();
                        client.call::<Instances>("DescribeInstances", &parameters).await?;
                        done += 1;
                    }
                    Ok(done)
                })
            })
            .collect();
        let mut done = 0;
        for client in clients {
            let result = self.runtime.block_on(client);
            done += result.map_err(|e| BenchError::Wrong(e.to_string()))?.map_err(asked)?;
        }
        Ok(done as f64 / start.elapsed().as_secs_f64())
    }

    /// Deletes the instances.
    pub fn delete_all(&self) -> Result<(), BenchError> {
        self.runtime.block_on(async {
            let all = self.client.list::<Instances>(&BTreeMap::new()).await.map_err(asked)?;
            for one in all {
                let which = [("InstanceId", one.instance_id), ("Force", "true".to_owned())];
                let which = which.map(|(name, value)| (name.to_owned(), value)).into();
                self.client.call::<Nothing>("DeleteInstance", &which).await.map_err(asked)?;
            }
            Ok(())
        })
    }
}

impl Drop for Cloud<'_> {
    /// VMs and card outlive their agent; whatever of them is left belongs to this folder and ends with it.
    fn drop(&mut self) {
        self.agent.stop();
        let folder = self.folder.path().to_string_lossy().into_owned();
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        for process in processes.map(|entry| entry.path()) {
            let Some(pid) = process.file_name().and_then(|name| name.to_str()?.parse().ok()) else {
                continue;
            };
            let line = fs::read_to_string(process.join("cmdline")).unwrap_or_default();
            // A VMM in its jail names nothing by path; its log is here.
            let log = fs::read_link(process.join("fd/2")).unwrap_or_default();
            let ours = line.contains(&folder) || log.starts_with(&folder);
            if ours && pid != std::process::id() as i32 && pid != self.control.pid() as i32 {
                let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
            }
        }
    }
}

/// Lets this machine join, and starts its agent.
fn join(folder: &Folder) -> Result<Process, BenchError> {
    let token = bixi(folder, "server token")?;
    let state = format!("--state={}", folder.file("agent").display());
    let mut joining = Command::new(program("bixi-agent")?);
    printed(joining.args(["join", &token, "--name=bench", &state]), "join")?;
    let mut serve = Command::new(program("bixi-agent")?);
    serve.arg("serve").arg(state);
    for name in ["run", "disks"] {
        serve.arg(format!("--{name}={}", folder.file(name).display()));
    }
    Process::start(serve, None, folder.file("agent.log"))
}

/// The client of the profile that `cloud init` has made.
fn client(profiles: &Path) -> Result<EcsClient, BenchError> {
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(BenchError::system(format!("read {}", path.display())))
    };
    let parsed: Result<Profiles, _> = serde_json::from_str(&read(profiles)?);
    let mut all = parsed.map_err(|e| BenchError::Wrong(e.to_string()))?.profiles;
    let profile = all.pop_first().map(|(_, profile)| profile);
    let profile = profile.ok_or_else(|| BenchError::Wrong("there is no profile".to_owned()))?;
    let key = AccessKey { id: profile.access_key_id, secret: profile.access_key_secret };
    let authority = read(&profile.ca_file)?;
    EcsClient::new(&profile.endpoint, &authority, key, &profile.region).map_err(asked)
}

/// Processor time that a process has used, in seconds.
fn seconds(pid: u32) -> Result<f64, BenchError> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).map_err(BenchError::system(format!("read {path}")))?;
    // Behind the name, which may have blanks: user and system time are the 12th and 13th.
    let (_, rest) = text.rsplit_once(") ").unwrap_or_default();
    let ticks: u64 =
        rest.split(' ').skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Memory that a process shares with no other, in KiB.
fn private(pid: u32) -> Result<u64, BenchError> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).map_err(BenchError::system(format!("read {path}")))?;
    let of = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    Ok(text.lines().filter(|line| line.starts_with("Private_")).filter_map(of).sum())
}
