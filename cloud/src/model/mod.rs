//! What the cloud knows: records in the store, and the view of all of them in memory.
//!
//! A record exists twice: as a run-time type with enums and addresses, and as a protocol-buffer message with numbered
//! fields that is stored (`Tenant` and `TenantState`), wrapped as a payload with a kind and a version. Numbers are never
//! used again. Invariants: an id is never used again; a placement's epoch and an instance's boot generation only grow;
//! whatever changes a segment changes its vSwitch's record, so that the segment's generation grows.
//!
//! `View` is built from the store's range and watch alone. `Draft` collects changes as one transaction that holds only
//! if nothing of what it read has changed: whoever plans is a pure function from a view to a draft.

mod draft;
mod fields;
pub mod ids;
mod image;
mod instance;
mod launch;
mod network;
mod server;
mod tenancy;
mod view;
mod work;

pub use draft::Draft;
pub use fields::{Field, FieldError};
pub use image::{Image, ImageFile, ImageState};
pub use instance::{Desired, Disk, Instance, Limits, Observed, Placement, Power, Status, Tag};
pub use launch::{Launch, Member};
pub use network::{Eni, SecurityGroup, Segment, VSwitch, Vpc};
pub use server::{Hardware, JoinTicket, Room, Server};
pub use tenancy::{AccessKey, ClientToken, Quota, Tenant};
pub use view::{Link, Record, RecordError, Stored, Table, View};
pub use work::{Disturbance, Event, Failure, Severity, Step, Task, TaskKind};
