//! This machine: the programs that builds call, and the packages they install or take apart.
//!
//! Whatever gets installed is said on the screen first.

use crate::error::{Attempt, Error, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

static QUIET: AtomicBool = AtomicBool::new(false);

/// Says one line of progress on standard error.
pub fn say(line: &str) {
    if !QUIET.load(Ordering::Relaxed) {
        eprintln!("bixi: {line}");
    }
}

/// Switches lines of progress off or on for the whole process.
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// Runs a command to its end; a failure carries the end of what it said.
///
/// # Errors
/// It cannot be run, or fails.
pub fn run(command: &mut Command) -> Result<Output> {
    let line = describe(command);
    let output = command.output().attempt(|| format!("run `{line}`"))?;
    if output.status.success() {
        return Ok(output);
    }
    let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.trim().is_empty() {
        said = String::from_utf8_lossy(&output.stdout).into_owned();
    }
    Err(Error::Program { command: line, output: format!("{} ({})", tail(&said), output.status) })
}

fn describe(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// The last lines of a text, on one line.
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(6)..].join(" | ")
}

/// A program that is called and the Debian package that has it.
pub type Needed = (&'static str, &'static str);

/// Installs the packages of those programs that are missing, and says which.
///
/// # Errors
/// When `apt-get` is not there or fails; the error names the packages.
pub fn ensure_programs(needed: &[Needed]) -> Result<()> {
    let missing = || -> Vec<&str> {
        let missing = needed.iter().filter(|(program, _)| !exists(program));
        missing.map(|(_, package)| *package).collect()
    };
    if missing().is_empty() {
        return Ok(());
    }
    // Whoever had the turn before may have installed them.
    let _turn = turn();
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    install_in_turn(&missing)
}

/// One user of apt at a time among our own threads and processes. The lock is on a folder that is there anyway.
fn turn() -> Option<fs::File> {
    let folder = fs::File::open("/var/lib/apt/lists").ok()?;
    // Without the lock apt may refuse, and its message is shown.
    rustix::fs::flock(&folder, rustix::fs::FlockOperation::LockExclusive).ok()?;
    Some(folder)
}

/// Installs Debian packages, and says which.
///
/// # Errors
/// When `apt-get` is not there or fails; the error names the packages.
pub fn install(packages: &[&str]) -> Result<()> {
    let _turn = turn();
    install_in_turn(packages)
}

fn install_in_turn(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if !exists("apt-get") {
        return Err(Error::Unfit(format!(
            "this machine has no apt-get: install what Debian calls {list} yourself"
        )));
    }
    say(&format!("installing with apt: {list}"));
    let attempt = |packages: &[&str]| {
        run(Command::new("apt-get")
            // Another user of apt on this machine is waited for.
            .args(["-o", "DPkg::Lock::Timeout=600"])
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive"))
    };
    if attempt(packages).is_err() {
        // The usual reason is a fresh machine without package lists.
        update()?;
        attempt(packages)?;
    }
    Ok(())
}

fn update() -> Result<()> {
    say("reading the package lists (apt-get update)");
    run(Command::new("apt-get").args(["update", "-qq"])).map(drop)
}

fn exists(program: &str) -> bool {
    locate(program).is_some()
}

/// Where a program of this machine is; administrators' folders are searched even if `PATH` lacks them.
fn locate(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].iter().map(Into::into);
    std::env::split_paths(&path)
        .chain(usual)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// A command that runs a program of this machine.
pub fn program(name: &str) -> Command {
    Command::new(locate(name).unwrap_or_else(|| name.into()))
}

/// Downloads a Debian package and unpacks it into `folder`, without installing it.
///
/// # Errors
/// apt cannot get it.
pub fn unpack_package(package: &str, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).attempt(|| format!("make {}", folder.display()))?;
    let _turn = turn();
    let download = || {
        run(Command::new("apt-get")
            // As root apt would drop to a user who may not write into our folder.
            .args(["-o", "APT::Sandbox::User=root", "download", "-qq", package])
            .current_dir(folder))
    };
    say(&format!("downloading the Debian package {package}"));
    if download().is_err() {
        update()?;
        download()?;
    }
    let mut unpacked = false;
    for entry in fs::read_dir(folder).attempt(|| format!("read {}", folder.display()))? {
        let path = entry.attempt(|| format!("read {}", folder.display()))?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            run(Command::new("dpkg").arg("-x").arg(&path).arg(folder))?;
            fs::remove_file(&path).attempt(|| format!("remove {}", path.display()))?;
            unpacked = true;
        }
    }
    if unpacked {
        Ok(())
    } else {
        Err(Error::Unfit(format!("apt-get downloaded nothing for {package}")))
    }
}

/// The package that a Debian metapackage stands for: its first dependency that begins with `prefix`.
///
/// # Errors
/// apt does not know it.
pub fn real_package(metapackage: &str, prefix: &str) -> Result<String> {
    let ask = || -> Option<String> {
        let output = run(Command::new("apt-cache").args(["depends", metapackage])).ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut names = text.lines().filter_map(|l| l.trim().strip_prefix("Depends: "));
        names.find(|n| n.starts_with(prefix)).map(str::to_owned)
    };
    if let Some(name) = ask() {
        return Ok(name);
    }
    {
        let _turn = turn();
        update()?;
    }
    ask().ok_or_else(|| {
        Error::Unfit(format!(
            "apt knows no {metapackage}: it needs the package lists of Debian 12 or newer"
        ))
    })
}
