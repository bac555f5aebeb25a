//! All records in memory, as of one revision of the store.
//!
//! Invariant: a view is what the store's range and watch said, and nothing else changes it. A record that cannot be read
//! ends the process that tried: a release that does not understand the state must not act on half of it.

use super::{
    AccessKey, ClientToken, Disk, Disturbance, Eni, Event, Image, Instance, JoinTicket, Launch,
    Room, SecurityGroup, Segment, Server, Task, Tenant, VSwitch, Vpc,
};
use crate::store::{Change, Entry, Revision};
use bixi_api::state::{Payload, PayloadError};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

/// A kind of record that is stored under a key of its own.
pub trait Record: Sized + Clone + 'static {
    /// The kind, also the first part of the key.
    const KIND: &'static str;
    /// The version of its layout.
    const VERSION: u32;

    /// The rest of the key, unique among its kind.
    fn id(&self) -> String;

    /// What it belongs to, so that it is found from there.
    fn links(&self) -> Vec<(Link, String)>;

    /// The record wrapped for the store.
    fn encode(&self) -> Vec<u8>;

    /// Reads what was stored.
    ///
    /// # Errors
    /// See [`RecordError`].
    fn decode(value: &[u8]) -> Result<Self, RecordError>;

    /// Where a view has records of this kind.
    fn table(view: &View) -> &Table<Self>;

    /// The same, to change it.
    fn table_mut(view: &mut View) -> &mut Table<Self>;

    /// The key of the record with this id.
    fn key(id: &str) -> Vec<u8> {
        format!("{}/{id}", Self::KIND).into_bytes()
    }
}

/// How one record belongs to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Link {
    /// An instance to its server.
    InstanceAt,
    /// An instance to its tenant.
    InstanceOf,
    /// A disk to its instance.
    DiskIn,
    /// A disk to its server.
    DiskAt,
    /// A disk to its tenant.
    DiskOf,
    /// An interface to its instance.
    EniIn,
    /// An interface to its vSwitch.
    EniAt,
}

/// A stored record cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The wrapping is damaged.
    #[error("a record does not decode")]
    Wrapping(#[from] prost::DecodeError),
    /// The payload is another's, newer, or damaged.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// A field has no meaning.
    #[error(transparent)]
    Field(#[from] super::FieldError),
    /// Nothing is known under such a key.
    #[error(
        "the key {0} belongs to no kind of record that this release knows: use a newer release"
    )]
    Kind(String),
}

/// A record with the revision of its last change.
#[derive(Debug, Clone)]
pub struct Stored<R> {
    /// The record.
    pub record: Arc<R>,
    /// The revision that last changed it.
    pub modified: Revision,
}

/// All records of one kind, by id.
#[derive(Debug, Clone)]
pub struct Table<R>(BTreeMap<String, Stored<R>>);

impl<R> Default for Table<R> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<R> Table<R> {
    /// One record.
    pub fn get(&self, id: &str) -> Option<&Arc<R>> {
        self.0.get(id).map(|stored| &stored.record)
    }

    /// The revision of a record's last change; 0 if it does not exist.
    pub fn modified(&self, id: &str) -> Revision {
        self.0.get(id).map_or(0, |stored| stored.modified)
    }

