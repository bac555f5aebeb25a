//! `bixi profile`.

use super::{Profile, Profiles, path};
use crate::context::Context;
use crate::failure::Failure;
use crate::output::Shown;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Which clouds this user speaks with, and as whom.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Add a profile, or change one: what is not told stays
    Add(Add),
    /// List the profiles; secrets are not shown
    List,
    /// Use a profile where none is named
    Use {
        /// Its name
        name: String,
    },
}

#[derive(Debug, clap::Args)]
pub struct Add {
    /// Its name
    name: String,
    /// The cloud
    #[arg(long, value_name = "HOST:PORT")]
    endpoint: Option<String>,
    /// File of the cloud's authority: ca/ca.pem of its state directory
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The region
    #[arg(long, value_name = "ID")]
    region: Option<String>,
    /// The tenant's access key
    #[arg(long, value_name = "ID")]
    key_id: Option<String>,
    /// File with the access key's secret; `-` is the standard input
    #[arg(long, value_name = "FILE", requires = "key_id")]
    key_secret_file: Option<PathBuf>,
    /// File with the operator's token: operator.token of the cloud's state directory; `-` is the standard input
    #[arg(long, value_name = "FILE")]
    operator_token_file: Option<PathBuf>,
}

impl Command {
    /// Does it.
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let path = path()?;
        let mut profiles = Profiles::read(&path)?;
        match self {
            Self::Add(add) => {
                let known = profiles.profiles.get(&add.name).cloned();
                let name = add.name.clone();
                profiles.add(&name, add.change(known.unwrap_or_default())?);
                profiles.write(&path)?;
            }
            Self::List => return context.output.list(&rows(&profiles)),
            Self::Use { name } => {
                profiles.get(&name)?;
                profiles.current = Some(name);
                profiles.write(&path)?;
            }
        }
        Ok(())
    }
}

impl Add {
    fn change(self, mut profile: Profile) -> Result<Profile, Failure> {
        profile.endpoint = self.endpoint.unwrap_or(profile.endpoint);
        profile.region = self.region.unwrap_or(profile.region);
        if let Some(ca) = self.ca {
            let absolute = |e| Failure::system(format!("find {}", ca.display()), e);
            profile.ca_file = ca.canonicalize().map_err(absolute)?;
        }
        if profile.endpoint.is_empty() || profile.ca_file.as_os_str().is_empty() {
            return Err(Failure::Usage(
                "a new profile needs --endpoint HOST:PORT and --ca FILE".to_owned(),
            ));
        }
        profile.access_key_id = self.key_id.or(profile.access_key_id);
        let key_secret = self.key_secret_file.map(|file| secret(&file)).transpose()?;
        profile.access_key_secret = key_secret.or(profile.access_key_secret);
        let token = self.operator_token_file.map(|file| secret(&file)).transpose()?;
        profile.operator_token = token.or(profile.operator_token);
        Ok(profile)
    }
}

/// A secret is never an argument: other users see those.
fn secret(file: &Path) -> Result<String, Failure> {
    let text = match file.as_os_str() == "-" {
        true => std::io::read_to_string(std::io::stdin()),
        false => std::fs::read_to_string(file),
    };
    let text = text.map_err(|e| Failure::system(format!("read {}", file.display()), e))?;
    match text.trim() {
        "" => Err(Failure::Usage(format!("{} is empty", file.display()))),
        text => Ok(text.to_owned()),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Row<'a> {
    name: &'a str,
    current: bool,
    endpoint: &'a str,
    ca_file: &'a Path,
    region: &'a str,
    access_key_id: Option<&'a str>,
    operator: bool,
}

fn rows(profiles: &Profiles) -> Vec<Row<'_>> {
    let all = profiles.profiles.iter().map(|(name, profile)| Row {
        name,
        current: profiles.current.as_ref() == Some(name),
        endpoint: &profile.endpoint,
        ca_file: &profile.ca_file,
        region: &profile.region,
        access_key_id: profile.access_key_id.as_deref(),
        operator: profile.operator_token.is_some(),
    });
    all.collect()
}

impl Shown for Row<'_> {
    const HEAD: &'static [&'static str] =
        &["NAME", "CURRENT", "ENDPOINT", "REGION", "ACCESS KEY", "OPERATOR"];

    fn row(&self) -> Vec<String> {
        let mark = |is| if is { "*" } else { "" }.to_owned();
        let key = self.access_key_id.unwrap_or("").to_owned();
        let (endpoint, region) = (self.endpoint.to_owned(), self.region.to_owned());
        vec![self.name.to_owned(), mark(self.current), endpoint, region, key, mark(self.operator)]
    }

    fn name(&self) -> String {
        self.name.to_owned()
    }
}
