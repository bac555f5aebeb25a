//! Commands that build the product in release and hand over to a program of it.

use crate::cargo::{cargo, release, run, workspace};
use crate::{Outcome, say};
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

/// The crates whose programs a rack needs.
const PRODUCT: &[&str] = &[
    "bixi-cloud",
    "bixi-agent",
    "bixi-compute",
    "bixi-storage",
    "bixi-network",
    "bixi-cli",
    "bixi-lab",
];

/// Builds programs in release; how long it took, in seconds.
pub fn build(more: &[&str]) -> Outcome<f64> {
    let start = Instant::now();
    let mut arguments = vec!["build", "--release", "--bins"];
    for package in PRODUCT.iter().chain(more) {
        arguments.extend(["-p", package]);
    }
    say("building in release (the first time takes some minutes)");
    run(&mut cargo(&arguments))?;
    Ok(start.elapsed().as_secs_f64())
}

fn with_json(command: &mut Command, json: Option<PathBuf>) -> &mut Command {
    if let Some(path) = json {
        // The program runs in the workspace, the path was meant from here.
        command.arg("--json").arg(std::path::absolute(&path).unwrap_or(path));
    }
    command.current_dir(workspace())
}

/// The product in one go.
pub fn demo(exit: bool, json: Option<PathBuf>) -> Outcome {
    let built = build(&["bixi-tests"]);
    if let (Err(_), Some(path)) = (&built, &json) {
        let text = r#"{"ok":false,"steps":[{"step":"build","ok":false,"seconds":0}]}"#;
        // The failed build is what the user is told.
        let _ = std::fs::write(path, text);
    }
    let mut demo = Command::new(release("bixi-demo"));
    demo.arg("--built").arg(format!("{:.1}", built?));
    if exit {
        demo.arg("--exit");
    }
    run(with_json(&mut demo, json))
}

/// Card processes die and come back for as long as told.
pub fn soak(minutes: u64, json: Option<PathBuf>) -> Outcome {
    build(&["bixi-tests"])?;
    let mut soak = Command::new(release("bixi-soak"));
    soak.arg("--minutes").arg(minutes.to_string());
    run(with_json(&mut soak, json))
}

/// Side by side with peers.
pub fn bench(name: &str, json: Option<PathBuf>, quick: bool) -> Outcome {
    build(&["bixi-bench"])?;
    let mut bench = Command::new(release("bixi-bench"));
    bench.arg(name);
    if quick {
        bench.arg("--quick");
    }
    run(with_json(&mut bench, json))
}
