//! Disks at rest: what lies under the root directory, and who may touch it.
//!
//! ```text
//! <root>/<id>/meta          what the disk knows about itself (checksummed, see `meta`)
//!            /<layer>.raw   its bytes; carries the writer lock (see `lock`)
//!            /owner         who took the writer lock last, for error messages
//! <root>/<id>.unfinished/   a disk being made or deleted; removed at start
//! ```
//!
//! [`store::Store`] makes, lists and deletes; [`layer::LayerFile`] is a disk's file opened for I/O. Called by the
//! driver, always on a thread that may wait: nothing here runs on the data path.

pub mod create;
pub mod durable;
pub mod envelope;
pub mod id;
pub mod layer;
pub mod lock;
pub mod meta;
pub mod store;

pub use id::DiskId;
