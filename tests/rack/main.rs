//! Tests with real Linux kernels on real KVM, in one rack that all share; it is reset before each.
//!
//! Run by `cargo xtask test`, or by `cargo test --workspace --test rack -- [NAME]`. Slow ones are marked ignored and run
//! with `--include-ignored`.

// A test says on standard output why it is skipped, and on failure what the rack's logs say.
#![allow(clippy::print_stdout)]

mod bed;
mod boot;
mod cloud;
mod foreign;
mod machine;
mod network;
mod power;
mod refusals;
mod storage;

use bed::{Alone, Bed, Check};
use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // All share one rack.
    arguments.test_threads = Some(1);
    let mut trials = Vec::new();
    for (module, checks) in [
        ("boot", boot::CHECKS),
        ("cloud", cloud::CHECKS),
        ("power", power::CHECKS),
        ("storage", storage::CHECKS),
        ("network", network::CHECKS),
        ("refusals", refusals::CHECKS),
        ("foreign", foreign::CHECKS),
    ] {
        for Check { name, slow, run } in checks {
            let trial = Trial::ignorable_test(format!("{module}::{name}"), move || Bed::run(run));
            trials.push(trial.with_ignored_flag(*slow));
        }
    }
    for Alone { name, run } in machine::CHECKS {
        let trial = Trial::ignorable_test(format!("machine::{name}"), || Bed::run_alone(*run));
        trials.push(trial.with_ignored_flag(true));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    Bed::end();
    conclusion.exit_code()
}
