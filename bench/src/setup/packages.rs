//! Programs of peers: found, or installed as Debian packages with a word to the user.

use crate::BenchError;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where a program is; `program` may be an absolute path. Installs `packages` if it is missing.
///
/// # Errors
/// It is missing and cannot be installed.
pub fn ensure(program: &str, packages: &[&str]) -> Result<PathBuf, BenchError> {
    if let Some(found) = find(program) {
        return Ok(found);
    }
    println!("  installing with apt: {}", packages.join(" "));
    // The usual reason for a first failure is a fresh machine without package lists.
    if !install(packages) {
        let _ = Command::new("apt-get").args(["update", "-qq"]).status();
        install(packages);
    }
    find(program).ok_or_else(|| BenchError::Package {
        program: program.to_owned(),
        package: packages.join(" "),
    })
}

fn install(packages: &[&str]) -> bool {
    let mut command = Command::new("apt-get");
    command.args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages);
    // A benchmark's peer must not start as a system service.
    command.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
    command.stdout(std::process::Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn find(program: &str) -> Option<PathBuf> {
    if program.starts_with('/') {
        return Path::new(program).is_file().then(|| program.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|candidate| candidate.is_file())
}

/// A program of ours: it lies beside this one.
///
/// # Errors
/// It has not been built.
pub fn ours(program: &str) -> Result<PathBuf, BenchError> {
    let own = std::env::current_exe().map_err(BenchError::system("find the built programs"))?;
    let path = own.with_file_name(program);
    if path.is_file() { Ok(path) } else { Err(BenchError::NotBuilt(path)) }
}
