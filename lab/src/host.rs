//! This machine: the programs the lab calls, the packages it installs, and what the processor can do.
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
        eprintln!("lab: {line}");
    }
}

/// Switches lines of progress off or on for the whole process.
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// Runs a command to its end; a failure carries the end of what it said.
pub(crate) fn run(command: &mut Command) -> Result<Output> {
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
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(6)..].join(" | ")
}

/// A program the lab calls and the Debian package that has it.
pub type Needed = (&'static str, &'static str);

/// What every rack needs on this machine.
pub const RACK_PROGRAMS: &[Needed] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("ip", "iproute2"),
    ("mkfs.ext4", "e2fsprogs"),
    ("ldd", "libc-bin"),
    ("strip", "binutils"),
    ("lz4", "lz4"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];

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

/// One user of apt at a time among the lab's own threads and processes. The lock is on a folder that is there anyway.
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
pub(crate) fn program(name: &str) -> Command {
    Command::new(locate(name).unwrap_or_else(|| name.into()))
}

/// Downloads a Debian package and unpacks it into `folder`, without installing it.
pub(crate) fn unpack_package(package: &str, folder: &Path) -> Result<()> {
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
pub(crate) fn real_package(metapackage: &str, prefix: &str) -> Result<String> {
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
            "apt knows no {metapackage}: the lab needs the package lists of Debian 12 or newer"
        ))
    })
}

/// How servers get their processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceleration {
    /// QEMU's translator, with an emulated AMD SVM: any machine.
    Emulated,
    /// Hardware virtualization handed on to the servers.
    Nested,
}

impl Acceleration {
    /// What this machine can do.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let nested = ["kvm_amd", "kvm_intel"].iter().any(|module| {
            fs::read_to_string(format!("/sys/module/{module}/parameters/nested"))
                .is_ok_and(|value| matches!(value.trim(), "1" | "Y"))
        });
        // A software KVM opens too, but shows no processor flag and has no nested virtualization to hand on.
        let hardware = flags.lines().any(|l| {
            l.starts_with("flags") && l.split_whitespace().any(|f| f == "vmx" || f == "svm")
        });
        let opens = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
        if hardware && nested && opens { Self::Nested } else { Self::Emulated }
    }

    /// QEMU's arguments for it.
    pub(crate) fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Emulated => ["-accel", "tcg,thread=multi", "-cpu", "EPYC-Rome,+svm,+npt"],
            Self::Nested => ["-accel", "kvm", "-cpu", "host"],
        }
    }

    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Emulated => "emulated (TCG with AMD SVM)",
            Self::Nested => "nested hardware virtualization",
        }
    }
}

/// Refuses to go on without root, or on a machine that is not x86.
pub(crate) fn check() -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        return Err(Error::Unfit("the rack runs on x86-64 machines only".to_owned()));
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Error::Unfit(
            "the rack needs root: it makes network namespaces and TAP devices; \
             run the same command as root"
                .to_owned(),
        ));
    }
    Ok(())
}
