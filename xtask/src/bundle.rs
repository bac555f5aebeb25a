//! `cargo xtask bundle`: the product as one signed file. What a bundle is lives in `release/`.

use crate::cargo::{cargo, run, target, workspace};
use crate::{Outcome, programs, say};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(clap::Args)]
pub struct Arguments {
    /// The key that signs it, Ed25519 as PKCS#8 in PEM; unless given, one in target/release-key, which is made once
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Where the bundle goes; target/bundles unless given
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Build nothing but take the programs in this directory
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// The version that it is called; the workspace's unless given
    #[arg(long, value_name = "VERSION", default_value = env!("CARGO_PKG_VERSION"))]
    version: String,
}

/// Makes the bundle and prints its path.
pub fn bundle(arguments: &Arguments) -> Outcome {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (binaries, profile) = match &arguments.binaries {
        Some(binaries) => (absolute(binaries), None),
        None => {
            programs::build(&["bixi-release"])?;
            (target().join("release"), Some("--release"))
        }
    };
    let mut make = cargo(&["run", "--quiet", "--package=bixi-release", "--bin=bixi-bundle"]);
    make.args(profile).arg("--").arg("--binaries").arg(binaries);
    make.arg("--units").arg(workspace().join("release/units"));
    match &arguments.key {
        Some(key) => make.arg("--key").arg(absolute(key)),
        None => make.arg("--make-key").arg("--key").arg(target().join("release-key/local.pem")),
    };
    let output = arguments.output.as_deref().map(absolute);
    make.arg("--output").arg(output.unwrap_or_else(|| target().join("bundles")));
    make.arg("--release").arg(&arguments.version);
    if let Some(commit) = commit() {
        make.arg("--commit").arg(commit);
    }
    run(&mut make)
}

/// The commit that is built, if git knows it and nothing was changed since.
fn commit() -> Option<String> {
    let git = |words: &[&str]| {
        let output = Command::new("git").args(words).current_dir(workspace()).output().ok()?;
        let said = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| said.trim().to_owned())
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    if !changed.is_empty() {
        say("there are changes since the last commit: the bundle names none");
        return None;
    }
    git(&["rev-parse", "HEAD"])
}
