//! `cargo xtask ci`: what a change must pass.

use crate::cargo::{cargo, run};
use crate::{Outcome, say, test};
use std::process::{Command, Stdio};

/// Format, clippy, dependencies, tests.
pub fn ci() -> Outcome {
    say("format");
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    say("clippy");
    run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    // The rack's tests run by name only, and are looked at by name only.
    run(&mut cargo(&["clippy", "--workspace", "--test", "rack", "--", "-D", "warnings"]))?;
    dependencies()?;
    test::test(false, None)
}

/// Licences, duplicates and sources always; advisories when their database can be had.
fn dependencies() -> Outcome {
    let quiet = |command: &mut Command| {
        let run = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        run.is_ok_and(|status| status.success())
    };
    if !quiet(&mut cargo(&["deny", "--version"])) {
        say("installing with cargo: cargo-deny (takes some minutes)");
        run(&mut cargo(&["install", "--locked", "cargo-deny"]))?;
    }
    say("dependencies: licences, duplicates, sources");
    run(&mut cargo(&["deny", "--offline", "check", "licenses", "bans", "sources"]))?;
    say("dependencies: advisories");
    let fetch = cargo(&["deny", "fetch", "db"]).output();
    match fetch {
        Ok(output) if output.status.success() => run(&mut cargo(&["deny", "check", "advisories"])),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let reason = said.lines().find(|l| !l.trim().is_empty()).unwrap_or("no reason given");
            say(&format!("advisories skipped: their database cannot be fetched: {reason}"));
            Ok(())
        }
        Err(error) => {
            say(&format!("advisories skipped: cargo-deny does not run: {error}"));
            Ok(())
        }
    }
}
