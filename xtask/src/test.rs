//! `cargo xtask test`: one build, then unit and micro-guest tests, then the tests that share a rack.

use crate::cargo::{cargo, describe, run};
use crate::tally::Tally;
use crate::{Failure, Outcome, say};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Runs everything and ends with one line of counts.
pub fn test(all: bool, rack: Option<&str>) -> Outcome {
    let start = Instant::now();
    say("building (the first time takes some minutes)");
    // One selection for all that is built and run, so that no crate is compiled twice for other features.
    run(&mut cargo(&["build", "--workspace", "--bins", "--tests"]))?;
    run(&mut cargo(&["test", "--workspace", "--test", "rack", "--no-run"]))?;
    say(&format!("built in {:.0} s", start.elapsed().as_secs_f64()));
    let mut total = Tally::default();
    if rack.is_none() {
        say("unit and micro-guest tests");
        total.add(&units(all)?);
    }
    say("tests in the rack");
    let tally = in_rack(all, rack)?;
    if let (Some(text), Tally { passed: 0, failed: 0, skipped: 0, .. }) = (rack, &tally) {
        return Err(Failure::new(format!("no test in the rack has {text:?} in its name")));
    }
    total.add(&tally);
    say(&format!("all in {:.0} s", start.elapsed().as_secs_f64()));
    let line =
        format!("{} passed, {} failed, {} skipped\n", total.passed, total.failed, total.skipped);
    // The line stands alone on standard output; a reader who has gone away still gets the exit code.
    let _ = std::io::stdout().write_all(line.as_bytes());
    if total.failed == 0 { Ok(()) } else { Err(Failure::new("tests failed")) }
}

fn units(all: bool) -> Outcome<Tally> {
    let mut command = cargo(&["test", "--workspace", "--no-fail-fast", "--", "--show-output"]);
    if all {
        command.arg("--include-ignored");
    }
    counted(&mut command)
}

fn in_rack(all: bool, only: Option<&str>) -> Outcome<Tally> {
    let mut command = cargo(&["test", "--workspace", "--test", "rack", "--"]);
    if all {
        command.arg("--include-ignored");
    }
    command.args(only);
    counted(&mut command)
}

/// Runs test programs, shows what matters of what they say, and counts.
fn counted(command: &mut Command) -> Outcome<Tally> {
    let name = describe(command);
    let wrong = |e| Failure::new(format!("cannot run `{name}`: {e}"));
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(wrong)?;
    let mut tally = Tally::default();
    if let Some(output) = child.stdout.take() {
        let mut reader = BufReader::new(output);
        let mut line = Vec::new();
        // Tests may write anything: a line that is no text is shown as well as it can be.
        while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line);
            if let Some(shown) = tally.line(text.trim_end_matches('\n')) {
                let _ = writeln!(std::io::stdout(), "{shown}");
            }
            line.clear();
        }
    }
    let status = child.wait().map_err(|e| Failure::new(e.to_string()))?;
    tally.finish(status.success());
    Ok(tally)
}
