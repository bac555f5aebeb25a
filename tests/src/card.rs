//! The card of a server: its storage and its network process, and what is asked of them.

use crate::control::Control;
use crate::daemon::{Daemon, Lease};
use crate::error::Result;
use bixi_api::network::{PortAdd, PortDescription, SegmentConfig, SegmentDescription};
use bixi_api::storage::{DiskAttach, DiskCreate, DiskDescription};
use bixi_lab::Server;
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// The UDP port of VXLAN.
const VXLAN: u16 = 4789;

/// An emulated server is slow to start a program.
const START_LIMIT: Duration = Duration::from_secs(30);

/// One process of a card, which can be killed and started again.
#[derive(Debug)]
pub struct Service {
    daemon: Daemon,
    /// What its control socket answers once it serves.
    path: String,
    control: Control,
}

impl Service {
    fn new(
        server: &Server,
        name: &'static str,
        arguments: Vec<String>,
        control: &str,
        lease: Lease,
    ) -> Result<Self> {
        let control = Control::new(server, control.as_ref())?;
        let daemon = Daemon::new(server, name, arguments, lease);
        let path = format!("/v1/{}", name.trim_start_matches("bixi-"));
        let mut service = Self { daemon, path, control };
        service.start()?;
        Ok(service)
    }

    /// Starts the process and waits until its control socket answers.
    ///
    /// # Errors
    /// When it does not start; what it logged is told.
    pub fn start(&mut self) -> Result<()> {
        self.start_with(&[])
    }

    /// Like [`Self::start`], with variables in its environment.
    ///
    /// # Errors
    /// When it does not start; what it logged is told.
    pub fn start_with(&mut self, environment: &[(&str, &str)]) -> Result<()> {
        let Self { daemon, path, control } = self;
        let ask = || Ok(Some(control.get::<Value>(path)?));
        daemon.start_until(environment, START_LIMIT, ask).map(drop)
    }

    /// Kills it with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(&mut self) -> Result<()> {
        self.daemon.kill()
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// When it does not end in time, or was not started with a handle.
    pub fn wait_end(&mut self, limit: Duration) -> Result<bixi_lab::Ended> {
        self.daemon.wait_end(limit)
    }

    /// Its process id in the server.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.daemon.pid()
    }

    /// Its control socket.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The end of its log.
    #[must_use]
    pub fn logged(&self) -> String {
        self.daemon.logged()
    }
}

/// A disk's id: the prefix and 20 digits.
#[must_use]
pub fn disk_id(number: u32) -> String {
    format!("d-{number:020}")
}

/// The card of one server.
#[derive(Debug)]
pub struct Card {
    /// Its storage process.
    pub storage: Service,
    /// Its network process.
    pub network: Service,
    server: Server,
}

impl Card {
    /// Starts both processes of a server's card.
    ///
    /// # Errors
    /// When one does not start; what it logged is told.
    pub fn start(server: &Server, lease: Lease) -> Result<Self> {
        let words = |text: String| text.split(' ').map(str::to_owned).collect();
        server
            .sh("mkdir -p /scratch/disks /run/bixi/storage /run/bixi/network /run/bixi/sockets")?;
        let storage = words(
            "serve --root /scratch/disks --state /run/bixi/storage/state \
             --control /run/bixi/storage/control.sock"
                .to_owned(),
        );
        let network = words(format!(
            "serve --state /run/bixi/network/state --control /run/bixi/network/control.sock \
             --underlay {}",
            Self::endpoint(server)
        ));
        let (storage_socket, network_socket) =
            ("/run/bixi/storage/control.sock", "/run/bixi/network/control.sock");
        Ok(Self {
            storage: Service::new(server, "bixi-storage", storage, storage_socket, lease)?,
            network: Service::new(server, "bixi-network", network, network_socket, lease)?,
            server: server.clone(),
        })
    }

    /// A server's tunnel end point.
    #[must_use]
    pub fn endpoint(server: &Server) -> SocketAddr {
        SocketAddr::from((server.underlay(), VXLAN))
    }

    /// The server it is in.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Makes an empty disk and serves it; the socket.
    ///
    /// # Errors
    /// When the storage process refuses.
    pub fn disk(&self, id: &str, size: u64) -> Result<PathBuf> {
        let create = DiskCreate { id: id.to_owned(), size: Some(size), image: None };
        self.storage.control.post::<DiskDescription>("/v1/disks", &create)?;
        self.attach(id, 1)
    }

    /// Serves a disk that is there; the socket.
    ///
    /// # Errors
    /// When the storage process refuses.
    pub fn attach(&self, id: &str, epoch: u64) -> Result<PathBuf> {
        let attach = DiskAttach {
            epoch,
            socket: Self::socket(id),
            queues: 4,
            read_only: false,
            require_sealed: true,
            limits: bixi_api::storage::DiskLimits::NONE,
        };
        self.attach_as(id, &attach)?;
        Ok(attach.socket)
    }

    /// Serves a disk as told.
    ///
    /// # Errors
    /// When the storage process refuses.
    pub fn attach_as(&self, id: &str, attach: &DiskAttach) -> Result<DiskDescription> {
        Ok(self.storage.control.put(&format!("/v1/disks/{id}/attachment"), attach)?)
    }

    /// Serves a disk no longer.
    ///
    /// # Errors
    /// When the storage process refuses.
    pub fn detach(&self, id: &str) -> Result<DiskDescription> {
        Ok(self.storage.control.delete(&format!("/v1/disks/{id}/attachment"))?)
    }

    /// A disk as it is now.
    ///
    /// # Errors
    /// When there is none.
    pub fn describe_disk(&self, id: &str) -> Result<DiskDescription> {
        Ok(self.storage.control.get(&format!("/v1/disks/{id}"))?)
    }

    /// Serves a port in a segment; the socket.
    ///
    /// # Errors
    /// When the network process refuses.
    pub fn port(&self, id: &str, segment: u32, mac: &str, address: Ipv4Addr) -> Result<PathBuf> {
        let port = PortAdd {
            epoch: 1,
            socket: Self::socket(id),
            segment,
            mac: mac.to_owned(),
            ipv4: vec![address],
            queue_pairs: 2,
            require_sealed: true,
            limits: bixi_api::network::PortLimits::NONE,
        };
        self.port_as(id, &port)?;
        Ok(port.socket)
    }

    /// Serves a port as told.
    ///
    /// # Errors
    /// When the network process refuses.
    pub fn port_as(&self, id: &str, port: &PortAdd) -> Result<PortDescription> {
        Ok(self.network.control.put(&format!("/v1/ports/{id}"), port)?)
    }

    /// A port as it is now.
    ///
    /// # Errors
    /// When there is none.
    pub fn describe_port(&self, id: &str) -> Result<PortDescription> {
        Ok(self.network.control.get(&format!("/v1/ports/{id}"))?)
    }

    /// Tells the card what it knows about a segment.
    ///
    /// # Errors
    /// When the network process refuses.
    pub fn segment(&self, vni: u32, config: &SegmentConfig) -> Result<SegmentDescription> {
        Ok(self.network.control.put(&format!("/v1/segments/{vni}"), config)?)
    }

    fn socket(id: &str) -> PathBuf {
        PathBuf::from(format!("/run/bixi/sockets/{id}.sock"))
    }
}
