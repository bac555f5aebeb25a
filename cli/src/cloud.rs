//! `bixi cloud`: a cloud on this machine.
//!
//! `init` lets `bixi-cloud` make its state, by starting it once; asks it for a first tenant and an access key; keeps both
//! in a profile; and ends it again. It can be run again: what is there stays.

use crate::context::Context;
use crate::failure::Failure;
use crate::output::printable;
use crate::profile::{Profile, Profiles, path};
use crate::progress::Progress;
use bixi_api::operator::{
    AccessKeyDescription, CloudDescription, OperatorClient, TenantCreate, TenantDescription,
};
use hyper::Method;
use rustix::process::{Pid, Signal, kill_process};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

/// How long the cloud may take to answer, and to end.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

/// A cloud on this machine.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make the state of a cloud on this machine, with a tenant, an access key and a profile
    Init(Init),
}

#[derive(Debug, clap::Args)]
pub struct Init {
    /// Directory of the cloud's state
    #[arg(long, value_name = "DIR", default_value = "/var/lib/bixi/cloud")]
    state: PathBuf,
    /// Where the cloud is to serve
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:7443")]
    listen: SocketAddr,
    /// Name or address by which servers and users reach the cloud
    #[arg(long)]
    name: Option<String>,
    /// The first tenant
    #[arg(long, value_name = "NAME", default_value = "default")]
    tenant: String,
    /// The profile that is made or changed
    #[arg(long, value_name = "NAME", default_value = "local")]
    save: String,
    /// The bixi-cloud program; beside this one, or in PATH, unless told
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

impl Command {
    /// Does it.
    pub async fn run(self, _: &Context) -> Result<(), Failure> {
        let Self::Init(init) = self;
        let path = path()?;
        let mut profiles = Profiles::read(&path)?;
        let mut progress = Progress::new();
        progress.say("starting bixi-cloud once, to make its state");
        let mut running = Running::start(&init)?;
        let (profile, operator) = running.answers(&init).await?;
        let cloud: CloudDescription = operator.get("/v1/cloud").await?;
        let known = profiles.profiles.get(&init.save);
        let known = known.filter(|known| known.endpoint == profile.endpoint).cloned();
        let key = first_key(&operator, &init.tenant, known).await?;
        running.end().await?;
        let (access_key_id, access_key_secret) = key;
        let region = cloud.region;
        profiles.add(&init.save, Profile { region, access_key_id, access_key_secret, ..profile });
        profiles.write(&path)?;
        drop(progress);
        eprintln!(
            "The cloud's state is in {}; profile {} is for it.",
            init.state.display(),
            init.save
        );
        eprintln!("Next, and whenever this machine has started:\n  {}", init.command_line());
        eprintln!("Then, for each server:\n  bixi --profile {} server token", init.save);
        Ok(())
    }
}

type KeyPair = (Option<String>, Option<String>);

/// The key that the profile has, if the cloud knows it, or a new one of the tenant, which is made if it is not there.
async fn first_key(
    operator: &OperatorClient,
    tenant: &str,
    known: Option<Profile>,
) -> Result<KeyPair, Failure> {
    let tenants: Vec<TenantDescription> = operator.get("/v1/tenants").await?;
    let id = match tenants.into_iter().find(|one| one.name == tenant) {
        Some(found) => found.id,
        None => {
            let create = TenantCreate { name: tenant.to_owned(), quota: None };
            operator.ask::<TenantDescription>(Method::POST, "/v1/tenants", &create).await?.id
        }
    };
    let path = format!("/v1/tenants/{id}/access-keys");
    let keys: Vec<AccessKeyDescription> = operator.get(&path).await?;
    if let Some(known) = known
        && keys.iter().any(|key| Some(&key.id) == known.access_key_id.as_ref())
    {
        return Ok((known.access_key_id, known.access_key_secret));
    }
    let made: AccessKeyDescription = operator.ask(Method::POST, &path, &()).await?;
    Ok((Some(made.id), made.secret))
}

impl Init {
    fn program(&self) -> PathBuf {
        let beside = || {
            let program = std::env::current_exe().ok()?.with_file_name("bixi-cloud");
            program.exists().then_some(program)
        };
        self.program.clone().or_else(beside).unwrap_or_else(|| "bixi-cloud".into())
    }

