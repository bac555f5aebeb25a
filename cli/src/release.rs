//! `bixi release`: the versions of Bixi on this machine.

use crate::context::Context;
use crate::failure::Failure;
use crate::output::Shown;
use bixi_release::bundle::Reader;
use bixi_release::install::{Installed, Releases};
use bixi_release::key::PublicKey;
use bixi_release::manifest::{Manifest, Signed, is_version};
use serde::Serialize;
use std::fs::File;
use std::path::{Path, PathBuf};

/// The versions of Bixi on this machine.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Install a bundle and take its version into use
    Install {
        /// The bundle, as `cargo xtask bundle` makes it
        file: PathBuf,
        /// The public key of whoever made it, which is trusted from now on if it has signed the bundle
        #[arg(long, value_name = "FILE")]
        trust: Option<PathBuf>,
        #[command(flatten)]
        machine: Machine,
    },
    /// List the versions that are installed
    List {
        #[command(flatten)]
        machine: Machine,
    },
    /// See that a bundle or an installed version is as a trusted key has signed it
    Verify {
        /// The bundle's file, or the version
        #[arg(value_name = "FILE|VERSION")]
        what: String,
        /// A public key that is trusted for this once
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        #[command(flatten)]
        machine: Machine,
    },
    /// Remove a version that is not in use
    Remove {
        /// The version
        version: String,
        #[command(flatten)]
        machine: Machine,
    },
}

/// Which machine.
#[derive(Debug, clap::Args)]
pub struct Machine {
    /// The machine's root directory
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

impl Machine {
    fn releases(&self) -> Releases {
        Releases::of(&self.root)
    }
}

impl Command {
    /// Does it.
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Install { file, trust, machine } => {
                install(context, &machine.releases(), &file, trust.as_deref())
            }
            Self::List { machine } => {
                let list = machine.releases().list()?;
                context.output.list(&list.into_iter().map(Row::of).collect::<Vec<_>>())
            }
            Self::Verify { what, key, machine } => {
                verify(context, &machine.releases(), &what, key.as_deref())
            }
            Self::Remove { version, machine } => Ok(machine.releases().remove(&version)?),
        }
    }
}

fn install(
    context: &Context,
    releases: &Releases,
    file: &Path,
    trust: Option<&Path>,
) -> Result<(), Failure> {
    let mut trusted = releases.trusted()?;
    let key = trust.map(PublicKey::read).transpose()?;
    trusted.extend(key.clone());
    let before = releases.current()?;
    let outcome = releases.install(open(file)?, &trusted)?;
    if let Some(key) = key.filter(|key| *key == outcome.signed.key) {
        releases.trust(&key)?;
    }
    let version = &outcome.signed.manifest.version;
    match (outcome.was_there, before) {
        (true, before) if before.as_ref() == Some(version) => {
            eprintln!("Version {version} was there already; every file of it is as it was signed.");
        }
        (_, Some(before)) if before != *version => eprintln!(
            "Version {version} is in use now; what runs goes on with {before} until it is started again."
        ),
        _ => eprintln!("Version {version} is in use now."),
    }
    context.output.one(&Row::signed(&outcome.signed, true))
}

fn verify(
    context: &Context,
    releases: &Releases,
    what: &str,
    key: Option<&Path>,
) -> Result<(), Failure> {
    let mut trusted = releases.trusted()?;
    trusted.extend(key.map(PublicKey::read).transpose()?);
    let path = Path::new(what);
    let signed = match is_version(what) && !path.exists() {
        true => releases.verify(what, &trusted)?,
        false => Reader::open(open(path)?, &trusted)?.finish()?,
    };
    let current = releases.current()?.as_ref() == Some(&signed.manifest.version);
    context.output.one(&Row::signed(&signed, current))
}

fn open(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|e| Failure::system(format!("open {}", path.display()), e))
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Row {
    version: String,
    current: bool,
    architecture: Option<String>,
    commit: Option<String>,
    size: Option<u64>,
    /// Who has signed it, where that was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

impl Row {
    fn new(version: String, current: bool, manifest: Option<&Manifest>) -> Self {
        Self {
            version,
            current,
            architecture: manifest.map(|manifest| manifest.architecture.clone()),
            commit: manifest.and_then(|manifest| manifest.commit.clone()),
            size: manifest.map(|manifest| manifest.files.iter().map(|file| file.size).sum()),
            key: None,
        }
    }

    fn of(installed: Installed) -> Self {
        let Installed { version, current, manifest } = installed;
        Self::new(version, current, manifest.as_ref())
    }

    fn signed(signed: &Signed, current: bool) -> Self {
        let version = signed.manifest.version.clone();
        let key = Some(signed.key.name().to_owned());
        Self { key, ..Self::new(version, current, Some(&signed.manifest)) }
    }
}

impl Shown for Row {
    const HEAD: &'static [&'static str] = &["VERSION", "CURRENT", "ARCHITECTURE", "SIZE", "COMMIT"];

    fn row(&self) -> Vec<String> {
        vec![
            self.version.clone(),
            if self.current { "yes" } else { "" }.to_owned(),
            self.architecture.clone().unwrap_or_else(|| "damaged".to_owned()),
            self.size.map(|size| format!("{} MiB", size.div_ceil(1 << 20))).unwrap_or_default(),
            self.commit.clone().unwrap_or_default(),
        ]
    }

    fn name(&self) -> String {
        self.version.clone()
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        self.key.clone().map(|key| ("SIGNED BY", key)).into_iter().collect()
    }
}
