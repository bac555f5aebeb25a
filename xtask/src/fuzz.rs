//! `cargo xtask fuzz`: coverage-guided fuzzing on stable Rust.
//!
//! libFuzzer comes from a crate and is compiled with the C++ compiler; the coverage it needs is inserted by LLVM's own pass,
//! which stable rustc hands through. The crate `tests/fuzz` is a workspace of its own, so that ordinary builds know nothing
//! of it; its programs go to a target folder of their own, because every flag differs.

use crate::cargo::{cargo, ensure_program, run, target, workspace};
use crate::{Failure, Outcome, say};
use std::path::PathBuf;
use std::process::Command;

/// What makes rustc count edges and compare operands as libFuzzer expects.
const FLAGS: &str = "--cfg fuzzing -C passes=sancov-module \
    -C llvm-args=-sanitizer-coverage-level=4 \
    -C llvm-args=-sanitizer-coverage-inline-8bit-counters \
    -C llvm-args=-sanitizer-coverage-pc-table \
    -C llvm-args=-sanitizer-coverage-trace-compares \
    -C debug-assertions=yes -C overflow-checks=yes -C codegen-units=1";

/// Prints the names of the targets.
pub fn list() -> Outcome {
    let program = build()?;
    run(Command::new(program).env("BIXI_FUZZ", "list"))
}

/// Fuzzes one target, or all in turn; each starts from what earlier runs have found.
pub fn fuzz(only: Option<&str>, seconds: u64) -> Outcome {
    let program = build()?;
    let known = targets(&program)?;
    if let Some(name) = only
        && !known.iter().any(|t| t == name)
    {
        return Err(Failure::new(format!("no target {name:?}; there are: {}", known.join(", "))));
    }
    for name in known.iter().filter(|t| only.is_none_or(|o| o == *t)) {
        say(&format!("fuzzing {name} for {seconds} s"));
        let corpus = target().join("fuzz-corpus").join(name);
        let findings = target().join("fuzz-findings").join(name);
        for folder in [&corpus, &findings] {
            std::fs::create_dir_all(folder)
                .map_err(|e| Failure::new(format!("cannot make {}: {e}", folder.display())))?;
        }
        let mut command = Command::new(&program);
        command
            .env("BIXI_FUZZ", name)
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-artifact_prefix={}/", findings.display()))
            .args(["-print_final_stats=1", "-timeout=10", "-rss_limit_mb=2048", "-max_len=65536"])
            .arg(&corpus);
        run(&mut command).map_err(|_| {
            Failure::new(format!(
                "{name} failed; run `BIXI_FUZZ={name} {} {}/…` on the input it left there",
                program.display(),
                findings.display()
            ))
        })?;
    }
    Ok(())
}

fn targets(program: &PathBuf) -> Outcome<Vec<String>> {
    let output = Command::new(program)
        .env("BIXI_FUZZ", "list")
        .output()
        .map_err(|e| Failure::new(format!("cannot run {}: {e}", program.display())))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(str::to_owned).collect())
}

fn build() -> Outcome<PathBuf> {
    ensure_program("c++", "g++")?;
    say("building the fuzz targets");
    let folder = target().join("fuzz");
    let manifest = workspace().join("tests/fuzz/Cargo.toml");
    // With a target named, the flags spare build scripts and procedural macros.
    let triple = "x86_64-unknown-linux-gnu";
    let mut command = cargo(&["build", "--release", "--target", triple, "--manifest-path"]);
    command.arg(manifest).env("CARGO_TARGET_DIR", &folder).env("RUSTFLAGS", FLAGS);
    run(&mut command)?;
    Ok(folder.join(triple).join("release").join("bixi-fuzz"))
}
