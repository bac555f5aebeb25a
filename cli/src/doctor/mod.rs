//! `bixi doctor`: what this machine can run, and why not the rest.
//!
//! Whether guests run is not concluded from flags: a small one is run, by the very program that runs instances. The
//! other checks say what to do where it does not, and what instances would lack.

mod guest;
mod host;

use crate::context::Context;
use crate::failure::Failure;
use crate::output::Shown;
use host::Machine;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Where to look.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The bixi-vmm program; beside this one, or in PATH, unless told
    #[arg(long, value_name = "FILE")]
    vmm: Option<PathBuf>,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// Something works less well, or not for everybody.
    Warning,
    No,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    check: &'static str,
    state: State,
    /// What was found.
    found: String,
    /// What to do; empty where nothing is.
    next: String,
}

impl Check {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, state: State::Ok, found: found.into(), next: String::new() }
    }

    fn warning(check: &'static str, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { check, state: State::Warning, found: found.into(), next: next.into() }
    }

    fn no(check: &'static str, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { check, state: State::No, found: found.into(), next: next.into() }
    }
}

impl Arguments {
    /// Checks and prints; fails if this machine can run no instances.
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let vmm = self.vmm.or_else(|| beside("bixi-vmm")).unwrap_or_else(|| "bixi-vmm".into());
        let mut checks = Machine::new(Path::new("/")).checks();
        checks.push(guest::check(&vmm).await);
        checks.extend(["bixi-agent", "bixi-storage", "bixi-network", "bixi-cloud"].map(program));
        checks.extend(verdicts(&checks));
        context.output.list(&checks)?;
        match checks.iter().any(|check| check.check == VMS && check.state == State::No) {
            true => Err(Failure::Failed("this machine can run no virtual machines".to_owned())),
            false => Ok(()),
        }
    }
}

const VMS: &str = "virtual machines";
/// What each of this machine's parts needs.
const NEEDS: [(&str, &[&str]); 3] = [
    (VMS, &["guest"]),
    (
        "server of a cloud",
        &["guest", "root", "io_uring", "bixi-agent", "bixi-storage", "bixi-network"],
    ),
    ("cloud", &["bixi-cloud"]),
];

/// What the checks mean: what this machine can be.
fn verdicts(checks: &[Check]) -> Vec<Check> {
    let verdict = |(what, needs): &(&'static str, &[&str])| {
        let bad = |check: &&Check| needs.contains(&check.check) && check.state == State::No;
        let lacking: Vec<&str> = checks.iter().filter(bad).map(|check| check.check).collect();
        match lacking.as_slice() {
            [] => Check::ok(what, "can run here"),
            lacking => Check::no(what, format!("cannot run here: {}", lacking.join(", ")), ""),
        }
    };
    NEEDS.iter().map(verdict).collect()
}

fn beside(program: &str) -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.with_file_name(program);
    path.exists().then_some(path)
}

/// Whether a program of ours is here.
fn program(name: &'static str) -> Check {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let in_path =
        || std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|p| p.exists());
    match beside(name).or_else(in_path) {
        Some(path) => Check::ok(name, path.display().to_string()),
        None => Check::no(name, "is not here", "install it beside bixi, or in PATH"),
    }
}

impl Shown for Check {
    const HEAD: &'static [&'static str] = &["CHECK", "STATE", "FOUND", "NEXT"];

    fn row(&self) -> Vec<String> {
        let state = match self.state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::No => "no",
        };
        vec![self.check.to_owned(), state.to_owned(), self.found.clone(), self.next.clone()]
    }

    fn name(&self) -> String {
        self.check.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_names_what_is_lacking() {
        let checks = [
            Check::ok("guest", ""),
            Check::no("root", "", ""),
            Check::warning("cgroup", "", ""),
            Check::no("bixi-network", "", ""),
        ];
        let verdicts = verdicts(&checks);
        assert_eq!(verdicts[0].state, State::Ok);
        assert_eq!(verdicts[1].found, "cannot run here: root, bixi-network");
        assert_eq!(verdicts[2].state, State::Ok);
    }
}
