//! The device in front of a back end, and how it comes into being: the first back end that answers decides what the guest
//! will see.

use super::super::device::{Activation, Kind, VirtioDevice};
use super::super::link::DeviceLink;
use super::super::mailbox::{Mailbox, Restored};
use super::super::state::{RingState, VHOST_USER, VhostUserState};
use super::poller::Poller;
use super::share::GuestShare;
use super::task::{Parts, Patience, Position, Standing, Task};
use crate::device::{Quiesce, QuiesceError, RestoreError};
use crate::log_limit::LogLimit;
use crate::pci::msix::Call;
use bixi_api::file::FileSource;
use bixi_api::state::{Declared, Movable, Payload};
use bixi_offload::frontend::{FrontConfig, Notice, Probe, Shell, Target};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// When a device whose back end has not answered yet says so first, and how often after that.
const COMPLAINTS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Why a device cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The inherited descriptor is not one to connect by.
    #[error(
        "{id}: descriptor {fd} is no socket to connect by: hand in an O_PATH descriptor of the socket file, or a connected stream"
    )]
    Descriptor {
        /// The device.
        id: String,
        /// The number.
        fd: i32,
    },
    /// The inherited connection has ended before the device was there, and there is no way to another one.
    #[error(
        "{id}: its back end on {place} cannot be used, and a connected stream cannot be connected again: {reason}"
    )]
    Lost {
        /// The device.
        id: String,
        /// The socket, in words.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A hardware address that is none.
    #[error(
        "{nic}: `{mac}` is no hardware address of a station: write for example \"02:00:00:00:00:01\""
    )]
    Mac {
        /// The NIC.
        nic: String,
        /// What was written.
        mac: String,
    },
    /// The runtime cannot wait for the socket.
    #[error("{id}: cannot wait for its back end")]
    Wait {
        /// The device.
        id: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Where a device's back end is.
#[derive(Debug)]
pub(super) struct BackEnd {
    pub(super) id: String,
    /// The socket, in words.
    pub(super) place: String,
    /// Whether there is a way to connect again.
    pub(super) returns: bool,
    pub(super) patience: Patience,
    target: Target,
}

impl BackEnd {
    pub(super) fn new(id: &str, socket: &FileSource) -> Result<Self, ConnectError> {
        let target = match socket {
            FileSource::Path(path) => Target::Path(path.clone()),
            FileSource::Fd(fd) => {
                let no = || ConnectError::Descriptor { id: id.to_owned(), fd: *fd };
                inherited(*fd).ok_or_else(no)?
            }
        };
        let returns = !matches!(target, Target::Stream(_));
        let patience = Patience::default();
        Ok(Self { id: id.to_owned(), place: socket.to_string(), returns, patience, target })
    }
}

/// Takes over a descriptor: a socket file to connect by, or a connected stream.
fn inherited(fd: i32) -> Option<Target> {
    // SAFETY: F_GETFL only asks whether the number names an open descriptor, and how it was opened.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    if fd < 0 || flags < 0 {
        return None;
    }
    // SAFETY: it is open, and by the contract of `{fd}` its number was given to this process for this use.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    // What was inherited must not be inherited any further; nothing else can go wrong on an open descriptor.
    let _ = rustix::io::fcntl_setfd(&owned, rustix::io::FdFlags::CLOEXEC);
    let stat = rustix::fs::fstat(&owned).ok()?;
    let is_socket =
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Socket;
    if !is_socket {
        return None;
    }
    match flags & libc::O_PATH {
        0 => Some(Target::Stream(Some(owned))),
        _ => Some(Target::File(owned)),
    }
}

/// What a guest sees of a device, decided by the first back end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Face {
    /// Features offered to the driver.
    pub(super) features: u64,
    /// The configuration space.
    pub(super) config: Vec<u8>,
    /// Rings the back end serves; it comes first in the device's queues.
    pub(super) rings: u16,
    /// The most entries of every queue, those included that this side serves.
    pub(super) queue_sizes: Vec<u16>,
    /// Of the features a driver takes, those that the back end is told.
    pub(super) passed_on: u64,
}

