//! Cargo, the workspace and the folders this program was built in.

use crate::{Failure, Outcome};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace's folder.
pub fn workspace() -> PathBuf {
    // Cargo sets the variable when it runs this program; the constant serves who starts it directly.
    let own = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    own.parent().map_or(own.clone(), Path::to_owned)
}

/// The folder cargo builds into: this program lies in its `debug` folder.
pub fn target() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.ancestors().nth(2).map_or_else(|| workspace().join("target"), Path::to_owned)
}

/// A program built in release.
pub fn release(program: &str) -> PathBuf {
    target().join("release").join(program)
}

/// A cargo command in the workspace.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(workspace()).env("CARGO_TARGET_DIR", target());
    command
}

/// Runs a command with this process's terminal; an exit code other than 0 is a failure.
pub fn run(command: &mut Command) -> Outcome {
    let name = describe(command);
    let status = command.status().map_err(|e| Failure::new(format!("cannot run `{name}`: {e}")))?;
    if status.success() { Ok(()) } else { Err(Failure::new(format!("`{name}` failed ({status})"))) }
}

/// The command line, for messages.
pub fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = command.get_args().map(|a| a.to_string_lossy());
    std::iter::once(program.to_string_lossy()).chain(words).collect::<Vec<_>>().join(" ")
}

/// Installs a Debian package if a program is missing, and says so.
pub fn ensure_program(program: &str, package: &str) -> Outcome {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
        return Ok(());
    }
    crate::say(&format!("installing with apt: {package}"));
    let mut install = Command::new("apt-get");
    install.args(["install", "-y", "-qq", "--no-install-recommends", package]);
    install.env("DEBIAN_FRONTEND", "noninteractive");
    if run(&mut install).is_ok() {
        return Ok(());
    }
    // The usual reason is a fresh machine without package lists.
    run(Command::new("apt-get").args(["update", "-qq"]))?;
    run(&mut install)
}
