//! What is going on with one disk, and how that looks from outside.

use super::attachment::{Attachment, Stage};
use super::driver::Reply;
use super::records::{Record, Records};
use super::refusal;
use crate::disk::DiskId;
use crate::disk::create::Progress;
use crate::disk::layer::LayerFile;
use crate::disk::meta::Meta;
use crate::engine::config::Shape;
use crate::engine::media::ServedDisk;
use bixi_api::state::{Declared, Movable};
use bixi_api::storage::{
    AttachmentDescription, DiskAttach, DiskCreation, DiskDescription, DiskLimits, DiskStatistics,
};
use bixi_offload::card::{CardEvent, DeviceId};
use bixi_offload::control::{Refusal, SocketFile};
use bixi_offload::rate::Limiter;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// At most one line about a front end's faults per disk in this time: who connects decides how often they happen.
const FAULT_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// What is going on with a disk.
#[derive(Debug)]
pub enum Going {
    /// A job makes it.
    Creating {
        /// How far it is.
        progress: Arc<Progress>,
        /// Who asked for it.
        reply: Reply<DiskDescription>,
        /// Who wants it ended.
        enders: Vec<Reply<()>>,
    },
    /// A job deletes it.
    Deleting(Reply<()>),
    /// It is attached, or about to be or to be no more.
    Attached(Box<Attached>),
}

/// An attached disk.
#[derive(Debug)]
pub struct Attached {
    /// The disk.
    pub id: DiskId,
    /// What decides.
    pub machine: Attachment,
    /// What is offered.
    pub shape: Option<Shape>,
    /// The claimed file, until it is served.
    pub layer: Option<LayerFile>,
    /// The disk that the workers serve.
    pub served: Option<Arc<ServedDisk>>,
    /// The device, while it listens.
    pub device: Option<DeviceId>,
    /// Removes the socket's file.
    pub socket_file: Option<SocketFile>,
    /// What it waits for.
    pub waiting: Option<String>,
    /// Why it would be refused.
    pub refusal: Option<Refusal>,
    /// Why it cannot be written down, if it cannot.
    pub refusal_at_record: Option<Refusal>,
    /// Who wants to hear that it stands.
    pub askers: Vec<Reply<DiskDescription>>,
    /// Who wants to hear that it is over.
    pub detachers: Vec<Reply<DiskDescription>>,
    connected: bool,
    last_fault: Option<String>,
    fault_told: Option<Instant>,
    replayed: u64,
}

/// What the driver knows of a disk that the store does not.
#[derive(Debug, Clone)]
pub enum Live {
    /// It is being made.
    Creating(DiskCreation),
    /// It is being deleted, or about to be attached: as it lies there.
    Idle,
    /// It is attached.
    Attached(Box<DiskDescription>),
}

impl Live {
    /// A disk with which nothing is going on.
    pub fn idle(meta: &Meta) -> DiskDescription {
        let (attachment, creation, fault) = (None, None, None);
        let id = meta.id.to_string();
        DiskDescription { id, size: meta.size, epoch: meta.epoch, attachment, creation, fault }
    }
}

impl Going {
    /// What is being done, as a word behind *is being*.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Creating { .. } => "made",
            Self::Deleting(_) => "deleted",
            Self::Attached(_) => "used",
        }
    }

    /// How it looks from outside.
    pub fn live(&self, id: &DiskId) -> Live {
        match self {
            Self::Creating { progress, .. } => {
                let (done, total) = progress.get();
                Live::Creating(DiskCreation { done, total })
            }
            Self::Deleting(_) => Live::Idle,
            Self::Attached(attached) if attached.machine.stage() == Stage::Checking => Live::Idle,
            Self::Attached(attached) => Live::Attached(Box::new(attached.describe(id))),
        }
    }
}

impl Movable for Attached {
    /// An attachment travels as its record does: what was asked for and what is offered. Its sessions and queues
    /// declare themselves, and the writer lock is taken anew where it arrives.
    fn declare(&self) -> Declared {
        match (self.machine.stage(), self.shape) {
            (Stage::Standing { .. } | Stage::Serving, Some(shape)) => {
                let attach = self.machine.attach.clone();
                Declared::State(Record { id: self.id.clone(), attach, shape }.payload())
            }
            _ => Declared::NotMovable("the disk is just being attached or detached".to_owned()),
        }
    }
}

