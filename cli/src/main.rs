//! `bixi`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    bixi_cli::run()
}
