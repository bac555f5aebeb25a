//! Work that may wait for a disk: done on threads of their own, its results given to the driver.

use super::attachment::Claim;
use crate::disk::DiskId;
use crate::disk::layer::{Access, LayerFile};
use crate::disk::lock::{Holder, Owner};
use crate::disk::store::{Store, StoreError};
use crate::engine::config::Shape;
use bixi_api::storage::DiskAttach;

/// What a claim brought.
#[derive(Debug)]
pub struct Claimed {
    /// How it ended.
    pub claim: Claim,
    /// What the disk's device offers, if that could be found out.
    pub shape: Option<Shape>,
    /// The file with the writer lock, if that is held.
    pub layer: Option<LayerFile>,
    /// Why it is not.
    pub error: Option<StoreError>,
}

impl Claimed {
    fn failed(error: StoreError) -> Self {
        let claim = match error {
            StoreError::Stale { .. } => Claim::Stale,
            _ => Claim::Failed,
        };
        Self { claim, shape: None, layer: None, error: Some(error) }
    }
}

/// Claims a disk for an attachment: opens its layer, takes the writer lock on that very description, and puts the
/// epoch on the medium. In a `first` claim a lock that a living process holds is a reason to refuse; one that only the
/// unfinished I/O of a dead process holds is not, and the epoch is raised all the same.
pub fn claim(store: &Store, id: &DiskId, attach: &DiskAttach, first: bool) -> Claimed {
    try_claim(store, id, attach, first).unwrap_or_else(Claimed::failed)
}

fn try_claim(
    store: &Store,
    id: &DiskId,
    attach: &DiskAttach,
    first: bool,
) -> Result<Claimed, StoreError> {
    let meta = store.meta(id)?;
    if attach.epoch < meta.epoch {
        return Err(StoreError::Stale { id: id.clone(), asked: attach.epoch, seen: meta.epoch });
    }
    let layer = store.open_layer(&meta)?;
    let shape = Some(shape(meta.size, attach, &layer));
    let locked = layer.try_lock().map_err(|source| StoreError::Io {
        id: id.clone(),
        what: "lock its layer",
        source,
    })?;
    if !locked {
        let holder = Holder::look(&store.directory(id));
        let error = Some(StoreError::InUse { id: id.clone(), holder: holder.clone() });
        if first && !matches!(holder, Holder::Dead(_)) {
            return Ok(Claimed { claim: Claim::Failed, shape: None, layer: None, error });
        }
        if first {
            store.raise_epoch(id, attach.epoch)?;
        }
        return Ok(Claimed { claim: Claim::Busy, shape, layer: None, error });
    }
    store.raise_epoch(id, attach.epoch)?;
    // The note only explains; without it the disk is served as well.
    let noted = Owner::this_process().and_then(|owner| owner.write(&store.directory(id)));
    if let Err(error) = noted {
        tracing::warn!(disk = %id, %error, "cannot leave a note of who uses the disk");
    }
    Ok(Claimed { claim: Claim::Held, shape, layer: Some(layer), error: None })
}

/// What a device of this disk offers: only what the engine can do on this file.
fn shape(size: u64, attach: &DiskAttach, layer: &LayerFile) -> Shape {
    let abilities = layer.abilities();
    tracing::debug!(access = ?abilities.access(), "layer opened");
    Shape {
        size,
        queues: attach.queues,
        read_only: attach.read_only,
        discard: abilities.punch_hole(),
        // Where the file system cannot zero, zeroes are written.
        write_zeroes: true,
        zeroes_may_unmap: abilities.punch_hole(),
    }
}

/// How a disk is reached, in a word for the log.
pub fn access_word(access: Access) -> &'static str {
    match access {
        Access::Direct { .. } => "direct",
        Access::Buffered => "buffered",
        Access::Memory => "memory",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::create::{Progress, Source};

    fn attach(epoch: u64) -> DiskAttach {
        let socket = "/s".into();
        DiskAttach {
            epoch,
            socket,
            queues: 2,
            read_only: false,
            require_sealed: true,
            limits: bixi_api::storage::DiskLimits::NONE,
        }
    }

    #[test]
    fn a_claim_holds_the_lock_and_the_epoch_and_a_second_one_is_told_who() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let id: DiskId = "d-0123456789abcdefghij".parse().unwrap();
        let missing = claim(&store, &id, &attach(1), true);
        assert!(matches!(missing.error, Some(StoreError::NotFound(_))));
        store.create(&id, &Source::Zero { size: 4096 }, &Progress::default()).unwrap();

        let first = claim(&store, &id, &attach(5), true);
        assert_eq!(first.claim, Claim::Held);
        assert_eq!(first.shape.unwrap().size, 4096);
        assert_eq!(store.meta(&id).unwrap().epoch, 5);

        let second = claim(&store, &id, &attach(6), true);
        assert_eq!(second.claim, Claim::Failed);
        let told = second.error.unwrap().to_string();
        assert!(told.contains(&format!("process {}", std::process::id())), "{told}");
        assert_eq!(store.meta(&id).unwrap().epoch, 5, "refused: the epoch stays");
        assert_eq!(claim(&store, &id, &attach(4), true).claim, Claim::Stale);
        let again = claim(&store, &id, &attach(5), false);
        assert_eq!(again.claim, Claim::Busy, "one that stands already goes on waiting");

        // The holder is dead and its I/O is not over: accepted, not held.
        let us = Owner::this_process().unwrap();
        let ghost = Owner { start: us.start + 1, ..us };
        ghost.write(&store.directory(&id)).unwrap();
        let waits = claim(&store, &id, &attach(7), true);
        assert_eq!(waits.claim, Claim::Busy);
        assert_eq!(store.meta(&id).unwrap().epoch, 7, "promised: the epoch is on the medium");
        drop(first);
        assert_eq!(claim(&store, &id, &attach(6), false).claim, Claim::Stale);
        assert_eq!(claim(&store, &id, &attach(7), false).claim, Claim::Held);
    }
}
