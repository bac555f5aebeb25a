//! `bixi-network`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    bixi_network::cli::main()
}
