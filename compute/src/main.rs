//! `bixi-vmm`: one virtual machine in one process.

use bixi_compute::command::Arguments;
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match Arguments::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bixi-vmm: {}", failure.chain());
            ExitCode::from(failure.code())
        }
    }
}
