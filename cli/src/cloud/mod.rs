//! `bixi cloud`: a cloud on this machine.
//!
//! `init` starts `bixi-cloud`, which makes its state; asks it for a first tenant and an access key; and keeps both in a
//! profile. Where systemd runs the machine the cloud is a service and goes on; elsewhere it is ended again. It can be run
//! again: what is there stays, and changed settings are taken over.

mod once;
mod service;

use crate::context::{Context, beside};
use crate::failure::Failure;
use crate::profile::{Profile, Profiles, path};
use crate::progress::Progress;
use crate::systemd;
use bixi_api::operator::{
    AccessKeyDescription, CloudDescription, OperatorClient, TenantCreate, TenantDescription,
};
use hyper::Method;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// A cloud on this machine.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a cloud on this machine, with a tenant, an access key and a profile, and let it run as a service
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
    /// Make no service, but print how to serve
    #[arg(long)]
    no_service: bool,
    /// The bixi-cloud program, for a cloud without the service; beside this one, or in PATH, unless told
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
        if systemd::is_wanted(init.no_service || init.program.is_some()) {
            progress.say("starting bixi-cloud");
            let (profile, operator) = service::start(&init).await?;
            init.keep(&mut profiles, profile, &operator).await?;
            profiles.write(&path)?;
            drop(progress);
            eprintln!("The cloud runs; its state is in {}.", init.state.display());
        } else {
            progress.say("starting bixi-cloud once, to make its state");
            let mut running = once::Running::start(&init)?;
            let (profile, operator) = running.answers(&init).await?;
            init.keep(&mut profiles, profile, &operator).await?;
            running.end().await?;
            profiles.write(&path)?;
            drop(progress);
            eprintln!("The cloud's state is in {}.", init.state.display());
            let line = init.command_line();
            eprintln!("Next, and whenever this machine has started:\n  {line}");
        }
        eprintln!("Profile {} is for it. Then, for each server:", init.save);
        eprintln!("  bixi --profile {} server token", init.save);
        eprintln!("  bixi server join TOKEN      there");
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
    /// Puts the cloud, its first tenant and a key of that into the profile.
    async fn keep(
        &self,
        profiles: &mut Profiles,
        profile: Profile,
        operator: &OperatorClient,
    ) -> Result<(), Failure> {
        let cloud: CloudDescription = operator.get("/v1/cloud").await?;
        let known = profiles.profiles.get(&self.save);
        let known = known.filter(|known| known.endpoint == profile.endpoint).cloned();
        let (access_key_id, access_key_secret) = first_key(operator, &self.tenant, known).await?;
        let region = cloud.region;
        profiles.add(&self.save, Profile { region, access_key_id, access_key_secret, ..profile });
        Ok(())
    }

    fn program(&self) -> PathBuf {
        self.program.clone().unwrap_or_else(|| beside("bixi-cloud"))
    }

    /// The arguments of `bixi-cloud serve`.
    fn arguments(&self) -> Vec<String> {
        let mut arguments =
            vec![format!("--state={}", self.state.display()), format!("--listen={}", self.listen)];
        arguments.extend(self.name.as_ref().map(|name| format!("--name={name}")));
        arguments
    }

    fn command_line(&self) -> String {
        format!("{} serve {}", self.program().display(), self.arguments().join(" "))
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

async fn try_to_ask(init: &Init) -> Result<(Profile, OperatorClient), Failure> {
    let profile = init.profile()?;
    let token = profile.operator_token.as_deref().unwrap_or("");
    let operator = OperatorClient::new(&profile.endpoint, &profile.authority()?, token)?;
    operator.get::<CloudDescription>("/v1/cloud").await?;
    Ok((profile, operator))
}
