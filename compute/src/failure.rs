//! Why the process ends, as an exit code and a chain of causes.
//!
//! Codes are part of the interface: whoever starts the process tells a mistake in its configuration from a busy host by
//! them. They are listed in `bixi-vmm --help`.

use crate::boot::BootError;
use crate::boot::files::FileError;
use crate::config::ConfigError;
use crate::console::ConsoleError;
use crate::driver::DriverError;
use crate::driver::build::BuildError;
use crate::jail::JailError;
use crate::memory::MemoryError;
use crate::virtio::vhost_user::ConnectError;
use bixi_api::client::ClientError;
use bixi_offload::control::ListenError;
use std::error::Error;

/// The exit codes, for the help text.
pub const CODES: &str = "Exit codes:
  0   the guest powered off, or the VM was stopped
  1   something else went wrong
  2   the command line or the configuration is wrong
  3   a file is missing or cannot be read
  4   this host has no usable KVM
  5   this host has too little memory or too few huge pages
  6   a socket is in use or cannot be listened on
  7   the kernel or the initrd cannot be booted
  8   the guest cannot go on (KVM met an error)
  9   the control socket does not answer
  10  the control socket refused the request";

/// The exit code for a wrong configuration, and for clap's own complaints.
pub const USAGE: u8 = 2;

/// Why the process ends.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The VM could not be built or go on.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The control socket did not do what was asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The jail that it was to enter is not as it should be.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The process cannot work at all.
    #[error("cannot start")]
    System(#[from] std::io::Error),
}

impl Failure {
    /// The exit code.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Config(ConfigError::Missing(_) | ConfigError::Read { .. }) => 3,
            Self::Config(_) => USAGE,
            Self::Driver(error) => driver_code(error),
            Self::Client(ClientError::Refused(_)) => 10,
            Self::Client(_) => 9,
            Self::Jail(_) | Self::System(_) => 1,
        }
    }

    /// The message with all its causes, for one line of standard error.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let next = error.to_string();
            // A transparent error repeats its cause.
            if !text.ends_with(&next) {
                text = format!("{text}: {next}");
            }
            cause = error.source();
        }
        text
    }
}

fn driver_code(error: &DriverError) -> u8 {
    match error {
        DriverError::Build(error) => build_code(error),
        DriverError::Console(ConsoleError::Listen(error)) | DriverError::Control(error) => {
            listen_code(error)
        }
        DriverError::Console(ConsoleError::Open { .. }) => 3,
        DriverError::Guest { .. } => 8,
        DriverError::Confine(_) | DriverError::Runtime(_) | DriverError::Reset(_) => 1,
    }
}

fn listen_code(_: &ListenError) -> u8 {
    6
}

fn build_code(error: &BuildError) -> u8 {
    match error {
        BuildError::Host(_) => 4,
        BuildError::Vcpus { .. } | BuildError::Insert(_) => USAGE,
        BuildError::Memory(MemoryError::Unavailable(_)) => 5,
        BuildError::Memory(_) => 5,
        BuildError::Boot(BootError::File(FileError::Missing { .. } | FileError::Read { .. })) => 3,
        BuildError::Boot(_) => 7,
        BuildError::Connect(ConnectError::Lost { .. }) => 1,
        BuildError::Connect(_) => USAGE,
        BuildError::Machine(_)
        | BuildError::Share(_)
        | BuildError::Virtio(_)
        | BuildError::Task => 1,
    }
}