impl Attached {
    /// An attachment at its beginning.
    pub fn new(id: DiskId, machine: Attachment, shape: Option<Shape>) -> Self {
        Self {
            id,
            machine,
            shape,
            layer: None,
            served: None,
            device: None,
            socket_file: None,
            waiting: None,
            refusal: None,
            refusal_at_record: None,
            askers: Vec::new(),
            detachers: Vec::new(),
            connected: false,
            last_fault: None,
            fault_told: None,
            replayed: 0,
        }
    }

    /// How it looks from outside.
    pub fn describe(&self, id: &DiskId) -> DiskDescription {
        let statistics = self.served.as_ref().map_or_else(DiskStatistics::default, |disk| {
            DiskStatistics { replayed: self.replayed, ..disk.statistics() }
        });
        let attachment = AttachmentDescription {
            attach: self.machine.attach.clone(),
            locked: self.machine.stage() == Stage::Serving,
            waiting: self.waiting.clone(),
            connected: self.connected,
            last_fault: self.last_fault.clone(),
            statistics,
        };
        DiskDescription {
            id: id.to_string(),
            size: self.shape.map_or(0, |shape| shape.size),
            epoch: self.machine.attach.epoch,
            attachment: Some(attachment),
            creation: None,
            fault: self.served.as_ref().and_then(|disk| disk.fault()),
        }
    }

    /// Whether `attach` is the attachment that there is, promised and with other limits.
    pub fn changes_limits(&self, attach: &DiskAttach) -> bool {
        let now = &self.machine.attach;
        let promised = matches!(self.machine.stage(), Stage::Standing { .. } | Stage::Serving);
        let same = DiskAttach { limits: now.limits, ..attach.clone() } == *now;
        promised && same && attach.limits != now.limits
    }

    /// Writes other limits down; from here on they are those of the attachment.
    ///
    /// # Errors
    /// They cannot be written down: then the old ones hold.
    pub fn set_limits(
        &mut self,
        id: &DiskId,
        limits: DiskLimits,
        records: &Records,
    ) -> Result<(), Refusal> {
        let before = std::mem::replace(&mut self.machine.attach.limits, limits);
        self.record(id, records);
        self.refusal_at_record.take().map_or(Ok(()), |refusal| {
            self.machine.attach.limits = before;
            Err(refusal)
        })
    }

    /// What holds the disk to its limits, if it has any.
    pub fn limiter(&self) -> Option<Arc<Limiter>> {
        // Rates that cannot be were refused before.
        let limiter = super::records::limiter(&self.machine.attach.limits).unwrap_or_default();
        limiter.map(Arc::new)
    }

    /// Somebody asks for an attachment where there is one.
    pub fn again(&mut self, id: &DiskId, attach: &DiskAttach, reply: Reply<DiskDescription>) {
        let now = &self.machine.attach;
        let refused = if attach.epoch < now.epoch {
            Refusal::conflict(
                "StaleEpoch",
                format!("epoch {} of disk {id} is stale: it has seen {}.", attach.epoch, now.epoch),
                "The disk belongs to a newer placement: do not start this one.",
            )
        } else if attach != now {
            let socket = now.socket.display();
            Refusal::conflict(
                "DiskInUse",
                format!("disk {id} is attached at {socket} with epoch {}.", now.epoch),
                "Detach it first.",
            )
        } else {
            match self.machine.stage() {
                Stage::Checking => return self.askers.push(reply),
                Stage::Standing { .. } | Stage::Serving => {
                    let _ = reply.send(Ok(self.describe(id)));
                    return;
                }
                Stage::Leaving { .. } | Stage::Gone => refusal::busy(id, "detached"),
            }
        };
        let _ = reply.send(Err(refused));
    }