/// What tells a disk from an interface.
pub(super) trait Character: std::fmt::Debug + Send + Sync {
    fn kind(&self) -> &'static Kind;
    /// What the guest will see if `probe` is the first back end; the reason if that one cannot be used.
    fn face(&self, probe: &Probe) -> Result<Face, String>;
    /// The configuration space to show, where the back end tells another one than before. `shown` is what the driver
    /// knows.
    fn update(&self, shown: &[u8], told: &[u8]) -> Option<Vec<u8>>;
    /// Whether a driver may go on with these features.
    fn accepts(&self, features: u64) -> bool;
    /// Pairs of queues, for a device whose queues are pairs that the driver switches on and off.
    fn pairs(&self) -> Option<u16>;
}

/// A device whose back end is a card process.
#[derive(Debug)]
pub struct VhostUser {
    character: Arc<dyn Character>,
    face: Face,
    link: Arc<DeviceLink>,
    mailbox: Arc<Mailbox>,
    position: Arc<Position>,
    task: JoinHandle<()>,
}

impl VhostUser {
    /// Waits for the first back end that can be used, and builds the device that it decides. Must be called inside
    /// the runtime.
    pub(super) async fn connect(
        back_end: BackEnd,
        config: FrontConfig,
        character: Box<dyn Character>,
        share: &GuestShare,
    ) -> Result<Arc<Self>, ConnectError> {
        let BackEnd { id, place, returns, patience, target } = back_end;
        let poller =
            Poller::new().map_err(|source| ConnectError::Wait { id: id.clone(), source })?;
        let mut shell = Shell::new(config, target, share.read_used());
        shell.set_memory(share.regions());
        let character: Arc<dyn Character> = character.into();
        let waiting = FirstWait::new(&id, &place, returns);
        let face = waiting.face(&mut shell, &poller, character.as_ref()).await?;
        shell.require_rings(face.rings);
        let (link, mailbox, position) =
            (Arc::<DeviceLink>::default(), Arc::default(), Arc::<Position>::default());
        link.set_config(&face.config);
        position.set_connected(true);
        let task = Task::new(Parts {
            id,
            place,
            returns,
            patience,
            shell,
            poller,
            share: share.clone(),
            link: Arc::clone(&link),
            mailbox: Arc::clone(&mailbox),
            position: Arc::clone(&position),
            character: Arc::clone(&character),
            passed_on: face.passed_on,
        });
        let task = tokio::spawn(task.run());
        Ok(Arc::new(Self { character, face, link, mailbox, position, task }))
    }

    fn rest(&self, fully: bool) -> Quiesce<'_> {
        let rested = self.mailbox.rest(fully);
        Box::pin(async {
            let lost = |_| QuiesceError { device: self.name(), what: "its task ended".into() };
            rested.await.map_err(lost)?
        })
    }

    fn name(&self) -> String {
        self.character.kind().name.to_owned()
    }
}

/// A device that waits for the first back end that can be used.
struct FirstWait<'a> {
    id: &'a str,
    place: &'a str,
    returns: bool,
    /// Why the newest one could not be.
    reason: Option<String>,
    /// When the next word on the wait is due.
    complaint: Instant,
    log: LogLimit,
}

impl<'a> FirstWait<'a> {
    fn new(id: &'a str, place: &'a str, returns: bool) -> Self {
        let complaint = Instant::now() + COMPLAINTS.0;
        Self { id, place, returns, reason: None, complaint, log: LogLimit::default() }
    }