    /// All records in the order of their ids.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<R>> {
        self.0.values().map(|stored| &stored.record)
    }

    /// Records whose ids begin with `prefix`.
    pub fn under<'t>(&'t self, prefix: &'t str) -> impl Iterator<Item = &'t Arc<R>> {
        let from = self.0.range(prefix.to_owned()..);
        from.take_while(move |(id, _)| id.starts_with(prefix)).map(|(_, stored)| &stored.record)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $field:ident: $type:ident, $kind:literal, $version:literal, $id:expr $(, $links:expr)?;)*) => {
        /// Everything the cloud knows.
        #[derive(Debug, Clone, Default)]
        pub struct View {
            /// The revision that this is.
            pub revision: Revision,
            /// Tasks that have not ended.
            pub active: BTreeSet<String>,
            /// Events in the order in which they were committed.
            pub told: BTreeSet<(Revision, String)>,
            /// What belongs to what: how, to which, which.
            pub linked: BTreeSet<(Link, String, String)>,
            $($(#[$doc])* pub $field: Table<$type>,)*
        }

        impl View {
            fn put(&mut self, kind: &str, id: &str, entry: &Entry) -> Result<(), RecordError> {
                match kind {
                    $($kind => self.insert::<$type>(id, entry),)*
                    _ => Err(RecordError::Kind(format!("{kind}/{id}"))),
                }
            }

            fn remove(&mut self, kind: &str, id: &str) {
                match kind {
                    $($kind => {
                        if let Some(old) = self.$field.0.remove(id) {
                            self.unlink(old.record.as_ref(), id);
                        }
                    })*
                    _ => {}
                }
            }
        }

        $(impl Record for $type {
            const KIND: &'static str = $kind;
            const VERSION: u32 = $version;

            fn id(&self) -> String {
                let id: fn(&Self) -> String = $id;
                id(self)
            }

            fn links(&self) -> Vec<(Link, String)> {
                let links: &[fn(&Self) -> Vec<(Link, String)>] = &[$($links)?];
                links.iter().flat_map(|links| links(self)).collect()
            }

            fn encode(&self) -> Vec<u8> {
                Payload::new($kind, $version, &self.to_state()).encode_to_vec()
            }

            fn decode(value: &[u8]) -> Result<Self, RecordError> {
                Ok(Self::from_state(Payload::decode(value)?.read($kind, $version)?)?)
            }

            fn table(view: &View) -> &Table<Self> {
                &view.$field
            }

            fn table_mut(view: &mut View) -> &mut Table<Self> {
                &mut view.$field
            }
        })*
    };
}

kinds! {
    /// Tenants.
    tenants: Tenant, "tenant", 1, |tenant| tenant.id.clone();
    /// Access keys.
    access_keys: AccessKey, "access-key", 1, |key| key.id.clone();
    /// Answers to requests with ClientTokens.
    client_tokens: ClientToken, "client-token", 1, |token| ClientToken::key(&token.tenant, &token.action, &token.token);
    /// VPCs.
    vpcs: Vpc, "vpc", 1, |vpc| vpc.id.clone();
    /// vSwitches.
    vswitches: VSwitch, "vswitch", 1, |vswitch| vswitch.id.clone();
    /// VXLAN network identifiers in use.
    segments: Segment, "segment", 1, |segment| segment.vni.to_string();
    /// Security groups.
    groups: SecurityGroup, "security-group", 1, |group| group.id.clone();
    /// Network interfaces.
    enis: Eni, "eni", 1, |eni| eni.id.clone(), |eni| {
        let instance = eni.instance.clone().map(|id| (Link::EniIn, id));
        instance.into_iter().chain([(Link::EniAt, eni.vswitch.clone())]).collect()
    };
    /// Instances.
    instances: Instance, "instance", 1, |instance| instance.id.clone(), |instance| {
        let at = (Link::InstanceAt, instance.placement.server.clone());
        vec![at, (Link::InstanceOf, instance.tenant.clone())]
    };
    /// Disks.
    disks: Disk, "disk", 1, |disk| disk.id.clone(), |disk| {
        let instance = disk.instance.clone().map(|id| (Link::DiskIn, id));
        let at = (Link::DiskAt, disk.server.clone());
        instance.into_iter().chain([at, (Link::DiskOf, disk.tenant.clone())]).collect()
    };
    /// Images.
    images: Image, "image", 1, |image| image.id.clone();
    /// Servers.
    servers: Server, "server", 1, |server| server.id.clone();
    /// Parts of the servers, as far as placing goes.
    rooms: Room, "room", 1, |room| room.number.to_string();
    /// Creations that are not all written down.
    launches: Launch, "launch", 1, |launch| launch.id.clone();
    /// Join tokens not used yet.
    tickets: JoinTicket, "join-ticket", 1, |ticket| ticket.secret_sha256.clone();
    /// Tasks, ended ones too for a while.
    tasks: Task, "task", 1, |task| task.id.clone();
    /// Events, for a while.
    events: Event, "event", 1, |event| event.id.clone();
    /// The disturbance ledger.
    disturbances: Disturbance, "disturbance", 1, |entry| {
        format!("{}/{}/{:020}", entry.instance, entry.server, entry.sequence)
    };
}

impl View {
    /// Takes in one entry of the store's range.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn load(&mut self, entry: &Entry) -> Result<(), RecordError> {
        let key = String::from_utf8_lossy(&entry.key).into_owned();
        let (kind, id) = key.split_once('/').ok_or_else(|| RecordError::Kind(key.clone()))?;
        self.put(kind, id, entry)
    }

    /// Takes in one change of the store's watch.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn apply(&mut self, change: &Change) -> Result<(), RecordError> {
        if let Some(entry) = &change.entry {
            return self.load(entry);
        }
        let key = String::from_utf8_lossy(&change.key).into_owned();
        if let Some((kind, id)) = key.split_once('/') {
            self.told.remove(&(self.events.modified(id), id.to_owned()));
            self.remove(kind, id);
            self.active.remove(id);
        }
        Ok(())
    }

    fn insert<R: Record>(&mut self, id: &str, entry: &Entry) -> Result<(), RecordError> {
        let record = Arc::new(R::decode(&entry.value)?);
        let links = record.links();
        let stored = Stored { record, modified: entry.modified };
        if let Some(old) = R::table_mut(self).0.insert(id.to_owned(), stored) {
            self.unlink(old.record.as_ref(), id);
        }
        self.linked.extend(links.into_iter().map(|(link, to)| (link, to, id.to_owned())));
        if R::KIND == Event::KIND {
            self.told.insert((entry.modified, id.to_owned()));
        }
        if R::KIND == Task::KIND {
            match self.tasks.get(id) {
                Some(task) if !task.step.is_final() => self.active.insert(id.to_owned()),
                _ => self.active.remove(id),
            };
        }
        Ok(())
    }

    /// Events in the order in which they were committed: those after the event `id`, or all if there is no such event.
    pub fn events_after(&self, id: &str) -> impl Iterator<Item = &Arc<Event>> {
        let after = Bound::Excluded((self.events.modified(id), id.to_owned()));
        self.told.range((after, Bound::Unbounded)).filter_map(|(_, id)| self.events.get(id))
    }

    fn unlink<R: Record>(&mut self, record: &R, id: &str) {
        for (link, to) in record.links() {
            self.linked.remove(&(link, to, id.to_owned()));
        }
    }

    /// What belongs to `to` in this way.
    pub fn linked<'v, R: Record>(
        &'v self,
        link: Link,
        to: &'v str,
    ) -> impl Iterator<Item = &'v Arc<R>> {
        let first = (link, to.to_owned(), String::new());
        let all = self.linked.range(first..);
        let here = all.take_while(move |(how, whose, _)| *how == link && whose == to);
        here.filter_map(|(_, _, id)| R::table(self).get(id))
    }

    /// An instance's disks in the guest's order.
    pub fn disks_of(&self, instance: &str) -> Vec<Arc<Disk>> {
        let mut disks: Vec<Arc<Disk>> = self.linked(Link::DiskIn, instance).cloned().collect();
        disks.sort_by_key(|disk| disk.index);
        disks
    }

    /// An instance's interfaces, the first one first.
    pub fn enis_of(&self, instance: &str) -> Vec<Arc<Eni>> {
        let mut enis: Vec<Arc<Eni>> = self.linked(Link::EniIn, instance).cloned().collect();
        enis.sort_by_key(|eni| !eni.primary);
        enis
    }
}
