//! `bixi-cloud`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    bixi_cloud::cli::main()
}