    /// Writes the attachment down; a failure shows at the next listening.
    pub fn record(&mut self, id: &DiskId, records: &Records) {
        let Some(shape) = self.shape else { return };
        let record = Record { id: id.clone(), attach: self.machine.attach.clone(), shape };
        if let Err(error) = records.put(&record) {
            tracing::error!(disk = %id, %error, "cannot write an attachment down");
            self.refusal_at_record = Some(Refusal::failed(
                "StateUnwritable",
                format!("the attachment of disk {id} cannot be written down: {error}."),
                "Make room in the state directory.",
            ));
        }
    }

    /// Tells who asked that it stands.
    pub fn accept(&mut self, id: &DiskId) {
        for asker in std::mem::take(&mut self.askers) {
            let _ = asker.send(Ok(self.describe(id)));
        }
    }

    /// Tells who asked that it is refused.
    pub fn refuse(&mut self, id: &DiskId) {
        let refusal = self.refusal.take().unwrap_or_else(|| {
            Refusal::failed("DiskFault", format!("disk {id} cannot be attached."), "")
        });
        for asker in self.askers.drain(..) {
            let _ = asker.send(Err(refusal.clone()));
        }
    }

    /// Tells who asked that it is over.
    pub fn tell_detached(&mut self, id: &DiskId) {
        let now = DiskDescription { attachment: None, ..self.describe(id) };
        for asker in self.detachers.drain(..) {
            let _ = asker.send(Ok(now.clone()));
        }
    }

    /// Something happened between the device and its front end.
    pub fn session_event(&mut self, id: &DiskId, event: CardEvent<Infallible>) {
        match event {
            CardEvent::Connected(_) => self.connected = true,
            CardEvent::Started { index, recovered, .. } => {
                self.replayed += u64::from(recovered);
                if recovered > 0 {
                    tracing::info!(disk = %id, queue = index, recovered, "requests taken over");
                }
            }
            CardEvent::Disconnected { fault, .. } => {
                self.connected = false;
                let Some(fault) = fault else { return };
                let quiet = self.fault_told.is_some_and(|at| at.elapsed() < FAULT_LOG_INTERVAL);
                if !quiet {
                    self.fault_told = Some(Instant::now());
                    tracing::warn!(disk = %id, fault, "ended a front end's session");
                }
                self.last_fault = Some(fault);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::media::{FileMedia, Media, counters};
    use crate::service::attachment::{Claim, Event};

    fn asked() -> DiskAttach {
        DiskAttach {
            epoch: 4,
            socket: "/s".into(),
            queues: 2,
            read_only: false,
            require_sealed: true,
            limits: DiskLimits::NONE,
        }
    }

    #[test]
    fn a_failed_flush_shows() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a.raw"), [0; 4096]).unwrap();
        let media = FileMedia::new(LayerFile::open(directory.path(), "a.raw", 4096).unwrap());
        let (serial, read_only, counters) = ([b'0'; 20], false, counters(2));
        let media = Media::File(media);
        let served = Arc::new(ServedDisk { size: 4096, serial, read_only, media, counters });
        let id: DiskId = "d-0123456789abcdefghij".parse().unwrap();
        let mut attached = Attached::new(id.clone(), Attachment::asked(asked()), None);
        attached.served = Some(Arc::clone(&served));
        assert_eq!(attached.describe(&id).fault, None);
        let Media::File(media) = &served.media else { panic!("a file") };
        media.flush_failed(libc::EIO);
        media.flush_failed(libc::ENOSPC);
        let fault = attached.describe(&id).fault.unwrap();
        assert!(fault.contains("os error 5"), "the first one: {fault}");
    }

    #[test]
    fn an_attachment_moves_when_it_stands() {
        let attach = asked();
        let shape = Shape {
            size: 4096,
            queues: 2,
            read_only: false,
            discard: true,
            write_zeroes: true,
            zeroes_may_unmap: true,
        };
        let id: DiskId = "d-0123456789abcdefghij".parse().unwrap();
        let machine = Attachment::asked(attach.clone());
        let mut attached = Attached::new(id.clone(), machine, Some(shape));
        assert!(matches!(attached.declare(), Declared::NotMovable(_)));
        attached.machine.step(Event::Begin);
        attached.machine.step(Event::Claimed(Claim::Held));
        let Declared::State(payload) = attached.declare() else { panic!("it stands") };
        assert_eq!(Record::from_payload(&payload), Ok(Record { id, attach, shape }));
    }
}
