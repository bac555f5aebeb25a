//! `bixi key`.

use crate::context::{Context, segment};
use crate::failure::Failure;
use crate::output::{Shown, age};
use crate::profile::{Profile, Profiles, path};
use bixi_api::operator::AccessKeyDescription;
use hyper::Method;

/// Access keys of tenants.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Create an access key; its secret is shown this once
    Create {
        /// The tenant, by id or name
        tenant: String,
        /// Add a profile of this name with the key for this cloud, instead of showing the secret
        #[arg(long, value_name = "PROFILE")]
        save: Option<String>,
    },
    /// List the access keys of a tenant, without secrets
    List {
        /// The tenant, by id or name
        tenant: String,
    },
}

impl Command {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let operator = context.operator()?;
        let keys = |tenant: &str| {
            Ok::<_, Failure>(format!("/v1/tenants/{}/access-keys", segment(tenant)?))
        };
        match self {
            Self::Create { tenant, save } => {
                let mut key: AccessKeyDescription =
                    operator.ask(Method::POST, &keys(&tenant)?, &()).await?;
                if let Some(name) = save {
                    keep(context, &name, &key)?;
                    key.secret = None;
                }
                context.output.one(&key)
            }
            Self::List { tenant } => {
                let keys: Vec<AccessKeyDescription> = operator.get(&keys(&tenant)?).await?;
                context.output.list(&keys)
            }
        }
    }
}

/// Adds a profile for the same cloud with that key. What is an operator's stays out of it.
fn keep(context: &Context, name: &str, key: &AccessKeyDescription) -> Result<(), Failure> {
    let path = path()?;
    let mut profiles = Profiles::read(&path)?;
    let same = context.profile()?;
    let known = profiles.profiles.get(name).filter(|known| known.endpoint == same.endpoint);
    let operator_token = known.and_then(|known| known.operator_token.clone());
    let (id, secret) = (Some(key.id.clone()), key.secret.clone());
    let profile = Profile { access_key_id: id, access_key_secret: secret, operator_token, ..same };
    profiles.add(name, profile);
    profiles.write(&path)?;
    eprintln!("Profile {name} has the key: bixi --profile {name} instance list");
    Ok(())
}

impl Shown for AccessKeyDescription {
    const HEAD: &'static [&'static str] = &["ID", "TENANT", "AGE"];

    fn row(&self) -> Vec<String> {
        vec![self.id.clone(), self.tenant.clone(), age(self.created)]
    }

    fn name(&self) -> String {
        self.id.clone()
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        self.secret.clone().map(|secret| ("SECRET", secret)).into_iter().collect()
    }
}
