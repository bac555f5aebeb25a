//! `bixi-bundle`: makes a release bundle of programs that are built. `cargo xtask bundle` starts it.

use bixi_release::bundle::{About, make};
use bixi_release::key::PrivateKey;
use bixi_release::product::sources;
use bixi_release::{ReleaseError, error::Result};
use clap::Parser;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Makes a release bundle and prints its path.
#[derive(Debug, Parser)]
#[command(name = "bixi-bundle", version)]
struct Arguments {
    /// The directory of the built programs
    #[arg(long, value_name = "DIR")]
    binaries: PathBuf,
    /// The directory of the files for systemd
    #[arg(long, value_name = "DIR")]
    units: PathBuf,
    /// The key that signs it: Ed25519 as PKCS#8 in PEM
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Make the key if it is not there, and its public part beside it
    #[arg(long)]
    make_key: bool,
    /// Where the bundle goes
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// The version that it is called
    #[arg(long, value_name = "VERSION")]
    release: String,
    /// The commit that it was built from
    #[arg(long, value_name = "ID")]
    commit: Option<String>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(path) => {
            // A reader that went away is no error.
            let _ = writeln!(std::io::stdout(), "{}", path.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bixi-bundle: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<PathBuf> {
    let key = match arguments.make_key && !arguments.key.exists() {
        true => make_key(&arguments.key)?,
        false => PrivateKey::read(&arguments.key)?,
    };
    create(&arguments.output)?;
    let about = About {
        version: arguments.release.clone(),
        // What this program runs on is what its neighbours were built for.
        architecture: std::env::consts::ARCH.to_owned(),
        commit: arguments.commit.clone(),
    };
    make(&about, &sources(&arguments.binaries, &arguments.units), &key, &arguments.output)
}

fn make_key(path: &Path) -> Result<PrivateKey> {
    let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    let key = PrivateKey::generate(name)?;
    if let Some(folder) = path.parent() {
        create(folder)?;
    }
    let public = path.with_extension("pub");
    std::fs::write(&public, format!("{}\n", key.public())).map_err(failed("write", &public))?;
    // Last, so that where there is a key, its public part is there too.
    key.write(path)?;
    eprintln!("bixi-bundle: made a key; machines trust it by `--trust {}`", public.display());
    Ok(key)
}

fn create(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(failed("make", folder))
}

fn failed(verb: &str, path: &Path) -> impl FnOnce(std::io::Error) -> ReleaseError {
    let action = format!("{verb} {}", path.display());
    move |source| ReleaseError::System { action, source }
}