    /// Waits until a back end has said what it is, and can be used.
    async fn face(
        mut self,
        shell: &mut Shell,
        poller: &Poller,
        character: &dyn Character,
    ) -> Result<Face, ConnectError> {
        let id = self.id;
        let wait = |source| ConnectError::Wait { id: id.to_owned(), source };
        loop {
            poller.watch(shell.sources()).map_err(wait)?;
            let due = self.complaint;
            let due = shell.deadline().map_or(due, |deadline| due.min(deadline.into()));
            tokio::select! {
                ready = poller.ready() => ready.map_err(wait)?,
                () = sleep_until(due) => {}
            }
            if Instant::now() >= self.complaint {
                self.complain();
            }
            shell.turn();
            while let Some(notice) = shell.next_notice() {
                match notice {
                    Notice::Probed(probe) => match character.face(&probe) {
                        Ok(face) => return Ok(face),
                        Err(reason) => {
                            shell.refuse();
                            // That it is gone now is this side's doing, and no news.
                            while shell.next_notice().is_some() {}
                            self.refused(reason)?;
                        }
                    },
                    Notice::Down(down) => self.refused(down.to_string())?,
                    _ => {}
                }
            }
        }
    }

    fn complain(&mut self) {
        let (device, socket) = (self.id, self.place);
        match &self.reason {
            Some(reason) => tracing::warn!(
                device,
                socket,
                %reason,
                "still waiting for a back end that can be used"
            ),
            None => {
                tracing::warn!(device, socket, "still waiting for the back end: is it running?")
            }
        }
        self.complaint = Instant::now() + COMPLAINTS.1;
    }

    /// A back end that is of no use. Said at once if it is news, and else with the next complaint.
    fn refused(&mut self, reason: String) -> Result<(), ConnectError> {
        if !self.returns {
            let (id, place) = (self.id.to_owned(), self.place.to_owned());
            return Err(ConnectError::Lost { id, place, reason });
        }
        if self.reason.as_ref() != Some(&reason) && self.log.pass().is_some() {
            let (device, socket) = (self.id, self.place);
            tracing::error!(device, socket, %reason, "the back end cannot be used");
        }
        self.reason = Some(reason);
        Ok(())
    }
}

impl Drop for VhostUser {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Movable for VhostUser {
    fn declare(&self) -> Declared {
        let rings = match self.position.standing() {
            Standing::Idle => Vec::new(),
            Standing::Busy => {
                return Declared::NotMovable("its rings run: pause the VM first".to_owned());
            }
            Standing::Unclear => {
                return Declared::NotMovable(
                    "its back end died with requests in flight: wait until it is back".to_owned(),
                );
            }
            Standing::Resting(rings) => rings,
        };
        let rings = rings.iter().map(|ring| RingState {
            index: ring.index.into(),
            base: ring.base.into(),
            enabled: ring.enabled,
        });
        Declared::State(Payload::new(VHOST_USER, 1, &VhostUserState { rings: rings.collect() }))
    }
}

impl VirtioDevice for VhostUser {
    fn kind(&self) -> &'static Kind {
        self.character.kind()
    }

    fn features(&self) -> u64 {
        self.face.features
    }

    fn accepts(&self, features: u64) -> bool {
        self.character.accepts(features)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        self.face.queue_sizes.clone()
    }

    fn link(&self) -> &Arc<DeviceLink> {
        &self.link
    }

    fn activate(&self, activation: Activation) {
        self.mailbox.activate(activation);
    }

    fn reset(&self, number: u64) {
        self.mailbox.reset(number);
    }

    fn set_call(&self, queue: u16, call: Option<Call>) {
        self.mailbox.set_call(queue, call);
    }

    fn back_end(&self) -> (bool, u64) {
        self.position.back_end()
    }

    fn quiesce(&self) -> Quiesce<'_> {
        self.rest(false)
    }

    fn quiesce_fully(&self) -> Quiesce<'_> {
        self.rest(true)
    }

    fn resume(&self) {
        self.mailbox.resume();
    }

    fn restore(&self, state: &Payload, active: Option<Activation>) -> Result<(), RestoreError> {
        let state: VhostUserState = state.read(VHOST_USER, 1)?;
        let wrong = |what: &str| RestoreError::Value { device: self.name(), what: what.into() };
        let rings = Restored::rings(&state.rings).ok_or_else(|| wrong("an impossible ring"))?;
        match active {
            None if rings.is_empty() => Ok(()),
            None => Err(wrong("rings without a driver")),
            Some(activation) => {
                self.mailbox.restore(Restored { activation, rings });
                Ok(())
            }
        }
    }
}
