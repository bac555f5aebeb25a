//! How the control socket refuses: the codes that programs match on, and what the operator does next.

use crate::disk::DiskId;
use crate::disk::id::BadDiskId;
use crate::disk::store::StoreError;
use axum::http::StatusCode;
use bixi_offload::control::Refusal;

/// The refusal that a failure at a disk becomes.
pub fn of(error: &StoreError) -> Refusal {
    let message = format!("{error}.");
    match error {
        StoreError::NotFound(_) => Refusal::not_found(
            "NoSuchDisk",
            message,
            "List the disks with `bixi-storage disk list`.",
        ),
        StoreError::Exists(_) => {
            Refusal::conflict("DiskExists", message, "Take another id, or delete that disk first.")
        }
        StoreError::InUse { .. } => Refusal::conflict(
            "DiskInUse",
            message,
            "Detach it there first; a disk has one writer at a time.",
        ),
        StoreError::Stale { .. } => Refusal::conflict(
            "StaleEpoch",
            message,
            "The disk belongs to a newer placement: do not start this one.",
        ),
        StoreError::Meta { .. } | StoreError::Layer { .. } => Refusal::failed(
            "DiskDamaged",
            message,
            "Restore the disk's directory from a copy, or delete the disk.",
        ),
        StoreError::Invalid(_) => Refusal::bad_request("BadSize", message, ""),
        StoreError::Image { .. } => {
            Refusal::bad_request("BadImage", message, "Give a raw image that can be read.")
        }
        StoreError::Cancelled(_) => Refusal::conflict("Cancelled", message, ""),
        StoreError::Io { .. } if error.is_full() => Refusal::new(
            StatusCode::INSUFFICIENT_STORAGE,
            "NoSpace",
            message,
            "Make room under the root directory.",
        ),
        StoreError::Io { .. } => Refusal::failed(
            "DiskFault",
            message,
            "Look at the file system under the root directory.",
        ),
    }
}

/// The refusal of a text that is no disk id.
pub fn of_id(error: &BadDiskId) -> Refusal {
    Refusal::bad_request("BadDiskId", format!("{error}."), "")
}

/// The refusal of what does not go with something else that is being done with the disk.
pub fn busy(id: &DiskId, what: &str) -> Refusal {
    Refusal::conflict(
        "DiskBusy",
        format!("disk {id} is being {what}."),
        "Ask again when that is over.",
    )
}
