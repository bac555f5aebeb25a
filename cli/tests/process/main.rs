//! The real `bixi` against the real `bixi-cloud`, each in its own process, over HTTPS.
//!
//! This program is also that `bixi-cloud`: told to `serve`, it is its command line, so that no test depends on what was
//! built before. Servers are simulated: they do at once whatever the cloud wants, through the agents' own client.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod local;
mod operator;
mod release;
mod rig;
mod server;
mod tenant;

use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("serve") {
        return bixi_cloud::cli::main();
    }
    let tests: [(&str, fn()); 7] = [
        ("wrong_usage_and_absent_clouds_have_their_exit_status", local::usage),
        ("profiles_are_kept_and_secrets_are_not_shown", local::profiles),
        ("a_doctor_says_what_is_lacking_and_runs_a_guest", local::doctor),
        ("releases_are_installed_verified_and_removed", release::releases),
        ("an_operator_makes_tenants_keys_and_images", operator::operator),
        ("an_instance_lives_through_its_life", tenant::life),
        ("what_is_not_done_in_time_says_so", tenant::late),
    ];
    let trial = |(name, test): (&'static str, fn())| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    libtest_mimic::run(&Arguments::from_args(), tests.map(trial).into()).exit_code()
}
