//! Where things are on a server.

use std::path::{Path, PathBuf};

/// The agent's directories and programs.
#[derive(Debug, Clone)]
pub struct Places {
    /// What outlives the server's boot: identity, records, images.
    pub state: PathBuf,
    /// What lives as long as the server's boot, on tmpfs: sockets, logs, the card's state.
    pub run: PathBuf,
    /// The disks.
    pub disks: PathBuf,
    /// `bixi-vmm`, `bixi-storage` and `bixi-network`.
    pub programs: PathBuf,
}

impl Places {
    /// The server's id, its key and certificate, and where the cloud is.
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.state.join("identity.json")
    }

    /// The desired state last seen.
    #[must_use]
    pub fn desired(&self) -> PathBuf {
        self.state.join("desired.json")
    }

    /// Records of instances.
    #[must_use]
    pub fn records(&self) -> PathBuf {
        self.state.join("instances")
    }

    /// Images, each by its sum.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    /// A program of the product.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// The control socket of the card process `name`: `storage` or `network`.
    #[must_use]
    pub fn card_control(&self, name: &str) -> PathBuf {
        self.run.join(format!("{name}.sock"))
    }

    /// The state of a card process.
    #[must_use]
    pub fn card_state(&self, name: &str) -> PathBuf {
        self.run.join(name)
    }

    /// The log of a card process.
    #[must_use]
    pub fn card_log(&self, name: &str) -> PathBuf {
        self.run.join(format!("{name}.log"))
    }

    /// What belongs to the present life of an instance.
    #[must_use]
    pub fn vm(&self, id: &str) -> Vm {
        Vm(self.run.join("vm").join(id))
    }
}

/// The directory of one instance.
#[derive(Debug, Clone)]
pub struct Vm(PathBuf);

impl Vm {
    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// The sockets of its disks and interfaces: all that its VMM sees.
    #[must_use]
    pub fn cards(&self) -> PathBuf {
        self.0.join("cards")
    }

    /// The VMM's control socket.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.0.join("control")
    }

    /// The console's socket.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.0.join("console")
    }

    /// What the VMM says.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// Not empty once the VMM has had its permission.
    #[must_use]
    pub fn launched(&self) -> PathBuf {
        self.0.join("launched")
    }

    /// What the jail is told.
    #[must_use]
    pub fn spec(&self) -> PathBuf {
        self.0.join("jail.json")
    }

    /// Where the jail builds its root.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.0.join("root")
    }

    /// What the NoCloud disk is made from.
    #[must_use]
    pub fn cidata(&self) -> PathBuf {
        self.0.join("cidata")
    }
}
