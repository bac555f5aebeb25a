//! The whole command line as a tree, and its way to the code that does it.

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Format, Output};
use crate::{
    cloud, doctor, event, image, instance, key, profile, release, server, task, tenant, types,
};
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use std::process::ExitCode;

const AFTER: &str =
    "Exit status: 0 done; 1 failed; 2 wrong usage; 3 there is no such thing; 4 not done in time.

Environment:
  BIXI_PROFILE             the profile to use
  BIXI_PROFILES            the file of profiles, instead of ~/.config/bixi/profiles.json
  BIXI_ENDPOINT            HOST:PORT of the cloud, instead of the profile's
  BIXI_CA                  file of the cloud's authority, instead of the profile's
  BIXI_REGION              the region, instead of the profile's
  BIXI_ACCESS_KEY_ID       the access key, instead of the profile's
  BIXI_ACCESS_KEY_SECRET   its secret
  BIXI_OPERATOR_TOKEN      the operator's token, instead of the profile's
  NO_COLOR                 no colours, whatever it is set to";

/// The command line of a Bixi cloud.
#[derive(Debug, Parser)]
#[command(name = "bixi", version, after_help = AFTER, arg_required_else_help = true)]
pub struct Cli {
    /// The profile to use: which cloud, and as whom
    #[arg(long, global = true, value_name = "NAME", env = "BIXI_PROFILE", hide_env = true)]
    profile: Option<String>,
    /// How answers are printed
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "table")]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Virtual machines: run, list, start, stop, reboot, delete, console
    #[command(subcommand)]
    Instance(instance::Command),
    /// Types of instances
    #[command(subcommand)]
    Type(types::Command),
    /// Images that instances are made of
    #[command(subcommand)]
    Image(image::Command),
    /// Servers of the cloud, and tokens by which new ones join (operators)
    #[command(subcommand)]
    Server(server::Command),
    /// Tenants of the cloud (operators)
    #[command(subcommand)]
    Tenant(tenant::Command),
    /// Access keys of tenants (operators)
    #[command(subcommand)]
    Key(key::Command),
    /// Long operations
    #[command(subcommand)]
    Task(task::Command),
    /// What happened in the cloud (operators)
    #[command(subcommand)]
    Event(event::Command),
    /// Which clouds this user speaks with, and as whom
    #[command(subcommand)]
    Profile(profile::Command),
    /// A cloud on this machine
    #[command(subcommand)]
    Cloud(cloud::Command),
    /// The versions of Bixi on this machine
    #[command(subcommand)]
    Release(release::Command),
    /// What this machine can run, and why not the rest
    Doctor(doctor::Arguments),
    /// Print a script that completes this command line in a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => {
            let done = runtime.block_on(dispatch(cli));
            // A thread may still wait for a key to be pressed.
            runtime.shutdown_background();
            done
        }
        Err(source) => Err(Failure::system("start a runtime", source)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report();
            ExitCode::from(failure.code())
        }
    }
}

async fn dispatch(cli: Cli) -> Result<(), Failure> {
    let context = Context::new(cli.profile, Output::new(cli.output));
    match cli.command {
        Command::Instance(command) => command.run(&context).await,
        Command::Type(command) => command.run(&context).await,
        Command::Image(command) => command.run(&context).await,
        Command::Server(command) => command.run(&context).await,
        Command::Tenant(command) => command.run(&context).await,
        Command::Key(command) => command.run(&context).await,
        Command::Task(command) => command.run(&context).await,
        Command::Event(command) => command.run(&context).await,
        Command::Profile(command) => command.run(&context),
        Command::Cloud(command) => command.run(&context).await,
        Command::Release(command) => command.run(&context),
        Command::Doctor(arguments) => arguments.run(&context).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "bixi", &mut script);
            context.output.print(&String::from_utf8_lossy(&script))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_argument_says_what_it_is() {
        fn look(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path} has no help");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{path} {} has no help", argument.get_id());
            }
            for command in command.get_subcommands() {
                look(command, &path);
            }
        }
        look(&Cli::command(), "");
    }
}
