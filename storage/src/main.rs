//! `bixi-storage`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    bixi_storage::cli::main()
}
