//! What every command has: the output, and clients made of the profile when they are first needed.

use crate::failure::Failure;
use crate::output::Output;
use crate::profile::{Profile, chosen};
use bixi_api::ecs::{AccessKey, EcsClient};
use bixi_api::operator::OperatorClient;
use std::path::PathBuf;

/// What every command has.
#[derive(Debug)]
pub struct Context {
    profile: Option<String>,
    /// Where answers go.
    pub output: Output,
}

impl Context {
    /// The context of a command that was told to use `profile`.
    pub fn new(profile: Option<String>, output: Output) -> Self {
        Self { profile, output }
    }

    /// The profile that is in use, with the environment's changes.
    pub fn profile(&self) -> Result<Profile, Failure> {
        Ok(chosen(self.profile.as_deref())?)
    }

    /// A client of the tenants' API.
    pub fn ecs(&self) -> Result<EcsClient, Failure> {
        let profile = self.profile()?;
        let (Some(id), Some(secret)) =
            (profile.access_key_id.clone(), profile.access_key_secret.clone())
        else {
            return Err(Failure::Failed(
                "this profile has no access key: an operator makes one by `bixi key create TENANT --save PROFILE`"
                    .to_owned(),
            ));
        };
        let key = AccessKey { id, secret };
        Ok(EcsClient::new(&profile.endpoint, &profile.authority()?, key, &profile.region)?)
    }

    /// A client of the operators' API.
    pub fn operator(&self) -> Result<OperatorClient, Failure> {
        let profile = self.profile()?;
        let Some(token) = &profile.operator_token else {
            return Err(Failure::Failed(
                "this profile has no operator's token, which this command needs: \
                 `bixi profile add NAME --operator-token-file FILE`, with operator.token of the cloud's state directory"
                    .to_owned(),
            ));
        };
        Ok(OperatorClient::new(&profile.endpoint, &profile.authority()?, token)?)
    }
}

/// A program of the product: beside this one, else wherever PATH has it.
pub fn beside(name: &str) -> PathBuf {
    let own = std::env::current_exe().ok();
    let program = own.map(|own| own.with_file_name(name)).filter(|program| program.exists());
    program.unwrap_or_else(|| name.into())
}

/// A name that becomes one segment of a path.
pub fn segment(name: &str) -> Result<&str, Failure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.is_empty() && !name.starts_with('.') && name.chars().all(plain) {
        return Ok(name);
    }
    Err(Failure::NotFound(format!(
        "{name:?} is no id and no name: they are of letters, digits, - and _"
    )))
}