    fn arguments(&self) -> Vec<String> {
        let state = self.state.display().to_string();
        let mut arguments: Vec<String> =
            ["serve", "--state", &state, "--listen"].map(str::to_owned).to_vec();
        arguments.push(self.listen.to_string());
        if let Some(name) = &self.name {
            arguments.extend(["--name".to_owned(), name.clone()]);
        }
        arguments
    }

    fn command_line(&self) -> String {
        format!("{} {}", self.program().display(), self.arguments().join(" "))
    }

    /// Where this machine reaches the cloud.
    fn endpoint(&self) -> String {
        let ip = match self.listen.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        SocketAddr::new(ip, self.listen.port()).to_string()
    }

    fn profile(&self) -> Result<Profile, Failure> {
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .map_err(|e| Failure::system(format!("read {}", path.display()), e))
        };
        let token = read(&self.state.join("operator.token"))?.trim().to_owned();
        let ca_file = self.state.join("ca/ca.pem");
        let absolute = ca_file.canonicalize();
        let ca_file =
            absolute.map_err(|e| Failure::system(format!("find {}", ca_file.display()), e))?;
        let endpoint = self.endpoint();
        Ok(Profile { endpoint, ca_file, operator_token: Some(token), ..Profile::default() })
    }
}

/// A bixi-cloud that is ended when this is dropped.
struct Running {
    child: Child,
    log: tempfile::NamedTempFile,
}

impl Running {
    fn start(init: &Init) -> Result<Self, Failure> {
        let log = tempfile::NamedTempFile::new();
        let log = log.map_err(|e| Failure::system("make a file for bixi-cloud's log", e))?;
        let stderr = log.reopen().map_err(|e| Failure::system("open bixi-cloud's log", e))?;
        let program = init.program();
        let mut process = Process::new(&program);
        process.args(init.arguments()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let failed = |e| {
            let what = format!("start {} (name it with --program)", program.display());
            Failure::system(what, e)
        };
        Ok(Self { child: process.spawn().map_err(failed)?, log })
    }

    /// Waits until the cloud answers.
    async fn answers(&mut self, init: &Init) -> Result<(Profile, OperatorClient), Failure> {
        let begun = Instant::now();
        loop {
            let ended = self.child.try_wait();
            if let Some(status) = ended.map_err(|e| Failure::system("wait for bixi-cloud", e))? {
                return Err(Failure::Failed(format!(
                    "bixi-cloud has ended ({status}): {}",
                    self.said()
                )));
            }
            let unanswered = match try_to_ask(init).await {
                Ok(answered) => return Ok(answered),
                Err(failure) => failure,
            };
            if begun.elapsed() > PATIENCE {
                let said = self.said();
                return Err(Failure::Timeout(format!(
                    "bixi-cloud does not answer: {unanswered}; {said}"
                )));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The end of what it logged.
    fn said(&self) -> String {
        let text = std::fs::read_to_string(self.log.path()).unwrap_or_default();
        printable(&bixi_image::host::tail(&text))
    }

    async fn end(mut self) -> Result<(), Failure> {
        let failed = |e| Failure::system("end bixi-cloud", e);
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM).map_err(|e| failed(e.into()))?;
        }
        let begun = Instant::now();
        while self.child.try_wait().map_err(failed)?.is_none() {
            if begun.elapsed() > PATIENCE {
                return Err(Failure::Timeout(
                    "bixi-cloud does not end when it is told to".to_owned(),
                ));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After a good end there is nobody to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn try_to_ask(init: &Init) -> Result<(Profile, OperatorClient), Failure> {
    let profile = init.profile()?;
    let token = profile.operator_token.as_deref().unwrap_or("");
    let operator = OperatorClient::new(&profile.endpoint, &profile.authority()?, token)?;
    operator.get::<CloudDescription>("/v1/cloud").await?;
    Ok((profile, operator))
}
